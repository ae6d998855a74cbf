//! Holds what the parsers of all families share: the reply's text that is not parsed yet, its reasoning, and the tools.
//!
//! It knows no markup of calls.

use super::{CallableTool, ReplyEvent, THINK_BEGIN, THINK_END};

/// The text of a reply while it is parsed.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplyText {
    /// If empty, calls are text.
    pub tools: Vec<CallableTool>,
    /// The model marks its reasoning with tags.
    pub has_reasoning: bool,
    pub in_reasoning: bool,
    /// The reply has text, reasoning or a call, so that a reasoning tag is text.
    pub begun: bool,
    /// Text that is not parsed yet.
    pub pending: String,
}

impl ReplyText {
    /// The tool with this name.
    pub fn tool(&self, name: &str) -> Option<&CallableTool> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// The reasoning tag that may follow.
    pub fn reasoning_marker(&self) -> Option<&'static str> {
        if self.in_reasoning {
            return Some(THINK_END);
        }
        (self.has_reasoning && !self.begun && may_open_reasoning(&self.pending)).then_some(THINK_BEGIN)
    }

    /// Handles a reasoning tag; returns false for another marker.
    pub fn enter_reasoning(&mut self, marker: &str) -> bool {
        match marker {
            THINK_BEGIN => (self.in_reasoning, self.begun) = (true, true),
            THINK_END => self.in_reasoning = false,
            _ => return false,
        }
        true
    }

    /// Removes the text through a marker that was found at `at`; returns the text before it.
    pub fn take_through(&mut self, at: usize, marker: &str) -> String {
        let mut before: String = self.pending.drain(..at + marker.len()).collect();
        before.truncate(at);
        before
    }

    /// Emits text as answer or reasoning.
    pub fn emit(&mut self, text: &str, events: &mut Vec<ReplyEvent>) {
        self.begun |= !text.trim().is_empty();
        match events.last_mut() {
            _ if text.is_empty() => {}
            Some(ReplyEvent::Reasoning(last)) if self.in_reasoning => last.push_str(text),
            Some(ReplyEvent::Text(last)) if !self.in_reasoning => last.push_str(text),
            _ if self.in_reasoning => events.push(ReplyEvent::Reasoning(text.to_owned())),
            _ => events.push(ReplyEvent::Text(text.to_owned())),
        }
    }
}

/// Whether the pending text is white space and a reasoning tag, or may become that.
fn may_open_reasoning(pending: &str) -> bool {
    let start = pending.trim_start();
    start.starts_with(THINK_BEGIN) || THINK_BEGIN.starts_with(start)
}
