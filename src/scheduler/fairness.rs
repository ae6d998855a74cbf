//! Shares of slots and memory, pauses and preemption: bounded waits, and the same tokens whatever happens.

use super::admission::QUANTUM;
use super::tests::engine;
use super::*;
use crate::generation::sample::Sampling;
use crate::prefix_cache::options::StoreOptions;
use kernels::cpu::Cpu;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// What a job's client was told, and whether it reads.
#[derive(Default)]
struct Seen {
    tokens: Mutex<Vec<u32>>,
    done: Mutex<Option<Stats>>,
    deaf: AtomicBool,
}

impl Seen {
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

struct Reader(Arc<Seen>);

impl Client for Reader {
    fn hear(&mut self, update: Update) {
        match update {
            Update::Chosen { token, .. } => self.0.tokens.lock().unwrap().extend(token),
            Update::Done(stats) => *self.0.done.lock().unwrap() = Some(stats),
            Update::Read { .. } => {}
        }
    }

    fn gone(&self) -> bool {
        false
    }

    fn ready(&self) -> bool {
        !self.0.deaf.load(Ordering::Relaxed)
    }
}

/// A job whose tokens depend on its seed and on those before them.
fn job(owner: u64, prompt: &Arc<[u32]>, max_tokens: usize, seed: u64) -> (Job, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let sampling =
        Sampling { temperature: 1.0, repeat_penalty: 1.2, repeat_last_n: 9, seed, ..Sampling::greedy() };
    let rules = GenerationParams {
        max_tokens,
        sampling,
        bias: Arc::default(),
        constraint: None,
        stops: Vec::new(),
        ignore_end: true,
    };
    let client = Box::new(Reader(seen.clone()));
    let (prompt, namespace) = (prompt.clone(), Namespace::SHARED);
    (Job { prompt, marks: Vec::new(), rules, logprobs: None, owner, namespace, client }, seen)
}

fn prompt(len: u32, first: u32) -> Arc<[u32]> {
    (0..len).map(|i| 70 + (first + i * 37) % 900).collect()
}

fn run_all(batch: &mut Batch<'_, Cpu>) {
    while !batch.idle() {
        batch.step(&mut |_| ());
    }
}

/// The tokens of a job that has everything for itself.
fn alone(engine: &Engine<Cpu>, prompt: &Arc<[u32]>, max_tokens: usize, seed: u64) -> Vec<u32> {
    let mut batch = Batch::new(engine, Limits::new(1, 1 << 30));
    let (job, seen) = job(1, prompt, max_tokens, seed);
    batch.submit(job);
    run_all(&mut batch);
    seen.tokens()
}

/// Owner 1 has all there is with long replies; owner 2 has its first token after so many steps, and all have the tokens
/// that they have alone.
fn waits_at_most(steps: usize, engine: &Engine<Cpu>, limits: Limits, (jobs, long): (u32, usize)) {
    let mut batch = Batch::new(engine, limits);
    let first: Vec<_> = (0..jobs).map(|i| (prompt(20, i), u64::from(i))).collect();
    let firsts: Vec<_> = first.iter().map(|(prompt, seed)| job(1, prompt, long, *seed)).collect();
    let seen: Vec<Arc<Seen>> = firsts.iter().map(|(_, seen)| seen.clone()).collect();
    firsts.into_iter().for_each(|(job, _)| batch.submit(job));
    for _ in 0..8 {
        batch.step(&mut |_| ());
    }
    assert!(seen[0].count() > 1 && seen.last().unwrap().count() == 0, "the first run and the last wait");
    let (late, second) = job(2, &prompt(9, 400), 5, 9);
    batch.submit(late);
    let mut waited = 0;
    while second.count() == 0 {
        batch.step(&mut |_| ());
        waited += 1;
        assert!(waited <= steps, "no token after {waited} steps");
    }
    run_all(&mut batch);
    assert_eq!(second.tokens(), alone(engine, &prompt(9, 400), 5, 9));
    for ((prompt, seed), seen) in first.iter().zip(seen) {
        assert_eq!(seen.tokens(), alone(engine, prompt, long, *seed));
        assert_eq!(seen.ended(), Some(FinishReason::Length));
    }
}

#[test]
fn an_owner_that_waits_gets_a_slot_of_one_that_has_them_all() {
    for store in [StoreOptions::nothing(), StoreOptions::in_memory()] {
        waits_at_most(2, &engine(store), Limits::new(4, 1 << 30), (6, 40));
    }
}

#[test]
fn a_lone_slot_goes_by_turns() {
    for store in [StoreOptions::nothing(), StoreOptions::in_memory()] {
        waits_at_most(QUANTUM + 3, &engine(store), Limits::new(1, 1 << 30), (2, 200));
    }
}

/// The states of those that make room are freed, and restored from the prefix cache.
#[test]
fn an_owner_that_waits_gets_memory_of_one_that_has_it_all() {
    let engine = engine(StoreOptions::in_memory());
    let bytes = 4 * StateBytes::new(&engine).of(80);
    waits_at_most(2, &engine, Limits::new(32, bytes), (6, 60));
}

#[test]
fn a_client_that_does_not_read_waits_alone_and_then_loses_its_reply() {
    let engine = engine(StoreOptions::nothing());
    let patient = Limits { unread: Duration::from_secs(3600), ..Limits::new(1, 1 << 30) };
    let mut batch = Batch::new(&engine, patient);
    let prompts = [prompt(20, 1), prompt(20, 2)];
    let [(deaf, deaf_seen), (good, good_seen)] = [0, 1].map(|i| job(1, &prompts[i], 30, 7));
    batch.submit(deaf);
    for _ in 0..6 {
        batch.step(&mut |_| ());
    }
    deaf_seen.deaf.store(true, Ordering::Relaxed);
    let before = deaf_seen.count();
    assert!(!batch.step(&mut |_| ()) && !batch.idle(), "nothing to compute, and not at the end");
    batch.submit(good);
    while good_seen.ended().is_none() {
        batch.step(&mut |_| ());
    }
    assert_eq!(good_seen.tokens(), alone(&engine, &prompts[1], 30, 7));
    assert_eq!(deaf_seen.count(), before, "tokens for a client that does not read");
    deaf_seen.deaf.store(false, Ordering::Relaxed);
    run_all(&mut batch);
    assert_eq!(deaf_seen.tokens(), alone(&engine, &prompts[0], 30, 7));

    let hasty = Limits { unread: Duration::ZERO, ..patient };
    let mut batch = Batch::new(&engine, hasty);
    let (deaf, seen) = job(1, &prompts[0], 30, 7);
    seen.deaf.store(true, Ordering::Relaxed);
    batch.submit(deaf);
    run_all(&mut batch);
    assert_eq!((seen.count(), seen.ended()), (1, Some(FinishReason::Unread(Duration::ZERO))));
}

#[test]
fn every_client_is_told_of_the_end() {
    let engine = engine(StoreOptions::in_memory());
    let mut batch = Batch::new(&engine, Limits::new(2, 1 << 30));
    let shared = prompt(600, 1);
    // One reads, one is held until it has read, and two wait.
    let jobs: Vec<_> = (0..4).map(|i| job(1, &shared, 30, i)).collect();
    let seen: Vec<Arc<Seen>> = jobs.iter().map(|(_, seen)| seen.clone()).collect();
    jobs.into_iter().for_each(|(job, _)| batch.submit(job));
    batch.step(&mut |_| ());
    assert_eq!((batch.slots.len(), batch.held.len(), batch.queue.len()), (1, 1, 2));
    batch.stop();
    let (late, late_seen) = job(1, &shared, 30, 9);
    batch.submit(late);
    for seen in seen.iter().chain([&late_seen]) {
        assert_eq!(seen.ended(), Some(FinishReason::Cancelled));
    }
}

#[test]
fn a_prompt_is_not_reused_across_namespaces() {
    let engine = engine(StoreOptions::in_memory());
    let shared = prompt(600, 1);
    let run = |namespaces: &[u64]| {
        let mut batch = Batch::new(&engine, Limits::new(8, 1 << 30));
        let seen = namespaces.iter().map(|namespace| {
            let (mut job, seen) = job(1, &shared, 4, 3);
            job.namespace = Namespace::of(*namespace);
            batch.submit(job);
            seen
        });
        let seen: Vec<_> = seen.collect();
        run_all(&mut batch);
        assert!(seen.iter().all(|s| s.tokens() == seen[0].tokens()));
        seen.iter().map(|s| s.reused()).collect::<Vec<_>>()
    };
    assert_eq!(run(&[1, 2, 1]), [0, 0, 600], "at the same time");
    assert_eq!(run(&[2, 3]), [600, 0], "one after the other");
}

/// Random arrivals, owners, limits, pauses and prompts, some so long that their ends are read in expanded form, and one
/// whose reply would be: each job has the tokens that it has alone.
#[test]
fn tokens_are_the_same_whatever_happens() {
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
        let limits = Limits { unread: Duration::from_secs(3600), ..Limits::new(1 + next(3) as usize, bytes) };
        let mut batch = Batch { between: Duration::ZERO, ..Batch::new(&kept, limits) };
        let mut late: Vec<_> = kinds.iter().map(|(prompt, max)| job(next(3), prompt, *max, 5)).collect();
        let seen: Vec<Arc<Seen>> = late.iter().map(|(_, seen)| seen.clone()).collect();
        while !batch.idle() || !late.is_empty() {
            if next(4) == 0 && !late.is_empty() {
                batch.submit(late.remove(next(late.len() as u64) as usize).0);
            }
            let one = &seen[next(seen.len() as u64) as usize];
            one.deaf.store(next(3) == 0, Ordering::Relaxed);
            batch.step(&mut |_| ());
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
