//! Implements multi-head latent attention with rotary positions and gated heads, as Ling has it.
//!
//! q = W_q x, or W_q,b RMSNorm(W_q,a x);   [c | k_pe] = W_kv_a x;   c = RMSNorm(c);   q_pe and k_pe rotate by position
//! y = W_o (attention(q, [c | k_pe])_h * sigmoid((W_gate x)_h)), one gate per head h
//!
//! The cache holds rotated keys. Next: [`crate::hybrid::mla`], the attention.

use super::Ling;
use crate::gguf::Error;
use crate::hybrid::LayerProbe;
use crate::hybrid::mla::{LatentAttention, MlaMixer, MlaSpans};
use crate::hybrid::weights::Loader;
use kernels::backend::{Backend, Residual, Rope};

/// The weights of one MLA layer.
pub struct RotaryMla<B: Backend> {
    queries: Queries<B>,
    kv_a: B::Weight,
    gate: B::Weight,
    attention: LatentAttention<B>,
    out: B::Weight,
    rope: Rope,
    norm_eps: f32,
}

/// The projection of the queries.
enum Queries<B: Backend> {
    /// One matrix of full rank.
    Full(B::Weight),
    /// Two matrices with a norm between them (`q_lora_rank`).
    LowRank { down: B::Weight, norm: B::Weight, up: B::Weight },
}

impl<B: Backend> RotaryMla<B> {
    /// Loads the MLA weights of a layer.
    pub fn load(from: &Loader<'_, B>, ling: &Ling) -> Result<Self, Error> {
        let (c, dim, m) = (&ling.config, ling.config.dim, &ling.config.mla);
        let width = m.heads * (m.nope_dim + m.pe_dim);
        Ok(RotaryMla {
            queries: match ling.query_rank {
                None => Queries::Full(from.matrix("attn_q.weight", dim, width)?),
                Some(rank) => Queries::LowRank {
                    down: from.matrix("attn_q_a.weight", dim, rank)?,
                    norm: from.vector("attn_q_a_norm.weight", rank)?,
                    up: from.matrix("attn_q_b.weight", rank, width)?,
                },
            },
            kv_a: from.matrix("attn_kv_a_mqa.weight", dim, m.latent_dim + m.pe_dim)?,
            gate: from.matrix("attn_gate.weight", dim, m.heads)?,
            attention: LatentAttention::load(from, c, c.norm_eps)?,
            out: from.matrix("attn_output.weight", m.heads * m.value_dim, dim)?,
            rope: ling.rope,
            norm_eps: c.norm_eps,
        })
    }

    /// Queries `[token, head * (nope + pe)]`, cache rows `[token, latent + pe]` and gates `[token, head]`.
    fn project(&self, b: &B, x: &B::Tensor) -> [B::Tensor; 3] {
        match &self.queries {
            Queries::Full(q) => b.matmuls([q, &self.kv_a, &self.gate], x),
            Queries::LowRank { down, norm, up } => {
                let [q, kv, gate] = b.matmuls([down, &self.kv_a, &self.gate], x);
                [b.matmul(up, &b.rms_norm(&q, norm, self.norm_eps)), kv, gate]
            }
        }
    }
}

impl<B: Backend> MlaMixer<B> for RotaryMla<B> {
    fn forward(
        &self,
        b: &B,
        x: &B::Tensor,
        spans: &mut MlaSpans<'_, B>,
        probe: &mut LayerProbe<'_, B>,
        to: Residual<'_, B::Tensor, B::Weight>,
    ) -> B::Tensor {
        let [mut q, mut kv, gate] = self.project(b, x);
        b.rotate(&mut spans.absorbed, &mut q, &mut kv, self.rope);
        b.rotate(&mut spans.materialized, &mut q, &mut kv, self.rope);
        let o = self.attention.forward(b, &q, &kv, spans, probe);
        b.matmul_add_norm(&self.out, &b.gate_heads(o, &gate), to)
    }
}
