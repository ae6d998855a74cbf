//! A reply being made: logits in, one token and its text out, until an end token, a stop string or a limit.
//!
//! The one place that knows when a reply ends. It does not run the model: [`super::generate`] feeds it from one
//! session, the scheduler many of them from one step.

use crate::generation::detokenizer::Detokenizer;
use crate::generation::sample::{Constraint, Sampler, Sampling};
use crate::runtime::engine::Engine;
use crate::runtime::logits::LogitsRow;
use kernels::backend::Backend;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How a reply is to be made.
pub struct GenerationParams {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Added to the logits of some tokens; replies to one request share it.
    pub bias: Arc<[(u32, f32)]>,
    /// What it has to match.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Text that ends the reply; it is not part of it.
    pub stops: Vec<String>,
    /// Go on past end-of-generation tokens.
    pub ignore_end: bool,
}

/// Why a reply ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
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
    /// Every logit after this position of the sequence is NaN.
    NotFinite(usize),
    /// The client left its updates unread for this long.
    Unread(Duration),
}

/// What came of one position's logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The token; none where the reply ended without one.
    pub token: Option<u32>,
    /// Text that has become final with it: whole characters, no beginning of a stop string.
    pub text: String,
    /// Set on the last choice.
    pub ended: Option<FinishReason>,
}

/// A reply under way.
pub struct Decoder<'e> {
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    /// None without a tokenizer.
    text: Option<Detokenizer<'e>>,
    /// The tokens that end it.
    ends: &'e [u32],
    /// Shared by all replies to it.
    prompt: Arc<[u32]>,
    /// Of the reply alone.
    tokens: Vec<u32>,
    /// Tokens of prompt and reply together at most.
    limit: usize,
}

impl<'e> Decoder<'e> {
    /// Nothing yet, after `prompt`.
    pub fn new<B: Backend>(engine: &'e Engine<B>, prompt: Arc<[u32]>, rules: GenerationParams) -> Self {
        let tokenizer = engine.tokenizer.as_deref();
        // The last token need not fit into the context: nothing is computed after it.
        let room = (engine.context + 1).saturating_sub(prompt.len() as u64);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        Decoder {
            sampler: Sampler::new(rules.sampling).with_bias(rules.bias),
            constraint: rules.constraint,
            text: tokenizer.map(|t| Detokenizer::new(t, rules.stops)),
            ends: tokenizer.filter(|_| !rules.ignore_end).map_or(&[], |t| t.eog_tokens()),
            tokens: Vec::new(),
            limit: prompt.len().saturating_add(rules.max_tokens.min(room)),
            prompt,
        }
    }

    /// The prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The prompt, shared.
    pub fn shared_prompt(&self) -> Arc<[u32]> {
        self.prompt.clone()
    }

    /// Tokens of the prompt and of the reply so far.
    pub fn total(&self) -> usize {
        self.prompt.len() + self.tokens.len()
    }

    /// Some of these tokens, which are all in the prompt or all in the reply.
    pub fn span(&self, tokens: Range<usize>) -> &[u32] {
        let prompt = self.prompt.len();
        if tokens.end <= prompt {
            &self.prompt[tokens]
        } else {
            &self.tokens[tokens.start - prompt..tokens.end - prompt]
        }
    }

    /// The first of these tokens.
    pub fn first(&self, len: usize) -> Cow<'_, [u32]> {
        match len.checked_sub(self.prompt.len()) {
            None | Some(0) => Cow::Borrowed(&self.prompt[..len]),
            Some(own) => Cow::Owned([&self.prompt, &self.tokens[..own]].concat()),
        }
    }

    /// Tokens of the reply so far.
    pub fn generated(&self) -> usize {
        self.tokens.len()
    }

    /// The last of these tokens, as many as the sampler looks at.
    fn recent(&self) -> Vec<u32> {
        let last = |tokens: &[u32], n: usize| tokens[tokens.len() - n.min(tokens.len())..].to_vec();
        let n = self.sampler.penalty_window();
        let own = last(&self.tokens, n);
        [last(&self.prompt, n - own.len()), own].concat()
    }

    /// Waits at most so long for the constraint's next mask; whether [`Decoder::next_token`] then takes no longer.
    pub fn wait(&mut self, limit: Duration) -> bool {
        self.constraint.as_mut().is_none_or(|constraint| constraint.wait(limit))
    }

    /// Chooses the next token by its logits. Not to be called after the end.
    pub fn next_token<B: Backend>(&mut self, logits: &LogitsRow<'_, '_, B>) -> Choice {
        if self.total() >= self.limit {
            return self.end(None, FinishReason::Length);
        }
        let token = match self.draw(logits) {
            Ok(token) if self.ends.contains(&token) => return self.end(None, FinishReason::EndToken),
            Ok(token) => token,
            Err(ended) => return self.end(None, ended),
        };
        self.tokens.push(token);
        if self.text.as_mut().is_some_and(|text| text.push(token)) {
            let text = self.text.as_mut().map(Detokenizer::take).unwrap_or_default();
            return Choice { token: Some(token), text, ended: Some(FinishReason::StopString) };
        }
        if self.total() >= self.limit {
            return self.end(Some(token), FinishReason::Length);
        }
        let text = self.text.as_mut().map(Detokenizer::take).unwrap_or_default();
        Choice { token: Some(token), text, ended: None }
    }

    /// The text held back so far, when the caller ends the reply.
    pub fn rest(&mut self) -> String {
        self.text.take().map(Detokenizer::finish).unwrap_or_default()
    }

    fn end(&mut self, token: Option<u32>, why: FinishReason) -> Choice {
        Choice { token, text: self.rest(), ended: Some(why) }
    }

    fn draw<B: Backend>(&mut self, logits: &LogitsRow<'_, '_, B>) -> Result<u32, FinishReason> {
        let (not_finite, recent) = (FinishReason::NotFinite(self.total() - 1), self.recent());
        let Some(constraint) = &mut self.constraint else {
            let best = self.sampler.top_k_needed().and_then(|n| logits.top_k(n));
            let token = best.and_then(|best| self.sampler.sample_from_top_k(best));
            let token = token.or_else(|| self.sampler.sample(logits.values(), &recent, None));
            return token.ok_or(not_finite);
        };
        let allowed = constraint.allowed().map_err(FinishReason::Constraint)?;
        let token = self.sampler.sample(logits.values(), &recent, allowed).ok_or(not_finite)?;
        constraint.accept(token).map_err(FinishReason::Constraint)?;
        Ok(token)
    }
}
