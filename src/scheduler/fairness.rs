//! Tests fair shares of slots and memory, pauses and preemption: waits are bounded and tokens do not change.

use super::admission::QUANTUM;
use super::tests::engine;
use super::*;
use crate::generation::sample::Sampling;
use crate::prefix_cache::options::StoreOptions;
use kernels::cpu::Cpu;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// The events that a client received, and whether it reads.
#[derive(Default)]
struct Received {
    tokens: Mutex<Vec<u32>>,
    done: Mutex<Option<Stats>>,
    unread: AtomicBool,
}

impl Received {
    fn tokens(&self) -> Vec<u32> {
        self.tokens.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.tokens.lock().unwrap().len()
    }

    fn ended(&self) -> Option<FinishReason> {
        self.done.lock().unwrap().as_ref().map(|stats| stats.ended.clone())
    }

    fn reused(&self) -> usize {
        self.done.lock().unwrap().as_ref().unwrap().prefill.reused
    }
}

struct RecordingClient(Arc<Received>);

impl Client for RecordingClient {
    fn on_event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Token { token, .. } => self.0.tokens.lock().unwrap().extend(token),
            EngineEvent::Finished(stats) => *self.0.done.lock().unwrap() = Some(stats),
            EngineEvent::Prefill { .. } => {}
        }
    }

    fn is_disconnected(&self) -> bool {
        false
    }

    fn is_ready(&self) -> bool {
        !self.0.unread.load(Ordering::Relaxed)
    }
}

/// A request whose tokens depend on its seed and on the preceding tokens.
fn request(
    tenant: u64,
    prompt: &Arc<[u32]>,
    max_tokens: usize,
    seed: u64,
) -> (SequenceRequest, Arc<Received>) {
    let seen = Arc::new(Received::default());
    let sampling =
        Sampling { temperature: 1.0, repeat_penalty: 1.2, repeat_last_n: 9, seed, ..Sampling::greedy() };
    let params = GenerationParams { ignore_end: true, ..GenerationParams::new(max_tokens, sampling) };
    let client = Box::new(RecordingClient(seen.clone()));
    let (prompt, namespace) = (prompt.clone(), Namespace::SHARED);
    (
        SequenceRequest {
            prompt,
            snapshot_lengths: Vec::new(),
            question: None,
            params,
            logprobs: None,
            tenant,
            namespace,
            client,
        },
        seen,
    )
}

fn prompt(len: u32, first: u32) -> Arc<[u32]> {
    (0..len).map(|i| 70 + (first + i * 37) % 900).collect()
}

fn run_all(scheduler: &mut Scheduler<'_, Cpu>) {
    while !scheduler.idle() {
        scheduler.step(&mut |_| ());
    }
}

/// The tokens of a request that runs alone.
fn alone(engine: &Engine<Cpu>, prompt: &Arc<[u32]>, max_tokens: usize, seed: u64) -> Vec<u32> {
    let mut scheduler = Scheduler::new(engine, SchedulerLimits::new(1, 1 << 30));
    let (request, seen) = request(1, prompt, max_tokens, seed);
    scheduler.submit(request);
    run_all(&mut scheduler);
    seen.tokens()
}

/// Tenant 1 occupies everything with long replies. Tenant 2 gets its first token within `steps`, and every reply has the
/// tokens that it has alone.
fn first_token_within(
    steps: usize,
    engine: &Engine<Cpu>,
    limits: SchedulerLimits,
    (requests, long): (u32, usize),
) {
    let mut scheduler = Scheduler::new(engine, limits);
    let first: Vec<_> = (0..requests).map(|i| (prompt(20, i), u64::from(i))).collect();
    let firsts: Vec<_> = first.iter().map(|(prompt, seed)| request(1, prompt, long, *seed)).collect();
    let seen: Vec<Arc<Received>> = firsts.iter().map(|(_, seen)| seen.clone()).collect();
    firsts.into_iter().for_each(|(request, _)| scheduler.submit(request));
    for _ in 0..8 {
        scheduler.step(&mut |_| ());
    }
    assert!(seen[0].count() > 1 && seen.last().unwrap().count() == 0, "the first run and the last wait");
    let (late, second) = request(2, &prompt(9, 400), 5, 9);
    scheduler.submit(late);
    let mut waited = 0;
    while second.count() == 0 {
        scheduler.step(&mut |_| ());
        waited += 1;
        assert!(waited <= steps, "no token after {waited} steps");
    }
    run_all(&mut scheduler);
    assert_eq!(second.tokens(), alone(engine, &prompt(9, 400), 5, 9));
    for ((prompt, seed), seen) in first.iter().zip(seen) {
        assert_eq!(seen.tokens(), alone(engine, prompt, long, *seed));
        assert_eq!(seen.ended(), Some(FinishReason::Length));
    }
}

#[test]
fn a_waiting_tenant_preempts_one_that_holds_all_slots() {
    for store in [StoreOptions::nothing(), StoreOptions::in_memory()] {
        first_token_within(2, &engine(store), SchedulerLimits::new(4, 1 << 30), (6, 40));
    }
}

#[test]
fn tenants_share_a_single_slot_in_turn() {
    for store in [StoreOptions::nothing(), StoreOptions::in_memory()] {
        first_token_within(QUANTUM + 3, &engine(store), SchedulerLimits::new(1, 1 << 30), (2, 200));
    }
}

/// States of preempted sequences are freed and restored from the prefix cache.
#[test]
fn a_waiting_tenant_preempts_one_that_holds_all_memory() {
    let engine = engine(StoreOptions::in_memory());
    let bytes = 4 * StateBytes::new(&engine).of(80);
    first_token_within(2, &engine, SchedulerLimits::new(32, bytes), (6, 60));
}

#[test]
fn an_unread_reply_is_paused_and_then_ended() {
    let engine = engine(StoreOptions::nothing());
    let patient = SchedulerLimits { unread: Duration::from_secs(3600), ..SchedulerLimits::new(1, 1 << 30) };
    let mut scheduler = Scheduler::new(&engine, patient);
    let prompts = [prompt(20, 1), prompt(20, 2)];
    let [(unread, unread_seen), (good, good_seen)] = [0, 1].map(|i| request(1, &prompts[i], 30, 7));
    scheduler.submit(unread);
    for _ in 0..6 {
        scheduler.step(&mut |_| ());
    }
    unread_seen.unread.store(true, Ordering::Relaxed);
    let before = unread_seen.count();
    assert!(!scheduler.step(&mut |_| ()) && !scheduler.idle(), "nothing to compute, and not at the end");
    scheduler.submit(good);
    while good_seen.ended().is_none() {
        scheduler.step(&mut |_| ());
    }
    assert_eq!(good_seen.tokens(), alone(&engine, &prompts[1], 30, 7));
    assert_eq!(unread_seen.count(), before, "tokens for a client that does not read");
    unread_seen.unread.store(false, Ordering::Relaxed);
    run_all(&mut scheduler);
    assert_eq!(unread_seen.tokens(), alone(&engine, &prompts[0], 30, 7));

    let impatient = SchedulerLimits { unread: Duration::ZERO, ..patient };
    let mut scheduler = Scheduler::new(&engine, impatient);
    let (unread, seen) = request(1, &prompts[0], 30, 7);
    seen.unread.store(true, Ordering::Relaxed);
    scheduler.submit(unread);
    run_all(&mut scheduler);
    assert_eq!((seen.count(), seen.ended()), (1, Some(FinishReason::Unread(Duration::ZERO))));
}

#[test]
fn stop_reports_to_every_client() {
    let engine = engine(StoreOptions::in_memory());
    let mut scheduler = Scheduler::new(&engine, SchedulerLimits::new(2, 1 << 30));
    let shared = prompt(600, 1);
    // One prefills, one waits for that prefix, and two wait in the queue.
    let requests: Vec<_> = (0..4).map(|i| request(1, &shared, 30, i)).collect();
    let seen: Vec<Arc<Received>> = requests.iter().map(|(_, seen)| seen.clone()).collect();
    requests.into_iter().for_each(|(request, _)| scheduler.submit(request));
    scheduler.step(&mut |_| ());
    assert_eq!((scheduler.slots.len(), scheduler.prefix_waiters.len(), scheduler.queue.len()), (1, 1, 2));
    scheduler.stop();
    let (late, late_seen) = request(1, &shared, 30, 9);
    scheduler.submit(late);
    for seen in seen.iter().chain([&late_seen]) {
        assert_eq!(seen.ended(), Some(FinishReason::Cancelled));
    }
}

#[test]
fn a_prompt_is_not_reused_across_namespaces() {
    let engine = engine(StoreOptions::in_memory());
    let shared = prompt(600, 1);
    let run = |namespaces: &[u64]| {
        let mut scheduler = Scheduler::new(&engine, SchedulerLimits::new(8, 1 << 30));
        let seen = namespaces.iter().map(|namespace| {
            let (mut request, seen) = request(1, &shared, 4, 3);
            request.namespace = Namespace::of(*namespace);
            scheduler.submit(request);
            seen
        });
        let seen: Vec<_> = seen.collect();
        run_all(&mut scheduler);
        assert!(seen.iter().all(|s| s.tokens() == seen[0].tokens()));
        seen.iter().map(|s| s.reused()).collect::<Vec<_>>()
    };
    assert_eq!(run(&[1, 2, 1]), [0, 0, 600], "at the same time");
    assert_eq!(run(&[2, 3]), [600, 0], "one after the other");
}

/// Without a prefix cache, and with memory for one sequence, a turn computes more than its sequence had before.
#[test]
fn sequences_that_free_each_others_states_end() {
    let engine = engine(StoreOptions::nothing());
    let bytes = StateBytes::new(&engine).of(1000);
    let mut scheduler = Scheduler::new(&engine, SchedulerLimits::new(1, bytes));
    let prompts = [prompt(600, 1), prompt(600, 2)];
    let seen = [0, 1].map(|i| {
        let (request, seen) = request(i as u64, &prompts[i], 20, 5);
        scheduler.submit(request);
        seen
    });
    let mut steps = 0;
    while !scheduler.idle() {
        scheduler.step(&mut |_| ());
        steps += 1;
        assert!(steps < 200, "no end after {steps} steps");
    }
    for (prompt, seen) in prompts.iter().zip(seen) {
        assert_eq!(seen.tokens(), alone(&engine, prompt, 20, 5));
    }
}

/// Random arrivals, tenants, limits, pauses and prompts. Some prompts end in materialized attention, and one reply would.
/// Each request has the tokens that it has alone.
#[test]
fn preemption_does_not_change_tokens() {
    let mut random = 7u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    let lens = [3, 20, 300, 1300, crate::runtime::attention_path::MATERIALIZE_AFTER as u32 - 5];
    let kinds: Vec<(Arc<[u32]>, usize)> =
        (0..10u32).map(|i| (prompt(lens[i as usize % 5], 11 * (i / 5)), 8 + 5 * i as usize)).collect();
    let fresh = engine(StoreOptions::nothing());
    for round in 0..4 {
        let store = if round % 3 == 0 { StoreOptions::nothing() } else { StoreOptions::in_memory() };
        let kept = engine(store);
        let bytes = StateBytes::new(&kept).of(1500) * (1 + next(3));
        let limits = SchedulerLimits {
            unread: Duration::from_secs(3600),
            ..SchedulerLimits::new(1 + next(3) as usize, bytes)
        };
        let mut scheduler = Scheduler { decode_interval: Duration::ZERO, ..Scheduler::new(&kept, limits) };
        let mut late: Vec<_> = kinds.iter().map(|(prompt, max)| request(next(3), prompt, *max, 5)).collect();
        let seen: Vec<Arc<Received>> = late.iter().map(|(_, seen)| seen.clone()).collect();
        while !scheduler.idle() || !late.is_empty() {
            if next(4) == 0 && !late.is_empty() {
                scheduler.submit(late.remove(next(late.len() as u64) as usize).0);
            }
            let one = &seen[next(seen.len() as u64) as usize];
            one.unread.store(next(3) == 0, Ordering::Relaxed);
            scheduler.step(&mut |_| ());
        }
        for ((prompt, max), seen) in kinds.iter().zip(&seen) {
            assert_eq!(
                seen.tokens(),
                alone(&fresh, prompt, *max, 5),
                "round {round}, {} tokens",
                prompt.len()
            );
        }
    }
}
