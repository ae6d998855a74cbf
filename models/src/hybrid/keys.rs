//! Reads hyperparameters by key, with errors that name the key, the expected and the found value.
//!
//! The keys here are those that `kimi-linear` and `bailingmoe3` share. Next: [`super::config`].

use super::config::{Config, FfnLimits, KdaConfig, MixerKind, MlaConfig, MoeConfig};
use crate::gguf::{Array, Error, Metadata, Value};
use kernels::backend::Routing;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// Largest accepted count or width: far above any model, and products of two fit in 64 bits.
const MAX_COUNT: u64 = 1 << 24;
/// Largest accepted number of layers (`block_count`).
const MAX_LAYERS: u64 = 4096;
/// Largest number of values of S, or of the convolution tails, in a layer: their bytes in all layers fit in 64 bits.
const MAX_STATE: u64 = 1 << 40;

/// Reads metadata by key without its prefix.
pub(crate) struct Keys<'a> {
    /// Path of the file, for messages.
    pub path: &'a str,
    /// Metadata that holds the keys.
    pub metadata: &'a Metadata,
    /// The value of `general.architecture`, which is the prefix of the keys.
    pub architecture: &'static str,
}

impl Keys<'_> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    /// The error of a key's value.
    pub fn bad<T>(&self, key: &str, expected: impl Display, found: impl Display) -> Result<T, Error> {
        Err(Error::bad(self.path, format_args!("{}.{key}", self.architecture), expected, found))
    }

    /// Reads the hyperparameters of a model with `n_layers` layers and `kda_heads` heads in its KDA layers.
    pub fn config(&self, n_layers: usize, kda_heads: usize, shared_hidden: usize) -> Result<Config, Error> {
        let dense_layers = self.count_or("leading_dense_block_count", 0)?;
        Ok(Config {
            architecture: self.architecture,
            dim: self.count("embedding_length")?,
            vocab: self.vocab()?,
            context: self.count("context_length")? as u64,
            norm_eps: self.positive("attention.layer_norm_rms_epsilon")?,
            layers: self.layers(n_layers)?,
            kda: self.kda(kda_heads)?,
            mla: self.mla()?,
            dense_layers,
            dense_hidden: if dense_layers > 0 { self.count("feed_forward_length")? } else { 0 },
            moe: self.moe(shared_hidden)?,
            ffn_limits: vec![FfnLimits::NONE; n_layers],
            mtp: false,
        })
    }

    /// Reads `block_count`: the layers, and blocks that predict further tokens.
    pub fn block_count(&self) -> Result<usize, Error> {
        self.within("block_count", 1..=MAX_LAYERS)
    }

    /// Reads a count of at least 1.
    pub fn count(&self, key: &str) -> Result<usize, Error> {
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

    /// Reads a count, which may be 0 or missing.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        match self.get(key).map(|v| (v, v.as_u64())) {
            None => Ok(default),
            Some((_, Some(n))) if n <= MAX_COUNT => Ok(n as usize),
            Some((v, _)) => self.bad(key, format!("a count up to {MAX_COUNT}"), Value::describe(Some(v))),
        }
    }

    /// Reads a finite f32 above 0.
    pub fn positive(&self, key: &str) -> Result<f32, Error> {
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

    /// Reads the kind of each layer from `attention.head_count_kv`, an array of one entry per block with 0 for KDA. Blocks
    /// after the layers, which predict further tokens, have entries too.
    fn layers(&self, n_layers: usize) -> Result<Vec<MixerKind>, Error> {
        let (key, blocks) = ("attention.head_count_kv", self.block_count()?);
        let found = self.get(key);
        let Some(Value::Array(array)) = found else {
            return self.bad(key, format!("an array of {blocks} integers"), Value::describe(found));
        };
        let zeros: Vec<bool> = match array {
            Array::I32(a) => a.iter().map(|n| *n == 0).collect(),
            Array::U32(a) => a.iter().map(|n| *n == 0).collect(),
            _ => return self.bad(key, "an array of i32", Value::describe(found)),
        };
        if zeros.len() != blocks {
            return self.bad(key, format!("{blocks} entries (block_count)"), zeros.len());
        }
        Ok(zeros
            .iter()
            .take(n_layers)
            .map(|kda| if *kda { MixerKind::Kda } else { MixerKind::Mla })
            .collect())
    }

    fn kda(&self, heads: usize) -> Result<KdaConfig, Error> {
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
    fn mla(&self) -> Result<MlaConfig, Error> {
        let heads = self.count("attention.head_count")?;
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

    fn moe(&self, shared_hidden: usize) -> Result<MoeConfig, Error> {
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
        Ok(MoeConfig { experts, hidden: self.expert_hidden()?, shared_hidden, routing })
    }

    /// Reads one width, or an array of one per layer whose entries are equal in the layers with experts.
    pub fn expert_hidden(&self) -> Result<usize, Error> {
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
