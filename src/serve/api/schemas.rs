//! Schemas of the description that do not follow from a type: server-sent events, errors, and fields with alternatives.

use crate::serve::errors::ErrorBody;
use serde_json::{Value, json};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{IntoResponses, ToSchema};

/// Prompts of a request at most.
pub const MAX_PROMPTS: usize = 64;
/// Stop strings at most.
pub const MAX_STOPS: usize = 16;
/// Bytes of a stop string at most.
pub const MAX_STOP_BYTES: usize = 1024;

/// A server-sent event.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation")]
pub struct Event {
    /// Its kind, where kinds differ: those of a response.
    event: Option<String>,
    /// JSON: a ChatChunk, a Completion, an event of a response or an ErrorBody; the last of a chat's or a text's is `[DONE]`.
    data: String,
}

/// RequestEvents that are errors. All have the same form.
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

/// A schema as JSON writes it.
fn written(schema: Value) -> Schema {
    serde_json::from_value(schema).expect("the schemas below are schemas")
}

pub fn model_name() -> RefOr<Schema> {
    Ref::from_schema_name("ModelName").into()
}

/// A mode, or a function by its name.
pub fn tool_choice() -> Schema {
    let mode = json!({ "type": "string", "enum": ["none", "auto", "required"] });
    written(json!({ "oneOf": [mode, { "type": "object" }] }))
}

pub fn token_ids() -> Schema {
    written(json!({ "type": "array", "items": { "$ref": "#/components/schemas/TokenId" } }))
}

/// Texts or token ids, of one prompt or several.
pub fn prompt() -> Schema {
    let text = json!({ "type": "string", "minLength": 1 });
    let ids = list(&json!({ "$ref": "#/components/schemas/TokenId" }), None);
    let most = Some(MAX_PROMPTS);
    written(json!({ "oneOf": [text, ids, list(&text, most), list(&ids, most)] }))
}

/// One string or several.
pub fn stop() -> Schema {
    let text = json!({ "type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES / 4 });
    let nothing = json!({ "type": "null" });
    written(json!({ "oneOf": [nothing, text, list(&text, Some(MAX_STOPS))] }))
}

/// What is added to the logits of tokens, by their ids.
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
