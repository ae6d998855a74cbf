//! Generates replies: the decode loop ([`generate`]) over a session, the [`draft`]s of likely tokens, the [`decoder`] that chooses each token with the
//! sampler ([`sample`]) under a [`grammar`], the [`detokenizer`] that turns tokens into final text, and the
//! [`markup`] that separates reasoning, answer and tool calls. It does not depend on the scheduler.

pub mod conversation;
pub mod decoder;
pub(crate) mod detokenizer;
pub mod draft;
pub mod event;
pub mod generate;
pub mod grammar;
pub(crate) mod logprobs;
pub mod markup;
pub mod sample;
