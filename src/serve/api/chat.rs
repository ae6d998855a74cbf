//! `/v1/chat/completions`: messages in, messages or chunks of them out.

use super::tools::{ResponseFormat, ToolChoice};
use super::{Progress, StreamOptions, Timings, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What is asked for, beside [`super::generation::Generation`].
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct ChatRequest {
    /// The served model's name; may be absent.
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    /// The conversation.
    #[schema(min_items = 1)]
    pub messages: Vec<ChatMessage>,
    /// Send the reply as it is made, as server-sent events.
    pub stream: Option<bool>,
    /// What a stream is to tell.
    pub stream_options: Option<StreamOptions>,
    /// Tell in the stream how far the prompt is read.
    pub return_progress: Option<bool>,
    /// Tools that may be called.
    #[schema(value_type = Option<Vec<super::tools::Tool>>)]
    pub tools: Option<Vec<Value>>,
    /// Whether they are called.
    pub tool_choice: Option<ToolChoice>,
    /// Whether several may be called at once.
    pub parallel_tool_calls: Option<bool>,
    /// The form that the reply is to have.
    pub response_format: Option<ResponseFormat>,
    /// Variables for the model's chat template; those that it does not know are refused.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Tell how likely each token was.
    pub logprobs: Option<bool>,
    /// And so many of the most likely ones.
    #[schema(maximum = 20)]
    pub top_logprobs: Option<usize>,
}

/// All that may be asked for.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation: a request is read in two parts")]
pub struct ChatBody {
    /// What is asked for.
    #[serde(flatten)]
    pub request: ChatRequest,
    /// How the text is made.
    #[serde(flatten)]
    pub how: super::generation::Generation,
}

/// One message.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said; may be absent or null in an assistant's message that calls tools.
    pub content: Option<Content>,
    /// Whose name it is said under.
    pub name: Option<String>,
    /// Calls the assistant made.
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call that a tool's message answers.
    pub tool_call_id: Option<String>,
    /// What the assistant reasoned before it answered.
    pub reasoning_content: Option<String>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The same by its newer name.
    Developer,
    /// The human.
    User,
    /// The model.
    Assistant,
    /// The result of a call.
    Tool,
}

/// What is said.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of text parts")]
pub enum Content {
    /// Text.
    Text(String),
    /// Texts one after another.
    Parts(Vec<Part>),
}

/// A part of what is said.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Part {
    /// `text`; others are refused.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
}

/// A call the assistant made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ToolCall {
    /// Its name among all calls.
    pub id: String,
    /// `function`
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// What is called.
    pub function: FunctionCall,
}

fn function() -> String {
    "function".to_owned()
}

/// What is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// Its arguments, as JSON text.
    pub arguments: String,
}

/// A whole answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// Its name.
    pub id: String,
    /// `chat.completion`
    pub object: &'static str,
    /// Seconds of Unix time.
    pub created: u64,
    /// The served model's name.
    pub model: String,
    /// The replies.
    pub choices: Vec<Choice>,
    /// Tokens read and made.
    pub usage: Usage,
    /// The server's version.
    pub system_fingerprint: &'static str,
    /// How fast it was.
    pub timings: Timings,
}

/// A reply.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Choice {
    /// Its number.
    pub index: usize,
    /// What is said.
    pub message: Answer,
    /// How likely each token was, where that was asked for.
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    /// stop, length or tool_calls
    pub finish_reason: &'static str,
}

/// What the assistant says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Answer {
    /// `assistant`
    pub role: &'static str,
    /// The text; null where there are only calls.
    #[schema(required)]
    pub content: Option<String>,
    /// Always null: this model does not refuse in a form of its own.
    #[schema(required)]
    pub refusal: Option<String>,
    /// What it reasoned before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls it makes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// How likely each token was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// Token by token.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    #[schema(required)]
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// How likely a token was.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text.
    pub token: String,
    /// The logarithm of its probability; -9999 where that is zero.
    pub logprob: f32,
    /// Its bytes, which may be a part of a character.
    pub bytes: Vec<u8>,
    /// The most likely tokens in its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the most likely tokens.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// The logarithm of its probability; -9999 where that is zero.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A piece of a streamed answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatChunk {
    /// The answer's name.
    pub id: String,
    /// `chat.completion.chunk`
    pub object: &'static str,
    /// Seconds of Unix time.
    pub created: u64,
    /// The served model's name.
    pub model: String,
    /// The server's version.
    pub system_fingerprint: &'static str,
    /// What is new; empty in a chunk of usage or progress.
    pub choices: Vec<ChunkChoice>,
    /// Tokens read and made: in the last chunk, null in those before it, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// How fast it was: in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// How far the prompt is read, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_progress: Option<Progress>,
}

/// What is new of a reply.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// The reply's number.
    pub index: usize,
    /// What is said.
    pub delta: Delta,
    /// How likely each new token was, where that was asked for.
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    /// stop, length or tool_calls, at the end
    #[schema(required)]
    pub finish_reason: Option<&'static str>,
}

/// What is said, piece by piece.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Delta {
    /// `assistant`, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More of what it reasons.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// More of the calls it makes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// More of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// The call's number in the message.
    pub index: usize,
    /// Its name among all calls, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in the first piece.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// What is called.
    pub function: FunctionDelta,
}

/// More of what is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FunctionDelta {
    /// The function's name, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of its arguments.
    pub arguments: String,
}

impl ChatMessage {
    /// As templates read it: texts joined, null where nothing is said.
    ///
    /// # Errors
    /// A part that is no text, by its place in the message.
    pub fn into_template(self) -> Result<models::template::Message, (String, String)> {
        let content = match self.content {
            None => Value::Null,
            Some(Content::Text(text)) => Value::String(text),
            Some(Content::Parts(parts)) => Value::String(join(parts)?),
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

fn join(parts: Vec<Part>) -> Result<String, (String, String)> {
    let mut all = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        match part.text {
            Some(text) if part.kind == "text" => all.push_str(&text),
            _ => return Err((format!("content[{i}]"), format!("expected a text part, found {}", part.kind))),
        }
    }
    Ok(all)
}
