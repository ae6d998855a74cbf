//! The description of what is served, made from the types and paths that serve it.

use super::errors::{ErrorBody, ErrorDetail};
use super::{chat, completion, responses, routes, tokenize};
use axum::Json;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{IntoResponses, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(title = "kimi serve", description = "A local model behind OpenAI's interface."),
    paths(
        chat::completions,
        completion::completions,
        responses::create,
        routes::embeddings,
        routes::models,
        routes::model,
        routes::health,
        routes::show_metrics,
        tokenize::tokenize,
        tokenize::detokenize,
    ),
    components(schemas(ErrorBody, ErrorDetail))
)]
struct Description;

/// Answers that are errors. All have the same form.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "documentation: the statuses of ApiError")]
pub enum Refusals {
    /// The request is wrong, or asks for what is not done
    #[response(status = 400)]
    Wrong(ErrorBody),
    /// No key, or a wrong one
    #[response(status = 401)]
    Key(ErrorBody),
    /// No such model or path
    #[response(status = 404)]
    Missing(ErrorBody),
    /// Not to be asked by this method
    #[response(status = 405)]
    Method(ErrorBody),
    /// Too large
    #[response(status = 413)]
    Large(ErrorBody),
    /// Not JSON
    #[response(status = 415)]
    Kind(ErrorBody),
    /// Too many requests wait
    #[response(status = 429)]
    Busy(ErrorBody),
    /// The server failed
    #[response(status = 500)]
    Failed(ErrorBody),
    /// The server is starting or ending
    #[response(status = 503)]
    Unavailable(ErrorBody),
    /// Not done in time
    #[response(status = 504)]
    Late(ErrorBody),
}

/// The description.
pub async fn show() -> Response {
    Json(Description::openapi()).into_response()
}

/// A mode, or a function by its name.
pub(super) fn tool_choice() -> Schema {
    let mode = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["none", "auto", "required"]));
    let named = ObjectBuilder::new().schema_type(Type::Object);
    OneOfBuilder::new().item(mode).item(named).build().into()
}
