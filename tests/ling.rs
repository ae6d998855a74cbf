//! Compares the program's logits for random Ling files with the float64 reference (`tests/reference/ling_ref.py`).
//!
//! `gen_ling.py` writes the files, `logits.py` the expected logits. Steps of any length give the same bits.

mod common;

use common::{close, kimi_ok, npy, skip, text};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs a script of `tests/reference`; returns its output.
fn run(python: &str, script: &str, args: &[&str]) -> String {
    let script = format!("{}/tests/reference/{script}", env!("CARGO_MANIFEST_DIR"));
    let out = Command::new(python).arg(&script).args(args).output().unwrap();
    assert!(out.status.success(), "{script} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn floats(path: &Path) -> Vec<f64> {
    let bytes = fs::read(path).unwrap();
    bytes.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)).collect()
}

/// Logits of a prompt of 48 tokens, in batches of 48, 5 and 1.
fn check(preset: &str, seed: &str, fields: &[&str]) {
    let Some(python) = skip::python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [file, expected, found] = ["m.gguf", "m.f64", "m.npy"].map(|name| dir.path().join(name));
    run(&python, "gen_ling.py", &[&[text(&file), preset, seed][..], fields].concat());
    let ids = run(&python, "logits.py", &[text(&file), "48", text(&expected)]).trim().replace(' ', ",");
    let mut all = Vec::new();
    for batch in ["48", "5", "1"] {
        let args = ["--cache-type", "f32", "--batch", batch, "--ids", &ids, "-o", text(&found)];
        kimi_ok(&[&["logits", "-m", text(&file)], &args[..]].concat());
        all.push(npy(&found));
    }
    close(&format!("{preset} {fields:?}"), &all[0], &floats(&expected), 2e-5);
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(all.iter().all(|logits| bits(logits) == bits(&all[0])), "{preset} {fields:?} in batches");
}

#[test]
fn low_rank_queries_and_groups() {
    check("tiny", "7", &[]);
}

#[test]
fn full_rank_queries_without_groups() {
    check("tiny", "8", &["q_lora_rank=0", "n_group=1", "topk_group=1"]);
}

#[test]
fn limits_and_a_tied_head() {
    check("tiny", "10", &["tied=1", "expert_limit=0.5", "shared_limit=0.25"]);
}

#[test]
fn two_dense_layers_and_shorter_periods() {
    check("tiny", "12", &["first_k_dense_replace=2", "layer_group_size=3"]);
}

#[test]
fn the_real_head_sizes_beside_a_block_for_further_tokens() {
    check("tiny_d128", "13", &["num_nextn_predict_layers=1"]);
}
