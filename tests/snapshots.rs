//! What was read is not read again: prompts that share a beginning, in any order, give the logits of an
//! uninterrupted reading to the bit, and only their new tokens are processed.

mod common;

use common::{kimi_ok, text};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use kernels::reference::Reference;
use kimi::engine::{CacheType, Engine, EngineArgs};
use kimi::session::{Prefill, Session};
use kimi::snapshot::options::StoreOptions;
use kimi::snapshot::{Sizes, Source};
use models::kimi_linear::{Outputs, Sequence};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;

static MODEL: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.gguf");
    kimi_ok(&["synth", text(&file), "--preset", "tiny", "--type", "q8_0", "--layers", "4"]);
    (dir, file)
});

const VOCAB: u32 = 1536;

fn args(cache_type: CacheType, store: StoreOptions) -> EngineArgs {
    EngineArgs { model: MODEL.1.clone(), threads: Some(2), ctx: None, batch: 64, cache_type, store }
}

fn engine(store: StoreOptions) -> Engine<Cpu> {
    Engine::open(&args(CacheType::F16, store)).unwrap()
}

/// `n` tokens that look random; another seed, others from the start.
fn tokens(seed: u32, n: usize) -> Vec<u32> {
    let next = |x: &mut u32| {
        *x = x.wrapping_mul(1664525).wrapping_add(1013904223);
        Some((*x >> 8) % VOCAB)
    };
    std::iter::repeat_with(|| ()).scan(seed * 7919 + 1, |x, ()| next(x)).take(n).collect()
}

fn go(_: usize, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(!logits.is_empty());
    logits.iter().map(|x| x.to_bits()).collect()
}

/// The logits after a prompt that was read at once, with nothing kept from before.
fn fresh<B: Backend>(engine: &Engine<B>, prompt: &[u32]) -> Vec<u32> {
    let mut state = engine.model.state(&engine.backend, engine.cache);
    let mut batch = [Sequence { tokens: prompt, state: &mut state, outputs: Outputs::Last }];
    let logits = engine.model.forward(&engine.backend, &mut batch, &mut ());
    bits(&engine.backend.read(&logits.unwrap()))
}

fn read<B: Backend>(session: &mut Session<'_, B>, prompt: &[u32]) -> Prefill {
    let prefill = session.advance_to(prompt, &mut go).unwrap();
    assert_eq!(session.tokens(), prompt);
    assert_eq!(bits(session.logits()), fresh(session.engine(), prompt), "{prefill:?}");
    prefill
}

fn parts(p: Prefill) -> (usize, Option<Source>, usize) {
    (p.reused, p.source, p.computed)
}

#[test]
fn edits_go_to_the_snapshot_before_the_difference() {
    let engine = engine(StoreOptions::default());
    let mut session = Session::new(&engine);
    let (document, first, second) = (tokens(1, 300), tokens(2, 20), tokens(3, 30));
    session.mark(&[300]);
    assert_eq!(parts(read(&mut session, &[&document[..], &first].concat())), (0, None, 320));
    let other = [&document[..], &second].concat();
    assert_eq!(parts(read(&mut session, &other)), (300, Some(Source::Ram), 30), "another question");
    let longer = [&other[..], &first].concat();
    assert_eq!(parts(read(&mut session, &longer)), (330, Some(Source::Live), 20), "a turn more");
    assert_eq!(parts(read(&mut session, &other)), (330, Some(Source::Ram), 0), "undo");
    assert_eq!(parts(read(&mut session, &other)), (330, Some(Source::Live), 0), "the same again");
    assert_eq!(parts(read(&mut session, &longer)), (350, Some(Source::Ram), 0), "redo");
    let stripped = [&longer[..340], &second].concat();
    assert_eq!(parts(read(&mut session, &stripped)), (330, Some(Source::Ram), 40), "inside a turn");
    let mut another = Session::new(&engine);
    assert_eq!(parts(read(&mut another, &stripped)), (370, Some(Source::Ram), 0), "another session");
    assert_eq!(parts(read(&mut another, &document[..299])), (0, None, 299), "before every snapshot");
    assert_eq!(parts(read(&mut session, &[&stripped[..], &[7]].concat())), (370, Some(Source::Live), 1));
}

/// Wherever a reading stops, the next goes on from there.
fn every_cut<B: Backend>(open: impl Fn() -> Engine<B>, cuts: &[usize]) {
    let document = tokens(4, 150);
    for &cut in cuts {
        let engine = open();
        let mut session = Session::new(&engine);
        session.advance_to(&document[..cut], &mut go).unwrap();
        // The state is carried on after it was kept: the snapshot must not see that.
        session.advance_to(&[&document[..cut], &tokens(5, 70)].concat(), &mut go).unwrap();
        let mut next = Session::new(&engine);
        assert_eq!(parts(read(&mut next, &document)), (cut, Some(Source::Ram), 150 - cut));
    }
}

#[test]
fn a_snapshot_of_any_length_equals_an_uninterrupted_reading() {
    for cache in [CacheType::F32, CacheType::F16, CacheType::Q8_0] {
        let args = args(cache, StoreOptions::default());
        every_cut(|| Engine::open(&args).unwrap(), &[1, 2, 3, 4, 15, 16, 63, 64, 65, 100, 149]);
        every_cut(|| Engine::load(Reference, &args.model, &args).unwrap(), &[2, 140]);
    }
}

#[test]
fn a_stopped_reading_is_kept() {
    let engine = engine(StoreOptions::default());
    let document = tokens(6, 300);
    let mut stop = |done, _| if done >= 128 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let stopped = Session::new(&engine).advance_to(&document, &mut stop).unwrap();
    assert!(stopped.stopped && stopped.computed == 128);
    let mut again = Session::new(&engine);
    // Of exactly what was read there are no logits yet, so that is read again; more goes on from there.
    assert_eq!(parts(read(&mut again, &document[..128])), (0, None, 128));
    assert_eq!(parts(read(&mut again, &document)), (128, Some(Source::Live), 172));
}

#[test]
fn memory_is_bounded_and_the_oldest_goes() {
    let args = args(CacheType::F16, StoreOptions::default());
    let model = engine(StoreOptions::default());
    let sizes = Sizes::of(&model.backend, &model.model.config, CacheFormat::F16);
    let one = sizes.recurrent + sizes.logits + 256 * sizes.row + 100 * (sizes.row + 4);
    let limited = Engine::open(&EngineArgs { store: StoreOptions { cache_ram: Some(3 * one) }, ..args });
    let limited = limited.unwrap();
    for seed in 0..6 {
        read(&mut Session::new(&limited), &tokens(seed, 100));
        read(&mut Session::new(&limited), &tokens(0, 100));
        assert!(limited.store.ram_bytes() <= 3 * one);
        assert_eq!(limited.store.ram_snapshots(), 3.min(seed as usize + 1));
    }
    let reused = |seed| read(&mut Session::new(&limited), &tokens(seed, 100)).reused;
    assert_eq!([0, 5, 4, 1].map(reused), [100, 100, 100, 0]);
    let none = engine(StoreOptions::nothing());
    read(&mut Session::new(&none), &tokens(0, 100));
    assert_eq!((none.store.ram_snapshots(), none.store.ram_bytes()), (0, 0));
}

#[test]
fn threads_share_a_store() {
    let engine = engine(StoreOptions::default());
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let engine = &engine;
            scope.spawn(move || {
                let mut session = Session::new(engine);
                for turn in 0..6 {
                    let shared = tokens(9, 60 + 10 * turn);
                    read(&mut session, &[&shared[..], &tokens(seed, 5)].concat());
                }
            });
        }
    });
    let after = read(&mut Session::new(&engine), &[&tokens(9, 110)[..], &tokens(3, 5)].concat());
    assert_eq!(after.computed, 0);
}
