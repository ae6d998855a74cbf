//! Compares the program's logits with the float64 reference (`tests/reference/kimi_ref.py`) on models of other shapes than
//! the goldens of the published code: convert, then logits.
//!
//! The cases are in `tests/data/shapes.json`; `tests/data/make_shapes.py` computes the expected logits.

mod common;

use common::{checkpoint, close, convert, kimi_ok, random_checkpoint, skip, text, values};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Preset, seed and fields of a case.
fn case(name: &str) -> (String, u32, Vec<String>) {
    let cases: Value = serde_json::from_str(&fs::read_to_string("tests/data/shapes.json").unwrap()).unwrap();
    let case = &cases[name];
    let fields = serde_json::from_value(case["fields"].clone()).unwrap();
    (case["preset"].as_str().unwrap().to_owned(), case["seed"].as_u64().unwrap() as u32, fields)
}

/// Converts the checkpoint of a case and compares the logits of a random prompt, in f32.
fn check(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (preset, seed, fields) = case(name);
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    let source = checkpoint(dir.path(), &preset, seed, &fields);
    let golden = fs::read("tests/data/golden/shapes.safetensors").unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let expected = values(&golden, &format!("{name}.logits"));
    let ids: Vec<String> = values(&golden, &format!("{name}.ids")).iter().map(f64::to_string).collect();
    let (file, npy) = (convert(&source, "f32"), dir.path().join("logits.npy"));
    for batch in ["512", "5"] {
        let args = ["--cache-type", "f32", "--batch", batch, "--ids", &ids.join(","), "-o", text(&npy)];
        kimi_ok(&[&["logits", "-m", text(&file)], &args[..]].concat());
        close(&format!("{name}, batches of {batch}"), &common::npy(&npy), &expected, 5e-5);
    }
}

#[test]
fn more_layers_and_experts() {
    check("more_layers_and_experts");
}

#[test]
fn other_heads_and_head_sizes() {
    check("other_heads_and_head_sizes");
}

#[test]
fn grouped_experts_and_two_shared() {
    check("grouped_experts_and_two_shared");
}

/// Runs Python from the repository's root.
fn run(python: &str, args: &[&str]) {
    let out = Command::new(python).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(out.status.success(), "python {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn checkpoints_are_those_of_gen_tiny() {
    let Some(python) = skip::python() else { return };
    let vocabulary = ["vocab_size=163840", "hidden_size=64", "num_hidden_layers=4", "num_experts=8"];
    let cases = ["more_layers_and_experts", "other_heads_and_head_sizes", "grouped_experts_and_two_shared"];
    let [a, b, c] = cases.map(case);
    let own = |preset: &str, seed, fields: &[&str]| {
        (preset.to_owned(), seed, fields.iter().map(|f| (*f).to_owned()).collect())
    };
    let golden = [own("tiny", 20260, &[]), own("tiny_d128", 20260, &[]), own("tiny", 9, &vocabulary)];
    for (preset, seed, fields) in golden.into_iter().chain([a, b, c]) {
        let dir = tempfile::tempdir().unwrap();
        let [ours, theirs] = ["ours", "theirs"].map(|name| dir.path().join(name));
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        random_checkpoint::write(&ours, &preset, seed, &fields);
        let script = ["tests/reference/gen_tiny.py", text(&theirs), &preset, &seed.to_string()];
        run(&python, &[&script, &fields[..]].concat());
        let read = |dir: &Path, name: &str| fs::read(dir.join(name)).unwrap();
        let config = |dir: &Path| serde_json::from_slice::<Value>(&read(dir, "config.json")).unwrap();
        assert_eq!(config(&ours), config(&theirs), "{preset} {seed} {fields:?}");
        let [ours, theirs] = [ours, theirs].map(|dir| read(&dir, "model.safetensors"));
        assert!(ours == theirs, "{preset} {seed} {fields:?}: other weights");
    }
}

#[test]
fn the_reference_computes_the_goldens() {
    let Some(python) = skip::python() else { return };
    run(&python, &["tests/data/make_shapes.py", "--check"]);
    run(&python, &["tests/data/check_goldens.py"]);
    run(&python, &["kernels/tests/data/make_kda_op.py", "--check"]);
}
