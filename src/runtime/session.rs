//! One conversation's tokens and the model's state after them. It processes only what nobody has: it goes on from
//! the longest of its own state and the snapshots, and leaves snapshots on its way.
//!
//! It knows tokens, not text. Next: [`crate::generation::generate`].

use crate::prefix_cache::Source;
use crate::prefix_cache::WAYPOINT_TOKENS;
use crate::prefix_cache::disk::WORTH_TOKENS;
use crate::runtime::engine::Engine;
use crate::runtime::logits::{Row, Scores};
use kernels::backend::Backend;
use models::kimi_linear::mla::MlaPath;
use models::kimi_linear::state::State;
use models::kimi_linear::{Outputs, Sequence};
use std::ops::ControlFlow;

/// A sequence under way.
pub struct Session<'e, B: Backend> {
    engine: &'e Engine<B>,
    state: State<B>,
    tokens: Vec<u32>,
    /// After the last token; none before the first, and where more of the prompt was to come.
    scores: Option<Scores<'e, B>>,
    marks: Vec<usize>,
    /// Where the question about a document begins in the next prompt.
    question: Option<usize>,
    /// A token came one by one that is otherwise read in expanded form: nobody else may go on from here.
    apart: bool,
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
    /// No token can be chosen: the model's weights or its arithmetic are broken.
    #[error("logits at position {position}: expected finite numbers, found only NaN")]
    NotFinite {
        /// Tokens before the last one that was processed.
        position: usize,
    },
    /// The model's file was cut or written while in use.
    #[error(transparent)]
    Changed(#[from] models::gguf::Error),
}

/// How a prompt was brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefill {
    /// Tokens whose state was there already.
    pub reused: usize,
    /// Where that state was; None when nothing was reused.
    pub source: Option<Source>,
    /// Tokens that were processed.
    pub computed: usize,
    /// The caller stopped it before the end.
    pub stopped: bool,
}

impl<'e, B: Backend> Session<'e, B> {
    /// An empty sequence.
    pub fn new(engine: &'e Engine<B>) -> Self {
        let state = engine.model.state(&engine.backend, engine.cache);
        Session {
            engine,
            state,
            tokens: Vec::new(),
            scores: None,
            marks: Vec::new(),
            question: None,
            apart: false,
        }
    }

    /// The engine it runs on.
    pub fn engine(&self) -> &'e Engine<B> {
        self.engine
    }

    /// The tokens processed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The logits after the last token; none before the first.
    pub fn scores(&self) -> Option<Row<'_, 'e, B>> {
        self.scores.as_ref()?.rows().next()
    }

    /// Their values, brought here; none before the first.
    pub fn logits(&self) -> &[f32] {
        self.scores().map_or(&[], |row| row.values())
    }

    /// Asks for snapshots at these lengths of the next prompt, [`thinned`]: where a system message or a document ends.
    pub fn mark(&mut self, lengths: &[usize]) {
        self.marks = thinned(lengths);
    }

    /// Says that the next prompt is a document up to this length and a question after it, which is then read as a
    /// message of its own ([`Engine::form`]); always at the same place for the same document.
    pub fn question_at(&mut self, length: usize) {
        self.question = Some(length);
    }

    /// Keeps a snapshot of the sequence as it is; on disk too, if it saves enough reading.
    pub fn keep(&self) {
        self.insert(false);
    }

    /// Keeps a snapshot of the sequence as it is, on disk too: before it is left for long.
    pub fn save(&self) {
        self.insert(true);
    }

    fn insert(&self, always: bool) {
        let Engine { backend, store, .. } = self.engine;
        if !self.tokens.is_empty() && !self.apart && self.engine.may_keep() && store.takes() {
            store.insert(backend, &self.tokens, &self.state, self.logits(), always);
        }
    }

    /// Brings the sequence to exactly `prompt`, from the longest beginning of it that has a state: the sequence's
    /// own, else a snapshot. The rest is processed in batches, and snapshots are kept at the marks, at waypoints
    /// and at the end. `progress` hears (done, total) after each batch and may stop it; what was processed stays,
    /// in a snapshot too.
    pub fn advance_to(
        &mut self,
        prompt: &[u32],
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Prefill, Error> {
        let (marks, question) = (std::mem::take(&mut self.marks), self.question.take());
        let Prefill { reused, source, .. } = self.resume(prompt)?;
        let mut stopped = false;
        while self.tokens.len() < prompt.len() && !stopped {
            let at = self.tokens.len();
            let point = next_point(at, prompt.len(), &marks);
            let (form, end) = self.engine.form(prompt, at..point, question);
            let end = end.min(at + self.engine.step(form));
            self.process(&prompt[at..end], form, end == prompt.len());
            self.engine.backend.wait(); // so that who is told of progress, and stops it, is told what is done
            stopped = progress(end, prompt.len()).is_break() && end < prompt.len();
            if end == point || stopped {
                self.insert((stopped || marks.contains(&end)) && end >= WORTH_TOKENS);
            }
        }
        Ok(Prefill { reused, source, computed: self.tokens.len() - reused, stopped })
    }

    /// Goes to the longest beginning of `prompt` that has a state, and reads nothing: says what was there.
    pub fn resume(&mut self, prompt: &[u32]) -> Result<Prefill, Error> {
        self.check(prompt)?;
        let Engine { backend, store, .. } = self.engine;
        let own = self.tokens.len();
        let usable = prompt.starts_with(&self.tokens) && (own < prompt.len() || self.scores.is_some());
        let mut source = (usable && own > 0).then_some(Source::Live);
        if let Some(hit) = store.longest(backend, prompt, usable.then_some(own)) {
            self.state = hit.state;
            self.scores = Some(hit.logits).filter(|l| !l.is_empty()).map(|l| Scores::of(self.engine, l));
            self.apart = false;
            self.tokens.clear();
            self.tokens.extend_from_slice(&prompt[..hit.len]);
            source = Some(hit.source);
        } else if !usable {
            *self = Session::new(self.engine);
        }
        Ok(Prefill { reused: self.tokens.len(), source, computed: 0, stopped: false })
    }

    /// Appends one token and computes the logits after it.
    pub fn push(&mut self, token: u32) -> Result<(), Error> {
        self.engine.check_ids(self.tokens.len(), &[token])?;
        self.engine.check_room(self.tokens.len() + 1)?;
        self.process(&[token], MlaPath::Absorbed, true);
        let len = self.tokens.len();
        self.apart |= self.engine.apart(&self.tokens, len - 1..len);
        Ok(())
    }

    fn process(&mut self, tokens: &[u32], form: MlaPath, last: bool) {
        let Engine { backend, model, .. } = self.engine;
        let outputs = if last { Outputs::Last } else { Outputs::None };
        let mut batch = [Sequence { tokens, state: &mut self.state, outputs, mla_path: form }];
        let logits = model.forward(backend, &mut batch, &mut ());
        self.tokens.extend_from_slice(tokens);
        self.scores = logits.map(|logits| Scores::new(self.engine, logits, 1));
    }

    /// [`Engine::check`].
    pub fn check(&self, prompt: &[u32]) -> Result<(), Error> {
        self.engine.check(prompt)
    }
}

impl<B: Backend> Engine<B> {
    /// Whether a prompt can be processed: not empty, known ids, within the context, by the model that was loaded.
    pub fn check(&self, prompt: &[u32]) -> Result<(), Error> {
        self.file.check_unchanged()?;
        if prompt.is_empty() {
            return Err(Error::Empty);
        }
        self.check_ids(0, prompt)?;
        self.check_room(prompt.len())
    }

    fn check_ids(&self, start: usize, ids: &[u32]) -> Result<(), Error> {
        let vocab = self.model.config.vocab;
        match ids.iter().position(|id| *id as usize >= vocab) {
            Some(i) => Err(Error::Vocabulary { index: start + i, vocab, id: ids[i] }),
            None => Ok(()),
        }
    }

    fn check_room(&self, tokens: usize) -> Result<(), Error> {
        let (limit, found) = (self.context, tokens as u64);
        if found > limit { Err(Error::Context { limit, found }) } else { Ok(()) }
    }
}

/// Marks up to this number are all kept.
const FEW_MARKS: usize = 16;
/// Tokens from one of many marks to the next at least: a batch or two.
const MARK_SPACING: usize = 1024;
/// Marks that are kept of many, about: each costs a state, and what comes in between a partial batch.
const MOST_MARKS: usize = 64;

/// Marks to keep snapshots at, in their order: of many only some, far enough apart. Batches cross the others. The
/// first and the last are always among them.
pub(crate) fn thinned(marks: &[usize]) -> Vec<usize> {
    let mut marks: Vec<usize> = marks.iter().copied().filter(|mark| *mark > 0).collect();
    marks.sort_unstable();
    marks.dedup();
    let Some(&end) = marks.last().filter(|_| marks.len() > FEW_MARKS) else { return marks };
    let spacing = MARK_SPACING.max(end / MOST_MARKS);
    let mut kept = None;
    marks.retain(|mark| {
        let far = *mark == end || kept.is_none_or(|kept| mark - kept >= spacing);
        if far {
            kept = Some(*mark);
        }
        far
    });
    marks
}

/// The next length after `at` to keep a snapshot of.
pub(crate) fn next_point(at: usize, end: usize, marks: &[usize]) -> usize {
    let waypoint = (at / WAYPOINT_TOKENS + 1) * WAYPOINT_TOKENS;
    let mark = marks.iter().copied().filter(|mark| *mark > at).min();
    mark.unwrap_or(end).min(waypoint).min(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The demonstration model in a file that is then written in place.
    #[test]
    fn a_model_file_that_changed_in_use_is_refused_and_nothing_is_kept() {
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
        let said = lines.clone();
        let log = Box::new(move |line: &str| said.lock().unwrap().push(line.to_owned()));
        let engine = Engine::open_with(&args, log).unwrap();
        let mut session = Session::new(&engine);
        session.advance_to(&[1, 2, 3], &mut |_, _| ControlFlow::Continue(())).unwrap();
        let kept = engine.store.ram_snapshots();
        assert!(kept > 0);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        session.push(4).unwrap();
        session.keep();
        session.save();
        assert_eq!(engine.store.ram_snapshots(), kept);
        let error = session.check(&[1]).unwrap_err().to_string();
        let end = "x.gguf: file in use: expected the 9764480 bytes that were opened, found the same size written again";
        assert!(error.ends_with(&end.replace("9764480", &engine.file.file_bytes().to_string())), "{error}");
        let lines = lines.lock().unwrap();
        assert_eq!(lines[..], [format!("{error}: replies since then may be wrong; start again")]);
    }

    #[test]
    fn points_are_marks_waypoints_and_the_end() {
        let points = |mut at: usize, end: usize, marks: &[usize]| {
            let mut all = Vec::new();
            while at < end {
                at = next_point(at, end, marks);
                all.push(at);
            }
            all
        };
        assert_eq!(points(0, 10, &[]), [10]);
        assert_eq!(points(0, 10, &[7, 3, 0, 10, 99]), [3, 7, 10]);
        assert_eq!(points(8190, 20_000, &[8193]), [8192, 8193, 16_384, 20_000]);
    }

    #[test]
    fn few_marks_are_kept_and_many_are_thinned() {
        assert_eq!(thinned(&[]), [0; 0]);
        assert_eq!(thinned(&[700, 3, 0, 700, 4]), [3, 4, 700]);
        let few: Vec<usize> = (1..=FEW_MARKS).map(|i| 7 * i).collect();
        assert_eq!(thinned(&few), few);
        for (step, end) in [(1, 17), (7, 5000), (40, 60_000), (300, 450_000), (9000, 1_000_000)] {
            let marks: Vec<usize> = (1..=end / step).map(|i| i * step).collect();
            let kept = thinned(&marks);
            assert_eq!((kept.first(), kept.last()), (marks.first(), marks.last()));
            assert!(kept.len() <= MOST_MARKS + 2 && kept.iter().all(|mark| marks.contains(mark)));
            let spacing = MARK_SPACING.max(marks[marks.len() - 1] / MOST_MARKS);
            let gaps: Vec<usize> = kept.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (_, gaps) = gaps.split_last().unwrap();
            assert!(gaps.iter().all(|gap| (spacing..spacing + step).contains(gap)), "{step} {end}: {gaps:?}");
        }
    }
}
