//! The events of one reply. The decode loop of a session ([`super::generate`]) and the scheduler report the same ones.

use crate::generation::decoder::FinishReason;
use crate::generation::draft::DraftCounts;
use crate::generation::logprobs::Logprobs;
use crate::io::units::grouped;
use crate::prefix_cache::PrefixSource;
use crate::runtime::session::Prefill;
use kernels::backend::ExpertCacheStats;
use std::time::Duration;

/// An event of a reply under way.
#[derive(Debug)]
pub enum EngineEvent {
    /// Progress of the prefill, in tokens of the prompt.
    Prefill {
        /// Tokens restored from the prefix cache.
        reused: usize,
        /// Tokens in the state, restored ones included.
        done: usize,
        total: usize,
    },
    /// A sampled token, or final text without a token.
    Token {
        token: Option<u32>,
        /// Text that this token makes final: whole characters that cannot begin a stop string. It may be empty.
        text: String,
        /// Present if the request asks for log-probabilities.
        logprobs: Option<Logprobs>,
    },
    /// The reply has ended. Its [`FinishReason`] says why, failures included.
    Finished(Stats),
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
    /// Drafted tokens, and those of them that became part of the reply.
    pub draft: DraftCounts,
    /// Hits and lookups of the GPU expert cache.
    pub expert_cache: Option<ExpertCacheStats>,
    pub ended: FinishReason,
}

impl Stats {
    /// The statistics of this reply and the next one together. The next prompt begins with this one.
    pub fn followed_by(self, next: Stats) -> Stats {
        let computed = self.prefill.computed + next.prefill.computed;
        let expert_cache = match (self.expert_cache, next.expert_cache) {
            (Some(a), Some(b)) => {
                Some(ExpertCacheStats { hits: a.hits + b.hits, lookups: a.lookups + b.lookups })
            }
            (one, other) => one.or(other),
        };
        Stats {
            prefill: Prefill { computed, ..self.prefill },
            prefill_time: self.prefill_time + next.prefill_time,
            generated: self.generated + next.generated,
            decode_time: self.decode_time + next.decode_time,
            draft: DraftCounts {
                drafted: self.draft.drafted + next.draft.drafted,
                accepted: self.draft.accepted + next.draft.accepted,
            },
            expert_cache,
            ended: next.ended,
        }
    }

    /// Returns the tokens per second after the first token.
    pub fn decode_rate(&self) -> f64 {
        rate(self.generated.saturating_sub(1), self.decode_time)
    }

    /// Formats the statistics as one line for users.
    pub fn line(&self) -> String {
        let ended = match &self.ended {
            FinishReason::EndToken | FinishReason::StopString(_) => "",
            FinishReason::Length => ", cut at the limit",
            FinishReason::Cancelled => ", stopped",
            FinishReason::Constraint(_) => ", ended because the grammar allows no further token",
            FinishReason::NotFinite(_) => ", ended because all logits are NaN",
            FinishReason::Unread(_) => ", ended because its client did not read",
            FinishReason::DeviceFailed(_) => ", ended because the GPU failed",
        };
        let expert_cache = self
            .expert_cache
            .map_or(String::new(), |expert_cache| format!("; {}", expert_cache_line(expert_cache)));
        let DraftCounts { drafted, accepted } = self.draft;
        let draft = if drafted > 0 {
            format!("; {accepted} of {drafted} drafted tokens accepted")
        } else {
            String::new()
        };
        format!(
            "prompt: {} in {:.1} s; reply: {} tokens, {:.1} tok/s{ended}{draft}{expert_cache}",
            self.prefill.describe(),
            self.prefill_time.as_secs_f64(),
            self.generated,
            self.decode_rate(),
        )
    }
}

/// Returns a rate in tokens per second.
fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64().max(1e-9)
}

impl Prefill {
    /// Describes cached and new tokens: `128,004 cached (memory), 31 new`.
    pub fn describe(&self) -> String {
        let from = match self.source {
            None => return format!("{} new", grouped(self.computed)),
            Some(PrefixSource::Live) => "session",
            Some(PrefixSource::Ram) => "memory",
            Some(PrefixSource::Disk) => "disk",
        };
        format!("{} cached ({from}), {} new", grouped(self.reused), grouped(self.computed))
    }
}

/// `expert cache hit rate 63 % (4,160 lookups)`
pub fn expert_cache_line(ExpertCacheStats { hits, lookups }: ExpertCacheStats) -> String {
    let share = 100.0 * hits as f64 / lookups.max(1) as f64;
    format!("expert cache hit rate {share:.0} % ({} lookups)", grouped(lookups as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefill_is_described_by_reused_and_computed_tokens() {
        let described =
            |reused, source, computed| Prefill { reused, source, computed, stopped: false }.describe();
        assert_eq!(described(0, None, 1_234_567), "1,234,567 new");
        assert_eq!(described(128_004, Some(PrefixSource::Ram), 31), "128,004 cached (memory), 31 new");
        assert_eq!(described(100, Some(PrefixSource::Disk), 0), "100 cached (disk), 0 new");
        assert_eq!(described(1000, Some(PrefixSource::Live), 1), "1,000 cached (session), 1 new");
    }
}
