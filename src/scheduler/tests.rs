//! Large pieces beside replies.

use super::*;
use crate::generation::sample::{Constraint, Sampling};
use crate::prefix_cache::options::StoreOptions;
use crate::runtime::options::{CacheType, EngineArgs};
use kernels::cpu::Cpu;
use std::sync::{Arc, Mutex};

/// What jobs hear, in its order: whose it is, and the tokens read, or none where one was chosen.
type Heard = Arc<Mutex<Vec<(u64, Option<usize>, Option<u32>)>>>;

struct Listener(u64, Heard);

impl Client for Listener {
    fn hear(&mut self, update: Update) {
        let event = match update {
            Update::Read { done, .. } => (self.0, Some(done), None),
            Update::Chosen { token, .. } => (self.0, None, token),
            Update::Done(_) => return,
        };
        self.1.lock().unwrap().push(event);
    }

    fn gone(&self) -> bool {
        false
    }
}

pub(super) fn engine(store: StoreOptions) -> Engine<Cpu> {
    let args = EngineArgs {
        model: None,
        threads: Some(2),
        ctx: None,
        batch: 256,
        cache_type: CacheType::F16,
        mlock: false,
        device: Default::default(),
        store,
        state_room: None,
        chat_template: None,
    };
    Engine::open_with(&args, Box::new(|_| ())).unwrap()
}

fn job(owner: u64, prompt: Vec<u32>, max_tokens: usize, heard: &Heard) -> Job {
    let rules = GenerationParams {
        max_tokens,
        sampling: Sampling::greedy(),
        bias: Arc::default(),
        constraint: None,
        stops: Vec::new(),
        ignore_end: true,
    };
    let client = Box::new(Listener(owner, heard.clone()));
    let namespace = Namespace::SHARED;
    Job { prompt: prompt.into(), marks: Vec::new(), rules, logprobs: None, owner, namespace, client }
}

fn run_all(mut batch: Batch<'_, Cpu>) {
    while !batch.idle() {
        batch.step(&mut |_| ());
    }
}

/// A reply's time goes on while pieces come and go: it has a token in the first piece after it, not only where one piece
/// takes as long.
#[test]
fn replies_go_on_where_pieces_are_short() {
    let engine = engine(StoreOptions::nothing());
    let heard = Heard::default();
    let between = Duration::from_secs(20);
    let mut batch = Batch { between, ..Batch::new(&engine, Limits::new(8, 1 << 30)) };
    batch.submit(job(1, vec![70, 80, 90], 90, &heard));
    batch.submit(job(2, (0..3000).map(|i| 70 + i % 900).collect(), 2, &heard));
    let replies = || heard.lock().unwrap().iter().filter(|e| e.0 == 1 && e.2.is_some()).count();
    let mut pieces = 0;
    while !batch.idle() {
        let (before, turn) = (replies(), batch.turn);
        let late = pieces % 2 == 1;
        batch.stepped = if late { Instant::now().checked_sub(between).unwrap() } else { Instant::now() };
        batch.step(&mut |_| ());
        if batch.turn > turn {
            assert_eq!(replies() - before, usize::from(late), "tokens of the reply beside piece {pieces}");
            pieces += 1;
        }
    }
    assert!(pieces > 2, "{pieces} large pieces");
}

/// While a prompt of 3,000 tokens is read, from its 1,024th in large pieces, a reply goes on after every layer of them, with
/// the tokens it has alone; and who comes in between does not wait for the piece's end.
#[test]
fn replies_go_on_between_the_layers_of_a_large_piece() {
    let engine = engine(StoreOptions::nothing());
    let limits = Limits::new(8, 1 << 30);
    let short = |owner, heard: &Heard| job(owner, vec![70, 80, 90], 90, heard);
    let chosen = |heard: &Heard, owner| -> Vec<u32> {
        heard.lock().unwrap().iter().filter(|e| e.0 == owner).filter_map(|e| e.2).collect()
    };
    let (alone, together) = (Heard::default(), Heard::default());
    let mut batch = Batch::new(&engine, limits);
    batch.submit(short(1, &alone));
    run_all(batch);

    let mut batch = Batch { between: Duration::ZERO, ..Batch::new(&engine, limits) };
    batch.submit(short(1, &together));
    batch.submit(job(2, (0..3000).map(|i| 70 + i % 900).collect(), 2, &together));
    let mut late = Some(short(3, &together));
    let mut during = 0;
    while !batch.idle() {
        batch.step(&mut |batch| {
            during += 1;
            late.take().into_iter().for_each(|job| batch.submit(job));
        });
    }
    assert!(during > 0, "no large piece");
    let heard = together.lock().unwrap().clone();
    let read: Vec<usize> = (0..heard.len()).filter(|i| heard[*i].0 == 2 && heard[*i].1.is_some()).collect();
    let pieces =
        read.windows(2).filter(|w| heard[w[0]].1 >= Some(crate::runtime::attention_path::MATERIALIZE_AFTER));
    let layers = engine.model.config.layers.len();
    for piece in pieces {
        let replies = heard[piece[0]..piece[1]].iter().filter(|e| e.0 == 1 && e.2.is_some()).count();
        let ended = heard[..piece[1]].iter().filter(|e| e.0 == 1 && e.2.is_some()).count() == 90;
        assert!(replies >= layers || ended, "{replies} tokens of a reply beside a piece of {layers} layers");
    }
    let first = heard.iter().position(|e| e.0 == 3).unwrap();
    assert!(
        heard[first..].iter().any(|e| e.0 == 2 && e.1.is_some()),
        "who comes late waits for a whole prompt"
    );
    assert_eq!(chosen(&together, 1), chosen(&alone, 1));
    assert_eq!(chosen(&together, 3), chosen(&alone, 1));
}

/// A client that leaves in the middle of a large piece is worked for until the end of a layer; so is one at the end of all.
#[test]
fn a_large_piece_ends_with_its_client() {
    struct Leaving(Arc<std::sync::atomic::AtomicBool>, Heard);
    impl Client for Leaving {
        fn hear(&mut self, update: Update) {
            Listener(1, self.1.clone()).hear(update);
        }
        fn gone(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }
    let long: Vec<u32> = (0..3000).map(|i| 70 + i % 900).collect();
    for stops in [false, true] {
        let kept = engine(StoreOptions::in_memory());
        let (left, heard) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), Heard::default());
        let client = Box::new(Leaving(left.clone(), heard.clone()));
        let mut batch = Batch::new(&kept, Limits::new(8, 1 << 30));
        batch.submit(Job { client, ..job(1, long.clone(), 2, &heard) });
        let mut layers = 0;
        while !batch.idle() {
            batch.step(&mut |batch| {
                layers += 1;
                match stops {
                    true => batch.stop(),
                    false => left.store(true, Ordering::Relaxed),
                }
            });
        }
        assert_eq!(layers, 1, "layers after it had left");
        let read = heard.lock().unwrap().iter().filter_map(|e| e.1).max();
        assert!(
            read < Some(3000) && read >= Some(crate::runtime::attention_path::MATERIALIZE_AFTER),
            "{read:?}"
        );
        // What was read before stays, and is right.
        let again = Heard::default();
        let mut batch = Batch::new(&kept, Limits::new(8, 1 << 30));
        batch.submit(job(1, long.clone(), 5, &again));
        run_all(batch);
        let fresh = engine(StoreOptions::nothing());
        let alone = Heard::default();
        let mut batch = Batch::new(&fresh, Limits::new(8, 1 << 30));
        batch.submit(job(1, long.clone(), 5, &alone));
        run_all(batch);
        let tokens = |heard: &Heard| heard.lock().unwrap().iter().filter_map(|e| e.2).collect::<Vec<_>>();
        assert_eq!(tokens(&again), tokens(&alone));
    }
}

/// A constraint that allows a third of the vocabulary, and whose every mask is late for so many looks.
struct Late {
    looks: usize,
    left: usize,
    at: u32,
    mask: Vec<u32>,
}

impl Constraint for Late {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        self.mask = vec![0x4924_9249_u32.rotate_left(self.at % 3); 1 << 13];
        Ok(Some(&self.mask))
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        (self.at, self.left) = (token, self.looks);
        Ok(())
    }

    fn wait(&mut self, _limit: Duration) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }
}

/// A sequence whose mask is late sits out: another reply has its tokens meanwhile, and the late one has the same tokens
/// as with masks that are there at once, alone and in company, beside large pieces too.
#[test]
fn a_sequence_whose_mask_is_late_sits_out() {
    let engine = engine(StoreOptions::nothing());
    let bound = |looks: usize, heard: &Heard| {
        let mut job = job(1, vec![70, 80, 90], 20, heard);
        job.rules.constraint = Some(Box::new(Late { looks, left: 0, at: 0, mask: Vec::new() }));
        job
    };
    let tokens = |heard: &Heard, owner: u64| -> Vec<u32> {
        heard.lock().unwrap().iter().filter(|e| e.0 == owner).filter_map(|e| e.2).collect()
    };
    let run = |jobs: &[fn(&Heard) -> Job], looks: usize, slots: usize| {
        let heard = Heard::default();
        let mut batch = Batch { between: Duration::ZERO, ..Batch::new(&engine, Limits::new(slots, 1 << 30)) };
        batch.submit(bound(looks, &heard));
        jobs.iter().for_each(|job| batch.submit(job(&heard)));
        run_all(batch);
        heard
    };
    let at_once = tokens(&run(&[], 0, 8), 1);
    assert_eq!(at_once.len(), 20);
    let other: fn(&Heard) -> Job = |heard| job(2, vec![75, 85], 90, heard);
    let long: fn(&Heard) -> Job = |heard| job(3, (0..3000).map(|i| 70 + i % 900).collect(), 2, heard);
    let cases = [
        (&[][..], 3, 8),
        (&[other][..], 3, 8),
        (&[other][..], 40, 8),
        (&[other, long][..], 4, 8),
        (&[other, long][..], 4, 1),
    ];
    for (jobs, looks, slots) in cases {
        let heard = run(jobs, looks, slots);
        assert_eq!(tokens(&heard, 1), at_once, "{looks} looks, {} others", jobs.len());
        if looks == 40 {
            let events = heard.lock().unwrap();
            let chosen =
                |owner: u64| events.iter().enumerate().filter(move |(_, e)| e.0 == owner && e.2.is_some());
            let (last, _) = chosen(2).next_back().unwrap();
            let before = chosen(1).filter(|(i, _)| *i < last).count();
            assert!((2..6).contains(&before), "{before} tokens of the late reply beside 90 of another");
        }
    }
}
