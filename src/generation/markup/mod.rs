//! Parses the markup of a reply while it streams, reasoning between `<think>` and `</think>` and tool calls, and writes
//! grammars for replies with calls.
//!
//! Families of models mark calls in different ways. Each has a directory with its parser and its grammar; all parsers give
//! the same events. Reasoning is recognised at the start of a reply only, so that an answer can quote its tags. The server and
//! the chat models share the parsers; they do no I/O. Next: [`ling`], [`grammar`].

pub mod grammar;
mod kimi;
mod ling;
mod reply_text;

use kimi::KimiCalls;
use ling::LingCalls;
use models::template::{Template, message_form};
use reply_text::ReplyText;
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

/// How a family marks calls.
trait CallSyntax {
    /// Parses the pending text through its next marker; returns false if more text is needed.
    fn parse_next(&mut self, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>) -> bool;
    /// Parses `rest`, the pending text at the end of a reply.
    fn finish(&mut self, rest: &str, reply: &mut ReplyText, events: &mut Vec<ReplyEvent>);
}

/// An incremental parser of a reply.
#[derive(Clone, Debug, Default)]
pub struct ReplyParser {
    reply: ReplyText,
    calls: FamilyCalls,
}

/// The progress of a family's parser.
#[derive(Clone, Debug)]
enum FamilyCalls {
    Kimi(KimiCalls),
    Ling(LingCalls),
}

impl Default for FamilyCalls {
    fn default() -> Self {
        FamilyCalls::Kimi(KimiCalls::default())
    }
}

impl ReplyParser {
    /// Starts a reply. `in_reasoning`: the prompt already opened the reasoning tag.
    pub fn new(markup: Markup, tools: Vec<CallableTool>, has_reasoning: bool, in_reasoning: bool) -> Self {
        let calls = match markup {
            Markup::Kimi => FamilyCalls::default(),
            Markup::Ling => FamilyCalls::Ling(LingCalls::default()),
        };
        let (begun, pending) = (in_reasoning, String::new());
        ReplyParser { reply: ReplyText { tools, has_reasoning, in_reasoning, begun, pending }, calls }
    }

    /// Sets whether a grammar guarantees valid calls, so that Kimi's arguments are emitted as they arrive. Ling's are
    /// emitted at the end of the call, which makes them JSON.
    pub fn constrained(mut self, constrained: bool) -> Self {
        if let FamilyCalls::Kimi(calls) = &mut self.calls {
            calls.constrained = constrained;
        }
        self
    }

    /// Sets the number of the conversation's earlier calls, for markup without ids: they count calls.
    pub fn numbered_from(mut self, earlier: usize) -> Self {
        if let FamilyCalls::Ling(calls) = &mut self.calls {
            calls.next_call = earlier;
        }
        self
    }

    /// Parses more text and returns the events that are certain.
    pub fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        self.reply.pending.push_str(text);
        let mut events = Vec::new();
        let (reply, calls) = self.parts();
        while calls.parse_next(reply, &mut events) {}
        events
    }

    /// Ends the reply and returns pending text.
    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        let mut events = Vec::new();
        let rest = std::mem::take(&mut self.reply.pending);
        let (reply, calls) = self.parts();
        calls.finish(&rest, reply, &mut events);
        events
    }

    fn parts(&mut self) -> (&mut ReplyText, &mut dyn CallSyntax) {
        let calls: &mut dyn CallSyntax = match &mut self.calls {
            FamilyCalls::Kimi(calls) => calls,
            FamilyCalls::Ling(calls) => calls,
        };
        (&mut self.reply, calls)
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
