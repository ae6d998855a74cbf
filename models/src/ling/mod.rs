//! Defines Ling 3.0 (`BailingMoeV3ForCausalLM`, GGUF architecture `bailingmoe3`): its hyperparameters and the mixers of its
//! layers.
//!
//! It differs from Kimi Linear in the mixers: the decay of KDA is bounded and its projections have full rank; MLA rotates
//! its positional channels and gates its heads. The graph around the mixers is [`crate::hybrid`]'s, and so is the
//! block after the last layer that some files have (`nextn`), which predicts a further token. Next: [`kda`], then [`mla`].

pub mod kda;
pub mod mla;
mod text;

pub(crate) use text::TEXT;

use crate::gguf::{Array, Error, Metadata, Value, read::Gguf};
use crate::hybrid::Mixer;
use crate::hybrid::config::{Config, FfnLimits, MixerKind};
use crate::hybrid::keys::Keys;
use crate::hybrid::weights::Loader;
use kernels::backend::{Backend, Rope};

/// The value of `general.architecture`, and the prefix of its keys.
pub const ARCHITECTURE: &str = "bailingmoe3";

/// Limits up to this one mean none, as in llama.cpp.
const NO_LIMIT: f32 = 1e-6;

/// Hyperparameters of a Ling model.
pub struct Ling {
    /// Those that all architectures have.
    pub config: Config,
    /// Width of the queries' low-rank projection (`attention.q_lora_rank`); None where W_q has full rank.
    pub query_rank: Option<usize>,
    /// Rotation of the positional channels of queries and keys.
    pub rope: Rope,
    /// Bound of the log-decay of KDA, below 0 (`kda.gate_lower_bound`).
    pub decay_bound: f32,
}

impl Ling {
    /// Reads the hyperparameters of a file; `path` is used in messages.
    ///
    /// # Errors
    /// A missing or invalid key, or a variant of the architecture that is not implemented.
    pub fn from_metadata(path: &str, metadata: &Metadata) -> Result<Ling, Error> {
        let keys = Keys { path, metadata, architecture: ARCHITECTURE };
        let (blocks, predicting) = (keys.block_count()?, keys.count_or("nextn_predict_layers", 0)?);
        let Some(layers) = blocks.checked_sub(predicting).filter(|n| *n > 0) else {
            return keys.bad("nextn_predict_layers", format!("less than block_count ({blocks})"), predicting);
        };
        let heads = keys.count("attention.head_count")?;
        let shared_hidden = match keys.count_or("expert_shared_feed_forward_length", 0)? {
            0 => keys.count_or("expert_shared_count", 0)?.max(1) * keys.expert_hidden()?,
            width => width,
        };
        let mut config = keys.config(layers, heads, shared_hidden)?;
        let (experts, dense) =
            (limits(&keys, "swiglu_clamp_exp", blocks)?, limits(&keys, "swiglu_clamp_shexp", blocks)?);
        config.mtp = predicting == 1;
        config.ffn_limits =
            experts.into_iter().zip(dense).map(|(experts, dense)| FfnLimits { experts, dense }).collect();
        if let Some(found @ Value::Bool(false)) = keys.get("kda.safe_gate") {
            return keys.bad("kda.safe_gate", "true: a bounded decay", Value::describe(Some(found)));
        }
        let decay_bound = match keys.get("kda.gate_lower_bound") {
            Some(&Value::F32(bound)) if bound < 0.0 && bound.is_finite() => bound,
            other => return keys.bad("kda.gate_lower_bound", "a negative f32", Value::describe(other)),
        };
        Ok(Ling {
            query_rank: Some(keys.count_or("attention.q_lora_rank", 0)?).filter(|rank| *rank > 0),
            rope: rope(&keys, &config)?,
            decay_bound,
            config,
        })
    }

    /// The tensor that holds W_out: the embedding where the two are tied.
    pub(crate) fn output(&self, file: &Gguf) -> &'static str {
        ["output.weight", "token_embd.weight"][usize::from(file.tensor("output.weight").is_none())]
    }

    /// Loads the mixer of a layer of this kind.
    pub(crate) fn mixer<B: Backend>(&self, from: &Loader<'_, B>, kind: MixerKind) -> Result<Mixer<B>, Error> {
        Ok(match kind {
            MixerKind::Kda => Mixer::Kda(Box::new(kda::BoundedKda::load(from, self)?)),
            MixerKind::Mla => Mixer::Mla(Box::new(mla::RotaryMla::load(from, self)?)),
        })
    }
}

fn rope(keys: &Keys<'_>, c: &Config) -> Result<Rope, Error> {
    let dims = c.mla.pe_dim;
    if !dims.is_multiple_of(2) {
        return keys.bad("rope.dimension_count", "an even number", dims);
    }
    if let Some(Value::Array(Array::I32(sections))) = keys.get("rope.dimension_sections")
        && sections.iter().any(|n| *n != 0)
    {
        return keys.bad("rope.dimension_sections", "none: text has one position per token", "sections");
    }
    match keys.get("rope.scaling.type") {
        None => {}
        Some(Value::String(kind)) if kind == "none" => {}
        other => return keys.bad("rope.scaling.type", "none", Value::describe(other)),
    }
    let base = match keys.get("rope.freq_base") {
        None => 10_000.0, // GGUF's default
        Some(_) => keys.positive("rope.freq_base")?,
    };
    Ok(Rope { heads: c.mla.heads, dims, base })
}

/// Reads a limit, or one for each block.
fn limits(keys: &Keys<'_>, key: &str, blocks: usize) -> Result<Vec<f32>, Error> {
    let limit = |x: f32| if x > NO_LIMIT { x } else { f32::INFINITY };
    match keys.get(key) {
        None => Ok(vec![f32::INFINITY; blocks]),
        Some(&Value::F32(x)) if !x.is_nan() => Ok(vec![limit(x); blocks]),
        Some(Value::Array(Array::F32(a))) if a.len() == blocks && !a.iter().any(|x| x.is_nan()) => {
            Ok(a.iter().map(|x| limit(*x)).collect())
        }
        other => keys.bad(key, format!("an f32, or an array of {blocks}"), Value::describe(other)),
    }
}
