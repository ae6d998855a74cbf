//! `convert`, `inspect` and `generate` on model files with unusable templates.

use crate::common::{kimi, kimi_command, kimi_ok, text};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The demonstration model with this template, and the warnings of `convert`.
fn model(dir: &Path, template: &str) -> (String, String) {
    let source = dir.join("checkpoint");
    fs::create_dir(&source).unwrap();
    for file in fs::read_dir("models/demo/checkpoint").unwrap().map(|entry| entry.unwrap()) {
        fs::copy(file.path(), source.join(file.file_name())).unwrap();
    }
    fs::write(source.join("chat_template.jinja"), template).unwrap();
    let file = dir.join("model.gguf");
    let out = kimi(&["convert", text(&source), "-o", text(&file), "--type", "q8_0"]);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{stderr}");
    (text(&file).to_owned(), stderr)
}

/// Runs `kimi generate` and asserts its exit code and its standard error.
fn check_generate(model: &str, args: &[&str], code: i32, expected: &str) {
    let mut command = kimi_command();
    command.args(["generate", "-m", model, "--no-cache", "--quiet", "-n", "4", "--temp", "0"]).args(args);
    let out = command.output().unwrap();
    let found = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), &*found), (Some(code), expected), "{args:?}");
}

fn check_unusable(template: &str, fault: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (model, stderr) = model(dir.path(), template);
    let line = format!("{fault}; use --chat-template builtin");
    assert!(stderr.contains(&format!("warning: {model}: {line}\n")), "{stderr}");
    let inspected = kimi_ok(&["inspect", &model]);
    let expected = format!("chat template: {} bytes, not usable: {line}", template.len());
    assert!(inspected.lines().any(|line| line == expected), "{expected}\n---\n{inspected}");
    check_generate(&model, &["hello"], 1, &format!("kimi: {line}\n"));
    for args in [&["--ids", "1,2,3"][..], &["--raw", "hello"], &["--chat-template", "builtin", "hello"]] {
        check_generate(&model, args, 0, "");
    }
    let other = dir.path().join("other.jinja");
    fs::write(&other, "{{ messages[0].content }}").unwrap();
    check_generate(&model, &["--chat-template-file", text(&other), "hello"], 0, "");
    fs::write(&other, template).unwrap();
    let own = format!("kimi: --chat-template {}: {fault}\n", other.display());
    check_generate(&model, &["--chat-template", text(&other), "hello"], 1, &own);
}

#[test]
fn a_file_whose_template_does_not_parse_still_runs() {
    let fault = "chat_template: line 2: expected a Jinja template, found unexpected end of block";
    check_unusable("\n{% if %}", fault);
}

#[test]
fn a_file_whose_template_overflows_the_stack_still_runs() {
    let fault = "chat_template: rendering: expected a prompt within 3 s and 512 MiB, found a stack overflow";
    check_unusable("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", fault);
}

#[test]
fn a_usable_template_is_inspected_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let (model, stderr) = model(dir.path(), "{{ messages[0].content }}");
    assert!(!stderr.contains("warning"), "{stderr}");
    let inspected = kimi_ok(&["inspect", &model]);
    let expected = "chat template: 25 bytes, renders within 3 s and 512 MiB";
    assert!(inspected.lines().any(|line| line == expected), "{inspected}");
    let json: Value = serde_json::from_str(&kimi_ok(&["inspect", &model, "--json"])).unwrap();
    assert_eq!(json["chat_template"], json!({"bytes": 25, "limits": "3 s and 512 MiB", "fault": null}));
    let raises = dir.path().join("raises.jinja");
    fs::write(&raises, "{{ raise_exception('no ' ~ messages[0].content) }}").unwrap();
    let line = "kimi: chat_template: line 1: expected a conversation it accepts, found no hello\n";
    check_generate(&model, &["--chat-template", text(&raises), "hello"], 1, line);
    let missing = dir.path().join("missing");
    let line =
        format!("kimi: --chat-template {}: No such file or directory (os error 2)\n", missing.display());
    check_generate(&model, &["--chat-template", text(&missing), "hello"], 1, &line);
}
