//! A session: the tokens of one sequence and the model's state after them. Prefills only the tokens after the longest
//! cached prefix, and adds checkpoints to the prefix cache on the way.
//!
//! It handles token ids, not text. Next: [`models::kimi_linear`] (the forward pass), [`super::logits`] (its result).

pub use super::errors::Error;
use crate::prefix_cache::CHECKPOINT_INTERVAL_TOKENS;

use crate::prefix_cache::Source;
use crate::prefix_cache::disk::MIN_DISK_TOKENS;
use crate::runtime::engine::Engine;
use crate::runtime::logits::{Logits, LogitsRow};
use kernels::backend::Backend;
use models::kimi_linear::mla::MlaPath;
use models::kimi_linear::state::State;
use models::kimi_linear::{Outputs, Sequence};
use std::ops::ControlFlow;

/// A sequence of tokens with its model state.
pub struct Session<'e, B: Backend> {
    engine: &'e Engine<B>,
    state: State<B>,
    tokens: Vec<u32>,
    /// The logits after the last token; `None` for an empty sequence and after an interrupted prefill.
    logits: Option<Logits<'e, B>>,
    checkpoints: Vec<usize>,
    /// The start of the question about a document in the next prompt.
    question: Option<usize>,
    /// Whether a decoded token would be prefilled with materialised attention; the state is then not cached.
    noncanonical: bool,
}

/// The result of a prefill: reused and computed tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefill {
    /// Tokens restored from the session or the prefix cache.
    pub reused: usize,
    /// The source of the restored state; `None` if no token was reused.
    pub source: Option<Source>,
    pub computed: usize,
    /// Whether the caller stopped the prefill early.
    pub stopped: bool,
}

impl<'e, B: Backend> Session<'e, B> {
    pub fn new(engine: &'e Engine<B>) -> Self {
        let state = engine.model.state(&engine.backend, engine.cache);
        Session {
            engine,
            state,
            tokens: Vec::new(),
            logits: None,
            checkpoints: Vec::new(),
            question: None,
            noncanonical: false,
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
        self.logits.as_ref()?.rows().next()
    }

    /// The logits after the last token in host memory; empty for an empty sequence.
    pub fn logits(&self) -> &[f32] {
        self.logits_row().map_or(&[], |row| row.values())
    }

    /// Adds checkpoints at these lengths of the next prompt, such as the end of a system message or a document. Long
    /// lists are thinned by [`thin_checkpoints`].
    pub fn checkpoint_at(&mut self, lengths: &[usize]) {
        self.checkpoints = thin_checkpoints(lengths);
    }

    /// Declares that the next prompt is a document of this length followed by a question, which is prefilled as a
    /// message of its own ([`Engine::mla_path`]). The length must be the same for every prompt with that document.
    pub fn question_at(&mut self, length: usize) {
        self.question = Some(length);
    }

    /// Adds a snapshot of the sequence to the prefix cache; also on disk if it saves enough prefill.
    pub fn checkpoint(&self) {
        self.insert(false);
    }

    /// Adds a snapshot of the sequence to the prefix cache in memory and on disk, before a long pause.
    pub fn checkpoint_to_disk(&self) {
        self.insert(true);
    }

    fn insert(&self, always: bool) {
        let Engine { backend, store, .. } = self.engine;
        if !self.tokens.is_empty() && !self.noncanonical && self.engine.may_keep() && store.accepts() {
            store.insert(backend, &self.tokens, &self.state, self.logits(), always);
        }
    }

    /// Prefills the tokens of `prompt` after its longest cached prefix: the session's own state or a snapshot. Adds
    /// snapshots at the requested checkpoints, at every checkpoint interval and at the end. Calls `progress` with
    /// (done, total) after each batch; if it stops the prefill, the processed tokens are kept, also as a snapshot.
    pub fn prefill(
        &mut self,
        prompt: &[u32],
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Prefill, Error> {
        let (checkpoints, question) = (std::mem::take(&mut self.checkpoints), self.question.take());
        let Prefill { reused, source, .. } = self.restore_prefix(prompt)?;
        let mut stopped = false;
        while self.tokens.len() < prompt.len() && !stopped {
            let at = self.tokens.len();
            let point = next_checkpoint(at, prompt.len(), &checkpoints);
            let (path, end) = self.engine.mla_path(prompt, at..point, question);
            let end = end.min(at + self.engine.max_step_tokens(path));
            self.process(&prompt[at..end], path, end == prompt.len());
            self.engine.backend.wait(); // progress counts finished batches, not launched ones
            stopped = progress(end, prompt.len()).is_break() && end < prompt.len();
            if end == point || stopped {
                self.insert((stopped && end >= MIN_DISK_TOKENS) || is_written_to_disk(end, &checkpoints));
            }
        }
        Ok(Prefill { reused, source, computed: self.tokens.len() - reused, stopped })
    }

    /// Restores the longest cached prefix of `prompt` without computing anything.
    pub fn restore_prefix(&mut self, prompt: &[u32]) -> Result<Prefill, Error> {
        self.check(prompt)?;
        let Engine { backend, store, .. } = self.engine;
        let own = self.tokens.len();
        let usable = prompt.starts_with(&self.tokens) && (own < prompt.len() || self.logits.is_some());
        let mut source = (usable && own > 0).then_some(Source::Live);
        if let Some(hit) = store.longest_prefix(backend, prompt, usable.then_some(own)) {
            self.state = hit.state;
            self.logits =
                Some(hit.logits).filter(|l| !l.is_empty()).map(|l| Logits::from_values(self.engine, l));
            self.noncanonical = false;
            self.tokens.clear();
            self.tokens.extend_from_slice(&prompt[..hit.len]);
            source = Some(hit.source);
        } else if !usable {
            *self = Session::new(self.engine);
        }
        Ok(Prefill { reused: self.tokens.len(), source, computed: 0, stopped: false })
    }

    /// Decodes one token: appends it and computes the logits after it.
    pub fn decode(&mut self, token: u32) -> Result<(), Error> {
        self.engine.check_ids(self.tokens.len(), &[token])?;
        self.engine.check_room(self.tokens.len() + 1)?;
        self.process(&[token], MlaPath::Absorbed, true);
        let len = self.tokens.len();
        self.noncanonical |= self.engine.is_noncanonical(&self.tokens, len - 1..len);
        Ok(())
    }

    fn process(&mut self, tokens: &[u32], path: MlaPath, last: bool) {
        let Engine { backend, model, .. } = self.engine;
        let outputs = if last { Outputs::Last } else { Outputs::None };
        let mut batch = [Sequence { tokens, state: &mut self.state, outputs, mla_path: path }];
        let logits = model.forward(backend, &mut batch, &mut ());
        self.tokens.extend_from_slice(tokens);
        self.logits = logits.map(|logits| Logits::new(self.engine, logits, 1));
    }

    /// Checks a prompt with [`Engine::check`].
    pub fn check(&self, prompt: &[u32]) -> Result<(), Error> {
        self.engine.check(prompt)
    }
}

/// Up to this number of checkpoints, all are kept.
const KEEP_ALL_CHECKPOINTS: usize = 16;
/// The minimum distance in tokens between two of many checkpoints: one or two batches.
const CHECKPOINT_SPACING: usize = 1024;
/// The approximate maximum number of checkpoints: each costs a state and a partial batch.
const MAX_CHECKPOINTS: usize = 64;

/// Returns the positions to checkpoint in ascending order. Long lists are thinned to a minimum distance, but keep the
/// first and the last position.
pub(crate) fn thin_checkpoints(checkpoints: &[usize]) -> Vec<usize> {
    let mut checkpoints: Vec<usize> = checkpoints.iter().copied().filter(|mark| *mark > 0).collect();
    checkpoints.sort_unstable();
    checkpoints.dedup();
    let Some(&end) = checkpoints.last().filter(|_| checkpoints.len() > KEEP_ALL_CHECKPOINTS) else {
        return checkpoints;
    };
    let spacing = CHECKPOINT_SPACING.max(end / MAX_CHECKPOINTS);
    let mut kept = None;
    checkpoints.retain(|mark| {
        let far = *mark == end || kept.is_none_or(|kept| mark - kept >= spacing);
        if far {
            kept = Some(*mark);
        }
        far
    });
    checkpoints
}

/// Returns the next length after `at` at which a snapshot is taken.
pub(crate) fn next_checkpoint(at: usize, end: usize, checkpoints: &[usize]) -> usize {
    let interval = (at / CHECKPOINT_INTERVAL_TOKENS + 1) * CHECKPOINT_INTERVAL_TOKENS;
    let mark = checkpoints.iter().copied().filter(|mark| *mark > at).min();
    mark.unwrap_or(end).min(interval).min(end)
}

/// Returns whether the snapshot at `end` is written to disk even where a shorter one is there: those at requested
/// checkpoints that save enough prefill.
pub(crate) fn is_written_to_disk(end: usize, checkpoints: &[usize]) -> bool {
    end >= MIN_DISK_TOKENS && checkpoints.contains(&end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Overwrites a model file in place while it is in use.
    #[test]
    fn a_model_file_that_changed_in_use_is_refused_and_not_cached() {
        use crate::prefix_cache::options::StoreOptions;
        use crate::runtime::options::{CacheType, EngineArgs};
        use std::sync::{Arc, Mutex};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, include_bytes!("../../models/demo/kimi-demo.gguf")).unwrap();
        let args = EngineArgs {
            model: Some(path.clone()),
            threads: Some(2),
            ctx: None,
            batch: 64,
            cache_type: CacheType::F16,
            mlock: false,
            device: Default::default(),
            chat_template: None,
            store: StoreOptions::in_memory(),
            state_room: None,
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
        session.checkpoint();
        session.checkpoint_to_disk();
        assert_eq!(engine.store.ram_snapshots(), kept);
        let error = session.check(&[1]).unwrap_err().to_string();
        let end = "x.gguf: file in use: expected the 9764480 bytes that were opened, found the same size written again";
        assert!(error.ends_with(&end.replace("9764480", &engine.file.file_bytes().to_string())), "{error}");
        let lines = lines.lock().unwrap();
        assert_eq!(lines[..], [format!("{error}: replies since then may be wrong; start again")]);
    }

    #[test]
    fn checkpoints_are_requested_lengths_intervals_and_the_end() {
        let points = |mut at: usize, end: usize, checkpoints: &[usize]| {
            let mut all = Vec::new();
            while at < end {
                at = next_checkpoint(at, end, checkpoints);
                all.push(at);
            }
            all
        };
        assert_eq!(points(0, 10, &[]), [10]);
        assert_eq!(points(0, 10, &[7, 3, 0, 10, 99]), [3, 7, 10]);
        assert_eq!(points(8190, 20_000, &[8193]), [8192, 8193, 16_384, 20_000]);
    }

    #[test]
    fn few_checkpoints_are_kept_and_many_are_thinned() {
        assert_eq!(thin_checkpoints(&[]), [0; 0]);
        assert_eq!(thin_checkpoints(&[700, 3, 0, 700, 4]), [3, 4, 700]);
        let few: Vec<usize> = (1..=KEEP_ALL_CHECKPOINTS).map(|i| 7 * i).collect();
        assert_eq!(thin_checkpoints(&few), few);
        for (step, end) in [(1, 17), (7, 5000), (40, 60_000), (300, 450_000), (9000, 1_000_000)] {
            let checkpoints: Vec<usize> = (1..=end / step).map(|i| i * step).collect();
            let kept = thin_checkpoints(&checkpoints);
            assert_eq!((kept.first(), kept.last()), (checkpoints.first(), checkpoints.last()));
            assert!(kept.len() <= MAX_CHECKPOINTS + 2 && kept.iter().all(|mark| checkpoints.contains(mark)));
            let spacing = CHECKPOINT_SPACING.max(checkpoints[checkpoints.len() - 1] / MAX_CHECKPOINTS);
            let gaps: Vec<usize> = kept.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (_, gaps) = gaps.split_last().unwrap();
            assert!(gaps.iter().all(|gap| (spacing..spacing + step).contains(gap)), "{step} {end}: {gaps:?}");
        }
    }
}
