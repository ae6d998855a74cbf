//! Generates a reply on one session: prefills the prompt, then decodes token by token and streams the text. Next:
//! [`crate::runtime::session`] (runs the model), then [`super::decoder`] (samples, and decides when the reply ends).

pub use crate::generation::decoder::FinishReason;

use crate::generation::decoder::{Decoder, GenerationParams};
use crate::generation::sample::{Constraint, Sampling};
use crate::io::units::grouped;
use crate::prefix_cache::Source;
use crate::runtime::session::{Error, Prefill, Session};
use kernels::backend::{Backend, ExpertCacheStats};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A prompt and the parameters of its reply.
pub struct Request<'a> {
    /// The whole prompt; the cached prefix is not computed again.
    pub prompt: &'a [u32],
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Stop strings, which end the reply and are not part of it.
    pub stops: &'a [String],
    /// Whether to continue past end-of-generation tokens.
    pub ignore_end: bool,
    /// The grammar that the reply has to match.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl<'a> Request<'a> {
    /// Creates a request for at most 1,024 tokens without stop strings or constraint.
    pub fn new(prompt: &'a [u32], sampling: Sampling) -> Self {
        Request { prompt, max_tokens: 1024, sampling, stops: &[], ignore_end: false, constraint: None }
    }
}

/// An event of a generation, for the caller's callback.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A batch of the prompt has been prefilled.
    Prefill { done: usize, total: usize },
    /// A token has been sampled.
    Token(u32),
    /// Text that is final: whole characters that cannot begin a stop string.
    Text(&'a str),
}

/// Token counts and times of a generation.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Reused and computed tokens of the prompt.
    pub prefill: Prefill,
    /// The time to prefill the computed tokens.
    pub prefill_time: Duration,
    pub generated: usize,
    /// The time from the first generated token to the last.
    pub decode_time: Duration,
    /// Hits and lookups of the GPU expert cache.
    pub expert_cache: Option<ExpertCacheStats>,
    pub ended: FinishReason,
}

impl Stats {
    /// Formats the statistics as one line for users.
    pub fn line(&self) -> String {
        let rate = |n: usize, t: Duration| n as f64 / t.as_secs_f64().max(1e-9);
        let ended = match &self.ended {
            FinishReason::EndToken | FinishReason::StopString => "",
            FinishReason::Length => ", cut at the limit",
            FinishReason::Cancelled => ", stopped",
            FinishReason::Constraint(_) => ", ended because the grammar allows no further token",
            FinishReason::NotFinite(_) => ", ended because all logits are NaN",
            FinishReason::Unread(_) => ", ended because its client did not read",
        };
        let expert_cache = self
            .expert_cache
            .map_or(String::new(), |expert_cache| format!("; {}", expert_cache_line(expert_cache)));
        format!(
            "prompt: {} in {:.2} s ({:.1} tok/s); reply: {} tokens in {:.2} s ({:.1} tok/s){ended}{expert_cache}",
            self.prefill.describe(),
            self.prefill_time.as_secs_f64(),
            rate(self.prefill.computed, self.prefill_time),
            self.generated,
            self.decode_time.as_secs_f64(),
            rate(self.generated.saturating_sub(1), self.decode_time),
        )
    }
}

impl Prefill {
    /// Describes reused and computed tokens: `128,004 tokens from snapshot, 31 new`.
    pub fn describe(&self) -> String {
        let from = match self.source {
            None => return format!("{} new", grouped(self.computed)),
            Some(Source::Live) => "kept",
            Some(Source::Ram) => "from snapshot",
            Some(Source::Disk) => "from snapshot on disk",
        };
        format!("{} tokens {from}, {} new", grouped(self.reused), grouped(self.computed))
    }
}

/// `expert cache hit rate 63 % (4,160 lookups)`
pub fn expert_cache_line(ExpertCacheStats { hits, lookups }: ExpertCacheStats) -> String {
    let share = 100.0 * hits as f64 / lookups.max(1) as f64;
    format!("expert cache hit rate {share:.0} % ({} lookups)", grouped(lookups as usize))
}

/// Generates a reply to `request.prompt`. Calls `on` with each event, which may stop the reply. The session then
/// contains the prompt and the reply without its last token, and a snapshot of it is cached.
pub fn generate<B: Backend>(
    session: &mut Session<'_, B>,
    request: Request<'_>,
    on: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Stats, Error> {
    let before = session.engine().backend.expert_cache_stats().unwrap_or_default();
    let start = Instant::now();
    let mut progress = |done, total| on(Event::Prefill { done, total });
    let prefill = session.prefill(request.prompt, &mut progress)?;
    let prefill_time = start.elapsed();
    let start = Instant::now();
    let (generated, ended) =
        if prefill.stopped { (0, FinishReason::Cancelled) } else { reply(session, request, on)? };
    let decode_time = start.elapsed();
    if let FinishReason::NotFinite(position) = ended {
        return Err(Error::NotFinite { position });
    }
    session.checkpoint();
    let expert_cache = session.engine().backend.expert_cache_stats();
    let expert_cache = expert_cache.map(|now| now - before).filter(|expert_cache| expert_cache.lookups > 0);
    Ok(Stats { prefill, prefill_time, generated, decode_time, expert_cache, ended })
}

fn reply<B: Backend>(
    session: &mut Session<'_, B>,
    request: Request<'_>,
    on: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<(usize, FinishReason), Error> {
    let rules = GenerationParams {
        max_tokens: request.max_tokens,
        sampling: request.sampling,
        bias: Arc::default(),
        constraint: request.constraint,
        stops: request.stops.to_vec(),
        ignore_end: request.ignore_end,
    };
    let mut reply = Decoder::new(session.engine(), request.prompt.into(), rules);
    loop {
        let choice = reply.next_token(&session.logits_row().ok_or(Error::Empty)?);
        let mut flow = choice.token.map_or(ControlFlow::Continue(()), |token| on(Event::Token(token)));
        if flow.is_continue() && !choice.text.is_empty() {
            flow = on(Event::Text(&choice.text));
        }
        match (choice.token, choice.ended) {
            (_, Some(ended)) => return Ok((reply.generated(), ended)),
            (Some(token), None) if flow.is_continue() => session.decode(token)?,
            _ => break,
        }
    }
    let rest = reply.rest();
    if !rest.is_empty() {
        let _ = on(Event::Text(&rest));
    }
    Ok((reply.generated(), FinishReason::Cancelled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefill_is_described_by_reused_and_computed_tokens() {
        let described =
            |reused, source, computed| Prefill { reused, source, computed, stopped: false }.describe();
        assert_eq!(described(0, None, 1_234_567), "1,234,567 new");
        assert_eq!(described(128_004, Some(Source::Ram), 31), "128,004 tokens from snapshot, 31 new");
        assert_eq!(described(100, Some(Source::Disk), 0), "100 tokens from snapshot on disk, 0 new");
        assert_eq!(described(1000, Some(Source::Live), 1), "1,000 tokens kept, 1 new");
    }
}
