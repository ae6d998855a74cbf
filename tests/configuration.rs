//! Options from environment variables and the configuration file, completions and manual pages.

mod common;

use common::{kimi_command, kimi_ok, text};
use std::fs;
use std::path::Path;
use std::process::Command;

/// `kimi` with a configuration file in `home`.
fn configured(home: &Path, file: &str, args: &[&str]) -> Command {
    fs::create_dir_all(home.join("kimi")).unwrap();
    fs::write(home.join("kimi/config.toml"), file).unwrap();
    let mut command = kimi_command();
    command.env("XDG_CONFIG_HOME", home).args(args);
    command
}

/// The exit code, standard output and standard error of a command.
fn ran(command: &mut Command) -> (Option<i32>, String, String) {
    let out = command.output().unwrap();
    let [stdout, stderr] = [out.stdout, out.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (out.status.code(), stdout, stderr)
}

const FILE: &str =
    "threads = 2\n\n[generate]\nthreads = 3\ntemp = 0.5\nquiet = true\nstop = [\"a\", \"b\"]\n";

#[test]
fn each_value_shows_its_origin() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("kimi/config.toml").display().to_string();
    let shown = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = configured(home.path(), FILE, args);
        let (code, out, err) = ran(command.envs(variables.iter().copied()));
        assert_eq!((code, &*err), (Some(0), ""), "{out}");
        out
    };
    let has = |text: &str, setting: &str, origin: &str| {
        text.lines().any(|line| {
            line.split_once("  # ").is_some_and(|(s, o)| (s.trim_end(), o.trim()) == (setting, origin))
        })
    };
    let out = shown(&["config", "generate"], &[("KIMI_THREADS", "5"), ("KIMI_MODEL", "m.gguf")]);
    for (setting, origin) in [
        ("model = \"m.gguf\"", "KIMI_MODEL"),
        ("threads = 5", "KIMI_THREADS"),
        ("temp = 0.5", &format!("{place}:5")),
        ("quiet = true", &format!("{place}:6")),
        ("stop = [\"a\", \"b\"]", &format!("{place}:7")),
        // The model file may have another.
        ("# top-p", "default"),
        ("# batch", "default"),
        ("draft = \"auto\"", "default"),
        ("# ctx", "default"),
    ] {
        assert!(has(&out, setting, origin), "{setting}: {out}");
    }
    let all = shown(&["config"], &[]);
    assert!(has(&all, "threads = 3", &format!("{place}:4")), "{all}");
    assert!(has(&all, "threads = 2", &format!("{place}:1")) && all.contains("[serve]\n"), "{all}");
    assert!(!all.contains("default"), "{all}");
}

#[test]
fn the_command_line_overrides_the_environment_and_the_file() {
    let home = tempfile::tempdir().unwrap();
    let inspected = |file: &str, args: &[&str], variables: &[(&str, &str)]| {
        let args = [&["inspect", "--json"], args].concat();
        let mut command = configured(home.path(), file, &args);
        let (code, out, err) = ran(command.envs(variables.iter().copied()));
        assert_eq!(code, Some(0), "{err}");
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        report["model"]["contexts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["tokens"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let file = "[inspect]\ncontext = [7, 8]\n";
    assert_eq!(inspected(file, &[], &[]), [7, 8]);
    assert_eq!(inspected(file, &[], &[("KIMI_CONTEXT", "9,10")]), [9, 10]);
    assert_eq!(inspected(file, &["--context", "11"], &[("KIMI_CONTEXT", "9")]), [11]);
    // A file on the command line excludes --model, wherever that comes from.
    let demo = ["models/demo/kimi-demo.gguf", "--ctx", "7"];
    assert_eq!(inspected("model = \"missing.gguf\"\n", &demo, &[("KIMI_MODEL", "gone.gguf")]), [7]);
}

#[test]
fn wrong_settings_are_one_line_with_their_place() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path().join("kimi/config.toml").display().to_string();
    let failed = |file: &str, variables: &[(&str, &str)]| {
        let mut command = configured(home.path(), file, &["generate", "--ids", "1"]);
        let (code, out, err) = ran(command.envs(variables.iter().copied()));
        assert_eq!((code, &*out), (Some(1), ""), "{err}");
        err
    };
    for (file, line, message) in [
        (
            "\nthread = 2\n",
            2,
            "expected a long option of kimi without its dashes, found \"thread\"; did you mean threads?",
        ),
        (
            "[serve]\ntop-z = 2\n",
            2,
            "expected a long option of kimi serve without its dashes, found \"top-z\"",
        ),
        ("[sevre]\nport = 2\n", 1, "expected a command with options, found [sevre]; did you mean serve?"),
        ("[generate]\nquiet = \"yes\"\n", 2, "quiet: expected true or false, found another value"),
        ("[generate]\n\ntemp = true\n", 3, "temp: expected a string or a number, found another value"),
        ("threads = 0\n", 1, "invalid value '0' for '--threads <N>': 0 is not in 1..=1024"),
        ("gpu-layers = 1\nn-cpu-moe = 2\n", 1, "cannot be used with"),
        ("threads = \n", 1, ""),
    ] {
        let err = failed(file, &[]);
        assert_eq!(err.lines().count(), 1, "{err}");
        let at = err.contains(&format!("{place}:{line}: "));
        assert!(at && err.contains(message), "{file:?}: {err}");
    }
    let err = failed("", &[("KIMI_THREADS", "many")]);
    assert!(err.starts_with("kimi: KIMI_THREADS: invalid value 'many' for '--threads <N>'"), "{err}");
    let err = failed("", &[("KIMI_QUIET", "maybe")]);
    assert_eq!(err, "kimi: KIMI_QUIET: expected true or false, found \"maybe\"\n");
    // Help and completions work with a broken file.
    for args in [&["generate", "--help"][..], &["completions", "bash"], &["man"]] {
        assert_eq!(ran(&mut configured(home.path(), "x", args)).0, Some(0), "{args:?}");
    }
}

#[test]
fn api_keys_are_not_shown() {
    let home = tempfile::tempdir().unwrap();
    let keys = "[serve]\napi-key = [\"s3cret\", \"t0p\"]\nupstream-key = \"s3cret\"\n";
    let mut command = configured(home.path(), keys, &["config"]);
    // The variable belongs to Moonshot AI's client, whose keys are for another service.
    let (_, out, _) = ran(command.env("KIMI_API_KEY", "other"));
    assert!(out.contains("api-key = [\"***\", \"***\"]") && !out.contains("s3cret"), "{out}");
    assert!(out.contains("upstream-key = \"***\""), "{out}");
}

#[test]
fn completions_know_the_commands_of_each_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = kimi_ok(&["completions", shell]);
        assert!(script.contains("gpu-expert-cache") && script.contains("perplexity"), "{shell}");
    }
    let script = kimi_ok(&["completions", "bash", "--name", "kimi-local"]);
    assert!(script.contains("-o default kimi-local\n"), "{script}");
    let mut shell = Command::new("bash");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), kimi_ok(&["completions", "bash"])).unwrap();
    assert!(shell.args(["-n", text(file.path())]).status().is_ok_and(|status| status.success()));
}

#[test]
fn manual_pages_cover_every_command() {
    let dir = tempfile::tempdir().unwrap();
    kimi_ok(&["man", text(dir.path())]);
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(page("kimi.1").contains("Run Kimi Linear") && !page("kimi.1").contains("template"));
    assert!(page("kimi-serve.1").contains("state\\-memory"));
    assert!(page("kimi-models-remove.1").contains(".TH"));
    assert!(!dir.path().join("kimi-template-worker.1").exists());
    assert!(kimi_ok(&["man"]).contains(".SH SUBCOMMANDS"));
}
