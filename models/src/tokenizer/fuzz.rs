//! Entry point for fuzzers: reads arbitrary bytes as each kind of tokenizer file.
//!
//! The program does not use it. Valid vocabularies contain all 256 bytes, which a fuzzer rarely produces, so three of the
//! four readers get them prepended.

use super::pretokenizer::PATTERNS;
use super::{Utf8Stream, Vocabulary, byte_level};
use crate::gguf::{Array, Metadata, Value};

/// Reads `input` as a tokenizer file; its first byte selects the kind. An accepted vocabulary must encode, decode and
/// survive a round trip through GGUF metadata.
///
/// # Panics
/// On a violation, which is a bug.
pub fn exercise(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let vocabulary = match kind % 4 {
        0 => Vocabulary::from_tiktoken("fuzz", rest, "", None).ok(),
        1 => Vocabulary::from_json("fuzz", &text, "", None).ok(),
        2 => Vocabulary::from_tiktoken("fuzz", &[&byte_ranks(), rest].concat(), &text, None).ok(),
        _ => {
            let pre = PATTERNS[kind as usize / 4 % PATTERNS.len()].format.pre;
            Vocabulary::from_metadata("fuzz", &byte_metadata(&text, pre)).ok().flatten()
        }
    };
    let Some(vocabulary) = vocabulary else { return };
    let ids = vocabulary.encode_bytes(rest);
    assert_eq!(vocabulary.decode(&ids), text);
    assert!(ids.iter().all(|&id| !vocabulary.is_special(id)));
    let mut stream = Utf8Stream::new();
    let trusted = vocabulary.encode_with_specials(&text);
    let pieces: String = trusted.iter().map(|&id| stream.push(vocabulary.token_bytes(id))).collect();
    assert_eq!(pieces + &stream.finish(), text);
    let back = Vocabulary::from_metadata("fuzz", &Metadata(vocabulary.to_metadata()));
    let back = back.expect("what we write we read").expect("it has a tokenizer");
    assert_eq!(back.encode(&text), ids);
}

/// The lines of a `tiktoken.model` with the 256 bytes as ranks.
fn byte_ranks() -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let line = |byte: usize| {
        let [high, low] = [LETTERS[byte >> 2], LETTERS[byte << 4 & 63]].map(char::from);
        format!("{high}{low}== {byte}\n")
    };
    (0..256).map(line).collect::<String>().into_bytes()
}

/// Metadata with the 256 bytes and one entry per line of the text: `type token`, or `merge left right`.
fn byte_metadata(text: &str, pre: &str) -> Metadata {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_level::encode(&[byte])).collect();
    let mut types = vec![1; 256];
    let mut merges = Vec::new();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("merge", merge)) => merges.push(merge.to_owned()),
            Some((kind, token)) => {
                types.push(kind.parse().unwrap_or(1));
                tokens.push(token.to_owned());
            }
            None => {}
        }
    }
    let array = |list| Value::Array(Array::String(list));
    Metadata(vec![
        ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre".to_owned(), Value::String(pre.to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), array(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(Array::I32(types))),
        ("tokenizer.ggml.merges".to_owned(), array(merges)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(text.len() as u32)),
    ])
}
