//! The description of what is served, made from the types and paths that serve it.

use super::api::chat::ChatChunk;
use super::app::App;
use super::errors::{ErrorBody, ErrorDetail};
use super::{chat, completion, info, responses, tokenize};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::sync::Arc;
use utoipa::{OpenApi, ToSchema};

#[derive(OpenApi)]
#[openapi(
    info(title = "kimi serve", description = "A local model behind OpenAI's interface."),
    paths(
        chat::completions,
        completion::completions,
        responses::create,
        info::embeddings,
        info::models,
        info::model,
        info::health,
        info::show_metrics,
        tokenize::tokenize,
        tokenize::detokenize,
    ),
    components(schemas(ErrorBody, ErrorDetail, ModelName, TokenId, ChatChunk))
)]
struct Description;

/// A name of the served model.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation")]
struct ModelName(String);

/// The id of a token.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation")]
struct TokenId(u32);

/// The description, with the names and ids that the loaded model has.
pub async fn show(State(app): State<Arc<App>>) -> Response {
    let mut told = json!(Description::openapi());
    told["components"]["schemas"]["ModelName"]["enum"] = json!(app.options.names);
    if let Some(ready) = app.loaded() {
        told["components"]["schemas"]["TokenId"]["maximum"] = (ready.engine.vocab() - 1).into();
    }
    Json(told).into_response()
}
