//! A [`Model`] at an OpenAI-style endpoint. The files are sent with the first question and stay at the head of the
//! conversation, so that an endpoint with a prefix cache prefills them once. Quotes are located, but not constrained.

use super::{AskArgs, Model};
use crate::client::{Delta, Remote};
use crate::generation::generate::Stats;
use crate::io::output::tell;
use crate::io::units::grouped;
use anyhow::{Context as _, Result, bail};
use models::template::Message;
use std::ops::ControlFlow;

/// A remote model with the messages of the conversation.
pub(super) struct RemoteModel<'a> {
    remote: Remote,
    args: &'a AskArgs,
    messages: Vec<Message>,
}

impl<'a> RemoteModel<'a> {
    /// Fails if the endpoint lists models and this one is not among them.
    pub(super) fn new(url: &str, args: &'a AskArgs) -> Result<Self> {
        let model = args.engine.model.as_ref();
        let model = model.context("--url also needs a model name: -m NAME")?;
        let remote = Remote::new(url, &model.to_string_lossy(), args.endpoint.timeout)?;
        remote.context()?;
        Ok(RemoteModel { remote, args, messages: Vec::new() })
    }

    fn answer(&self, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(String, Stats)> {
        let mut text = String::new();
        let (sampling, most) = (&self.args.sampling, self.args.max_tokens);
        let stats = self.remote.reply(&self.messages, sampling, most, &mut |delta, _, _| match delta {
            Delta::Waiting | Delta::Reasoning(_) => on_text(""),
            Delta::Text(new) => {
                text.push_str(new);
                on_text(new)
            }
        })?;
        if stats.prefill.stopped {
            bail!("stopped before the answer");
        }
        Ok((text, stats))
    }
}

impl Model for RemoteModel<'_> {
    fn reply(
        &mut self,
        message: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(String, Stats)> {
        if self.messages.is_empty() && !self.args.quiet {
            tell(&format!("sending {} bytes to {}", grouped(message.len()), self.remote.base()));
        }
        self.messages.push(Message::new("user", message));
        let answer = self.answer(on_text);
        match &answer {
            Ok((text, _)) => self.messages.push(Message::new("assistant", text)),
            Err(_) => drop(self.messages.pop()),
        }
        answer
    }
}
