//! The shapes that go over the wire, as OpenAI's clients write and read them. No behaviour: what a field means is
//! said where it is carried out.

pub mod chat;
pub mod completion;
pub mod generation;
pub mod responses;
pub mod schemas;
pub mod tokens;
pub mod tools;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Tokens that were read and made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of the replies.
    pub completion_tokens: usize,
    /// Of both.
    pub total_tokens: usize,
    /// More about the prompt.
    pub prompt_tokens_details: PromptDetails,
}

/// More about the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Tokens whose state was there already.
    pub cached_tokens: usize,
}

/// What was done and how fast, by the engine's clock; of the first choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Timings {
    /// Tokens of the prompt whose state was there already.
    pub cache_n: usize,
    /// Tokens of the prompt that were read.
    pub prompt_n: usize,
    /// Time for those.
    pub prompt_ms: f64,
    /// Their rate.
    pub prompt_per_second: f64,
    /// Tokens of the reply.
    pub predicted_n: usize,
    /// Time from the first to the last of them.
    pub predicted_ms: f64,
    /// Their rate.
    pub predicted_per_second: f64,
}

/// How far the prompt is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Progress {
    /// Tokens of the prompt.
    pub total: usize,
    /// Of these, whose state was there already.
    pub cache: usize,
    /// Tokens in the state.
    pub processed: usize,
    /// Since the request.
    pub time_ms: u64,
}

/// What a stream is to tell.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Usage in a last chunk of its own.
    pub include_usage: Option<bool>,
}

/// A served model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelCard {
    /// The name that requests use.
    pub id: String,
    /// `model`
    pub object: &'static str,
    /// When the server started, in seconds of Unix time.
    pub created: u64,
    /// `kimi`
    pub owned_by: &'static str,
    /// Tokens of a prompt and its reply at most.
    pub context_length: u64,
}

/// All served models.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelCard>,
}

/// What the server is doing.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Health {
    /// loading, ready, draining or failed
    pub status: &'static str,
}
