//! Decodes a reply: takes logits, returns one token and its text, until an end-of-generation token, a stop string or a
//! limit.
//!
//! Only this module decides when a reply ends. It does not run the model: [`super::generate`] drives one decoder from a
//! session, and the scheduler drives many from one step. Next: [`super::sample`].

use crate::generation::detokenizer::Detokenizer;
use crate::generation::sample::{Constraint, Sampler, Sampling};
use crate::runtime::engine::EngineBase;
use crate::runtime::logits::LogitsRow;
use kernels::backend::Backend;
use models::tokenizer::Vocabulary;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The parameters of a generation.
pub struct GenerationParams {
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Logit bias by token; the replies to one request share it.
    pub bias: Arc<[(u32, f32)]>,
    /// The grammar that the reply has to match.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Stop strings, which end the reply and are not part of it.
    pub stops: Vec<String>,
    /// Whether to continue past end-of-generation tokens.
    pub ignore_end: bool,
}

impl GenerationParams {
    /// Creates parameters without bias, constraint and stop strings.
    pub fn new(max_tokens: usize, sampling: Sampling) -> Self {
        GenerationParams {
            max_tokens,
            sampling,
            bias: Arc::default(),
            constraint: None,
            stops: Vec::new(),
            ignore_end: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model generated an end-of-generation token.
    EndToken,
    /// The reply contains the stop string of this index.
    StopString(usize),
    /// The token limit or the end of the context was reached.
    Length,
    /// The caller cancelled the generation.
    Cancelled,
    /// The grammar allows no further token, for this reason.
    Constraint(String),
    /// All logits after this position are NaN.
    NotFinite(usize),
    /// The client did not read its updates for this long.
    Unread(Duration),
    /// The GPU failed, with this message.
    DeviceFailed(String),
}

/// The result of one decode step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The token; `None` if the reply ended without one.
    pub token: Option<u32>,
    /// Text that is final: whole characters that cannot begin a stop string.
    pub text: String,
    /// The reason for the end, on the last step.
    pub ended: Option<FinishReason>,
}

/// The decoding state of one reply.
pub struct Decoder<'e> {
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    tokenizer: Option<&'e Vocabulary>,
    /// The detokenizer; `None` without a tokenizer.
    text: Option<Detokenizer<'e>>,
    /// The end-of-generation tokens, unless ignored.
    ends: &'e [u32],
    /// The prompt, shared by all its replies.
    prompt: Arc<[u32]>,
    /// The tokens of the reply.
    tokens: Vec<u32>,
    /// Maximum tokens of prompt and reply together.
    limit: usize,
}

impl<'e> Decoder<'e> {
    /// Creates a decoder of the reply to `prompt`.
    pub fn new(engine: &'e EngineBase, prompt: Arc<[u32]>, params: GenerationParams) -> Self {
        let tokenizer = engine.tokenizer.as_deref();
        // The last token need not fit into the context, because no logits are computed after it.
        let reply_budget = (engine.context + 1).saturating_sub(prompt.len() as u64);
        let reply_budget = usize::try_from(reply_budget).unwrap_or(usize::MAX);
        Decoder {
            sampler: Sampler::new(params.sampling).with_bias(params.bias),
            constraint: params.constraint,
            tokenizer,
            text: tokenizer.map(|t| Detokenizer::new(t, params.stops)),
            ends: tokenizer.filter(|_| !params.ignore_end).map_or(&[], |t| t.eog_tokens()),
            tokens: Vec::new(),
            limit: prompt.len().saturating_add(params.max_tokens.min(reply_budget)),
            prompt,
        }
    }

    pub fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    pub fn shared_prompt(&self) -> Arc<[u32]> {
        self.prompt.clone()
    }

    /// The number of tokens of the prompt and the reply so far.
    pub fn total(&self) -> usize {
        self.prompt.len() + self.tokens.len()
    }

    /// Returns a range of tokens, which must lie entirely in the prompt or in the reply.
    pub fn span(&self, tokens: Range<usize>) -> &[u32] {
        let prompt = self.prompt.len();
        if tokens.end <= prompt {
            &self.prompt[tokens]
        } else {
            &self.tokens[tokens.start - prompt..tokens.end - prompt]
        }
    }

    /// Returns the first `len` tokens of prompt and reply.
    pub fn first(&self, len: usize) -> Cow<'_, [u32]> {
        match len.checked_sub(self.prompt.len()) {
            None | Some(0) => Cow::Borrowed(&self.prompt[..len]),
            Some(own) => Cow::Owned([&self.prompt, &self.tokens[..own]].concat()),
        }
    }

    /// The number of tokens that the reply may still have.
    pub fn remaining(&self) -> usize {
        self.limit.saturating_sub(self.total())
    }

    /// The number of tokens generated so far.
    pub fn generated(&self) -> usize {
        self.tokens.len()
    }

    /// Returns the last tokens, as many as the sampler's penalty window.
    fn recent(&self) -> Vec<u32> {
        let last = |tokens: &[u32], n: usize| tokens[tokens.len() - n.min(tokens.len())..].to_vec();
        let n = self.sampler.penalty_window();
        let own = last(&self.tokens, n);
        [last(&self.prompt, n - own.len()), own].concat()
    }

    /// Waits up to `limit` for the constraint's next mask; returns whether it is ready, so that
    /// [`Decoder::next_token`] does not block.
    pub fn wait(&mut self, limit: Duration) -> bool {
        self.constraint.as_mut().is_none_or(|constraint| constraint.wait(limit))
    }

    /// Returns tokens that the constraint expects next, as far as they are not open. Waits up to `limit` for it.
    pub fn likely(&mut self, limit: Duration) -> Vec<u32> {
        let text = self.constraint.as_mut().map_or(Vec::new(), |constraint| constraint.likely(limit));
        let whole = match std::str::from_utf8(&text) {
            Ok(text) => text,
            Err(e) => std::str::from_utf8(&text[..e.valid_up_to()]).unwrap_or_default(),
        };
        match self.tokenizer {
            Some(tokenizer) if !whole.is_empty() => tokenizer.encode(whole),
            _ => Vec::new(),
        }
    }

    /// Samples the next token from its logits. Must not be called after the end.
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
        if let Some(stop) = self.text.as_mut().and_then(|text| text.push(token)) {
            let text = self.text.as_mut().map(Detokenizer::take).unwrap_or_default();
            return Choice { token: Some(token), text, ended: Some(FinishReason::StopString(stop)) };
        }
        if self.total() >= self.limit {
            return self.end(Some(token), FinishReason::Length);
        }
        let text = self.text.as_mut().map(Detokenizer::take).unwrap_or_default();
        Choice { token: Some(token), text, ended: None }
    }

    /// Returns the pending text when the caller ends the reply.
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
