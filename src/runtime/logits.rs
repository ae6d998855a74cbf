//! The logits after a step, of each sequence whose tokens are all in: on the device until somebody needs them all.
//!
//! Whoever takes the most likely token, or one of a few, needs the best of them alone, which a backend finds sooner than it
//! brings a vocabulary. Held over the next step they stay what they are: a step's results are in memory of their own.
//! Next: [`crate::generation::decoder`].

use crate::runtime::engine::Engine;
use kernels::backend::{Backend, MAX_TOP_K, TopK};
use std::cell::OnceCell;

/// Logits `[rows, vocab]`.
pub struct Scores<'e, B: Backend> {
    engine: &'e Engine<B>,
    /// None where they are here.
    there: Option<B::Tensor>,
    /// Those that are here.
    read: Vec<f32>,
    /// Each row that was read for itself.
    rows: Vec<OnceCell<Vec<f32>>>,
    /// The best of each row.
    first: OnceCell<Vec<TopK>>,
    /// As many of them as there may be.
    best: OnceCell<Vec<TopK>>,
}

/// The logits after one sequence.
pub struct Row<'s, 'e, B: Backend> {
    scores: &'s Scores<'e, B>,
    row: usize,
}

impl<'e, B: Backend> Scores<'e, B> {
    /// Of a step that had `rows` outputs.
    pub fn new(engine: &'e Engine<B>, logits: B::Tensor, rows: usize) -> Self {
        let rows = std::iter::repeat_with(OnceCell::new).take(rows).collect();
        Scores { there: Some(logits), rows, ..Scores::of(engine, Vec::new()) }
    }

    /// Of values that are here, as those of a snapshot.
    pub fn of(engine: &'e Engine<B>, values: Vec<f32>) -> Self {
        let (first, best) = (OnceCell::new(), OnceCell::new());
        Scores { engine, there: None, read: values, rows: Vec::new(), first, best }
    }

    /// Each row in its turn.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_, 'e, B>> {
        let here = self.read.len() / self.engine.model.config.vocab;
        (0..self.rows.len().max(here)).map(|row| Row { scores: self, row })
    }
}

impl<'s, B: Backend> Row<'s, '_, B> {
    /// All of them `[vocab]`.
    pub fn values(&self) -> &'s [f32] {
        let Scores { engine: Engine { backend, model, .. }, there, read, rows, .. } = self.scores;
        let vocab = model.config.vocab;
        let Some(x) = there else { return &read[self.row * vocab..][..vocab] };
        rows[self.row].get_or_init(|| match rows.len() {
            1 => backend.read(x),
            _ => backend.read(&backend.gather(x, &[self.row])),
        })
    }

    /// The best `n` or more of them, as many as the backend finds: of all rows at once, because others will ask for theirs.
    /// None of values that are here.
    pub fn best(&self, n: usize) -> Option<&'s TopK> {
        let Scores { engine, there, first, best, .. } = self.scores;
        let x = there.as_ref()?;
        let all = match n {
            1 => first.get_or_init(|| engine.backend.top_k(x, 1)),
            _ => best.get_or_init(|| engine.backend.top_k(x, MAX_TOP_K)),
        };
        all.get(self.row)
    }
}
