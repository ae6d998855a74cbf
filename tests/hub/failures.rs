//! Failures of the hub and of the network, full disks, and hostile responses: each is one line, and nothing wrong is kept.

use crate::server::{Repo, TestHub};
use crate::{cached, kimi_at, noise, pulled, said};
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;

const MIB: usize = 1 << 20;

/// A hub with `u/r`, which has one file of 20 MiB.
fn hub() -> (TestHub, Vec<u8>, tempfile::TempDir) {
    let bytes = noise(20 * MIB, 5);
    let repo = Repo { files: vec![("x-Q4_K_M.gguf".to_owned(), bytes.clone())], ..Repo::default() };
    (TestHub::start(&[("u/r", repo)]), bytes, tempfile::tempdir().unwrap())
}

/// Pulls `u/r` and expects an error in one line after others.
fn fails(hub: &TestHub, home: &Path, message: &str) {
    let (ok, out, err) = said(&mut kimi_at(hub, home, &["pull", "u/r"]));
    assert!(!ok && out.is_empty(), "{out}{err}");
    let last = err.lines().last().unwrap_or_default();
    assert!(last.starts_with("kimi: ") && last.contains(message), "expected {message:?}, found {err}");
}

#[test]
fn cut_off_bodies_are_continued() {
    let (hub, bytes, home) = hub();
    hub.faults().cut_after.store(MIB + 17, SeqCst);
    let path = pulled(&hub, home.path(), "u/r");
    assert!(fs::read(path).unwrap() == bytes);
    assert_eq!(hub.state.sent.load(SeqCst), bytes.len() as u64);
}

#[test]
fn a_wrong_sum_is_an_error_and_nothing_is_kept() {
    let (hub, bytes, home) = hub();
    hub.faults().wrong_bytes.store(true, SeqCst);
    fails(&hub, home.path(), "u/r/x-Q4_K_M.gguf: SHA-256: expected ");
    assert_eq!(fs::read_dir(cached(home.path(), "u/r", "blobs")).unwrap().count(), 0);
    assert!(!cached(home.path(), "u/r", "snapshots").exists());
    hub.faults().wrong_bytes.store(false, SeqCst);
    assert!(fs::read(pulled(&hub, home.path(), "u/r")).unwrap() == bytes);
}

#[test]
fn a_damaged_partial_file_is_downloaded_again() {
    let (hub, bytes, home) = hub();
    let partial = cached(home.path(), "u/r", &format!("blobs/{}.incomplete", crate::server::sha256(&bytes)));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, noise(MIB, 99)).unwrap();
    let (ok, out, err) = said(&mut kimi_at(&hub, home.path(), &["pull", "u/r"]));
    assert!(ok && err.contains("the partial file of an earlier run is damaged: starting over"), "{err}");
    assert!(fs::read(out.trim_end()).unwrap() == bytes);
    // One that is longer than the file is replaced at once.
    fs::remove_dir_all(home.path().join("hub")).unwrap();
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, noise(21 * MIB, 99)).unwrap();
    assert!(fs::read(pulled(&hub, home.path(), "u/r")).unwrap() == bytes);
}

#[test]
fn servers_without_ranges_and_expired_addresses_are_no_obstacle() {
    let (hub, bytes, home) = hub();
    hub.faults().no_ranges.store(true, SeqCst);
    assert!(fs::read(pulled(&hub, home.path(), "u/r")).unwrap() == bytes);
    hub.faults().no_ranges.store(false, SeqCst);
    let other = tempfile::tempdir().unwrap();
    hub.faults().expired.store(3, SeqCst);
    assert!(fs::read(pulled(&hub, other.path(), "u/r")).unwrap() == bytes);
}

#[test]
fn rate_limits_are_waited_for_if_they_are_short() {
    let (hub, bytes, home) = hub();
    hub.faults().rate_limited.store(2, SeqCst);
    hub.faults().retry_after.store(1, SeqCst);
    let (ok, out, err) = said(&mut kimi_at(&hub, home.path(), &["pull", "u/r"]));
    assert!(ok && err.contains(": status 429: retrying in 1 s (try 2 of 6)"), "{err}");
    assert!(fs::read(out.trim_end()).unwrap() == bytes);
    hub.faults().rate_limited.store(1, SeqCst);
    hub.faults().retry_after.store(4000, SeqCst);
    fails(&hub, home.path(), ": status 429: the server accepts requests again in 67 minutes");
}

#[test]
fn missing_private_and_gated_repositories_say_what_to_do() {
    let gated =
        Repo { gated: true, files: vec![("x-Q4_K_M.gguf".into(), noise(5000, 1))], ..Repo::default() };
    let hub = TestHub::start(&[("u/gated", gated)]);
    let home = tempfile::tempdir().unwrap();
    let check = |name: &str, token: Option<&str>, message: &str| {
        let mut command = kimi_at(&hub, home.path(), &["pull", name]);
        match token {
            Some(token) => command.env("HF_TOKEN", token),
            None => command.env_remove("HF_TOKEN"),
        };
        let (ok, _, err) = said(&mut command);
        let message = message.replace("HUB", &hub.url);
        assert!(!ok && err.lines().last() == Some(&format!("kimi: {message}")), "{err}");
    };
    let license = "accept its license at HUB/u/gated and set HF_TOKEN to a token of your account";
    check("u/gated", None, &format!("u/gated: this repository is gated: {license}"));
    let license = "accept the license at HUB/u/gated with its account (status 403)";
    check("u/gated", Some("hf_other"), &format!("u/gated: the token of HF_TOKEN has no access: {license}"));
    let private = "check the name at HUB/u/none, or set HF_TOKEN";
    check("u/none", None, &format!("u/none: no such repository, or a private or gated one: {private}"));
    check("u/none", Some(crate::TOKEN), "u/none: not found at HUB");
    check("u/none", Some("a b"), "HF_TOKEN: expected a token of printable ASCII characters, found others");
    check(
        "none",
        None,
        "\"none\": expected USER/REPO[:TYPE], such as bartowski/moonshotai_Kimi-Linear-48B-A3B-Instruct-GGUF:Q4_K_M",
    );
    let (ok, _, err) = said(&mut kimi_at(&hub, home.path(), &["pull", "u/gated", "--revision", "v9"]));
    assert!(!ok && err == format!("kimi: u/gated: no such revision at {}/u/gated\n", hub.url), "{err}");
}

#[test]
fn a_full_disk_keeps_what_is_there() {
    let (hub, bytes, home) = hub();
    let pull = kimi_at(&hub, home.path(), &["pull", "u/r"]);
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -f 10240; exec \"$0\" pull u/r"]).arg(pull.get_program());
    pull.get_envs().for_each(|(name, value)| {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    });
    let (ok, _, err) = said(&mut limited);
    let kept = ".incomplete: File too large (os error 27); ";
    assert!(
        !ok && err.contains(kept) && err.ends_with("are kept, run the command again to resume\n"),
        "{err}"
    );
    assert!(fs::read(pulled(&hub, home.path(), "u/r")).unwrap() == bytes);
    assert!(hub.state.sent.load(SeqCst) < 2 * bytes.len() as u64);
}

#[test]
fn hostile_responses_are_refused() {
    let (hub, bytes, home) = hub();
    let faults = hub.faults();
    for etag in ["../../evil", "a/b", "..", ""] {
        *faults.etag.lock().unwrap() = Some(etag);
        fails(&hub, home.path(), "expected an ETag that can name a file, found ");
    }
    *faults.etag.lock().unwrap() = None;
    for location in ["ftp://x/y", "http://user:password@127.0.0.1/"] {
        *faults.location.lock().unwrap() = Some(location.to_owned());
        fails(&hub, home.path(), "expected a redirect to an address");
    }
    *faults.location.lock().unwrap() = None;
    let api = |text: &str| *faults.api.lock().unwrap() = Some(text.to_owned());
    api(r#"{"sha":"../../../etc"}"#);
    fails(&hub, home.path(), "sha: expected 40 hexadecimal digits, found \"../../../etc\"");
    api("<html>");
    fails(&hub, home.path(), ": expected a model: expected value at line 1 column 1");
    api(&" ".repeat(17 * MIB));
    fails(&hub, home.path(), ": expected at most 16777216 bytes, found more");
    *faults.api.lock().unwrap() = None;
    let files = ["../x-Q4_K_M.gguf", "/etc/x-Q4_K_M.gguf"].map(|path| (path.to_owned(), bytes.clone()));
    let evil = TestHub::start(&[("u/r", Repo { files: files.to_vec(), ..Repo::default() })]);
    fails(
        &evil,
        home.path(),
        "u/r: expected GGUF files or a checkpoint (config.json, *.safetensors), found neither",
    );
    evil.faults().page.store(1, SeqCst);
    *evil.faults().next.lock().unwrap() = Some("http://127.0.0.1:1/api".to_owned());
    fails(&evil, home.path(), ": expected the next page on the same host, found another");
    *evil.faults().next.lock().unwrap() = Some("/api/models/u/r/tree/main?cursor=0".to_owned());
    fails(&evil, home.path(), "u/r: expected at most 200 pages of files, found more");
    assert!(!home.path().join("hub/models--u--r/snapshots").exists());
}

#[test]
fn unreachable_hubs_are_one_line() {
    let (hub, _, home) = hub();
    let mut command = kimi_at(&hub, home.path(), &["pull", "u/r"]);
    let (ok, _, err) = said(command.env("HF_ENDPOINT", "http://127.0.0.1:1"));
    assert!(!ok && err.lines().count() <= 7, "{err}");
    let last = err.lines().last().unwrap();
    assert!(last.starts_with("kimi: 127.0.0.1:1: ") && last.ends_with(", after 6 retries"), "{err}");
    let (ok, _, err) = said(command.env("HF_ENDPOINT", "mirror.example"));
    assert!(
        !ok && err == "kimi: HF_ENDPOINT: expected http:// or https://, found \"mirror.example\"\n",
        "{err}"
    );
}
