//! `kimi chat` with the published vocabulary: prompts match the published template token for token, turns prefill only
//! their new tokens, and the line editor works on a pipe.

mod common;

use common::{checkpoint, convert, text};
use kimi::generation::conversation::Conversation;
use kimi::runtime::engine::Engine;
use kimi::runtime::options::LoadOptions;
use models::visible::{is_control, visible};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use tempfile::TempDir;

#[path = "../models/tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;

/// A small random model with the published vocabulary.
static MODEL: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let fields = ["vocab_size=163840", "hidden_size=64", "num_hidden_layers=4", "num_experts=8"];
    let source = checkpoint(dir.path(), "tiny", 9, &fields);
    std::fs::write(source.join("tiktoken.model"), kimi_vocabulary::tiktoken_model()).unwrap();
    let config = Path::new("models/tests/data/tokenizer_config.json");
    std::fs::copy(config, source.join("tokenizer_config.json")).unwrap();
    let file = convert(&source, "q8_0");
    (dir, file)
});

fn ids(case: &Value) -> Vec<u32> {
    serde_json::from_value(case["ids"].clone()).unwrap()
}

#[test]
fn prompts_match_the_published_template() {
    let model = MODEL.1.clone();
    let args = LoadOptions { model: Some(model), threads: Some(2), ..LoadOptions::default() };
    let engine = Engine::open(&args).unwrap();
    let file = std::fs::read_to_string("models/tests/data/chat_rendered.json").unwrap();
    let rendered: Value = serde_json::from_str(&file).unwrap();
    for name in ["user", "system_user", "multi"] {
        let mut conversation = Conversation::default();
        let mut prompt = Vec::new();
        for message in rendered[name]["messages"].as_array().unwrap() {
            let content = message["content"].as_str().unwrap();
            match message["role"].as_str().unwrap() {
                // Replies keep their generated token ids.
                "assistant" => conversation.reply(content, &engine.tokenizer().unwrap().encode(content)),
                role => conversation.say(role, content),
            }
            if message["role"] == "user" {
                prompt = conversation.prompt(&engine).unwrap();
            }
        }
        assert_eq!(prompt, ids(&rendered[name]), "{name}");
    }
}

#[test]
fn user_text_is_never_a_special_token() {
    let args = ["generate", "-m", text(&MODEL.1), "-n", "4", "--temp", "0", "--ignore-eos", "--print-ids"];
    let run = |prompt: &str| common::kimi_ok(&[&args[..], &[prompt]].concat());
    assert_ne!(run("<|im_end|>"), run(""), "the text is in the prompt");
    let engine_ids = |prompt: &str| {
        let stderr = common::kimi(&[&args[..], &[prompt]].concat()).stderr;
        let line = String::from_utf8(stderr).unwrap();
        let new = line.split("prompt: ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        new.parse::<usize>().unwrap()
    };
    // `<|im_end|>` as text is several tokens; as a special token it would be one.
    assert!(engine_ids("<|im_end|>") > engine_ids("x") + 1);
}

/// Runs a piped chat that must succeed, in its own home directory; returns its standard output and error.
fn chat(home: &Path, args: &[&str], lines: &str) -> (String, String) {
    ended(home, args, lines, 0)
}

/// The same with an expected exit code.
fn ended(home: &Path, args: &[&str], lines: &str, code: i32) -> (String, String) {
    let mut chat = common::kimi_command()
        .args(["chat", "--plain", "-m", text(&MODEL.1), "-n", "8", "--temp", "0"])
        .args(args)
        .env("XDG_STATE_HOME", home)
        .env("XDG_DATA_HOME", home)
        .env("XDG_CACHE_HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    chat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let out = chat.wait_with_output().unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(code), "{stderr}");
    (String::from_utf8(out.stdout).expect("characters are whole"), stderr)
}

/// The prompts in the output of `/stats`: reused tokens, their source, new tokens.
fn prompts(stdout: &str) -> Vec<(usize, String, usize)> {
    let prompt = |line: &str| {
        let counts = line.strip_prefix("prompt: ")?.split(" in ").next()?;
        let (reused, new) = counts.split_once(" cached (").unwrap_or(("0", counts));
        let (place, new) = new.split_once("), ").unwrap_or(("", new));
        Some((reused.parse().ok()?, place.to_owned(), new.strip_suffix(" new")?.parse().ok()?))
    };
    stdout.lines().filter_map(prompt).collect()
}

#[test]
fn a_piped_chat_answers_each_line_and_reuses_its_prefix() {
    let home = tempfile::tempdir().unwrap();
    let lines = "你好，世界 🎉\nfn main() { println!(\"hi\"); }\n/stats\n/nonsense\n/regen\n/undo\n/clear\nagain\n/quit\nnever\n";
    let (stdout, stderr) = ended(home.path(), &[], lines, 1);
    assert!(prompts(&stdout)[0].0 > 10, "the first exchange was prefilled again: {stdout}");
    assert!(stderr.contains("/nonsense: unknown command"), "{stderr}");
    assert!(stderr.ends_with("1 of 9 lines failed\n"), "{stderr}");
}

/// The stored chats in a home directory.
fn chats(home: &Path) -> Vec<Value> {
    let files = std::fs::read_dir(home.join("kimi/chats")).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
}

#[test]
fn unanswered_lines_of_a_pipe_are_reported() {
    let home = tempfile::tempdir().unwrap();
    let lines = format!("hi\n{}\n/edit\n{0}\n", "word ".repeat(200));
    let (_, stderr) = ended(home.path(), &["--ctx", "64"], &lines, 1);
    assert_eq!(stderr.matches("not added to the chat: word word").count(), 2, "{stderr}");
    assert!(stderr.ends_with("2 of 4 lines failed\n"), "{stderr}");
    let [chat] = &chats(home.path())[..] else { panic!("one chat") };
    let turns = chat["turns"].as_array().unwrap();
    assert_eq!((turns.len(), &turns[0]["text"]), (2, &"hi".into()), "the edited exchange is kept");
}

#[test]
fn a_loaded_chat_accepts_a_new_system_message() {
    let home = tempfile::tempdir().unwrap();
    let system = || chats(home.path())[0]["system"].clone();
    chat(home.path(), &["--system", "first"], "hi\n");
    chat(home.path(), &["--load", "hi"], "more\n");
    assert_eq!(system(), "first");
    chat(home.path(), &["--load", "hi", "--system", "second"], "more\n");
    assert_eq!(system(), "second");
    chat(home.path(), &["--load", "hi", "--system", ""], "more\n");
    assert_eq!(system(), Value::Null);
}

#[test]
fn undone_and_restarted_chats_prefill_new_tokens_only() {
    let home = tempfile::tempdir().unwrap();
    let (stdout, _) = chat(home.path(), &[], "hello there\nfirst\n/stats\n/undo\nother\n/stats\n");
    let [first, other] = &prompts(&stdout)[..] else { panic!("two replies: {stdout}") };
    assert_eq!((first.0, &first.1[..]), (other.0, "session"));
    assert_eq!(other.1, "memory");
    let (stdout, _) = chat(home.path(), &["--load", "hello"], "third\n/stats\n/regen\n/stats\n");
    let [third, again] = &prompts(&stdout)[..] else { panic!("two replies: {stdout}") };
    // The last token of a reply was never an input. It is prefilled with the end of its turn and the message.
    assert_eq!((third.0, &third.1[..]), (other.0 + other.2 + 7, "disk"));
    assert_eq!((again.0, again.2), (third.0 + third.2, 0));
}

#[test]
fn names_contain_no_terminal_commands() {
    const HOSTILE: &str = "a\u{1b}]0;x\u{7}\u{9b}31m\u{202e}";
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join(format!("{HOSTILE}.gguf"));
    std::fs::copy(&MODEL.1, &model).unwrap();
    let file = home.path().join(format!("{HOSTILE}.txt"));
    std::fs::write(&file, "text").unwrap();
    let lines =
        format!("/load\n/load {HOSTILE}\n/file {}\n/model\n/nonsense{HOSTILE}\n/stats\n", text(&file));
    let chats = home.path().join("kimi/chats");
    std::fs::create_dir_all(&chats).unwrap();
    let stored = serde_json::json!({ "id": "x", "title": HOSTILE, "changed": 1, "turns": [
        { "role": "user", "text": HOSTILE }, { "role": "assistant", "text": HOSTILE },
    ]});
    std::fs::write(chats.join("x.json"), stored.to_string()).unwrap();
    let mut command = common::kimi_command();
    command.args(["chat", "--plain", "-m", text(&model)]);
    for name in ["XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"] {
        command.env(name, home.path());
    }
    let (_, output) = common::terminal::run(command, Some(&lines));
    assert!(!output.replace("\r\n", "\n").contains(|c| is_control(c) && c != '\n'), "{output:?}");
    // Messages break between words at the width of the terminal.
    let output = output.replace("\r\n", " ");
    let shown = visible(HOSTILE);
    for expected in [
        format!("{shown} (2 messages)"),
        format!("{shown}: 2 messages"),
        format!("{shown}.txt: 1 line, 4 bytes, attached to the next message"),
        format!("{shown} on "),
        format!("/nonsense{shown}: unknown command"),
    ] {
        assert!(output.contains(&expected), "{expected:?} in {output:?}");
    }
}

#[test]
fn a_chat_continues_where_nothing_can_be_written() {
    let (stdout, stderr) = chat(Path::new("/dev/null/home"), &["--no-cache"], "hi\nmore\n/stats\n");
    assert_eq!(prompts(&stdout).len(), 1, "{stdout}");
    let unsaved = "the chat could not be saved: /dev/null/home/kimi/chats";
    assert_eq!(stderr.matches(unsaved).count(), 1, "once: {stderr}");
    assert!(stderr.contains("; continuing unsaved\n"), "{stderr}");
    let history =
        "/dev/null/home/kimi/history: Not a directory (os error 20): the input history is not saved\n";
    assert!(stderr.ends_with(history), "{stderr}");
}

#[cfg(unix)]
#[test]
fn chats_and_history_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let mode = |path: &str| std::fs::metadata(home.path().join(path)).unwrap().permissions().mode() & 0o777;
    for _ in 0..2 {
        chat(home.path(), &[], "hi\n");
        assert_eq!((mode("kimi/history"), mode("kimi"), mode("kimi/chats")), (0o600, 0o700, 0o700));
        let files = std::fs::read_dir(home.path().join("kimi/chats")).unwrap();
        files.for_each(|file| {
            assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        });
        // Older versions wrote the file with these permissions.
        let wider = PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(home.path().join("kimi/history"), wider).unwrap();
    }
}
