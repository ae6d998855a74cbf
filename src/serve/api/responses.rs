//! Types of `/v1/responses`: input items, output items and the response object.

use super::Timings;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Fields of the request body.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponseRequest {
    /// Name of the served model; optional.
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    /// A user message or a conversation.
    pub input: ResponseInput,
    /// System message before the input.
    pub instructions: Option<String>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// none, auto, required, or a named function.
    #[schema(schema_with = crate::serve::api::schemas::tool_choice, required = false)]
    pub tool_choice: Option<Value>,
    /// Allow several calls in one message.
    pub parallel_tool_calls: Option<bool>,
    /// Format of the output text.
    pub text: Option<TextOptions>,
    /// Maximum number of generated tokens.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy.
    #[schema(minimum = 0.0, maximum = 2.0)]
    pub temperature: Option<f32>,
    /// Nucleus sampling: keep the most likely tokens up to this total probability.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    /// Stream the response as server-sent events.
    pub stream: Option<bool>,
    /// Additional output; only data that this model never produces is accepted.
    pub include: Option<Vec<String>>,
    /// Reasoning options, for models whose template has a variable for the effort.
    pub reasoning: Option<Reasoning>,
    /// Returned unchanged in the response.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// A user message or a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of items")]
pub enum ResponseInput {
    /// Text of a user message.
    Text(String),
    Items(Vec<Item>),
}

/// An item of a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Item {
    /// message (the default), function_call, function_call_output or reasoning
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub role: Option<super::chat::Role>,
    pub content: Option<ItemText>,
    /// Unique id of a call, also in its output.
    pub call_id: Option<String>,
    /// Name of the called function.
    pub name: Option<String>,
    /// Arguments of a call, as JSON text.
    pub arguments: Option<String>,
    /// Result of a function call.
    pub output: Option<ItemText>,
}

/// A text or a list of text parts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of parts")]
pub enum ItemText {
    Text(String),
    Parts(Vec<ItemPart>),
}

/// A part of a message: a text, or a file of the type input_file.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ItemPart {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
    /// Refused: this server downloads nothing.
    pub file_url: Option<String>,
    /// Id of an uploaded file.
    pub file_id: Option<String>,
    /// Name of the file in `file_data`.
    pub filename: Option<String>,
    /// The file in Base64, with or without `data:TYPE;base64,`.
    pub file_data: Option<String>,
}

/// Format of the output text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TextOptions {
    pub format: Option<TextFormat>,
}

/// Format of the output text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TextFormat {
    /// text, json_object, json_schema or grammar
    #[serde(rename = "type")]
    pub kind: String,
    /// Schema for the type json_schema.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// Grammar for the type grammar.
    pub grammar: Option<String>,
    /// Syntax of the grammar: lark, gbnf or regex.
    pub syntax: Option<String>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Reasoning {
    pub effort: Option<String>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponseObject {
    pub id: String,
    pub object: &'static str,
    pub created_at: u64,
    pub status: &'static str,
    /// Always null, as failures are error responses.
    #[schema(value_type = Option<Object>, required)]
    pub error: Value,
    /// Reason if the status is incomplete.
    #[schema(required)]
    pub incomplete_details: Option<Incomplete>,
    /// Returned as in the request.
    #[schema(required)]
    pub instructions: Option<String>,
    /// Returned as in the request.
    #[schema(required)]
    pub max_output_tokens: Option<usize>,
    /// Returned as in the request.
    #[schema(value_type = Object)]
    pub metadata: Box<RawValue>,
    pub model: String,
    /// Generated items of the response.
    pub output: Vec<OutputItem>,
    /// Returned as in the request.
    pub parallel_tool_calls: bool,
    #[schema(required)]
    pub previous_response_id: Option<String>,
    pub store: bool,
    /// Returned as in the request.
    #[schema(required)]
    pub temperature: Option<f32>,
    /// Returned as in the request, auto by default.
    #[schema(schema_with = crate::serve::api::schemas::tool_choice)]
    pub tool_choice: Box<RawValue>,
    /// Returned as in the request.
    #[schema(value_type = Vec<Object>)]
    pub tools: Box<RawValue>,
    /// Returned as in the request.
    #[schema(required)]
    pub top_p: Option<f32>,
    pub truncation: &'static str,
    /// Token usage, once the response is complete.
    #[schema(required)]
    pub usage: Option<ResponseUsage>,
    /// Times, and the cause for which the prompt was prefilled; once the response is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// The reason of an incomplete response.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Incomplete {
    pub reason: &'static str,
}

/// Numbers of prompt and reply tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct ResponseUsage {
    pub input_tokens: usize,
    pub input_tokens_details: super::PromptDetails,
    pub output_tokens: usize,
    /// Details of the output tokens.
    pub output_tokens_details: OutputDetails,
    pub total_tokens: usize,
}

/// Details of the output tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct OutputDetails {
    /// Generated tokens that belong to reasoning.
    pub reasoning_tokens: usize,
}

/// A generated item of a response.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    Message {
        id: String,
        status: &'static str,
        role: &'static str,
        content: Vec<OutputText>,
    },
    FunctionCall {
        id: String,
        /// Unique id of the call.
        call_id: String,
        name: String,
        /// Arguments of the call, as JSON text.
        arguments: String,
        status: &'static str,
    },
    Reasoning {
        id: String,
        summary: Vec<String>,
        content: Vec<OutputText>,
    },
}

/// A text part of a generated item.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct OutputText {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub text: String,
    /// Quotations of the text and their places in the files of the input.
    pub annotations: Vec<super::files::FileCitation>,
    pub logprobs: Vec<String>,
}
