//! `/tokenize` and `/detokenize`: convert text to token ids and back, compatible with llama.cpp's server.

use super::api::tokens::{
    DetokenizeRequest, Detokenized, TokenPiece, TokenizeRequest, Tokenized, TokenizedItem,
};
use super::app::App;
use super::body::RequestBody;
use super::completion::check_decoded_size;
use super::errors::ApiError;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// Converts a text to token ids
#[utoipa::path(
    post,
    path = "/tokenize",
    request_body = TokenizeRequest,
    responses((status = 200, description = "The ids", body = Tokenized), super::api::schemas::Refusals)
)]
pub async fn tokenize(State(app): State<Arc<App>>, body: RequestBody) -> Result<Response, ApiError> {
    let cost = body.cost();
    let tokenizer = app.ready()?.tokenizer().clone();
    let encode = move || {
        let request: TokenizeRequest = body.part()?;
        let tokens = if request.parse_special.unwrap_or(false) {
            tokenizer.encode_with_specials(&request.content)
        } else {
            tokenizer.encode(&request.content)
        };
        let piece = |id| match String::from_utf8(tokenizer.token_bytes(id).to_vec()) {
            Ok(text) => TokenPiece::Text(text),
            Err(e) => TokenPiece::Bytes(e.into_bytes()),
        };
        let item = |id| match request.with_pieces {
            Some(true) => TokenizedItem::Piece { id, piece: piece(id) },
            _ => TokenizedItem::Id(id),
        };
        Ok(Json(Tokenized { tokens: tokens.into_iter().map(item).collect() }).into_response())
    };
    app.intake.run(cost, move |_| encode()).await?
}

/// Converts token ids to their text
#[utoipa::path(
    post,
    path = "/detokenize",
    request_body = DetokenizeRequest,
    responses((status = 200, description = "The text", body = Detokenized), super::api::schemas::Refusals)
)]
pub async fn detokenize(State(app): State<Arc<App>>, body: RequestBody) -> Result<Response, ApiError> {
    let (ready, decoding) = (app.ready()?, app.clone());
    let (cost, vocab, tokenizer) = (body.cost(), ready.engine.config.vocab, ready.tokenizer().clone());
    let decode = move || {
        let request: DetokenizeRequest = body.part()?;
        if let Some(i) = request.tokens.iter().position(|id| *id as usize >= vocab) {
            let why = format!("expected an id below {vocab}, found {}", request.tokens[i]);
            return Err(ApiError::invalid(&format!("tokens[{i}]"), why));
        }
        let bytes = |id: &u32| tokenizer.token_bytes(*id).len();
        check_decoded_size("tokens", request.tokens.iter().map(bytes).sum(), &decoding)?;
        let content = tokenizer.decode(&request.tokens);
        Ok(Json(Detokenized { content }).into_response())
    };
    app.intake.run(cost, move |_| decode()).await?
}
