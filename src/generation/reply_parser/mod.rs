//! Parses the markup of a reply while it streams: reasoning between `<think>` and `</think>`, and tool calls.
//!
//! Models mark calls in different ways, each with a parser of its own; all give the same events. Reasoning is recognised at
//! the start of a reply only, so that an answer can quote its tags. The server and the chat models share the parsers;
//! they do no I/O. Next: [`ling`].

mod kimi;
mod ling;

use kimi::KimiParser;
use ling::LingParser;
use models::template::{Template, message_form};
use serde_json::Value;
use std::borrow::Cow;

const THINK_BEGIN: &str = "<think>";
const THINK_END: &str = "</think>";
/// The tags around reasoning. A template that mentions one belongs to a model that reasons.
pub const REASONING_TAGS: [&str; 2] = [THINK_BEGIN, THINK_END];

/// A parsed part of a reply. The events of a tool call follow each other without other events between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyEvent {
    /// More text of the reasoning.
    Reasoning(String),
    /// More text of the answer.
    Text(String),
    /// The start of a tool call: its id and the name of the function.
    ToolCallBegin { id: String, name: String },
    /// More arguments of the tool call, as JSON text.
    ToolCallArguments(String),
    /// The end of the tool call; missing if the reply ends inside its arguments.
    ToolCallEnd,
}

impl ReplyEvent {
    /// Appends the event's text to the reasoning or the answer so far.
    pub fn append_to(&self, reasoning: &mut String, text: &mut String) {
        match self {
            ReplyEvent::Reasoning(more) => reasoning.push_str(more),
            ReplyEvent::Text(more) => text.push_str(more),
            ReplyEvent::ToolCallBegin { .. } | ReplyEvent::ToolCallArguments(_) | ReplyEvent::ToolCallEnd => {
            }
        }
    }
}

/// Whether a prompt ends with an open reasoning tag, so that the reply begins inside the reasoning.
pub fn opens_reasoning(prompt: &str) -> bool {
    prompt.trim_end().ends_with(THINK_BEGIN)
}

/// Splits a complete reply without tool calls into reasoning and answer.
pub fn split_reasoning(reply: &str) -> (String, String) {
    let mut parser = ReplyParser::new(Markup::Kimi, Vec::new(), true, false);
    let (mut reasoning, mut text) = (String::new(), String::new());
    for event in parser.push(reply).into_iter().chain(parser.finish()) {
        event.append_to(&mut reasoning, &mut text);
    }
    (reasoning, text)
}

/// Joins reasoning and answer with the model's markup, as [`split_reasoning`] expects them.
pub fn join_reasoning<'t>(reasoning: &str, text: &'t str) -> Cow<'t, str> {
    match (reasoning, text) {
        ("", text) => Cow::Borrowed(text),
        (reasoning, "") => Cow::Owned(format!("{THINK_BEGIN}{reasoning}")),
        (reasoning, text) => Cow::Owned(format!("{THINK_BEGIN}{reasoning}{THINK_END}{text}")),
    }
}

/// A function that the model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallableTool {
    pub name: String,
    /// JSON schema of the arguments, if the function has one.
    pub parameters: Option<Value>,
}

/// How a model marks its tool calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Markup {
    #[default]
    Kimi,
    Ling,
}

impl Markup {
    /// The markup that a model's chat template writes.
    pub fn of(template: &Template) -> Markup {
        if message_form::reads_argument_objects(template.source()) { Markup::Ling } else { Markup::Kimi }
    }
}

/// An incremental parser of a reply.
#[derive(Clone, Debug)]
pub enum ReplyParser {
    Kimi(KimiParser),
    Ling(LingParser),
}

impl Default for ReplyParser {
    fn default() -> Self {
        ReplyParser::Kimi(KimiParser::default())
    }
}

impl ReplyParser {
    /// Starts a reply. `in_reasoning`: the prompt already opened the reasoning tag.
    pub fn new(markup: Markup, tools: Vec<CallableTool>, has_reasoning: bool, in_reasoning: bool) -> Self {
        match markup {
            Markup::Kimi => ReplyParser::Kimi(KimiParser::new(tools, has_reasoning, in_reasoning)),
            Markup::Ling => ReplyParser::Ling(LingParser::new(tools, has_reasoning, in_reasoning)),
        }
    }

    /// Sets whether a grammar guarantees valid calls, so that Kimi's arguments are emitted as they arrive. Ling's are
    /// emitted at the end of the call, which makes them JSON.
    pub fn constrained(self, constrained: bool) -> Self {
        match self {
            ReplyParser::Kimi(parser) => ReplyParser::Kimi(parser.constrained(constrained)),
            ling => ling,
        }
    }

    /// Sets the number of the conversation's earlier calls, for markup without ids: they count calls.
    pub fn numbered_from(self, calls: usize) -> Self {
        match self {
            ReplyParser::Ling(parser) => ReplyParser::Ling(parser.numbered_from(calls)),
            kimi => kimi,
        }
    }

    /// Parses more text and returns the events that are certain.
    pub fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        match self {
            ReplyParser::Kimi(parser) => parser.push(text),
            ReplyParser::Ling(parser) => parser.push(text),
        }
    }

    /// Ends the reply and returns pending text.
    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        match self {
            ReplyParser::Kimi(parser) => parser.finish(),
            ReplyParser::Ling(parser) => parser.finish(),
        }
    }
}

/// Whether the pending text is white space and a reasoning tag, or may become that.
fn may_open_reasoning(pending: &str) -> bool {
    let start = pending.trim_start();
    start.starts_with(THINK_BEGIN) || THINK_BEGIN.starts_with(start)
}

/// Appends text to the last event, or as an event of its own.
fn emit(text: &str, in_reasoning: bool, events: &mut Vec<ReplyEvent>) {
    if text.is_empty() {
        return;
    }
    match events.last_mut() {
        Some(ReplyEvent::Reasoning(last)) if in_reasoning => last.push_str(text),
        Some(ReplyEvent::Text(last)) if !in_reasoning => last.push_str(text),
        _ if in_reasoning => events.push(ReplyEvent::Reasoning(text.to_owned())),
        _ => events.push(ReplyEvent::Text(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn rendered(events: Vec<ReplyEvent>) -> String {
        let show = |event| match event {
            ReplyEvent::Text(text) => text,
            ReplyEvent::Reasoning(text) => format!("({text})"),
            ReplyEvent::ToolCallBegin { id, name } => format!("[{id} {name} "),
            ReplyEvent::ToolCallArguments(text) => text,
            ReplyEvent::ToolCallEnd => "]".to_owned(),
        };
        events.into_iter().map(show).collect()
    }

    #[test]
    fn split_and_join_are_inverse() {
        for (reply, reasoning, text) in [
            ("<think>a b</think>\n\nc", "a b", "\n\nc"),
            ("<think>cut", "cut", ""),
            ("answer </think>", "", "answer </think>"),
            ("", "", ""),
        ] {
            assert_eq!(split_reasoning(reply), (reasoning.to_owned(), text.to_owned()));
            assert_eq!(join_reasoning(reasoning, text), reply);
        }
    }
}
