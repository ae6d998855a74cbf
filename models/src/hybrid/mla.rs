//! Implements the part of multi-head latent attention that all architectures share. The KV cache holds one row
//! [c_s | k_pe_s] per token s, latent and positional key, which all heads share.
//!
//! score_hts = (q~_ht . c_s + q_pe_ht . k_pe_s) / sqrt(nope + pe),   q~_ht = W_k,h^T q_nope_ht,
//! o_ht = W_v,h sum_s softmax_s(score_hts) c_s   (head h, query token t, cached token s)
//!
//! This is the absorbed path. The materialized path computes k_hs = W_k,h^T c_s and v_hs = W_v,h c_s for a step.
//! Next: [`super::ffn`].

use super::config::Config;
use super::weights::Loader;
use super::{Backend, LayerProbe};
use crate::gguf::Error;
use kernels::backend::{KvUpProjection, Residual, Span};

/// How attention of a step's tokens is computed; the results are equal up to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MlaPath {
    /// Queries attend to the latents; faster for few tokens.
    #[default]
    Absorbed,
    /// Keys and values of each head are materialized for the step; faster for many tokens of a long prompt.
    Materialized,
}

/// The spans of a batch by path.
pub struct MlaSpans<'a, B: Backend> {
    /// Spans that attend to the latents directly ([`MlaPath::Absorbed`]).
    pub absorbed: Vec<Span<'a, B::Cache>>,
    /// Spans that build each head's keys and values ([`MlaPath::Materialized`]).
    pub materialized: Vec<Span<'a, B::Cache>>,
}

/// An MLA layer of an architecture.
pub trait MlaMixer<B: Backend>: Send + Sync {
    /// Appends the tokens to the caches, adds the output to the residual stream and returns its norm.
    /// `[token, dim] -> [token, dim]`
    fn forward(
        &self,
        b: &B,
        x: &B::Tensor,
        spans: &mut MlaSpans<'_, B>,
        probe: &mut LayerProbe<'_, B>,
        to: Residual<'_, B::Tensor, B::Weight>,
    ) -> B::Tensor;
}

/// Attention of per-head queries over the cache of latents.
pub struct LatentAttention<B: Backend> {
    k_b: B::Weight,
    v_b: B::Weight,
    /// Weight of the norm of latents, `[1, latent]`.
    norm: B::Weight,
    norm_eps: f32,
    latent: usize,
    scale: f32,
}

impl<B: Backend> LatentAttention<B> {
    /// Loads the norm and the up-projections of a layer.
    pub fn load(from: &Loader<'_, B>, c: &Config, norm_eps: f32) -> Result<Self, Error> {
        let m = &c.mla;
        let [k_b, v_b] = from.kv_up(m)?;
        let scale = ((m.nope_dim + m.pe_dim) as f32).powf(-0.5);
        let norm = from.vector("attn_kv_a_norm.weight", m.latent_dim)?;
        Ok(LatentAttention { k_b, v_b, norm, norm_eps, latent: m.latent_dim, scale })
    }

    /// Appends the norm of the rows `kv` to the caches and attends to them: `kv: [token, latent + pe]`,
    /// `q: [token, head * (nope + pe)] -> [token, head * value]`
    pub fn forward(
        &self,
        b: &B,
        q: &B::Tensor,
        kv: &B::Tensor,
        spans: &mut MlaSpans<'_, B>,
        probe: &mut LayerProbe<'_, B>,
    ) -> B::Tensor {
        if probe.is_active() {
            probe.tensor("latent", &b.rms_norm(kv, &self.norm, self.norm_eps));
        }
        for spans in [&mut spans.absorbed, &mut spans.materialized] {
            b.append_norm(spans, kv, &self.norm, self.norm_eps); // k_pe passes through
        }
        match (&mut spans.absorbed[..], &mut spans.materialized[..]) {
            (spans, []) => self.absorbed(b, q, spans),
            ([], spans) => self.materialized(b, q, spans),
            (few, many) => {
                let mut o = self.absorbed(b, q, few); // zero in the rows of the other spans
                b.add(&mut o, &self.materialized(b, q, many));
                o
            }
        }
    }

    /// `[token, head * (nope + pe)] -> [token, head * value]`
    fn absorbed(&self, b: &B, q: &B::Tensor, spans: &mut [Span<'_, B::Cache>]) -> B::Tensor {
        let q = b.matmul_heads(&self.k_b, q); // [token, head * (latent + pe)]
        let o = b.latent_attention(spans, &q, self.latent, self.scale); // [token, head * latent]
        b.matmul_heads(&self.v_b, &o)
    }

    fn materialized(&self, b: &B, q: &B::Tensor, spans: &mut [Span<'_, B::Cache>]) -> B::Tensor {
        let w = KvUpProjection { k: &self.k_b, v: &self.v_b, latent: self.latent };
        b.materialized_attention(spans, q, w, self.scale)
    }
}
