//! What all answers say of how it was: name, time, usage, rates, and whether it failed.

use super::api::{PromptDetails, Timings, Usage};
use super::app::{App, unix_seconds};
use super::errors::ApiError;
use super::token;
use crate::generation::decoder::FinishReason;
use crate::generation::generate::Stats;
use crate::runtime::session::Error;
use axum::http::StatusCode;

/// The server's version, which decides the tokens with the seed and the model file.
pub const FINGERPRINT: &str = concat!("kimi-", env!("CARGO_PKG_VERSION"));

/// What every piece of an answer begins with.
pub struct Head {
    /// The answer's name.
    pub id: String,
    /// Seconds of Unix time.
    pub created: u64,
    /// The served model's name.
    pub model: String,
}

impl Head {
    /// Of a new answer.
    pub fn new(app: &App, prefix: &str) -> Self {
        Head { id: token::new_id(prefix), created: unix_seconds(), model: app.model_name().to_owned() }
    }
}

/// The error that ended a reply, if one did.
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
        FinishReason::EndToken | FinishReason::StopString | FinishReason::Length => Ok(()),
    }
}

/// Tokens of prompts of so many tokens and of replies that have ended, `n` to a prompt. A prompt is read for the
/// first of its replies; that the others find it read is nothing that was saved.
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

/// How fast a reply was.
pub fn timings(stats: &Stats) -> Timings {
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
    }
}
