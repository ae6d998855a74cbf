//! Generates the OpenAPI description from the handlers and API types.

use super::api::chat::ChatChunk;
use super::api::files::FileReadEvent;
use super::api::ollama::OllamaError;
use super::app::App;
use super::error_form::{AnthropicDetail, AnthropicError};
use super::errors::{ErrorBody, ErrorDetail};
use super::{chat, completion, files, info, messages, ollama, responses, tokenize};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::sync::Arc;
use utoipa::{OpenApi, ToSchema};

#[derive(OpenApi)]
#[openapi(
    info(title = "kimi serve", description = "A local model with the APIs of OpenAI, Anthropic and Ollama."),
    paths(
        chat::completions,
        completion::completions,
        responses::create,
        messages::create,
        messages::count_tokens,
        files::routes::create,
        files::routes::list,
        files::routes::retrieve,
        files::routes::delete,
        files::routes::content,
        files::routes::text,
        files::read::read,
        info::embeddings,
        info::models,
        info::model,
        info::health,
        info::show_metrics,
        tokenize::tokenize,
        tokenize::detokenize,
        ollama::create_message,
        ollama::generate,
        ollama::models::version,
        ollama::models::tags,
        ollama::models::ps,
        ollama::models::show,
        ollama::models::props,
    ),
    components(schemas(
        ErrorBody,
        ErrorDetail,
        AnthropicError,
        AnthropicDetail,
        OllamaError,
        ModelName,
        TokenId,
        ChatChunk,
        FileReadEvent
    ))
)]
struct Description;

/// A name of the served model
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation")]
struct ModelName(String);

/// The id of a token.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation")]
struct TokenId(u32);

/// Returns the description with the names and token ids of the loaded model.
pub async fn show(State(app): State<Arc<App>>) -> Response {
    let mut description = json!(Description::openapi());
    description["components"]["schemas"]["ModelName"]["enum"] = json!(app.options.names);
    if let Some(ready) = app.loaded() {
        description["components"]["schemas"]["TokenId"]["maximum"] = (ready.engine.config.vocab - 1).into();
    }
    Json(description).into_response()
}
