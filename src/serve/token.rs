//! Tokens and their probabilities as they are told.

use super::api::chat::{TokenLogprob, TopLogprob};
use super::app::Served;
use crate::generation::logprobs::Logprobs;
use crate::generation::sample::random_seed;

/// A probability of zero: JSON has no infinity.
const NEVER: f32 = -9999.0;

/// A token's text, broken characters as U+FFFD.
pub fn text(engine: &dyn Served, token: u32) -> String {
    String::from_utf8_lossy(engine.tokenizer().token_bytes(token)).into_owned()
}

/// A logarithm of a probability as JSON can say it.
pub fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

/// How likely a token was, in the chat's form.
pub fn told(engine: &dyn Served, token: u32, logprobs: &Logprobs) -> TokenLogprob {
    let bytes = |token: u32| engine.tokenizer().token_bytes(token).to_vec();
    let top = logprobs.top.iter().map(|(token, logprob)| TopLogprob {
        token: text(engine, *token),
        logprob: finite(*logprob),
        bytes: bytes(*token),
    });
    TokenLogprob {
        token: text(engine, token),
        logprob: finite(logprobs.chosen),
        bytes: bytes(token),
        top_logprobs: top.collect(),
    }
}

/// A name that no other answer has.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}-{:016x}{:08x}", random_seed(), random_seed() as u32)
}
