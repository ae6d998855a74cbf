//! The events of a reply as the endpoints encode them: text, reasoning and tool calls, whichever source they come from.
//! Next: [`super::events`], which makes them.

use super::api::chat::TokenLogprob;
use crate::generation::decoder::FinishReason;
use crate::generation::event::Stats;
use crate::generation::markup::ReplyEvent;

/// An event of a reply.
pub enum ParsedEvent {
    /// Progress of the prefill, in tokens of the prompt.
    Progress { reused: usize, done: usize, total: usize },
    /// A part of the reply, which may be withheld text only.
    Reply(ReplyPart),
    /// The end of a reply, with the text that the parser had withheld.
    Finished { events: Vec<ReplyEvent>, stats: Stats },
}

/// A part of a reply.
#[derive(Debug, Default)]
pub struct ReplyPart {
    pub events: Vec<ReplyEvent>,
    /// Number of tokens of this part.
    pub tokens: usize,
    /// Log-probabilities of these tokens, if requested.
    pub logprobs: Vec<TokenLogprob>,
}

impl ParsedEvent {
    /// Returns the parts of text, reasoning and calls.
    pub fn into_events(self) -> Vec<ReplyEvent> {
        match self {
            ParsedEvent::Progress { .. } => Vec::new(),
            ParsedEvent::Reply(part) => part.events,
            ParsedEvent::Finished { events, .. } => events,
        }
    }
}

/// What is known about a reply besides its text.
#[derive(Default)]
pub struct TrackedReply {
    /// Tokens of the prompt; None while an upstream server has not reported them.
    pub prompt_tokens: Option<usize>,
    /// Tokens that are generated so far.
    pub generated: usize,
    /// Statistics, present once the reply has ended.
    pub stats: Option<Stats>,
    /// Prompt tokens restored from a cache, as far as known.
    reused: usize,
}

impl TrackedReply {
    pub fn new(prompt_tokens: Option<usize>) -> Self {
        TrackedReply { prompt_tokens, ..TrackedReply::default() }
    }

    /// Records the counts of an event.
    pub fn record(&mut self, event: &ParsedEvent) {
        match event {
            ParsedEvent::Progress { reused, total, .. } => {
                self.reused = *reused;
                self.prompt_tokens.get_or_insert(*total);
            }
            ParsedEvent::Reply(part) => self.generated += part.tokens,
            ParsedEvent::Finished { stats, .. } => {
                self.prompt_tokens.get_or_insert(stats.prefill.reused + stats.prefill.computed);
                (self.reused, self.generated) = (stats.prefill.reused, stats.generated);
                self.stats = Some(stats.clone());
            }
        }
    }

    /// Returns the tokens of the prompt and how many of them were restored from a cache, as far as known.
    pub fn prompt(&self) -> (usize, usize) {
        (self.prompt_tokens.unwrap_or(0), self.reused)
    }

    /// Returns true if the token limit ended the reply.
    pub fn is_cut(&self) -> bool {
        self.ended() == Some(&FinishReason::Length)
    }

    /// Returns the reason for which the reply ended.
    pub fn ended(&self) -> Option<&FinishReason> {
        self.stats.as_ref().map(|stats| &stats.ended)
    }
}
