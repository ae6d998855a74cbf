//! Converts requests of Ollama's interface to chat requests.

use crate::serve::api::chat::{ChatMessage, ChatRequest, Content, FunctionCall, Role, ToolCall};
use crate::serve::api::generation::Generation;
use crate::serve::api::ollama::{OllamaChatRequest, OllamaGenerateRequest, OllamaMessage, OllamaOptions};
use crate::serve::api::tools::ResponseFormat;
use crate::serve::errors::ApiError;
use serde_json::{Map, Value};
use std::collections::VecDeque;

/// Options that would change the reply, with the values that do not.
const UNSUPPORTED_OPTIONS: [(&str, &[f64]); 3] =
    [("mirostat", &[0.0]), ("tfs_z", &[1.0]), ("typical_p", &[1.0])];

/// Converts the request for a chat.
pub fn chat(request: &mut OllamaChatRequest) -> Result<ChatRequest, ApiError> {
    let mut conversion = OllamaConversion::default();
    for (i, message) in std::mem::take(&mut request.messages).into_iter().enumerate() {
        refuse_images(message.images.as_deref(), &format!("messages[{i}].images"))?;
        conversion.add(message);
    }
    let tools = request.tools.take();
    with_options(&request.how, ChatRequest { messages: conversion.messages, tools, ..ChatRequest::default() })
}

/// Converts the request for a completion by the chat template.
pub fn completion(request: &OllamaGenerateRequest) -> Result<ChatRequest, ApiError> {
    let system = request.system.clone().filter(|text| !text.is_empty());
    let system = system.map(|text| message(Role::System, text));
    let user = message(Role::User, request.prompt.clone());
    let messages = system.into_iter().chain([user]).collect();
    with_options(&request.how, ChatRequest { messages, ..ChatRequest::default() })
}

/// Refuses the fields of a completion that are not supported.
pub fn check_completion(request: &OllamaGenerateRequest) -> Result<(), ApiError> {
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    refuse_images(request.images.as_deref(), "images")?;
    for (field, found, why) in [
        ("suffix", is_set(&request.suffix), "the model does not support infilling"),
        ("template", is_set(&request.template), "the model file has the template; use raw"),
        ("context", request.context.as_ref().is_some_and(|ids| !ids.is_empty()), "use /api/chat"),
    ] {
        if found {
            return Err(ApiError::unsupported(field, why));
        }
    }
    Ok(())
}

fn refuse_images(images: Option<&[Value]>, place: &str) -> Result<(), ApiError> {
    match images {
        None | Some([]) => Ok(()),
        Some(_) => Err(ApiError::unsupported(place, "images are not supported by this model")),
    }
}

fn with_options(how: &OllamaOptions, request: ChatRequest) -> Result<ChatRequest, ApiError> {
    let effort = match &how.think {
        None | Some(Value::Null) => None,
        Some(Value::Bool(false)) => Some("none".to_owned()),
        Some(Value::Bool(true)) => Some("medium".to_owned()),
        Some(Value::String(effort)) => Some(effort.clone()),
        Some(other) => {
            return Err(ApiError::invalid(
                "think",
                format!("expected true, false or an effort, found {other}"),
            ));
        }
    };
    Ok(ChatRequest { reasoning_effort: effort, response_format: format(how)?, ..request })
}

/// Converts `format` to a response format.
pub fn format(how: &OllamaOptions) -> Result<Option<ResponseFormat>, ApiError> {
    let of = |schema| ResponseFormat { kind: "json_object".to_owned(), schema, ..ResponseFormat::default() };
    match &how.format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text == "json" => Ok(Some(of(None))),
        Some(schema @ Value::Object(_)) => Ok(Some(of(Some(schema.clone())))),
        Some(other) => {
            Err(ApiError::invalid("format", format!("expected json or a JSON schema, found {other}")))
        }
    }
}

/// Converts `options`, whose names are those of the other interfaces but for the number of tokens.
pub fn generation(how: &OllamaOptions) -> Result<Generation, ApiError> {
    let mut options = how.options.clone().unwrap_or_default();
    for (name, harmless) in UNSUPPORTED_OPTIONS {
        let value = options.get(name).and_then(Value::as_f64);
        if value.is_some_and(|value| !harmless.contains(&value)) {
            return Err(ApiError::unsupported(&format!("options.{name}"), "this sampler is not supported"));
        }
    }
    // Negative numbers are no limit.
    let limit = options.get("num_predict").and_then(Value::as_i64);
    let max_tokens = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    // The smallest penalty that the sampler takes; clients send 0 for none.
    if options.get("repeat_penalty").and_then(Value::as_f64) == Some(0.0) {
        options.remove("repeat_penalty");
    }
    let sampling: Map<String, Value> =
        options.into_iter().filter(|(name, _)| SAMPLING.contains(&name.as_str())).collect();
    let generation: Generation = serde_path_to_error::deserialize(Value::Object(sampling))
        .map_err(|e| ApiError::invalid(&format!("options.{}", e.path()), e.inner()))?;
    Ok(Generation { max_tokens, limit_to_memory: true, ..generation })
}

/// Options with an effect besides `num_predict`. Others, such as `num_ctx`, configure Ollama's own engine.
const SAMPLING: [&str; 9] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
];

fn message(role: Role, text: String) -> ChatMessage {
    let content = Some(Content::Text(text));
    ChatMessage { role, content, name: None, tool_calls: None, tool_call_id: None, reasoning_content: None }
}

/// The messages converted so far, with the calls that have no result yet: in this interface calls and results may have no ids.
#[derive(Default)]
struct OllamaConversion {
    messages: Vec<ChatMessage>,
    calls: usize,
    /// Id and name of each.
    unanswered: VecDeque<(String, String)>,
}

impl OllamaConversion {
    fn add(&mut self, input: OllamaMessage) {
        let OllamaMessage { role, content, thinking, tool_calls, tool_name, tool_call_id, .. } = input;
        let mut converted = message(role, content);
        converted.reasoning_content = thinking.filter(|text| !text.is_empty());
        let mut calls = Vec::new();
        for call in tool_calls.into_iter().flatten() {
            let (name, arguments) = (call.function.name, Value::Object(call.function.arguments).to_string());
            let id = call.id.filter(|id| !id.is_empty());
            let id = id.unwrap_or_else(|| format!("functions.{name}:{}", self.calls));
            self.calls += 1;
            self.unanswered.push_back((id.clone(), name.clone()));
            calls.push(ToolCall {
                id,
                kind: "function".to_owned(),
                function: FunctionCall { name, arguments },
            });
        }
        converted.tool_calls = Some(calls).filter(|calls| !calls.is_empty());
        if role == Role::Tool {
            converted.tool_call_id = self.answered(tool_call_id, tool_name.as_deref());
        }
        self.messages.push(converted);
    }

    /// Returns the id of the call that a result answers: by its id, or the first one of its name, or the first one.
    fn answered(&mut self, id: Option<String>, name: Option<&str>) -> Option<String> {
        let of = |wanted: &dyn Fn(&(String, String)) -> bool| self.unanswered.iter().position(wanted);
        let at = match (&id, name) {
            (Some(id), _) => of(&|(known, _)| known == id),
            (None, Some(name)) => of(&|(_, known)| known == name),
            (None, None) => of(&|_| true),
        };
        let found = at.and_then(|at| self.unanswered.remove(at)).map(|(id, _)| id);
        id.or(found)
    }
}
