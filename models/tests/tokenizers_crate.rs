//! Compares the tokenizer with Hugging Face's crate `tokenizers` on mixed text, for every pattern that this program has.
//!
//! `KIMI_TOKENIZER_MB` sets the size of the text; the ids of all of it must be equal, from `tokenizer.json` and from GGUF.

#[path = "support/kimi_vocabulary.rs"]
mod kimi_vocabulary;
#[path = "support/mixed_text.rs"]
mod mixed_text;

use mixed_text::mixed_text;
use models::gguf::{Array, Metadata, Value};
use models::tokenizer::Vocabulary;
use serde_json::{Value as Json, json};
use std::str::FromStr;
use std::time::Instant;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    TokenizerBuilder,
};

const CONFIG: &str = include_str!("data/tokenizer_config.json");
/// The published pattern of Ling, `tokenizer.ggml.pre` bailingmoe2.
const LING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SPECIALS: [&str; 4] = ["<|startoftext|>", "<|endoftext|>", "<|role_end|>", "<think>"];

fn texts() -> Vec<(String, String)> {
    let megabytes = std::env::var("KIMI_TOKENIZER_MB").map_or(1.0, |mb| mb.parse().expect("a number"));
    mixed_text((megabytes * 1e6) as usize, 7)
}

fn pre_tokenizer(pattern: &str) -> Json {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

/// `tokenizer.json` with Kimi's tokens and another pattern. Pieces that are tokens stay whole with `ignore_merges`.
fn kimi_json(pattern: &str, ignore_merges: bool) -> Json {
    let kimi = Vocabulary::from_tiktoken("tiktoken.model", &kimi_vocabulary::tiktoken_model(), CONFIG, None)
        .unwrap();
    let metadata = Metadata(kimi.to_metadata());
    let list = |key| match metadata.get(key) {
        Some(Value::Array(Array::String(list))) => list.clone(),
        _ => panic!("{key} is a list of strings"),
    };
    let (tokens, merges) = (list("tokenizer.ggml.tokens"), list("tokenizer.ggml.merges"));
    let ids = || tokens.iter().enumerate().map(|(id, token)| (token.clone(), Json::from(id)));
    let vocab: serde_json::Map<_, _> = ids().take(163_584).collect();
    let added: Vec<Json> = (ids().skip(163_584))
        .map(|(content, id)| {
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    json!({
        "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": pre_tokenizer(pattern),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": ignore_merges},
    })
}

/// Trains 6,000 tokens on a part of the texts.
fn trained_json(texts: &[(String, String)]) -> Json {
    let splitter: PreTokenizerWrapper = serde_json::from_value(pre_tokenizer(LING)).unwrap();
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(splitter))
    .build()
    .unwrap();
    let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(6000)
        .initial_alphabet(alphabet.into_iter().collect())
        .special_tokens(SPECIALS.iter().map(|name| AddedToken::from(*name, true)).collect())
        .show_progress(false)
        .build();
    let part = texts.iter().step_by(3).map(|(_, text)| text.as_str());
    tokenizer.train(&mut trainer, part).unwrap();
    serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap()
}

fn check(name: &str, json: &Json, pre: &str, texts: &[(String, String)]) {
    let json = json.to_string();
    let ours = Vocabulary::from_json("tokenizer.json", &json, "", None).unwrap();
    assert_eq!(ours.pre(), pre);
    let gguf = Vocabulary::from_metadata("file.gguf", &Metadata(ours.to_metadata())).unwrap().unwrap();
    let theirs = Tokenizer::from_str(&json).unwrap();
    let start = Instant::now();
    let found: Vec<_> = texts.iter().map(|(_, text)| ours.encode_with_specials(text)).collect();
    let our_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for ((kind, text), ids) in texts.iter().zip(&found) {
        let expected = theirs.encode_fast(text.as_str(), false).unwrap();
        if expected.get_ids() != ids {
            let at = expected.get_ids().iter().zip(ids).take_while(|(a, b)| a == b).count();
            let before = ours.decode(&ids[at.saturating_sub(3)..at]);
            let [a, b] = [expected.get_ids(), ids].map(|ids| {
                ids[at..]
                    .iter()
                    .take(6)
                    .map(|&id| String::from_utf8_lossy(ours.token_bytes(id)))
                    .collect::<Vec<_>>()
            });
            panic!("{name}, {kind}: after {before:?} expected {a:?}, found {b:?}");
        }
    }
    let their_seconds = start.elapsed().as_secs_f64();
    for ((_, text), ids) in texts.iter().zip(&found) {
        assert_eq!(gguf.encode_with_specials(text), *ids, "{name}: GGUF");
        assert_eq!(ours.decode(ids), *text, "{name}");
    }
    let megabytes = texts.iter().map(|(_, text)| text.len()).sum::<usize>() as f64 / 1e6;
    println!(
        "{name}: {megabytes:.1} MB, {} ids: ours {:.1} MB/s, tokenizers {:.1} MB/s",
        found.iter().map(Vec::len).sum::<usize>(),
        megabytes / our_seconds,
        megabytes / their_seconds
    );
}

#[test]
fn ids_of_a_trained_vocabulary_are_those_of_the_crate() {
    let mut texts = texts();
    let named: String = SPECIALS.map(|name| format!("{name}a {name}\n<{name}")).concat();
    texts.push(("special".to_owned(), named));
    check("trained, bailingmoe2", &trained_json(&texts), "bailingmoe2", &texts);
}

#[test]
fn ids_of_kimis_tokens_are_those_of_the_crate() {
    let texts = texts();
    check("kimi, bailingmoe2", &kimi_json(LING, false), "bailingmoe2", &texts);
    check("kimi, kimi-k2", &kimi_json(KIMI, true), "kimi-k2", &texts);
}

/// The published pattern of Kimi.
const KIMI: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
