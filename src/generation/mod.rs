//! Generates replies: the decode loop ([`generate`]) over a session, which asks a [`decoder`] for each token, the sampler
//! ([`sample`]) under a [`grammar`], and the [`detokenizer`] that turns tokens into final text. It knows no scheduler.

pub mod conversation;
pub mod decoder;
pub(crate) mod detokenizer;
pub mod generate;
pub mod grammar;
pub(crate) mod logprobs;
pub mod sample;
