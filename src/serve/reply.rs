//! Parses the events of a reply: text, reasoning and tool calls. The endpoints encode the result, each in its own form.

use super::errors::ApiError;
use super::usage::failure;
use crate::generation::decoder::FinishReason;
use crate::generation::event::{EngineEvent, Stats};
use crate::generation::logprobs::Logprobs;
use crate::generation::reply_parser::{ReplyEvent, ReplyParser};

/// An event of the engine with its text parsed.
pub enum ParsedEvent {
    /// Progress of the prefill, in tokens of the prompt.
    Progress { reused: usize, done: usize, total: usize },
    /// The parsed text, with the log-probabilities of its token if requested.
    Reply(Vec<ReplyEvent>, Option<(u32, Logprobs)>),
    /// The end of a reply, with the text that the parser had withheld.
    Finished(Vec<ReplyEvent>),
}

/// A reply that is being parsed, and its statistics once it has ended.
#[derive(Default)]
pub struct TrackedReply {
    parser: ReplyParser,
    /// Statistics, present once the reply has ended.
    pub stats: Option<Stats>,
}

impl TrackedReply {
    pub fn new(parser: ReplyParser) -> Self {
        TrackedReply { parser, stats: None }
    }

    /// Parses the text of an event.
    ///
    /// # Errors
    /// The reason that ended the reply, if that is a failure.
    pub fn on_event(&mut self, event: EngineEvent) -> Result<ParsedEvent, ApiError> {
        Ok(match event {
            EngineEvent::Prefill { reused, done, total } => ParsedEvent::Progress { reused, done, total },
            EngineEvent::Token { token, text, logprobs } => {
                ParsedEvent::Reply(self.parser.push(&text), token.zip(logprobs))
            }
            EngineEvent::Finished(stats) => {
                failure(&stats)?;
                self.stats = Some(stats);
                ParsedEvent::Finished(self.parser.finish())
            }
        })
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
