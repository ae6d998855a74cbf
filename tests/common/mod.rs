//! Helpers of the black-box tests: the program, random checkpoints, conversion, comparison of values.
#![allow(dead_code, reason = "each test binary uses a part of it")]

mod numpy_random;
#[path = "../../kernels/tests/common/random.rs"]
pub mod random;
pub mod random_checkpoint;
#[path = "../../kernels/tests/common/skip.rs"]
pub mod skip;
#[cfg(unix)]
pub mod terminal;

use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs `kimi` with these arguments.
pub fn kimi(args: &[&str]) -> Output {
    kimi_command().args(args).output().expect("kimi starts")
}

/// `kimi` with its caches in the directory of the tests, and without the user's configuration file.
pub fn kimi_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kimi"));
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Runs `kimi` and expects it to succeed; returns its standard output.
pub fn kimi_ok(args: &[&str]) -> String {
    let out = kimi(args);
    assert!(out.status.success(), "kimi {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("standard output is UTF-8")
}

/// Writes a random checkpoint of a preset; `fields` are `FIELD=VALUE`.
pub fn checkpoint(dir: &Path, preset: &str, seed: u32, fields: &[&str]) -> PathBuf {
    let out = dir.join(format!("{preset}-{seed}"));
    random_checkpoint::write(&out, preset, seed, fields);
    out
}

/// A `tiktoken.model` whose tokens are the 256 bytes.
pub fn tiktoken_bytes() -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let base64 = |b: usize| format!("{}{}==", digits[b >> 2] as char, digits[(b & 3) << 4] as char);
    (0..256).map(|b| format!("{} {b}\n", base64(b))).collect()
}

/// Sizes of a small Ling model.
const SMALL_LING: [&str; 16] = [
    "hidden_size=192",
    "vocab_size=1536",
    "num_attention_heads=6",
    "head_dim=32",
    "q_lora_rank=48",
    "kv_lora_rank=64",
    "qk_nope_head_dim=32",
    "qk_rope_head_dim=16",
    "v_head_dim=32",
    "intermediate_size=320",
    "moe_intermediate_size=96",
    "moe_shared_expert_intermediate_size=96",
    "num_experts=16",
    "num_experts_per_tok=4",
    "n_group=4",
    "topk_group=2",
];

/// Writes a random Ling model of three KDA layers and one MLA layer, all of them small; returns the file.
pub fn ling(dir: &Path, kind: &str) -> PathBuf {
    ling_with(dir, kind, &[])
}

/// [`ling`] with fields of its configuration changed, each `FIELD=VALUE`.
pub fn ling_with(dir: &Path, kind: &str, fields: &[&str]) -> PathBuf {
    synth_ling(dir, kind, fields, &[])
}

fn synth_ling(dir: &Path, kind: &str, fields: &[&str], more: &[&str]) -> PathBuf {
    let out = dir.join(format!("ling.{kind}.gguf"));
    let mut args = vec!["synth", text(&out), "--preset", "ling-tiny", "--layers", "4", "--type", kind];
    args.extend(more);
    SMALL_LING.iter().chain(fields).for_each(|size| args.extend(["--set", size]));
    kimi_ok(&args);
    out
}

/// Tokens of Ling's chats, in the order of their ids after those of the 256 bytes.
const LING_SPECIALS: [&str; 8] = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<role>",
    "</role>",
    "<|role_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
];

/// Writes a random Ling model with a vocabulary of bytes and Ling's special tokens; returns the file.
pub fn ling_with_text(dir: &Path, kind: &str, fields: &[&str]) -> PathBuf {
    let tokens = dir.join("tokenizer");
    std::fs::create_dir_all(&tokens).unwrap();
    // GPT-2's letters: printable bytes stand for themselves, the others for letters from 256 on.
    let mut next = 256;
    let letter = |byte: u32| {
        let printable = (33..127).contains(&byte) || (161..173).contains(&byte) || byte > 173;
        let code = if printable { byte } else { next };
        next += u32::from(!printable);
        char::from_u32(code).unwrap().to_string()
    };
    let vocab: serde_json::Map<_, _> =
        (0..256).map(letter).zip((0..256).map(serde_json::Value::from)).collect();
    let added = LING_SPECIALS.iter().zip(256..).map(|(content, id)| {
        serde_json::json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false })
    });
    let pattern = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
    let json = serde_json::json!({
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    std::fs::write(tokens.join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(tokens.join("tokenizer_config.json"), r#"{"eos_token": "<|role_end|>"}"#).unwrap();
    let vocab = format!("vocab_size={}", 256 + LING_SPECIALS.len());
    synth_ling(dir, kind, &[fields, &[vocab.as_str()]].concat(), &["--tokenizer", text(&tokens)])
}

/// Converts a checkpoint; returns the file.
pub fn convert(checkpoint: &Path, kind: &str) -> PathBuf {
    let out = checkpoint.with_extension(format!("{kind}.gguf"));
    kimi_ok(&["convert", text(checkpoint), "-o", text(&out), "--type", kind]);
    out
}

/// A path as text, for arguments.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// The f32 (or f64, or integer) values of a tensor, as f64.
pub fn values(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let t = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let of = |n: usize, f: fn(&[u8]) -> f64| t.data().chunks_exact(n).map(f).collect();
    match t.dtype() {
        Dtype::F32 => of(4, |b| f32::from_le_bytes(b.try_into().unwrap()).into()),
        Dtype::F64 => of(8, |b| f64::from_le_bytes(b.try_into().unwrap())),
        Dtype::I32 => of(4, |b| i32::from_le_bytes(b.try_into().unwrap()).into()),
        Dtype::I64 => of(8, |b| i64::from_le_bytes(b.try_into().unwrap()) as f64),
        other => panic!("{name}: {other:?}"),
    }
}

/// Asserts that the largest difference is within `tolerance` of the largest expected value.
pub fn close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let max = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let apart = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs());
    let worst = apart.fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x) });
    assert!(worst <= tolerance * max, "{what}: {:.2e} of max {max:.3}, allowed {tolerance:.0e}", worst / max);
}

/// The f32 values of a NumPy file.
pub fn npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00"), "{}: no NumPy file", path.display());
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[start..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}
