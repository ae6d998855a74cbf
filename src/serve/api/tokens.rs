//! `/tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A text to be cut into tokens.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    /// The text.
    pub content: String,
    /// Names of special tokens in it are those tokens.
    pub parse_special: Option<bool>,
}

/// The tokens of a text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Tokenized {
    /// Their ids.
    pub tokens: Vec<u32>,
}

/// Tokens whose text is wanted.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// Their ids.
    #[schema(schema_with = crate::serve::api::schemas::token_ids, required = true)]
    pub tokens: Vec<u32>,
}

/// The text of tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Detokenized {
    /// The text.
    pub content: String,
}
