//! Converts a `/v1/messages` request to a chat request. Documents that are no plain text, or that the reply may cite, become
//! files of the chat request.

use super::call_id::CallIds;
use crate::serve::api::chat::{ChatMessage, ChatRequest, Content, ContentPart, FunctionCall, Role, ToolCall};
use crate::serve::api::files::FilePart;
use crate::serve::api::generation::{Generation, StopStrings};
use crate::serve::api::messages::{
    BlockText, ClientToolChoice, InputBlock, InputMessage, InputRole, MessagesRequest, OutputFormat,
};
use crate::serve::api::tools::{FunctionName, JsonSchema, NamedTool, ResponseFormat, ToolChoice};
use crate::serve::errors::ApiError;
use crate::serve::notices::Notices;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The line with which Claude Code opens its instructions. It differs in every request, so that no prompt would begin like an
/// earlier one.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";

/// A chat request and what the reply needs besides it.
pub struct ConvertedRequest {
    pub chat: ChatRequest,
    pub generation: Generation,
    /// Of each file of the chat request, its index among the documents; `None` unless the reply cites them.
    pub cited: Option<Vec<usize>>,
}

/// Converts a request to a chat request and its generation parameters.
pub fn chat(request: &mut MessagesRequest, notices: &Notices) -> Result<ConvertedRequest, ApiError> {
    let choice = request.tool_choice.take();
    let several = choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use).map(|one| !one);
    let config = request.output_config.take();
    let effort = config.as_ref().and_then(|config| config.effort.clone());
    let format = config.and_then(|config| config.format).or(request.output_format.take());
    let generation = Generation {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        max_tokens: request.max_tokens,
        stop: request.stop_sequences.clone().map(StopStrings::Many),
        // Clients send the maximum of the model that they know.
        limit_to_memory: true,
        ..Generation::default()
    };
    let MessageConversion { messages, files, has_citations, .. } = messages(request, notices)?;
    let chat = ChatRequest {
        model: request.model.take(),
        messages,
        tools: request.tools.take().map(|tools| tools.into_iter().map(tool).collect()),
        tool_choice: choice.map(tool_choice).transpose()?,
        parallel_tool_calls: several,
        response_format: format.map(response_format).transpose()?,
        reasoning_effort: reasoning(request, effort)?,
        ..ChatRequest::default()
    };
    Ok(ConvertedRequest { chat, generation, cited: has_citations.then_some(files) })
}

/// Returns the reasoning effort: `none` if thinking is disabled.
fn reasoning(request: &MessagesRequest, effort: Option<String>) -> Result<Option<String>, ApiError> {
    match request.thinking.as_ref().map(|thinking| thinking.kind.as_str()) {
        None => Ok(effort),
        Some("disabled") => Ok(Some("none".to_owned())),
        Some("enabled" | "adaptive" | "between_tools") => Ok(effort.or_else(|| Some("medium".to_owned()))),
        Some(other) => {
            let why = format!("expected enabled, adaptive or disabled, found {other}");
            Err(ApiError::invalid("thinking.type", why))
        }
    }
}

/// Converts `{"name", "description", "input_schema"}` to `{"type": "function", "function": {...}}`. A tool of another type keeps
/// its type.
fn tool(tool: Value) -> Value {
    let Value::Object(mut fields) = tool else { return tool };
    let kind = match fields.get("type").and_then(Value::as_str) {
        None | Some("custom") => "function".to_owned(),
        Some(other) => other.to_owned(),
    };
    let mut function = serde_json::Map::new();
    for (from, to) in [
        ("name", "name"),
        ("description", "description"),
        ("input_schema", "parameters"),
        ("strict", "strict"),
    ] {
        if let Some(value) = fields.remove(from).filter(|value| !value.is_null()) {
            function.insert(to.to_owned(), value);
        }
    }
    json!({ "type": kind, "function": function })
}

fn tool_choice(choice: ClientToolChoice) -> Result<ToolChoice, ApiError> {
    match choice.kind.as_str() {
        "auto" => Ok(ToolChoice::Mode("auto".to_owned())),
        "any" => Ok(ToolChoice::Mode("required".to_owned())),
        "none" => Ok(ToolChoice::Mode("none".to_owned())),
        "tool" => {
            let name = choice.name.ok_or_else(|| ApiError::invalid("tool_choice.name", "expected a name"))?;
            Ok(ToolChoice::Named(NamedTool { kind: "function".to_owned(), function: FunctionName { name } }))
        }
        other => {
            let why = format!("expected auto, any, tool or none, found {other}");
            Err(ApiError::invalid("tool_choice.type", why))
        }
    }
}

fn response_format(format: OutputFormat) -> Result<ResponseFormat, ApiError> {
    if format.kind != "json_schema" {
        let why = format!("expected json_schema, found {}", format.kind);
        return Err(ApiError::invalid("output_config.format.type", why));
    }
    let json_schema = Some(JsonSchema { schema: format.schema });
    Ok(ResponseFormat { kind: format.kind, json_schema, ..ResponseFormat::default() })
}

fn messages(request: &mut MessagesRequest, notices: &Notices) -> Result<MessageConversion, ApiError> {
    let mut conversion = MessageConversion::default();
    if let Some(system) = request.system.take() {
        let text =
            joined(system).map_err(|(place, why)| ApiError::invalid(&format!("system{place}"), why))?;
        let text = without_billing_header(&text, notices);
        if !text.is_empty() {
            conversion.push_text(Role::System, text.to_owned());
        }
    }
    let messages = std::mem::take(&mut request.messages);
    if messages.last().is_some_and(|message| message.role == InputRole::Assistant) {
        let why =
            "expected a message of the user at the end; continuing one of the assistant is not supported";
        return Err(ApiError::unsupported("messages", why));
    }
    for (i, message) in messages.into_iter().enumerate() {
        conversion
            .add(message)
            .map_err(|(place, why)| ApiError::invalid(&format!("messages[{i}].content{place}"), why))?;
    }
    Ok(conversion)
}

/// Removes the line of Claude Code's billing from the start of the instructions.
fn without_billing_header<'a>(text: &'a str, notices: &Notices) -> &'a str {
    if !text.starts_with(BILLING_HEADER) {
        return text;
    }
    notices
        .once("system: the line x-anthropic-billing-header, which changes with every request, is left out");
    text.split_once('\n').map_or("", |(_, rest)| rest.trim_start_matches('\n'))
}

/// A place in the content of a message, and what is wrong there.
type Fault = (String, String);

/// The messages converted so far.
#[derive(Default)]
struct MessageConversion {
    messages: Vec<ChatMessage>,
    ids: CallIds,
    /// The number of documents, and the indexes of those that are files.
    documents: usize,
    files: Vec<usize>,
    has_citations: bool,
}

impl MessageConversion {
    fn push_text(&mut self, role: Role, text: String) {
        self.messages.push(message(role, Some(text)));
    }

    fn add(&mut self, input: InputMessage) -> Result<(), Fault> {
        match (input.role, input.content) {
            (InputRole::System, content) => {
                let text = joined(content)?;
                self.push_text(Role::System, text);
                Ok(())
            }
            (InputRole::User, BlockText::Text(text)) => {
                self.push_text(Role::User, text);
                Ok(())
            }
            (InputRole::Assistant, BlockText::Text(text)) => {
                self.push_text(Role::Assistant, text);
                Ok(())
            }
            (InputRole::User, BlockText::Blocks(blocks)) => self.add_user(blocks),
            (InputRole::Assistant, BlockText::Blocks(blocks)) => self.add_assistant(blocks),
        }
    }

    /// Adds results of tools and the text and files between them as messages, in the order of the blocks.
    fn add_user(&mut self, blocks: Vec<InputBlock>) -> Result<(), Fault> {
        let mut text: Option<String> = None;
        let mut files = Vec::new();
        for (i, block) in blocks.into_iter().enumerate() {
            if block.kind == "document" {
                self.documents += 1;
                self.has_citations |= is_cited(&block);
                if let Some(file) = document_file(&block).map_err(|e| within(i, e))? {
                    self.files.push(self.documents - 1);
                    files.push(file);
                    continue;
                }
            }
            if block.kind != "tool_result" {
                append(&mut text, &block_text(block).map_err(|e| within(i, e))?);
                continue;
            }
            if let Some(text) = text.take() {
                self.push_text(Role::User, text);
            }
            let id = need(block.tool_use_id, "tool_use_id").map_err(|e| within(i, e))?;
            let content = block.content.map(|content| joined(*content)).transpose();
            let content = content
                .map_err(|(place, why)| within(i, (format!(".content{place}"), why)))?
                .unwrap_or_default();
            let failed = if block.is_error.unwrap_or(false) { "Error: " } else { "" };
            let tool_call_id = Some(self.ids.answered(&id));
            let result = message(Role::Tool, Some(format!("{failed}{content}")));
            self.messages.push(ChatMessage { tool_call_id, ..result });
        }
        if !files.is_empty() {
            let mut parts: Vec<_> = files.into_iter().map(|file| part("file", None, Some(file))).collect();
            parts.extend(text.map(|text| part("text", Some(text), None)));
            let content = Some(Content::Parts(parts));
            self.messages.push(ChatMessage { content, ..message(Role::User, None) });
        } else if let Some(text) = text {
            self.push_text(Role::User, text);
        }
        Ok(())
    }

    fn add_assistant(&mut self, blocks: Vec<InputBlock>) -> Result<(), Fault> {
        let (mut text, mut reasoning, mut calls) = (None, None, Vec::new());
        for (i, block) in blocks.into_iter().enumerate() {
            match block.kind.as_str() {
                "tool_use" => calls.push(self.call(block).map_err(|e| within(i, e))?),
                "thinking" => append(&mut reasoning, &block.thinking.unwrap_or_default()),
                // Encrypted for the model that wrote it.
                "redacted_thinking" => {}
                _ => append(&mut text, &block_text(block).map_err(|e| within(i, e))?),
            }
        }
        self.messages.push(ChatMessage {
            reasoning_content: reasoning,
            tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
            ..message(Role::Assistant, text)
        });
        Ok(())
    }

    fn call(&mut self, block: InputBlock) -> Result<ToolCall, Fault> {
        let (id, name) = (need(block.id, "id")?, need(block.name, "name")?);
        let arguments = Value::Object(block.input.unwrap_or_default()).to_string();
        let id = self.ids.called(&id, &name);
        Ok(ToolCall { id, kind: "function".to_owned(), function: FunctionCall { name, arguments } })
    }
}

fn message(role: Role, text: Option<String>) -> ChatMessage {
    let content = text.map(Content::Text);
    ChatMessage { role, content, name: None, tool_calls: None, tool_call_id: None, reasoning_content: None }
}

fn part(kind: &str, text: Option<String>, file: Option<FilePart>) -> ContentPart {
    ContentPart { kind: kind.to_owned(), text, file }
}

fn is_cited(document: &InputBlock) -> bool {
    document.citations.is_some_and(|citations| citations.enabled)
}

/// Returns a document as a file; `None` for a plain text that is not cited, which stays where it is.
fn document_file(document: &InputBlock) -> Result<Option<FilePart>, Fault> {
    let source = document.source.as_ref().unwrap_or(&Value::Null);
    let field = |name: &str| need(source[name].as_str().map(str::to_owned), &format!("source.{name}"));
    let named = |data, ending: &str| {
        let name = document.title.clone().unwrap_or_else(|| format!("document.{ending}"));
        FilePart { filename: Some(name), file_data: Some(data), ..FilePart::default() }
    };
    match source["type"].as_str() {
        Some("text") if is_cited(document) => Ok(Some(named(STANDARD.encode(field("data")?), "txt"))),
        Some("base64") => Ok(Some(named(field("data")?, "pdf"))),
        Some("file") => Ok(Some(FilePart { file_id: Some(field("file_id")?), ..FilePart::default() })),
        _ => Ok(None),
    }
}

fn within(i: usize, (place, why): Fault) -> Fault {
    (format!("[{i}]{place}"), why)
}

fn need(field: Option<String>, name: &str) -> Result<String, Fault> {
    field.ok_or_else(|| (format!(".{name}"), "expected a string".to_owned()))
}

/// Appends the text of a block on a line of its own.
fn append(text: &mut Option<String>, more: &str) {
    match text {
        Some(text) => {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(more);
        }
        None => *text = Some(more.to_owned()),
    }
}

/// Returns a text or the texts of its blocks.
fn joined(content: BlockText) -> Result<String, Fault> {
    let blocks = match content {
        BlockText::Text(text) => return Ok(text),
        BlockText::Blocks(blocks) => blocks,
    };
    let mut all = None;
    for (i, block) in blocks.into_iter().enumerate() {
        append(&mut all, &block_text(block).map_err(|e| within(i, e))?);
    }
    Ok(all.unwrap_or_default())
}

fn block_text(block: InputBlock) -> Result<String, Fault> {
    match block.kind.as_str() {
        "text" => need(block.text, "text"),
        "image" => Err((String::new(), "images are not supported by this model".to_owned())),
        "document" => {
            let source = block.source.unwrap_or_default();
            let text = source["data"].as_str().filter(|_| source["type"] == "text").ok_or_else(|| {
                (".source".to_owned(), "expected a source of the type text, base64 or file".to_owned())
            })?;
            Ok(block.title.map_or_else(|| text.to_owned(), |title| format!("{title}\n{text}")))
        }
        "search_result" => {
            let text = block.content.map(|content| joined(*content)).transpose();
            let text = text.map_err(|(place, why)| (format!(".content{place}"), why))?.unwrap_or_default();
            Ok(format!("{}\n{text}", block.title.unwrap_or_default()))
        }
        "tool_reference" => need(block.tool_name, "tool_name"),
        other => Err((String::new(), format!("blocks of type {other} are not supported here"))),
    }
}
