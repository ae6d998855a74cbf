//! Reads `tiktoken.model` (lines of `base64(token) rank`) with the special tokens of `tokenizer_config.json`.
//!
//! Ranks are ids. 256 special ids follow; those that the config does not name are `<|reserved_token_ID|>`. Further ids of
//! a larger vocabulary are unused.

use super::builder::{Kind, VocabularyBuilder, bad};
use super::pretokenizer::{PATTERNS, Pattern};
use super::{SpecialIds, Vocabulary};
use crate::gguf::Error;
use serde_json::Value;

/// Number of special ids after the ranks.
const SPECIAL_IDS: usize = 256;

impl Vocabulary {
    /// Reads the two files of a checkpoint. The pre-tokenizer is Kimi's, since neither file has a pattern.
    ///
    /// `path` names `tiktoken.model` in messages. `size` is the model's `vocab_size`, if known; otherwise 256 special ids
    /// follow the ranks. An empty `config` names no special token.
    pub fn from_tiktoken(path: &str, model: &[u8], config: &str, size: Option<usize>) -> Result<Self, Error> {
        let mut ranks = read_ranks(path, model)?;
        ranks.sort_unstable();
        let config = TokenizerConfig::read(path, config)?;
        let size = size.unwrap_or(ranks.len() + SPECIAL_IDS);
        if size < ranks.len() {
            return Err(bad(
                path,
                "ranks",
                format_args!("at most {size}, the vocabulary's size"),
                ranks.len(),
            ));
        }
        let mut builder = VocabularyBuilder::new(path, size)?;
        for (expected, (rank, token)) in ranks.iter().enumerate() {
            if *rank as usize != expected {
                return Err(bad(path, "ranks", format_args!("rank {expected} next"), rank));
            }
            builder.push(Kind::Normal, token)?;
        }
        let merges = builder.derive_merges()?;
        for id in ranks.len()..size {
            match config.name(id) {
                Some(name) => builder.push(Kind::Control, name.as_bytes())?,
                None if id < ranks.len() + SPECIAL_IDS => {
                    builder.push(Kind::Control, format!("<|reserved_token_{id}|>").as_bytes())?;
                }
                None => builder.push_unused()?,
            }
        }
        let id = |key| config.id(key, ranks.len()..size);
        let special_ids = SpecialIds {
            bos: id("bos_token"),
            eos: id("eos_token"),
            pad: id("pad_token"),
            unk: id("unk_token"),
        };
        let kimi = Pattern::named("kimi-k2").unwrap_or(&PATTERNS[0]);
        builder.finish(merges, kimi, special_ids)
    }
}

/// The relevant part of `tokenizer_config.json`.
struct TokenizerConfig(Value);

impl TokenizerConfig {
    fn read(path: &str, text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self(Value::Null));
        }
        let broken = |e| bad(path, "tokenizer_config.json", "JSON", e);
        serde_json::from_str(text).map(Self).map_err(broken)
    }

    fn name(&self, id: usize) -> Option<&str> {
        self.0.get("added_tokens_decoder")?.get(id.to_string())?.get("content")?.as_str()
    }

    /// The id of the token that a key such as `bos_token` names, as a string or as an object with `content`.
    fn id(&self, key: &str, mut ids: std::ops::Range<usize>) -> Option<u32> {
        let token = self.0.get(key)?;
        let name = token.as_str().or_else(|| token.get("content")?.as_str())?;
        ids.find(|&id| self.name(id) == Some(name)).map(|id| id as u32)
    }
}

fn read_ranks(path: &str, model: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, Error> {
    let mut ranks = Vec::new();
    for (index, line) in model.split(|&b| b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let found =
            || bad(path, format_args!("line {}", index + 1), "base64 and a rank", line.escape_ascii());
        let space = line.iter().position(|&b| b == b' ').ok_or_else(found)?;
        let token = base64(&line[..space]).ok_or_else(found)?;
        let rank = std::str::from_utf8(&line[space + 1..]).ok().and_then(|rank| rank.parse().ok());
        ranks.push((rank.ok_or_else(found)?, token));
    }
    Ok(ranks)
}

/// Decodes base64 in the standard alphabet with padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|&&b| b == b'=').count();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text[..text.len() - padding].chunks(4) {
        let mut bits = 0u32;
        for &letter in group {
            bits = bits << 6 | sextet(letter)?;
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

fn sextet(letter: u8) -> Option<u32> {
    Some(u32::from(match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length() {
        let cases = [("", ""), ("YQ==", "a"), ("YWI=", "ab"), ("YWJj", "abc"), ("+/8=", "")];
        for (text, bytes) in &cases[..4] {
            assert_eq!(base64(text.as_bytes()).unwrap(), bytes.as_bytes());
        }
        assert_eq!(base64(b"+/8=").unwrap(), [0xfb, 0xff]);
        for broken in ["Y", "YQ", "YQ=", "Y===", "Y=Q=", "Y Q=", "====", "YQ==YQ=="] {
            assert_eq!(base64(broken.as_bytes()), None, "{broken}");
        }
    }
}
