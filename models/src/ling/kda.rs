//! Implements the projections of Kimi Delta Attention in Ling: decay and output gate have full rank, and the decay is
//! bounded.
//!
//! q, k, v = W_q x, W_k x, W_v x;   beta = sigmoid(W_beta x);   gate = W_g x
//! g = bound * sigmoid(exp(A_log) (W_f x + dt_bias)): one log-decay per key channel, between bound < 0 and 0
//!
//! Next: [`crate::hybrid::kda`], the recurrence; then [`super::mla`].

use super::Ling;
use crate::gguf::Error;
use crate::hybrid::kda::{KdaMixer, Recurrence};
use crate::hybrid::weights::Loader;
use kernels::backend::{Backend, Decay, DeltaProjections};

/// The weights of one KDA layer.
pub struct BoundedKda<B: Backend> {
    q: B::Weight,
    k: B::Weight,
    v: B::Weight,
    decay: B::Weight, // ssm_f_a
    beta: B::Weight,
    gate: B::Weight, // ssm_g_a
    recurrence: Recurrence<B>,
}

impl<B: Backend> BoundedKda<B> {
    /// Loads the KDA weights of a layer.
    pub fn load(from: &Loader<'_, B>, ling: &Ling) -> Result<Self, Error> {
        let (c, dim) = (&ling.config, ling.config.dim);
        let width = c.kda.heads * c.kda.head_dim;
        let [wq, wk, wv] = from.qkv(dim, width)?;
        Ok(BoundedKda {
            q: wq,
            k: wk,
            v: wv,
            decay: from.matrix("ssm_f_a.weight", dim, width)?,
            beta: from.matrix("ssm_beta.weight", dim, c.kda.heads)?,
            gate: from.matrix("ssm_g_a.weight", dim, width)?,
            recurrence: Recurrence::load(from, c, Decay::Bounded(ling.decay_bound))?,
        })
    }
}

impl<B: Backend> KdaMixer<B> for BoundedKda<B> {
    fn project(&self, b: &B, x: &B::Tensor) -> DeltaProjections<B::Tensor> {
        let [q, k, v, f, gate, beta] =
            b.matmuls([&self.q, &self.k, &self.v, &self.decay, &self.gate, &self.beta], x);
        DeltaProjections { q, k, v, f, beta, gate }
    }

    fn recurrence(&self) -> &Recurrence<B> {
        &self.recurrence
    }
}
