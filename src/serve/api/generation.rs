//! Sampling and length parameters common to chat and text completions.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Sampling and length parameters; absent or null fields take the server's defaults.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct Generation {
    /// Sampling temperature; 0 is greedy
    #[schema(minimum = 0.0, maximum = 2.0)]
    pub temperature: Option<f32>,
    /// Nucleus sampling: keep the most likely tokens up to this total probability
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    /// Keep this many most likely tokens (0: all)
    pub top_k: Option<u32>,
    /// Drop tokens below this fraction of the highest probability
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub min_p: Option<f32>,
    /// Seed of the sampler: the same seed, prompt and options give the same text, batched or not
    pub seed: Option<i64>,
    /// Stop strings, which are not part of the reply
    #[schema(schema_with = crate::serve::api::schemas::stop, required = false)]
    pub stop: Option<StopStrings>,
    /// Maximum number of generated tokens; -1 for as many as fit
    #[serde(default, deserialize_with = "token_limit")]
    #[schema(minimum = -1)]
    pub max_tokens: Option<usize>,
    /// Newer name of max_tokens, which it overrides
    #[serde(default, deserialize_with = "token_limit")]
    #[schema(minimum = -1)]
    pub max_completion_tokens: Option<usize>,
    /// Subtracted from the logits of tokens present in the reply
    #[schema(minimum = -2.0, maximum = 2.0)]
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logits of tokens for each occurrence in the reply
    #[schema(minimum = -2.0, maximum = 2.0)]
    pub frequency_penalty: Option<f32>,
    /// Divisor for the logits of recent tokens
    #[schema(minimum = 1.0, maximum = 100.0)]
    pub repeat_penalty: Option<f32>,
    /// Added to the logits of tokens, by token id
    #[schema(schema_with = crate::serve::api::schemas::logit_bias, required = false)]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Number of replies per prompt
    #[schema(minimum = 1, maximum = 16)]
    pub n: Option<usize>,
    pub ignore_eos: Option<bool>,
    /// Reduces `max_tokens` to what fits the memory instead of refusing the request
    #[serde(skip)]
    pub limit_to_memory: bool,
}

/// Reads a number of tokens; -1 is no limit, as for llama.cpp.
fn token_limit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    let limit = Option::<i64>::deserialize(from)?;
    limit.map(|limit| token_count(limit).map_err(D::Error::custom)).transpose()
}

/// Returns the number of tokens of a limit in which -1 means none.
pub fn token_count(limit: i64) -> Result<usize, String> {
    match limit {
        -1 => Ok(usize::MAX),
        limit => {
            usize::try_from(limit).map_err(|_| format!("expected a number of tokens or -1, found {limit}"))
        }
    }
}

/// One or several stop strings.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum StopStrings {
    One(String),
    Many(Vec<String>),
}

impl StopStrings {
    pub fn into_list(self) -> Vec<String> {
        match self {
            StopStrings::One(text) => vec![text],
            StopStrings::Many(texts) => texts,
        }
    }
}
