//! Implements the feed-forward layers: a gated MLP, or a mixture of experts with sigmoid routing and a shared expert.
//!
//! MLP(x) = W_down (SiLU(W_gate x) * W_up x), with a limit on both factors in some models;   MoE(x) = MLP_shared(x) + sum_e w_e MLP_e(x)
//!
//! `Backend::route` chooses the experts. Next: [`super::state`].

use super::config::{Config, FfnLimits};
use super::weights::Loader;
use super::{Backend, LayerProbe};
use crate::gguf::Error;
use kernels::backend::{GatedMlp, Residual, Routing};

/// The feed-forward part of a layer.
pub enum Ffn<B: Backend> {
    /// A plain MLP, in the first layers.
    Dense(Mlp<B>),
    /// A mixture of experts, in all other layers.
    Moe(Box<Moe<B>>),
}

/// A gated MLP, or a stack of them.
pub struct Mlp<B: Backend> {
    gate: B::Weight,
    up: B::Weight,
    down: B::Weight,
    limit: f32,
}

/// A mixture of experts: the router, stacked routed experts, and the shared one if any.
pub struct Moe<B: Backend> {
    router: B::Weight,
    bias: B::Weight,
    routing: Routing,
    experts: Mlp<B>,
    shared: Option<Mlp<B>>,
}

impl<B: Backend> Ffn<B> {
    /// Adds the output to the residual stream; returns its norm. `[token, dim] -> [token, dim]`
    pub fn forward(
        &self,
        b: &B,
        x: &B::Tensor,
        probe: &mut LayerProbe<'_, B>,
        to: Residual<'_, B::Tensor, B::Weight>,
    ) -> B::Tensor {
        match self {
            Ffn::Dense(mlp) => b.gated_ffn_add_norm(mlp.weights(), x, to),
            Ffn::Moe(moe) => moe.forward(b, x, probe, to),
        }
    }
}

impl<B: Backend> Mlp<B> {
    /// Loads the tensors `{prefix}_gate{suffix}.weight`, `_up` and `_down` of a layer.
    pub fn load(
        from: &Loader<'_, B>,
        prefix: &str,
        suffix: &str,
        [dim, hidden]: [usize; 2],
        limit: f32,
    ) -> Result<Self, Error> {
        Ok(Mlp {
            gate: from.matrix(&format!("{prefix}_gate{suffix}.weight"), dim, hidden)?,
            up: from.matrix(&format!("{prefix}_up{suffix}.weight"), dim, hidden)?,
            down: from.matrix(&format!("{prefix}_down{suffix}.weight"), hidden, dim)?,
            limit,
        })
    }

    fn load_experts(from: &Loader<'_, B>, [dim, hidden, n]: [usize; 3], limit: f32) -> Result<Self, Error> {
        Ok(Mlp {
            gate: from.stack("ffn_gate_exps.weight", [dim, hidden, n])?,
            up: from.stack("ffn_up_exps.weight", [dim, hidden, n])?,
            down: from.stack("ffn_down_exps.weight", [hidden, dim, n])?,
            limit,
        })
    }

    fn weights(&self) -> GatedMlp<'_, B::Weight> {
        GatedMlp { gate: &self.gate, up: &self.up, down: &self.down, limit: self.limit }
    }
}

impl<B: Backend> Moe<B> {
    /// Loads the mixture of a layer.
    pub fn load(from: &Loader<'_, B>, c: &Config, limits: FfnLimits) -> Result<Box<Self>, Error> {
        let (dim, m) = (c.dim, &c.moe);
        let shared = |hidden| Mlp::load(from, "ffn", "_shexp", [dim, hidden], limits.dense);
        Ok(Box::new(Moe {
            router: from.matrix("ffn_gate_inp.weight", dim, m.experts)?,
            bias: from.vector("exp_probs_b.bias", m.experts)?,
            routing: m.routing,
            experts: Mlp::load_experts(from, [dim, m.hidden, m.experts], limits.experts)?,
            shared: (m.shared_hidden > 0).then(|| shared(m.shared_hidden)).transpose()?,
        }))
    }

    /// `[token, dim] -> [token, dim]`
    fn forward(
        &self,
        b: &B,
        x: &B::Tensor,
        probe: &mut LayerProbe<'_, B>,
        to: Residual<'_, B::Tensor, B::Weight>,
    ) -> B::Tensor {
        let routed = b.matmul_route(&self.router, x, &self.bias, self.routing);
        probe.routed(&routed);
        let shared = self.shared.as_ref().map(Mlp::weights);
        b.mixture_add_norm(self.experts.weights(), shared, x, &routed, to)
    }
}
