//! Implements the part of Kimi Delta Attention that follows the input projections: short convolutions, the recurrence with
//! a matrix state, the gated norm and the output projection.
//!
//! S_t = (I - beta_t k_t k_t^T) Diag(e^{g_t}) S_{t-1} + beta_t k_t v_t^T,   o_t = S_t^T q_t   (per head)
//! y_t = W_o (RMSNorm(o_t) * sigmoid(gate_t))
//!
//! Architectures differ in the projections and in the decay g. `Backend::delta_rule` computes the recurrence.
//! Next: [`super::mla`].

use super::config::Config;
use super::weights::Loader;
use super::{Backend, LayerProbe};
use crate::gguf::Error;
use kernels::backend::{Decay, DeltaProjections, DeltaState, DeltaWeights, Residual, Span};
use kernels::composed::{self, DeltaDraft};
use std::ops::Range;

/// Epsilon of the l2 norm, as in flash-linear-attention.
const L2_EPS: f32 = 1e-6;

/// The recurrent state of a KDA layer.
pub type KdaState<B> = DeltaState<<B as Backend>::Tensor>;

/// The spans of a batch by the rows that their states advance past.
pub struct KdaSpans<'a, B: Backend> {
    /// Spans whose states advance past all rows.
    pub whole: Vec<Span<'a, KdaState<B>>>,
    /// Spans of a token and a draft, whose states wait for [`Recurrence::accept`].
    pub drafts: Vec<Span<'a, KdaState<B>>>,
}

/// A KDA layer of an architecture: its input projections and the recurrence.
pub trait KdaMixer<B: Backend>: Send + Sync {
    /// Projects the input of a layer. `[token, dim]`
    fn project(&self, b: &B, x: &B::Tensor) -> DeltaProjections<B::Tensor>;
    /// The part after the projections.
    fn recurrence(&self) -> &Recurrence<B>;
}

/// The weights of a KDA layer after its input projections.
pub struct Recurrence<B: Backend> {
    taps: [B::Weight; 3], // of q, k and v
    a: B::Weight,
    dt_bias: B::Weight,
    decay: Decay,
    norm: B::Weight,
    out: B::Weight,
    head_dim: usize,
    norm_eps: f32,
}

impl<B: Backend> Recurrence<B> {
    /// Loads the weights of a layer; `decay` is the architecture's.
    pub fn load(from: &Loader<'_, B>, c: &Config, decay: Decay) -> Result<Self, Error> {
        let k = &c.kda;
        let width = k.heads * k.head_dim;
        let taps = |name: &str| from.f32_matrix(name, k.conv_taps, width);
        Ok(Recurrence {
            taps: [taps("ssm_conv1d_q.weight")?, taps("ssm_conv1d_k.weight")?, taps("ssm_conv1d_v.weight")?],
            a: from.vector("ssm_a", k.heads)?,
            dt_bias: from.vector("ssm_dt.bias", width)?,
            decay,
            norm: from.vector("ssm_norm.weight", k.head_dim)?,
            out: from.matrix("attn_output.weight", width, c.dim)?,
            head_dim: k.head_dim,
            norm_eps: c.norm_eps,
        })
    }

    fn weights(&self) -> DeltaWeights<'_, B::Weight> {
        let [q, k, v] = &self.taps;
        DeltaWeights {
            taps: [q, k, v],
            a: &self.a,
            dt_bias: &self.dt_bias,
            decay: self.decay,
            norm: &self.norm,
            head_dim: self.head_dim,
            scale: (self.head_dim as f32).powf(-0.5),
            l2_eps: L2_EPS,
            norm_eps: self.norm_eps,
        }
    }

    /// Adds the output of the layer to the residual stream; returns its norm, and what drafts keep for
    /// [`Recurrence::accept`]. `[token, dim]`
    pub fn forward(
        &self,
        b: &B,
        projections: DeltaProjections<B::Tensor>,
        spans: &mut KdaSpans<'_, B>,
        probe: &mut LayerProbe<'_, B>,
        to: Residual<'_, B::Tensor, B::Weight>,
    ) -> (B::Tensor, Option<DeltaDraft<B::Tensor>>) {
        let w = self.weights();
        let KdaSpans { whole, drafts } = spans;
        let (o, draft) = if !drafts.is_empty() {
            let (o, draft) = composed::delta_attention_draft(b, whole, drafts, projections, &w);
            (o, Some(draft))
        } else if probe.is_active() {
            let see_g = |g: &B::Tensor| probe.tensor("kda_g", g);
            (composed::delta_attention_with(b, whole, projections, &w, see_g), None)
        } else {
            (b.delta_attention(whole, projections, &w), None)
        };
        (b.matmul_add_norm(&self.out, &o, to), draft)
    }

    /// Advances the state past `rows`: the accepted tokens of a draft, from its first row on.
    pub fn accept(&self, b: &B, state: &mut KdaState<B>, draft: &DeltaDraft<B::Tensor>, rows: Range<usize>) {
        composed::accept_delta_draft(b, state, draft, rows, self.weights().taps);
    }
}
