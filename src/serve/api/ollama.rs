//! Types of Ollama's interface: chats, completions and descriptions of the model.

use super::chat::Role;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A request for the next message of a conversation.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct OllamaChatRequest {
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    /// The conversation; without messages the model is loaded, which it always is.
    #[serde(default)]
    pub messages: Vec<OllamaMessage>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    #[serde(flatten)]
    pub how: OllamaOptions,
}

/// A request for the continuation of a prompt.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct OllamaGenerateRequest {
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    /// A user message; without one the model is loaded, which it always is.
    #[serde(default)]
    pub prompt: String,
    /// Instructions to the model before the prompt.
    pub system: Option<String>,
    /// Continue the prompt without the chat template.
    pub raw: Option<bool>,
    /// Refused unless empty, as infilling is not supported.
    pub suffix: Option<String>,
    /// Refused unless empty, as the model file has the template.
    pub template: Option<String>,
    /// Refused unless empty; use a chat.
    pub context: Option<Vec<u32>>,
    /// Refused unless empty, as only text is supported.
    #[schema(value_type = Option<Vec<String>>)]
    pub images: Option<Vec<Value>>,
    #[serde(flatten)]
    pub how: OllamaOptions,
}

/// Fields common to both kinds of requests. `keep_alive` is ignored, because the model stays loaded.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct OllamaOptions {
    /// Stream the reply as lines of JSON, which is the default.
    pub stream: Option<bool>,
    /// `json`, or a JSON schema of the reply.
    #[schema(value_type = Option<Value>)]
    pub format: Option<Value>,
    /// Parameters of sampling and length.
    #[schema(value_type = Option<Object>)]
    pub options: Option<Map<String, Value>>,
    /// Reasoning: false, true or an effort, for models whose template has a switch for it.
    #[schema(value_type = Option<Value>)]
    pub think: Option<Value>,
}

/// A message of a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct OllamaMessage {
    pub role: Role,
    #[serde(default)]
    pub content: String,
    /// Reasoning that preceded the answer.
    pub thinking: Option<String>,
    /// Refused unless empty, as only text is supported.
    #[schema(value_type = Option<Vec<String>>)]
    pub images: Option<Vec<Value>>,
    /// Tool calls of the assistant.
    pub tool_calls: Option<Vec<OllamaToolCall>>,
    /// Name of the tool whose result this is.
    pub tool_name: Option<String>,
    /// Id of the call that this result answers.
    pub tool_call_id: Option<String>,
}

/// A function call by the assistant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OllamaToolCall {
    /// Unique id of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub function: OllamaFunction,
}

/// The called function and its arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OllamaFunction {
    pub name: String,
    /// Arguments of the call, as an object.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub arguments: Map<String, Value>,
}

/// A response, or a line of a streamed response.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct OllamaReply {
    pub model: String,
    /// Time of the line, by RFC 3339.
    pub created_at: String,
    /// The message of a chat, or its new part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<OllamaAnswer>,
    /// The text of a completion, or its new part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// The reasoning of a completion, or its new part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    pub done: bool,
    /// stop, length or load, in the last line
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<&'static str>,
    #[serde(flatten)]
    pub timings: OllamaTimings,
}

/// The generated message, or its new part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct OllamaAnswer {
    pub role: &'static str,
    pub content: String,
    /// Reasoning that preceded the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<OllamaToolCall>,
}

/// Token counts, and times in nanoseconds, in the last line of a reply.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct OllamaTimings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_duration: Option<u64>,
    /// Tokens of the prompt, restored ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_eval_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_eval_duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_duration: Option<u64>,
}

/// The version of the interface.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OllamaVersion {
    pub version: &'static str,
}

/// The models of the server.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OllamaModels {
    pub models: Vec<OllamaModel>,
}

/// A model of the server.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OllamaModel {
    pub name: String,
    pub model: String,
    pub modified_at: String,
    /// Bytes of the model file; 0 if an upstream server has it.
    pub size: u64,
    /// A number that differs between models; not a checksum of the file.
    pub digest: String,
    pub details: OllamaDetails,
    /// Time at which the model is unloaded, which is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Bytes in the memory of a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_vram: Option<u64>,
    /// Maximum tokens of prompt and reply together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
}

/// Properties of a model file; empty if an upstream server has it.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct OllamaDetails {
    pub parent_model: String,
    pub format: &'static str,
    pub family: String,
    pub families: Vec<String>,
    pub parameter_size: String,
    pub quantization_level: String,
}

/// A request for the properties of a model.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct OllamaShowRequest {
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    /// Older name of the field model.
    pub name: Option<String>,
}

/// The properties of a model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OllamaShown {
    pub modelfile: String,
    pub parameters: String,
    /// The chat template, in Jinja's syntax.
    pub template: String,
    pub details: OllamaDetails,
    /// Metadata of the model file without lists.
    #[schema(value_type = Object)]
    pub model_info: Map<String, Value>,
    /// completion, tools and thinking, as far as the chat template supports them.
    pub capabilities: Vec<&'static str>,
    pub modified_at: String,
}

/// An error of this interface.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OllamaError {
    pub error: String,
}
