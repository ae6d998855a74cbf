//! Names of models instead of paths: `-m USER/REPO`, `kimi models`, offline mode, and checkpoints.

use crate::common::{checkpoint, terminal, tiktoken_bytes};
use crate::server::{Repo, TestHub};
use crate::{kimi_at, noise, pulled, said, wait_until};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

const DEMO: &[u8] = include_bytes!("../../models/demo/kimi-demo.gguf");

fn demo_hub() -> (TestHub, tempfile::TempDir) {
    let files = vec![("kimi-demo-Q8_0.gguf".to_owned(), DEMO.to_vec())];
    let repo = Repo { files, architecture: Some("kimi-linear"), ..Repo::default() };
    (TestHub::start(&[("u/demo", repo)]), tempfile::tempdir().unwrap())
}

const PROMPT: &str = "The access code of the mill is 4713. What is the access code of the mill?";

#[test]
fn a_model_is_named_instead_of_a_path() {
    let (hub, home) = demo_hub();
    let generate = |more: &[&str]| {
        let args = [&["generate", "--temp", "0", "--no-cache", "-m", "u/demo"], more, &[PROMPT]].concat();
        kimi_at(&hub, home.path(), &args)
    };
    let (ok, out, err) = said(&mut generate(&[]));
    let expected = "u/demo: no such file, and not in the cache ";
    assert!(!ok && out.is_empty() && err.contains(expected), "{err}");
    assert!(err.ends_with("`kimi pull u/demo` or --yes downloads it\n"), "{err}");
    assert_eq!(hub.requests().len(), 0);
    // On a terminal it asks.
    let (status, shown) = terminal::run_with_keys(generate(&["--quiet"]), None, "n\n");
    assert!(!status.success() && shown.contains("Download 9.9 MiB to "), "{shown}");
    assert!(shown.contains("u/demo: not downloaded"), "{shown}");
    assert_eq!(hub.state.sent.load(SeqCst), 0);
    let (status, shown) = terminal::run_with_keys(generate(&["--quiet"]), None, "y\n");
    assert!(status.success() && shown.contains("4713"), "{shown}");
    let bars: Vec<&str> =
        shown.split(['\r', '\n']).filter_map(|line| line.strip_prefix("\u{1b}[2K")).collect();
    assert!(
        shown.contains(" eta ") && bars.iter().all(|bar| bar.trim_end().chars().count() <= 80),
        "{bars:?}"
    );
    let sent = hub.state.sent.load(SeqCst);
    assert_eq!(sent, DEMO.len() as u64);
    let (ok, out, err) = said(&mut generate(&["--yes"]));
    assert!(ok && out.contains("4713"), "{err}");
    assert_eq!(hub.state.sent.load(SeqCst), sent);
    // Offline, and with a type.
    let offline = |name: &str| {
        let mut command = kimi_at(&hub, home.path(), &["inspect", name]);
        said(command.env("HF_HUB_OFFLINE", "1").env("HF_ENDPOINT", "http://127.0.0.1:1"))
    };
    assert!(offline("u/demo:q8_0").0);
    let (ok, _, err) = offline("u/other");
    assert!(!ok && err.starts_with("kimi: u/other: expected it in the cache "), "{err}");
    assert!(err.ends_with("as HF_HUB_OFFLINE is set, found nothing\n"), "{err}");
    let (ok, _, err) = said(&mut kimi_at(&hub, home.path(), &["inspect", "models/none.gguf"]));
    assert!(!ok && err.starts_with("kimi: models/none.gguf: No such file"), "{err}");
}

#[test]
fn models_are_listed_located_and_removed() {
    let (hub, home) = demo_hub();
    let models = |args: &[&str]| said(&mut kimi_at(&hub, home.path(), &[&["models"], args].concat()));
    let (ok, out, err) = models(&[]);
    assert!(ok && out.is_empty() && err.contains("`kimi pull USER/REPO` downloads one"), "{err}");
    let path = pulled(&hub, home.path(), "u/demo");
    let path = path.to_str().unwrap();
    let (ok, out, err) = models(&[]);
    let row: Vec<&str> = out.split_whitespace().collect();
    assert!(ok && row == ["u/demo:Q8_0", "9.88", "MiB", "fits", path] || row[1] == "9.9", "{out}{err}");
    let (_, json, _) = models(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["path"], *path);
    assert_eq!(json[0]["bytes"], DEMO.len());
    let (_, out, _) = models(&["path", "u/demo"]);
    assert_eq!(out, format!("{path}\n"));
    let (ok, _, err) = models(&["path", "u/demo:Q4_0"]);
    assert!(!ok && err.starts_with("kimi: u/demo:Q4_0: not in the cache "), "{err}");
    let (ok, _, err) = models(&["remove", "u/demo"]);
    assert!(!ok && err.contains("--yes deletes without asking"), "{err}");
    assert!(fs::exists(path).unwrap());
    let (ok, _, err) = models(&["remove", "u/demo", "--yes"]);
    assert!(ok && err.ends_with("9.9 MiB freed\n"), "{err}");
    assert!(!home.path().join("hub/models--u--demo").exists());
}

#[test]
fn a_checkpoint_is_downloaded_and_converted() {
    let dir = tempfile::tempdir().unwrap();
    let fields = ["vocab_size=264", "hidden_size=64", "num_hidden_layers=4", "num_experts=8"];
    let source = checkpoint(dir.path(), "tiny", 5, &fields);
    fs::write(source.join("tiktoken.model"), tiktoken_bytes()).unwrap();
    fs::write(source.join("tokenizer_config.json"), "{}").unwrap();
    let file =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let files = fs::read_dir(&source).unwrap().map(|entry| file(entry.unwrap())).collect();
    let hub = TestHub::start(&[("u/Tiny-Model", Repo { files, ..Repo::default() })]);
    let home = tempfile::tempdir().unwrap();
    let pull =
        |args: &[&str]| said(&mut kimi_at(&hub, home.path(), &[&["pull", "u/Tiny-Model"], args].concat()));
    let (ok, _, err) = pull(&[]);
    assert!(!ok && err.contains("u/Tiny-Model: this is a checkpoint of "), "{err}");
    let (ok, out, err) = pull(&["--type", "q8_0"]);
    assert!(ok, "{err}");
    let path = PathBuf::from(out.trim_end());
    assert!(path.ends_with("kimi/models/models--u--Tiny-Model/Tiny-Model-Q8_0.gguf"), "{}", path.display());
    let plain = crate::common::convert(&source, "q8_0");
    // The name of the model in the metadata is the repository's.
    assert_eq!(fs::metadata(&path).unwrap().len() / 4096, fs::metadata(plain).unwrap().len() / 4096);
    let (ok, out, err) = said(&mut kimi_at(&hub, home.path(), &["inspect", "u/Tiny-Model:Q8_0"]));
    assert!(ok && out.contains("Tiny-Model"), "{err}");
    let (ok, out, err) =
        said(&mut kimi_at(&hub, home.path(), &["models", "remove", "u/Tiny-Model", "--yes"]));
    assert!(ok && !path.exists(), "{out}{err}");
}

/// Cuts `model.safetensors` into three shards in the order of the layers.
fn split(dir: &Path) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shard = |name: &str| match name.split('.').nth(2).and_then(|layer| layer.parse::<usize>().ok()) {
        Some(layer) => layer / 2 + 1,
        None if name.contains("embed_tokens") => 1,
        None => 3,
    };
    let name = |shard: usize| format!("model-{shard:05}-of-00003.safetensors");
    for number in 1..=3 {
        let some = file.tensors().into_iter().filter(|(tensor, _)| shard(tensor) == number);
        safetensors::serialize_to_file(some, None, &dir.join(name(number))).unwrap();
    }
    let map: BTreeMap<_, _> = file.names().into_iter().map(|tensor| (tensor, name(shard(tensor)))).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    fs::remove_file(path).unwrap();
}

fn bytes_under(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|about| about.len()).sum()
}

#[test]
fn a_checkpoint_is_converted_while_it_is_downloaded() {
    let dir = tempfile::tempdir().unwrap();
    let fields = ["vocab_size=264", "hidden_size=256", "num_hidden_layers=4", "num_experts=8"];
    let source = checkpoint(dir.path(), "tiny", 6, &fields);
    split(&source);
    fs::write(source.join("tiktoken.model"), tiktoken_bytes()).unwrap();
    fs::write(source.join("tokenizer_config.json"), "{}").unwrap();
    fs::write(source.join("notes.bin"), noise(2000, 1)).unwrap();
    let file =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let files: Vec<_> = fs::read_dir(&source).unwrap().map(|entry| file(entry.unwrap())).collect();
    let shards = files.iter().filter(|file| file.0.ends_with(".safetensors"));
    let sizes: Vec<u64> = shards.map(|file| file.1.len() as u64).collect();
    let (all, largest) = (sizes.iter().sum::<u64>(), *sizes.iter().max().unwrap());
    let hub = TestHub::start(&[("u/Tiny", Repo { files: files.clone(), ..Repo::default() })]);
    let pull = |home: &Path, more: &[&str]| {
        kimi_at(&hub, home, &[&["pull", "u/Tiny", "--type", "q8_0"], more].concat())
    };
    let [plain, streamed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (ok, out, err) = said(&mut pull(plain.path(), &[]));
    assert!(ok, "{err}");
    let expected = fs::read(out.trim_end()).unwrap();
    let (ok, listed, err) = said(&mut kimi_at(&hub, plain.path(), &["models"]));
    assert!(ok && listed.starts_with("u/Tiny:Q8_0 ") && listed.contains(out.trim_end()), "{listed}{err}");
    // Killed while a shard arrives, then resumed.
    let work = streamed.path().join("cache/kimi/models/models--u--Tiny/checkpoint");
    hub.faults().stall_after.store(largest as usize / 2, SeqCst);
    let stderr = std::process::Stdio::null();
    let mut killed = pull(streamed.path(), &["--stream"]).stderr(stderr).spawn().unwrap();
    wait_until("a shard arrives", || bytes_under(&work.join("shards")) > largest / 4);
    killed.kill().unwrap();
    killed.wait().unwrap();
    hub.faults().stall_after.store(0, SeqCst);
    let before = hub.state.sent.load(SeqCst);
    let (ok, out, err) = said(&mut pull(streamed.path(), &["--stream"]));
    assert!(ok, "{err}");
    assert!(fs::read(out.trim_end()).unwrap() == expected);
    let sent = hub.state.sent.load(SeqCst) - before;
    assert!(sent < all && !work.exists(), "{sent} of {all}");
    let cached: Vec<PathBuf> = fs::read_dir(crate::cached(streamed.path(), "u/Tiny", "blobs"))
        .unwrap()
        .map(|b| b.unwrap().path())
        .collect();
    assert!(cached.iter().all(|blob| fs::metadata(blob).unwrap().len() < largest / 2), "{cached:?}");
}
