//! The trait [`ChatModel`] with its requests and events.
//!
//! Reasoning and answer are separate [`ReplyEvent`]s of every model. Next: [`super::local_model`] and
//! [`super::remote_model`], its implementations.

use crate::document_qa::prefix::DocumentPrefix;
use crate::generation::event::Stats;
use crate::generation::markup::ReplyEvent;
use crate::generation::sample::{Constraint, Sampling};
use crate::runtime::sampling_options::SamplingOptions;
use crate::runtime::session::Prefill;
use anyhow::Result;
use std::ops::ControlFlow;

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptMessage {
    /// The author: `system`, `user` or `assistant`.
    pub role: &'static str,
    pub text: String,
    /// The reasoning before the text; empty except in replies.
    pub reasoning: String,
    /// The token ids of a generated reply, with which the prefix cache finds the state after it; may be empty.
    pub ids: Vec<u32>,
}

impl PromptMessage {
    pub fn new(role: &'static str, text: impl Into<String>) -> Self {
        PromptMessage { role, text: text.into(), reasoning: String::new(), ids: Vec::new() }
    }
}

/// A conversation to reply to. The last message is a user message.
pub struct ReplyRequest<'a> {
    /// Messages from the oldest to the newest.
    pub messages: &'a [PromptMessage],
    pub max_tokens: usize,
    /// The parameters of a local model.
    pub sampling: Sampling,
    /// Those that the user set, for remote models, which have their own for the others.
    pub given: SamplingOptions,
    /// The documents at the start of the prompt. Remote models ignore them.
    pub prefix: Option<&'a DocumentPrefix>,
    /// Restricts the tokens of the reply. Remote models ignore it.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// An event of a reply. Rates are in tokens per second, 0 while unknown.
#[derive(Clone, Debug)]
pub enum ModelEvent {
    /// No text yet; sent regularly so that the caller can stop.
    Waiting,
    /// The prompt has `total` tokens, of which `found` were restored from the prefix cache. Local models only.
    PrefillStart { total: usize, found: Prefill },
    /// `done` of `total` prompt tokens are prefilled.
    Prefill { done: usize, total: usize, rate: f64 },
    /// A part of the reply, which has `tokens` tokens so far.
    Reply { event: ReplyEvent, tokens: usize, rate: f64 },
}

/// A complete or stopped reply.
#[derive(Clone, Debug)]
pub struct ReplyOutcome {
    /// The generated token ids; empty for remote models, which send none.
    pub ids: Vec<u32>,
    pub stats: Stats,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelInfo {
    pub name: String,
    /// The device, or the URL of the endpoint.
    pub runs_on: String,
    /// Context length in tokens; None if the endpoint does not report it.
    pub context_limit: Option<u64>,
    /// The sampling defaults in the model file; none of remote models.
    pub sampling: SamplingOptions,
}

/// A model that replies to conversations.
pub trait ChatModel {
    fn info(&self) -> ModelInfo;

    /// Saves the prefilled state to the prefix cache before the model is dropped.
    fn save_state(&mut self) {}

    /// Generates a reply and passes its events to `on_event`, which can stop it at any of them.
    fn reply(
        &mut self,
        request: ReplyRequest<'_>,
        on_event: &mut dyn FnMut(ModelEvent) -> ControlFlow<()>,
    ) -> Result<ReplyOutcome>;
}
