//! Implements multi-head latent attention without positions (NoPE), as Kimi Linear has it: the channels called "rope" are
//! used but never rotated.
//!
//! q = W_q x;   [c | k_pe] = W_kv_a x;   c = RMSNorm(c);   y = W_o attention(q, [c | k_pe])
//!
//! Next: [`crate::hybrid::mla`], the attention.

use crate::gguf::Error;
use crate::hybrid::LayerProbe;
use crate::hybrid::config::Config;
use crate::hybrid::mla::{LatentAttention, MlaMixer, MlaSpans};
use crate::hybrid::weights::Loader;
use kernels::backend::{Backend, Residual};

/// Epsilon of the latent's norm in the published code, which ignores the config's 1e-5.
const LATENT_EPS: f32 = 1e-6;

/// The weights of one MLA layer.
pub struct Mla<B: Backend> {
    q: B::Weight,
    kv_a: B::Weight,
    attention: LatentAttention<B>,
    out: B::Weight,
}

impl<B: Backend> Mla<B> {
    /// Loads the MLA weights of a layer.
    pub fn load(from: &Loader<'_, B>, c: &Config) -> Result<Self, Error> {
        let (dim, m) = (c.dim, &c.mla);
        Ok(Mla {
            attention: LatentAttention::load(from, c, LATENT_EPS)?,
            q: from.matrix("attn_q.weight", dim, m.heads * (m.nope_dim + m.pe_dim))?,
            kv_a: from.matrix("attn_kv_a_mqa.weight", dim, m.latent_dim + m.pe_dim)?,
            out: from.matrix("attn_output.weight", m.heads * m.value_dim, dim)?,
        })
    }
}

impl<B: Backend> MlaMixer<B> for Mla<B> {
    fn forward(
        &self,
        b: &B,
        x: &B::Tensor,
        spans: &mut MlaSpans<'_, B>,
        probe: &mut LayerProbe<'_, B>,
        to: Residual<'_, B::Tensor, B::Weight>,
    ) -> B::Tensor {
        let [q, kv] = b.matmuls([&self.q, &self.kv_a], x); // [token, head * (nope + pe)], [token, latent + pe]
        let o = self.attention.forward(b, &q, &kv, spans, probe);
        b.matmul_add_norm(&self.out, &o, to)
    }
}
