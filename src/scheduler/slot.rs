//! One sequence in the batch: its state, its reply and its client.

use super::{Away, Client, Job, Update};
use crate::generation::decoder::{Decoder, FinishReason};
use crate::generation::generate::Stats;
use crate::generation::logprobs::Logprobs;
use crate::prefix_cache::Source;
use crate::prefix_cache::namespace::Namespace;
use crate::runtime::engine::Engine;
use crate::runtime::logits::{Logits, LogitsRow};
use crate::runtime::session::{Prefill, next_checkpoint, thin_checkpoints};
use kernels::backend::Backend;
use models::kimi_linear::mla::MlaPath;
use models::kimi_linear::state::State;
use models::kimi_linear::{Outputs, Sequence};
use std::time::{Duration, Instant};

/// Tokens read that are worth a snapshot when their client leaves.
const WORTH_KEEPING: usize = 256;

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    Slot,
    Memory,
}

/// A sequence under way.
pub struct Slot<'e, B: Backend> {
    /// Memory reserved for its state.
    pub bytes: u64,
    /// Whose it is.
    pub owner: u64,
    /// When it first had a slot.
    pub admitted: Instant,
    namespace: Namespace,
    engine: &'e Engine<B>,
    /// None while it is preempted and its memory is needed.
    state: Option<State<B>>,
    reply: Decoder<'e>,
    /// Tokens of prompt and reply that are in the state.
    done: usize,
    /// Tokens processed since it has its slot, and of these tokens chosen.
    turn: (usize, usize),
    /// The form of the next tokens of the prompt, and where they end.
    ahead: (MlaPath, usize),
    /// Lengths of the prompt to keep snapshots of.
    marks: Vec<usize>,
    reused: usize,
    source: Option<Source>,
    logprobs: Option<usize>,
    client: Box<dyn Client>,
    ended: Option<FinishReason>,
    /// Since when its client does not read.
    paused: Option<Instant>,
    /// The logits of the next token, while the mask that it is chosen with is being computed. The sequence sits out
    /// of steps until then.
    parked: Option<Vec<f32>>,
    /// When the prompt was in.
    read: Option<Instant>,
    /// When the last token was chosen.
    chosen: Option<Instant>,
}

impl<'e, B: Backend> Slot<'e, B> {
    /// Admits a job, on the longest beginning of its prompt that has a state.
    pub fn new(engine: &'e Engine<B>, job: Job, bytes: u64) -> Self {
        let mut slot = Slot {
            bytes,
            owner: job.owner,
            admitted: Instant::now(),
            namespace: job.namespace,
            engine,
            state: None,
            reply: Decoder::new(engine, job.prompt, job.rules),
            done: 0,
            turn: (0, 0),
            ahead: (MlaPath::Absorbed, 0),
            marks: thin_checkpoints(&job.marks),
            reused: 0,
            source: None,
            logprobs: job.logprobs,
            client: job.client,
            ended: None,
            paused: None,
            parked: None,
            read: None,
            chosen: None,
        };
        let (source, logits) = slot.restore();
        (slot.reused, slot.source) = (slot.done, source);
        slot.begin(logits);
        slot
    }

    /// Continues in a slot after it was preempted.
    pub fn resume(&mut self) {
        self.turn = (0, 0);
        if self.state.is_none() {
            let (_, logits) = self.restore();
            self.begin(logits);
        }
    }

    /// Takes the state of the longest prefix of its tokens that has one: where it is from, and the logits after all of them.
    fn restore(&mut self) -> (Option<Source>, Vec<f32>) {
        let Engine { backend, model, store, cache, .. } = self.engine;
        // A prompt may have been read in expanded form that is a reply here.
        let (prompt, all) = (self.reply.prompt().len(), self.reply.total());
        let apart = self.engine.is_noncanonical(&self.reply.first(all), prompt..all);
        let tokens = self.reply.first(if apart { prompt } else { all });
        let hit = store.within(self.namespace).longest_prefix(backend, &tokens, None);
        let empty = || (model.state(backend, *cache), 0, None, Vec::new());
        let (state, done, source, logits) =
            hit.map_or_else(empty, |hit| (hit.state, hit.len, Some(hit.source), hit.logits));
        (self.state, self.done, self.ahead) = (Some(state), done, (MlaPath::Absorbed, done));
        (source, logits)
    }

    fn begin(&mut self, logits: Vec<f32>) {
        // A parked sequence has the logits of its next token.
        if self.done == self.reply.total() && self.parked.is_none() {
            self.tell_progress();
            let scores = Logits::from_values(self.engine, logits);
            scores.rows().for_each(|row| self.choose_or_park(&row));
        }
        self.look_ahead();
    }

    /// Frees its state, which stays in the prefix cache as far as there is room.
    pub fn free_state(&mut self) {
        self.checkpoint();
        (self.state, self.done) = (None, 0);
    }

    /// Memory that its state takes.
    pub fn holds(&self) -> u64 {
        if self.state.is_some() { self.bytes } else { 0 }
    }

    /// Whether another may have its slot: not for the last step of a reply.
    pub fn can_be_preempted(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether it has processed so many tokens in its slot. Where its state has to go too, these are tokens of its reply, and
    /// more where it had to compute much before: preemption is to cost a part of the work at most.
    pub fn had_turn(&self, tokens: usize, lack: Lack) -> bool {
        let (processed, chosen) = self.turn;
        match lack {
            Lack::Slot => processed >= tokens,
            Lack::Memory => chosen >= tokens + (processed - chosen) / 16,
        }
    }

    /// Pauses it while its client does not read, and ends it where that takes longer than `limit`.
    pub fn check_client(&mut self, now: Instant, limit: Duration) {
        self.paused = if self.client.ready() { None } else { self.paused.or(Some(now)) };
        if self.is_paused() && self.paused.is_some_and(|since| now - since >= limit) {
            self.ended = Some(FinishReason::Unread(limit));
        }
    }

    /// Whether it takes no part in steps, as its client does not read.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some() && self.ended.is_none()
    }

    /// Whether its next token waits for a mask, and its client for the token.
    pub fn is_parked(&self) -> bool {
        self.parked.is_some() && !self.is_paused()
    }

    /// Whether it takes no part in steps.
    fn sits_out(&self) -> bool {
        self.is_paused() || self.parked.is_some()
    }

    /// Whether it ended because its client did not read.
    pub fn is_unread(&self) -> bool {
        matches!(self.ended, Some(FinishReason::Unread(_)))
    }

    /// Whether nobody listens any more to what is still to come.
    pub fn gone(&self) -> bool {
        self.ended.is_none() && self.client.gone()
    }

    /// Tokens that could go into the next step with others; none where they are read in large pieces.
    pub fn wants_small(&self) -> usize {
        if self.large() || self.sits_out() { 0 } else { self.end() - self.done }
    }

    /// Tokens that could go into the next large piece.
    pub fn wants_large(&self) -> Option<usize> {
        (self.large() && !self.sits_out()).then(|| self.end() - self.done)
    }

    /// Whether making keys and values for the next tokens pays in large pieces only.
    fn large(&self) -> bool {
        !self.replying() && self.ahead.0 == MlaPath::Materialized
    }

    /// Where the next tokens end: what is left up to the next snapshot, as far as it is read in the same form.
    fn end(&self) -> usize {
        if self.replying() { self.reply.total() } else { self.ahead.1 }
    }

    /// What is to be known of it while it reads a large piece.
    pub fn away(&self) -> Away {
        let (prompt, point) = (self.reply.shared_prompt(), self.point());
        Away { prompt, point, namespace: self.namespace, owner: self.owner, bytes: self.bytes }
    }

    /// Sees what form the next tokens are read in.
    fn look_ahead(&mut self) {
        if !self.replying() && self.done >= self.ahead.1 {
            self.ahead = self.engine.mla_path(self.reply.prompt(), self.done..self.point(), None);
        }
    }

    /// Where the next snapshot of its prompt is.
    fn point(&self) -> usize {
        next_checkpoint(self.done, self.reply.prompt().len(), &self.marks)
    }

    /// Whether the next snapshot of its prompt is of a beginning of this one too.
    pub fn reads_for(&self, job: &Job) -> bool {
        let shares = !self.replying() && !self.sits_out() && self.namespace == job.namespace;
        shares && job.prompt.starts_with(&self.reply.prompt()[..self.point()])
    }

    /// Whether its prompt is in.
    pub fn replying(&self) -> bool {
        self.done >= self.reply.prompt().len()
    }

    /// Its part of a step.
    pub fn sequence(&mut self, tokens: usize) -> Sequence<'_, B> {
        self.with_client(tokens).0
    }

    /// Its part of a step, and the owner.
    pub fn with_client(&mut self, tokens: usize) -> (Sequence<'_, B>, &dyn Client) {
        let end = self.done + tokens;
        let last = end == self.reply.total() && self.ended.is_none();
        let outputs = if last { Outputs::Last } else { Outputs::None };
        let form = if self.replying() { MlaPath::Absorbed } else { self.ahead.0 };
        let tokens = self.reply.span(self.done..end);
        let state = self.state.as_mut().expect("a sequence in a slot has a state");
        (Sequence { tokens, state, outputs, mla_path: form }, &*self.client)
    }

    /// Leaves in the middle of a step, whose state is of no use.
    pub fn abandon(mut self) {
        self.state = None;
        self.leave();
    }

    /// So many tokens are in; if these were all, the next of `logits` are those after them.
    pub fn advance<'l>(&mut self, tokens: usize, logits: &mut impl Iterator<Item = LogitsRow<'l, 'e, B>>)
    where
        'e: 'l,
    {
        let reading = !self.replying();
        let at_point = reading && self.done + tokens == self.point();
        self.done += tokens;
        self.turn.0 += tokens;
        if reading {
            self.tell_progress();
            self.look_ahead();
        }
        if self.ended.is_some() {
            return;
        }
        if self.done < self.reply.total() {
            if at_point {
                self.keep(&[], self.marks.contains(&self.done));
            }
            return;
        }
        let logits = logits.next().expect("a row of logits for every sequence whose tokens are all in");
        if reading && self.engine.store.accepts() {
            self.keep(logits.values(), false);
        }
        self.choose_or_park(&logits);
    }

    /// Chooses the token that a parked sequence waits for, if its mask comes within the limit.
    pub fn unpark(&mut self, limit: Duration) {
        if self.is_parked() && self.reply.wait(limit) {
            let scores = Logits::from_values(self.engine, self.parked.take().unwrap_or_default());
            scores.rows().for_each(|row| self.choose(&row));
        }
    }

    /// Chooses the next token, or keeps its logits until the mask is there.
    fn choose_or_park(&mut self, logits: &LogitsRow<'_, '_, B>) {
        if self.reply.wait(Duration::ZERO) {
            self.choose(logits);
        } else {
            self.parked = Some(logits.values().to_vec());
        }
    }

    fn choose(&mut self, logits: &LogitsRow<'_, '_, B>) {
        let now = Instant::now();
        self.read.get_or_insert(now);
        self.chosen = Some(now);
        self.turn.1 += 1;
        let choice = self.reply.next_token(logits);
        let told = choice.token.zip(self.logprobs);
        let logprobs = told.map(|(token, top)| Logprobs::of(logits.values(), token, top));
        if choice.token.is_some() || !choice.text.is_empty() {
            self.client.hear(Update::Chosen { token: choice.token, text: choice.text, logprobs });
        }
        self.ended = choice.ended;
    }

    fn tell_progress(&mut self) {
        // Once the prompt was in, computing it again is no progress.
        if self.read.is_none() {
            let total = self.reply.prompt().len();
            self.client.hear(Update::Read { reused: self.reused, done: self.done, total });
        }
    }

    /// Keeps a snapshot of it as it is; `always`: on disk too, however little reading it saves.
    fn keep(&self, logits: &[f32], always: bool) {
        let (Engine { backend, store, .. }, Some(state)) = (self.engine, &self.state) else { return };
        if !self.engine.may_keep() {
            return;
        }
        let tokens = self.reply.first(self.done);
        store.within(self.namespace).insert(backend, &tokens, state, logits, always);
    }

    /// Keeps a snapshot of it as it is, if that is more than what it began with and others may go on from it.
    fn checkpoint(&self) {
        let own = self.reply.prompt().len().min(self.done)..self.done;
        if self.done > self.reused && !self.engine.is_noncanonical(&self.reply.first(self.done), own) {
            self.keep(&[], false);
        }
    }

    /// Whether nothing is left to do for it. A reply that the limit cut stays for one more step, which takes in its
    /// last token: the conversation then goes on from a state after all of it.
    pub fn has_ended(&self) -> bool {
        let all = self.reply.total();
        let cut = self.ended == Some(FinishReason::Length) && all as u64 <= self.engine.context;
        self.ended.is_some() && !(cut && self.done < all && self.engine.store.fits_in_memory())
    }

    /// Leaves, with a snapshot if it was worth the work; then tells its client how it was, who may ask for more.
    pub fn leave(mut self) {
        let broken = matches!(self.ended, Some(FinishReason::NotFinite(_)));
        let worth = self.ended.is_some() || self.done.saturating_sub(self.reused) >= WORTH_KEEPING;
        if worth && !broken {
            self.checkpoint();
        }
        let ended = self.ended.take().unwrap_or(FinishReason::Cancelled);
        let now = self.chosen.unwrap_or_else(Instant::now);
        let read = self.read.unwrap_or(now);
        self.client.hear(Update::Done(Stats {
            prefill: Prefill {
                reused: self.reused,
                source: self.source,
                computed: self.reply.prompt().len().min(self.done).saturating_sub(self.reused),
                stopped: self.read.is_none(),
            },
            prefill_time: read - self.admitted,
            generated: self.reply.generated(),
            decode_time: now - read,
            expert_cache: None, // of all that are served at once
            ended,
        }));
    }
}
