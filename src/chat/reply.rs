//! What answers a chat: the seam between both interfaces and an engine, and the engine of this machine.
//!
//! Next: [`super::worker`], which runs it on a thread of its own.

use super::settings::Settings;
use super::store::{Role, Turn};
use crate::generation::conversation::Conversation;
use crate::generation::detokenizer::Detokenizer;
use crate::generation::generate::{Event, Request, Stats, generate};
use crate::runtime::engine::Engine;
use crate::runtime::session::Session;
use anyhow::Result;
use kernels::backend::Backend;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

/// A chat that asks for a reply: it ends with the person's message.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The system message.
    pub system: Option<String>,
    /// Messages, oldest first.
    pub turns: Vec<Turn>,
    /// How to answer.
    pub settings: Settings,
}

/// What happens while a reply is made; rates are tokens a second by the engine's clock, 0 while unknown.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Nothing yet.
    Waiting,
    /// So much of the prompt is read.
    Reading {
        /// Tokens in.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Tokens a second.
        rate: f64,
    },
    /// Text of the reply.
    Text {
        /// What came.
        text: &'a str,
        /// Tokens so far.
        tokens: usize,
        /// Tokens a second.
        rate: f64,
    },
}

/// A finished reply.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The ids that were generated; empty where nobody says.
    pub ids: Vec<u32>,
    /// What was done and how long it took.
    pub stats: Stats,
}

/// What is being talked to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The model's name.
    pub name: String,
    /// What it runs on.
    pub place: String,
    /// Tokens of context; None where nobody says.
    pub context: Option<u64>,
}

/// Something that answers.
pub trait Replier {
    /// What it is.
    fn about(&self) -> About;

    /// Keeps what was read, before nobody asks any more.
    fn leave(&mut self) {}

    /// Answers, telling `on` what happens; it may stop the reply at any step.
    fn reply(&mut self, ask: &Ask, on: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>) -> Result<Outcome>;
}

/// The engine of this machine.
pub struct Local<'e, B: Backend> {
    engine: &'e Engine<B>,
    name: String,
    session: Session<'e, B>,
    conversation: Conversation,
}

impl<'e, B: Backend> Local<'e, B> {
    /// Nothing read yet.
    pub fn new(engine: &'e Engine<B>, file: &Path) -> Self {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Local { engine, name, session: Session::new(engine), conversation: Conversation::default() }
    }

    /// The chat's prompt. Turns that the last prompt had keep their ids; replies of other sessions keep theirs.
    fn prompt(&mut self, ask: &Ask) -> Result<Vec<u32>> {
        let system = ask.system.iter().map(|text| ("system", text.clone(), &[][..]));
        let turns = ask.turns.iter().map(|turn| match turn.role {
            Role::User => ("user", turn.content(), &[][..]),
            Role::Assistant => ("assistant", turn.content(), &turn.ids[..]),
        });
        let wanted: Vec<(&str, String, &[u32])> = system.chain(turns).collect();
        let there = self.conversation.messages();
        let same = there.iter().zip(&wanted).take_while(|(message, (role, text, _))| {
            message.role == *role && message.content.as_ref().and_then(|c| c.as_str()) == Some(text)
        });
        let same = same.count();
        self.conversation.truncate(same);
        for (role, text, ids) in &wanted[same..] {
            if *role == "assistant" {
                self.conversation.prompt(self.engine)?;
                let ids = if self.spells(ids, text)? {
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

    /// Whether these ids are a way to write the text in this model's vocabulary: they may come from another's.
    fn spells(&self, ids: &[u32], text: &str) -> Result<bool> {
        if ids.iter().any(|id| *id as usize >= self.engine.model.config.vocab) {
            return Ok(false);
        }
        let mut stream = Detokenizer::new(self.engine.tokenizer()?, Vec::new());
        for id in ids {
            stream.push(*id);
        }
        Ok(!ids.is_empty() && stream.finish() == text)
    }
}

impl<B: Backend> Replier for Local<'_, B> {
    fn about(&self) -> About {
        About {
            name: self.name.clone(),
            place: self.engine.backend.describe(),
            context: Some(self.engine.context),
        }
    }

    fn leave(&mut self) {
        self.session.checkpoint_to_disk();
    }

    fn reply(&mut self, ask: &Ask, on: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>) -> Result<Outcome> {
        let prompt = self.prompt(ask)?;
        let request = Request {
            prompt: &prompt,
            max_tokens: ask.settings.max_tokens,
            sampling: ask.settings.sampling,
            stops: &[],
            ignore_end: false,
            constraint: None,
        };
        let (mut ids, mut reading, mut writing) = (Vec::new(), None, None);
        let (mut text, mut rate) = (String::new(), 0.0);
        let stats = generate(&mut self.session, request, &mut |event| match event {
            Event::Prefill { done, total } => {
                // The first batch says where reading began; its own time is not known here.
                let (began, at) = *reading.get_or_insert((done, Instant::now()));
                on(Step::Reading { done, total, rate: per_second(done - began, at) })
            }
            Event::Token(id) => {
                ids.push(id);
                let at = *writing.get_or_insert_with(Instant::now);
                rate = per_second(ids.len() - 1, at);
                ControlFlow::Continue(())
            }
            Event::Text(new) => {
                text.push_str(new);
                on(Step::Text { text: new, tokens: ids.len(), rate })
            }
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
