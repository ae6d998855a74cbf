//! OpenAPI schemas that are not derived from a type: server-sent events, errors, and fields with alternatives.

use crate::serve::errors::ErrorBody;
use serde_json::{Value, json};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{IntoResponses, ToSchema};

/// Maximum number of prompts per request.
pub const MAX_PROMPTS: usize = 64;
/// Maximum number of stop strings.
pub const MAX_STOPS: usize = 16;
/// Maximum bytes of a stop string.
pub const MAX_STOP_BYTES: usize = 1024;

#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation")]
pub struct ServerSentEvent {
    /// Type of the event; only for `/v1/responses`.
    event: Option<String>,
    /// JSON of a ChatChunk, Completion, response event or ErrorBody; `[DONE]` ends chat and text streams.
    data: String,
}

/// Error responses, which all have the same form.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "documentation: the statuses of ApiError")]
pub enum Refusals {
    /// The request is invalid or sets unsupported fields
    #[response(status = 400)]
    Wrong(ErrorBody),
    /// The API key is missing or wrong
    #[response(status = 401)]
    Key(ErrorBody),
    /// Foreign Host or Origin on a server that listens on loopback
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// The model or path does not exist
    #[response(status = 404)]
    Missing(ErrorBody),
    /// The method is not allowed for this path
    #[response(status = 405)]
    Method(ErrorBody),
    /// The body did not arrive in time
    #[response(status = 408)]
    Slow(ErrorBody),
    /// The request body is too large
    #[response(status = 413)]
    Large(ErrorBody),
    /// The content type is not JSON
    #[response(status = 415)]
    Kind(ErrorBody),
    /// Too many requests are waiting
    #[response(status = 429)]
    Busy(ErrorBody),
    /// The server failed to process the request
    #[response(status = 500)]
    Failed(ErrorBody),
    /// The server is loading, draining, or out of memory for bodies
    #[response(status = 503)]
    Unavailable(ErrorBody),
    /// The request exceeded the server's time limit
    #[response(status = 504)]
    Late(ErrorBody),
}

/// Converts a JSON value to a schema.
fn written(schema: Value) -> Schema {
    serde_json::from_value(schema).expect("the schemas below are schemas")
}

pub fn model_name() -> RefOr<Schema> {
    Ref::from_schema_name("ModelName").into()
}

/// Schema of a mode or a named function.
pub fn tool_choice() -> Schema {
    let mode = json!({ "type": "string", "enum": ["none", "auto", "required"] });
    written(json!({ "oneOf": [mode, { "type": "object" }] }))
}

pub fn token_ids() -> Schema {
    written(json!({ "type": "array", "items": { "$ref": "#/components/schemas/TokenId" } }))
}

/// Schema of one or several prompts, as text or token ids.
pub fn prompt() -> Schema {
    let text = json!({ "type": "string", "minLength": 1 });
    let ids = list(&json!({ "$ref": "#/components/schemas/TokenId" }), None);
    let most = Some(MAX_PROMPTS);
    written(json!({ "oneOf": [text, ids, list(&text, most), list(&ids, most)] }))
}

/// Schema of one or several stop strings.
pub fn stop() -> Schema {
    let text = json!({ "type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES / 4 });
    let nothing = json!({ "type": "null" });
    written(json!({ "oneOf": [nothing, text, list(&text, Some(MAX_STOPS))] }))
}

/// Schema of a map from token ids to logit biases.
pub fn logit_bias() -> Schema {
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
