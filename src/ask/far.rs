//! A model served elsewhere answers. The files go there with the first question and stay at the head of the conversation,
//! so an endpoint that keeps prefixes reads them once; quotes are looked up here.

use super::{AskArgs, Source};
use crate::client::{Delta, Remote};
use crate::generation::generate::Stats;
use crate::io::output::tell;
use crate::io::units::grouped;
use anyhow::{Context as _, Result, bail};
use models::template::Message;
use std::ops::ControlFlow;

/// A model elsewhere, and what was said.
pub(super) struct Far<'a> {
    remote: Remote,
    args: &'a AskArgs,
    messages: Vec<Message>,
}

impl<'a> Far<'a> {
    /// Looks whether the model is there.
    pub(super) fn new(url: &str, args: &'a AskArgs) -> Result<Self> {
        let model = args.engine.model.as_ref();
        let model = model.context("--url: expected the endpoint's name of a model with -m, found none")?;
        let remote = Remote::new(url, &model.to_string_lossy(), args.endpoint.timeout)?;
        remote.context()?;
        Ok(Far { remote, args, messages: Vec::new() })
    }

    fn answer(&self, on: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(String, Stats)> {
        let mut text = String::new();
        let (sampling, most) = (&self.args.sampling, self.args.max_tokens);
        let stats = self.remote.reply(&self.messages, sampling, most, &mut |delta, _, _| match delta {
            Delta::Waiting | Delta::Reasoning(_) => on(""),
            Delta::Text(new) => {
                text.push_str(new);
                on(new)
            }
        })?;
        if stats.prefill.stopped {
            bail!("stopped before the answer");
        }
        Ok((text, stats))
    }
}

impl Source for Far<'_> {
    fn reply(&mut self, said: &str, on: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(String, Stats)> {
        if self.messages.is_empty() && !self.args.quiet {
            tell(&format!("sending {} bytes to {}", grouped(said.len()), self.remote.base()));
        }
        self.messages.push(Message::new("user", said));
        let answered = self.answer(on);
        match &answered {
            Ok((text, _)) => self.messages.push(Message::new("assistant", text)),
            Err(_) => drop(self.messages.pop()),
        }
        answered
    }
}
