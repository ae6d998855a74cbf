//! The prefix cache and other processes: writers killed at any moment, several writers in one directory.

use super::disk::{bytes, files, on_disk, only_disk, written};
use super::*;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The environment variable with the writer's directory.
const DIR: &str = "KIMI_TEST_SNAPSHOTS";
const BUDGET: &str = "KIMI_TEST_BUDGET";
const ROUNDS: &str = "KIMI_TEST_ROUNDS";
const DOCUMENTS: u32 = 40;

fn document(seed: u32) -> Vec<u32> {
    tokens(100 + seed, 24)
}

/// Not a test by itself: writes snapshots until the process is killed, or for a while.
#[test]
fn writer() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let budget = std::env::var(BUDGET).ok().map(|bytes| bytes.parse().unwrap());
    let store = StoreOptions { cache_size: budget, ..only_disk(Path::new(&dir)) };
    let engine = engine(store);
    let rounds: usize = std::env::var(ROUNDS).unwrap().parse().unwrap();
    for seed in (0..DOCUMENTS).cycle().take(rounds * DOCUMENTS as usize) {
        let whole = document(seed);
        written(&engine, &whole[..8]);
        written(&engine, &whole);
    }
}

fn start(dir: &Path, budget: Option<u64>, rounds: u32) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["processes::writer", "--exact"])
        .env(DIR, dir)
        .env(ROUNDS, rounds.to_string())
        .stdout(Stdio::null());
    command.envs(budget.map(|bytes| (BUDGET, bytes.to_string())));
    // The child uses this model instead of making one.
    command.env("KIMI_TEST_MODEL", &MODEL.1).spawn().unwrap()
}

/// The number of cached documents, each of which must be exact.
fn exact(dir: &Path, truth: &[Vec<u32>]) -> usize {
    let engine = engine(only_disk(dir));
    let found = (0..DOCUMENTS).filter_map(|seed| {
        let hit = engine.store.longest_prefix(&engine.backend, &document(seed), None)?;
        let whole = hit.len == document(seed).len();
        whole.then(|| assert_eq!(bits(&hit.logits), truth[seed as usize], "document {seed}"))
    });
    found.count()
}

fn truth() -> Vec<Vec<u32>> {
    let engine = engine(StoreOptions::nothing());
    (0..DOCUMENTS).map(|seed| fresh(&engine, &document(seed))).collect()
}

/// `engine` panics at any logged line, so a killed writer must not leave even a file to discard.
#[test]
fn a_killed_writer_leaves_whole_snapshots() {
    let (dir, truth) = (tempfile::tempdir().unwrap(), truth());
    let (mut random, mut most) = (12345u32, 0);
    for _ in 0..50 {
        let before = files(dir.path()).len();
        let mut child = start(dir.path(), None, 4);
        let deadline = Instant::now() + Duration::from_secs(20);
        while files(dir.path()).len() == before
            && Instant::now() < deadline
            && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        random = random.wrapping_mul(1664525).wrapping_add(1013904223);
        std::thread::sleep(Duration::from_micros(u64::from(random >> 8) % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let whole = exact(dir.path(), &truth);
        most = most.max(whole);
        if whole == DOCUMENTS as usize {
            files(dir.path()).iter().for_each(|(path, _)| std::fs::remove_file(path).unwrap());
        }
    }
    assert!(most > 3, "only {most} documents were written");
}

#[test]
fn processes_share_a_directory_within_its_budget() {
    let (dir, truth) = (tempfile::tempdir().unwrap(), truth());
    let model = engine(StoreOptions::nothing());
    let sizes = model.store.sizes();
    let budget = 20 * (sizes.recurrent + sizes.logits + 24 * (sizes.row + 4) + 2 * 96);
    let mut children = [(); 8].map(|()| start(dir.path(), Some(budget), 1));
    let mut found = 0;
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        assert!(bytes(dir.path()) <= budget, "{} of {budget} bytes", bytes(dir.path()));
        found = found.max(exact(dir.path(), &truth));
    }
    assert!(children.iter_mut().all(|child| child.wait().unwrap().success()), "no writer complained");
    assert!(found > 0 && bytes(dir.path()) > budget / 2);
    let engine = engine(on_disk(dir.path()));
    assert!(read(&mut Session::new(&engine), &document(DOCUMENTS - 1)).computed == 0);
}
