//! `kimi ask` with a small random model and the published vocabulary: files as input, prefix caching, refusals. The answers
//! are noise, but complete.

mod common;

use common::{checkpoint, convert, kimi_command, text};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use tempfile::TempDir;

#[path = "../models/tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;

/// A small random model with the published vocabulary.
static MODEL: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let fields = [
        "vocab_size=163840",
        "hidden_size=64",
        "num_hidden_layers=4",
        "num_experts=8",
        "model_max_length=32768",
    ];
    let source = checkpoint(dir.path(), "tiny", 11, &fields);
    std::fs::write(source.join("tiktoken.model"), kimi_vocabulary::tiktoken_model()).unwrap();
    let config = Path::new("models/tests/data/tokenizer_config.json");
    std::fs::copy(config, source.join("tokenizer_config.json")).unwrap();
    let file = convert(&source, "q8_0");
    (dir, file)
});

/// A text file of `lines` lines.
fn document(lines: usize) -> String {
    (0..lines).fold(String::new(), |mut all, i| {
        writeln!(all, "Line {i}: clerk {} keeps the ledger of ward {}.", i * 37 % 101, i * 7 % 13).unwrap();
        all
    })
}

fn command(cache: &Path, args: &[&str]) -> Command {
    let mut command = kimi_command();
    command.args(["ask", "-m", text(&MODEL.1), "-n", "4", "--cache-dir", text(cache)]).args(args);
    command.stdin(Stdio::null());
    command
}

/// Runs `kimi ask --json`; returns one object per answer.
fn ask(cache: &Path, args: &[&str], input: &str) -> Vec<Value> {
    let out = with_input(command(cache, &[args, &["--json"]].concat()), input);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {stderr}");
    String::from_utf8(out.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn with_input(mut command: Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The program may have exited with an error and closed its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn number(answer: &Value, field: &str) -> u64 {
    answer[field].as_u64().unwrap_or_else(|| panic!("{field} in {answer}"))
}

#[test]
fn cached_files_are_listed_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let [file, other] = ["a.txt", "b.txt"].map(|name| dir.path().join(name));
    std::fs::write(&file, document(60)).unwrap();
    std::fs::write(&other, document(70)).unwrap();
    let catalog = |args: &[&str]| {
        let out = command(&cache, args).output().unwrap();
        (out.status.success(), format!("{}{}", text_of(&out.stdout), text_of(&out.stderr)))
    };
    let nothing = format!("no files are cached in {}\n", cache.display());
    assert_eq!(catalog(&["--list"]), (true, nothing.clone()));
    let first = &ask(&cache, &["-f", text(&file), "Who keeps ward 3?"], "")[0];
    ask(&cache, &["-f", text(&other), "Who keeps ward 3?"], "");
    let (listed, lines) = catalog(&["--list"]);
    assert!(listed && lines.lines().count() == 2, "{lines}");
    let line = lines.lines().find(|line| line.starts_with(text(&file))).unwrap_or_else(|| panic!("{lines}"));
    assert!(
        line.contains(" tokens cached, ") && line.contains("iB, read ") && !line.contains(" of "),
        "{line}"
    );
    assert!(catalog(&["--forget", text(&file)]).1.contains("iB freed"));
    assert!(!catalog(&["--list"]).1.contains("a.txt"));
    let again = &ask(&cache, &["-f", text(&file), "Who keeps ward 3?"], "")[0];
    assert!(again["reused_tokens"].as_u64().unwrap() < 100, "{again}");
    assert_eq!(again["answer"], first["answer"]);
    assert!(
        ask(&cache, &["-f", text(&other), "And ward 4?"], "")[0]["reused_tokens"].as_u64().unwrap() > 500
    );
    let (forgotten, message) = catalog(&["--forget", text(&dir.path().join("c.txt"))]);
    assert!(!forgotten && message.contains("c.txt: not in the prefix cache"), "{message}");
    assert!(catalog(&["--forget", text(dir.path())]).0);
    assert_eq!(catalog(&["--list"]).1, nothing);
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_file_is_prefilled_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ward.txt");
    std::fs::write(&file, document(100)).unwrap();
    let cache = dir.path().join("cache");
    let first = &ask(&cache, &["-f", text(&file), "Who keeps ward 3?"], "")[0];
    assert_eq!(number(first, "reused_tokens"), 0);
    let all = number(first, "read_tokens");
    assert!(all > 1500, "{all} tokens of a hundred lines");
    // Another process and question: no token of the file is prefilled, and only the new part of its turn.
    let second = &ask(&cache, &["-f", text(&file), "Which clerk is named in line 7?"], "")[0];
    assert_eq!(second["reused_from"], "disk");
    let (reused, new) = (number(second, "reused_tokens"), number(second, "read_tokens"));
    assert!(reused + 30 > all && new < 30, "{reused} of {all} reused, {new} read");
    // The same question restores the state after the file.
    let third = &ask(&cache, &["-f", text(&file), "Who keeps ward 3?"], "")[0];
    assert_eq!((number(third, "reused_tokens"), third["answer"].clone()), (reused, first["answer"].clone()));
    // Several questions in one process.
    let many = ask(&cache, &["-f", text(&file)], "Who keeps ward 3?\nAnd ward 4?\n\nAnd 5?\n");
    assert_eq!(many.len(), 3);
    assert_eq!(many[0]["answer"], first["answer"]);
    for answer in &many[1..] {
        assert_eq!(answer["reused_from"], "live");
        assert!(number(answer, "read_tokens") < 30, "{answer}");
    }
}

/// Many small files are prefilled in full batches, with few checkpoints.
#[test]
fn a_directory_of_many_files() {
    let dir = tempfile::tempdir().unwrap();
    let (docs, cache) = (dir.path().join("docs"), dir.path().join("cache"));
    std::fs::create_dir(&docs).unwrap();
    (0..150).for_each(|i| std::fs::write(docs.join(format!("{i:03}.txt")), document(1 + i % 3)).unwrap());
    let first = &ask(&cache, &["-f", text(&docs), "Who keeps ward 3?"], "")[0];
    let all = number(first, "read_tokens");
    let states = || {
        let names = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.as_encoded_bytes().ends_with(b".state")).count() as u64
    };
    assert!(all > 5000 && states() <= all / 1024 + 4, "{} states of {all} tokens", states());
    let second = &ask(&cache, &["-f", text(&docs), "And ward 4?"], "")[0];
    assert!(number(second, "read_tokens") < 30, "{second}");
    // After a change in a file, prefill resumes at the last checkpoint before it.
    std::fs::write(docs.join("120.txt"), "Another text.").unwrap();
    let third = &ask(&cache, &["-f", text(&docs), "Who keeps ward 3?"], "")[0];
    let reused = number(third, "reused_tokens");
    assert!(reused + 1024 + 100 > all * 115 / 150 && reused < all, "{reused} of {all} reused");
}

#[test]
fn files_directories_and_pipes() {
    let dir = tempfile::tempdir().unwrap();
    let (docs, cache) = (dir.path().join("docs"), dir.path().join("cache"));
    std::fs::create_dir(&docs).unwrap();
    std::fs::write(docs.join("a.txt"), document(40)).unwrap();
    std::fs::write(docs.join("b.md"), "# B\n").unwrap();
    std::fs::write(docs.join("c.bin"), b"\x7fELF\0\0").unwrap();
    let piped = &ask(&cache, &["What?"], &document(5))[0];
    assert_eq!(piped["files"], serde_json::json!(["standard input"]));
    let only = &ask(&cache, &["-f", text(&docs), "--include", "*.txt", "What?"], "")[0];
    assert_eq!(only["files"], serde_json::json!([text(&docs.join("a.txt"))]));
    let both = &ask(&cache, &["-f", text(&docs), "What?"], "")[0];
    assert_eq!(both["files"].as_array().unwrap().len(), 2);
    // Another file is appended: the first is not prefilled again.
    let c = dir.path().join("c.txt");
    std::fs::write(&c, document(3)).unwrap();
    let more = &ask(&cache, &["-f", text(&docs), "-f", text(&c), "What?"], "")[0];
    let (reused, before) = (number(more, "reused_tokens"), number(both, "prompt_tokens"));
    assert!(reused + 60 > before, "{reused} of {before} reused: {more}");
}

fn rejected(cache: &Path, args: &[&str], end: &str) {
    let out = command(cache, args).output().unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(stderr.trim_end().ends_with(end) && out.stdout.is_empty(), "{args:?}: {stderr}");
}

#[test]
fn unreadable_input_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        text(&path).to_owned()
    };
    let pdf = path("a.pdf", b"%PDF-1.7\n");
    rejected(dir.path(), &["-f", &pdf, "?"], "expected a valid PDF, found a damaged one");
    rejected(dir.path(), &["-f", "/nowhere", "?"], "/nowhere: No such file or directory (os error 2)");
    let long = path("long.txt", document(2500).as_bytes());
    rejected(dir.path(), &["-f", &long, "?"], "raise --ctx or shorten the prompt");
}

#[test]
fn endless_input_is_rejected_and_pipes_in_directories_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    rejected(
        &cache,
        &["-f", "/dev/zero", "?"],
        "/dev/zero: byte 0: expected text, found 0x00 (a binary file)",
    );
    let mut endless = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    let out = command(&cache, &["-f", "-", "?"]).stdin(endless.stdout.take().unwrap()).output().unwrap();
    endless.wait().unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    let expected = "kimi: standard input: expected at most 134217728 bytes, found more\n";
    assert_eq!((out.status.code(), &stderr[..]), (Some(1), expected));
    let docs = dir.path().join("docs");
    std::fs::create_dir(&docs).unwrap();
    std::fs::write(docs.join("a.txt"), document(3)).unwrap();
    let pipe = docs.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let out = command(&cache, &["-f", text(&docs), "?", "--json"]).output().unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    let expected = format!("{}: not a regular file: left out\n", text(&pipe));
    assert!(out.status.success() && stderr.starts_with(&expected), "{stderr}");
    assert!(stderr.contains(&format!("{}: 1 file: a.txt\n", text(&docs))), "{stderr}");
    // A named pipe on the command line is read to its end, as for a process substitution.
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, document(3)).unwrap()
    });
    let named = &ask(&cache, &["-f", text(&pipe), "?"], "")[0];
    writer.join().unwrap();
    assert_eq!(named["files"], serde_json::json!([text(&pipe)]));
}

/// Sends Ctrl-C once the prefill reports progress. Returns the number of prefilled tokens and the end of the error.
fn stop_prefill(mut command: Command) -> (u64, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let before: Vec<_> = stderr.by_ref().take_while(|line| !line.starts_with("prefill ")).collect();
    assert!(before.len() == 2, "tokens, memory, then the progress: {before:?}");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let last = stderr.last().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{last}");
    let read: u64 = last.split(' ').nth(3).unwrap().parse().unwrap_or_else(|_| panic!("{last}"));
    assert!(last.starts_with("kimi: stopped after "), "{last}");
    (read, last.split_once("; ").unwrap().1.to_owned())
}

/// Ctrl-C during prefill exits with code 130, and the next run resumes from the tokens prefilled so far.
#[test]
fn a_stopped_prefill_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("long.txt");
    std::fs::write(&file, document(500)).unwrap();
    let cache = dir.path().join("cache");
    let args = ["-f", text(&file), "Who keeps ward 3?", "--batch", "256", "--ctx", "32768"];
    let (read, note) = stop_prefill(command(&cache, &args));
    assert_eq!(note, "the prefilled tokens are kept; ask again to resume");
    let next = &ask(&cache, &args, "")[0];
    assert_eq!((number(next, "reused_tokens"), &next["reused_from"]), (read, &Value::from("disk")));
    let mut command = kimi_command();
    command.args(["ask", "-m", text(&MODEL.1), "--no-cache"]).args(args).stdin(Stdio::null());
    assert_eq!(stop_prefill(command).1, "none of them are kept");
}

/// Ctrl-C in the middle of an answer prints the answer so far and exits with code 130.
#[test]
fn a_stopped_answer_exits_with_code_130() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ward.txt");
    std::fs::write(&file, document(5)).unwrap();
    let mut command = kimi_command();
    command.args(["ask", "-m", text(&MODEL.1), "-n", "20000", "--no-cache", "-f", text(&file), "Who?"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut out, mut answer) = (child.stdout.take().unwrap(), vec![0]);
    out.read_exact(&mut answer).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    out.read_to_end(&mut answer).unwrap();
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (_, after) = answer.rsplit_once(" [stopped]\n").expect("the end of the answer");
    assert!(after.is_empty() || after.starts_with("not in the files: "), "{after}");
    assert!(stderr.trim_end().ends_with(", stopped"), "{stderr}");
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
}

/// With `--url` the same questions go to a server; the files are sent once, at the head of the conversation.
#[test]
fn a_remote_model_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = kimi_command();
    server.args(["serve", "-m", text(&MODEL.1), "--alias", "small", "--port", "0", "--ctx", "16384"]);
    server.args(["--api-key", "open", "--cache-dir", text(&dir.path().join("cache"))]);
    let mut server = server.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
    let address = stderr.find_map(|line| Some(line.split_once("address=")?.1.split(' ').next()?.to_owned()));
    let url = format!("http://{}", address.expect("the server's address"));
    assert!(stderr.any(|line| line.contains("ready")), "the server's model");
    let file = dir.path().join("long.txt");
    std::fs::write(&file, document(300)).unwrap();
    let remote = |model: &str, key: &str| {
        let mut command = kimi_command();
        command.args(["ask", "--url", &url, "-m", model, "-n", "4", "-f", text(&file), "--json", "-i"]);
        command.arg("Who keeps ward 3?").env("OPENAI_API_KEY", key);
        command
    };
    let out = with_input(remote("small", "open"), "And ward 4?\n");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{stderr}");
    let answers: Vec<Value> = String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [first, second] = &answers[..] else { panic!("two answers: {answers:?}") };
    assert!(number(first, "prompt_tokens") > 3000 && number(first, "answer_tokens") > 0, "{first}");
    assert!(number(second, "reused_tokens") >= number(first, "prompt_tokens") - 8, "{second}");
    for (model, key, expected) in [("other", "open", "expected the model"), ("small", "shut", "HTTP 401")] {
        let out = with_input(remote(model, key), "");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && stderr.contains(expected), "{model}, {key}: {stderr}");
    }
    server.kill().unwrap();
    server.wait().unwrap();
}
