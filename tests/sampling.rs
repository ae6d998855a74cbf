//! Sampling defaults travel from `generation_config.json` through the model file to every command that samples.

mod common;

use common::{checkpoint, kimi, kimi_command, kimi_ok, text};
use models::gguf::read::Gguf;
use models::gguf::write::{Layout, Writer};
use models::gguf::{Metadata, Value};
use std::path::{Path, PathBuf};

/// Converts a random checkpoint with this `generation_config.json`.
fn convert(dir: &Path, config: &str) -> PathBuf {
    let source = checkpoint(dir, "tiny", 3, &["num_hidden_layers=4", "vocab_size=64"]);
    std::fs::write(source.join("generation_config.json"), config).unwrap();
    common::convert(&source, "q8_0")
}

/// A copy of a file with another metadata value.
fn with_value(file: &Path, key: &str, value: Value) -> PathBuf {
    let good = Gguf::open(file).unwrap();
    let mut metadata: Metadata = good.metadata.clone();
    metadata.set(key, value);
    let tensors = good.tensors.iter().map(|t| (t.name.clone(), t.format, t.shape.clone())).collect();
    let path = file.with_extension("changed.gguf");
    let mut writer = Writer::create(&path, Layout::new(metadata, tensors).unwrap()).unwrap();
    good.tensors.iter().for_each(|tensor| writer.write(&good.bytes(tensor)).unwrap());
    writer.finish().unwrap();
    path
}

/// The arguments of a generation without sampling options.
fn generate(model: &Path) -> Vec<String> {
    let args =
        ["generate", "-q", "--ids", "5,9,33", "-n", "24", "--print-ids", "--ignore-eos", "--no-cache", "-m"];
    args.iter().map(|arg| (*arg).to_owned()).chain([text(model).to_owned()]).collect()
}

/// The tokens of a generation with more options.
fn tokens(model: &Path, more: &[&str]) -> String {
    let args = generate(model);
    kimi_ok(&args.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>())
}

#[test]
fn a_converted_file_has_the_defaults_of_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        r#"{"temperature": 1.5, "top_p": 0.5, "top_k": 7, "repetition_penalty": 1.1, "eos_token_id": 3}"#;
    let model = convert(dir.path(), config);
    let line = "temp 1.5, top-p 0.5, repeat-penalty 1.1, top-k 7";
    assert!(kimi_ok(&["inspect", text(&model)]).contains(&format!("sampling defaults: {line}\n")));
    // Requantization keeps them.
    let again = dir.path().join("again.gguf");
    kimi_ok(&["convert", text(&model), "-o", text(&again), "--type", "q8_0"]);
    let report: serde_json::Value =
        serde_json::from_str(&kimi_ok(&["inspect", "--json", text(&again)])).unwrap();
    assert_eq!(report["sampling"]["defaults"], line);
    assert_eq!(report["metadata"]["general.sampling.temp"], 1.5);
}

#[test]
fn unset_options_come_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let greedy = convert(dir.path(), r#"{"do_sample": false, "temperature": 0.6}"#);
    let expected = tokens(&greedy, &["--temp", "0"]);
    for seed in ["1", "2"] {
        assert_eq!(tokens(&greedy, &["--seed", seed]), expected);
    }
    // The command line and the environment override the file.
    let hot = tokens(&greedy, &["--seed", "1", "--temp", "3"]);
    assert_ne!(hot, expected);
    let out = kimi_command().args(generate(&greedy)).envs([("KIMI_TEMP", "3"), ("KIMI_SEED", "1")]).output();
    assert_eq!(String::from_utf8(out.unwrap().stdout).unwrap(), hot);
    // A parameter of the file holds beside another of the command line.
    let narrow = with_value(&greedy, "general.sampling.top_k", Value::I32(1));
    assert_eq!(tokens(&narrow, &["--temp", "3"]), expected);
    assert_ne!(tokens(&narrow, &["--seed", "1", "--temp", "3", "--top-k", "0"]), expected);
}

#[test]
fn nonsense_in_a_file_is_one_warning() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_value(&convert(dir.path(), "{}"), "general.sampling.top_p", Value::F32(95.0));
    let out = kimi_command().args(generate(&model)).output().unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    let fault = "general.sampling.top_p: expected a number from 0 to 1, found 95";
    assert_eq!(stderr, format!("warning: {}: {fault}; it is ignored\n", model.display()));
    assert!(out.status.success() && out.stdout.split(|b| *b == b'\n').count() == 25);
    assert!(kimi_ok(&["inspect", text(&model)]).contains(&format!("\n  ignored: {fault}\n")));
}

#[test]
fn nonsense_in_a_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint(dir.path(), "tiny", 3, &["num_hidden_layers=4", "vocab_size=64"]);
    std::fs::write(source.join("generation_config.json"), r#"{"top_p": "most"}"#).unwrap();
    let output = dir.path().join("out.gguf");
    let out = kimi(&["convert", text(&source), "-o", text(&output)]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    let line = "generation_config.json: top_p: expected a number from 0 to 1, found \"most\"\n";
    assert!(stderr.ends_with(line) && out.status.code() == Some(1), "{stderr}");
    assert!(!output.exists());
}
