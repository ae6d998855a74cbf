//! Request and response types of `/tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    pub content: String,
    /// Recognize the names of special tokens.
    pub parse_special: Option<bool>,
}

/// The tokens of a text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Tokenized {
    pub tokens: Vec<u32>,
}

/// Token ids to convert to text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    #[schema(schema_with = crate::serve::api::schemas::token_ids, required = true)]
    pub tokens: Vec<u32>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Detokenized {
    pub content: String,
}
