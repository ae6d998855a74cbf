//! Types of `/v1/messages`: Anthropic's requests, messages and token counts.

use super::Timings;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Fields of the request body.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct MessagesRequest {
    /// Name of the served model; optional.
    #[schema(schema_with = crate::serve::api::schemas::model_name, required = false)]
    pub model: Option<String>,
    #[schema(min_items = 1)]
    pub messages: Vec<InputMessage>,
    /// Instructions to the model before the messages.
    pub system: Option<BlockText>,
    /// Maximum number of generated tokens; optional.
    #[schema(minimum = 1)]
    pub max_tokens: Option<usize>,
    /// Strings that end the reply and are not part of it.
    #[schema(schema_with = crate::serve::api::schemas::stop_sequences, required = false)]
    pub stop_sequences: Option<Vec<String>>,
    /// Stream the message as server-sent events.
    pub stream: Option<bool>,
    /// Sampling temperature; 0 is greedy.
    #[schema(minimum = 0.0, maximum = 2.0)]
    pub temperature: Option<f32>,
    /// Nucleus sampling: keep the most likely tokens up to this total probability.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    /// Keep this many most likely tokens (0: all).
    pub top_k: Option<u32>,
    /// Tools that the model may call.
    #[schema(value_type = Option<Vec<ClientTool>>)]
    pub tools: Option<Vec<Value>>,
    /// Controls which tools are called.
    pub tool_choice: Option<ClientToolChoice>,
    /// Reasoning before the answer, for models whose template has a switch for it.
    pub thinking: Option<Thinking>,
    /// Required format of the reply, and its effort.
    pub output_config: Option<OutputConfig>,
    /// Older name of the field `output_config.format`.
    pub output_format: Option<OutputFormat>,
}

#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct InputMessage {
    pub role: InputRole,
    pub content: BlockText,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InputRole {
    User,
    Assistant,
    /// Instructions between the turns of a conversation.
    System,
}

/// A text, or a list of blocks.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of blocks")]
pub enum BlockText {
    Text(String),
    Blocks(Vec<InputBlock>),
}

/// A block of a message: text, thinking, a tool call or its result.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct InputBlock {
    /// text, thinking, redacted_thinking, tool_use, tool_result, document, search_result or tool_reference
    #[serde(rename = "type")]
    pub kind: String,
    /// Text of a text block.
    pub text: Option<String>,
    /// Text of a thinking block.
    pub thinking: Option<String>,
    /// Unique id of a tool call.
    pub id: Option<String>,
    /// Name of the called tool.
    pub name: Option<String>,
    /// Arguments of a tool call.
    #[schema(value_type = Option<Object>)]
    pub input: Option<Map<String, Value>>,
    /// Id of the call that a tool result answers.
    pub tool_use_id: Option<String>,
    /// Content of a tool result.
    #[schema(value_type = Option<Value>)]
    pub content: Option<Box<BlockText>>,
    /// The tool failed, and the content says why.
    pub is_error: Option<bool>,
    /// Source of a document: of the type text or base64 with the data, or file with the id of an uploaded file.
    #[schema(value_type = Option<Object>)]
    pub source: Option<Value>,
    /// Whether the reply cites a document.
    pub citations: Option<CitationSwitch>,
    /// Title of a document or a search result.
    pub title: Option<String>,
    /// Name of a tool that a search found.
    pub tool_name: Option<String>,
}

/// Asks for citations of a document.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub struct CitationSwitch {
    #[serde(default)]
    pub enabled: bool,
}

/// A tool that the client runs.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documentation: a tool is converted as JSON")]
pub struct ClientTool {
    /// Absent or `custom`; tools of other types are left out.
    #[schema(rename = "type")]
    pub kind: Option<String>,
    /// Name of letters, digits, `_`, `-` and `.`
    pub name: Option<String>,
    pub description: Option<String>,
    /// JSON schema of the arguments.
    #[schema(value_type = Option<Object>)]
    pub input_schema: Option<Value>,
    /// Constrain calls to match the schema.
    pub strict: Option<bool>,
}

/// Controls which tools are called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ClientToolChoice {
    /// auto, any, tool or none
    #[serde(rename = "type")]
    pub kind: String,
    /// Name for the type tool.
    pub name: Option<String>,
    /// Allow one call at most.
    pub disable_parallel_tool_use: Option<bool>,
}

/// A switch for reasoning before the answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Thinking {
    /// enabled, adaptive, between_tools or disabled
    #[serde(rename = "type")]
    pub kind: String,
}

/// The form of the reply.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct OutputConfig {
    /// Reasoning effort, for models whose template has a variable for it.
    pub effort: Option<String>,
    /// Required format of the text.
    pub format: Option<OutputFormat>,
}

/// Required format of the text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct OutputFormat {
    /// json_schema is the only type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema that the text matches.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
}

/// A message that the model generated.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OutputMessage {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub role: &'static str,
    pub model: String,
    pub content: Vec<OutputBlock>,
    /// end_turn, max_tokens, stop_sequence or tool_use
    #[schema(required)]
    pub stop_reason: Option<&'static str>,
    /// The string that ended the reply, if one did.
    #[schema(required)]
    pub stop_sequence: Option<String>,
    /// Numbers of prompt and reply tokens.
    pub usage: MessageUsage,
    /// Times, and the cause for which the prompt was prefilled; once the reply is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// A block of a generated message.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputBlock {
    Text {
        text: String,
        /// The quotations that documents have; absent unless the request asks for citations.
        #[serde(skip_serializing_if = "Option::is_none")]
        citations: Option<Vec<MessageCitation>>,
    },
    Thinking {
        thinking: String,
        /// Always empty, because reasoning is not signed.
        signature: String,
    },
    ToolUse {
        id: String,
        name: String,
        /// Arguments of the call, as an object.
        #[schema(value_type = Object)]
        input: Value,
    },
}

/// A quotation and its place in a document of the request. Offsets count Unicode characters of its text; ranges exclude
/// their end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MessageCitation {
    CharLocation {
        cited_text: String,
        document_index: usize,
        document_title: String,
        file_id: String,
        start_char_index: usize,
        end_char_index: usize,
    },
    /// In a document with pages.
    PageLocation {
        cited_text: String,
        document_index: usize,
        document_title: String,
        file_id: String,
        start_page_number: u32,
        end_page_number: u32,
    },
}

/// Numbers of prompt and reply tokens. The prompt is the sum of the three numbers of input tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct MessageUsage {
    /// Prompt tokens that were prefilled and are not kept.
    pub input_tokens: usize,
    /// Prompt tokens that were prefilled and are kept in the prefix cache.
    pub cache_creation_input_tokens: usize,
    /// Prompt tokens restored from the prefix cache.
    pub cache_read_input_tokens: usize,
    pub output_tokens: usize,
}

/// The length of a prompt.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct TokenCount {
    pub input_tokens: usize,
}
