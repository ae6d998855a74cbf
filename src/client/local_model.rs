//! A [`ChatModel`] that runs in this process, with the session and the token ids of one conversation.

use super::chat_model::{ChatModel, ModelEvent, ModelInfo, PromptMessage, ReplyOutcome, ReplyRequest};
use crate::generation::conversation::Conversation;
use crate::generation::decoder::GenerationParams;
use crate::generation::detokenizer::Detokenizer;
use crate::generation::draft::DraftCounts;
use crate::generation::event::{EngineEvent, Stats};
use crate::generation::generate::{FinishReason, Request, generate};
use crate::generation::markup::{Markup, ReplyEvent, ReplyParser, join_reasoning};
use crate::prefix_cache::namespace::Namespace;
use crate::runtime::handle::{EngineHandle, SessionHandle};
use crate::runtime::session::Prefill;
use anyhow::Result;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

/// An engine with the state of one conversation.
pub struct LocalModel<'e> {
    engine: &'e EngineHandle,
    name: String,
    session: SessionHandle<'e>,
    conversation: Conversation,
}

impl<'e> LocalModel<'e> {
    pub fn new(engine: &'e EngineHandle, file: &Path) -> Self {
        LocalModel::within(engine, file, Namespace::SHARED)
    }

    /// Creates a model whose conversation uses this namespace of the prefix cache.
    pub fn within(engine: &'e EngineHandle, file: &Path, namespace: Namespace) -> Self {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let session = engine.session_within(namespace);
        LocalModel { engine, name, session, conversation: Conversation::default() }
    }

    /// The prompt of the messages. Replies keep the token ids that were generated, in this process or an earlier one, so
    /// that the prefix cache finds their state.
    fn prompt(&mut self, messages: &[PromptMessage]) -> Result<Vec<u32>> {
        let same = self.conversation.messages().iter().zip(messages).take_while(|(own, message)| {
            let text = own.content.as_ref().and_then(|content| content.as_str());
            own.role == message.role && text == Some(&*join_reasoning(&message.reasoning, &message.text))
        });
        let same = same.count();
        self.conversation.truncate(same);
        for message in &messages[same..] {
            if message.role == "assistant" {
                self.conversation.prompt(self.engine)?;
                let text = join_reasoning(&message.reasoning, &message.text);
                let ids = if self.decodes_to(message)? {
                    message.ids.clone()
                } else {
                    self.engine.tokenizer()?.encode(&text)
                };
                self.conversation.reply(&text, &ids);
            } else {
                self.conversation.say(message.role, &message.text);
            }
        }
        self.conversation.prompt(self.engine)
    }

    /// Whether the ids of a reply decode to it with this model's vocabulary. Another model may have generated them.
    fn decodes_to(&self, message: &PromptMessage) -> Result<bool> {
        if message.ids.is_empty() || message.ids.iter().any(|id| *id as usize >= self.engine.config.vocab) {
            return Ok(false);
        }
        let mut stream = Detokenizer::new(self.engine.tokenizer()?, Vec::new());
        for id in &message.ids {
            stream.push(*id);
        }
        let mut reply = SplitReply::new(self.conversation.opens_reasoning());
        reply.push(&stream.finish());
        reply.finish();
        Ok((&reply.reasoning, &reply.text) == (&message.reasoning, &message.text))
    }
}

/// The reply so far, with its reasoning separated.
struct SplitReply {
    parser: ReplyParser,
    reasoning: String,
    text: String,
}

impl SplitReply {
    fn new(in_reasoning: bool) -> Self {
        let parser = ReplyParser::new(Markup::Kimi, Vec::new(), true, in_reasoning);
        SplitReply { parser, reasoning: String::new(), text: String::new() }
    }

    fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        let events = self.parser.push(text);
        self.append(events)
    }

    fn finish(&mut self) -> Vec<ReplyEvent> {
        let events = self.parser.finish();
        self.append(events)
    }

    fn append(&mut self, events: Vec<ReplyEvent>) -> Vec<ReplyEvent> {
        for event in &events {
            event.append_to(&mut self.reasoning, &mut self.text);
        }
        events
    }
}

impl ChatModel for LocalModel<'_> {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            name: self.name.clone(),
            runs_on: self.engine.describe(),
            context_limit: Some(self.engine.context),
            sampling: self.engine.sampling,
        }
    }

    fn save_state(&mut self) {
        self.session.snapshot_to_disk();
    }

    fn reply(
        &mut self,
        request: ReplyRequest<'_>,
        on_event: &mut dyn FnMut(ModelEvent) -> ControlFlow<()>,
    ) -> Result<ReplyOutcome> {
        let prompt = self.prompt(request.messages)?;
        let start = Instant::now();
        let found = self.session.restore_prefix(&prompt)?;
        let restore_time = start.elapsed();
        if on_event(ModelEvent::PrefillStart { total: prompt.len(), found }).is_break() {
            return Ok(ReplyOutcome { ids: Vec::new(), stats: stopped_at_start(found, restore_time) });
        }
        if let Some(prefix) = request.prefix
            && let Some(question) = prefix.question_in(&prompt)
        {
            self.session.snapshot_at(&[&prefix.snapshots[..], &[question]].concat());
            self.session.question_at(question);
        }
        let generation = Request {
            prompt: &prompt,
            params: GenerationParams {
                constraint: request.constraint,
                ..GenerationParams::new(request.max_tokens, request.sampling)
            },
        };
        let mut reply = SplitReply::new(self.conversation.opens_reasoning());
        let (mut ids, mut prefill_start, mut decode_start, mut rate) = (Vec::new(), None, None, 0.0);
        let mut stats = generate(&mut self.session, generation, &mut |event| match event {
            EngineEvent::Prefill { done, total, .. } => {
                // The rate counts from the end of the first batch, as the start of prefill is not known here.
                let (first, start) = *prefill_start.get_or_insert((done, Instant::now()));
                on_event(ModelEvent::Prefill { done, total, rate: per_second(done - first, start) })
            }
            EngineEvent::Token { token, text, .. } => {
                if let Some(id) = token {
                    ids.push(id);
                    rate = per_second(ids.len() - 1, *decode_start.get_or_insert_with(Instant::now));
                }
                forward(reply.push(&text), ids.len(), rate, on_event)
            }
            EngineEvent::Finished(_) => ControlFlow::Continue(()),
        })?;
        let _ = forward(reply.finish(), ids.len(), rate, on_event);
        (stats.prefill.reused, stats.prefill.source) = (found.reused, found.source);
        stats.prefill_time += restore_time;
        if !stats.prefill.stopped {
            self.conversation.reply(&join_reasoning(&reply.reasoning, &reply.text), &ids);
        }
        Ok(ReplyOutcome { ids, stats })
    }
}

/// Passes parsed events to the caller, or [`ModelEvent::Waiting`] while the parser withholds the text.
fn forward(
    events: Vec<ReplyEvent>,
    tokens: usize,
    rate: f64,
    on_event: &mut dyn FnMut(ModelEvent) -> ControlFlow<()>,
) -> ControlFlow<()> {
    if events.is_empty() {
        return on_event(ModelEvent::Waiting);
    }
    // A stop takes effect after the events of this text, which are part of the conversation.
    let mut flow = ControlFlow::Continue(());
    for event in events {
        if on_event(ModelEvent::Reply { event, tokens, rate }).is_break() {
            flow = ControlFlow::Break(());
        }
    }
    flow
}

/// The statistics of a reply that the caller stopped before its prefill.
fn stopped_at_start(found: Prefill, prefill_time: Duration) -> Stats {
    Stats {
        prefill: Prefill { stopped: true, ..found },
        prefill_time,
        generated: 0,
        decode_time: Duration::ZERO,
        draft: DraftCounts::default(),
        expert_cache: None,
        ended: FinishReason::Cancelled,
    }
}

fn per_second(tokens: usize, since: Instant) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / since.elapsed().as_secs_f64().max(1e-9) }
}
