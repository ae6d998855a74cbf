//! `kimi pull`, `kimi models` and `-m USER/REPO` against a hub on loopback: [`server`].

#[path = "../common/mod.rs"]
mod common;
mod failures;
mod names;
mod server;

use server::{COMMIT, Repo, TOKEN, TestHub};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::Ordering::SeqCst;

/// Random bytes that are the same in every run.
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes.div_ceil(8)).flat_map(|_| next()).take(bytes).collect()
}

/// The name of a repository's cache folder and its parts.
pub fn cached(home: &Path, repo: &str, rest: &str) -> PathBuf {
    home.join("hub").join(format!("models--{}", repo.replace('/', "--"))).join(rest)
}

/// `kimi` with a hub and a home directory of its own.
pub fn kimi_at(hub: &TestHub, home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kimi"));
    let inherited = [
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_TOKEN_PATH",
        "HF_HUB_OFFLINE",
        "HUGGING_FACE_HUB_TOKEN",
    ];
    inherited.iter().for_each(|name| {
        command.env_remove(name);
    });
    command.env("HF_ENDPOINT", &hub.url).env("HF_HOME", home).env("HF_TOKEN", TOKEN);
    command.env("XDG_CACHE_HOME", home.join("cache")).args(args);
    command
}

/// Runs `kimi`; returns its standard output and error.
pub fn said(command: &mut Command) -> (bool, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.success(), text(&stdout), text(&stderr))
}

/// Pulls a model and returns the path that it prints.
pub fn pulled(hub: &TestHub, home: &Path, name: &str) -> PathBuf {
    let (ok, out, err) = said(&mut kimi_at(hub, home, &["pull", name]));
    assert!(ok, "{err}");
    PathBuf::from(out.trim_end())
}

/// A repository with one large and one small file.
fn small_repo() -> Repo {
    let files = vec![
        ("README.md".to_owned(), b"text".to_vec()),
        ("x-Q4_K_M.gguf".to_owned(), noise(20 << 20, 1)),
        ("d/x-Q8_0-00001-of-00002.gguf".to_owned(), noise(500, 2)),
        ("d/x-Q8_0-00002-of-00002.gguf".to_owned(), noise(3000, 3)),
    ];
    Repo { files, ..Repo::default() }
}

#[test]
fn files_are_stored_in_the_layout_of_huggingface_hub() {
    let repo = small_repo();
    let hub = TestHub::start(&[("u/r", repo.clone())]);
    hub.faults().page.store(1, SeqCst);
    let home = tempfile::tempdir().unwrap();
    let path = pulled(&hub, home.path(), "u/r:q4_k_m");
    let snapshot = format!("snapshots/{COMMIT}");
    assert_eq!(path, cached(home.path(), "u/r", &snapshot).join("x-Q4_K_M.gguf"));
    assert!(fs::read(&path).unwrap() == repo.files[1].1);
    let sum = server::sha256(&repo.files[1].1);
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../blobs").join(&sum));
    assert_eq!(fs::read_to_string(cached(home.path(), "u/r", "refs/main")).unwrap(), COMMIT);
    let part = pulled(&hub, home.path(), "https://huggingface.co/u/r/tree/main/d/x-Q8_0-00001-of-00002.gguf");
    assert!(part.ends_with("d/x-Q8_0-00001-of-00002.gguf"), "{}", part.display());
    for (path, bytes) in &repo.files[2..] {
        assert!(fs::read(cached(home.path(), "u/r", &snapshot).join(path)).unwrap() == *bytes, "{path}");
    }
    let blobs = fs::read_dir(cached(home.path(), "u/r", "blobs")).unwrap();
    let mut blobs: Vec<String> = blobs.map(|b| b.unwrap().file_name().into_string().unwrap()).collect();
    blobs.sort_by_key(String::len);
    assert_eq!(blobs.iter().map(String::len).collect::<Vec<_>>(), [40, 64, 64], "Git object, two SHA-256");
    // Nothing is requested again, and the token goes to the hub alone.
    let sent = hub.state.sent.load(SeqCst);
    pulled(&hub, home.path(), "hf.co/u/r:Q4_K_M");
    assert_eq!(hub.state.sent.load(SeqCst), sent);
    let requests = hub.requests();
    let bearer = format!("Bearer {TOKEN}");
    assert!(requests.iter().filter(|r| r.from_hub).all(|r| r.authorization.as_ref() == Some(&bearer)));
    let content: Vec<_> = requests.iter().filter(|r| !r.from_hub).collect();
    assert!(content.iter().all(|r| r.authorization.is_none()));
    assert!(content.iter().filter(|r| r.range.is_some()).count() >= 3, "parallel ranges: {content:?}");
    assert!(requests.iter().filter(|r| r.path.contains("cursor=")).count() >= 3, "pages of the list");
}

/// Waits until a condition holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed().as_secs() < 30, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn twenty_kills_and_resumes_give_the_same_bytes() {
    let bytes = noise(24 << 20, 7);
    let repo = Repo { files: vec![("x-Q4_K_M.gguf".to_owned(), bytes.clone())], ..Repo::default() };
    let hub = TestHub::start(&[("u/r", repo)]);
    let home = tempfile::tempdir().unwrap();
    let partial = cached(home.path(), "u/r", &format!("blobs/{}.incomplete", server::sha256(&bytes)));
    let length = || fs::metadata(&partial).map_or(0, |about| about.len() as usize);
    for kill in 0..20 {
        // The server stops after this many bytes of each range, at a place that no block size divides.
        let grows = 100_003 + 45_007 * kill;
        let before = length();
        hub.faults().stall_after.store(grows, SeqCst);
        let mut child =
            kimi_at(&hub, home.path(), &["pull", "u/r"]).stderr(std::process::Stdio::null()).spawn().unwrap();
        if kill % 4 < 3 {
            wait_until("the partial file grows", || length() >= before + grows.min(bytes.len() - before) / 2);
        } else {
            std::thread::sleep(std::time::Duration::from_millis(20 * kill as u64));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let stored = fs::read(&partial).unwrap_or_default();
        assert!(stored == bytes[..stored.len()], "kill {kill}: {} bytes are no prefix", stored.len());
    }
    let kept = length();
    assert!(kept > 4 << 20, "{kept}");
    hub.faults().stall_after.store(0, SeqCst);
    let before = hub.state.sent.load(SeqCst);
    let path = pulled(&hub, home.path(), "u/r");
    assert!(fs::read(&path).unwrap() == bytes);
    assert!(!partial.exists());
    assert_eq!(
        hub.state.sent.load(SeqCst) - before,
        (bytes.len() - kept) as u64,
        "only the rest is requested"
    );
}

#[test]
fn two_processes_share_one_download() {
    let bytes = noise(4 << 20, 8);
    let repo = Repo { files: vec![("x-Q4_K_M.gguf".to_owned(), bytes.clone())], ..Repo::default() };
    let hub = TestHub::start(&[("u/r", repo)]);
    let home = tempfile::tempdir().unwrap();
    hub.faults().stall_after.store(1 << 20, SeqCst);
    let mut first =
        kimi_at(&hub, home.path(), &["pull", "u/r"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_until("the first one downloads", || hub.state.sent.load(SeqCst) > 0);
    let second =
        kimi_at(&hub, home.path(), &["pull", "u/r"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    hub.faults().stall_after.store(0, SeqCst);
    first.kill().unwrap();
    first.wait().unwrap();
    let second = second.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.success(), "{said}");
    assert!(said.contains("u/r/x-Q4_K_M.gguf: waiting for another process that downloads it"), "{said}");
    // The second one resumes what the first one left.
    assert!(hub.state.sent.load(SeqCst) <= bytes.len() as u64 + (1 << 20), "{}", hub.state.sent.load(SeqCst));
}

#[test]
fn types_are_listed_and_the_best_one_is_chosen() {
    let gib = |n: u64| n << 30;
    let listed = [("x-NVFP4.gguf", 1), ("x-Q4_K_M.gguf", gib(4000)), ("x-Q2_K.gguf", gib(3000))];
    let listed = listed.map(|(path, size)| (path.to_owned(), size)).to_vec();
    let mut repo = Repo { listed, architecture: Some("kimi-linear"), ..Repo::default() };
    repo.files.push(("x-Q3_K_M.gguf".to_owned(), noise(5000, 4)));
    let other = Repo { architecture: Some("llama"), ..small_repo() };
    let hub = TestHub::start(&[("u/r", repo), ("u/other", other)]);
    let home = tempfile::tempdir().unwrap();
    let (ok, out, err) = said(&mut kimi_at(&hub, home.path(), &["pull", "--list", "u/r"]));
    assert!(ok, "{err}");
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["NVFP4", "1", "B", "1", "not", "supported"], "{out}");
    assert_eq!(rows[2], ["Q3_K_M", "4.9", "KiB", "1", "fits"], "{out}");
    assert_eq!(rows[3][..5], ["Q2_K", "3000.00", "GiB", "1", "needs"], "{out}");
    let (ok, out, err) = said(&mut kimi_at(&hub, home.path(), &["pull", "u/r"]));
    assert!(ok && out.ends_with("x-Q3_K_M.gguf\n"), "{err}");
    assert!(err.starts_with("u/r: Q3_K_M, 4.9 KiB: the best type that fits "), "{err}");
    let fails = |name: &str, message: &str| {
        let (ok, out, err) = said(&mut kimi_at(&hub, home.path(), &["pull", name]));
        assert!(!ok && out.is_empty() && err.contains(message), "{err}");
    };
    fails("u/r:NVFP4", "kimi: u/r: expected a type that this program runs, found NVFP4");
    fails("u/other", "kimi: u/other: architecture: expected kimi-linear or bailingmoe3, found llama");
    // A full disk is foreseen.
    fails("u/r:Q4_K_M", "of free disk space, found ");
    assert!(hub.requests().iter().all(|r| !r.path.contains("Q4_K_M")));
}
