//! Tests large prefill chunks concurrent with decoding, cancellation, and late grammar masks.

use super::*;
use crate::generation::sample::{Constraint, Sampling};
use crate::prefix_cache::options::StoreOptions;
use crate::runtime::options::{Drafting, LoadOptions};
use crate::runtime::session::Session;
use kernels::cpu::Cpu;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

/// The events of all requests in order: the tenant, and either the prefilled tokens or the sampled token.
type EventLog = Arc<Mutex<Vec<(u64, Option<usize>, Option<u32>)>>>;

struct Recorder(u64, EventLog);

impl Client for Recorder {
    fn on_event(&mut self, event: EngineEvent) {
        let event = match event {
            EngineEvent::Prefill { done, .. } => (self.0, Some(done), None),
            EngineEvent::Token { token, .. } => (self.0, None, token),
            EngineEvent::Finished(_) => return,
        };
        self.1.lock().unwrap().push(event);
    }

    fn is_disconnected(&self) -> bool {
        false
    }
}

pub(super) fn engine(store: StoreOptions) -> Engine<Cpu> {
    engine_with(store, Drafting::Auto)
}

fn engine_with(store: StoreOptions, draft: Drafting) -> Engine<Cpu> {
    let args = LoadOptions { threads: Some(2), batch: Some(256), store, draft, ..LoadOptions::default() };
    Engine::open_with(&args, Box::new(|_| ())).unwrap()
}

fn request(tenant: u64, prompt: Vec<u32>, max_tokens: usize, events: &EventLog) -> SequenceRequest {
    let params =
        GenerationParams { ignore_end: true, ..GenerationParams::new(max_tokens, Sampling::greedy()) };
    let client = Box::new(Recorder(tenant, events.clone()));
    let namespace = Namespace::SHARED;
    SequenceRequest {
        prompt: prompt.into(),
        snapshot_lengths: Vec::new(),
        question: None,
        params,
        logprobs: None,
        tenant,
        namespace,
        client,
    }
}

fn run_all(mut scheduler: Scheduler<'_, Cpu>) {
    while !scheduler.idle() {
        scheduler.step(&mut |_| ());
    }
}

/// The decode interval runs across chunks: a reply gets a token in the first chunk after it, even if no single chunk
/// takes that long.
#[test]
fn replies_decode_when_chunks_are_short() {
    let engine = engine(StoreOptions::nothing());
    let events = EventLog::default();
    let decode_interval = Duration::from_secs(20);
    let mut scheduler =
        Scheduler { decode_interval, ..Scheduler::new(&engine, SchedulerLimits::new(8, 1 << 30)) };
    scheduler.submit(request(1, vec![70, 80, 90], 90, &events));
    scheduler.submit(request(2, (0..3000).map(|i| 70 + i % 900).collect(), 2, &events));
    let replies = || events.lock().unwrap().iter().filter(|e| e.0 == 1 && e.2.is_some()).count();
    let mut chunks = 0;
    while !scheduler.idle() {
        let (before, chunk) = (replies(), scheduler.large_chunks);
        let late = chunks % 2 == 1;
        scheduler.last_step =
            if late { Instant::now().checked_sub(decode_interval).unwrap() } else { Instant::now() };
        scheduler.step(&mut |_| ());
        if scheduler.large_chunks > chunk {
            assert_eq!(replies() - before, usize::from(late), "tokens of the reply during chunk {chunks}");
            chunks += 1;
        }
    }
    assert!(chunks > 2, "{chunks} large chunks");
}

/// While a prompt of 3,000 tokens prefills, in large chunks from token 1,024 on, a reply decodes after every layer of a
/// chunk with the tokens it has alone, and a later request is admitted before the chunk ends.
#[test]
fn replies_decode_between_the_layers_of_a_large_chunk() {
    let engine = engine(StoreOptions::nothing());
    let limits = SchedulerLimits::new(8, 1 << 30);
    let short = |tenant, events: &EventLog| request(tenant, vec![70, 80, 90], 90, events);
    let chosen = |events: &EventLog, tenant| -> Vec<u32> {
        events.lock().unwrap().iter().filter(|e| e.0 == tenant).filter_map(|e| e.2).collect()
    };
    let (alone, together) = (EventLog::default(), EventLog::default());
    let mut scheduler = Scheduler::new(&engine, limits);
    scheduler.submit(short(1, &alone));
    run_all(scheduler);

    let mut scheduler = Scheduler { decode_interval: Duration::ZERO, ..Scheduler::new(&engine, limits) };
    scheduler.submit(short(1, &together));
    scheduler.submit(request(2, (0..3000).map(|i| 70 + i % 900).collect(), 2, &together));
    let mut late = Some(short(3, &together));
    let mut during = 0;
    while !scheduler.idle() {
        scheduler.step(&mut |scheduler| {
            during += 1;
            late.take().into_iter().for_each(|request| scheduler.submit(request));
        });
    }
    assert!(during > 0, "no large chunk");
    let events = together.lock().unwrap().clone();
    let read: Vec<usize> =
        (0..events.len()).filter(|i| events[*i].0 == 2 && events[*i].1.is_some()).collect();
    let chunks =
        read.windows(2).filter(|w| events[w[0]].1 >= Some(crate::runtime::attention_path::MATERIALIZE_AFTER));
    let layers = engine.model.config.layers.len();
    for chunk in chunks {
        let replies = events[chunk[0]..chunk[1]].iter().filter(|e| e.0 == 1 && e.2.is_some()).count();
        let ended = events[..chunk[1]].iter().filter(|e| e.0 == 1 && e.2.is_some()).count() == 90;
        assert!(replies >= layers || ended, "{replies} tokens of a reply during a chunk of {layers} layers");
    }
    let first = events.iter().position(|e| e.0 == 3).unwrap();
    assert!(
        events[first..].iter().any(|e| e.0 == 2 && e.1.is_some()),
        "a late request waits for a whole prompt"
    );
    assert_eq!(chosen(&together, 1), chosen(&alone, 1));
    assert_eq!(chosen(&together, 3), chosen(&alone, 1));
}

/// A large chunk is abandoned at the end of the layer in which its client disconnects or the scheduler stops.
#[test]
fn a_large_chunk_ends_when_its_client_disconnects() {
    struct Disconnecting(Arc<std::sync::atomic::AtomicBool>, EventLog);
    impl Client for Disconnecting {
        fn on_event(&mut self, event: EngineEvent) {
            Recorder(1, self.1.clone()).on_event(event);
        }
        fn is_disconnected(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }
    let long: Vec<u32> = (0..3000).map(|i| 70 + i % 900).collect();
    for stops in [false, true] {
        let kept = engine(StoreOptions::in_memory());
        let (left, events) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), EventLog::default());
        let client = Box::new(Disconnecting(left.clone(), events.clone()));
        let mut scheduler = Scheduler::new(&kept, SchedulerLimits::new(8, 1 << 30));
        scheduler.submit(SequenceRequest { client, ..request(1, long.clone(), 2, &events) });
        let mut layers = 0;
        while !scheduler.idle() {
            scheduler.step(&mut |scheduler| {
                layers += 1;
                match stops {
                    true => scheduler.stop(),
                    false => left.store(true, Ordering::Relaxed),
                }
            });
        }
        assert_eq!(layers, 1, "layers after the disconnect");
        let read = events.lock().unwrap().iter().filter_map(|e| e.1).max();
        assert!(
            read < Some(3000) && read >= Some(crate::runtime::attention_path::MATERIALIZE_AFTER),
            "{read:?}"
        );
        // The snapshots inserted before are valid.
        let again = EventLog::default();
        let mut scheduler = Scheduler::new(&kept, SchedulerLimits::new(8, 1 << 30));
        scheduler.submit(request(1, long.clone(), 5, &again));
        run_all(scheduler);
        let fresh = engine(StoreOptions::nothing());
        let alone = EventLog::default();
        let mut scheduler = Scheduler::new(&fresh, SchedulerLimits::new(8, 1 << 30));
        scheduler.submit(request(1, long.clone(), 5, &alone));
        run_all(scheduler);
        let tokens =
            |events: &EventLog| events.lock().unwrap().iter().filter_map(|e| e.2).collect::<Vec<_>>();
        assert_eq!(tokens(&again), tokens(&alone));
    }
}

/// A constraint that allows a third of the vocabulary and whose masks arrive only after `polls` polls.
struct LateMasks {
    polls: usize,
    left: usize,
    at: u32,
    mask: Vec<u32>,
}

impl Constraint for LateMasks {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        self.mask = vec![0x4924_9249_u32.rotate_left(self.at % 3); 1 << 13];
        Ok(Some(&self.mask))
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        (self.at, self.left) = (token, self.polls);
        Ok(())
    }

    fn wait(&mut self, _limit: Duration) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }
}

/// A sequence whose mask is late is skipped while another reply decodes. It has the same tokens as with immediate masks,
/// alone and batched, with large chunks too.
#[test]
fn a_sequence_with_a_late_mask_is_skipped() {
    // Polls are counted in steps, of which each gives the other reply one token.
    let engine = engine_with(StoreOptions::nothing(), Drafting::Off);
    let bound = |polls: usize, events: &EventLog| {
        let mut request = request(1, vec![70, 80, 90], 20, events);
        request.params.constraint = Some(Box::new(LateMasks { polls, left: 0, at: 0, mask: Vec::new() }));
        request
    };
    let tokens = |events: &EventLog, tenant: u64| -> Vec<u32> {
        events.lock().unwrap().iter().filter(|e| e.0 == tenant).filter_map(|e| e.2).collect()
    };
    let run = |requests: &[fn(&EventLog) -> SequenceRequest], polls: usize, slots: usize| {
        let events = EventLog::default();
        let mut scheduler = Scheduler {
            decode_interval: Duration::ZERO,
            ..Scheduler::new(&engine, SchedulerLimits::new(slots, 1 << 30))
        };
        scheduler.submit(bound(polls, &events));
        requests.iter().for_each(|request| scheduler.submit(request(&events)));
        run_all(scheduler);
        events
    };
    let at_once = tokens(&run(&[], 0, 8), 1);
    assert_eq!(at_once.len(), 20);
    let other: fn(&EventLog) -> SequenceRequest = |events| request(2, vec![75, 85], 90, events);
    let long: fn(&EventLog) -> SequenceRequest =
        |events| request(3, (0..3000).map(|i| 70 + i % 900).collect(), 2, events);
    let cases = [
        (&[][..], 3, 8),
        (&[other][..], 3, 8),
        (&[other][..], 40, 8),
        (&[other, long][..], 4, 8),
        (&[other, long][..], 4, 1),
    ];
    for (requests, polls, slots) in cases {
        let events = run(requests, polls, slots);
        assert_eq!(tokens(&events, 1), at_once, "{polls} polls, {} others", requests.len());
        if polls == 40 {
            let events = events.lock().unwrap();
            let chosen =
                |tenant: u64| events.iter().enumerate().filter(move |(_, e)| e.0 == tenant && e.2.is_some());
            let (last, _) = chosen(2).next_back().unwrap();
            let before = chosen(1).filter(|(i, _)| *i < last).count();
            assert!((2..6).contains(&before), "{before} tokens of the late reply beside 90 of another");
        }
    }
}

/// A session and the scheduler write the same snapshots to disk: none for a short system prompt, the one at a length
/// that saves 256 tokens or more.
#[test]
fn sessions_and_requests_write_the_same_snapshots() {
    for (snapshot_at, tokens, snapshots) in [(20, 60, false), (300, 400, true)] {
        let prompt: Vec<u32> = (0..tokens).map(|i| 70 + i % 900).collect();
        let [alone, scheduled] = [true, false].map(|alone| {
            let directory = tempfile::tempdir().unwrap();
            let cache_dir = Some(directory.path().to_owned());
            let engine = engine(StoreOptions { cache_dir, ..StoreOptions::default() });
            if alone {
                let mut session = Session::new(&engine);
                session.snapshot_at(&[snapshot_at]);
                session.prefill(&prompt, &mut |_, _| ControlFlow::Continue(())).unwrap();
            } else {
                let mut scheduler = Scheduler::new(&engine, SchedulerLimits::new(8, 1 << 30));
                let request = request(1, prompt.clone(), 1, &EventLog::default());
                scheduler.submit(SequenceRequest { snapshot_lengths: vec![snapshot_at], ..request });
                run_all(scheduler);
            }
            engine.store.flush();
            let files = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap());
            let states = files.filter(|file| file.path().extension().is_some_and(|e| e == "state"));
            let mut bytes: Vec<u64> = states.map(|file| file.metadata().unwrap().len()).collect();
            bytes.sort_unstable();
            bytes
        });
        assert_eq!(alone, scheduled, "snapshot at {snapshot_at}");
        assert_eq!(!alone.is_empty(), snapshots, "snapshot at {snapshot_at}: {alone:?}");
    }
}
