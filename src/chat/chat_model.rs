//! The [`ChatModel`] trait between the interfaces and a model, and its implementation by an engine in this process.
//!
//! Next: [`super::worker`], which runs a model on its own thread.

use super::settings::Settings;
use super::store::{Role, Turn};
use crate::generation::conversation::Conversation;
use crate::generation::detokenizer::Detokenizer;
use crate::generation::event::{EngineEvent, Stats};
use crate::generation::generate::{Request, generate};
use crate::runtime::handle::{EngineHandle, SessionHandle};
use anyhow::Result;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

/// A chat to reply to. The last turn is a user message.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    pub system: Option<String>,
    /// Messages from the oldest to the newest.
    pub turns: Vec<Turn>,
    pub settings: Settings,
}

/// Progress of a reply. Rates are in tokens per second, 0 while unknown.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// No text yet; sent regularly so that the caller can stop.
    Waiting,
    /// `done` of `total` prompt tokens are prefilled.
    Prefill { done: usize, total: usize, rate: f64 },
    /// More text of the reply, which has `tokens` tokens so far.
    Text { text: &'a str, tokens: usize, rate: f64 },
}

/// A complete or stopped reply.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The generated token ids; empty for remote models, which send none.
    pub ids: Vec<u32>,
    pub stats: Stats,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelInfo {
    pub name: String,
    /// The device, or the URL of the endpoint.
    pub runs_on: String,
    /// Context length in tokens; None if the endpoint does not report it.
    pub context_limit: Option<u64>,
}

/// A model that replies to chats.
pub trait ChatModel {
    fn info(&self) -> ModelInfo;

    /// Saves the prefilled state to the prefix cache before the model is dropped.
    fn save_state(&mut self) {}

    /// Generates a reply and passes its progress to `on_progress`, which can stop it at any step.
    fn reply(
        &mut self,
        request: &ChatRequest,
        on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome>;
}

/// An engine in this process, with the state of one chat.
pub struct LocalModel<'e> {
    engine: &'e EngineHandle,
    name: String,
    session: SessionHandle<'e>,
    conversation: Conversation,
}

impl<'e> LocalModel<'e> {
    pub fn new(engine: &'e EngineHandle, file: &Path) -> Self {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        LocalModel { engine, name, session: engine.session(), conversation: Conversation::default() }
    }

    /// The prompt of the chat. Replies keep the token ids that were generated, in this process or an earlier one, so
    /// that the prefix cache finds their state.
    fn prompt(&mut self, request: &ChatRequest) -> Result<Vec<u32>> {
        let system = request.system.iter().map(|text| ("system", text.clone(), &[][..]));
        let turns = request.turns.iter().map(|turn| match turn.role {
            Role::User => ("user", turn.content(), &[][..]),
            Role::Assistant => ("assistant", turn.content(), &turn.ids[..]),
        });
        let wanted: Vec<(&str, String, &[u32])> = system.chain(turns).collect();
        let previous = self.conversation.messages();
        let same = previous.iter().zip(&wanted).take_while(|(message, (role, text, _))| {
            message.role == *role && message.content.as_ref().and_then(|c| c.as_str()) == Some(text)
        });
        let same = same.count();
        self.conversation.truncate(same);
        for (role, text, ids) in &wanted[same..] {
            if *role == "assistant" {
                self.conversation.prompt(self.engine)?;
                let ids = if self.decodes_to(ids, text)? {
                    ids.to_vec()
                } else {
                    self.engine.tokenizer()?.encode(text)
                };
                self.conversation.reply(text, &ids);
            } else {
                self.conversation.say(role, text);
            }
        }
        self.conversation.prompt(self.engine)
    }

    /// Whether the ids decode to the text with this model's vocabulary. Another model may have generated them.
    fn decodes_to(&self, ids: &[u32], text: &str) -> Result<bool> {
        if ids.iter().any(|id| *id as usize >= self.engine.config.vocab) {
            return Ok(false);
        }
        let mut stream = Detokenizer::new(self.engine.tokenizer()?, Vec::new());
        for id in ids {
            stream.push(*id);
        }
        Ok(!ids.is_empty() && stream.finish() == text)
    }
}

impl ChatModel for LocalModel<'_> {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            name: self.name.clone(),
            runs_on: self.engine.describe(),
            context_limit: Some(self.engine.context),
        }
    }

    fn save_state(&mut self) {
        self.session.snapshot_to_disk();
    }

    fn reply(
        &mut self,
        request: &ChatRequest,
        on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let prompt = self.prompt(request)?;
        let generation = Request {
            prompt: &prompt,
            max_tokens: request.settings.max_tokens,
            sampling: request.settings.sampling,
            stops: &[],
            ignore_end: false,
            constraint: None,
        };
        let (mut ids, mut prefill_start, mut decode_start) = (Vec::new(), None, None);
        let (mut text, mut rate) = (String::new(), 0.0);
        let stats = generate(&mut self.session, generation, &mut |event| match event {
            EngineEvent::Prefill { done, total, .. } => {
                // The rate counts from the end of the first batch, as the start of prefill is not known here.
                let (first, start) = *prefill_start.get_or_insert((done, Instant::now()));
                on_progress(Progress::Prefill { done, total, rate: per_second(done - first, start) })
            }
            EngineEvent::Token { token, text: new, .. } => {
                if let Some(id) = token {
                    ids.push(id);
                    rate = per_second(ids.len() - 1, *decode_start.get_or_insert_with(Instant::now));
                }
                if new.is_empty() {
                    return ControlFlow::Continue(());
                }
                text.push_str(&new);
                on_progress(Progress::Text { text: &new, tokens: ids.len(), rate })
            }
            EngineEvent::Finished(_) => ControlFlow::Continue(()),
        })?;
        if !stats.prefill.stopped {
            self.conversation.reply(&text, &ids);
        }
        Ok(Outcome { ids, stats })
    }
}

fn per_second(tokens: usize, since: Instant) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / since.elapsed().as_secs_f64().max(1e-9) }
}
