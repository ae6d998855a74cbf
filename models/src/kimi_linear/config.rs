//! Reads and validates hyperparameters from a file's metadata (prefix `kimi-linear.`).
//!
//! Next: [`super::weights`], which checks the tensors' shapes against them.

use crate::gguf::{Array, Error, Metadata, Value, read::Gguf};
use kernels::backend::{Limits, Routing};
use std::fmt::Display;
use std::ops::RangeInclusive;

/// The value of `general.architecture`, and the prefix of its keys.
pub const ARCHITECTURE: &str = "kimi-linear";

/// Largest accepted count or width: far above any model, and products of two fit in 64 bits.
const MAX_COUNT: u64 = 1 << 24;
/// Largest accepted number of layers (`block_count`).
const MAX_LAYERS: u64 = 4096;
/// Largest number of values of S, or of the convolution tails, in a layer: their bytes in all layers fit in 64 bits.
const MAX_STATE: u64 = 1 << 40;

/// Hyperparameters of a Kimi Linear model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
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
    /// Shared experts, stored as one expert of their total width.
    pub shared: usize,
    /// Hidden width of an expert.
    pub hidden: usize,
    /// Choice and weights of experts.
    pub routing: Routing,
}

impl Config {
    /// Reads the hyperparameters of an opened file. Errors name the key, the expected and the found value.
    pub fn from_gguf(file: &Gguf) -> Result<Config, Error> {
        let path = file.paths().first().map(|p| p.display().to_string()).unwrap_or_default();
        Config::from_metadata(&path, &file.metadata)
    }

    /// Reads the hyperparameters from metadata; `path` is used in messages.
    ///
    /// # Errors
    /// A missing or invalid key.
    pub fn from_metadata(path: &str, metadata: &Metadata) -> Result<Config, Error> {
        let keys = Keys { path, metadata };
        keys.architecture()?;
        let n_layers = keys.within("block_count", 1..=MAX_LAYERS)?;
        let heads = keys.count("attention.head_count")?;
        let dense_layers = keys.count_or("leading_dense_block_count", 0)?;
        Ok(Config {
            dim: keys.count("embedding_length")?,
            vocab: keys.vocab()?,
            context: keys.count("context_length")? as u64,
            norm_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            layers: keys.layers(n_layers)?,
            kda: keys.kda(heads)?,
            mla: keys.mla(heads)?,
            dense_layers,
            dense_hidden: if dense_layers > 0 { keys.count("feed_forward_length")? } else { 0 },
            moe: keys.moe()?,
        })
    }

    /// Checks the sizes against a backend's limits; `path` is used in messages.
    ///
    /// # Errors
    /// A size above its limit.
    pub fn check(&self, path: &str, limits: &Limits) -> Result<(), Error> {
        let (kda, mla, moe) = (&self.kda, &self.mla, &self.moe);
        let [has_kda, has_mla] = [MixerKind::Kda, MixerKind::Mla].map(|kind| self.count(kind) > 0);
        let has_moe = self.dense_layers < self.layers.len();
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
                Err(Error::bad(path, format_args!("{ARCHITECTURE}.{key}"), expected, found))
            }
            None => Ok(()),
        }
    }

    /// Number of layers of a kind.
    pub fn count(&self, kind: MixerKind) -> usize {
        self.layers.iter().filter(|k| **k == kind).count()
    }

    /// Values per row of the latent cache.
    pub fn cache_width(&self) -> usize {
        self.mla.latent_dim + self.mla.pe_dim
    }
}

/// Reads metadata by key without its prefix, with errors that name the key.
struct Keys<'a> {
    path: &'a str,
    metadata: &'a Metadata,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{ARCHITECTURE}.{key}"))
    }

    fn bad<T>(&self, key: &str, expected: impl Display, found: impl Display) -> Result<T, Error> {
        let place = if key.starts_with("general.") { key.into() } else { format!("{ARCHITECTURE}.{key}") };
        Err(Error::bad(self.path, place, expected, found))
    }

    fn architecture(&self) -> Result<(), Error> {
        match self.metadata.get("general.architecture") {
            Some(Value::String(name)) if name == ARCHITECTURE => Ok(()),
            other => self.bad("general.architecture", ARCHITECTURE, Value::describe(other)),
        }
    }

    fn count(&self, key: &str) -> Result<usize, Error> {
        self.within(key, 1..=MAX_COUNT)
    }

    fn within(&self, key: &str, range: RangeInclusive<u64>) -> Result<usize, Error> {
        let found = self.get(key);
        match found.and_then(Value::as_u64) {
            Some(n) if range.contains(&n) => Ok(n as usize),
            _ => {
                let expected = format!("a count from {} to {}", range.start(), range.end());
                self.bad(key, expected, Value::describe(found))
            }
        }
    }

    fn count_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        match self.get(key).map(|v| (v, v.as_u64())) {
            None => Ok(default),
            Some((_, Some(n))) if n <= MAX_COUNT => Ok(n as usize),
            Some((v, _)) => self.bad(key, format!("a count up to {MAX_COUNT}"), Value::describe(Some(v))),
        }
    }

    fn positive(&self, key: &str) -> Result<f32, Error> {
        match self.get(key) {
            Some(&Value::F32(x)) if x > 0.0 && x.is_finite() => Ok(x),
            other => self.bad(key, "a positive f32", Value::describe(other)),
        }
    }

    fn vocab(&self) -> Result<usize, Error> {
        if let Some(Value::Array(Array::String(tokens))) = self.metadata.get("tokenizer.ggml.tokens") {
            return Ok(tokens.len());
        }
        self.count("vocab_size")
    }

    /// Reads the kind of each layer from `attention.head_count_kv`, an array with 0 for KDA.
    fn layers(&self, n_layers: usize) -> Result<Vec<MixerKind>, Error> {
        let key = "attention.head_count_kv";
        let found = self.get(key);
        let Some(Value::Array(array)) = found else {
            return self.bad(key, format!("an array of {n_layers} integers"), Value::describe(found));
        };
        let zeros: Vec<bool> = match array {
            Array::I32(a) => a.iter().map(|n| *n == 0).collect(),
            Array::U32(a) => a.iter().map(|n| *n == 0).collect(),
            _ => return self.bad(key, "an array of i32", Value::describe(found)),
        };
        if zeros.len() != n_layers {
            return self.bad(key, format!("{n_layers} entries (block_count)"), zeros.len());
        }
        Ok(zeros.iter().map(|kda| if *kda { MixerKind::Kda } else { MixerKind::Mla }).collect())
    }

    fn kda(&self, attention_heads: usize) -> Result<KdaConfig, Error> {
        let heads = match self.get("kda.head_count") {
            None => attention_heads,
            Some(_) => self.count("kda.head_count")?,
        };
        let (head_dim, conv_taps) = (self.count("kda.head_dim")?, self.count("ssm.conv_kernel")?);
        let width = heads * head_dim; // factors below 2^24 do not overflow
        for (key, rows) in [("kda.head_dim", head_dim), ("ssm.conv_kernel", conv_taps)] {
            if (width as u64).saturating_mul(rows as u64) > MAX_STATE {
                let expected = format!("at most {MAX_STATE} values in a layer's state");
                return self.bad(key, expected, format!("{rows} rows of {heads} heads of {head_dim}"));
            }
        }
        Ok(KdaConfig { heads, head_dim, conv_taps })
    }

    /// Reads the MLA sizes; the file holds sums: key_length_mla = nope + pe, key_length = latent + pe.
    fn mla(&self, heads: usize) -> Result<MlaConfig, Error> {
        let latent_dim = self.count("attention.kv_lora_rank")?;
        let pe_dim = self.count_or("rope.dimension_count", 64)?;
        let key = self.count("attention.key_length_mla")?;
        let Some(nope_dim) = key.checked_sub(pe_dim).filter(|n| *n > 0) else {
            let expected = format!("more than rope.dimension_count ({pe_dim})");
            return self.bad("attention.key_length_mla", expected, key);
        };
        // Older files, which hold `attn_kv_b`, have the width of a key instead of that of a cache row.
        let row = self.count_or("attention.key_length", latent_dim + pe_dim)?;
        if ![latent_dim + pe_dim, key].contains(&row) {
            let expected = format!("kv_lora_rank + rope.dimension_count = {}", latent_dim + pe_dim);
            return self.bad("attention.key_length", expected, row);
        }
        let value_dim = self.count("attention.value_length_mla")?;
        Ok(MlaConfig { heads, nope_dim, pe_dim, value_dim, latent_dim })
    }

    fn moe(&self) -> Result<MoeConfig, Error> {
        let experts = self.count("expert_count")?;
        let groups = self.count_or("expert_group_count", 1)?.max(1);
        let routing = Routing {
            top_k: self.count("expert_used_count")?,
            groups,
            top_groups: self.count_or("expert_group_used_count", groups)?.clamp(1, groups),
            normalize: !matches!(self.get("expert_weights_norm"), Some(Value::Bool(false))),
            scale: match self.get("expert_weights_scale") {
                None => 1.0,
                Some(_) => self.positive("expert_weights_scale")?,
            },
        };
        if self.count("expert_gating_func")? != 2 {
            let found = Value::describe(self.get("expert_gating_func"));
            return self.bad("expert_gating_func", "2 (sigmoid)", found);
        }
        if experts % groups != 0 {
            return self.bad("expert_group_count", format!("a divisor of {experts}"), groups);
        }
        let eligible = experts / groups * routing.top_groups;
        if routing.top_k > eligible {
            return self.bad("expert_used_count", format!("at most {eligible}"), routing.top_k);
        }
        let shared = self.count_or("expert_shared_count", 0)?;
        Ok(MoeConfig { experts, shared, hidden: self.expert_hidden()?, routing })
    }

    /// Reads one width, or an array of one per layer whose entries are equal in the layers with experts.
    fn expert_hidden(&self) -> Result<usize, Error> {
        let key = "expert_feed_forward_length";
        let widths = match self.get(key) {
            Some(Value::Array(Array::U32(a))) => a.clone(),
            Some(Value::Array(Array::I32(a))) => a.iter().map(|n| (*n).max(0) as u32).collect(),
            _ => return self.count(key),
        };
        let mut widths = widths.into_iter().filter(|w| *w > 0);
        let first = widths.next().unwrap_or(0);
        if first == 0 || u64::from(first) > MAX_COUNT || widths.any(|w| w != first) {
            return self.bad(key, "the same positive width in each layer", Value::describe(self.get(key)));
        }
        Ok(first as usize)
    }
}
