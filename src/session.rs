//! One conversation's tokens and the model's state after them. It processes only what it has not seen.
//!
//! It knows tokens, not text. Next: [`crate::generate`].

use crate::engine::Engine;
use kernels::backend::Backend;
use models::kimi_linear::state::State;
use models::kimi_linear::{Outputs, Sequence};
use std::ops::ControlFlow;

/// A sequence under way.
pub struct Session<'e, B: Backend> {
    engine: &'e Engine<B>,
    state: State<B>,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

/// Why tokens could not be processed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A token id the model does not have.
    #[error("token {index}: expected an id below {vocab}, found {id}")]
    Vocabulary {
        /// Its place in the sequence.
        index: usize,
        /// Vocabulary entries.
        vocab: usize,
        /// The id.
        id: u32,
    },
    /// More tokens than the context holds.
    #[error("context: expected at most {limit} tokens, found {found}: raise --ctx or shorten the prompt")]
    Context {
        /// Tokens that fit.
        limit: u64,
        /// Tokens asked for.
        found: u64,
    },
    /// A prompt of no tokens.
    #[error("prompt: expected at least one token, found none")]
    Empty,
}

/// How a prompt was brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefill {
    /// Tokens whose state was there already.
    pub reused: usize,
    /// Tokens that were processed.
    pub computed: usize,
    /// The caller stopped it before the end.
    pub stopped: bool,
}

impl<'e, B: Backend> Session<'e, B> {
    /// An empty sequence.
    pub fn new(engine: &'e Engine<B>) -> Self {
        let state = engine.model.state(&engine.backend, engine.cache);
        Session { engine, state, tokens: Vec::new(), logits: Vec::new() }
    }

    /// The engine it runs on.
    pub fn engine(&self) -> &'e Engine<B> {
        self.engine
    }

    /// The tokens processed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The logits after the last token; empty before the first.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Brings the sequence to exactly `prompt`: tokens already processed are kept where they are its prefix, and
    /// the rest is processed in batches. `progress` hears (done, total) after each and may stop it; what was
    /// processed stays.
    pub fn advance_to(
        &mut self,
        prompt: &[u32],
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Prefill, Error> {
        self.check(prompt)?;
        if !prompt.starts_with(&self.tokens) {
            *self = Session::new(self.engine);
        }
        let reused = self.tokens.len();
        for batch in prompt[reused..].chunks(self.engine.batch) {
            self.process(batch, self.tokens.len() + batch.len() == prompt.len());
            if progress(self.tokens.len(), prompt.len()).is_break() && self.tokens.len() < prompt.len() {
                return Ok(Prefill { reused, computed: self.tokens.len() - reused, stopped: true });
            }
        }
        Ok(Prefill { reused, computed: prompt.len() - reused, stopped: false })
    }

    /// Appends one token and computes the logits after it.
    pub fn push(&mut self, token: u32) -> Result<&[f32], Error> {
        self.check_ids(self.tokens.len(), &[token])?;
        self.check_room(self.tokens.len() + 1)?;
        self.process(&[token], true);
        Ok(&self.logits)
    }

    fn process(&mut self, tokens: &[u32], last: bool) {
        let Engine { backend, model, .. } = self.engine;
        let outputs = if last { Outputs::Last } else { Outputs::None };
        let mut batch = [Sequence { tokens, state: &mut self.state, outputs }];
        let logits = model.forward(backend, &mut batch, &mut ());
        self.tokens.extend_from_slice(tokens);
        self.logits.clear();
        if let Some(logits) = logits {
            self.logits = backend.read(&logits);
        }
    }

    /// Whether a prompt can be processed: not empty, known ids, within the context.
    pub fn check(&self, prompt: &[u32]) -> Result<(), Error> {
        if prompt.is_empty() {
            return Err(Error::Empty);
        }
        self.check_ids(0, prompt)?;
        self.check_room(prompt.len())
    }

    fn check_ids(&self, start: usize, ids: &[u32]) -> Result<(), Error> {
        let vocab = self.engine.model.config.vocab;
        match ids.iter().position(|id| *id as usize >= vocab) {
            Some(i) => Err(Error::Vocabulary { index: start + i, vocab, id: ids[i] }),
            None => Ok(()),
        }
    }

    fn check_room(&self, tokens: usize) -> Result<(), Error> {
        let (limit, found) = (self.engine.context, tokens as u64);
        if found > limit { Err(Error::Context { limit, found }) } else { Ok(()) }
    }
}
