//! An endpoint elsewhere as something that answers a chat.

use super::reply::{About, Ask, Outcome, Replier, Step};
use super::store::Role;
use crate::generate::{Ended, Stats};
use crate::remote::{Delta, Remote};
use crate::session::Prefill;
use crate::snapshot::Source;
use anyhow::Result;
use models::template::Message;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

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
        let start = Instant::now();
        let (mut first, mut tokens, mut thinking) = (None, 0, false);
        let told = self.remote.chat(
            &messages(ask),
            &ask.settings.sampling,
            ask.settings.max_tokens,
            &mut |delta| {
                let (before, text, reasons) = match delta {
                    Delta::Waiting => return on(Step::Waiting),
                    Delta::Reasoning(text) => (if thinking { "" } else { "<think>" }, text, true),
                    Delta::Text(text) => (if thinking { "</think>\n\n" } else { "" }, text, false),
                };
                thinking = reasons;
                tokens += 1;
                let since: Instant = *first.get_or_insert_with(Instant::now);
                let rate = (tokens - 1) as f64 / since.elapsed().as_secs_f64().max(1e-9);
                on(Step::Text { text: &format!("{before}{text}"), tokens, rate })
            },
        )?;
        let begun = first.unwrap_or_else(Instant::now);
        let computed = told.prompt.saturating_sub(told.cached);
        let kept = (told.cached > 0).then_some(Source::Live);
        let prefill =
            Prefill { reused: told.cached, source: kept, computed, stopped: told.stopped && tokens == 0 };
        let ended = match (told.stopped, told.cut) {
            (true, _) => Ended::Cancelled,
            (_, true) => Ended::Length,
            _ => Ended::EndToken,
        };
        let decode_time: Duration = begun.elapsed();
        let stats = Stats {
            prefill,
            prefill_time: begun.duration_since(start),
            generated: told.completion.max(tokens),
            decode_time,
            ended,
        };
        Ok(Outcome { ids: Vec::new(), stats })
    }
}
