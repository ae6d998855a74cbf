//! The logits after a step, of each sequence whose tokens are all in: on the device until somebody needs them all.
//!
//! Whoever takes the most likely token, or one of a few, needs the best of them alone, which a backend finds sooner than it
//! brings a vocabulary. Held over the next step they stay what they are: a step's results are in memory of their own.
//! Next: [`crate::generation::decoder`].

use crate::runtime::engine::Engine;
use kernels::backend::{Backend, MAX_TOP_K, TopK};
use std::cell::OnceCell;

/// Logits `[rows, vocab]`.
pub struct Logits<'e, B: Backend> {
    engine: &'e Engine<B>,
    /// None where they are here.
    on_device: Option<B::Tensor>,
    /// Those that are here.
    host: Vec<f32>,
    /// Each row that was read for itself.
    rows: Vec<OnceCell<Vec<f32>>>,
    /// The best of each row.
    argmax: OnceCell<Vec<TopK>>,
    /// As many of them as there may be.
    top_k: OnceCell<Vec<TopK>>,
}

/// The logits after one sequence.
pub struct LogitsRow<'s, 'e, B: Backend> {
    logits: &'s Logits<'e, B>,
    row: usize,
}

impl<'e, B: Backend> Logits<'e, B> {
    /// Of a step that had `rows` outputs.
    pub fn new(engine: &'e Engine<B>, logits: B::Tensor, rows: usize) -> Self {
        let rows = std::iter::repeat_with(OnceCell::new).take(rows).collect();
        Logits { on_device: Some(logits), rows, ..Logits::from_values(engine, Vec::new()) }
    }

    /// Of values that are here, as those of a snapshot.
    pub fn from_values(engine: &'e Engine<B>, values: Vec<f32>) -> Self {
        let (argmax, top_k) = (OnceCell::new(), OnceCell::new());
        Logits { engine, on_device: None, host: values, rows: Vec::new(), argmax, top_k }
    }

    /// Each row in its turn.
    pub fn rows(&self) -> impl Iterator<Item = LogitsRow<'_, 'e, B>> {
        let here = self.host.len() / self.engine.model.config.vocab;
        (0..self.rows.len().max(here)).map(|row| LogitsRow { logits: self, row })
    }
}

impl<'s, B: Backend> LogitsRow<'s, '_, B> {
    /// All of them `[vocab]`.
    pub fn values(&self) -> &'s [f32] {
        let Logits { engine: Engine { backend, model, .. }, on_device, host, rows, .. } = self.logits;
        let vocab = model.config.vocab;
        let Some(x) = on_device else { return &host[self.row * vocab..][..vocab] };
        rows[self.row].get_or_init(|| match rows.len() {
            1 => backend.read(x),
            _ => backend.read(&backend.gather(x, &[self.row])),
        })
    }

    /// The best `n` or more of them, as many as the backend finds: of all rows at once, because others will ask for theirs.
    /// None of values that are here.
    pub fn top_k(&self, n: usize) -> Option<&'s TopK> {
        let Logits { engine, on_device, argmax, top_k, .. } = self.logits;
        let x = on_device.as_ref()?;
        let all = match n {
            1 => argmax.get_or_init(|| engine.backend.top_k(x, 1)),
            _ => top_k.get_or_init(|| engine.backend.top_k(x, MAX_TOP_K)),
        };
        all.get(self.row)
    }
}
