//! Types of `/v1/completions`: prompts and their continuations.

use super::{StreamOptions, Timings, Usage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Fields of a request besides [`super::generation::Generation`].
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// Name of the served model; optional.
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    /// Text or token ids to continue.
    #[schema(schema_with = crate::serve::api::schemas::prompt, required = true)]
    pub prompt: CompletionPrompt,
    /// Stream the text as server-sent events.
    pub stream: Option<bool>,
    /// Options of a streamed response.
    pub stream_options: Option<StreamOptions>,
    /// Return the prompt before the text.
    pub echo: Option<bool>,
    /// Return the log-probability of each token and of this many most likely ones.
    #[schema(maximum = 20)]
    pub logprobs: Option<usize>,
    /// Required format of the text.
    pub response_format: Option<super::tools::ResponseFormat>,
    /// Fields that other engines have for the format.
    #[serde(skip)]
    pub constraint: super::tools::GuidedDecoding,
    /// Accepted only if equal to `n`.
    #[schema(minimum = 1, maximum = 1)]
    pub best_of: Option<usize>,
    /// Refused unless empty, as infilling is not supported.
    #[schema(max_length = 0)]
    pub suffix: Option<String>,
}

/// All fields of a request body.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation: a request is read in two parts")]
pub struct CompletionBody {
    /// Fields of the request body.
    #[serde(flatten)]
    pub request: CompletionRequest,
    #[serde(flatten)]
    pub how: super::generation::Generation,
    #[serde(flatten)]
    pub constraint: super::tools::GuidedDecoding,
}

/// One or several prompts, as text or token ids.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string, token ids, or an array of one of these")]
pub enum CompletionPrompt {
    /// A text, in which special tokens are not recognized.
    Text(String),
    Ids(Vec<u32>),
    /// Several texts, each with its own replies.
    Texts(Vec<String>),
    /// Several lists of token ids.
    Lists(Vec<Vec<u32>>),
}

/// A response, or a chunk of a streamed response.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Completion {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: &'static str,
    /// Generated texts; empty in a chunk of usage.
    pub choices: Vec<CompletionChoice>,
    /// Token usage; in a stream only if requested, and null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// Token counts, times and rates; in a stream in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    pub index: usize,
    /// The text, or its new part in a stream.
    pub text: String,
    /// Log-probabilities of the tokens, if requested.
    #[schema(required)]
    pub logprobs: Option<TextLogprobs>,
    /// stop or length, in the last chunk
    #[schema(required)]
    pub finish_reason: Option<&'static str>,
}

/// Log-probabilities of a text's tokens, as parallel lists.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct TextLogprobs {
    pub tokens: Vec<String>,
    /// Natural logarithms of the probabilities; -9999 for probability zero.
    pub token_logprobs: Vec<f32>,
    /// The most likely tokens at each position.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Offsets of the tokens in the text, in characters.
    pub text_offset: Vec<usize>,
}
