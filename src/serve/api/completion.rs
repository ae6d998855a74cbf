//! `/v1/completions`: a text and how it goes on.

use super::{StreamOptions, Timings, Usage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What is asked for, beside [`super::generation::Generation`].
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// The served model's name; may be absent.
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    /// What goes on.
    #[schema(schema_with = crate::serve::api::schemas::prompt, required = true)]
    pub prompt: Prompt,
    /// Send the text as it is made, as server-sent events.
    pub stream: Option<bool>,
    /// What a stream is to tell.
    pub stream_options: Option<StreamOptions>,
    /// Begin the text with the prompt.
    pub echo: Option<bool>,
    /// Tell how likely each token was, and so many of the most likely ones.
    #[schema(maximum = 20)]
    pub logprobs: Option<usize>,
    /// The form that the text is to have.
    pub response_format: Option<super::tools::ResponseFormat>,
    /// Only the value of `n` is taken.
    #[schema(minimum = 1, maximum = 1)]
    pub best_of: Option<usize>,
    /// Refused unless it is empty: the model does not fill in.
    #[schema(max_length = 0)]
    pub suffix: Option<String>,
}

/// All that may be asked for.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation: a request is read in two parts")]
pub struct CompletionBody {
    /// What is asked for.
    #[serde(flatten)]
    pub request: CompletionRequest,
    /// How the text is made.
    #[serde(flatten)]
    pub how: super::generation::Generation,
}

/// Texts or token ids.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string, token ids, or an array of one of these")]
pub enum Prompt {
    /// A text, in which names of special tokens mean nothing.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// Several texts, each with its own replies.
    Texts(Vec<String>),
    /// Several lists of token ids.
    Lists(Vec<Vec<u32>>),
}

/// A whole answer, or a piece of a streamed one.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Completion {
    /// Its name.
    pub id: String,
    /// `text_completion`
    pub object: &'static str,
    /// Seconds of Unix time.
    pub created: u64,
    /// The served model's name.
    pub model: String,
    /// The server's version.
    pub system_fingerprint: &'static str,
    /// The texts; empty in a chunk of usage.
    pub choices: Vec<CompletionChoice>,
    /// Tokens read and made: in a stream in the last chunk, null in those before it, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// How fast it was: in a stream in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// A text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Its number.
    pub index: usize,
    /// The text, or what is new of it.
    pub text: String,
    /// How likely each token was, where that was asked for.
    #[schema(required)]
    pub logprobs: Option<TextLogprobs>,
    /// stop or length, at the end
    #[schema(required)]
    pub finish_reason: Option<&'static str>,
}

/// How likely each token was, list by list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct TextLogprobs {
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// The logarithms of their probabilities; -9999 where one is zero.
    pub token_logprobs: Vec<f32>,
    /// The most likely tokens in their places.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where they begin in the text, in characters.
    pub text_offset: Vec<usize>,
}
