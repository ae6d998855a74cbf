//! A [`ChatModel`] that sends the chat to an OpenAI-style endpoint.

use super::chat_model::{ChatModel, ChatRequest, ModelInfo, Outcome, Progress};
use super::store::Role;
use crate::client::{Delta, Remote};
use anyhow::Result;
use models::template::Message;
use std::ops::ControlFlow;

pub struct RemoteModel {
    remote: Remote,
    context_limit: Option<u64>,
}

impl RemoteModel {
    /// Fails if the endpoint lists models and this one is not among them.
    pub fn new(remote: Remote) -> Result<Self> {
        let context_limit = remote.context()?;
        Ok(RemoteModel { remote, context_limit })
    }
}

/// The messages of the request. Reasoning in earlier replies is omitted, as chat templates omit it.
fn messages(request: &ChatRequest) -> Vec<Message> {
    let system = request.system.iter().map(|text| Message::new("system", text));
    let turns = request.turns.iter().map(|turn| match turn.role {
        Role::User => Message::new("user", &turn.content()),
        Role::Assistant => {
            let text = turn.text.split_once("</think>").map_or(turn.text.as_str(), |(_, rest)| rest);
            Message::new("assistant", text.trim_start())
        }
    });
    system.chain(turns).collect()
}

impl ChatModel for RemoteModel {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            name: self.remote.model.clone(),
            runs_on: self.remote.base().to_owned(),
            context_limit: self.context_limit,
        }
    }

    fn reply(
        &mut self,
        request: &ChatRequest,
        on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let (messages, settings, mut in_reasoning) = (messages(request), &request.settings, false);
        let on_delta = &mut |delta: Delta<'_>, tokens, rate| {
            let (tag, text, is_reasoning) = match delta {
                Delta::Waiting => return on_progress(Progress::Waiting),
                Delta::Reasoning(text) => (if in_reasoning { "" } else { "<think>" }, text, true),
                Delta::Text(text) => (if in_reasoning { "</think>\n\n" } else { "" }, text, false),
            };
            in_reasoning = is_reasoning;
            on_progress(Progress::Text { text: &format!("{tag}{text}"), tokens, rate })
        };
        let stats = self.remote.reply(&messages, &settings.sampling, settings.max_tokens, on_delta)?;
        Ok(Outcome { ids: Vec::new(), stats })
    }
}
