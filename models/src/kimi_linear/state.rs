//! What a model remembers of one sequence: for a KDA layer a matrix a head and three input tails, constant in
//! length; for an MLA layer one latent row a token.

use super::config::{Config, MixerKind};
use super::kda::KdaState;
use kernels::backend::{Backend, CacheFormat};

/// The state of one sequence.
pub struct State<B: Backend> {
    /// Tokens it has seen.
    pub position: u64,
    /// One a layer.
    pub layers: Vec<LayerState<B>>,
}

/// The state of one layer.
pub enum LayerState<B: Backend> {
    /// S and the convolution tails.
    Kda(KdaState<B>),
    /// [c_s | kpe_s] rows.
    Mla(B::Cache),
}

impl<B: Backend> State<B> {
    /// The state of an empty sequence.
    pub fn new(b: &B, c: &Config, cache: CacheFormat) -> Self {
        let k = &c.kda;
        let width = k.heads * k.head_dim;
        let zeros = |rows: usize, cols: usize| b.tensor(rows, cols, &vec![0.0; rows * cols]);
        let layer = |kind: &MixerKind| match kind {
            MixerKind::Kda => LayerState::Kda(KdaState {
                s: zeros(width, k.head_dim),
                conv: std::array::from_fn(|_| zeros(k.conv_taps - 1, width)),
            }),
            MixerKind::Mla => LayerState::Mla(b.cache(cache, c.mla.latent_dim + c.mla.pe_dim)),
        };
        State { position: 0, layers: c.layers.iter().map(layer).collect() }
    }
}
