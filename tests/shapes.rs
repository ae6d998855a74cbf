//! Checkpoints of other seeds and sizes against the float64 reference (`tests/reference/kimi_ref.py`), through the
//! commands: convert, then logits.

mod common;

use common::{checkpoint, close, convert, kimi_ok, python, text};

/// Converts a fresh checkpoint and compares the logits of a random prompt, in f32.
fn check(preset: &str, seed: u32, fields: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint(dir.path(), preset, seed, fields);
    let (truth, npy) = (dir.path().join("truth.f64"), dir.path().join("logits.npy"));
    let ids = python(&["tests/reference/logits.py", text(&source), "24", text(&truth)]);
    let file = convert(&source, "f32");
    for batch in ["512", "5"] {
        let args = ["--cache-type", "f32", "--batch", batch, "--ids", ids.trim(), "-o", text(&npy)];
        kimi_ok(&[&["logits", "-m", text(&file)], &args[..]].concat());
        let found = common::npy(&npy);
        let truth: Vec<f64> = std::fs::read(&truth)
            .unwrap()
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
            .collect();
        close(&format!("{preset} {seed} {fields:?}, batches of {batch}"), &found, &truth, 5e-5);
    }
}

#[test]
fn more_layers_and_experts() {
    check(
        "tiny",
        3,
        &["num_hidden_layers=11", "num_experts=40", "num_experts_per_token=6", "vocab_size=800"],
    );
}

#[test]
fn other_heads_and_head_sizes() {
    let heads =
        ["kda_heads=3", "kda_dim=24", "num_attention_heads=5", "qk_nope_head_dim=24", "v_head_dim=16"];
    check("tiny", 11, &[&heads[..], &["kv_lora_rank=48", "qk_rope_head_dim=8", "hidden_size=160"]].concat());
}

#[test]
fn grouped_experts_and_two_shared() {
    let groups = ["num_experts=24", "num_expert_group=4", "topk_group=2", "num_shared_experts=2"];
    check("tiny_d128", 5, &[&groups[..], &["num_experts_per_token=5", "num_hidden_layers=5"]].concat());
}
