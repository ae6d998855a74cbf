//! Converts tokens and log-probabilities to their API form.

use super::api::chat::{TokenLogprob, TopLogprob};
use crate::generation::logprobs::Logprobs;
use crate::generation::sample::random_seed;
use models::tokenizer::Vocabulary;

/// Log-probability of zero probability, as JSON has no infinity.
const ZERO_PROBABILITY: f32 = -9999.0;

/// Returns a token's text, with U+FFFD for incomplete characters.
pub fn text(vocabulary: &Vocabulary, token: u32) -> String {
    String::from_utf8_lossy(vocabulary.token_bytes(token)).into_owned()
}

/// Replaces infinite log-probabilities, which JSON cannot express.
pub fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { ZERO_PROBABILITY }
}

/// Converts log-probabilities to the form of chat completions.
pub fn token_logprob(vocabulary: &Vocabulary, token: u32, logprobs: &Logprobs) -> TokenLogprob {
    let bytes = |token: u32| vocabulary.token_bytes(token).to_vec();
    let top = logprobs.top.iter().map(|(token, logprob)| TopLogprob {
        token: text(vocabulary, *token),
        logprob: finite(*logprob),
        bytes: bytes(*token),
    });
    TokenLogprob {
        token: text(vocabulary, token),
        logprob: finite(logprobs.chosen),
        bytes: bytes(token),
        top_logprobs: top.collect(),
    }
}

/// Returns a unique random id with a prefix.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}-{:016x}{:08x}", random_seed(), random_seed() as u32)
}
