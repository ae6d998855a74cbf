//! The description of what is served, made from the types and paths that serve it.

use super::api::chat::ChatChunk;
use super::app::App;
use super::errors::{ErrorBody, ErrorDetail};
use super::{chat, completion, prepare, responses, routes, tokenize};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{IntoResponses, OpenApi, ToSchema};

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
    components(schemas(ErrorBody, ErrorDetail, ModelName, TokenId, ChatChunk))
)]
struct Description;

/// A server-sent event.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation")]
pub(super) struct Event {
    /// Its kind, where kinds differ: those of a response.
    event: Option<String>,
    /// JSON: a ChatChunk, a Completion, an event of a response or an ErrorBody; the last of a chat's or a text's is `[DONE]`.
    data: String,
}

/// A name of the served model.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation")]
struct ModelName(String);

/// The id of a token.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation")]
struct TokenId(u32);

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
    /// Host or Origin of another site, on a server that listens on loopback
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// No such model or path
    #[response(status = 404)]
    Missing(ErrorBody),
    /// Method not allowed
    #[response(status = 405)]
    Method(ErrorBody),
    /// The body did not arrive in time
    #[response(status = 408)]
    Slow(ErrorBody),
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
    /// The server is starting or ending, or out of memory for bodies
    #[response(status = 503)]
    Unavailable(ErrorBody),
    /// Not done in time
    #[response(status = 504)]
    Late(ErrorBody),
}

/// The description, with the names and ids that the loaded model has.
pub async fn show(State(app): State<Arc<App>>) -> Response {
    let mut told = json!(Description::openapi());
    told["components"]["schemas"]["ModelName"]["enum"] = json!(app.options.names);
    if let Some(ready) = app.loaded() {
        told["components"]["schemas"]["TokenId"]["maximum"] = (ready.engine.vocab() - 1).into();
    }
    Json(told).into_response()
}

/// A schema as JSON writes it.
fn written(schema: Value) -> Schema {
    serde_json::from_value(schema).expect("the schemas below are schemas")
}

pub(super) fn model_name() -> RefOr<Schema> {
    Ref::from_schema_name("ModelName").into()
}

/// A mode, or a function by its name.
pub(super) fn tool_choice() -> Schema {
    let mode = json!({ "type": "string", "enum": ["none", "auto", "required"] });
    written(json!({ "oneOf": [mode, { "type": "object" }] }))
}

pub(super) fn token_ids() -> Schema {
    written(json!({ "type": "array", "items": { "$ref": "#/components/schemas/TokenId" } }))
}

/// Texts or token ids, of one prompt or several.
pub(super) fn prompt() -> Schema {
    let text = json!({ "type": "string", "minLength": 1 });
    let ids = list(&json!({ "$ref": "#/components/schemas/TokenId" }), None);
    let most = Some(completion::MOST_PROMPTS);
    written(json!({ "oneOf": [text, ids, list(&text, most), list(&ids, most)] }))
}

/// One string or several.
pub(super) fn stop() -> Schema {
    let text = json!({ "type": "string", "minLength": 1, "maxLength": prepare::LONGEST_STOP / 4 });
    let nothing = json!({ "type": "null" });
    written(json!({ "oneOf": [nothing, text, list(&text, Some(prepare::MOST_STOPS))] }))
}

/// What is added to the logits of tokens, by their ids.
pub(super) fn logit_bias() -> Schema {
    let (ids, bias) = (
        json!({ "type": "string", "pattern": "^[0-9]{1,6}$" }),
        json!({ "type": "number", "minimum": -100, "maximum": 100 }),
    );
    written(json!({ "type": ["object", "null"], "propertyNames": ids, "additionalProperties": bias }))
}

fn list(of: &Value, most: Option<usize>) -> Value {
    let mut list = json!({ "type": "array", "items": of, "minItems": 1 });
    if let Some(most) = most {
        list["maxItems"] = most.into();
    }
    list
}
