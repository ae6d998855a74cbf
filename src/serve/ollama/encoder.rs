//! Encodes replies of Ollama's interface, whole or as lines of JSON.

use crate::generation::markup::ReplyEvent;
use crate::serve::api::chat::FunctionCall;
use crate::serve::api::ollama::{OllamaAnswer, OllamaFunction, OllamaReply, OllamaTimings, OllamaToolCall};
use crate::serve::app::unix_seconds;
use crate::serve::clock::rfc3339;
use crate::serve::error_form::ErrorForm;
use crate::serve::errors::ApiError;
use crate::serve::events::RequestEvents;
use crate::serve::reply::{ParsedEvent, TrackedReply};
use crate::serve::sse::{Outbox, StreamEncoder};
use std::time::Duration;
use tokio::time::Instant;

/// A reply that is being generated, and the encoder of its lines.
pub struct LineEncoder {
    pub model: String,
    /// The request is for a message of a chat.
    pub is_chat: bool,
    pub tracked: TrackedReply,
    pub start: Instant,
    /// The last tool call, whose arguments may be incomplete.
    pub call: Option<(String, FunctionCall)>,
    /// The reply so far, for a response that is not streamed.
    pub whole: OllamaAnswer,
}

impl LineEncoder {
    pub async fn collect(mut self, mut events: RequestEvents) -> Result<OllamaReply, ApiError> {
        let mut discarded = Outbox::default();
        while let Some(event) = events.next().await {
            let (index, event) = event?;
            self.on_event(index, event, &mut discarded);
            discarded.clear();
        }
        let whole = std::mem::take(&mut self.whole);
        Ok(OllamaReply { timings: self.timings(), ..self.last(whole) })
    }

    /// Returns a line with a part of the reply.
    fn line(&self, part: OllamaAnswer) -> OllamaReply {
        let (model, created_at) = (self.model.clone(), rfc3339(unix_seconds()));
        let part = OllamaAnswer { role: "assistant", ..part };
        if self.is_chat {
            return OllamaReply { model, created_at, message: Some(part), ..OllamaReply::default() };
        }
        let (response, thinking) = (Some(part.content), part.thinking);
        OllamaReply { model, created_at, response, thinking, ..OllamaReply::default() }
    }

    fn last(&self, part: OllamaAnswer) -> OllamaReply {
        let done_reason = Some(if self.tracked.is_cut() { "length" } else { "stop" });
        OllamaReply { done: true, done_reason, ..self.line(part) }
    }

    fn timings(&self) -> OllamaTimings {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let stats = self.tracked.stats.as_ref();
        OllamaTimings {
            total_duration: Some(nanoseconds(self.start.elapsed())),
            load_duration: Some(0),
            prompt_eval_count: Some(self.tracked.prompt().0),
            prompt_eval_duration: stats.map(|stats| nanoseconds(stats.prefill_time)),
            eval_count: stats.map(|stats| stats.generated),
            eval_duration: stats.map(|stats| nanoseconds(stats.decode_time)),
        }
    }

    fn send(&mut self, part: OllamaAnswer, out: &mut Outbox) {
        self.whole.content.push_str(&part.content);
        if let Some(more) = &part.thinking {
            self.whole.thinking.get_or_insert_default().push_str(more);
        }
        self.whole.tool_calls.extend(part.tool_calls.iter().cloned());
        out.line(&self.line(part));
    }

    fn on_reply_event(&mut self, event: ReplyEvent, out: &mut Outbox) {
        match event {
            ReplyEvent::Text(content) => self.send(OllamaAnswer { content, ..OllamaAnswer::default() }, out),
            ReplyEvent::Reasoning(more) => {
                self.send(OllamaAnswer { thinking: Some(more), ..OllamaAnswer::default() }, out);
            }
            ReplyEvent::ToolCallBegin { id, name } => {
                self.call = Some((id, FunctionCall { name, arguments: String::new() }));
            }
            ReplyEvent::ToolCallArguments(more) => {
                self.call.iter_mut().for_each(|(_, function)| function.arguments.push_str(&more));
            }
            ReplyEvent::ToolCallEnd => self.send_call(out),
        }
    }

    /// Sends the last call, whose arguments are complete. Those of a call that the token limit cut are no JSON.
    fn send_call(&mut self, out: &mut Outbox) {
        let Some((id, function)) = self.call.take() else { return };
        let arguments = serde_json::from_str(&function.arguments).unwrap_or_default();
        let function = OllamaFunction { name: function.name, arguments };
        let tool_calls = vec![OllamaToolCall { id: Some(id), function }];
        self.send(OllamaAnswer { tool_calls, ..OllamaAnswer::default() }, out);
    }
}

impl StreamEncoder for LineEncoder {
    fn begin(&mut self, _: &mut Outbox) {}

    fn on_event(&mut self, _: usize, event: ParsedEvent, out: &mut Outbox) {
        self.tracked.record(&event);
        event.into_events().into_iter().for_each(|event| self.on_reply_event(event, out));
        if self.tracked.stats.is_some() {
            self.send_call(out);
        }
    }

    fn end(&mut self, out: &mut Outbox) {
        out.line(&OllamaReply { timings: self.timings(), ..self.last(OllamaAnswer::default()) });
    }

    fn fail(&mut self, error: &ApiError, out: &mut Outbox) {
        out.line(&ErrorForm::Ollama.body(error));
    }

    fn keep_alive(&mut self, out: &mut Outbox) {
        out.line(&self.line(OllamaAnswer::default()));
    }

    fn content_type(&self) -> &'static str {
        "application/x-ndjson"
    }
}
