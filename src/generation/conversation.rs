//! Turns of a conversation and the prompt they make, token for token what the session has already processed.
//!
//! A reply is kept as the ids that were generated: rendering and encoding its text again may give other ids, and
//! then nothing of the session could be reused. Next: [`crate::runtime::session`].

use crate::runtime::chat_template::explain;
use crate::runtime::engine::Engine;
use anyhow::{Context as _, Result};
use kernels::backend::Backend;
use models::template::Message;
use serde_json::Map;

/// A conversation under way.
#[derive(Clone, Default)]
pub struct Conversation {
    messages: Vec<Message>,
    /// The last prompt as rendered, with the reply to it, and their ids.
    text: String,
    ids: Vec<u32>,
    /// Where prompts and replies ended: what an earlier turn can go back to.
    marks: Vec<Mark>,
}

/// An end of a prompt or a reply.
#[derive(Clone, Copy, Default)]
struct Mark {
    messages: usize,
    text: usize,
    ids: usize,
}

impl Conversation {
    /// A conversation with or without a system message.
    pub fn new(system: Option<&str>) -> Self {
        let messages = system.map(|text| Message::new("system", text)).into_iter().collect();
        Conversation { messages, ..Default::default() }
    }

    /// Its turns.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Adds a turn.
    pub fn say(&mut self, role: &str, text: &str) {
        self.messages.push(Message::new(role, text));
    }

    /// Adds the reply to the last prompt: its text and the ids that were generated.
    pub fn reply(&mut self, text: &str, ids: &[u32]) {
        self.say("assistant", text);
        self.text.push_str(text);
        self.ids.extend_from_slice(ids);
        self.mark();
    }

    /// Takes the last turns back, up to and with the last of the user's, which is returned.
    pub fn undo(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|m| m.role == "user")?;
        let said = self.messages[at].content.as_ref().and_then(|c| c.as_str()).map(str::to_owned);
        self.truncate(at);
        said
    }

    /// Keeps the first `messages` only; the ids of what they made stay as they were.
    pub fn truncate(&mut self, messages: usize) {
        self.messages.truncate(messages);
        self.marks.retain(|mark| mark.messages <= messages);
    }

    /// The prompt that asks for the next reply.
    pub fn prompt<B: Backend>(&mut self, engine: &Engine<B>) -> Result<Vec<u32>> {
        let tokenizer = engine.tokenizer()?;
        let template = engine.template.as_ref().context("the model file has no chat template")?;
        let rendered = template.render(&self.messages, &[], true, &Map::new()).map_err(explain)?;
        let text = rendered.text();
        // A template may write an earlier turn otherwise than before: what stands before the difference is kept.
        let kept = |mark: &Mark| text.starts_with(&self.text[..mark.text]);
        let keep = self.marks.iter().rposition(kept).map_or(0, |last| last + 1);
        self.marks.truncate(keep);
        let mark = self.marks.last().copied().unwrap_or_default();
        self.ids.truncate(mark.ids);
        self.ids.extend(rendered.encode_after(mark.text, tokenizer));
        self.text = text.to_owned();
        self.mark();
        Ok(self.ids.clone())
    }

    fn mark(&mut self) {
        let (messages, text, ids) = (self.messages.len(), self.text.len(), self.ids.len());
        self.marks.push(Mark { messages, text, ids });
    }
}
