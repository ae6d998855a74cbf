//! An endpoint elsewhere as something that answers a chat.

use super::reply::{About, Ask, Outcome, Replier, Step};
use super::store::Role;
use crate::client::{Delta, Remote};
use anyhow::Result;
use models::template::Message;
use std::ops::ControlFlow;

/// A model elsewhere.
pub struct Far {
    remote: Remote,
    context: Option<u64>,
}

impl Far {
    /// Looks whether the model is there.
    pub fn new(remote: Remote) -> Result<Self> {
        let context = remote.context()?;
        Ok(Far { remote, context })
    }
}

/// The messages as they are sent: reasoning stays here, the models' own templates leave it out too.
fn messages(ask: &Ask) -> Vec<Message> {
    let system = ask.system.iter().map(|text| Message::new("system", text));
    let turns = ask.turns.iter().map(|turn| match turn.role {
        Role::User => Message::new("user", &turn.content()),
        Role::Assistant => {
            let text = turn.text.split_once("</think>").map_or(turn.text.as_str(), |(_, rest)| rest);
            Message::new("assistant", text.trim_start())
        }
    });
    system.chain(turns).collect()
}

impl Replier for Far {
    fn about(&self) -> About {
        About { name: self.remote.model.clone(), place: self.remote.base().to_owned(), context: self.context }
    }

    fn reply(&mut self, ask: &Ask, on: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>) -> Result<Outcome> {
        let (messages, settings, mut thinking) = (messages(ask), &ask.settings, false);
        let heard = &mut |delta: Delta<'_>, tokens, rate| {
            let (before, text, reasons) = match delta {
                Delta::Waiting => return on(Step::Waiting),
                Delta::Reasoning(text) => (if thinking { "" } else { "<think>" }, text, true),
                Delta::Text(text) => (if thinking { "</think>\n\n" } else { "" }, text, false),
            };
            thinking = reasons;
            on(Step::Text { text: &format!("{before}{text}"), tokens, rate })
        };
        let stats = self.remote.reply(&messages, &settings.sampling, settings.max_tokens, heard)?;
        Ok(Outcome { ids: Vec::new(), stats })
    }
}
