//! A session: the tokens of one sequence and the model's state after them. Prefills only the tokens after the longest
//! cached prefix ([`super::prefill`] has the rules), and decodes token by token. A step may compute the logits after
//! drafted tokens too; decoding one of those then costs nothing.
//!
//! It handles token ids, not text. Next: [`super::prefill`], [`models::hybrid`] (the forward pass), [`super::logits`].

pub use super::errors::Error;
use super::prefill::PrefillDriver;
use crate::prefix_cache::PrefixSource;
use crate::prefix_cache::namespace::Namespace;
use crate::runtime::engine::Engine;
use crate::runtime::logits::{Logits, LogitsRow};
use kernels::backend::{Backend, MAX_DRAFT_ROWS};
use models::hybrid::Outputs;
use models::hybrid::mla::MlaPath;
use std::ops::ControlFlow;

/// A sequence of tokens with its model state.
pub struct Session<'e, B: Backend> {
    engine: &'e Engine<B>,
    driver: PrefillDriver<'e, B>,
    tokens: Vec<u32>,
    /// The logits of the last step, a row for its last token and for each of `draft`; `None` for an empty sequence and
    /// after an interrupted prefill.
    logits: Option<Logits<'e, B>>,
    /// The drafted tokens of the last step, until the state has advanced past those that were decoded.
    draft: Vec<u32>,
    /// The row of the logits after the last token.
    row: usize,
    /// Lengths of the next prompt at which to take snapshots.
    snapshot_lengths: Vec<usize>,
    /// The start of the question about a document in the next prompt.
    question: Option<usize>,
}

/// The result of a prefill: reused and computed tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefill {
    /// Tokens restored from the session or the prefix cache.
    pub reused: usize,
    /// The source of the restored state; `None` if no token was reused.
    pub source: Option<PrefixSource>,
    pub computed: usize,
    /// Whether the caller stopped the prefill early.
    pub stopped: bool,
}

impl<'e, B: Backend> Session<'e, B> {
    pub fn new(engine: &'e Engine<B>) -> Self {
        Session::within(engine, Namespace::SHARED)
    }

    /// Creates a session that uses this namespace of the prefix cache.
    pub fn within(engine: &'e Engine<B>, namespace: Namespace) -> Self {
        Session {
            engine,
            driver: PrefillDriver::new(engine, namespace),
            tokens: Vec::new(),
            logits: None,
            draft: Vec::new(),
            row: 0,
            snapshot_lengths: Vec::new(),
            question: None,
        }
    }

    /// The engine that runs the session.
    pub fn engine(&self) -> &'e Engine<B> {
        self.engine
    }

    /// The tokens processed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The row of logits after the last token; `None` for an empty sequence.
    pub fn logits_row(&self) -> Option<LogitsRow<'_, 'e, B>> {
        self.logits.as_ref()?.rows().nth(self.row)
    }

    /// The logits after the last token in host memory; empty for an empty sequence.
    pub fn logits(&self) -> &[f32] {
        self.logits_row().map_or(&[], |row| row.values())
    }

    /// Requests snapshots at these lengths of the next prompt, such as the end of a system message or a document. Long
    /// lists are thinned.
    pub fn snapshot_at(&mut self, lengths: &[usize]) {
        self.snapshot_lengths = lengths.to_vec();
    }

    /// Declares that the next prompt is a document of this length followed by a question, which is prefilled as a
    /// message of its own ([`mla_path`](super::engine::EngineBase::mla_path)). The length must be the same for every
    /// prompt with that document.
    pub fn question_at(&mut self, length: usize) {
        self.question = Some(length);
    }

    /// Adds a snapshot of the sequence to the prefix cache; also on disk if it saves enough prefill.
    pub fn snapshot(&mut self) {
        self.accept_draft();
        self.driver.insert(&self.tokens, self.logits_row().as_ref(), false);
    }

    /// Adds a snapshot of the sequence to the prefix cache in memory and on disk, before a long pause.
    pub fn snapshot_to_disk(&mut self) {
        self.accept_draft();
        self.driver.insert(&self.tokens, self.logits_row().as_ref(), true);
    }

    /// Prefills the tokens of `prompt` after its longest cached prefix: the session's own state or a snapshot. Adds
    /// snapshots at the requested lengths, at every snapshot interval and at the end. Calls `progress` with
    /// (done, total) after each batch; if it stops the prefill, the processed tokens are kept, also as a snapshot.
    pub fn prefill(
        &mut self,
        prompt: &[u32],
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Prefill, Error> {
        let (snapshot_lengths, question) = (std::mem::take(&mut self.snapshot_lengths), self.question.take());
        let Prefill { reused, source, .. } = self.restore_prefix(prompt)?;
        self.driver.begin(&snapshot_lengths, question);
        let mut stopped = false;
        while self.tokens.len() < prompt.len() && !stopped {
            let at = self.tokens.len();
            let (path, end) = self.driver.plan(prompt);
            let end = end.min(at + self.engine.max_step_tokens(path));
            let at_snapshot = self.process(&prompt[at..end], path, end == prompt.len());
            self.engine.backend.wait(); // progress counts finished batches, not launched ones
            stopped = progress(end, prompt.len()).is_break() && end < prompt.len();
            if at_snapshot || stopped {
                self.driver.insert_snapshot(&self.tokens, self.logits_row().as_ref(), stopped);
            }
        }
        Ok(Prefill { reused, source, computed: self.tokens.len() - reused, stopped })
    }

    /// Restores the longest cached prefix of `prompt` without computing anything.
    pub fn restore_prefix(&mut self, prompt: &[u32]) -> Result<Prefill, Error> {
        self.check(prompt)?;
        self.accept_draft();
        let own = self.tokens.len();
        let usable = prompt.starts_with(&self.tokens) && (own < prompt.len() || self.logits.is_some());
        let mut source = (usable && own > 0).then_some(PrefixSource::Live);
        let found = self.driver.restore(prompt, usable);
        if found.is_some() || !usable {
            self.tokens.clear();
            self.tokens.extend_from_slice(&prompt[..self.driver.len()]);
            self.logits = None;
        }
        if let Some((from, logits)) = found {
            source = Some(from);
            (self.logits, self.row) =
                ((!logits.is_empty()).then(|| Logits::from_values(self.engine, logits)), 0);
        }
        Ok(Prefill { reused: self.tokens.len(), source, computed: 0, stopped: false })
    }

    /// Decodes one token: appends it and computes the logits after it.
    pub fn decode(&mut self, token: u32) -> Result<(), Error> {
        self.decode_with(token, |_| Vec::new())
    }

    /// [`Session::decode`]. If that takes a step, the step also computes the logits after the tokens of `draft`, which
    /// are likely to follow. The results are those of `decode` to the bit (CPU), whether they follow or not. `draft` is
    /// passed [`PrefillDriver::predict`] by the number of tokens.
    pub fn decode_with(
        &mut self,
        token: u32,
        draft: impl FnOnce(&mut dyn FnMut(usize) -> Vec<u32>) -> Vec<u32>,
    ) -> Result<(), Error> {
        let len = self.tokens.len();
        self.engine.check_ids(len, &[token])?;
        self.engine.check_length(len + 1)?;
        if self.has_drafted(token) {
            self.row += 1;
            self.tokens.push(token);
        } else {
            self.accept_draft();
            let draft = draft(&mut |most| self.driver.predict(token, most));
            self.step(token, draft);
        }
        self.driver.decoded(&self.tokens, len..len + 1);
        Ok(())
    }

    /// Ends predictions by the model until the next prompt.
    pub fn unfollow(&mut self) {
        self.driver.unfollow();
    }

    /// Returns whether decoding this token takes no step, because the last one had it as draft.
    pub fn has_drafted(&self, token: u32) -> bool {
        self.draft.get(self.row) == Some(&token)
    }

    /// Computes the logits after a token and after each token of a draft, as far as the context allows.
    fn step(&mut self, token: u32, mut draft: Vec<u32>) {
        let most = self.engine.context.saturating_sub(self.tokens.len() as u64 + 1);
        draft.truncate(usize::try_from(most).unwrap_or(usize::MAX).min(MAX_DRAFT_ROWS - 1));
        if draft.is_empty() {
            self.process(&[token], MlaPath::Absorbed, true);
            return;
        }
        let Engine { backend, model, .. } = self.engine;
        let tokens = [&[token], &draft[..]].concat();
        let mut batch = [self.driver.sequence(&tokens, MlaPath::Absorbed, Outputs::Draft)];
        let logits = model.forward(backend, &mut batch, &mut ());
        self.logits = logits.map(|logits| Logits::new(self.engine, logits, tokens.len()));
        self.tokens.push(token);
        (self.draft, self.row) = (draft, 0);
    }

    /// Advances the state past the decoded tokens of the last draft.
    fn accept_draft(&mut self) {
        if !self.draft.is_empty() {
            self.driver.accept(1 + self.row);
            self.draft.clear();
        }
    }

    /// Computes the state after more tokens. Returns whether a snapshot is due.
    fn process(&mut self, tokens: &[u32], path: MlaPath, last: bool) -> bool {
        let Engine { backend, model, .. } = self.engine;
        let outputs = if last { Outputs::Last } else { Outputs::None };
        let mut batch = [self.driver.sequence(tokens, path, outputs)];
        let logits = model.forward(backend, &mut batch, &mut ());
        self.tokens.extend_from_slice(tokens);
        (self.logits, self.row) = (logits.map(|logits| Logits::new(self.engine, logits, 1)), 0);
        self.driver.advance(tokens.len())
    }

    /// Checks a prompt with [`check`](super::engine::EngineBase::check).
    pub fn check(&self, prompt: &[u32]) -> Result<(), Error> {
        self.engine.check(prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Overwrites a model file in place while it is in use.
    #[test]
    fn a_model_file_that_changed_in_use_is_refused_and_not_cached() {
        use crate::runtime::options::LoadOptions;
        use std::sync::{Arc, Mutex};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, include_bytes!("../../models/demo/kimi-demo.gguf")).unwrap();
        let args = LoadOptions {
            model: Some(path.clone()),
            threads: Some(2),
            batch: Some(64),
            ..LoadOptions::default()
        };
        let lines = Arc::new(Mutex::new(Vec::new()));
        let log_lines = lines.clone();
        let log = Box::new(move |line: &str| log_lines.lock().unwrap().push(line.to_owned()));
        let engine = Engine::open_with(&args, log).unwrap();
        let mut session = Session::new(&engine);
        session.prefill(&[1, 2, 3], &mut |_, _| ControlFlow::Continue(())).unwrap();
        let kept = engine.store.ram_snapshots();
        assert!(kept > 0);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        session.decode(4).unwrap();
        session.snapshot();
        session.snapshot_to_disk();
        assert_eq!(engine.store.ram_snapshots(), kept);
        let error = session.check(&[1]).unwrap_err().to_string();
        let end = "x.gguf was overwritten while loaded (written again with the same size)";
        assert!(error.ends_with(end), "{error}");
        let lines = lines.lock().unwrap();
        assert_eq!(lines[..], [format!("{error}; replies since then may be wrong. Restart kimi.")]);
    }
}
