//! Implements Kimi Delta Attention: a linear recurrence with a matrix state and a decay per key channel.
//!
//! S_t = (I - beta_t k_t k_t^T) Diag(e^{g_t}) S_{t-1} + beta_t k_t v_t^T,   o_t = S_t^T q_t   (per head)
//!
//! `Backend::delta_rule` computes the recurrence. Next: [`super::mla`].

use super::config::Config;
use super::weights::Loader;
use super::{Backend, LayerProbe};
use crate::gguf::Error;
use kernels::backend::{DeltaProjections, DeltaState, DeltaWeights, Span};
use kernels::composed::{self, DeltaDraft};
use std::ops::Range;

/// Epsilon of the l2 norm, as in flash-linear-attention.
const L2_EPS: f32 = 1e-6;

/// The weights of one KDA layer.
pub struct Kda<B: Backend> {
    q: B::Weight,
    k: B::Weight,
    v: B::Weight,
    conv_q: B::Weight,
    conv_k: B::Weight,
    conv_v: B::Weight,
    decay_down: B::Weight, // ssm_f_a: the low-rank projection of the decay, first factor
    decay_up: B::Weight,   // ssm_f_b
    a: B::Weight,
    dt_bias: B::Weight,
    beta: B::Weight,
    gate_down: B::Weight, // ssm_g_a: the low-rank projection of the output gate, first factor
    gate_up: B::Weight,   // ssm_g_b
    norm: B::Weight,
    out: B::Weight,
    head_dim: usize,
    norm_eps: f32,
}

/// The recurrent state of a KDA layer.
pub type KdaState<B> = DeltaState<<B as Backend>::Tensor>;

/// The spans of a batch by the rows that their states advance past.
pub struct KdaSpans<'a, B: Backend> {
    /// Spans whose states advance past all rows.
    pub whole: Vec<Span<'a, KdaState<B>>>,
    /// Spans of a token and a draft, whose states wait for [`Kda::accept`].
    pub drafts: Vec<Span<'a, KdaState<B>>>,
}

impl<B: Backend> Kda<B> {
    /// Loads the KDA weights of a layer.
    pub fn load(from: &Loader<'_, B>, c: &Config) -> Result<Self, Error> {
        let (dim, k) = (c.dim, &c.kda);
        let width = k.heads * k.head_dim;
        let [wq, wk, wv] = from.qkv(dim, width)?;
        Ok(Kda {
            q: wq,
            k: wk,
            v: wv,
            conv_q: from.f32_matrix("ssm_conv1d_q.weight", k.conv_taps, width)?,
            conv_k: from.f32_matrix("ssm_conv1d_k.weight", k.conv_taps, width)?,
            conv_v: from.f32_matrix("ssm_conv1d_v.weight", k.conv_taps, width)?,
            decay_down: from.matrix("ssm_f_a.weight", dim, k.head_dim)?,
            decay_up: from.matrix("ssm_f_b.weight", k.head_dim, width)?,
            a: from.vector("ssm_a", k.heads)?,
            dt_bias: from.vector("ssm_dt.bias", width)?,
            beta: from.matrix("ssm_beta.weight", dim, k.heads)?,
            gate_down: from.matrix("ssm_g_a.weight", dim, k.head_dim)?,
            gate_up: from.matrix("ssm_g_b.weight", k.head_dim, width)?,
            norm: from.vector("ssm_norm.weight", k.head_dim)?,
            out: from.matrix("attn_output.weight", width, dim)?,
            head_dim: k.head_dim,
            norm_eps: c.norm_eps,
        })
    }

    fn delta_weights(&self) -> DeltaWeights<'_, B::Weight> {
        DeltaWeights {
            taps: [&self.conv_q, &self.conv_k, &self.conv_v],
            a: &self.a,
            dt_bias: &self.dt_bias,
            norm: &self.norm,
            head_dim: self.head_dim,
            scale: (self.head_dim as f32).powf(-0.5),
            l2_eps: L2_EPS,
            norm_eps: self.norm_eps,
        }
    }

    /// y = W_o (RMSNorm(o) * sigmoid(gate)), and what drafts keep for [`Kda::accept`]. `[token, dim] -> [token, dim]`
    pub fn forward(
        &self,
        b: &B,
        x: &B::Tensor,
        spans: &mut KdaSpans<'_, B>,
        probe: &mut LayerProbe<'_, B>,
    ) -> (B::Tensor, Option<DeltaDraft<B::Tensor>>) {
        let [q, k, v, f, gate, beta] =
            b.matmuls([&self.q, &self.k, &self.v, &self.decay_down, &self.gate_down, &self.beta], x);
        let [f, gate] = b.matmul_each([&self.decay_up, &self.gate_up], [&f, &gate]);
        let projections = DeltaProjections { q, k, v, f, beta, gate };
        let w = self.delta_weights();
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
        (b.matmul(&self.out, &o), draft)
    }

    /// Advances the state past `rows`: the accepted tokens of a draft, from its first row on.
    pub fn accept(&self, b: &B, state: &mut KdaState<B>, draft: &DeltaDraft<B::Tensor>, rows: Range<usize>) {
        composed::accept_delta_draft(b, state, draft, rows, self.delta_weights().taps);
    }
}
