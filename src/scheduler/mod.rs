//! Continuous batching: runs the sequences of many requests on one model. Sequences are admitted and finish between steps.
//! A step takes one token of every decoding sequence and chunks of prompts. Sequences past 1,024 prompt tokens prefill in
//! exclusive large chunks ([`Scheduler::prefill_large_chunk`]); other sequences decode between its layers.
//!
//! The scheduler runs on one thread ([`run`]), receives requests by a channel and reports events to their clients; it
//! knows no HTTP. A token's logits do not depend on the rest of the scheduler, so a request gives the same tokens alone and
//! batched (on CUDA up to rounding).
//! Next: [`slot`] (one sequence), [`plan`] (token budget), [`admission`] and [`queue`] (preemption and fair queueing).

mod admission;
#[cfg(test)]
mod fairness;
pub(crate) mod plan;
pub(crate) mod queue;
mod slot;
#[cfg(test)]
mod tests;

use crate::generation::decoder::{FinishReason, GenerationParams};
use crate::generation::draft::DraftCounts;
use crate::generation::event::{EngineEvent, Stats};
use crate::prefix_cache::namespace::Namespace;
use crate::runtime::engine::{Engine, EngineBase};
use crate::runtime::handle::EngineHandle;
use crate::runtime::logits::Logits;
use crate::runtime::memory_estimate::MemoryEstimate;
use crate::runtime::session::Prefill;
use admission::Waiting;
use kernels::backend::{Backend, CacheFormat};
use kernels::cuda::DeviceFailure;
use models::hybrid::mla::MlaPath;
use models::hybrid::{Outputs, Probe, Sequence};
use plan::{PrefillRate, allocate_tokens, next_large};
use queue::FairQueue;
use slot::Slot;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// A prompt to be completed, and the client that receives the events.
pub struct SequenceRequest {
    /// Tokens accepted by [`EngineBase::check`]; requests with the same prompt share them.
    pub prompt: Arc<[u32]>,
    /// Prompt lengths at which to insert a snapshot, such as the end of a system message or a document.
    pub snapshot_lengths: Vec<usize>,
    /// The start of the question about documents at the start of the prompt; its namespace has their layout.
    pub question: Option<usize>,
    pub params: GenerationParams,
    /// Report the log-probability of each token and of this many most likely tokens.
    pub logprobs: Option<usize>,
    /// The unit of fair scheduling: tenants share the slots equally.
    pub tenant: u64,
    /// Namespace of the prefix cache that is read and written.
    pub namespace: Namespace,
    pub client: Box<dyn Client>,
}

/// Receives the events of a request.
pub trait Client: Send {
    fn on_event(&mut self, event: EngineEvent);
    /// Returns true once the client no longer waits; the request is then cancelled.
    fn is_disconnected(&self) -> bool;
    /// Returns false while the client has too many unread events. Its sequence is then paused: the model thread neither
    /// blocks on a client nor buffers without bound.
    fn is_ready(&self) -> bool {
        true
    }
}

impl SequenceRequest {
    /// Reports to the client that the request was cancelled before any work.
    fn cancel(mut self) {
        self.client.on_event(EngineEvent::Finished(Stats {
            prefill: Prefill { stopped: true, ..Prefill::default() },
            prefill_time: Duration::ZERO,
            generated: 0,
            decode_time: Duration::ZERO,
            draft: DraftCounts::default(),
            expert_cache: None,
            ended: FinishReason::Cancelled,
        }));
    }
}

/// Limits on concurrency and state memory.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerLimits {
    /// Sequences that run at the same time.
    pub slots: usize,
    /// Bytes of all sequence states.
    pub bytes: u64,
    /// A sequence ends when its client has not read for this long.
    pub unread: Duration,
}

impl SchedulerLimits {
    /// Limits with a read timeout of 60 s.
    pub fn new(slots: usize, bytes: u64) -> Self {
        SchedulerLimits { slots, bytes, unread: Duration::from_secs(60) }
    }
}

/// Commands to the model thread.
pub enum Command {
    Submit(Box<SequenceRequest>),
    /// Cancel all requests and end the thread.
    Stop,
}

/// Values for monitoring, updated after each step.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Sequences that hold a slot.
    pub running: AtomicU64,
    /// Requests and preempted sequences without a slot.
    pub waiting: AtomicU64,
    /// Bytes reserved for sequence states.
    pub bytes: AtomicU64,
    /// Forward passes since the start.
    pub steps: AtomicU64,
    /// Tokens processed in all forward passes.
    pub tokens: AtomicU64,
    /// 1 once the GPU has failed and the CPU computes.
    pub degraded: AtomicU64,
}

/// The GPU failed: all replies under way have ended with an error.
pub struct Interrupted {
    pub failure: DeviceFailure,
    /// Requests that no token was computed for.
    pub waiting: Vec<SequenceRequest>,
}

/// Runs requests until [`Command::Stop`], or until all senders are dropped and all requests are finished.
///
/// # Errors
/// The GPU failed. The engine is unusable then.
pub fn run(
    engine: &EngineHandle,
    limits: SchedulerLimits,
    commands: &Receiver<Command>,
    gauges: &Gauges,
) -> Result<(), Interrupted> {
    match engine {
        EngineHandle::Cpu(engine) => run_on(engine, limits, commands, gauges),
        EngineHandle::Cuda(engine) => run_on(engine, limits, commands, gauges),
    }
}

fn run_on<B: Backend>(
    engine: &Engine<B>,
    limits: SchedulerLimits,
    commands: &Receiver<Command>,
    gauges: &Gauges,
) -> Result<(), Interrupted> {
    let mut scheduler = Scheduler::new(engine, limits);
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| serve(&mut scheduler, commands, gauges))) else {
        return Ok(());
    };
    let failure = *panic.downcast::<DeviceFailure>().unwrap_or_else(|panic| resume_unwind(panic));
    let waiting = scheduler.fail(&failure);
    scheduler.update_gauges(gauges);
    Err(Interrupted { failure, waiting })
}

fn serve<B: Backend>(scheduler: &mut Scheduler<'_, B>, commands: &Receiver<Command>, gauges: &Gauges) {
    while !scheduler.stopped {
        let command = if scheduler.idle() {
            commands.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            commands.try_recv()
        };
        match command {
            Ok(command) => scheduler.handle(command),
            Err(TryRecvError::Disconnected) if scheduler.idle() => break,
            Err(error) => {
                let worked = scheduler.step(&mut |scheduler| {
                    commands.try_iter().for_each(|command| scheduler.handle(command));
                    scheduler.update_gauges(gauges);
                });
                // Every sequence is paused for its client.
                match (worked, error) {
                    (true, _) => {}
                    (false, TryRecvError::Disconnected) => std::thread::sleep(CLIENT_POLL),
                    (false, TryRecvError::Empty) => match commands.recv_timeout(CLIENT_POLL) {
                        Ok(command) => scheduler.handle(command),
                        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
                    },
                }
            }
        }
        scheduler.update_gauges(gauges);
    }
    scheduler.stop();
    scheduler.engine.store.flush();
}

/// Size of a sequence's state as a function of its length.
#[derive(Clone, Copy, Debug)]
pub struct StateBytes {
    fixed: u64,
    per_token: u64,
}

impl StateBytes {
    /// Derives the sizes from the engine's model and KV cache type.
    pub fn new(engine: &EngineBase) -> Self {
        let need = MemoryEstimate::of(&engine.config, engine.batch as u64);
        let per_token = match engine.cache {
            CacheFormat::F32 => 2 * need.f16_bytes_per_token,
            CacheFormat::F16 => need.f16_bytes_per_token,
            CacheFormat::Q8_0 => need.q8_0_bytes_per_token,
        };
        StateBytes { fixed: need.kda_state_bytes + need.conv_bytes, per_token }
    }

    /// Returns the bytes of a state of this many tokens.
    pub fn of(self, tokens: u64) -> u64 {
        self.per_token.saturating_mul(tokens).saturating_add(self.fixed)
    }
}

/// All running and waiting requests of an engine.
pub struct Scheduler<'e, B: Backend> {
    engine: &'e Engine<B>,
    limits: SchedulerLimits,
    state_bytes: StateBytes,
    queue: FairQueue<Waiting<'e, B>>,
    slots: Vec<Slot<'e, B>>,
    /// Admitted requests and their state bytes, which wait until another sequence has prefilled their common prefix.
    prefix_waiters: Vec<(SequenceRequest, u64)>,
    /// Sequences that lost their slot while their client did not read.
    stalled: Vec<Slot<'e, B>>,
    /// The sequence that prefills an exclusive large chunk; it is not in `slots` meanwhile.
    exclusive: Option<ExclusivePrefill>,
    /// Number of large chunks so far.
    large_chunks: u64,
    prefill_rate: PrefillRate,
    decode_interval: Duration,
    /// The end of the last batched step.
    last_step: Instant,
    steps: u64,
    tokens: u64,
    /// Set by [`Scheduler::stop`]: later requests are cancelled.
    stopped: bool,
}

/// The properties of a sequence that others need while it prefills a large chunk.
struct ExclusivePrefill {
    /// The prompt, and its length at the next snapshot.
    prompt: Arc<[u32]>,
    snapshot_at: usize,
    namespace: Namespace,
    tenant: u64,
    /// Bytes reserved for its state.
    bytes: u64,
}

/// Time between decode steps of other sequences during a large chunk: each gets about half of the time.
const DECODE_INTERVAL: Duration = Duration::from_millis(100);

/// Polling interval while every sequence is paused for its client.
const CLIENT_POLL: Duration = Duration::from_millis(5);

/// Time to wait for a grammar mask when nothing else can be computed.
const MASK_WAIT: Duration = Duration::from_millis(2);

impl<'e, B: Backend> Scheduler<'e, B> {
    pub fn new(engine: &'e Engine<B>, limits: SchedulerLimits) -> Self {
        Scheduler {
            engine,
            limits,
            state_bytes: StateBytes::new(engine),
            queue: FairQueue::default(),
            slots: Vec::new(),
            prefix_waiters: Vec::new(),
            stalled: Vec::new(),
            exclusive: None,
            large_chunks: 0,
            prefill_rate: PrefillRate::new(engine.batch),
            decode_interval: DECODE_INTERVAL,
            last_step: Instant::now(),
            steps: 0,
            tokens: 0,
            stopped: false,
        }
    }

    /// Returns true if no request runs or waits.
    pub fn idle(&self) -> bool {
        self.slots.is_empty()
            && self.prefix_waiters.is_empty()
            && self.stalled.is_empty()
            && self.queue.is_empty()
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(request) => self.submit(*request),
            Command::Stop => self.stop(),
        }
    }

    /// Queues a request, or cancels it after [`Scheduler::stop`].
    pub fn submit(&mut self, request: SequenceRequest) {
        if self.stopped {
            return request.cancel();
        }
        self.queue.push(request.tenant, Waiting::New(Box::new(request)));
    }

    /// Cancels all running and waiting requests.
    pub fn stop(&mut self) {
        self.slots.drain(..).chain(self.stalled.drain(..)).for_each(Slot::finish);
        self.prefix_waiters.drain(..).for_each(|(request, _)| request.cancel());
        self.queue.drain().for_each(Waiting::cancel);
        self.stopped = true;
    }

    /// Ends all replies under way with an error, and returns the requests that were not admitted.
    fn fail(&mut self, failure: &DeviceFailure) -> Vec<SequenceRequest> {
        let message = &failure.0;
        self.exclusive = None;
        self.slots.drain(..).chain(self.stalled.drain(..)).for_each(|slot| slot.fail(message));
        let mut requests: Vec<_> = self.prefix_waiters.drain(..).map(|(request, _)| request).collect();
        for waiting in self.queue.drain() {
            match waiting {
                Waiting::New(request) => requests.push(*request),
                Waiting::Preempted(slot) => slot.fail(message),
            }
        }
        requests
    }

    /// Runs one step: drops disconnected clients, admits requests, and processes tokens. A large chunk calls `poll` after each
    /// layer to receive commands. Returns false if there was nothing to compute.
    pub fn step(&mut self, poll: &mut dyn FnMut(&mut Self)) -> bool {
        self.reap_and_admit();
        let left: Vec<Option<usize>> = self.slots.iter().map(Slot::large_chunk_tokens).collect();
        match next_large(&left, self.large_chunks) {
            Some(i) => {
                self.prefill_large_chunk(i, poll);
                true
            }
            None => self.batched_step(),
        }
    }

    /// Removes requests of disconnected clients and admits waiting ones.
    fn reap_and_admit(&mut self) {
        self.queue.retain(|waiting| !waiting.is_disconnected());
        self.prefix_waiters.retain(|(request, _)| !request.client.is_disconnected());
        self.check_clients();
        std::mem::take(&mut self.prefix_waiters)
            .into_iter()
            .for_each(|(request, bytes)| self.admit(request, bytes));
        self.admit_waiting();
    }

    /// Prefills a large chunk of one prompt. After a layer the other sequences may take a decode step, so that none waits
    /// for longer than a layer.
    fn prefill_large_chunk(&mut self, i: usize, poll: &mut dyn FnMut(&mut Self)) {
        let mut slot = self.slots.remove(i);
        let alone = self.slots.is_empty() && self.queue.is_empty() && self.prefix_waiters.is_empty();
        let most = if alone { self.engine.max_step_tokens(MlaPath::Materialized) } else { self.engine.batch };
        let tokens = slot.large_chunk_tokens().map_or(0, |wants| wants.min(most));
        self.exclusive = Some(slot.exclusive());
        self.large_chunks += 1;
        let prefilled =
            catch_unwind(AssertUnwindSafe(|| self.prefill_exclusive(&mut slot, tokens, alone, poll)));
        self.exclusive = None;
        match prefilled {
            Ok(true) if slot.has_ended() => slot.finish(),
            Ok(true) => self.slots.insert(i.min(self.slots.len()), slot),
            Ok(false) => slot.abandon(),
            Err(panic) => {
                self.slots.push(slot); // if the GPU has failed, its client gets the error, too
                resume_unwind(panic)
            }
        }
    }

    /// Prefills `tokens` of a sequence. Returns false if this was abandoned. Unless the sequence is `alone`, the device has
    /// then finished, because the next decode step would queue behind the whole chunk.
    fn prefill_exclusive(
        &mut self,
        slot: &mut Slot<'e, B>,
        tokens: usize,
        alone: bool,
        poll: &mut dyn FnMut(&mut Self),
    ) -> bool {
        let Engine { backend, model, .. } = self.engine;
        let (sequence, client) = slot.with_client(tokens);
        let mut hook = LayerHook { scheduler: self, poll, client, abandoned: false };
        let logits = model.forward(backend, &mut [sequence], &mut hook);
        let abandoned = hook.abandoned;
        let logits = logits.map(|logits| Logits::new(self.engine, logits, 1));
        if !alone {
            backend.wait();
        }
        if abandoned {
            return false;
        }
        self.count(tokens);
        slot.advance(tokens, &mut logits.iter().flat_map(Logits::rows));
        true
    }

    /// Processes one token of every decoding sequence and small chunks of prompts.
    fn batched_step(&mut self) -> bool {
        self.slots.iter_mut().for_each(|slot| slot.unpark(Duration::ZERO));
        self.finish_where(Slot::has_ended);
        let wants: Vec<usize> = self.slots.iter().map(Slot::batchable_tokens).collect();
        let replies = self.slots.iter().filter(|s| s.is_decoding() && !s.is_parked()).count();
        let budget = self.prefill_rate.budget(replies);
        let shares = allocate_tokens(&wants, budget);
        let all: usize = shares.iter().sum();
        if all == 0 {
            return self.exclusive.is_none() && self.wait_for_mask();
        }
        let drafted = self.draft(&shares, budget.saturating_sub(all));
        let start = Instant::now();
        let logits = self.forward(&shares);
        self.count(all + drafted);
        let mut rows = logits.iter().flat_map(Logits::rows);
        for (slot, tokens) in self.slots.iter_mut().zip(&shares).filter(|(_, tokens)| **tokens > 0) {
            slot.advance(*tokens, &mut rows);
        }
        // The device finishes a step when tokens are sampled, not at the launch, and only after earlier work.
        if logits.is_some() && self.exclusive.is_none() {
            if drafted == 0 {
                self.prefill_rate.record(all - replies.min(all), start.elapsed());
            }
            if let ([slot], [1]) = (&mut self.slots[..], &shares[..]) {
                slot.record_step(1 + drafted, start.elapsed());
            }
        }
        self.last_step = Instant::now();
        self.finish_where(Slot::has_ended);
        true
    }

    /// Drafts tokens of the sequences that decode in this step, `left` at most: what prefill leaves of the budget. Returns
    /// their number. Between the layers of a large chunk there are none.
    fn draft(&mut self, shares: &[usize], left: usize) -> usize {
        if self.exclusive.is_some() {
            return 0;
        }
        let (mut drafted, others) = (0, shares.iter().sum::<usize>().saturating_sub(1));
        for (slot, _) in self.slots.iter_mut().zip(shares).filter(|(_, tokens)| **tokens == 1) {
            drafted += slot.draft(left - drafted, others + drafted);
        }
        drafted
    }

    /// Waits up to [`MASK_WAIT`] for the mask of a parked sequence. Returns false if none is parked.
    fn wait_for_mask(&mut self) -> bool {
        let parked = self.slots.iter_mut().find(|slot| slot.is_parked());
        let found = parked.map(|slot| slot.unpark(MASK_WAIT)).is_some();
        self.finish_where(Slot::has_ended);
        found
    }

    fn finish_where(&mut self, predicate: impl Fn(&Slot<'e, B>) -> bool) {
        self.slots.extract_if(.., |slot| predicate(slot)).for_each(Slot::finish);
    }

    /// Returns one row of logits per sequence whose tokens are all processed, or None if there is no such sequence.
    fn forward(&mut self, shares: &[usize]) -> Option<Logits<'e, B>> {
        let moving = self.slots.iter_mut().zip(shares).filter(|(_, tokens)| **tokens > 0);
        let sequences = moving.map(|(slot, tokens)| slot.sequence(*tokens));
        let mut sequences: Vec<Sequence<'_, B>> = sequences.collect();
        let Engine { backend, model, .. } = self.engine;
        let rows = |s: &Sequence<'_, B>| match s.outputs {
            Outputs::None => 0,
            Outputs::Last => 1,
            Outputs::All | Outputs::Draft => s.tokens.len(),
        };
        let rows = sequences.iter().map(rows).sum();
        let logits = model.forward(backend, &mut sequences, &mut ());
        logits.map(|logits| Logits::new(self.engine, logits, rows))
    }

    fn count(&mut self, tokens: usize) {
        self.steps += 1;
        self.tokens += tokens as u64;
    }

    /// Gives a request a slot, unless another sequence is prefilling a prefix of its prompt: common prefixes are prefilled
    /// once.
    fn admit(&mut self, request: SequenceRequest, bytes: u64) {
        let exclusive = self.exclusive.as_ref().is_some_and(|exclusive| {
            exclusive.namespace == request.namespace
                && request.prompt.starts_with(&exclusive.prompt[..exclusive.snapshot_at])
        });
        if self.engine.store.fits_in_memory()
            && (exclusive || self.slots.iter().any(|slot| slot.prefills_prefix_of(&request)))
        {
            return self.prefix_waiters.push((request, bytes));
        }
        let slot = Slot::new(self.engine, request, bytes);
        // A cached prompt has logits: the reply may end with its first token.
        if slot.has_ended() { slot.finish() } else { self.slots.push(slot) }
    }

    fn bytes(&self) -> u64 {
        let waiting_for_prefix = self.prefix_waiters.iter().map(|(_, bytes)| *bytes);
        let exclusive = self.exclusive.iter().map(|exclusive| exclusive.bytes);
        let waiting = self.queue.iter().map(Waiting::held_bytes);
        let states = self.slots.iter().chain(&self.stalled).map(Slot::held_bytes);
        states.chain(waiting_for_prefix).chain(exclusive).chain(waiting).sum()
    }

    fn update_gauges(&self, gauges: &Gauges) {
        let set = |gauge: &AtomicU64, value: u64| gauge.store(value, Ordering::Relaxed);
        set(&gauges.running, self.slots.len() as u64 + u64::from(self.exclusive.is_some()));
        let waiting = self.queue.len() + self.prefix_waiters.len() + self.stalled.len();
        set(&gauges.waiting, waiting as u64);
        set(&gauges.bytes, self.bytes());
        set(&gauges.steps, self.steps);
        set(&gauges.tokens, self.tokens);
    }
}

/// Runs between the layers of a large chunk.
struct LayerHook<'b, 'e, B: Backend> {
    scheduler: &'b mut Scheduler<'e, B>,
    poll: &'b mut dyn FnMut(&mut Scheduler<'e, B>),
    /// Client of the sequence that prefills.
    client: &'b dyn Client,
    /// Set when the client disconnects or the scheduler stops.
    abandoned: bool,
}

impl<B: Backend> Probe<B> for LayerHook<'_, '_, B> {
    fn layer_done(&mut self) {
        (self.poll)(self.scheduler);
        self.abandoned = self.scheduler.stopped || self.client.is_disconnected();
        if self.abandoned {
            return;
        }
        self.scheduler.reap_and_admit();
        if self.scheduler.last_step.elapsed() >= self.scheduler.decode_interval {
            self.scheduler.batched_step();
        }
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    fn is_active(&self) -> bool {
        false
    }
}
