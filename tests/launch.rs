//! `kimi launch` with shell scripts as clients, and docs/clients.md, which has the same by hand. tests/launch.py runs the
//! real clients.
#![cfg(unix)]

mod common;

use common::{kimi_command, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// `kimi serve` with the built-in model, on a free port.
struct Serve {
    child: Child,
    port: String,
}

impl Serve {
    fn start(args: &[&str]) -> Serve {
        let mut command = kimi_command();
        command.args(["serve", "--port", "0", "--ctx", "131072", "--alias", "kimi", "--no-cache"]).args(args);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let port =
            log.find_map(|line| Some(line.split_once("address=127.0.0.1:")?.1.split(' ').next()?.to_owned()));
        assert!(log.any(|line| line.starts_with("model:")), "the server's model");
        // The server may write more.
        std::thread::spawn(move || log.for_each(drop));
        Serve { child, port: port.expect("the server's port") }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A directory for `PATH` with a client that is a shell script.
struct Script(tempfile::TempDir);

impl Script {
    fn new(program: &str, text: &str) -> Script {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(program);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Script(dir)
    }

    fn launch(&self, args: &[&str]) -> Command {
        let mut command = kimi_command();
        command.arg("launch").args(args).current_dir(&self.0);
        command.env("PATH", format!("{}:/usr/bin:/bin", self.0.path().display()));
        command.env_remove("OPENAI_API_KEY");
        command
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    fn wait_for(&self, name: &str) -> String {
        while !self.read(name).ends_with('\n') {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.read(name).trim().to_owned()
    }
}

fn stderr(out: &Output) -> String {
    String::from_utf8(out.stderr.clone()).unwrap()
}

fn unused_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

#[test]
fn the_client_gets_variables_files_and_arguments() {
    let server = Serve::start(&[]);
    let script = Script::new(
        "qwen",
        "env > env; echo \"$@\" > args; cat \"$QWEN_CODE_SYSTEM_DEFAULTS_PATH\" > defaults; exit 7",
    );
    let mut launch = script.launch(&["qwen", "--port", &server.port, "--", "-p", "two words"]);
    let out = launch.env("QWEN_CODE_MAX_OUTPUT_TOKENS", "77").output().unwrap();
    let message = stderr(&out);
    assert_eq!(out.status.code(), Some(7), "{message}");
    assert_eq!(script.read("args"), "--auth-type openai -p two words\n");
    let env = script.read("env");
    for line in [
        &format!("OPENAI_BASE_URL={}/v1", server.url()),
        "OPENAI_MODEL=kimi-demo",
        "QWEN_CODE_MAX_OUTPUT_TOKENS=77",
    ] {
        assert!(env.lines().any(|found| found == line), "{line}: {env}");
    }
    let defaults: Value = serde_json::from_str(&script.read("defaults")).unwrap();
    assert_eq!(defaults["model"]["generationConfig"]["contextWindowSize"], 131_072);
    let path = env.lines().find_map(|line| line.strip_prefix("QWEN_CODE_SYSTEM_DEFAULTS_PATH=")).unwrap();
    assert!(!Path::new(path).exists() && !Path::new(path).parent().unwrap().exists(), "{path}");
    assert!(
        message.contains("already running") && message.contains("context of 131,072 tokens"),
        "{message}"
    );
    assert!(message.contains("OPENAI_MODEL") && message.contains("usage statistics"), "{message}");
}

#[test]
fn a_server_runs_as_long_as_the_client() {
    let script = Script::new(
        "claude",
        "echo \"$ANTHROPIC_BASE_URL $CLAUDE_CODE_MAX_CONTEXT_TOKENS $ANTHROPIC_API_KEY\" > url; while [ ! -e end ]; do sleep 0.1; done",
    );
    let mut launch = script.launch(&["claude", "--port", &unused_port(), "--ctx", "4096", "--no-cache"]);
    launch.env("ANTHROPIC_API_KEY", "other").stderr(Stdio::piped());
    let child = launch.spawn().unwrap();
    let found = script.wait_for("url");
    let (url, context) = found.split_once(' ').unwrap();
    assert_eq!(context, "4096");
    let connect = || TcpStream::connect(url.strip_prefix("http://").unwrap());
    assert!(connect().is_ok(), "{url}");
    fs::write(script.file("end"), "").unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && connect().is_err(), "{}", stderr(&out));
    let message = stderr(&out);
    let log = message.split_once("log ").unwrap().1.lines().next().unwrap();
    assert!(!Path::new(log).exists(), "{log}");
}

#[test]
fn a_server_that_fails_is_one_line_and_its_log_is_kept() {
    let script = Script::new("codex", "echo started > started");
    let out = script
        .launch(&["codex", "--port", &unused_port(), "--ctx", "4096", "--chat-template", "absent"])
        .output()
        .unwrap();
    let message = stderr(&out);
    assert_eq!((out.status.code(), script.read("started")), (Some(1), String::new()), "{message}");
    let last = message.lines().last().unwrap();
    assert!(last.starts_with("kimi: kimi serve: --chat-template absent: "), "{message}");
    let log = last.split_once("(log: ").unwrap().1.trim_end_matches(')');
    assert!(fs::read_to_string(log).unwrap().contains("absent"), "{log}");
    fs::remove_dir_all(Path::new(log).parent().unwrap()).unwrap();
}

#[test]
fn interrupts_belong_to_the_client() {
    let server = Serve::start(&[]);
    let script = Script::new(
        "aider",
        "trap 'echo int >> seen; exit 9' INT; echo > ready; while :; do sleep 0.1; done",
    );
    let mut launch = script.launch(&["aider", "--port", &server.port]);
    let mut child = launch.process_group(0).stderr(Stdio::null()).spawn().unwrap();
    script.wait_for("ready");
    let group = format!("-{}", child.id());
    assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(9));
    assert_eq!(script.read("seen"), "int\n");

    // SIGTERM to the launcher alone is passed on.
    fs::remove_file(script.file("ready")).unwrap();
    let mut child = script.launch(&["aider", "--port", &server.port]).stderr(Stdio::null()).spawn().unwrap();
    script.wait_for("ready");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn a_missing_client_is_one_line_with_its_install_command() {
    let script = Script::new("other", "");
    let mut launch = script.launch(&["opencode"]);
    let out = launch.env("PATH", script.0.path()).output().unwrap();
    assert_eq!(
        stderr(&out),
        "kimi: opencode is not installed; install it with: npm install -g opencode-ai\n"
    );
    assert_eq!(out.status.code(), Some(1));
    let out = script.launch(&[]).env("PATH", script.0.path()).output().unwrap();
    let list = String::from_utf8(out.stdout).unwrap();
    assert!(
        list.lines().count() >= 7 && list.contains("not installed: npm install -g opencode-ai"),
        "{list}"
    );
}

/// Kimi Code's program is named `kimi` too.
#[test]
fn another_program_named_kimi_is_recognized() {
    let server = Serve::start(&[]);
    let script = Script::new(
        "kimi",
        "if [ \"$1\" = --version ]; then echo 2.1.0; else echo \"$KIMI_MODEL_NAME\" > name; fi",
    );
    let own = Script::new("kimi", "echo kimi 9.9.9");
    let mut launch = script.launch(&["kimi-code", "--port", &server.port]);
    launch.env("PATH", format!("{}:{}:/usr/bin:/bin", own.0.path().display(), script.0.path().display()));
    let out = launch.output().unwrap();
    assert!(out.status.success() && script.read("name") == "kimi-demo\n", "{}", stderr(&out));
}

#[test]
fn keys_come_from_the_file_of_the_server() {
    let script = Script::new("claude", "echo \"$ANTHROPIC_AUTH_TOKEN\" > token");
    let keys = script.file("keys");
    fs::write(&keys, "\nfirst-key\nsecond\n").unwrap();
    let server = Serve::start(&["--api-key-file", text(&keys)]);
    let out = script.launch(&["claude", "--port", &server.port]).output().unwrap();
    let message = stderr(&out);
    assert!(message.starts_with("kimi: that server needs its key (--api-key-file)"), "{message}");
    assert!(message.contains("HTTP 401") && message.lines().count() == 1, "{message}");
    let with_file =
        script.launch(&["claude", "--port", &server.port, "--api-key-file", text(&keys)]).output().unwrap();
    assert!(with_file.status.success(), "{}", stderr(&with_file));
    assert_eq!(script.read("token"), "first-key\n");
    let mut with_url = script.launch(&["claude", "--url", &server.url(), "-m", "kimi"]);
    assert!(with_url.env("OPENAI_API_KEY", "second").output().unwrap().status.success());
    assert_eq!(script.read("token"), "second\n");
}

#[test]
fn the_documented_settings_are_those_of_launch() {
    let server = Serve::start(&[]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/clients.md")).unwrap();
    let document = document.replace("http://127.0.0.1:8080", &server.url());
    for (name, title) in [
        ("claude", "Claude Code"),
        ("codex", "Codex"),
        ("opencode", "opencode"),
        ("kimi-code", "Kimi Code"),
        ("qwen", "Qwen Code"),
        ("aider", "aider"),
        ("openwebui", "Open WebUI"),
        ("llm", "llm"),
    ] {
        let section = Section::find(&document, title);
        let script = Script::new("none", "");
        let mut launch = script.launch(&[name, "--url", &server.url(), "-m", "kimi", "--print"]);
        let out = launch.env("PATH", script.0.path()).output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        let printed = String::from_utf8(out.stdout).unwrap();
        let (launched, command) = variables(&printed);
        let (documented, by_hand) = variables(&section.shell);
        for (variable, value) in &documented {
            assert_eq!(launched.get(variable).map(readable), Some(readable(value)), "{title}: {variable}");
        }
        if name != "codex" && name != "llm" {
            assert_eq!(command, by_hand, "{title}");
        }
        if let Some((kind, file)) = &section.file {
            assert_eq!(settings(kind, file), launched_settings(name, &printed, &launched), "{title}");
        } else {
            assert_eq!(documented.len(), launched.len(), "{title}: {printed}");
        }
    }
}

/// A section of docs/clients.md: its file, with the kind of it, and its shell commands.
struct Section {
    file: Option<(String, String)>,
    shell: String,
}

impl Section {
    fn find(document: &str, title: &str) -> Section {
        let section = document.split_once(&format!("\n## {title}\n")).unwrap().1;
        let section = section.split("\n## ").next().unwrap();
        let mut blocks = section.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap());
        let (mut file, mut shell) = (None, String::new());
        for (kind, text) in &mut blocks {
            match kind {
                "sh" => shell = text.to_owned(),
                _ => file = Some((kind.to_owned(), text.to_owned())),
            }
        }
        Section { file, shell }
    }
}

/// The exported and removed variables of a script, and its last line.
fn variables(script: &str) -> (BTreeMap<String, String>, String) {
    let mut found = BTreeMap::new();
    for line in script.lines() {
        if let Some(name) = line.strip_prefix("unset ") {
            found.insert(name.to_owned(), String::new());
        }
        if let Some(export) = line.strip_prefix("export ") {
            let word = shlex::split(export).unwrap().remove(0);
            let (name, value) = word.split_once('=').unwrap();
            found.insert(name.to_owned(), value.to_owned());
        }
    }
    (found, script.lines().last().unwrap().to_owned())
}

/// Values that are JSON are compared as such.
fn readable(value: &String) -> Value {
    serde_json::from_str(value).unwrap_or_else(|_| json!(value))
}

/// The settings in a file of the documents as JSON.
fn settings(kind: &str, file: &str) -> Value {
    match kind {
        "json" => serde_json::from_str(file).unwrap(),
        "toml" => toml_settings(file),
        // One list entry of plain values.
        "yaml" => {
            let pairs =
                file.lines().map(|line| line.trim_start_matches(['-', ' ']).split_once(": ").unwrap());
            let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
            Value::Array(vec![pairs.map(|(name, text)| (name.to_owned(), value(text))).collect()])
        }
        other => panic!("{other}"),
    }
}

fn toml_settings(text: &str) -> Value {
    fn json_of(value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => json!(text),
            DeValue::Integer(number) => json!(number.as_str().parse::<u64>().unwrap()),
            DeValue::Boolean(value) => json!(value),
            DeValue::Table(table) => object(table),
            other => panic!("{other:?}"),
        }
    }
    fn object(table: &DeTable<'_>) -> Value {
        table.iter().map(|(name, value)| (name.get_ref().to_string(), json_of(value.get_ref()))).collect()
    }
    object(DeTable::parse(text).unwrap().get_ref())
}

/// The same settings in the variables, files or arguments of a printed launch.
fn launched_settings(name: &str, printed: &str, variables: &BTreeMap<String, String>) -> Value {
    if name == "opencode" {
        return serde_json::from_str(&variables["OPENCODE_CONFIG_CONTENT"]).unwrap();
    }
    if name == "codex" {
        let words = shlex::split(printed.lines().last().unwrap()).unwrap();
        let pairs: Vec<&str> = words.iter().filter(|word| word.contains('=')).map(String::as_str).collect();
        let mut settings = toml_settings(&pairs.join("\n"));
        // By hand the server needs no key.
        let provider = settings["model_providers"]["kimi"].as_object_mut().unwrap();
        assert_eq!(provider.remove("env_key").unwrap(), "KIMI_SERVER_KEY");
        return settings;
    }
    let file = printed.split_once("<<'END'\n").unwrap().1.split_once("\nEND\n").unwrap().0;
    serde_json::from_str(file).unwrap()
}

#[test]
fn the_list_says_how_to_start_a_client() {
    let out = kimi_command().arg("launch").output().unwrap();
    let list = String::from_utf8(out.stdout.clone()).unwrap();
    assert!(list.lines().any(|line| line.starts_with("claude ")), "{list}");
    assert!(stderr(&out).starts_with("`kimi launch CLIENT` starts one"), "{}", stderr(&out));
}

#[test]
fn a_killed_launch_leaves_no_server() {
    let script = Script::new("qwen", "echo $$ > pid; echo $OPENAI_BASE_URL > url; exec sleep 600");
    let mut launch = script.launch(&["qwen", "--port", &unused_port(), "--no-cache"]).spawn().unwrap();
    let url = script.wait_for("url");
    let address = url.trim_start_matches("http://").trim_end_matches("/v1");
    assert!(TcpStream::connect(address).is_ok(), "{address}");
    launch.kill().unwrap();
    launch.wait().unwrap();
    assert!(Command::new("kill").arg(script.read("pid").trim()).status().unwrap().success());
    // The test runner's limit ends a wait for a server that stays.
    while TcpStream::connect(address).is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
}
