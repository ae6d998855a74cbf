//! The errors of prompts and sequences, which [`super::engine`] checks and [`super::session`] returns.

/// The reasons for which tokens cannot be processed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A token id is outside the model's vocabulary.
    #[error("token {index}: expected an id below {vocab}, found {id}")]
    Vocabulary {
        /// The position of the token in the sequence.
        index: usize,
        vocab: usize,
        id: u32,
    },
    /// The sequence exceeds the context.
    #[error("context: expected at most {limit} tokens, found {found}; raise --ctx or shorten the prompt")]
    Context { limit: u64, found: u64 },
    /// The prompt has no tokens.
    #[error("prompt: expected at least one token, found none")]
    Empty,
    /// All logits are NaN: the weights or the arithmetic are broken.
    #[error("all logits at position {position} are NaN; check the model file with kimi inspect --check")]
    NotFinite {
        /// The position of the last processed token.
        position: usize,
    },
    /// The model file was truncated or overwritten while in use.
    #[error(transparent)]
    Changed(#[from] models::gguf::Error),
}
