//! Implements the projections of Kimi Delta Attention in Kimi Linear: decay and output gate have low rank.
//!
//! q, k, v = W_q x, W_k x, W_v x;   beta = sigmoid(W_beta x);   gate = W_g,up W_g,down x
//! g = -exp(A_log) softplus(W_f,up W_f,down x + dt_bias): one log-decay per key channel
//!
//! Next: [`crate::hybrid::kda`], the recurrence; then [`super::mla`].

use crate::gguf::Error;
use crate::hybrid::config::Config;
use crate::hybrid::kda::{KdaMixer, Recurrence};
use crate::hybrid::weights::Loader;
use kernels::backend::{Backend, Decay, DeltaProjections};

/// The weights of one KDA layer.
pub struct Kda<B: Backend> {
    q: B::Weight,
    k: B::Weight,
    v: B::Weight,
    decay_down: B::Weight, // ssm_f_a
    decay_up: B::Weight,   // ssm_f_b
    beta: B::Weight,
    gate_down: B::Weight, // ssm_g_a
    gate_up: B::Weight,   // ssm_g_b
    recurrence: Recurrence<B>,
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
            decay_down: from.matrix("ssm_f_a.weight", dim, k.head_dim)?,
            decay_up: from.matrix("ssm_f_b.weight", k.head_dim, width)?,
            beta: from.matrix("ssm_beta.weight", dim, k.heads)?,
            gate_down: from.matrix("ssm_g_a.weight", dim, k.head_dim)?,
            gate_up: from.matrix("ssm_g_b.weight", k.head_dim, width)?,
            recurrence: Recurrence::load(from, c, Decay::Softplus)?,
        })
    }
}

impl<B: Backend> KdaMixer<B> for Kda<B> {
    fn project(&self, b: &B, x: &B::Tensor) -> DeltaProjections<B::Tensor> {
        let [q, k, v, f, gate, beta] =
            b.matmuls([&self.q, &self.k, &self.v, &self.decay_down, &self.gate_down, &self.beta], x);
        let [f, gate] = b.matmul_each([&self.decay_up, &self.gate_up], [&f, &gate]);
        DeltaProjections { q, k, v, f, beta, gate }
    }

    fn recurrence(&self) -> &Recurrence<B> {
        &self.recurrence
    }
}
