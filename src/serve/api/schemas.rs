//! OpenAPI schemas that are not derived from a type: server-sent events, errors, and fields with alternatives.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::{Content, Ref, RefOr, Schema};
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
    /// JSON of a ChatChunk, Completion, response event, FileReadEvent or ErrorBody; `[DONE]` ends chat and text streams.
    data: String,
}

/// The statuses of error responses, with their meaning.
const REFUSALS: [(&str, &str); 12] = [
    ("400", "The request is invalid or sets unsupported fields"),
    ("401", "The API key is missing or wrong"),
    ("403", "Foreign Host or Origin on a server that listens on loopback"),
    ("404", "The model or path does not exist"),
    ("405", "The method is not allowed for this path"),
    ("408", "The body did not arrive in time"),
    ("413", "The request body is too large"),
    ("415", "The content type is not JSON"),
    ("429", "Too many requests are waiting"),
    ("500", "The server failed to process the request"),
    ("503", "The server is loading, draining, or out of memory for bodies"),
    ("504", "The request exceeded the server's time limit"),
];

type Responses = BTreeMap<String, RefOr<Response>>;

/// Returns the error responses of an interface, whose bodies have this schema.
fn refusals(schema: &str) -> Responses {
    let response = |(status, meaning): (&str, &str)| {
        let body = Content::new(Some(Ref::from_schema_name(schema)));
        let response = ResponseBuilder::new().description(meaning).content("application/json", body);
        (status.to_owned(), response.build().into())
    };
    REFUSALS.map(response).into()
}

/// Error responses in OpenAI's form.
pub struct Refusals;

/// Error responses in Anthropic's form.
pub struct AnthropicRefusals;

/// Error responses in Ollama's form.
pub struct OllamaRefusals;

impl IntoResponses for Refusals {
    fn responses() -> Responses {
        refusals("ErrorBody")
    }
}

impl IntoResponses for AnthropicRefusals {
    fn responses() -> Responses {
        refusals("AnthropicError")
    }
}

impl IntoResponses for OllamaRefusals {
    fn responses() -> Responses {
        refusals("OllamaError")
    }
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

/// Schema of stop strings in Anthropic's form.
pub fn stop_sequences() -> Schema {
    let text = json!({ "type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES / 4 });
    written(json!({ "oneOf": [{ "type": "null" }, list(&text, Some(MAX_STOPS))] }))
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
