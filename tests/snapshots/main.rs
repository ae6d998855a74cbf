//! Prefix caching: prompts that share a prefix, in any order, give bit-identical logits to uninterrupted prefill, and only
//! their new tokens are computed.

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod hostile;
mod memory;
mod processes;

use common::{kimi_ok, text};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use kimi::prefix_cache::PrefixSource;
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use kimi::runtime::options::LoadOptions;
use kimi::runtime::session::{Prefill, Session};
use models::hybrid::{Outputs, Sequence};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;

static MODEL: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    if let Some(file) = std::env::var_os("KIMI_TEST_MODEL") {
        return (dir, file.into()); // of the process that started this one
    }
    let file = dir.path().join("tiny.gguf");
    kimi_ok(&["synth", text(&file), "--preset", "tiny", "--type", "q8_0", "--layers", "4"]);
    (dir, file)
});

const VOCAB: u32 = 1536;

fn args(cache_type: CacheFormat, store: StoreOptions) -> LoadOptions {
    LoadOptions {
        model: Some(MODEL.1.clone()),
        threads: Some(2),
        batch: Some(64),
        cache_type: Some(cache_type),
        store,
        ..LoadOptions::default()
    }
}

/// An engine that must log nothing.
fn engine(store: StoreOptions) -> Engine<Cpu> {
    Engine::open_with(&args(CacheFormat::F16, store), Box::new(|line| panic!("{line}"))).unwrap()
}

/// `n` pseudo-random tokens, which differ from the first one on between seeds.
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

/// The logits after a prompt, prefilled in as few steps as possible without a cached prefix.
fn fresh<B: Backend>(engine: &Engine<B>, prompt: &[u32]) -> Vec<u32> {
    let mut state = engine.model.state(&engine.backend, engine.cache);
    let (mut logits, mut at) = (None, 0);
    while at < prompt.len() {
        let (form, end) = engine.mla_path(prompt, at..prompt.len(), None);
        let tokens = &prompt[at..end];
        let mut batch = [Sequence { tokens, state: &mut state, outputs: Outputs::Last, mla_path: form }];
        logits = engine.model.forward(&engine.backend, &mut batch, &mut ());
        at = end;
    }
    bits(&engine.backend.read(&logits.unwrap()))
}

fn read<B: Backend>(session: &mut Session<'_, B>, prompt: &[u32]) -> Prefill {
    let prefill = session.prefill(prompt, &mut go).unwrap();
    assert_eq!(session.tokens(), prompt);
    assert_eq!(bits(session.logits()), fresh(session.engine(), prompt), "{prefill:?}");
    prefill
}

fn parts(p: Prefill) -> (usize, Option<PrefixSource>, usize) {
    (p.reused, p.source, p.computed)
}
