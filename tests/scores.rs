//! Counts the transfers of logits from the GPU to the host, on the emulator.

#[path = "../kernels/tests/common/emulator.rs"]
mod emulator;
#[path = "../kernels/tests/common/skip.rs"]
mod skip;

use kernels::backend::{Backend, CacheFormat};
use kernels::cuda::Cuda;
use kimi::commands::profiler::Profiled;
use kimi::generation::decoder::GenerationParams;
use kimi::generation::event::EngineEvent;
use kimi::generation::generate::{Request, generate_on};
use kimi::generation::sample::Sampling;
use kimi::prefix_cache::namespace::Namespace;
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use kimi::runtime::options::LoadOptions;
use kimi::runtime::session::Session;
use kimi::scheduler::{self, Client, Scheduler, SchedulerLimits};
use models::hybrid::mla::MlaPath;
use models::hybrid::{Outputs, Sequence};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PROMPT: [u32; 5] = [70, 80, 90, 100, 110];
/// Samples as `GREEDY` does, but requires the full row of logits.
const WITH_ALL: Sampling = Sampling { repeat_penalty: 2.0, ..GREEDY };
const GREEDY: Sampling = Sampling {
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repeat_penalty: 1.0,
    repeat_last_n: 0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    seed: 3,
};

/// Serializes the tests: while a backend captures a graph, no other work may reach the same emulator.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The demonstration model on the emulator; `None` and a note without a C++ compiler.
fn engine<B: Backend>(of: impl FnOnce(Cuda) -> B) -> Option<Engine<B>> {
    emulator::cuda()?;
    let args = LoadOptions {
        threads: Some(2),
        batch: Some(64),
        store: StoreOptions::nothing(),
        ..LoadOptions::default()
    };
    Some(Engine::load(of(Cuda::detect().unwrap()), &args, Box::new(|_| ())).unwrap())
}

/// The numbers of full-row reads and of top-k calls since the last call.
fn calls(engine: &Engine<Profiled<Cuda>>) -> [u64; 2] {
    calls_of(engine, ["read", "top_k"])
}

fn calls_of<const N: usize>(engine: &Engine<Profiled<Cuda>>, names: [&str; N]) -> [u64; N] {
    let ops = engine.backend.take();
    names.map(|name| ops.iter().filter(|op| op.0 == name).map(|op| op.1.calls).sum())
}

#[test]
fn a_reply_takes_the_best_logits_where_they_are_enough() {
    let _alone = alone();
    let Some(engine) = engine(Profiled::new) else { return };
    let reply = |sampling| {
        let mut ids = Vec::new();
        let params = GenerationParams { ignore_end: true, ..GenerationParams::new(6, sampling) };
        let request = Request { prompt: &PROMPT, params };
        generate_on(&mut Session::new(&engine), request, &mut |event| {
            if let EngineEvent::Token { token, .. } = event {
                ids.extend(token);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(ids.len(), 6);
        (ids, calls(&engine))
    };
    let few = Sampling { temperature: 1.0, top_k: 30, ..GREEDY };
    let flat = Sampling { temperature: 1.0, top_p: 0.999_999_9, ..GREEDY };
    for (best, all) in [(GREEDY, WITH_ALL), (few, Sampling { repeat_penalty: 2.0, ..few })] {
        let ((ids, few_calls), (expected, all_calls)) = (reply(best), reply(all));
        assert_eq!((ids, few_calls, all_calls), (expected, [0, 6], [6, 0]), "{best:?}");
    }
    let (ids, counts) = reply(flat);
    let (expected, _) = reply(Sampling { repeat_penalty: 2.0, ..flat });
    assert!(
        ids == expected && counts == [6, 6],
        "the top logits are not enough, so the full row is read: {counts:?}"
    );
}

/// Prefill reports a chunk when the GPU has finished it, not when it was launched.
#[test]
fn pieces_of_a_prompt_are_waited_for() {
    let _alone = alone();
    let Some(engine) = engine(Profiled::new) else { return };
    let prompt: Vec<u32> = (0..130).map(|i| 70 + i % 300).collect();
    let mut reports = 0;
    let mut session = Session::new(&engine);
    let prefill = session.prefill(&prompt, &mut |_, _| {
        reports += 1;
        assert_eq!(calls_of(&engine, ["wait", "top_k", "read"]), [1, 0, 0]);
        ControlFlow::Continue(())
    });
    assert_eq!((prefill.unwrap().computed, reports), (130, 3), "pieces of 64");
}

struct Listener(usize, Arc<Mutex<Vec<Vec<u32>>>>);

impl Client for Listener {
    fn on_event(&mut self, event: EngineEvent) {
        if let EngineEvent::Token { token, logprobs, .. } = event {
            self.1.lock().unwrap()[self.0].extend(token);
            assert_eq!(logprobs.is_some(), self.0 == 1, "only sequence 1 has logprobs");
        }
    }

    fn is_disconnected(&self) -> bool {
        false
    }
}

/// In a batch one top-k call serves all rows, and full rows are read only for the sequences that need them.
#[test]
fn rows_of_a_batch_are_read_one_by_one() {
    let _alone = alone();
    let Some(engine) = engine(Profiled::new) else { return };
    let run = |how: &[Sampling; 3]| {
        let tokens = Arc::new(Mutex::new(vec![Vec::new(); 3]));
        let mut scheduler = Scheduler::new(&engine, SchedulerLimits::new(3, 1 << 30));
        for (i, sampling) in how.iter().enumerate() {
            let params = GenerationParams {
                max_tokens: 5,
                sampling: *sampling,
                bias: Arc::default(),
                constraint: None,
                stops: Vec::new(),
                ignore_end: true,
            };
            let client = Box::new(Listener(i, tokens.clone()));
            let prompt = (0..6).map(|j| 300 + (i as u32 * 191 + j * 17) % 500).collect();
            let logprobs = (i == 1).then_some(2);
            let namespace = Namespace::SHARED;
            scheduler.submit(scheduler::SequenceRequest {
                prompt,
                snapshot_lengths: Vec::new(),
                question: None,
                params,
                logprobs,
                tenant: 1,
                namespace,
                client,
            });
        }
        while !scheduler.idle() {
            scheduler.step(&mut |_| ());
        }
        (tokens.lock().unwrap().clone(), calls(&engine))
    };
    let few = Sampling { temperature: 1.0, top_k: 40, ..GREEDY };
    let (tokens, counts) = run(&[GREEDY, few, few]);
    assert!(tokens[0] != tokens[1] && tokens[1] != tokens[2] && tokens[0] != tokens[2], "{tokens:?}");
    assert_eq!(counts, [5, 10], "a row a step is read; the best one and the best few are found once a step");
    let (expected, counts) = run(&[GREEDY, few, few].map(|how| Sampling { repeat_penalty: 2.0, ..how }));
    assert_eq!((tokens, counts), (expected, [15, 0]));
}

/// Logits stay unchanged by later steps, whether those run op by op or as captured or replayed graphs.
#[test]
fn held_logits_stay() {
    let _alone = alone();
    let Some(engine) = engine(|cuda| cuda) else { return };
    let Engine { backend, model, .. } = &engine;
    let steps = |held: bool| {
        let mut state = model.state(backend, CacheFormat::F16);
        let (mut there, mut values) = (Vec::new(), Vec::new());
        for id in 100..110 {
            let (tokens, state) = (&[id][..], &mut state);
            let mut batch = [Sequence { tokens, state, outputs: Outputs::Last, mla_path: MlaPath::Absorbed }];
            let logits = model.forward(&**backend, &mut batch, &mut ()).unwrap();
            if held {
                there.push(logits)
            } else {
                values.push((backend.read(&logits), backend.top_k(&logits, 9)))
            }
        }
        values.extend(there.iter().map(|logits| (backend.read(logits), backend.top_k(logits, 9))));
        values
    };
    let (at_once, held) = (steps(false), steps(true));
    assert!(at_once == held && backend.replayed() > 10, "{} replayed", backend.replayed());
}
