//! Computes the fields common to all responses: id, time, token usage, rates, and errors.

use super::api::{MissReport, PromptDetails, Timings, Usage};
use super::app::{App, unix_seconds};
use super::errors::ApiError;
use super::logprobs;
use super::trace::MissCell;
use crate::generation::decoder::FinishReason;
use crate::generation::generate::Stats;
use crate::runtime::session::Error;
use axum::http::StatusCode;

/// Version of the server: tokens are reproducible for one version, seed and model file.
pub const FINGERPRINT: &str = concat!("kimi-", env!("CARGO_PKG_VERSION"));

/// Fields common to a response and its chunks.
pub struct ResponseMeta {
    pub id: String,
    pub created: u64,
    pub model: String,
}

impl ResponseMeta {
    /// Creates the fields of a new response.
    pub fn new(app: &App, prefix: &str) -> Self {
        ResponseMeta {
            id: logprobs::new_id(prefix),
            created: unix_seconds(),
            model: app.model_name().to_owned(),
        }
    }
}

/// Returns the error that ended a reply, if any.
pub fn failure(stats: &Stats) -> Result<(), ApiError> {
    match &stats.ended {
        FinishReason::Cancelled => Err(ApiError::unavailable("stopping")),
        FinishReason::Constraint(why) => Err(ApiError::grammar(why)),
        FinishReason::Unread(limit) => {
            let why = format!("the stream was not read for {} s (--stream-timeout)", limit.as_secs());
            Err(ApiError::malformed(StatusCode::REQUEST_TIMEOUT, why))
        }
        FinishReason::NotFinite(position) => {
            Err(ApiError::internal(Error::NotFinite { position: *position }))
        }
        FinishReason::DeviceFailed(why) => Err(ApiError::device_failed(why)),
        FinishReason::EndToken | FinishReason::StopString(_) | FinishReason::Length => Ok(()),
    }
}

/// Sums the token usage of finished replies, `n` per prompt. The cached tokens of a prompt are those of its first reply:
/// the other replies always find the prefix cached.
pub fn usage<'s>(prompt_tokens: usize, n: usize, replies: impl Iterator<Item = &'s Stats>) -> Usage {
    let (mut completion_tokens, mut cached_tokens) = (0, 0);
    let replies: Vec<&Stats> = replies.collect();
    for prompt in replies.chunks(n) {
        completion_tokens += prompt.iter().map(|stats| stats.generated).sum::<usize>();
        cached_tokens += prompt.iter().map(|stats| stats.prefill.reused).min().unwrap_or(0);
    }
    Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: prompt_tokens + completion_tokens,
        prompt_tokens_details: PromptDetails { cached_tokens },
    }
}

/// Returns token counts, times and rates of a reply, and the cause for which its prompt was prefilled.
pub fn timings(stats: &Stats, miss: &MissCell) -> Timings {
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
    let per_second = |n: usize, ms: f64| if ms > 0.0 { n as f64 * 1e3 / ms } else { 0.0 };
    let (prompt_ms, predicted_ms) = (ms(stats.prefill_time), ms(stats.decode_time));
    Timings {
        cache_n: stats.prefill.reused,
        prompt_n: stats.prefill.computed,
        prompt_ms,
        prompt_per_second: per_second(stats.prefill.computed, prompt_ms),
        predicted_n: stats.generated,
        predicted_ms,
        predicted_per_second: per_second(stats.generated.saturating_sub(1), predicted_ms),
        draft_n: (stats.draft.drafted > 0).then_some(stats.draft.drafted),
        draft_n_accepted: (stats.draft.drafted > 0).then_some(stats.draft.accepted),
        cause: miss.get().map(|miss| MissReport {
            name: miss.cause.name(),
            common_n: miss.common,
            message: miss.message.as_ref().map(|(index, _)| *index),
            role: miss.message.as_ref().map(|(_, role)| role.clone()),
        }),
    }
}
