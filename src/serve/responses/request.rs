//! Converts a `/v1/responses` request to a chat request.

use crate::serve::api::chat::{ChatMessage, ChatRequest, Content, ContentPart, FunctionCall, Role, ToolCall};
use crate::serve::api::files::FilePart;
use crate::serve::api::generation::Generation;
use crate::serve::api::responses::{Item, ItemPart, ItemText, ResponseInput, ResponseRequest};
use crate::serve::api::tools::{FunctionName, JsonSchema, NamedTool, ResponseFormat, ToolChoice};
use crate::serve::errors::ApiError;
use serde_json::{Value, json};

/// Values of `include` that are accepted because the model has no such data.
const IGNORED_INCLUDES: [&str; 1] = ["reasoning.encrypted_content"];

/// Converts a request to a chat request and its generation parameters.
pub fn chat(request: &ResponseRequest) -> Result<(ChatRequest, Generation), ApiError> {
    if let Some(other) =
        request.include.iter().flatten().find(|name| !IGNORED_INCLUDES.contains(&name.as_str()))
    {
        return Err(ApiError::unsupported("include", format!("{other} is not supported")));
    }
    let generation = Generation {
        temperature: request.temperature,
        top_p: request.top_p,
        max_tokens: request.max_output_tokens,
        ..Generation::default()
    };
    let chat = ChatRequest {
        model: request.model.clone(),
        messages: messages(request)?,
        tools: request.tools.as_ref().map(|tools| tools.iter().map(tool).collect()),
        tool_choice: request.tool_choice.as_ref().map(choice).transpose()?,
        parallel_tool_calls: request.parallel_tool_calls,
        reasoning_effort: request.reasoning.as_ref().and_then(|reasoning| reasoning.effort.clone()),
        response_format: request.text.as_ref().and_then(|text| text.format.as_ref()).map(|f| {
            ResponseFormat {
                kind: f.kind.clone(),
                json_schema: f.schema.clone().map(|schema| JsonSchema { schema: Some(schema) }),
                grammar: f.grammar.clone(),
                syntax: f.syntax.clone(),
                ..ResponseFormat::default()
            }
        }),
        ..ChatRequest::default()
    };
    Ok((chat, generation))
}

/// `{"type", "name", ...}` as `{"type", "function": {"name", ...}}`
fn tool(tool: &Value) -> Value {
    let Some(fields) = tool.as_object() else { return tool.clone() };
    let mut function = fields.clone();
    let kind = function.shift_remove("type").unwrap_or(Value::Null);
    function.retain(|_, value| !value.is_null());
    json!({ "type": kind, "function": function })
}

fn choice(choice: &Value) -> Result<ToolChoice, ApiError> {
    if let Some(mode) = choice.as_str() {
        return Ok(ToolChoice::Mode(mode.to_owned()));
    }
    let (kind, name) = (choice["type"].as_str(), choice["name"].as_str());
    let (Some(kind), Some(name)) = (kind, name) else {
        let why = "expected none, auto, required or {\"type\": \"function\", \"name\": ...}";
        return Err(ApiError::invalid("tool_choice", why));
    };
    let function = FunctionName { name: name.to_owned() };
    Ok(ToolChoice::Named(NamedTool { kind: kind.to_owned(), function }))
}

fn messages(request: &ResponseRequest) -> Result<Vec<ChatMessage>, ApiError> {
    let mut messages = Vec::new();
    if let Some(text) = &request.instructions {
        messages.push(text_message(Role::System, text.clone()));
    }
    match &request.input {
        ResponseInput::Text(text) => messages.push(text_message(Role::User, text.clone())),
        ResponseInput::Items(items) => {
            for (i, item) in items.iter().enumerate() {
                let invalid = |why: String| ApiError::invalid(&format!("input[{i}]"), why);
                add(&mut messages, item).map_err(invalid)?;
            }
        }
    }
    Ok(messages)
}

fn text_message(role: Role, text: String) -> ChatMessage {
    let content = Some(Content::Text(text));
    ChatMessage { role, content, name: None, tool_calls: None, tool_call_id: None, reasoning_content: None }
}

fn add(messages: &mut Vec<ChatMessage>, item: &Item) -> Result<(), String> {
    let need = |field: &Option<String>, name: &str| field.clone().ok_or(format!("expected {name}"));
    match item.kind.as_deref().unwrap_or("message") {
        "message" => {
            let role = item.role.ok_or("expected role")?;
            let content = Some(content(item.content.as_ref().ok_or("expected content")?)?);
            messages.push(ChatMessage { content, ..text_message(role, String::new()) });
        }
        "function_call" => {
            let function = FunctionCall {
                name: need(&item.name, "name")?,
                arguments: need(&item.arguments, "arguments")?,
            };
            let call = ToolCall { id: need(&item.call_id, "call_id")?, kind: "function".into(), function };
            match messages.last_mut().filter(|m| m.role == Role::Assistant) {
                Some(last) => last.tool_calls.get_or_insert_default().push(call),
                None => messages.push(ChatMessage {
                    content: None,
                    tool_calls: Some(vec![call]),
                    ..text_message(Role::Assistant, String::new())
                }),
            }
        }
        "function_call_output" => {
            let text = text(item.output.as_ref().ok_or("expected output")?)?;
            let tool_call_id = Some(need(&item.call_id, "call_id")?);
            messages.push(ChatMessage { tool_call_id, ..text_message(Role::Tool, text) });
        }
        // Reasoning of earlier turns is not part of the prompt.
        "reasoning" => {}
        other => return Err(format!("expected a message, a call, its output or reasoning, found {other}")),
    }
    Ok(())
}

/// The content of a message: a text, or parts if there are files.
fn content(found: &ItemText) -> Result<Content, String> {
    match found {
        ItemText::Parts(parts) if parts.iter().any(|part| part.kind == "input_file") => {
            parts.iter().map(part).collect::<Result<_, _>>().map(Content::Parts)
        }
        found => text(found).map(Content::Text),
    }
}

fn part(part: &ItemPart) -> Result<ContentPart, String> {
    let ItemPart { kind, file_id, filename, file_data, file_url, .. } = part;
    if kind != "input_file" {
        return Ok(ContentPart { kind: "text".into(), text: Some(part_text(part)?), file: None });
    }
    if file_url.is_some() {
        return Err("file_url is not supported: send file_id or file_data".into());
    }
    let (file_id, filename, file_data) = (file_id.clone(), filename.clone(), file_data.clone());
    Ok(ContentPart { kind: "file".into(), text: None, file: Some(FilePart { file_id, filename, file_data }) })
}

fn part_text(part: &ItemPart) -> Result<String, String> {
    match &part.text {
        Some(text) if ["input_text", "output_text", "text"].contains(&part.kind.as_str()) => Ok(text.clone()),
        _ => Err(format!("expected parts of text, found {}", part.kind)),
    }
}

fn text(text: &ItemText) -> Result<String, String> {
    match text {
        ItemText::Text(text) => Ok(text.clone()),
        ItemText::Parts(parts) => parts.iter().map(part_text).collect(),
    }
}
