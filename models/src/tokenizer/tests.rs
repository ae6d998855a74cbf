//! Tests the tokenizer against published ids, and all readers and writers of a [`Vocabulary`].

#[path = "../../tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;

use super::*;
use crate::gguf::{Array, Metadata, Value};
use kimi_vocabulary::{base64, tiktoken_model};
use serde_json::Value as Json;
use std::sync::LazyLock;

pub(crate) const CONFIG: &str = include_str!("../../tests/data/tokenizer_config.json");

/// Kimi's vocabulary of 163,840 ids, parsed once per test process.
pub(crate) fn kimi() -> &'static Vocabulary {
    static KIMI: LazyLock<Vocabulary> = LazyLock::new(|| {
        Vocabulary::from_tiktoken("tiktoken.model", &tiktoken_model(), CONFIG, Some(163_840)).unwrap()
    });
    &KIMI
}

fn ids(json: &Json) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Checks that a vocabulary of Kimi's tokens yields the published ids.
fn check_goldens(vocabulary: &Vocabulary) {
    let goldens: Json = serde_json::from_str(include_str!("../../tests/data/goldens.json")).unwrap();
    let cases = |key: &str| goldens[key].as_array().unwrap().clone();
    assert_eq!(cases("ordinary").len() + cases("with_special").len(), 55);
    for case in cases("ordinary") {
        let text = case["text"].as_str().unwrap();
        assert_eq!(vocabulary.encode(text), ids(&case["ids"]), "{text:?}");
        assert_eq!(vocabulary.decode(&ids(&case["ids"])), text);
    }
    for case in cases("with_special") {
        let text = case["text"].as_str().unwrap();
        assert_eq!(vocabulary.encode_with_specials(text), ids(&case["ids"]), "{text:?}");
        assert!(vocabulary.encode(text).iter().all(|&id| !vocabulary.is_special(id)));
    }
    for (name, id) in goldens["special_tokens"].as_object().unwrap() {
        assert_eq!(vocabulary.specials().id(name).map(u64::from), id.as_u64(), "{name}");
    }
    assert_eq!(vocabulary.token_bytes(163_592), b"<|reserved_token_163592|>");
    assert_eq!(vocabulary.len(), 163_840);
    assert_eq!(vocabulary.eog_tokens(), [163_585, 163_586, 163_593, 163_839]);
}

#[test]
fn the_published_ids() {
    check_goldens(kimi());
    let special_ids =
        SpecialIds { bos: Some(163_584), eos: Some(163_585), pad: Some(163_839), unk: Some(163_838) };
    assert_eq!(kimi().special_ids(), special_ids);
}

#[test]
fn the_way_through_gguf_changes_nothing() {
    let metadata = Metadata(kimi().to_metadata());
    let Some(Value::Array(Array::String(merges))) = metadata.get("tokenizer.ggml.merges") else { panic!() };
    assert_eq!(merges.len(), 163_328);
    let back = Vocabulary::from_metadata("kimi.gguf", &metadata).unwrap().unwrap();
    check_goldens(&back);
    assert_eq!(back.special_ids(), kimi().special_ids());
    assert_eq!(Metadata(back.to_metadata()), metadata);
}

/// `tokenizer.json` with Kimi's tokens; its added tokens lack the first special ones.
fn kimi_json() -> Json {
    let metadata = Metadata(kimi().to_metadata());
    let Some(Value::Array(Array::String(tokens))) = metadata.get("tokenizer.ggml.tokens") else { panic!() };
    let Some(Value::Array(Array::String(merges))) = metadata.get("tokenizer.ggml.merges") else { panic!() };
    let vocab: serde_json::Map<_, _> =
        tokens[..163_584].iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added: Vec<Json> = (163_584..163_840)
        .map(|id| serde_json::json!({"id": id, "content": tokens[id], "special": true}))
        .collect();
    let split = serde_json::json!({"type": "Split", "behavior": "Isolated",
        "pattern": {"Regex": pretokenizer::Pattern::named("kimi-k2").unwrap().source()}});
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
    serde_json::json!({
        "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

#[test]
fn tokenizer_json_gives_the_same_vocabulary() {
    let mut json = kimi_json();
    let read = |json: &Json| Vocabulary::from_json("tokenizer.json", &json.to_string(), CONFIG, None);
    let whole = read(&json).unwrap();
    check_goldens(&whole);
    assert_eq!(whole.to_metadata(), kimi().to_metadata());
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+".into();
    let message = read(&json).unwrap_err().to_string();
    assert_eq!(
        message,
        r"tokenizer.json: pre_tokenizer pattern: expected that of: kimi-k2, bailingmoe2, found \w+"
    );
}

#[test]
fn broken_bytes_are_read_as_python_reads_them() {
    let ids = kimi().encode_bytes(b"a\xff\xe4\xb8b\xf0\x9f\x98\x80");
    assert_eq!(kimi().decode(&ids), "a\u{fffd}\u{fffd}b😀");
    assert_eq!(kimi().decode(&[64, 163_840, u32::MAX]), "a");
    assert_eq!(kimi().token_bytes(u32::MAX), b"");
}

#[test]
fn a_repeated_piece_has_the_same_ids_as_the_first() {
    let word = "Xyzzyqwv";
    let once = kimi().encode(word);
    assert!(once.len() > 1);
    assert_eq!(kimi().encode(&format!("{word}\n{word}")), [&once[..], &[198], &once].concat());
}

/// Encoding is linear in the length of any text: quadratic time would be minutes here.
#[test]
fn a_megabyte_of_one_thing_is_encoded() {
    let units = [" ", "\n", "a", "A", "=", "中", "\u{301}", "\n ", "Aʰ", "'s", "  x", "<|im_end|"];
    let mut texts: Vec<String> = units.iter().map(|unit| unit.repeat((1 << 20) / unit.len())).collect();
    texts.push(format!("\n{}x", " ".repeat(1 << 20)));
    for text in texts {
        let ids = kimi().encode_with_specials(&text);
        assert!(ids.len() <= text.len());
        assert_eq!(kimi().decode(&ids), text);
    }
}

mod refused {
    //! Errors of a file are one line with a place.
    use super::*;

    fn bytes_and(lines: &str) -> Vec<u8> {
        let byte = |b: u8| [base64(&[b]), format!(" {b}\n").into_bytes()].concat();
        [(0..=255).flat_map(byte).collect(), lines.as_bytes().to_vec()].concat()
    }

    fn check(model: &[u8], config: &str, size: Option<usize>, message: &str) {
        let error = Vocabulary::from_tiktoken("t", model, config, size).unwrap_err().to_string();
        assert_eq!(error, format!("t: {message}"));
    }

    #[test]
    fn tiktoken() {
        check(b"a? 0\n", "", None, "line 1: expected base64 and a rank, found a? 0");
        check(b"YQ==\n", "", None, "line 1: expected base64 and a rank, found YQ==");
        check(b"YQ== 99999999999\n", "", None, "line 1: expected base64 and a rank, found YQ== 99999999999");
        check(b"", "", None, "tokens: expected a token for every byte, found none for 0x00");
        check(b"YQ== 0\n", "", None, "tokens: expected a token for every byte, found none for 0x00");
        check(&bytes_and("YWI= 255\n"), "", None, "ranks: expected rank 256 next, found 255");
        check(&bytes_and("YWI= 300\n"), "", None, "ranks: expected rank 256 next, found 300");
        check(&bytes_and("YQ== 256\n"), "", None, "token 256: expected a new token, found token 97 again");
        check(&bytes_and(" 256\n"), "", None, "line 257: expected base64 and a rank, found 256");
        check(&bytes_and(""), "", Some(9), "ranks: expected at most 9, the vocabulary's size, found 256");
        check(&bytes_and(""), "", Some(1 << 40), "tokens: expected at most 4194304 ids, found 1099511627776");
        check(
            &bytes_and(""),
            "{",
            None,
            "tokenizer_config.json: expected JSON, found EOF while parsing an object at line 1 column 1",
        );
    }

    fn small() -> Metadata {
        let vocabulary = Vocabulary::from_tiktoken("t", &bytes_and("YWI= 256\n"), "", None).unwrap();
        Metadata(vocabulary.to_metadata())
    }

    fn check_metadata(key: &str, value: Value, message: &str) {
        let mut metadata = small();
        metadata.set(&format!("tokenizer.ggml.{key}"), value);
        let error = Vocabulary::from_metadata("m", &metadata).unwrap_err().to_string();
        assert_eq!(error, format!("m: {message}"));
    }

    #[test]
    fn metadata() {
        let text = |text: &str| Value::String(text.to_owned());
        let texts = |list: &[&str]| Value::Array(Array::String(list.iter().map(|&t| t.to_owned()).collect()));
        check_metadata("model", text("bert"), "tokenizer.ggml.model: expected gpt2 or none, found bert");
        check_metadata(
            "pre",
            text("new\u{7}"),
            "tokenizer.ggml.pre: expected one of: kimi-k2, bailingmoe2, found new\\u{7}",
        );
        check_metadata("pre", Value::U8(1), "tokenizer.ggml.pre: expected a string, found another type");
        check_metadata(
            "tokens",
            texts(&["a"]),
            "tokenizer.ggml.token_type: expected 1 of them, one per token, found 513",
        );
        check_metadata(
            "merges",
            texts(&["a b", "b"]),
            "tokenizer.ggml.merges 1: expected two tokens in GPT-2's byte-level alphabet, found b",
        );
        check_metadata("merges", texts(&["a c"]), "merge 0: expected known tokens, found ac");
        check_metadata(
            "token_type",
            Value::Bool(true),
            "tokenizer.ggml.token_type: expected an array of i32, found another type",
        );
        check_metadata("eos_token_id", Value::U32(513), "eos token id: expected an id below 513, found 513");
        check_metadata(
            "bos_token_id",
            Value::I32(-1),
            "tokenizer.ggml.bos_token_id: expected an id, found another type or size",
        );
    }

    #[test]
    fn no_tokenizer_is_no_error() {
        let mut metadata = small();
        metadata.set("tokenizer.ggml.model", Value::String("none".to_owned()));
        assert!(Vocabulary::from_metadata("m", &metadata).unwrap().is_none());
        assert!(Vocabulary::from_metadata("m", &Metadata::default()).unwrap().is_none());
    }

    #[test]
    fn json() {
        let check = |text: &str, message: &str| {
            let error = Vocabulary::from_json("j", text, "", None).unwrap_err().to_string();
            assert_eq!(error, format!("j: {message}"));
        };
        check("[]", "model.type: expected BPE, found nothing");
        check(r#"{"model":{"type":"WordPiece"}}"#, "model.type: expected BPE, found WordPiece");
        check(r#"{"model":{"type":"BPE"}}"#, "model.vocab: expected an object, found another type");
        check(
            r#"{"model":{"type":"BPE","vocab":{"a":4000000000}}}"#,
            "model.vocab: expected an id below 4194304 for a, found 4000000000",
        );
        check(
            r#"{"model":{"type":"BPE","vocab":{"a":1,"b":1}}}"#,
            "token 1: expected one token, found also b",
        );
        check(
            r#"{"model":{"type":"BPE"},"normalizer":{"type":"NFC"}}"#,
            r#"normalizer: expected none, found {"type":"NFC"}"#,
        );
    }

    #[test]
    fn the_fuzz_entry_accepts_anything() {
        for kind in 0..4 {
            for rest in
                ["", "YWI= 256\nYWJj 257\n", "1 ab\n1 ba\n3 <x>\nmerge a b\nxab<x>", "{}", "{\"model\":[]}"]
            {
                exercise(&[&[kind], rest.as_bytes()].concat());
            }
        }
    }
}
