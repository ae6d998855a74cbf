//! One sequence in the batch: its state, its reply and its client.

use super::{Client, Job, Update};
use crate::engine::Engine;
use crate::generate::Stats;
use crate::logprobs::Logprobs;
use crate::reply::{Ended, Reply};
use crate::scores::{Row, Scores};
use crate::session::{Prefill, next_point};
use crate::snapshot::Source;
use kernels::backend::Backend;
use models::kimi_linear::mla::Form;
use models::kimi_linear::state::State;
use models::kimi_linear::{Outputs, Sequence};
use std::time::Instant;

/// Tokens read that are worth a snapshot when their client leaves.
const WORTH_KEEPING: usize = 256;

/// A sequence under way.
pub struct Slot<'e, B: Backend> {
    /// Memory reserved for its state.
    pub bytes: u64,
    engine: &'e Engine<B>,
    state: State<B>,
    reply: Reply<'e>,
    /// Tokens of prompt and reply that are in the state.
    done: usize,
    prompt: usize,
    /// The form of the next tokens of the prompt, and where they end.
    ahead: (Form, usize),
    /// Lengths of the prompt to keep snapshots of.
    marks: Vec<usize>,
    reused: usize,
    source: Option<Source>,
    logprobs: Option<usize>,
    client: Box<dyn Client>,
    ended: Option<Ended>,
    admitted: Instant,
    /// When the prompt was in.
    read: Option<Instant>,
    /// When the last token was chosen.
    chosen: Option<Instant>,
}

impl<'e, B: Backend> Slot<'e, B> {
    /// Admits a job, on the longest beginning of its prompt that has a state.
    pub fn new(engine: &'e Engine<B>, job: Job, bytes: u64) -> Self {
        let hit = engine.store.longest(&engine.backend, &job.prompt, None);
        let empty = || (engine.model.state(&engine.backend, engine.cache), 0, None, Vec::new());
        let (state, reused, source, logits) =
            hit.map_or_else(empty, |hit| (hit.state, hit.len, Some(hit.source), hit.logits));
        let mut slot = Slot {
            bytes,
            engine,
            state,
            reply: Reply::new(engine, &job.prompt, job.rules),
            done: reused,
            prompt: job.prompt.len(),
            ahead: (Form::Absorbed, reused),
            marks: job.marks,
            reused,
            source,
            logprobs: job.logprobs,
            client: job.client,
            ended: None,
            admitted: Instant::now(),
            read: None,
            chosen: None,
        };
        if slot.replying() {
            slot.tell_progress();
            let scores = Scores::of(engine, logits);
            scores.rows().for_each(|row| slot.choose(&row));
        }
        slot.look_ahead();
        slot
    }

    /// Whether nobody listens any more to what is still to come.
    pub fn gone(&self) -> bool {
        self.ended.is_none() && self.client.gone()
    }

    /// Tokens that could go into the next step with others; none where they are read in large pieces.
    pub fn wants_small(&self) -> usize {
        if self.large() { 0 } else { self.end() - self.done }
    }

    /// Tokens that could go into the next large piece.
    pub fn wants_large(&self) -> Option<usize> {
        self.large().then(|| self.end() - self.done)
    }

    /// Whether making keys and values for the next tokens pays in large pieces only.
    fn large(&self) -> bool {
        B::EXPANDS && !self.replying() && self.ahead.0 == Form::Expanded
    }

    /// Where the next tokens end: what is left up to the next snapshot, as far as it is read in the same form.
    fn end(&self) -> usize {
        if self.replying() { self.reply.tokens().len() } else { self.ahead.1 }
    }

    /// Its prompt up to the next snapshot.
    pub fn beginning(&self) -> &[u32] {
        &self.reply.tokens()[..self.point()]
    }

    /// Sees what form the next tokens are read in.
    fn look_ahead(&mut self) {
        if !self.replying() && self.done >= self.ahead.1 {
            self.ahead = self.engine.form(self.reply.tokens(), self.done..self.point(), None);
        }
    }

    /// Where the next snapshot of its prompt is.
    fn point(&self) -> usize {
        next_point(self.done, self.reply.tokens().len(), &self.marks)
    }

    /// Whether the next snapshot of its prompt is of a beginning of this one too.
    pub fn reads_for(&self, prompt: &[u32]) -> bool {
        !self.replying() && prompt.starts_with(self.beginning())
    }

    /// Whether its prompt is in.
    pub fn replying(&self) -> bool {
        self.done >= self.prompt
    }

    /// Its part of a step.
    pub fn sequence(&mut self, tokens: usize) -> Sequence<'_, B> {
        let end = self.done + tokens;
        let last = end == self.reply.tokens().len() && self.ended.is_none();
        let outputs = if last { Outputs::Last } else { Outputs::None };
        let form = if self.replying() { Form::Absorbed } else { self.ahead.0 };
        let tokens = &self.reply.tokens()[self.done..end];
        Sequence { tokens, state: &mut self.state, outputs, form }
    }

    /// So many tokens are in; if these were all, the next of `logits` are those after them.
    pub fn advance<'l>(&mut self, tokens: usize, logits: &mut impl Iterator<Item = Row<'l, 'e, B>>)
    where
        'e: 'l,
    {
        let reading = !self.replying();
        let at_point = reading && self.done + tokens == self.point();
        self.done += tokens;
        if reading {
            self.tell_progress();
            self.look_ahead();
        }
        if self.ended.is_some() {
            return;
        }
        if self.done < self.reply.tokens().len() {
            if at_point {
                self.keep(&[], self.marks.contains(&self.done));
            }
            return;
        }
        let logits = logits.next().expect("a row of logits for every sequence whose tokens are all in");
        if reading && self.engine.store.takes() {
            self.keep(logits.values(), false);
        }
        self.choose(&logits);
    }

    fn choose(&mut self, logits: &Row<'_, '_, B>) {
        let now = Instant::now();
        self.read.get_or_insert(now);
        self.chosen = Some(now);
        let choice = self.reply.choose(logits);
        let told = choice.token.zip(self.logprobs);
        let logprobs = told.map(|(token, top)| Logprobs::of(logits.values(), token, top));
        if choice.token.is_some() || !choice.text.is_empty() {
            self.client.hear(Update::Chosen { token: choice.token, text: choice.text, logprobs });
        }
        self.ended = choice.ended;
    }

    fn tell_progress(&mut self) {
        self.client.hear(Update::Read { reused: self.reused, done: self.done, total: self.prompt });
    }

    /// Keeps a snapshot of it as it is; `always`: on disk too, however little reading it saves.
    fn keep(&self, logits: &[f32], always: bool) {
        let Engine { backend, store, .. } = self.engine;
        store.insert(backend, &self.reply.tokens()[..self.done], &self.state, logits, always);
    }

    /// Whether nothing is left to do for it. A reply that the limit cut stays for one more step, which takes in its
    /// last token: the conversation then goes on from a state after all of it.
    pub fn has_ended(&self) -> bool {
        let all = self.reply.tokens().len();
        let cut = self.ended == Some(Ended::Length) && all as u64 <= self.engine.context;
        self.ended.is_some() && !(cut && self.done < all && self.engine.store.keeps())
    }

    /// Leaves, with a snapshot if it was worth the work; then tells its client how it was, who may ask for more.
    pub fn leave(mut self) {
        let worth = self.ended.is_some() || self.done - self.reused >= WORTH_KEEPING;
        let apart = self.engine.apart(self.reply.tokens(), self.prompt.min(self.done)..self.done);
        if self.done > self.reused && worth && !apart {
            self.keep(&[], false);
        }
        let ended = self.ended.take().unwrap_or(Ended::Cancelled);
        let now = self.chosen.unwrap_or_else(Instant::now);
        let read = self.read.unwrap_or(now);
        self.client.hear(Update::Done(Stats {
            prefill: Prefill {
                reused: self.reused,
                source: self.source,
                computed: self.done.min(self.prompt) - self.reused,
                stopped: self.read.is_none(),
            },
            prefill_time: read - self.admitted,
            generated: self.reply.generated(),
            decode_time: now - read,
            met: None, // of all that are served at once
            ended,
        }));
    }
}
