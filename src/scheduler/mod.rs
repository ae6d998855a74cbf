//! Continuous batching: many replies from one model, a step at a time. Sequences join and leave between steps; a step
//! takes one token of every reply under way and, beside them, pieces of prompts being read. Who is far inside a long
//! prompt reads a large piece on its own ([`Batch::read_large`]); between its layers the others' steps go on.
//!
//! It runs on one thread ([`run`]), hears of jobs by a channel and tells clients by theirs; it knows no HTTP. A
//! token's logits do not depend on what else is in its step, so a job gives the same tokens alone and in company (on
//! CUDA but for rounding).
//! Next: [`slot`] (one sequence), [`plan`] (tokens of a step), [`admission`] and [`queue`] (slots, and the order of waiting).

mod admission;
#[cfg(test)]
mod fairness;
pub(crate) mod plan;
pub(crate) mod queue;
mod slot;
#[cfg(test)]
mod tests;

use crate::generation::decoder::{FinishReason, GenerationParams};
use crate::generation::generate::Stats;
use crate::generation::logprobs::Logprobs;
use crate::prefix_cache::namespace::Namespace;
use crate::runtime::engine::Engine;
use crate::runtime::logits::Logits;
use crate::runtime::memory_estimate::MemoryEstimate;
use crate::runtime::session::Prefill;
use admission::Waiting;
use kernels::backend::{Backend, CacheFormat};
use models::kimi_linear::mla::MlaPath;
use models::kimi_linear::{Outputs, Probe, Sequence};
use plan::{Pace, deal, next_large};
use queue::Queue;
use slot::Slot;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// A reply somebody wants.
pub struct Job {
    /// A prompt that [`Engine::check`] has passed; jobs share it.
    pub prompt: Arc<[u32]>,
    /// Lengths of it to keep snapshots of: where a system message or a document ends.
    pub marks: Vec<usize>,
    /// How the reply is made.
    pub rules: GenerationParams,
    /// Tell each token's logarithm of probability, and so many of the most likely ones'.
    pub logprobs: Option<usize>,
    /// Whose it is: owners take turns.
    pub owner: u64,
    /// Whose prefixes it reuses, and adds to.
    pub namespace: Namespace,
    /// Who hears of it.
    pub client: Box<dyn Client>,
}

/// Who asked for a reply.
pub trait Client: Send {
    /// Something happened.
    fn hear(&mut self, update: Update);
    /// Nobody listens any more: the work stops.
    fn gone(&self) -> bool;
    /// Whether it takes another update. Where it does not, its sequence is paused: the thread that runs the model never
    /// waits for a client, nor keeps what one does not read.
    fn ready(&self) -> bool {
        true
    }
}

impl Job {
    /// Tells the client that no work was done.
    fn cancel(mut self) {
        self.client.hear(Update::Done(Stats {
            prefill: Prefill { stopped: true, ..Prefill::default() },
            prefill_time: Duration::ZERO,
            generated: 0,
            decode_time: Duration::ZERO,
            expert_cache: None,
            ended: FinishReason::Cancelled,
        }));
    }
}

/// What happens to a job.
#[derive(Debug)]
pub enum Update {
    /// So much of its prompt is in the state.
    Read {
        /// Tokens that were there already.
        reused: usize,
        /// Tokens in.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// A token was chosen, or the last text came without one.
    Chosen {
        /// The token.
        token: Option<u32>,
        /// Text that has become final with it.
        text: String,
        /// How likely the token was, where that was asked for.
        logprobs: Option<Logprobs>,
    },
    /// It is over.
    Done(Stats),
}

/// What may run at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences.
    pub slots: usize,
    /// Bytes of their states.
    pub bytes: u64,
    /// Time that a client may leave its updates unread.
    pub unread: Duration,
}

impl Limits {
    /// With 60 s for clients to read.
    pub fn new(slots: usize, bytes: u64) -> Self {
        Limits { slots, bytes, unread: Duration::from_secs(60) }
    }
}

/// What the thread is told.
pub enum Command {
    /// Work.
    Job(Box<Job>),
    /// End every reply where it is, and the thread.
    Stop,
}

/// What others may look at while it runs.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Sequences in steps.
    pub running: AtomicU64,
    /// Jobs not yet admitted.
    pub waiting: AtomicU64,
    /// Bytes reserved for states.
    pub bytes: AtomicU64,
    /// Steps taken.
    pub steps: AtomicU64,
    /// Tokens in them.
    pub tokens: AtomicU64,
}

/// Runs jobs until it is told to stop, or nobody can send any more.
pub fn run<B: Backend>(engine: &Engine<B>, limits: Limits, commands: &Receiver<Command>, gauges: &Gauges) {
    let mut batch = Batch::new(engine, limits);
    while !batch.stopped {
        let command = if batch.idle() {
            commands.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            commands.try_recv()
        };
        match command {
            Ok(command) => batch.obey(command),
            Err(TryRecvError::Disconnected) if batch.idle() => return,
            Err(error) => {
                let worked = batch.step(&mut |batch| {
                    commands.try_iter().for_each(|command| batch.obey(command));
                    batch.show(gauges);
                });
                // All sequences wait for their clients.
                match (worked, error) {
                    (true, _) => {}
                    (false, TryRecvError::Disconnected) => std::thread::sleep(PAUSE),
                    (false, TryRecvError::Empty) => match commands.recv_timeout(PAUSE) {
                        Ok(command) => batch.obey(command),
                        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
                    },
                }
            }
        }
        batch.show(gauges);
    }
    batch.stop();
}

/// Bytes of a sequence's state.
#[derive(Clone, Copy, Debug)]
pub struct StateBytes {
    fixed: u64,
    per_token: u64,
}

impl StateBytes {
    /// In this engine.
    pub fn new<B: Backend>(engine: &Engine<B>) -> Self {
        let need = MemoryEstimate::of(&engine.model.config, engine.batch as u64);
        let per_token = match engine.cache {
            CacheFormat::F32 => 2 * need.f16_bytes_per_token,
            CacheFormat::F16 => need.f16_bytes_per_token,
            CacheFormat::Q8_0 => need.q8_0_bytes_per_token,
        };
        StateBytes { fixed: need.kda_state_bytes + need.conv_bytes, per_token }
    }

    /// Of so many tokens.
    pub fn of(self, tokens: u64) -> u64 {
        self.per_token.saturating_mul(tokens).saturating_add(self.fixed)
    }
}

/// Jobs under way and waiting.
pub struct Batch<'e, B: Backend> {
    engine: &'e Engine<B>,
    limits: Limits,
    state_bytes: StateBytes,
    queue: Queue<Waiting<'e, B>>,
    slots: Vec<Slot<'e, B>>,
    /// Admitted jobs and their bytes, which wait for a slot that is reading what they begin with.
    held: Vec<(Job, u64)>,
    /// Sequences whose clients do not read, and whose slots others have.
    unread: Vec<Slot<'e, B>>,
    /// Of the slot that reads a large piece, and is not among the others meanwhile.
    away: Option<Away>,
    /// Large pieces so far.
    turn: u64,
    pace: Pace,
    /// [`BETWEEN`]
    between: Duration,
    /// The end of the last small step.
    stepped: Instant,
    steps: u64,
    tokens: u64,
    /// Nothing is to go on.
    stopped: bool,
}

/// What is to be known of a slot that reads a large piece.
struct Away {
    /// Its prompt, and the length of it at the next snapshot.
    prompt: Arc<[u32]>,
    point: usize,
    namespace: Namespace,
    owner: u64,
    /// Memory reserved for it.
    bytes: u64,
}

/// While a large piece is read, time from one step of the others to the next: it has about as much for itself.
const BETWEEN: Duration = Duration::from_millis(100);

/// Time between two looks at clients, where there is nothing to do until one reads.
const PAUSE: Duration = Duration::from_millis(5);

/// Where nothing can be computed before a mask is there, time until the thread looks for what else there is to do.
const PARKED: Duration = Duration::from_millis(2);

impl<'e, B: Backend> Batch<'e, B> {
    /// Nothing to do.
    pub fn new(engine: &'e Engine<B>, limits: Limits) -> Self {
        Batch {
            engine,
            limits,
            state_bytes: StateBytes::new(engine),
            queue: Queue::default(),
            slots: Vec::new(),
            held: Vec::new(),
            unread: Vec::new(),
            away: None,
            turn: 0,
            pace: Pace::new(engine.batch),
            between: BETWEEN,
            stepped: Instant::now(),
            steps: 0,
            tokens: 0,
            stopped: false,
        }
    }

    /// Whether there is nothing to do.
    pub fn idle(&self) -> bool {
        self.slots.is_empty() && self.held.is_empty() && self.unread.is_empty() && self.queue.is_empty()
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Job(job) => self.submit(*job),
            Command::Stop => self.stop(),
        }
    }

    /// Takes a job; it waits for its turn.
    pub fn submit(&mut self, job: Job) {
        if self.stopped {
            return job.cancel();
        }
        self.queue.push(job.owner, Waiting::New(job));
    }

    /// Ends every reply, and what waits.
    pub fn stop(&mut self) {
        self.slots.drain(..).chain(self.unread.drain(..)).for_each(Slot::leave);
        self.held.drain(..).for_each(|(job, _)| job.cancel());
        self.queue.drain().for_each(Waiting::cancel);
        self.stopped = true;
    }

    /// One step: whose client is gone leaves, whoever fits joins, and all go on. Where it is a long one, `hear` is called in
    /// between for what is new. False where there was nothing to compute.
    pub fn step(&mut self, hear: &mut dyn FnMut(&mut Self)) -> bool {
        self.settle();
        let left: Vec<Option<usize>> = self.slots.iter().map(Slot::wants_large).collect();
        match next_large(&left, self.turn) {
            Some(i) => {
                self.read_large(i, hear);
                true
            }
            None => self.small_step(),
        }
    }

    /// Whose client is gone leaves, and whoever fits joins.
    fn settle(&mut self) {
        self.queue.retain(|waiting| !waiting.gone());
        self.held.retain(|(job, _)| !job.client.gone());
        self.check_clients();
        std::mem::take(&mut self.held).into_iter().for_each(|(job, bytes)| self.enter(job, bytes));
        self.admit();
    }

    /// A large piece of one prompt. After a layer of it the others have a step of their own now and then, so that nobody
    /// waits for longer than a layer takes.
    fn read_large(&mut self, i: usize, hear: &mut dyn FnMut(&mut Self)) {
        let mut slot = self.slots.remove(i);
        let alone = self.slots.is_empty() && self.queue.is_empty() && self.held.is_empty();
        let most = if alone { self.engine.max_step_tokens(MlaPath::Materialized) } else { self.engine.batch };
        let tokens = slot.wants_large().map_or(0, |wants| wants.min(most));
        self.away = Some(slot.away());
        self.turn += 1;
        let Engine { backend, model, .. } = self.engine;
        let (sequence, client) = slot.with_client(tokens);
        let mut between = Between { batch: self, hear, client, abandoned: false };
        let logits = model.forward(backend, &mut [sequence], &mut between);
        let abandoned = between.abandoned;
        let scores = logits.map(|logits| Logits::new(self.engine, logits, 1));
        if !alone {
            backend.wait(); // else a device has so much before it that the others' next step waits for
        }
        self.away = None;
        if abandoned {
            return slot.abandon();
        }
        self.count(tokens);
        slot.advance(tokens, &mut scores.iter().flat_map(Logits::rows));
        if slot.has_ended() { slot.leave() } else { self.slots.insert(i.min(self.slots.len()), slot) }
    }

    /// A token of every reply, and small pieces of prompts.
    fn small_step(&mut self) -> bool {
        self.slots.iter_mut().for_each(|slot| slot.unpark(Duration::ZERO));
        self.part_with(Slot::has_ended);
        let wants: Vec<usize> = self.slots.iter().map(Slot::wants_small).collect();
        let replies = self.slots.iter().filter(|s| s.replying() && !s.is_parked()).count();
        let shares = deal(&wants, self.pace.budget(replies));
        let all: usize = shares.iter().sum();
        if all == 0 {
            return self.away.is_none() && self.wait_for_mask();
        }
        let start = Instant::now();
        let scores = self.forward(&shares);
        self.count(all);
        let mut rows = scores.iter().flat_map(Logits::rows);
        for (slot, tokens) in self.slots.iter_mut().zip(shares).filter(|(_, tokens)| *tokens > 0) {
            slot.advance(tokens, &mut rows);
        }
        // A device is done with a step when tokens are chosen, not when it is issued, and not before what it was given first.
        if scores.is_some() && self.away.is_none() {
            self.pace.learn(all - replies.min(all), start.elapsed());
        }
        self.stepped = Instant::now();
        self.part_with(Slot::has_ended);
        true
    }

    /// Waits a moment for the mask of a parked sequence; false where there is none.
    fn wait_for_mask(&mut self) -> bool {
        let parked = self.slots.iter_mut().find(|slot| slot.is_parked());
        let found = parked.map(|slot| slot.unpark(PARKED)).is_some();
        self.part_with(Slot::has_ended);
        found
    }

    fn part_with(&mut self, leaves: impl Fn(&Slot<'e, B>) -> bool) {
        self.slots.extract_if(.., |slot| leaves(slot)).for_each(Slot::leave);
    }

    /// The logits after each sequence whose tokens are all in, one row each; None where there is none.
    fn forward(&mut self, shares: &[usize]) -> Option<Logits<'e, B>> {
        let moving = self.slots.iter_mut().zip(shares).filter(|(_, tokens)| **tokens > 0);
        let sequences = moving.map(|(slot, tokens)| slot.sequence(*tokens));
        let mut sequences: Vec<Sequence<'_, B>> = sequences.collect();
        let Engine { backend, model, .. } = self.engine;
        let rows = sequences.iter().filter(|s| s.outputs == Outputs::Last).count();
        let logits = model.forward(backend, &mut sequences, &mut ());
        logits.map(|logits| Logits::new(self.engine, logits, rows))
    }

    fn count(&mut self, tokens: usize) {
        self.steps += 1;
        self.tokens += tokens as u64;
    }

    /// Gives a job a slot, unless another is about to keep a state that it can go on from: what several begin with
    /// is read once.
    fn enter(&mut self, job: Job, bytes: u64) {
        let away = self.away.as_ref().is_some_and(|away| {
            away.namespace == job.namespace && job.prompt.starts_with(&away.prompt[..away.point])
        });
        if self.engine.store.fits_in_memory() && (away || self.slots.iter().any(|slot| slot.reads_for(&job)))
        {
            return self.held.push((job, bytes));
        }
        let slot = Slot::new(self.engine, job, bytes);
        // One that was answered before may have ended with its first token.
        if slot.has_ended() { slot.leave() } else { self.slots.push(slot) }
    }

    fn bytes(&self) -> u64 {
        let held = self.held.iter().map(|(_, bytes)| *bytes);
        let away = self.away.iter().map(|away| away.bytes);
        let waiting = self.queue.iter().map(Waiting::holds);
        let states = self.slots.iter().chain(&self.unread).map(Slot::holds);
        states.chain(held).chain(away).chain(waiting).sum()
    }

    fn show(&self, gauges: &Gauges) {
        let set = |gauge: &AtomicU64, value: u64| gauge.store(value, Ordering::Relaxed);
        set(&gauges.running, self.slots.len() as u64 + u64::from(self.away.is_some()));
        let waiting = self.queue.len() + self.held.len() + self.unread.len();
        set(&gauges.waiting, waiting as u64);
        set(&gauges.bytes, self.bytes());
        set(&gauges.steps, self.steps);
        set(&gauges.tokens, self.tokens);
    }
}

/// Between the layers of a large piece.
struct Between<'b, 'e, B: Backend> {
    batch: &'b mut Batch<'e, B>,
    hear: &'b mut dyn FnMut(&mut Batch<'e, B>),
    /// Of the piece.
    client: &'b dyn Client,
    /// Whether that has left, or nothing is to go on.
    abandoned: bool,
}

impl<B: Backend> Probe<B> for Between<'_, '_, B> {
    fn layer_done(&mut self) {
        (self.hear)(self.batch);
        self.abandoned = self.batch.stopped || self.client.gone();
        if self.abandoned {
            return;
        }
        self.batch.settle();
        if self.batch.stepped.elapsed() >= self.batch.between {
            self.batch.small_step();
        }
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    fn is_active(&self) -> bool {
        false
    }
}
