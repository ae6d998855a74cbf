//! Encodes a message of `/v1/messages`, whole or as events.

use super::call_id;
use super::citations::CitedFiles;
use crate::generation::decoder::FinishReason;
use crate::generation::markup::ReplyEvent;
use crate::serve::api::Timings;
use crate::serve::api::messages::{MessageUsage, OutputBlock, OutputMessage};
use crate::serve::error_form::ErrorForm;
use crate::serve::errors::ApiError;
use crate::serve::events::RequestEvents;
use crate::serve::reply::{ParsedEvent, TrackedReply};
use crate::serve::sse::{Outbox, StreamEncoder};
use crate::serve::trace::MissCell;
use crate::serve::usage::{ResponseMeta, timings};
use serde_json::{Value, json};

/// A message that is being generated, and the encoder of its events.
pub struct MessageEncoder {
    pub meta: ResponseMeta,
    pub tracked: TrackedReply,
    pub stop_sequences: Vec<String>,
    /// Prefilled prompts are kept in the prefix cache.
    pub keeps_prompt: bool,
    pub state: MessageState,
    pub miss: MissCell,
    /// The files that the message cites.
    pub cited: Option<CitedFiles>,
}

/// The part of a message that has been generated.
#[derive(Default)]
pub struct MessageState {
    /// The first event has been sent.
    started: bool,
    /// The last block is still open.
    is_open: bool,
    content: Vec<OutputBlock>,
    /// Arguments of the last call, as JSON text.
    arguments: String,
}

impl MessageEncoder {
    pub async fn collect(mut self, mut events: RequestEvents) -> Result<OutputMessage, ApiError> {
        let mut discarded = Outbox::default();
        while let Some(event) = events.next().await {
            let (index, event) = event?;
            self.on_event(index, event, &mut discarded);
            discarded.clear();
        }
        self.close(&mut discarded);
        Ok(self.message())
    }

    fn message(&self) -> OutputMessage {
        OutputMessage {
            id: self.meta.id.clone(),
            kind: "message",
            role: "assistant",
            model: self.meta.model.clone(),
            content: self.state.content.clone(),
            stop_reason: self.stop_reason(),
            stop_sequence: self.stop_sequence(),
            usage: self.usage(),
            timings: self.timings(),
        }
    }

    /// Returns the times of the reply once it has ended.
    fn timings(&self) -> Option<Timings> {
        self.tracked.stats.as_ref().map(|stats| timings(stats, &self.miss))
    }

    fn stop_reason(&self) -> Option<&'static str> {
        let called = self.state.content.iter().any(|block| matches!(block, OutputBlock::ToolUse { .. }));
        Some(match self.tracked.ended()? {
            FinishReason::Length => "max_tokens",
            FinishReason::StopString(_) => "stop_sequence",
            _ if called => "tool_use",
            _ => "end_turn",
        })
    }

    fn stop_sequence(&self) -> Option<String> {
        match self.tracked.ended()? {
            FinishReason::StopString(index) => self.stop_sequences.get(*index).cloned(),
            _ => None,
        }
    }

    fn usage(&self) -> MessageUsage {
        let (prompt, reused) = self.tracked.prompt();
        let computed = prompt.saturating_sub(reused);
        let created = if self.keeps_prompt { computed } else { 0 };
        MessageUsage {
            input_tokens: computed - created,
            cache_creation_input_tokens: created,
            cache_read_input_tokens: reused,
            output_tokens: self.tracked.generated,
        }
    }

    /// Sends the first event, once the length of the cached prefix is known.
    fn start(&mut self, out: &mut Outbox) {
        if !std::mem::replace(&mut self.state.started, true) {
            event("message_start", json!({ "message": self.message() }), out);
        }
    }

    fn on_reply_event(&mut self, event: ReplyEvent, out: &mut Outbox) {
        match event {
            ReplyEvent::Text(text) => self.add_text(&text, out),
            ReplyEvent::Reasoning(text) => self.add_thinking(&text, out),
            ReplyEvent::ToolCallBegin { id, name } => {
                let id = call_id::unique(&id, &name);
                self.open(OutputBlock::ToolUse { id, name, input: json!({}) }, out);
            }
            ReplyEvent::ToolCallArguments(more) => self.add_arguments(&more, out),
            ReplyEvent::ToolCallEnd => self.close(out),
        }
    }

    fn add_text(&mut self, more: &str, out: &mut Outbox) {
        if !matches!(self.open_block(), Some(OutputBlock::Text { .. })) {
            let citations = self.cited.is_some().then(Vec::new);
            self.open(OutputBlock::Text { text: String::new(), citations }, out);
        }
        if let Some(OutputBlock::Text { text, .. }) = self.open_block() {
            text.push_str(more);
        }
        self.delta(json!({ "type": "text_delta", "text": more }), out);
    }

    fn add_thinking(&mut self, more: &str, out: &mut Outbox) {
        if !matches!(self.open_block(), Some(OutputBlock::Thinking { .. })) {
            self.open(OutputBlock::Thinking { thinking: String::new(), signature: String::new() }, out);
        }
        if let Some(OutputBlock::Thinking { thinking, .. }) = self.open_block() {
            thinking.push_str(more);
        }
        self.delta(json!({ "type": "thinking_delta", "thinking": more }), out);
    }

    fn add_arguments(&mut self, more: &str, out: &mut Outbox) {
        if matches!(self.open_block(), Some(OutputBlock::ToolUse { .. })) && !more.is_empty() {
            self.state.arguments.push_str(more);
            self.delta(json!({ "type": "input_json_delta", "partial_json": more }), out);
        }
    }

    /// Adds the citations of the open text, which is complete.
    fn add_citations(&mut self, out: &mut Outbox) {
        let (Some(cited), Some(OutputBlock::Text { text, citations })) =
            (&self.cited, self.state.content.last_mut())
        else {
            return;
        };
        let found = cited.citations(text);
        *citations = Some(found.clone());
        for citation in found {
            self.delta(json!({ "type": "citations_delta", "citation": citation }), out);
        }
    }

    fn open_block(&mut self) -> Option<&mut OutputBlock> {
        self.state.content.last_mut().filter(|_| self.state.is_open)
    }

    fn index(&self) -> usize {
        self.state.content.len().saturating_sub(1)
    }

    fn open(&mut self, block: OutputBlock, out: &mut Outbox) {
        self.close(out);
        self.state.content.push(block);
        self.state.is_open = true;
        let block = self.state.content.last();
        event("content_block_start", json!({ "index": self.index(), "content_block": block }), out);
    }

    fn delta(&self, delta: Value, out: &mut Outbox) {
        event("content_block_delta", json!({ "index": self.index(), "delta": delta }), out);
    }

    /// Ends the open block, if any. The arguments of a call that the token limit cut are no JSON and are left out.
    fn close(&mut self, out: &mut Outbox) {
        let arguments = std::mem::take(&mut self.state.arguments);
        match self.open_block() {
            None => return,
            Some(OutputBlock::ToolUse { input, .. }) => {
                *input = serde_json::from_str(&arguments).unwrap_or_else(|_| json!({}));
            }
            Some(OutputBlock::Thinking { .. }) => {
                self.delta(json!({ "type": "signature_delta", "signature": "" }), out);
            }
            Some(OutputBlock::Text { .. }) => self.add_citations(out),
        }
        self.state.is_open = false;
        event("content_block_stop", json!({ "index": self.index() }), out);
    }
}

/// Sends an event, whose type is also its name.
fn event(kind: &str, fields: Value, out: &mut Outbox) {
    let mut value = json!({ "type": kind });
    if let (Value::Object(value), Value::Object(fields)) = (&mut value, fields) {
        value.extend(fields);
    }
    out.named(kind, &value);
}

impl StreamEncoder for MessageEncoder {
    fn begin(&mut self, out: &mut Outbox) {
        out.comment();
    }

    fn on_event(&mut self, _: usize, event: ParsedEvent, out: &mut Outbox) {
        self.tracked.record(&event);
        self.start(out);
        event.into_events().into_iter().for_each(|event| self.on_reply_event(event, out));
    }

    fn end(&mut self, out: &mut Outbox) {
        self.start(out);
        self.close(out);
        let delta = json!({ "stop_reason": self.stop_reason(), "stop_sequence": self.stop_sequence() });
        let fields = json!({ "delta": delta, "usage": self.usage(), "timings": self.timings() });
        event("message_delta", fields, out);
        event("message_stop", json!({}), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Outbox) {
        out.named("error", &ErrorForm::Anthropic.body(error));
    }

    fn keep_alive(&mut self, out: &mut Outbox) {
        // Clients expect no event before the first one.
        if self.state.started { event("ping", json!({}), out) } else { out.comment() }
    }
}
