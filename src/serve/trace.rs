//! Follows a reply for the log: progress of a long prefill, and a line at its end with token counts, times, and the cause
//! for which its prompt was prefilled.

use super::metrics::{CauseLabels, Misses};
use crate::generation::decoder::FinishReason;
use crate::generation::event::{EngineEvent, Stats};
use crate::prefix_cache::cause::MissCause;
use crate::prefix_cache::history::PromptHistory;
use crate::prefix_cache::miss::{CacheMiss, Nearest};
use crate::prefix_cache::namespace::Namespace;
use crate::prefix_cache::served::{PromptOutline, ServedPrompt};
use crate::runtime::handle::EngineHandle;
use crate::runtime::prefill::snapshots_between;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Time between two log lines of a long prefill.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// The explanation of a cache miss, set when the first reply of a request has ended.
pub type MissCell = Arc<OnceLock<CacheMiss>>;

/// A prompt that is being processed, shared by its replies.
pub struct PromptTrace {
    pub engine: EngineHandle,
    pub history: Arc<PromptHistory>,
    pub namespace: Namespace,
    pub prompt: Arc<[u32]>,
    pub outline: PromptOutline,
    pub snapshot_lengths: Vec<usize>,
    /// The nearest of the recently served prompts.
    pub nearest: Nearest,
    /// Log both texts at the first difference.
    pub with_texts: bool,
    pub misses: Misses,
    pub miss: MissCell,
}

impl PromptTrace {
    pub fn miss(&self) -> MissCell {
        self.miss.clone()
    }
}

/// A reply that is being generated.
pub struct ReplyTrace {
    prompt: Arc<PromptTrace>,
    max_tokens: usize,
    generated: Vec<u32>,
    /// Time of the start, and of the last log line.
    times: (Instant, Instant),
}

impl ReplyTrace {
    pub fn new(prompt: Arc<PromptTrace>, max_tokens: usize) -> Self {
        let now = Instant::now();
        ReplyTrace { prompt, max_tokens, generated: Vec::new(), times: (now, now) }
    }

    /// Records an event before the client receives it.
    pub fn on_event(&mut self, event: &EngineEvent) {
        match event {
            EngineEvent::Prefill { reused, done, total } => self.log_progress(*reused, *done, *total),
            EngineEvent::Token { token, .. } => self.generated.extend(token),
            EngineEvent::Finished(stats) => self.finish(stats),
        }
    }

    fn log_progress(&mut self, cached: usize, done: usize, total: usize) {
        if done < total && self.times.1.elapsed() >= PROGRESS_INTERVAL {
            self.times.1 = Instant::now();
            let seconds = self.times.0.elapsed().as_secs();
            tracing::info!(done, prompt = total, cached, seconds, "prefill");
        }
    }

    fn finish(&mut self, stats: &Stats) {
        let shared = &*self.prompt;
        let reused = stats.prefill.reused;
        let Some(vocabulary) = shared.engine.tokenizer.as_ref() else { return };
        let admitted = reused + stats.prefill.computed > 0;
        let whole = reused == shared.prompt.len();
        let mut miss = (admitted && !whole)
            .then(|| shared.nearest.explain(&shared.prompt, &shared.outline, reused, vocabulary));
        if let Some(miss) = miss.as_mut().filter(|miss| miss.cause == MissCause::New && reused == 0)
            && let Some(cause) = shared.engine.other_key(shared.namespace, &shared.prompt)
        {
            miss.cause = cause;
        }
        if let Some(miss) = &miss
            && shared.miss.set(miss.clone()).is_ok()
        {
            shared.misses.count(CauseLabels { cause: miss.cause.name() }, stats);
        }
        self.log(stats, miss.as_ref());
        if admitted && shared.engine.keeps_prompts() {
            self.remember(stats);
        }
    }

    fn log(&self, stats: &Stats, miss: Option<&CacheMiss>) {
        let cause = miss.map(|miss| miss.cause.name());
        let message = miss.and_then(|miss| miss.message.as_ref());
        tracing::info!(
            prompt = self.prompt.prompt.len(),
            cached = stats.prefill.reused,
            prefilled = stats.prefill.computed,
            seconds = rounded(stats.prefill_time.as_secs_f64()),
            tokens = stats.generated,
            rate = rounded(stats.decode_rate()),
            finish = self.finish_reason(stats),
            cause,
            same = miss.map(|miss| miss.common),
            message_index = message.map(|(index, _)| index),
            role = message.map(|(_, role)| role.as_str()),
            "reply"
        );
        if let Some([now, before]) =
            miss.and_then(|miss| miss.texts.as_ref()).filter(|_| self.prompt.with_texts)
        {
            tracing::info!(cause, now, before, "explain");
        }
    }

    fn finish_reason(&self, stats: &Stats) -> String {
        let Stats { prefill, generated, .. } = stats;
        match &stats.ended {
            FinishReason::EndToken | FinishReason::StopString(_) => "stop".to_owned(),
            FinishReason::Length => "length".to_owned(),
            FinishReason::Constraint(_) => "grammar".to_owned(),
            FinishReason::NotFinite(_) => "NaN logits".to_owned(),
            FinishReason::DeviceFailed(_) => "GPU failure".to_owned(),
            FinishReason::Unread(_) => {
                format!("client did not read after {generated} of {} tokens", self.max_tokens)
            }
            FinishReason::Cancelled if prefill.stopped => {
                let done = prefill.reused + prefill.computed;
                format!("client left at {done} of {} prompt tokens", self.prompt.prompt.len())
            }
            FinishReason::Cancelled => format!("client left at {generated} of {} tokens", self.max_tokens),
        }
    }

    /// Adds the prompt and its reply to the history.
    fn remember(&self, stats: &Stats) {
        let shared = &*self.prompt;
        let reused = stats.prefill.reused;
        let done = reused + stats.prefill.computed;
        let mut snapshots = snapshots_between(reused, shared.prompt.len(), &shared.snapshot_lengths);
        snapshots.retain(|length| *length <= done);
        snapshots.push(reused);
        let all = shared.prompt[..done].iter().chain(&self.generated);
        let tokens: Vec<u32> =
            if done < shared.prompt.len() { shared.prompt[..done].to_vec() } else { all.copied().collect() };
        let (prompt, outline) = (done, shared.outline.clone());
        shared
            .history
            .add(shared.namespace, ServedPrompt { tokens: tokens.into(), prompt, outline, snapshots });
    }
}

/// Rounds a number for the log.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
