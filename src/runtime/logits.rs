//! Holds the logits of a step, one row per sequence with outputs. They stay on the device until a full row is needed.
//!
//! Greedy and top-k sampling need only the top-k logits, which a backend finds faster than it copies a full row. The
//! logits stay valid after later steps, because each step's results have their own memory.

use crate::runtime::engine::Engine;
use kernels::backend::{Backend, MAX_TOP_K, TopK};
use std::cell::OnceCell;

/// The logits of a step, `[rows, vocab]`.
pub struct Logits<'e, B: Backend> {
    engine: &'e Engine<B>,
    /// The logits on the device; `None` if they are in `host`.
    on_device: Option<B::Tensor>,
    /// The logits in host memory; empty if they are on the device.
    host: Vec<f32>,
    /// Rows copied from the device on demand.
    rows: Vec<OnceCell<Vec<f32>>>,
    /// The largest logit of each row.
    argmax: OnceCell<Vec<TopK>>,
    /// The [`MAX_TOP_K`] largest logits of each row.
    top_k: OnceCell<Vec<TopK>>,
}

/// One row of [`Logits`]: those of one sequence.
pub struct LogitsRow<'s, 'e, B: Backend> {
    logits: &'s Logits<'e, B>,
    row: usize,
}

impl<'e, B: Backend> Logits<'e, B> {
    /// Wraps the output of a step that has `rows` rows.
    pub fn new(engine: &'e Engine<B>, logits: B::Tensor, rows: usize) -> Self {
        let rows = std::iter::repeat_with(OnceCell::new).take(rows).collect();
        Logits { on_device: Some(logits), rows, ..Logits::from_values(engine, Vec::new()) }
    }

    /// Wraps values in host memory, as restored from a snapshot.
    pub fn from_values(engine: &'e Engine<B>, values: Vec<f32>) -> Self {
        let (argmax, top_k) = (OnceCell::new(), OnceCell::new());
        Logits { engine, on_device: None, host: values, rows: Vec::new(), argmax, top_k }
    }

    /// Iterates over the rows in the order of the sequences.
    pub fn rows(&self) -> impl Iterator<Item = LogitsRow<'_, 'e, B>> {
        let here = self.host.len() / self.engine.model.config.vocab;
        (0..self.rows.len().max(here)).map(|row| LogitsRow { logits: self, row })
    }
}

impl<'s, B: Backend> LogitsRow<'s, '_, B> {
    /// Returns the full row `[vocab]`, copied from the device once.
    pub fn values(&self) -> &'s [f32] {
        let Logits { engine: Engine { backend, model, .. }, on_device, host, rows, .. } = self.logits;
        let vocab = model.config.vocab;
        let Some(x) = on_device else { return &host[self.row * vocab..][..vocab] };
        rows[self.row].get_or_init(|| match rows.len() {
            1 => backend.read(x),
            _ => backend.read(&backend.gather(x, &[self.row])),
        })
    }

    /// Returns at least the `n` largest logits; `None` if the row is in host memory. One call to the backend serves
    /// all rows of the step.
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
