//! The prefix cache on disk: exact after a restart, bounded, and never restored from damaged or foreign files.

use super::*;
use kernels::reference::Reference;
use kimi::prefix_cache::namespace::Namespace;
use kimi::prefix_cache::state_dtype::StateType;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

pub fn on_disk(dir: &Path) -> StoreOptions {
    StoreOptions { cache_dir: Some(dir.to_owned()), ..Default::default() }
}

/// Options without a cache in memory, so that hits come from disk.
pub fn only_disk(dir: &Path) -> StoreOptions {
    StoreOptions { cache_ram: Some(0), ..on_disk(dir) }
}

/// An engine, and the messages that it logs.
pub fn with_log(store: StoreOptions) -> (Engine<Cpu>, Arc<Mutex<Vec<String>>>) {
    let logged = Arc::new(Mutex::new(Vec::new()));
    let lines = logged.clone();
    let log = Box::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()));
    (Engine::open_with(&args(CacheFormat::F16, store), log).unwrap(), logged)
}

/// Prefills a prompt and waits until its snapshots are on disk.
pub fn written<B: Backend>(engine: &Engine<B>, prompt: &[u32]) {
    let mut session = Session::new(engine);
    session.prefill(prompt, &mut go).unwrap();
    session.snapshot_to_disk();
    engine.store.flush();
}

/// The snapshot files in a directory, the largest first.
pub fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| !p.ends_with("lock"));
    // A file may vanish between the two calls.
    let sized = |path: PathBuf| fs::metadata(&path).ok().map(|about| (path, about.len()));
    let mut all: Vec<_> = entries.filter_map(sized).collect();
    all.sort_by_key(|(path, bytes)| (std::cmp::Reverse(*bytes), path.clone()));
    all
}

pub fn bytes(dir: &Path) -> u64 {
    files(dir).iter().map(|(_, bytes)| bytes).sum()
}

/// Prefill resumes after a restart, from a snapshot at each cut.
fn every_cut<B: Backend>(open: impl Fn(&Path) -> Engine<B>, n: usize, cuts: &[usize]) {
    let document = tokens(4, n);
    let dir = tempfile::tempdir().unwrap();
    for &cut in cuts {
        written(&open(dir.path()), &document[..cut]);
        let restarted = open(dir.path());
        let found = parts(read(&mut Session::new(&restarted), &document));
        assert_eq!(found, (cut, Some(PrefixSource::Disk), n - cut));
        restarted.store.flush();
    }
}

#[test]
fn a_restart_at_any_length_equals_an_uninterrupted_reading() {
    for cache in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0] {
        let args = |dir: &Path| args(cache, only_disk(dir));
        every_cut(|dir| Engine::open(&args(dir)).unwrap(), 150, &[1, 2, 3, 4, 63, 64, 65, 100, 149]);
        every_cut(|dir| Engine::load(Reference, &args(dir), Box::new(|_| {})).unwrap(), 20, &[2, 17]);
    }
}

/// The rows of Ling's cache are rotated by position, which a restored prefix continues.
#[test]
fn ling_continues_after_a_restart_at_any_length() {
    let dir = tempfile::tempdir().unwrap();
    let model = common::ling(dir.path(), "q8_0");
    for cache in [CacheFormat::F32, CacheFormat::Q8_0] {
        let args = |dir: &Path| LoadOptions { model: Some(model.clone()), ..args(cache, only_disk(dir)) };
        every_cut(|dir| Engine::open(&args(dir)).unwrap(), 150, &[1, 2, 63, 64, 65, 149]);
    }
}

#[test]
fn after_a_restart_only_new_tokens_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (document, first, second) = (tokens(1, 400), tokens(2, 20), tokens(3, 30));
    {
        let engine = engine(on_disk(dir.path()));
        let mut session = Session::new(&engine);
        session.snapshot_at(&[400]);
        read(&mut session, &[&document[..], &first].concat());
    }
    let engine = engine(on_disk(dir.path()));
    let mut session = Session::new(&engine);
    let prompt = [&document[..], &second].concat();
    assert_eq!(parts(read(&mut session, &prompt)), (400, Some(PrefixSource::Disk), 30));
    let other = [&document[..], &first].concat();
    assert_eq!(parts(read(&mut session, &other)), (400, Some(PrefixSource::Ram), 20), "it is in memory now");
}

/// Each namespace has its own files; names in the shared namespace do not depend on the others.
#[test]
fn namespaces_share_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let names = |dir: &Path| files(dir).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    let all = tokens(1, 300);
    let spaces = [Namespace::SHARED, Namespace::of(1), Namespace::of(2)];
    let mut before = Vec::new();
    for (i, space) in spaces.into_iter().enumerate() {
        let engine = engine(only_disk(dir.path()));
        let b = &*engine.backend;
        let (view, more) = (engine.store.within(space), [&all[..], &[5]].concat());
        assert!(view.longest_prefix(b, &more, None).is_none(), "{space:?} finds what is another's");
        assert!(view.farthest(|at, own| Some(at + own.len()), |_| true).is_none());
        let mut state = engine.model.state(b, engine.cache);
        state.import_rows(b, all.len(), &vec![i as u8; all.len() * engine.store.sizes().row as usize]);
        view.insert(b, &all, &state, &[], true);
        engine.store.flush();
        assert_eq!(names(dir.path()).len(), before.len() + 2);
        assert!(before.iter().all(|path| names(dir.path()).contains(path)));
        before = names(dir.path());
    }
    let restarted = engine(only_disk(dir.path()));
    for (i, space) in spaces.into_iter().enumerate() {
        let view = restarted.store.within(space);
        let hit = view.longest_prefix(&restarted.backend, &[&all[..], &[5]].concat(), None).unwrap();
        let mut rows = Vec::new();
        hit.state.export_rows(&*restarted.backend, 0..300, &mut rows);
        assert!(hit.len == 300 && rows.iter().all(|byte| *byte == i as u8), "{space:?}");
        assert_eq!(view.farthest(|at, own| Some(at + own.len()), |_| true), Some((300, all.clone())));
    }
    let other = tempfile::tempdir().unwrap();
    let alone = engine(only_disk(other.path()));
    let mut state = alone.model.state(&*alone.backend, alone.cache);
    state.import_rows(&*alone.backend, 300, &vec![0; 300 * alone.store.sizes().row as usize]);
    alone.store.insert(&*alone.backend, &all, &state, &[], true);
    alone.store.flush();
    let shared = names(other.path()).into_iter().map(|path| dir.path().join(path.file_name().unwrap()));
    assert!(shared.into_iter().all(|path| path.exists()), "the names of the shared namespace");
}

/// Rows are written once: a continued state adds its fixed part and the new rows.
#[test]
fn rows_are_shared_and_short_work_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(on_disk(dir.path()));
    let document = tokens(1, 900);
    let mut session = Session::new(&engine);
    let mut grown = |n: usize, save: bool| {
        read(&mut session, &document[..n]);
        if save {
            session.snapshot_to_disk();
        }
        engine.store.flush();
        (files(dir.path()).len(), bytes(dir.path()))
    };
    assert_eq!(grown(255, false), (0, 0), "less than is worth it");
    let (files, first) = grown(256, false);
    assert_eq!(files, 2);
    assert_eq!(grown(300, false), (2, first));
    let (files, second) = grown(301, true);
    assert_eq!(files, 4);
    let sizes = engine.store.sizes();
    let state = sizes.recurrent + sizes.logits + 96;
    assert_eq!(first, state + 256 * (sizes.row + 4) + 96);
    assert_eq!(second - first, state + 45 * (sizes.row + 4) + 96);
    assert_eq!(grown(301, true), (4, second), "it is there");
}

/// Rows of a long state are written in pieces, each once, and are restored exactly.
#[test]
fn long_states_are_written_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(only_disk(dir.path()));
    let (b, sizes, all) = (&*engine.backend, engine.store.sizes(), tokens(1, 20_100));
    let rows = |n: usize| (0..n * sizes.row as usize).map(|i| (i % 251) as u8).collect::<Vec<_>>();
    let state = |n: usize| {
        let mut state = engine.model.state(b, engine.cache);
        state.import_rows(b, n, &rows(n));
        state
    };
    let parts = |state: &models::hybrid::state::State<Cpu>| {
        let (mut rows, mut fixed) = (Vec::new(), Vec::new());
        state.export_rows(b, 0..state.position as usize, &mut rows);
        state.export_recurrent(b, &mut fixed);
        (rows, fixed)
    };
    for (n, written) in [(20_000, 4), (20_100, 6), (8192, 7), (20_100, 7)] {
        engine.store.insert(b, &all[..n], &state(n), &[], true);
        engine.store.flush();
        assert_eq!(files(dir.path()).len(), written, "{n} tokens");
        let hit = engine.store.longest_prefix(b, &[&all[..n], &[0]].concat(), None).unwrap();
        assert!(hit.len == n && parts(&hit.state) == parts(&state(n)), "{n} tokens come back");
    }
}

/// Rounded states take half the space; a restored one is close, and never mistaken for an exact one. The demonstration model
/// has meaningful states.
#[test]
fn states_in_16_bits() {
    let dir = tempfile::tempdir().unwrap();
    let open = |cache_state| {
        let store = StoreOptions { cache_state, ..only_disk(dir.path()) };
        Engine::open(&LoadOptions { model: None, ..args(CacheFormat::F32, store) }).unwrap()
    };
    let writer = open(StateType::F16);
    let text = include_str!("../../models/demo/prose/heldout.txt");
    let prompt = writer.tokenizer().unwrap().encode(&text[..8000]);
    let (first, sizes) = (&prompt[..300], writer.store.sizes());
    written(&writer, first);
    let expected = sizes.recurrent / 2 + sizes.logits + 96 + 300 * (sizes.row + 4) + 96;
    assert_eq!(bytes(dir.path()), expected);
    let probabilities = |logits: &[f32]| {
        let most = logits.iter().copied().fold(f32::MIN, f32::max);
        let weights: Vec<f64> = logits.iter().map(|x| f64::from(x - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / sum).collect::<Vec<_>>()
    };
    let engine = open(StateType::F16);
    let mut session = Session::new(&engine);
    let prefill = session.prefill(&prompt[..301], &mut go).unwrap();
    assert_eq!(parts(prefill), (300, Some(PrefixSource::Disk), 1));
    let (mut divergence, tokens) = (0.0, 301..400);
    for n in tokens.clone() {
        let exact: Vec<f32> = fresh(&engine, &prompt[..n]).into_iter().map(f32::from_bits).collect();
        let (p, q) = (probabilities(&exact), probabilities(session.logits()));
        divergence += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>() / tokens.len() as f64;
        session.decode(prompt[n]).unwrap();
    }
    println!("KL divergence after states in 16 bits: {divergence:.2e}");
    assert!(divergence > 0.0 && divergence < 1e-3, "KL divergence {divergence}");
    let other = open(StateType::F32);
    assert_eq!(parts(read(&mut Session::new(&other), &prompt[..320])), (0, None, 320));
}

/// Snapshots of another model or cache format are not used.
#[test]
fn foreign_snapshots_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = tokens(1, 50);
    let (first, q8_0) = (args(CacheFormat::F16, on_disk(dir.path())), CacheFormat::Q8_0);
    written(&Engine::open(&first).unwrap(), &prompt);
    let other = dir.path().join("other.gguf");
    let synth = ["synth", text(&other), "--preset", "tiny", "--type", "q8_0", "--layers", "4"];
    kimi_ok(&[&synth[..], &["--seed", "7"]].concat());
    for args in [
        LoadOptions { model: Some(other), ..first.clone() },
        LoadOptions { cache_type: Some(q8_0), ..first.clone() },
    ] {
        let engine = Engine::open(&args).unwrap();
        assert_eq!(read(&mut Session::new(&engine), &prompt).reused, 0);
    }
    let again = Engine::open(&first).unwrap();
    assert_eq!(read(&mut Session::new(&again), &prompt).reused, 50);
}

/// A thousand files with a flipped byte or a missing end: none is used, and each is logged in one line and removed.
#[test]
fn damaged_files_are_never_used() {
    let dir = tempfile::tempdir().unwrap();
    let document = tokens(1, 60);
    let writer = engine(on_disk(dir.path()));
    (1..=4).for_each(|n| written(&writer, &document[..10 * n]));
    drop(writer);
    let whole: Vec<_> = files(dir.path()).into_iter().map(|(p, _)| (fs::read(&p).unwrap(), p)).collect();
    assert_eq!(whole.len(), 8);
    let truth = engine(StoreOptions::in_memory());
    let logits: Vec<_> = (1..=4).map(|n| fresh(&truth, &document[..10 * n])).collect();
    let mut random = 1u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) as usize % below
    };
    let (reader, logged) = with_log(only_disk(dir.path()));
    for round in 0..1000 {
        let (good, path) = &whole[next(whole.len())];
        let mut bad = good.clone();
        match round % 10 {
            0 => bad.truncate(next(good.len())),
            _ => bad[next(good.len())] ^= 1 + next(255) as u8,
        }
        fs::write(path, &bad).unwrap();
        // Each state is looked up: the longest one, and the earlier ones by shorter prompts.
        for n in [4, 3, 2, 1] {
            if let Some(hit) = reader.store.longest_prefix(&reader.backend, &document[..10 * n], None) {
                assert_eq!(bits(&hit.logits), logits[hit.len / 10 - 1], "{}", path.display());
            }
        }
        let logged = std::mem::take(&mut *logged.lock().unwrap());
        assert_eq!(logged.len(), 1, "{}: {logged:?}", path.display());
        assert!(
            logged[0].ends_with("discarded, its tokens are prefilled again") && !path.exists(),
            "{logged:?}"
        );
        fs::write(path, good).unwrap();
    }
    let hit = reader.store.longest_prefix(&reader.backend, &document, None).unwrap();
    assert_eq!((hit.len, bits(&hit.logits)), (40, logits[3].clone()));
}

/// The cache tolerates that a user deletes any of its files.
#[test]
fn deleted_files_are_read_again() {
    let document = tokens(1, 60);
    for victim in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(only_disk(dir.path()));
        (1..=4).for_each(|n| written(&engine, &document[..10 * n]));
        fs::remove_file(&files(dir.path())[victim].0).unwrap();
        let mut session = Session::new(&engine);
        assert!(read(&mut session, &document).reused.is_multiple_of(10));
        session.snapshot_to_disk();
        engine.store.flush();
        assert_eq!(read(&mut Session::new(&engine), &document).computed, 0);
    }
}

#[test]
fn the_budget_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let model = engine(StoreOptions::nothing());
    let sizes = model.store.sizes();
    let one = sizes.recurrent + sizes.logits + 50 * (sizes.row + 4) + 2 * 96;
    let limited = StoreOptions { cache_size: Some(3 * one), ..only_disk(dir.path()) };
    let (engine, logged) = with_log(limited);
    for seed in 0..6 {
        written(&engine, &tokens(seed, 50));
        assert!(bytes(dir.path()) <= 3 * one);
        assert_eq!(read(&mut Session::new(&engine), &tokens(0, 50)).computed, 0, "used, so it stays");
    }
    assert_eq!(files(dir.path()).len(), 6);
    assert_eq!(*logged.lock().unwrap(), [""; 0]);
    written(&engine, &tokens(9, 3000));
    written(&engine, &tokens(8, 3000));
    let logged = logged.lock().unwrap();
    assert!(
        logged.len() == 1 && logged[0].contains("no space for a snapshot of "),
        "logged once: {logged:?}"
    );
    assert!(bytes(dir.path()) <= 3 * one);
}
