//! A reply being made: logits in, one token and its text out, until an end token, a stop string or a limit.
//!
//! The one place that knows when a reply ends. It does not run the model: [`crate::generate`] feeds it from one
//! session, [`crate::batch`] many of them from one step.

use crate::engine::Engine;
use crate::sample::{Constraint, Sampler, Sampling};
use crate::scores::Row;
use crate::stream::Stream;
use kernels::backend::Backend;

/// How a reply is to be made.
pub struct Rules {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Added to the logits of some tokens.
    pub bias: Vec<(u32, f32)>,
    /// What it has to match.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Text that ends the reply; it is not part of it.
    pub stops: Vec<String>,
    /// Go on past end-of-generation tokens.
    pub ignore_end: bool,
}

/// Why a reply ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The model ended it.
    EndToken,
    /// A stop string.
    StopString,
    /// The limit on tokens, or the context's end.
    Length,
    /// The caller.
    Cancelled,
    /// The constraint could not go on: why.
    Constraint(String),
}

/// What came of one position's logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The token; none where the reply ended without one.
    pub token: Option<u32>,
    /// Text that has become final with it: whole characters, no beginning of a stop string.
    pub text: String,
    /// Set on the last choice.
    pub ended: Option<Ended>,
}

/// A reply under way.
pub struct Reply<'e> {
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    /// None without a tokenizer.
    text: Option<Stream<'e>>,
    /// The tokens that end it.
    ends: &'e [u32],
    tokens: Vec<u32>,
    prompt: usize,
    /// Of prompt and reply together.
    limit: usize,
}

impl<'e> Reply<'e> {
    /// Nothing yet, after `prompt`.
    pub fn new<B: Backend>(engine: &'e Engine<B>, prompt: &[u32], rules: Rules) -> Self {
        let tokenizer = engine.tokenizer.as_deref();
        // The last token need not fit into the context: nothing is computed after it.
        let room = (engine.context + 1).saturating_sub(prompt.len() as u64);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        Reply {
            sampler: Sampler::new(rules.sampling).with_bias(rules.bias),
            constraint: rules.constraint,
            text: tokenizer.map(|t| Stream::new(t, rules.stops)),
            ends: tokenizer.filter(|_| !rules.ignore_end).map_or(&[], |t| t.ends()),
            tokens: prompt.to_vec(),
            prompt: prompt.len(),
            limit: prompt.len().saturating_add(rules.max_tokens.min(room)),
        }
    }

    /// The prompt and the reply so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the reply so far.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Chooses the next token by its logits. Not to be called after the end.
    pub fn choose<B: Backend>(&mut self, logits: &Row<'_, '_, B>) -> Choice {
        if self.tokens.len() >= self.limit {
            return self.end(None, Ended::Length);
        }
        let token = match self.draw(logits) {
            Ok(token) if self.ends.contains(&token) => return self.end(None, Ended::EndToken),
            Ok(token) => token,
            Err(why) => return self.end(None, Ended::Constraint(why)),
        };
        self.tokens.push(token);
        if self.text.as_mut().is_some_and(|text| text.push(token)) {
            let text = self.text.as_mut().map(Stream::take).unwrap_or_default();
            return Choice { token: Some(token), text, ended: Some(Ended::StopString) };
        }
        if self.tokens.len() >= self.limit {
            return self.end(Some(token), Ended::Length);
        }
        let text = self.text.as_mut().map(Stream::take).unwrap_or_default();
        Choice { token: Some(token), text, ended: None }
    }

    /// The text held back so far, when the caller ends the reply.
    pub fn rest(&mut self) -> String {
        self.text.take().map(Stream::finish).unwrap_or_default()
    }

    fn end(&mut self, token: Option<u32>, why: Ended) -> Choice {
        Choice { token, text: self.rest(), ended: Some(why) }
    }

    fn draw<B: Backend>(&mut self, logits: &Row<'_, '_, B>) -> Result<u32, String> {
        let Some(constraint) = &mut self.constraint else {
            let best = self.sampler.wants_best().and_then(|n| logits.best(n));
            let token = best.and_then(|best| self.sampler.sample_best(best));
            return Ok(token.unwrap_or_else(|| self.sampler.sample(logits.values(), &self.tokens, None)));
        };
        let token = self.sampler.sample(logits.values(), &self.tokens, constraint.allowed()?);
        constraint.accept(token)?;
        Ok(token)
    }
}
