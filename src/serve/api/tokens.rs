//! Request and response types of `/tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    pub content: String,
    /// Recognize the names of special tokens.
    pub parse_special: Option<bool>,
    /// Return the bytes of each token with its id.
    pub with_pieces: Option<bool>,
}

/// The tokens of a text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Tokenized {
    pub tokens: Vec<TokenizedItem>,
}

/// A token id, with its bytes if the request has `with_pieces`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum TokenizedItem {
    Id(u32),
    Piece { id: u32, piece: TokenPiece },
}

/// The bytes of a token: as text where they are UTF-8, otherwise as numbers.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum TokenPiece {
    Text(String),
    Bytes(Vec<u8>),
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
