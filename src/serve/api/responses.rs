//! `/v1/responses`: items in, items or events of them out.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What is asked for.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponseRequest {
    /// The served model's name; may be absent.
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    /// What is said, or the conversation.
    pub input: Input,
    /// Instructions before it.
    pub instructions: Option<String>,
    /// Functions that may be called.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// none, auto, required, or a function by its name.
    #[schema(schema_with = crate::serve::api::schemas::tool_choice, required = false)]
    pub tool_choice: Option<Value>,
    /// Whether several may be called at once.
    pub parallel_tool_calls: Option<bool>,
    /// The form of the text.
    pub text: Option<TextOptions>,
    /// Tokens at most.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<usize>,
    /// Sharpness of the choice; 0 always takes the most likely token.
    #[schema(minimum = 0.0, maximum = 2.0)]
    pub temperature: Option<f32>,
    /// Keep the most likely tokens that together have this probability.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    /// Send events as the answer is made.
    pub stream: Option<bool>,
    /// More to tell; only what this model never has may be named.
    pub include: Option<Vec<String>>,
    /// How to reason; only no effort at all is taken.
    pub reasoning: Option<Reasoning>,
    /// Given back as it is.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// What is said, or the conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of items")]
pub enum Input {
    /// What the user says.
    Text(String),
    /// The conversation.
    Items(Vec<Item>),
}

/// An item of a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Item {
    /// message (where absent), function_call, function_call_output or reasoning
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Of a message: who speaks.
    pub role: Option<super::chat::Role>,
    /// Of a message: what is said.
    pub content: Option<ItemText>,
    /// Of a call and its output: its name among all calls.
    pub call_id: Option<String>,
    /// Of a call: the function's name.
    pub name: Option<String>,
    /// Of a call: its arguments, as JSON text.
    pub arguments: Option<String>,
    /// Of an output: what the function returned.
    pub output: Option<ItemText>,
}

/// Text, or parts of it.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of text parts")]
pub enum ItemText {
    /// Text.
    Text(String),
    /// input_text, output_text or text.
    Parts(Vec<super::chat::Part>),
}

/// The form of the text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TextOptions {
    /// The form.
    pub format: Option<TextFormat>,
}

/// The form of the text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TextFormat {
    /// text, json_object, json_schema or grammar
    #[serde(rename = "type")]
    pub kind: String,
    /// For json_schema: the schema.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// For grammar: the grammar.
    pub grammar: Option<String>,
    /// For grammar: lark or regex.
    pub syntax: Option<String>,
}

/// How to reason.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Reasoning {
    /// none
    pub effort: Option<String>,
    /// Refused.
    pub summary: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponseObject {
    /// Its name.
    pub id: String,
    /// `response`
    pub object: &'static str,
    /// Seconds of Unix time.
    pub created_at: u64,
    /// in_progress, completed or incomplete
    pub status: &'static str,
    /// Always null: an answer that fails is an error.
    #[schema(value_type = Option<Object>, required)]
    pub error: Value,
    /// Why it is incomplete.
    #[schema(required)]
    pub incomplete_details: Option<Incomplete>,
    /// As they were given.
    #[schema(required)]
    pub instructions: Option<String>,
    /// As it was given.
    #[schema(required)]
    pub max_output_tokens: Option<usize>,
    /// As it was given.
    #[schema(value_type = Object)]
    pub metadata: Box<RawValue>,
    /// The served model's name.
    pub model: String,
    /// What came out.
    pub output: Vec<OutputItem>,
    /// As it was given.
    pub parallel_tool_calls: bool,
    /// Always null.
    #[schema(required)]
    pub previous_response_id: Option<String>,
    /// `false`
    pub store: bool,
    /// As it was given.
    #[schema(required)]
    pub temperature: Option<f32>,
    /// As it was given, or auto.
    #[schema(schema_with = crate::serve::api::schemas::tool_choice)]
    pub tool_choice: Box<RawValue>,
    /// As they were given.
    #[schema(value_type = Vec<Object>)]
    pub tools: Box<RawValue>,
    /// As it was given.
    #[schema(required)]
    pub top_p: Option<f32>,
    /// `disabled`
    pub truncation: &'static str,
    /// Tokens read and made, at the end.
    #[schema(required)]
    pub usage: Option<ResponseUsage>,
}

/// Why an answer is incomplete.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Incomplete {
    /// max_output_tokens
    pub reason: &'static str,
}

/// Tokens read and made.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct ResponseUsage {
    /// Of the input.
    pub input_tokens: usize,
    /// More about the input.
    pub input_tokens_details: super::PromptDetails,
    /// Of the output.
    pub output_tokens: usize,
    /// More about the output.
    pub output_tokens_details: OutputDetails,
    /// Of both.
    pub total_tokens: usize,
}

/// More about the output.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct OutputDetails {
    /// Tokens after which the text so far was reasoning.
    pub reasoning_tokens: usize,
}

/// Something that came out.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// What is said.
    Message {
        /// Its name.
        id: String,
        /// in_progress, completed or incomplete
        status: &'static str,
        /// `assistant`
        role: &'static str,
        /// The text.
        content: Vec<OutputText>,
    },
    /// A call.
    FunctionCall {
        /// Its name.
        id: String,
        /// The call's name among all calls.
        call_id: String,
        /// The function's name.
        name: String,
        /// Its arguments, as JSON text.
        arguments: String,
        /// in_progress, completed or incomplete
        status: &'static str,
    },
    /// What was reasoned.
    Reasoning {
        /// Its name.
        id: String,
        /// Always empty.
        summary: Vec<String>,
        /// The text.
        content: Vec<OutputText>,
    },
}

/// A text that came out.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct OutputText {
    /// output_text or reasoning_text
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The text.
    pub text: String,
    /// Always empty.
    pub annotations: Vec<String>,
    /// Always empty.
    pub logprobs: Vec<String>,
}
