//! Batches in which some replies must match the grammar of many tools, with masks computed inline or concurrently with the
//! model.

use crate::generate;
use crate::support::engine;
use kimi::generation::decoder::GenerationParams;
use kimi::generation::event::EngineEvent;
use kimi::generation::grammar::Grammars;
use kimi::generation::sample::{Constraint, Sampling};
use kimi::prefix_cache::namespace::Namespace;
use kimi::scheduler::{Client, Scheduler, SchedulerLimits, SequenceRequest};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The number of constrained replies, and of the tokens of each.
const BOUND: usize = 4;
const TOKENS: usize = 60;

/// The outcome of a scheduler.
pub struct MaskRun {
    pub in_line: bool,
    /// The tokens of each reply.
    pub tokens: Vec<Vec<u32>>,
    /// Times between the tokens of the unconstrained reply while the others run.
    pub gaps: Vec<Duration>,
}

/// Computes masks inline, so that the caller waits for them.
struct InLine(Box<dyn Constraint>);

impl Constraint for InLine {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        self.0.allowed()
    }
    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.0.accept(token)
    }
}

type TokenTimes = Arc<Mutex<Vec<Vec<(Instant, u32)>>>>;

struct TokenRecorder(usize, TokenTimes);

impl Client for TokenRecorder {
    fn on_event(&mut self, event: EngineEvent) {
        if let EngineEvent::Token { token: Some(token), .. } = event {
            self.1.lock().unwrap()[self.0].push((Instant::now(), token));
        }
    }
    fn is_disconnected(&self) -> bool {
        false
    }
}

/// Runs an unconstrained reply in a scheduler with the constrained ones.
pub fn run(in_line: bool) -> MaskRun {
    let engine = engine();
    let tokenizer = engine.tokenizer.as_ref().unwrap();
    let grammars = Grammars::new(tokenizer, engine.model.config.vocab).unwrap();
    let compiled = grammars.compile(&generate::tools(128, 50), &|| false).unwrap();
    let events: TokenTimes = Arc::new(Mutex::new(vec![Vec::new(); BOUND + 1]));
    let mut scheduler = Scheduler::new(&engine, SchedulerLimits::new(BOUND + 1, 1 << 30));
    for i in 0..=BOUND {
        let constraint = (i > 0).then(|| compiled.constraint());
        let constraint = match constraint {
            Some(constraint) if in_line => Some(Box::new(InLine(constraint)) as Box<dyn Constraint>),
            other => other,
        };
        let sampling =
            Sampling { temperature: 1.0, seed: i as u64, ..crate::support::options().sampling.into() };
        let params = GenerationParams {
            max_tokens: if i == 0 { 2 * TOKENS } else { TOKENS },
            sampling,
            bias: Arc::default(),
            constraint,
            stops: Vec::new(),
            ignore_end: i == 0,
        };
        let client = Box::new(TokenRecorder(i, events.clone()));
        scheduler.submit(SequenceRequest {
            prompt: vec![70, 80, 90].into(),
            snapshot_lengths: vec![],
            question: None,
            params,
            logprobs: None,
            tenant: i as u64,
            namespace: Namespace::SHARED,
            client,
        });
    }
    while !scheduler.idle() {
        scheduler.step(&mut |_| ());
    }
    let events = events.lock().unwrap();
    let last = events[1..].iter().filter_map(|reply| reply.last()).map(|(at, _)| *at).max().unwrap();
    let free: Vec<Instant> = events[0].iter().map(|(at, _)| *at).filter(|at| *at <= last).collect();
    MaskRun {
        in_line,
        tokens: events.iter().map(|reply| reply.iter().map(|(_, token)| *token).collect()).collect(),
        gaps: free.windows(2).map(|pair| pair[1] - pair[0]).collect(),
    }
}
