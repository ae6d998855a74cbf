//! Reads Hugging Face's `tokenizer.json`, if it is a byte-level BPE with a known pre-tokenizer pattern.
//!
//! It reads only the parts that affect ids, and refuses unknown parts that would affect them.

use super::builder::{Kind, MAX_IDS, VocabularyBuilder, bad};
use super::pretokenizer::Pattern;
use super::{Merges, SpecialIds, Vocabulary, byte_level};
use crate::gguf::Error;
use serde_json::Value;

/// The pattern if the file has none.
const DEFAULT: &str = "kimi-k2";

impl Vocabulary {
    /// Reads the text of `tokenizer.json`; `path` names it in messages.
    ///
    /// `config` is the text of `tokenizer_config.json`, which names the special ids (`bos_token` ...), or empty. `size` is
    /// the model's `vocab_size`, if known: ids below it without a token are unused.
    pub fn from_json(path: &str, text: &str, config: &str, size: Option<usize>) -> Result<Self, Error> {
        let parse = |text: &str| serde_json::from_str(text).map_err(|e| bad(path, "tokenizer", "JSON", e));
        let file: Value = parse(text)?;
        let config: Value = if config.is_empty() { Value::Null } else { parse(config)? };
        match file["model"]["type"].as_str() {
            Some("BPE") => {}
            other => return Err(bad(path, "model.type", "BPE", other.unwrap_or("nothing"))),
        }
        for key in ["normalizer", "model.byte_fallback"] {
            let found = key.split('.').fold(&file, |value, key| &value[key]);
            if !matches!(found, Value::Null | Value::Bool(false)) {
                return Err(bad(path, key, "none", found));
            }
        }
        let pattern = pattern(path, &file["pre_tokenizer"])?;
        let (builder, added) = read_tokens(path, &file, size)?;
        let merges = read_merges(path, &builder, &file["model"]["merges"])?;
        let ignore_merges = file["model"]["ignore_merges"] == true;
        if ignore_merges != pattern.format.whole_pieces
            && let Some(&id) = builder.unreachable(&merges).first()
        {
            let expected =
                format_args!("merges that yield every token, since ignore_merges is {ignore_merges}");
            return Err(bad(path, "model.merges", expected, format_args!("none for token {id}")));
        }
        let role = |key: &str| {
            let token = &config[key];
            let name = token.as_str().or_else(|| token["content"].as_str())?;
            added.iter().find(|(_, _, content)| *content == name).map(|(id, ..)| *id as u32)
        };
        let special_ids = SpecialIds {
            bos: role("bos_token"),
            eos: role("eos_token"),
            pad: role("pad_token"),
            unk: role("unk_token"),
        };
        builder.finish(merges, pattern, special_ids)
    }
}

/// Finds the only `Split` pattern among the pre-tokenizers; `ByteLevel` must not split by its own pattern.
fn pattern(path: &str, pre: &Value) -> Result<&'static Pattern, Error> {
    let steps = match pre["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(pre),
    };
    let mut found = None;
    for step in steps.iter().filter(|step| !step.is_null()) {
        let source = step["pattern"]["Regex"].as_str();
        match (step["type"].as_str(), source) {
            (Some("Split"), Some(source)) if found.is_none() && step["behavior"] == "Isolated" => {
                let unknown = || {
                    bad(path, "pre_tokenizer pattern", format_args!("that of: {}", Pattern::known()), source)
                };
                found = Some(Pattern::of_source(source).ok_or_else(unknown)?);
            }
            (Some("ByteLevel"), _) if step["use_regex"] == false && step["add_prefix_space"] != true => {}
            _ => {
                return Err(bad(
                    path,
                    "pre_tokenizer",
                    "one isolating Split, ByteLevel without a regex",
                    step,
                ));
            }
        }
    }
    let default = || Pattern::named(DEFAULT).ok_or_else(|| bad(path, "pre_tokenizer", "a Split", "none"));
    found.map_or_else(default, Ok)
}

type Added<'j> = Vec<(usize, Kind, &'j str)>;

fn read_tokens<'p, 'j>(
    path: &'p str,
    file: &'j Value,
    size: Option<usize>,
) -> Result<(VocabularyBuilder<'p>, Added<'j>), Error> {
    let Some(vocab) = file["model"]["vocab"].as_object() else {
        return Err(bad(path, "model.vocab", "an object", "another type"));
    };
    let mut added: Added = Vec::new();
    for token in file["added_tokens"].as_array().map_or(&[][..], Vec::as_slice) {
        let found = || bad(path, "added_tokens", "id and content", token);
        let kind = if token["special"] == true { Kind::Control } else { Kind::UserDefined };
        let content = token["content"].as_str().ok_or_else(found)?;
        added.push((id(&token["id"]).ok_or_else(found)?, kind, content));
    }
    let mut tokens = added.clone();
    for (token, value) in vocab {
        let wrong = || bad(path, "model.vocab", format_args!("an id below {MAX_IDS} for {token}"), value);
        tokens.push((id(value).ok_or_else(wrong)?, Kind::Normal, token));
    }
    // An added token may also be in the vocabulary: the stable sort keeps the added one first.
    tokens.sort_by_key(|(id, ..)| *id);
    tokens.dedup_by(|later, first| later.0 == first.0 && later.2 == first.2);
    let count = tokens.last().map_or(0, |(id, ..)| id + 1);
    let mut builder = VocabularyBuilder::new(path, count.max(size.unwrap_or(0)))?;
    let mut bytes = Vec::new();
    for (id, kind, token) in tokens {
        while builder.tokens.len() < id {
            builder.push_unused()?;
        }
        if builder.tokens.len() > id {
            return Err(bad(path, format_args!("token {id}"), "one token", format_args!("also {token}")));
        }
        if kind == Kind::Normal {
            let wrong = |_| bad(path, "model.vocab", "bytes in GPT-2's byte-level alphabet", token);
            byte_level::decode(token, &mut bytes).map_err(wrong)?;
            builder.push(kind, &bytes)?;
        } else {
            builder.push(kind, token.as_bytes())?;
        }
    }
    while builder.tokens.len() < size.unwrap_or(0) {
        builder.push_unused()?;
    }
    Ok((builder, added))
}

fn id(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < MAX_IDS)
}

/// Reads merges, written as `"a b"` or `["a", "b"]`.
fn read_merges(path: &str, builder: &VocabularyBuilder, list: &Value) -> Result<Merges, Error> {
    let list = list.as_array().ok_or_else(|| bad(path, "model.merges", "an array", "another type"))?;
    let mut merges = builder.new_merges(list.len())?;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for (index, merge) in list.iter().enumerate() {
        let found = || bad(path, format_args!("model.merges {index}"), "two tokens", merge);
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) if pair.len() == 2 => pair[0].as_str().zip(pair[1].as_str()),
            _ => None,
        };
        let (a, b) = pair.ok_or_else(found)?;
        byte_level::decode(a, &mut left).map_err(|_| found())?;
        byte_level::decode(b, &mut right).map_err(|_| found())?;
        builder.merge(&mut merges, index, &left, &right)?;
    }
    Ok(merges)
}
