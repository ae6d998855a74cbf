//! Holds the state of one sequence, and exports and imports it bit for bit.
//!
//! A KDA layer has a matrix per head and three convolution tails, of constant size; an MLA layer has one latent row per
//! token. Copies share the rows.

use super::config::{Config, MixerKind};
use super::kda::KdaState;
use kernels::backend::{Backend, CacheFormat, DeltaState};
use kernels::composed::DeltaDraft;
use std::ops::Range;
use std::sync::Arc;

/// The state of one sequence.
pub struct State<B: Backend> {
    /// Number of tokens processed: the position of the next one.
    pub position: u64,
    /// State of each layer, in the order of the model.
    pub layers: Vec<LayerState<B>>,
    /// The draft that [`Model::accept`](super::Model::accept) completes.
    pub(super) draft: Option<Draft<B>>,
    /// What predictions of further tokens need; None if the sequence is not followed.
    pub(super) followed: Option<Box<Followed<B>>>,
}

/// The state of one layer.
pub enum LayerState<B: Backend> {
    /// S and the convolution tails.
    Kda(KdaState<B>),
    /// KV cache of rows [c_s | k_pe_s], one per token.
    Mla(B::Cache),
}

/// A draft whose logits are computed, and past which the state has not advanced yet.
pub(super) struct Draft<B: Backend> {
    /// Its rows in the batch: a token and those drafted after it.
    pub rows: Range<usize>,
    /// Inputs of the recurrence of each KDA layer, for the whole batch.
    pub kda: Vec<Arc<DeltaDraft<B::Tensor>>>,
}

/// What the block that predicts further tokens has of a sequence: a run of tokens up to the last one.
pub(super) struct Followed<B: Backend> {
    /// Rows of the tokens that the block has processed.
    pub cache: B::Cache,
    /// The tokens after those, by step, and their residual stream after the last layer. `[tokens, dim]`
    pub pending: Vec<(Vec<u32>, B::Tensor)>,
}

impl<B: Backend> State<B> {
    /// The state of an empty sequence.
    pub fn new(b: &B, c: &Config, cache: CacheFormat) -> Self {
        let zeros = |[rows, cols]: [usize; 2]| b.tensor(rows, cols, &vec![0.0; rows * cols]);
        let layer = |kind: &MixerKind| match kind {
            MixerKind::Kda => LayerState::Kda(DeltaState {
                s: zeros(s_shape(c)),
                conv: std::array::from_fn(|_| zeros(tail_shape(c))),
            }),
            MixerKind::Mla => LayerState::Mla(b.cache(cache, c.mla.latent_dim + c.mla.pe_dim)),
        };
        State { position: 0, layers: c.layers.iter().map(layer).collect(), draft: None, followed: None }
    }

    /// Copies the state: the KDA part is copied on the device (40 MiB for the published model), the rows are shared until
    /// one of the two appends. The copy is not followed.
    pub fn copy(&self, b: &B) -> Self {
        assert!(self.draft.is_none(), "a copy of a state whose draft is not accepted");
        let layer = |layer: &LayerState<B>| match layer {
            LayerState::Kda(kda) => LayerState::Kda(DeltaState {
                s: b.copy(&kda.s),
                conv: std::array::from_fn(|i| b.copy(&kda.conv[i])),
            }),
            LayerState::Mla(cache) => LayerState::Mla(cache.clone()),
        };
        let layers = self.layers.iter().map(layer).collect();
        State { position: self.position, layers, draft: None, followed: None }
    }

    /// Ends [`Model::follow`](super::Model::follow): steps keep nothing for predictions.
    pub fn unfollow(&mut self) {
        self.followed = None;
    }

    /// Returns whether the last step had a draft and [`Model::accept`](super::Model::accept) has not completed it.
    pub(super) fn is_drafted(&self) -> bool {
        self.draft.is_some()
    }

    /// Stored bytes of one token's rows in all layers.
    pub fn row_bytes(&self, b: &B) -> usize {
        self.caches().map(|cache| b.cache_row_bytes(cache)).sum()
    }

    /// Appends the rows of tokens `range` to `out`, layer by layer and in a layer token by token.
    pub fn export_rows(&self, b: &B, range: Range<usize>, out: &mut Vec<u8>) {
        self.caches().for_each(|cache| b.cache_export(cache, range.clone(), out));
    }

    /// Appends rows of the next `tokens` tokens, exported by [`State::export_rows`].
    pub fn import_rows(&mut self, b: &B, tokens: usize, mut rows: &[u8]) {
        for layer in &mut self.layers {
            let LayerState::Mla(cache) = layer else { continue };
            let (own, rest) = rows.split_at(tokens * b.cache_row_bytes(cache));
            b.cache_import(cache, own);
            rows = rest;
        }
        assert!(rows.is_empty(), "{} bytes more than the rows of {tokens} tokens", rows.len());
        self.position += tokens as u64;
    }

    /// Appends S and the tails of all KDA layers to `out`, as little-endian f32.
    pub fn export_recurrent(&self, b: &B, out: &mut Vec<u8>) {
        assert!(self.draft.is_none(), "an export of a state whose draft is not accepted");
        for kda in self.layers.iter().filter_map(LayerState::kda) {
            for x in std::iter::once(&kda.s).chain(&kda.conv) {
                out.extend(b.read(x).iter().flat_map(|x| x.to_le_bytes()));
            }
        }
    }

    /// Replaces S and the tails with [`recurrent_bytes`] bytes exported by [`State::export_recurrent`].
    pub fn import_recurrent(&mut self, b: &B, c: &Config, bytes: &[u8]) {
        assert_eq!(bytes.len() as u64, recurrent_bytes(c), "bytes of S and the tails");
        let (mut values, _) = bytes.as_chunks();
        let mut take = |[rows, cols]: [usize; 2]| {
            let (own, rest) = values.split_at(rows * cols);
            values = rest;
            b.tensor(rows, cols, &own.iter().map(|x| f32::from_le_bytes(*x)).collect::<Vec<_>>())
        };
        for layer in &mut self.layers {
            let LayerState::Kda(kda) = layer else { continue };
            kda.s = take(s_shape(c));
            kda.conv.iter_mut().for_each(|tail| *tail = take(tail_shape(c)));
        }
    }

    fn caches(&self) -> impl Iterator<Item = &B::Cache> {
        self.layers.iter().filter_map(LayerState::mla)
    }
}

impl<B: Backend> LayerState<B> {
    fn kda(&self) -> Option<&KdaState<B>> {
        if let LayerState::Kda(kda) = self { Some(kda) } else { None }
    }

    fn mla(&self) -> Option<&B::Cache> {
        if let LayerState::Mla(cache) = self { Some(cache) } else { None }
    }
}

/// Bytes of S and the tails of all KDA layers, independent of the sequence length.
pub fn recurrent_bytes(c: &Config) -> u64 {
    let values = |[rows, cols]: [usize; 2]| (rows * cols) as u64;
    let layers = c.count(MixerKind::Kda) as u64;
    layers * (values(s_shape(c)) + 3 * values(tail_shape(c))) * size_of::<f32>() as u64
}

fn s_shape(c: &Config) -> [usize; 2] {
    [c.kda.heads * c.kda.head_dim, c.kda.head_dim]
}

fn tail_shape(c: &Config) -> [usize; 2] {
    [c.kda.conv_taps - 1, c.kda.heads * c.kda.head_dim]
}
