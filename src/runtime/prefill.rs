//! Drives the prefill of one sequence: restores the longest cached prefix, cuts the rest of the prompt into runs with one
//! attention path, and inserts snapshots into the prefix cache. Sessions and the scheduler share these rules.
//!
//! It does not call the model. [`super::session`] processes a run at once; the scheduler takes parts of it into its steps.

use crate::prefix_cache::disk::MIN_DISK_TOKENS;
use crate::prefix_cache::namespace::Namespace;
use crate::prefix_cache::{PrefixSource, SNAPSHOT_INTERVAL_TOKENS};
use crate::runtime::engine::Engine;
use crate::runtime::logits::LogitsRow;
use crate::runtime::options::Drafting;
use kernels::backend::Backend;
use models::hybrid::mla::MlaPath;
use models::hybrid::state::State;
use models::hybrid::{Outputs, Sequence};
use std::ops::Range;

/// The state of one sequence, and the plan of its prefill.
pub struct PrefillDriver<'e, B: Backend> {
    engine: &'e Engine<B>,
    /// The part of the prefix cache that is read and written.
    pub namespace: Namespace,
    /// `None` before the first tokens, and while the state is freed.
    state: Option<State<B>>,
    /// The number of tokens in the state.
    len: usize,
    /// Lengths of the prompt at which snapshots are requested.
    snapshot_lengths: Vec<usize>,
    /// The start of the question about a document.
    question: Option<usize>,
    /// The attention path of the next tokens of the prompt, and the end of the run that shares it.
    run: (MlaPath, usize),
    /// The end of the run, or of a later one, at which a snapshot is inserted.
    snapshot_at: usize,
    /// Whether steps keep what predictions of further tokens need.
    follows: bool,
    /// Whether a decoded token would be prefilled with materialized attention; the state is then not cached.
    noncanonical: bool,
}

impl<'e, B: Backend> PrefillDriver<'e, B> {
    pub fn new(engine: &'e Engine<B>, namespace: Namespace) -> Self {
        PrefillDriver {
            engine,
            namespace,
            state: None,
            len: 0,
            snapshot_lengths: Vec::new(),
            question: None,
            run: (MlaPath::Absorbed, 0),
            snapshot_at: 0,
            follows: engine.draft != Drafting::Off,
            noncanonical: false,
        }
    }

    /// The number of tokens in the state.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the state is in memory.
    pub fn has_state(&self) -> bool {
        self.state.is_some()
    }

    /// Frees the state. The sequence has to be restored before its next tokens.
    pub fn free(&mut self) {
        (self.state, self.len) = (None, 0);
    }

    /// Drops the state after an abandoned step. The length stays for statistics.
    pub fn invalidate(&mut self) {
        self.state = None;
    }

    /// Restores the longest cached prefix of `tokens`, with `keep_own` only if it is longer than the state, which is such
    /// a prefix too. Returns its source, and its logits if the cache has them.
    pub fn restore(&mut self, tokens: &[u32], keep_own: bool) -> Option<(PrefixSource, Vec<f32>)> {
        let Engine { backend, model, store, .. } = self.engine;
        let own = keep_own.then_some(self.len);
        let hit = store.within(self.namespace).longest_prefix(backend, tokens, own);
        let (state, len, found) = match hit {
            Some(hit) => (hit.state, hit.len, Some((hit.source, hit.logits))),
            None if keep_own => return None,
            None => (model.state(backend, self.engine.cache), 0, None),
        };
        (self.state, self.len, self.noncanonical) = (Some(state), len, false);
        self.run = (MlaPath::Absorbed, len);
        found
    }

    /// Begins another prompt, of which the state holds a prefix. Long lists of snapshots are thinned.
    pub fn begin(&mut self, snapshot_lengths: &[usize], question: Option<usize>) {
        (self.snapshot_lengths, self.question) = (thin_snapshots(snapshot_lengths), question);
        self.follows = self.engine.draft != Drafting::Off;
        self.run = (MlaPath::Absorbed, self.len);
    }

    /// Plans the next run of the prompt, unless the current one is not complete: its attention path and its end, which is
    /// the next snapshot or the next change of the path.
    pub fn plan(&mut self, prompt: &[u32]) -> (MlaPath, usize) {
        if self.len >= self.run.1 && self.len < prompt.len() {
            self.snapshot_at = next_snapshot(self.len, prompt.len(), &self.snapshot_lengths);
            self.run = self.engine.mla_path(prompt, self.len..self.snapshot_at, self.question);
        }
        self.run
    }

    /// The planned run: its attention path and its end.
    pub fn run(&self) -> (MlaPath, usize) {
        self.run
    }

    /// The length of the prompt at its next snapshot.
    pub fn next_snapshot(&self) -> usize {
        self.snapshot_at
    }

    /// Returns the input of the model for the next tokens.
    pub fn sequence<'s>(
        &'s mut self,
        tokens: &'s [u32],
        mla_path: MlaPath,
        outputs: Outputs,
    ) -> Sequence<'s, B> {
        let Engine { backend, model, .. } = self.engine;
        let state = self.state.get_or_insert_with(|| model.state(backend, self.engine.cache));
        if self.follows {
            model.follow(backend, state, self.engine.cache);
        }
        Sequence { tokens, state, outputs, mla_path }
    }

    /// Accounts for tokens that the model has processed. Returns whether a snapshot is due.
    pub fn advance(&mut self, tokens: usize) -> bool {
        self.len += tokens;
        self.len == self.snapshot_at
    }

    /// Advances the state past the first `tokens` of a step with [`Outputs::Draft`].
    pub fn accept(&mut self, tokens: usize) {
        let Engine { backend, model, .. } = self.engine;
        model.accept(backend, self.state.as_mut().expect("a step with a draft"), tokens);
        self.len += tokens;
    }

    /// Predicts at most `most` tokens after `token`, the next one, by the model's block for that, if it has one.
    pub fn predict(&mut self, token: u32, most: usize) -> Vec<u32> {
        let Engine { backend, model, .. } = self.engine;
        self.state.as_mut().map_or(Vec::new(), |state| model.predict(backend, state, token, most))
    }

    /// Ends predictions until the next prompt: steps keep nothing for them.
    pub fn unfollow(&mut self) {
        self.follows = false;
        self.state.iter_mut().for_each(State::unfollow);
    }

    /// Records that these of all tokens were decoded one by one.
    pub fn decoded(&mut self, all: &[u32], tokens: Range<usize>) {
        self.noncanonical |= self.engine.is_noncanonical(all, tokens);
    }

    /// Inserts a snapshot that is due, or one where the prefill is `stopped`. Requested snapshots and stopped prefills that
    /// save enough prefill are written to disk even where a shorter one is there.
    pub fn insert_snapshot(&self, tokens: &[u32], logits: Option<&LogitsRow<'_, '_, B>>, stopped: bool) {
        let always = self.len >= MIN_DISK_TOKENS && (stopped || self.snapshot_lengths.contains(&self.len));
        self.insert(tokens, logits, always);
    }

    /// Inserts the state after `tokens` into the prefix cache if it may be cached; `always` writes it to disk even where a
    /// shorter one is there.
    pub fn insert(&self, tokens: &[u32], logits: Option<&LogitsRow<'_, '_, B>>, always: bool) {
        let Engine { backend, store, .. } = self.engine;
        let Some(state) = self.state.as_ref().filter(|_| self.len > 0 && !self.noncanonical) else { return };
        if self.engine.may_cache() && store.accepts() {
            let logits = logits.map_or(&[][..], |row| row.values());
            store.within(self.namespace).insert(backend, tokens, state, logits, always);
        }
    }
}

/// Up to this number of snapshots, all are kept.
const KEEP_ALL_SNAPSHOTS: usize = 16;
/// The minimum distance in tokens between two of many snapshots: one or two batches.
const SNAPSHOT_SPACING: usize = 1024;
/// The approximate maximum number of snapshots: each costs a state and a partial batch.
const MAX_SNAPSHOTS: usize = 64;

/// Returns the positions to snapshot in ascending order. Long lists are thinned to a minimum distance, but keep the
/// first and the last position.
fn thin_snapshots(snapshot_lengths: &[usize]) -> Vec<usize> {
    let mut snapshot_lengths: Vec<usize> =
        snapshot_lengths.iter().copied().filter(|mark| *mark > 0).collect();
    snapshot_lengths.sort_unstable();
    snapshot_lengths.dedup();
    let Some(&end) = snapshot_lengths.last().filter(|_| snapshot_lengths.len() > KEEP_ALL_SNAPSHOTS) else {
        return snapshot_lengths;
    };
    let spacing = SNAPSHOT_SPACING.max(end / MAX_SNAPSHOTS);
    let mut kept = None;
    snapshot_lengths.retain(|mark| {
        let far = *mark == end || kept.is_none_or(|kept| mark - kept >= spacing);
        if far {
            kept = Some(*mark);
        }
        far
    });
    snapshot_lengths
}

/// Returns the next length after `at` at which a snapshot is taken.
fn next_snapshot(at: usize, end: usize, snapshot_lengths: &[usize]) -> usize {
    let interval = (at / SNAPSHOT_INTERVAL_TOKENS + 1) * SNAPSHOT_INTERVAL_TOKENS;
    let mark = snapshot_lengths.iter().copied().filter(|mark| *mark > at).min();
    mark.unwrap_or(end).min(interval).min(end)
}

/// Returns all lengths after `start` at which the prefill of a prompt inserts a snapshot.
pub fn snapshots_between(start: usize, end: usize, snapshot_lengths: &[usize]) -> Vec<usize> {
    let snapshot_lengths = thin_snapshots(snapshot_lengths);
    let next = |at: &usize| (*at < end).then(|| next_snapshot(*at, end, &snapshot_lengths));
    std::iter::successors(next(&start), next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_requested_lengths_intervals_and_the_end() {
        let points = |mut at: usize, end: usize, snapshot_lengths: &[usize]| {
            let mut all = Vec::new();
            while at < end {
                at = next_snapshot(at, end, snapshot_lengths);
                all.push(at);
            }
            all
        };
        assert_eq!(points(0, 10, &[]), [10]);
        assert_eq!(points(0, 10, &[7, 3, 0, 10, 99]), [3, 7, 10]);
        assert_eq!(points(8190, 20_000, &[8193]), [8192, 8193, 16_384, 20_000]);
    }

    #[test]
    fn few_snapshots_are_kept_and_many_are_thinned() {
        assert_eq!(thin_snapshots(&[]), [0; 0]);
        assert_eq!(thin_snapshots(&[700, 3, 0, 700, 4]), [3, 4, 700]);
        let few: Vec<usize> = (1..=KEEP_ALL_SNAPSHOTS).map(|i| 7 * i).collect();
        assert_eq!(thin_snapshots(&few), few);
        for (step, end) in [(1, 17), (7, 5000), (40, 60_000), (300, 450_000), (9000, 1_000_000)] {
            let snapshot_lengths: Vec<usize> = (1..=end / step).map(|i| i * step).collect();
            let kept = thin_snapshots(&snapshot_lengths);
            assert_eq!((kept.first(), kept.last()), (snapshot_lengths.first(), snapshot_lengths.last()));
            assert!(
                kept.len() <= MAX_SNAPSHOTS + 2 && kept.iter().all(|mark| snapshot_lengths.contains(mark))
            );
            let spacing = SNAPSHOT_SPACING.max(snapshot_lengths[snapshot_lengths.len() - 1] / MAX_SNAPSHOTS);
            let gaps: Vec<usize> = kept.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (_, gaps) = gaps.split_last().unwrap();
            assert!(gaps.iter().all(|gap| (spacing..spacing + step).contains(gap)), "{step} {end}: {gaps:?}");
        }
    }
}
