//! Defines the hyperparameters that the models have in common: all sizes of weights, states and caches.
//!
//! `kimi_linear` and `ling` read them from a file by [`super::keys`]. Next: [`super::weights`], which checks the tensors'
//! shapes against them.

use crate::gguf::Error;
use kernels::backend::{Limits, Routing};

/// Hyperparameters of a model whose layers are KDA or MLA.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The value of `general.architecture`, and the prefix of its keys.
    pub architecture: &'static str,
    /// Width of the residual stream (`embedding_length`).
    pub dim: usize,
    /// Number of token ids: the length of `tokenizer.ggml.tokens`, else `vocab_size`.
    pub vocab: usize,
    /// Context length in training (`context_length`).
    pub context: u64,
    /// Epsilon of the RMS norms.
    pub norm_eps: f32,
    /// Mixer of each layer, from `attention.head_count_kv`, in which 0 means KDA.
    pub layers: Vec<MixerKind>,
    /// Sizes of the KDA layers.
    pub kda: KdaConfig,
    /// Sizes of the MLA layers.
    pub mla: MlaConfig,
    /// Number of leading layers with a plain MLP.
    pub dense_layers: usize,
    /// Hidden width of these MLPs.
    pub dense_hidden: usize,
    /// Sizes of the mixture in the other layers.
    pub moe: MoeConfig,
    /// Limits of the feed-forward part of each layer, and of the block after them.
    pub ffn_limits: Vec<FfnLimits>,
    /// Whether a block after the layers, MLA with a mixture, predicts further tokens (`nextn_predict_layers`).
    pub mtp: bool,
}

/// Limits on the two factors of gated MLPs (`GatedMlp::limit`): infinity where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FfnLimits {
    /// Limit of routed experts (`swiglu_clamp_exp`).
    pub experts: f32,
    /// Limit of the shared expert and of a layer's plain MLP (`swiglu_clamp_shexp`).
    pub dense: f32,
}

impl FfnLimits {
    /// The limits of a model that clamps nothing.
    pub const NONE: FfnLimits = FfnLimits { experts: f32::INFINITY, dense: f32::INFINITY };
}

/// The token mixer of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixerKind {
    /// Kimi Delta Attention, whose state has constant size.
    Kda,
    /// Multi-head latent attention, whose KV cache grows with each token.
    Mla,
}

/// Sizes of a KDA layer.
#[derive(Clone, Debug, PartialEq)]
pub struct KdaConfig {
    /// Heads; the number may differ from that of the attention heads.
    pub heads: usize,
    /// Channels per head, dk = dv.
    pub head_dim: usize,
    /// Taps of the short convolutions.
    pub conv_taps: usize,
}

/// Sizes of an MLA layer.
#[derive(Clone, Debug, PartialEq)]
pub struct MlaConfig {
    /// Number of query heads (`attention.head_count`).
    pub heads: usize,
    /// Channels per head that come from the latent.
    pub nope_dim: usize,
    /// Channels of the key that all heads share.
    pub pe_dim: usize,
    /// Channels per value head (`attention.value_length_mla`).
    pub value_dim: usize,
    /// Width of the latent (`kv_lora_rank`).
    pub latent_dim: usize,
}

/// Sizes of a mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// Number of routed experts (`expert_count`).
    pub experts: usize,
    /// Hidden width of a routed expert.
    pub hidden: usize,
    /// Hidden width of the shared experts, which are stored as one; 0 without them.
    pub shared_hidden: usize,
    /// Choice and weights of experts.
    pub routing: Routing,
}

impl Config {
    /// Checks the sizes against a backend's limits; `path` is used in messages.
    ///
    /// # Errors
    /// A size above its limit.
    pub fn check(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        let (kda, mla, moe) = (&self.kda, &self.mla, &self.moe);
        let [has_kda, has_mla] = [MixerKind::Kda, MixerKind::Mla].map(|kind| self.count(kind) > 0);
        let (has_mla, has_moe) = (has_mla || self.mtp, self.dense_layers < self.layers.len() || self.mtp);
        let sizes = [
            (has_kda, "kda.head_count", kda.heads, limits.delta_heads),
            (has_kda, "kda.head_dim", kda.head_dim, limits.delta_keys),
            (has_kda, "ssm.conv_kernel", kda.conv_taps, limits.taps),
            (has_mla, "attention.kv_lora_rank", mla.latent_dim, limits.latent),
            (has_mla, "attention.key_length", self.cache_width(), limits.cache_width),
            (has_moe, "expert_count", moe.experts, limits.experts),
            (has_moe, "expert_group_count", moe.routing.groups, limits.groups),
            (has_moe, "expert_used_count", moe.routing.top_k, limits.top_k),
        ];
        match sizes.into_iter().find(|(used, _, found, most)| *used && found > most) {
            Some((_, key, found, most)) => {
                let expected = format!("at most {most} on this device");
                Err(Error::bad(path, format_args!("{}.{key}", self.architecture), expected, found))
            }
            None => Ok(()),
        }
    }

    /// Number of layers of a kind.
    pub fn count(&self, kind: MixerKind) -> usize {
        self.layers.iter().filter(|k| **k == kind).count()
    }

    /// Number of KV caches of a sequence: one for each MLA layer, and one for the block that predicts further tokens.
    pub fn caches(&self) -> usize {
        self.count(MixerKind::Mla) + usize::from(self.mtp)
    }

    /// Values per row of the latent cache.
    pub fn cache_width(&self) -> usize {
        self.mla.latent_dim + self.mla.pe_dim
    }
}
