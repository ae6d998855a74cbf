//! A conversation: its messages, and their prompt with the token ids that the session has already processed.
//!
//! Replies keep their generated ids, because encoding their text again may give other ids, and the session's state
//! could then not be reused. Next: [`crate::runtime::chat_template`].

use super::markup::{REASONING_TAGS, opens_reasoning};
use crate::runtime::chat_template::explain;
use crate::runtime::engine::EngineBase;
use anyhow::{Context as _, Result};
use models::template::Message;
use serde_json::Map;

/// The messages of a conversation, and the ids of its last prompt and reply.
#[derive(Clone, Default)]
pub struct Conversation {
    messages: Vec<Message>,
    /// The last rendered prompt with its reply.
    text: String,
    ids: Vec<u32>,
    /// The ends of prompts and replies, to which an undo or an edit returns.
    marks: Vec<Mark>,
}

/// The end of a prompt or reply in messages, text and ids.
#[derive(Clone, Copy, Default)]
struct Mark {
    messages: usize,
    text: usize,
    ids: usize,
}

impl Conversation {
    /// Creates a conversation with or without a system message.
    pub fn new(system: Option<&str>) -> Self {
        let messages = system.map(|text| Message::new("system", text)).into_iter().collect();
        Conversation { messages, ..Default::default() }
    }

    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub fn say(&mut self, role: &str, text: &str) {
        self.messages.push(Message::new(role, text));
    }

    /// Adds the reply to the last prompt: its text and its generated ids.
    pub fn reply(&mut self, text: &str, ids: &[u32]) {
        self.say("assistant", text);
        // The prompt may have opened the reasoning already.
        let opened = if self.opens_reasoning() { text.strip_prefix(REASONING_TAGS[0]) } else { None };
        self.text.push_str(opened.unwrap_or(text));
        self.ids.extend_from_slice(ids);
        self.mark();
    }

    /// Removes the last user message and the messages after it; returns its text.
    pub fn undo(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|m| m.role == "user")?;
        let text = self.messages[at].content.as_ref().and_then(|c| c.as_str()).map(str::to_owned);
        self.truncate(at);
        text
    }

    /// Keeps only the first `messages` messages with their ids.
    pub fn truncate(&mut self, messages: usize) {
        self.messages.truncate(messages);
        self.marks.retain(|mark| mark.messages <= messages);
    }

    /// Renders and encodes the prompt for the next reply.
    pub fn prompt(&mut self, engine: &EngineBase) -> Result<Vec<u32>> {
        let tokenizer = engine.tokenizer()?;
        let template = engine.template.as_ref().context("the model file has no chat template")?;
        let rendered = template.render(&self.messages, &[], true, &Map::new()).map_err(explain)?;
        let text = rendered.text();
        // A template may render earlier messages differently than before; the ids before the difference are kept.
        let unchanged = |mark: &Mark| text.starts_with(&self.text[..mark.text]);
        let keep = self.marks.iter().rposition(unchanged).map_or(0, |last| last + 1);
        self.marks.truncate(keep);
        let mark = self.marks.last().copied().unwrap_or_default();
        self.ids.truncate(mark.ids);
        self.ids.extend(rendered.encode_after(mark.text, tokenizer));
        self.text = text.to_owned();
        self.mark();
        Ok(self.ids.clone())
    }

    /// Whether the last prompt opened a reasoning tag, so that its reply begins inside the reasoning.
    pub fn opens_reasoning(&self) -> bool {
        opens_reasoning(&self.text)
    }

    fn mark(&mut self) {
        let (messages, text, ids) = (self.messages.len(), self.text.len(), self.ids.len());
        self.marks.push(Mark { messages, text, ids });
    }
}
