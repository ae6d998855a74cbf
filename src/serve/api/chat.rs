//! Types of `/v1/chat/completions`: requests, responses and chunks of streamed responses.

use super::files::{FileCitation, FilePart};
use super::tools::{GuidedDecoding, ResponseFormat, ToolChoice};
use super::{PromptProgress, StreamOptions, Timings, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Fields of a request besides [`super::generation::Generation`].
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct ChatRequest {
    /// Name of the served model; optional.
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    #[schema(min_items = 1)]
    pub messages: Vec<ChatMessage>,
    /// Stream the reply as server-sent events.
    pub stream: Option<bool>,
    /// Options of a streamed response.
    pub stream_options: Option<StreamOptions>,
    /// Report the progress of the prefill in the stream.
    pub return_progress: Option<bool>,
    /// Tools that the model may call.
    #[schema(value_type = Option<Vec<super::tools::Tool>>)]
    pub tools: Option<Vec<Value>>,
    /// Controls which tools are called.
    pub tool_choice: Option<ToolChoice>,
    /// Allow several calls in one message.
    pub parallel_tool_calls: Option<bool>,
    /// Required format of the reply.
    pub response_format: Option<ResponseFormat>,
    /// Fields that other engines have for the format.
    #[serde(skip)]
    pub constraint: GuidedDecoding,
    /// Reasoning effort, for models whose template has a variable for it; none turns reasoning off.
    pub reasoning_effort: Option<String>,
    /// Variables for the chat template; those that it does not use are ignored.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Return the log-probability of each token.
    pub logprobs: Option<bool>,
    /// Number of most likely tokens to return per position.
    #[schema(maximum = 20)]
    pub top_logprobs: Option<usize>,
}

/// All fields of a request body.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation: a request is read in two parts")]
pub struct ChatBody {
    /// Fields of the request body.
    #[serde(flatten)]
    pub request: ChatRequest,
    #[serde(flatten)]
    pub how: super::generation::Generation,
    #[serde(flatten)]
    pub constraint: GuidedDecoding,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatMessage {
    pub role: Role,
    /// Text of the message; optional in an assistant message with tool calls.
    pub content: Option<Content>,
    /// Optional name of the author.
    pub name: Option<String>,
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Id of the call that a tool message answers.
    pub tool_call_id: Option<String>,
    /// Reasoning that preceded the answer.
    pub reasoning_content: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    /// The same by its newer name.
    Developer,
    User,
    Assistant,
    /// The result of a call.
    Tool,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of parts")]
pub enum Content {
    Text(String),
    /// Text parts, which are concatenated, and files.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ContentPart {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
    /// The file of a part of the type file.
    pub file: Option<FilePart>,
}

/// A function call by the assistant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ToolCall {
    /// Unique id of the call.
    pub id: String,
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The called function and its arguments.
    pub function: FunctionCall,
}

fn function() -> String {
    "function".to_owned()
}

/// The called function and its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FunctionCall {
    pub name: String,
    /// Arguments of the call, as JSON text.
    pub arguments: String,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub choices: Vec<ChatChoice>,
    /// Numbers of prompt and reply tokens.
    pub usage: Usage,
    pub system_fingerprint: &'static str,
    /// Token counts, times and rates.
    pub timings: Timings,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    pub index: usize,
    pub message: Answer,
    /// Log-probabilities of the tokens, if requested.
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: &'static str,
    /// The stop string that ended the reply, as vLLM names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
}

/// The generated message of the assistant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Answer {
    pub role: &'static str,
    /// Text of the message; null if there are only calls.
    #[schema(required)]
    pub content: Option<String>,
    /// Always null; refusals are ordinary text.
    #[schema(required)]
    pub refusal: Option<String>,
    /// Reasoning that preceded the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Quotations of the text and their places in the files of the prompt; only if there are files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Vec<FileCitation>>,
    /// Tool calls of the message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// Log-probabilities of a reply's tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    pub content: Vec<TokenLogprob>,
    #[schema(required)]
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// Log-probability of a token and its alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Text of the token, with U+FFFD for incomplete characters.
    pub token: String,
    /// Natural logarithm of the probability; -9999 for probability zero.
    pub logprob: f32,
    /// Bytes of the token, possibly part of a character.
    pub bytes: Vec<u8>,
    /// The most likely tokens at this position.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the most likely tokens.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Text of the token, with U+FFFD for incomplete characters.
    pub token: String,
    /// Natural logarithm of the probability; -9999 for probability zero.
    pub logprob: f32,
    /// Bytes of the token, possibly part of a character.
    pub bytes: Vec<u8>,
}

/// A chunk of a streamed response.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatChunk {
    /// Id shared by all chunks of a response.
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: &'static str,
    /// New parts of the replies; empty in chunks of usage or progress.
    pub choices: Vec<ChunkChoice>,
    /// Token usage, if requested: null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// Token counts, times and rates, in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// Progress of the prefill, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_progress: Option<PromptProgress>,
}

/// The new part of a reply.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct ChunkChoice {
    pub index: usize,
    pub delta: ChatDelta,
    /// Log-probabilities of the new tokens, if requested.
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    /// stop, length or tool_calls in the last chunk of a reply
    #[schema(required)]
    pub finish_reason: Option<&'static str>,
    /// The stop string that ended the reply, as vLLM names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
}

/// The new part of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ChatDelta {
    /// `assistant` in the first chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More text of the reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Quotations of the whole text, in the last chunk before the one with `finish_reason`; only if there are files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Vec<FileCitation>>,
    /// New parts of tool calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// The new part of a tool call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Index of the call in the message.
    pub index: usize,
    /// Unique id of the call, in its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function` in the first chunk of a call.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// The called function and its arguments.
    pub function: FunctionDelta,
}

/// The new part of a function call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FunctionDelta {
    /// Name of the function, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More text of the JSON arguments.
    pub arguments: String,
}

impl ChatMessage {
    /// Converts the message for chat templates: text parts are joined, absent content is null.
    ///
    /// # Errors
    /// Returns the position of a part that is not text, and the reason.
    pub fn into_template(self) -> Result<models::template::Message, (String, String)> {
        let content = match self.content {
            None => Value::Null,
            Some(Content::Text(text)) => Value::String(text),
            Some(Content::Parts(parts)) => Value::String(join(&parts)?),
        };
        let role = if self.role == Role::Developer { Role::System } else { self.role };
        let name = serde_json::to_value(role).ok().and_then(|v| v.as_str().map(str::to_owned));
        Ok(models::template::Message {
            role: name.unwrap_or_default(),
            content: Some(content),
            reasoning_content: self.reasoning_content,
            tool_calls: self
                .tool_calls
                .filter(|calls| !calls.is_empty())
                .map(|calls| calls.iter().map(|call| serde_json::json!(call)).collect()),
            tool_call_id: self.tool_call_id,
            name: self.name,
            rest: Map::new(),
        })
    }
}

/// Joins the text parts of a message.
///
/// # Errors
/// Returns the position of a part that is not text, and the reason.
pub fn join(parts: &[ContentPart]) -> Result<String, (String, String)> {
    let mut all = String::new();
    for (i, part) in parts.iter().enumerate() {
        match &part.text {
            Some(text) if part.kind == "text" => all.push_str(text),
            _ => return Err((format!("content[{i}]"), format!("expected a text part, found {}", part.kind))),
        }
    }
    Ok(all)
}
