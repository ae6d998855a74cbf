//! What every request for text may say about how it is made.

use serde::Deserialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// How text is to be made; what is absent or null is the server's default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct Generation {
    /// Sharpness of the choice; 0 always takes the most likely token
    #[schema(minimum = 0.0, maximum = 2.0)]
    pub temperature: Option<f32>,
    /// Keep the most likely tokens that together have this probability
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    /// Keep only the most likely tokens; 0: all
    pub top_k: Option<u32>,
    /// Drop tokens less likely than this share of the most likely one
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub min_p: Option<f32>,
    /// The same seed, prompt and options give the same text, alone or among others
    pub seed: Option<i64>,
    /// Text that ends the reply and is not part of it
    #[schema(schema_with = crate::serve::api::schemas::stop, required = false)]
    pub stop: Option<Stop>,
    /// Tokens at most
    #[schema(minimum = 1)]
    pub max_tokens: Option<usize>,
    /// The same by its newer name
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<usize>,
    /// Taken off the logits of tokens that the reply has
    #[schema(minimum = -2.0, maximum = 2.0)]
    pub presence_penalty: Option<f32>,
    /// Taken off the logits of tokens for each time that the reply has them
    #[schema(minimum = -2.0, maximum = 2.0)]
    pub frequency_penalty: Option<f32>,
    /// Divides the logits of recent tokens
    #[schema(minimum = 1.0, maximum = 100.0)]
    pub repeat_penalty: Option<f32>,
    /// Added to the logits of tokens, by their ids
    #[schema(schema_with = crate::serve::api::schemas::logit_bias, required = false)]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Replies to the same prompt
    #[schema(minimum = 1, maximum = 16)]
    pub n: Option<usize>,
    /// Go on past tokens that end a reply
    pub ignore_eos: Option<bool>,
}

/// One text or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum Stop {
    /// One.
    One(String),
    /// Several, 16 at most.
    Many(Vec<String>),
}

impl Stop {
    /// As a list.
    pub fn into_list(self) -> Vec<String> {
        match self {
            Stop::One(text) => vec![text],
            Stop::Many(texts) => texts,
        }
    }
}
