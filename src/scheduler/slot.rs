//! One admitted sequence: its state, its decoder and its client. The scheduler decides when it runs.

use super::{Client, ExclusivePrefill, SequenceRequest};
use crate::generation::decoder::{Decoder, FinishReason};
use crate::generation::draft::Drafter;
use crate::generation::event::{EngineEvent, Stats};
use crate::generation::logprobs::Logprobs;
use crate::prefix_cache::PrefixSource;
use crate::runtime::engine::Engine;
use crate::runtime::logits::{Logits, LogitsRow};
use crate::runtime::prefill::PrefillDriver;
use crate::runtime::session::Prefill;
use kernels::backend::Backend;
use models::hybrid::mla::MlaPath;
use models::hybrid::{Outputs, Sequence};
use std::time::{Duration, Instant};

/// Prefilled tokens that justify a snapshot when a request is cancelled.
const MIN_SNAPSHOT_TOKENS: usize = 256;

/// Time that a step waits for the grammar masks of the tokens of a draft; the rest of the draft is dropped after that.
const DRAFT_MASK_WAIT: Duration = Duration::from_millis(5);

/// Time that a step of one sequence waits for what its constraint expects next.
const LIKELY_WAIT: Duration = Duration::from_millis(2);

/// The resource that prevents admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    Slot,
    Memory,
}

/// An admitted sequence, running or preempted.
pub struct Slot<'e, B: Backend> {
    /// Bytes reserved for its state.
    pub bytes: u64,
    pub tenant: u64,
    /// Time of the first admission.
    pub admitted: Instant,
    engine: &'e Engine<B>,
    /// The state of prompt and reply; freed after preemption if memory is short.
    driver: PrefillDriver<'e, B>,
    reply: Decoder<'e>,
    drafter: Drafter,
    /// The last sampled token and the draft of the next step; empty without a draft.
    drafted: Vec<u32>,
    /// Tokens processed since the last admission, and those of them that were sampled.
    processed: (usize, usize),
    /// Tokens whose state was freed and not restored: they are computed again.
    recomputed: usize,
    reused: usize,
    source: Option<PrefixSource>,
    logprobs: Option<usize>,
    client: Box<dyn Client>,
    ended: Option<FinishReason>,
    /// Time since which the client does not read.
    paused: Option<Instant>,
    /// Logits of the next token while its grammar mask is being computed. The sequence takes no part in steps until then.
    parked: Option<Vec<f32>>,
    /// Time at which the prefill ended.
    prefilled: Option<Instant>,
    /// Time at which the last token was sampled.
    last_token: Option<Instant>,
}

impl<'e, B: Backend> Slot<'e, B> {
    /// Admits a request and restores the longest cached prefix of its prompt.
    pub fn new(engine: &'e Engine<B>, request: SequenceRequest, bytes: u64) -> Self {
        let mut driver = PrefillDriver::new(engine, request.namespace);
        driver.begin(&request.snapshot_lengths, request.question);
        let mut slot = Slot {
            bytes,
            tenant: request.tenant,
            admitted: Instant::now(),
            engine,
            driver,
            drafter: Drafter::new(engine, &request.prompt),
            drafted: Vec::new(),
            reply: Decoder::new(engine, request.prompt, request.params),
            processed: (0, 0),
            recomputed: 0,
            reused: 0,
            source: None,
            logprobs: request.logprobs,
            client: request.client,
            ended: None,
            paused: None,
            parked: None,
            prefilled: None,
            last_token: None,
        };
        let (source, logits) = slot.restore();
        (slot.reused, slot.source) = (slot.driver.len(), source);
        slot.begin(logits);
        slot
    }

    /// Continues after preemption; restores the state if it was freed.
    pub fn resume(&mut self) {
        self.processed = (0, 0);
        if self.driver.has_state() {
            self.recomputed = 0;
            return;
        }
        let (_, logits) = self.restore();
        self.recomputed = self.recomputed.saturating_sub(self.driver.len());
        self.begin(logits);
    }

    /// Restores the longest cached prefix. Returns its source, and the logits if the cache has them for all tokens.
    fn restore(&mut self) -> (Option<PrefixSource>, Vec<f32>) {
        // A reply here may be the prompt of another request, prefilled with materialized attention.
        let (prompt, all) = (self.reply.prompt().len(), self.reply.total());
        let apart = self.engine.is_noncanonical(&self.reply.first(all), prompt..all);
        let tokens = self.reply.first(if apart { prompt } else { all });
        self.driver
            .restore(&tokens, false)
            .map_or((None, Vec::new()), |(source, logits)| (Some(source), logits))
    }

    fn begin(&mut self, logits: Vec<f32>) {
        // A parked sequence already has the logits of its next token.
        if self.driver.len() == self.reply.total() && self.parked.is_none() {
            self.report_progress();
            let logits = Logits::from_values(self.engine, logits);
            logits.rows().for_each(|row| self.sample_or_park(&row, Duration::ZERO));
        }
        self.driver.plan(self.reply.prompt());
    }

    /// Moves its state to the prefix cache, which may evict it.
    pub fn free_state(&mut self) {
        self.insert_final_snapshot();
        self.recomputed = self.recomputed.max(self.driver.len());
        self.driver.free();
    }

    /// Bytes that its state occupies.
    pub fn held_bytes(&self) -> u64 {
        if self.driver.has_state() { self.bytes } else { 0 }
    }

    /// Returns false during the last step of a reply.
    pub fn can_be_preempted(&self) -> bool {
        self.ended.is_none()
    }

    /// Returns true once it has processed `tokens` since admission beyond those that it computed before: otherwise two
    /// sequences that free each other's states would never end. If its state has to be freed too, only sampled tokens
    /// count, and more are needed after a long prefill: recomputation must cost a small part of the work.
    pub fn used_quantum(&self, tokens: usize, shortage: Shortage) -> bool {
        let (processed, sampled) = self.processed;
        match shortage {
            Shortage::Slot => processed >= tokens + self.recomputed,
            Shortage::Memory => sampled >= tokens + (processed - sampled) / 16,
        }
    }

    /// Pauses the sequence while its client does not read, and ends it after `limit`.
    pub fn check_client(&mut self, now: Instant, limit: Duration) {
        self.paused = if self.client.is_ready() { None } else { self.paused.or(Some(now)) };
        if self.is_paused() && self.paused.is_some_and(|since| now - since >= limit) {
            self.ended = Some(FinishReason::Unread(limit));
        }
    }

    /// Returns true while its client does not read.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some() && self.ended.is_none()
    }

    /// Returns true while its next token waits for a grammar mask and its client reads.
    pub fn is_parked(&self) -> bool {
        self.parked.is_some() && !self.is_paused()
    }

    /// Returns true while it takes no part in steps.
    fn is_blocked(&self) -> bool {
        self.is_paused() || self.parked.is_some()
    }

    /// Returns true if it ended because its client did not read.
    pub fn read_timed_out(&self) -> bool {
        matches!(self.ended, Some(FinishReason::Unread(_)))
    }

    /// Returns true if its client disconnected before the end.
    pub fn is_disconnected(&self) -> bool {
        self.ended.is_none() && self.client.is_disconnected()
    }

    /// Tokens available for the next batched step; 0 if it prefills in large chunks.
    pub fn batchable_tokens(&self) -> usize {
        if self.uses_large_chunks() || self.is_blocked() { 0 } else { self.end() - self.driver.len() }
    }

    /// Tokens available for the next large chunk.
    pub fn large_chunk_tokens(&self) -> Option<usize> {
        (self.uses_large_chunks() && !self.is_blocked()).then(|| self.end() - self.driver.len())
    }

    /// Returns true if the next tokens use materialized keys and values, which pay off in large chunks only.
    fn uses_large_chunks(&self) -> bool {
        !self.is_decoding() && self.driver.run().0 == MlaPath::Materialized
    }

    /// End of the next tokens: the next snapshot or the next change of the attention path.
    fn end(&self) -> usize {
        if self.is_decoding() { self.reply.total() } else { self.driver.run().1 }
    }

    /// Returns what the scheduler needs to know while it prefills a large chunk.
    pub fn exclusive(&self) -> ExclusivePrefill {
        let (prompt, snapshot_at) = (self.reply.shared_prompt(), self.driver.next_snapshot());
        ExclusivePrefill {
            prompt,
            snapshot_at,
            namespace: self.driver.namespace,
            tenant: self.tenant,
            bytes: self.bytes,
        }
    }

    /// Returns true if its next snapshot is a prefix of the request's prompt.
    pub fn prefills_prefix_of(&self, request: &SequenceRequest) -> bool {
        let shares = !self.is_decoding() && !self.is_blocked() && self.driver.namespace == request.namespace;
        shares && request.prompt.starts_with(&self.reply.prompt()[..self.driver.next_snapshot()])
    }

    /// Returns true once the prompt is prefilled.
    pub fn is_decoding(&self) -> bool {
        self.driver.len() >= self.reply.prompt().len()
    }

    /// Drafts at most `most` tokens for the next step, in which other sequences have `others` tokens. Returns their
    /// number.
    pub fn draft(&mut self, most: usize, others: usize) -> usize {
        let all = self.reply.total();
        let at_last_token = self.driver.len() + 1 == all && all > self.reply.prompt().len();
        if !at_last_token || self.ended.is_some() {
            return 0;
        }
        let most = most.min(self.reply.remaining().saturating_sub(1));
        // Other sequences do not wait for what this one's constraint expects.
        let limit = if others == 0 { LIKELY_WAIT } else { Duration::ZERO };
        let last = self.reply.span(all - 1..all)[0];
        let (driver, reply) = (&mut self.driver, &mut self.reply);
        let draft =
            self.drafter.draft(most, others, || reply.likely(limit), &mut |most| driver.predict(last, most));
        if !draft.is_empty() {
            self.drafted = [&[last], &draft[..]].concat();
        }
        if !self.drafter.predicts() {
            self.driver.unfollow();
        }
        draft.len()
    }

    /// Records the time of a step of `tokens` tokens that this sequence had alone.
    pub fn record_step(&mut self, tokens: usize, took: Duration) {
        self.drafter.record(tokens, took);
    }

    /// Returns its next tokens as input of the model.
    pub fn sequence(&mut self, tokens: usize) -> Sequence<'_, B> {
        self.with_client(tokens).0
    }

    /// Returns its next tokens as input of the model, and its client.
    pub fn with_client(&mut self, tokens: usize) -> (Sequence<'_, B>, &dyn Client) {
        if !self.drafted.is_empty() {
            let sequence = self.driver.sequence(&self.drafted, MlaPath::Absorbed, Outputs::Draft);
            return (sequence, &*self.client);
        }
        let (start, end) = (self.driver.len(), self.driver.len() + tokens);
        let last = end == self.reply.total() && self.ended.is_none();
        let outputs = if last { Outputs::Last } else { Outputs::None };
        let path = if self.is_decoding() { MlaPath::Absorbed } else { self.driver.run().0 };
        (self.driver.sequence(self.reply.span(start..end), path, outputs), &*self.client)
    }

    /// Finishes in the middle of a step, after which the state is invalid.
    pub fn abandon(mut self) {
        self.driver.invalidate();
        self.finish();
    }

    /// Ends the reply because the device failed, whose state is lost.
    pub fn fail(mut self, message: &str) {
        self.ended = Some(FinishReason::DeviceFailed(message.to_owned()));
        self.driver.invalidate();
        self.finish();
    }

    /// Accounts for processed tokens. If none is left, takes the next row of `logits` and samples.
    pub fn advance<'l>(&mut self, tokens: usize, logits: &mut impl Iterator<Item = LogitsRow<'l, 'e, B>>)
    where
        'e: 'l,
    {
        if !self.drafted.is_empty() {
            return self.advance_draft(logits);
        }
        let prefilling = !self.is_decoding();
        let at_snapshot = self.driver.advance(tokens) && prefilling;
        self.processed.0 += tokens;
        if prefilling {
            self.report_progress();
        }
        let complete = self.driver.len() == self.reply.total();
        let logits = (complete && self.ended.is_none())
            .then(|| logits.next().expect("a row of logits for every sequence whose tokens are all in"));
        if at_snapshot && self.ended.is_none() {
            let tokens = &self.reply.prompt()[..self.driver.len()];
            self.driver.insert_snapshot(tokens, logits.as_ref(), false);
        }
        self.driver.plan(self.reply.prompt());
        if let Some(logits) = logits {
            self.sample_or_park(&logits, Duration::ZERO);
        }
    }

    /// Takes a row of `logits` for each token of a draft, and samples until a token differs from the draft. The state
    /// advances past the tokens whose logits were used.
    fn advance_draft<'l>(&mut self, logits: &mut impl Iterator<Item = LogitsRow<'l, 'e, B>>)
    where
        'e: 'l,
    {
        let drafted = std::mem::take(&mut self.drafted);
        let deadline = Instant::now() + DRAFT_MASK_WAIT;
        let (mut used, mut follows) = (0, true);
        for (i, row) in logits.take(drafted.len()).enumerate() {
            if !follows {
                continue; // the row of a rejected token
            }
            used = i + 1;
            let before = self.reply.total();
            self.sample_or_park(&row, deadline.saturating_duration_since(Instant::now()));
            let next = (self.reply.total() > before).then(|| self.reply.span(before..before + 1)[0]);
            follows = self.ended.is_none() && next.is_some() && next == drafted.get(i + 1).copied();
            self.drafter.count_accepted(follows);
        }
        self.driver.accept(used);
        self.processed.0 += used;
    }

    /// Samples the next token of a parked sequence if its mask arrives within the limit.
    pub fn unpark(&mut self, limit: Duration) {
        if self.is_parked() && self.reply.wait(limit) {
            let logits = Logits::from_values(self.engine, self.parked.take().unwrap_or_default());
            logits.rows().for_each(|row| self.sample(&row));
        }
    }

    /// Samples the next token, or keeps its logits if the grammar mask does not arrive within the limit.
    fn sample_or_park(&mut self, logits: &LogitsRow<'_, '_, B>, limit: Duration) {
        if self.reply.wait(limit) {
            self.sample(logits);
        } else {
            self.parked = Some(logits.values().to_vec());
        }
    }

    fn sample(&mut self, logits: &LogitsRow<'_, '_, B>) {
        let now = Instant::now();
        self.prefilled.get_or_insert(now);
        self.last_token = Some(now);
        self.processed.1 += 1;
        let choice = self.reply.next_token(logits);
        choice.token.into_iter().for_each(|token| self.drafter.push(token));
        let requested = choice.token.zip(self.logprobs);
        let logprobs = requested.map(|(token, top)| Logprobs::of(logits.values(), token, top));
        if choice.token.is_some() || !choice.text.is_empty() {
            self.client.on_event(EngineEvent::Token { token: choice.token, text: choice.text, logprobs });
        }
        self.ended = choice.ended;
    }

    fn report_progress(&mut self) {
        // Recomputing a prompt after preemption is not reported.
        if self.prefilled.is_none() {
            let total = self.reply.prompt().len();
            self.client.on_event(EngineEvent::Prefill {
                reused: self.reused,
                done: self.driver.len(),
                total,
            });
        }
    }

    /// Inserts its state if it is longer than the restored prefix and valid as a prefix of other prompts.
    fn insert_final_snapshot(&mut self) {
        let done = self.driver.len();
        if done > self.reused {
            let tokens = self.reply.first(done);
            self.driver.decoded(&tokens, self.reply.prompt().len().min(done)..done);
            self.driver.insert(&tokens, None, false);
        }
    }

    /// Returns true if nothing is left to compute. A reply cut at the token limit takes one more step for its last token,
    /// so that the next turn of the conversation resumes after all of it.
    pub fn has_ended(&self) -> bool {
        let all = self.reply.total();
        let cut = self.ended == Some(FinishReason::Length) && all as u64 <= self.engine.context;
        self.ended.is_some() && !(cut && self.driver.len() < all && self.engine.store.fits_in_memory())
    }

    /// Inserts a snapshot if it is worth one, then reports the statistics to the client.
    pub fn finish(mut self) {
        let broken = matches!(self.ended, Some(FinishReason::NotFinite(_) | FinishReason::DeviceFailed(_)));
        let worth =
            self.ended.is_some() || self.driver.len().saturating_sub(self.reused) >= MIN_SNAPSHOT_TOKENS;
        if worth && !broken {
            self.insert_final_snapshot();
        }
        let ended = self.ended.take().unwrap_or(FinishReason::Cancelled);
        let now = self.last_token.unwrap_or_else(Instant::now);
        let read = self.prefilled.unwrap_or(now);
        self.client.on_event(EngineEvent::Finished(Stats {
            prefill: Prefill {
                reused: self.reused,
                source: self.source,
                computed: self.reply.prompt().len().min(self.driver.len()).saturating_sub(self.reused),
                stopped: self.prefilled.is_none(),
            },
            prefill_time: read - self.admitted,
            generated: self.reply.generated(),
            decode_time: now - read,
            draft: self.drafter.counts,
            expert_cache: None, // counted for all sequences together
            ended,
        }));
    }
}
