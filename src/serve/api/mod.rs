//! Request and response types of the HTTP API, compatible with the clients of OpenAI, Anthropic and Ollama. They have no
//! behavior; the handlers in [`super`] implement the fields.

pub mod chat;
pub mod completion;
pub mod files;
pub mod generation;
pub mod messages;
pub mod ollama;
pub mod responses;
pub mod schemas;
pub mod tokens;
pub mod tools;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Numbers of tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    /// Details of the prompt tokens.
    pub prompt_tokens_details: PromptDetails,
}

/// Details of the prompt tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Tokens restored from the prefix cache.
    pub cached_tokens: usize,
}

/// Token counts, times and rates of the first choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Timings {
    /// Prompt tokens restored from the prefix cache.
    pub cache_n: usize,
    /// Prompt tokens that were prefilled.
    pub prompt_n: usize,
    /// Time of the prefill in milliseconds.
    pub prompt_ms: f64,
    pub prompt_per_second: f64,
    pub predicted_n: usize,
    /// Time from the first to the last generated token.
    pub predicted_ms: f64,
    pub predicted_per_second: f64,
    /// Tokens that were drafted from the context; absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_n: Option<usize>,
    /// Drafted tokens that are part of the reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_n_accepted: Option<usize>,
    /// Why tokens were prefilled; absent if the whole prompt was cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<MissReport>,
}

/// The cause for which tokens of a prompt were prefilled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MissReport {
    /// new, continued, tools, system, reminder, template, trimmed, message, tokenization, text, evicted, interval, model or
    /// cache_type
    pub name: &'static str,
    /// Leading tokens that equal those of the nearest served prompt.
    pub common_n: usize,
    /// Index of the message that differs first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<usize>,
    /// The role of that message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// Progress of the prefill, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptProgress {
    pub total: usize,
    /// Tokens restored from the prefix cache.
    pub cache: usize,
    /// Tokens processed, cached ones included.
    pub processed: usize,
    pub time_ms: u64,
}

/// Options of a streamed response.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Send token usage in an extra last chunk.
    pub include_usage: Option<bool>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelCard {
    /// Name of the model in requests.
    pub id: String,
    pub object: &'static str,
    /// Unix time of the server's start, in seconds.
    pub created: u64,
    pub owned_by: &'static str,
    /// Maximum tokens of prompt and reply together; absent if an upstream server does not report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    /// The kind of this object for Anthropic's clients.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Name of the model for people.
    pub display_name: String,
    /// The time of the server's start, by RFC 3339.
    pub created_at: String,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelList {
    pub object: &'static str,
    pub data: Vec<ModelCard>,
    /// Always false, because the list is complete.
    pub has_more: bool,
    #[schema(required)]
    pub first_id: Option<String>,
    #[schema(required)]
    pub last_id: Option<String>,
}

/// Properties of the server, in the form of llama.cpp's.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Props {
    /// Context length and defaults of a request.
    #[schema(value_type = Object)]
    pub default_generation_settings: serde_json::Value,
    /// Maximum number of concurrent sequences.
    pub total_slots: usize,
    pub model_alias: String,
    pub model_path: String,
    pub modalities: Modalities,
    /// The chat template, in Jinja's syntax; empty, like the two tokens, if an upstream server has it.
    pub chat_template: String,
    pub bos_token: String,
    pub eos_token: String,
    pub build_info: &'static str,
}

/// Kinds of input besides text.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Modalities {
    pub vision: bool,
    pub audio: bool,
}

/// Status of the server and its model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Health {
    /// loading, ready, degraded (on the CPU because the GPU failed), draining, failed or (an upstream server) unreachable
    pub status: &'static str,
}
