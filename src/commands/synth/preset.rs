//! The presets of `kimi synth`, as the `config.json` of a checkpoint with each shape.

use anyhow::{Context as _, Result, bail};
use convert::config::CheckpointConfig;
use serde_json::{Value, json};

/// A model shape that `synth` can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// Kimi-Linear-48B-A3B: 27 layers
    #[value(name = "48b")]
    Real,
    /// The first five layers of 48b: 4 KDA, 1 MLA
    #[value(name = "48b-5l")]
    FiveLayers,
    /// The 48b with MLA in every layer, for comparison with the hybrid
    #[value(name = "48b-mla")]
    AllMla,
    /// 8 layers of odd sizes: KDA heads of 32 that differ in number from the attention heads
    Tiny,
    /// 8 small layers with the real head sizes
    TinyD128,
    /// Kimi-Linear-REAP-35B-A3B: the 48b with 180 of its 256 experts
    #[value(name = "reap-35b")]
    Reap35b,
    /// Ling-3.0-tiny: 24 layers, 7.9B parameters
    LingTiny,
    /// Ling-3.0-flash: 42 layers and a block for multi-token prediction, 127B parameters
    LingFlash,
}

impl Preset {
    /// Returns the fields of `config.json` that differ from the real model.
    fn changes(self) -> Value {
        match self {
            Preset::Real | Preset::AllMla => json!({}),
            Preset::FiveLayers => json!({ "num_hidden_layers": 5 }),
            Preset::Reap35b => json!({ "num_experts": 180 }),
            Preset::LingTiny => json!({}),
            Preset::LingFlash => json!({
                "num_hidden_layers": 42, "num_nextn_predict_layers": 1, "layer_group_size": 6, "hidden_size": 2560,
                "num_attention_heads": 32, "q_lora_rank": null, "first_k_dense_replace": 2,
                "intermediate_size": 6144, "moe_intermediate_size": 768, "moe_shared_expert_intermediate_size": 768,
                "num_experts": 512,
            }),
            Preset::Tiny => json!({
                "num_hidden_layers": 8, "hidden_size": 192, "num_attention_heads": 6, "vocab_size": 1536,
                "intermediate_size": 320, "moe_intermediate_size": 96, "num_experts": 16,
                "num_experts_per_token": 4, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
                "qk_rope_head_dim": 16, "v_head_dim": 32, "kda_heads": 4, "kda_dim": 32,
                "model_max_length": 4096,
            }),
            Preset::TinyD128 => json!({
                "num_hidden_layers": 8, "hidden_size": 256, "num_attention_heads": 2, "vocab_size": 1024,
                "intermediate_size": 512, "moe_intermediate_size": 256, "num_experts": 16,
                "kda_heads": 2, "model_max_length": 4096,
            }),
        }
    }

    /// Returns the model name in the metadata.
    pub fn model_name(self) -> &'static str {
        match self {
            Preset::Real => "synthetic-48b",
            Preset::FiveLayers => "synthetic-48b-5l",
            Preset::AllMla => "synthetic-48b-mla",
            Preset::Tiny => "synthetic-tiny",
            Preset::TinyD128 => "synthetic-tiny-d128",
            Preset::Reap35b => "synthetic-reap-35b",
            Preset::LingTiny => "synthetic-ling-tiny",
            Preset::LingFlash => "synthetic-ling-flash",
        }
    }

    fn is_ling(self) -> bool {
        matches!(self, Preset::LingTiny | Preset::LingFlash)
    }

    /// Creates a GGUF of this shape with tensor infos but without weights.
    #[cfg(test)]
    pub fn metadata_only(self) -> models::gguf::read::Gguf {
        let config = config(self, None, &[]).unwrap();
        let mix = convert::Mix::from_name("Q4_K_M").unwrap();
        let metadata = convert::metadata::metadata(&config, self.model_name(), mix);
        let layout = models::gguf::write::Layout::new(metadata, vec![]).unwrap();
        models::gguf::read::Gguf::from_bytes("x.gguf", layout.header().to_vec().into()).unwrap()
    }
}

/// The config of Kimi-Linear-48B-A3B; `kda_heads` and `kda_dim` are fields of `linear_attn_config`.
fn real() -> Value {
    json!({
        "model_type": "kimi_linear", "num_hidden_layers": 27, "hidden_size": 2304, "vocab_size": 163840,
        "num_attention_heads": 32, "kda_heads": 32, "kda_dim": 128, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "mla_use_nope": true,
        "first_k_dense_replace": 1, "intermediate_size": 9216, "moe_intermediate_size": 1024,
        "num_experts": 256, "num_experts_per_token": 8, "num_shared_experts": 1, "num_expert_group": 1,
        "topk_group": 1, "routed_scaling_factor": 2.446, "moe_renormalize": true, "rms_norm_eps": 1e-5,
        "model_max_length": 1048576,
    })
}

/// The published config of Ling-3.0-tiny.
fn ling_tiny() -> Value {
    json!({
        "architectures": ["BailingMoeV3ForCausalLM"], "model_type": "bailing_hybrid", "num_hidden_layers": 24,
        "num_nextn_predict_layers": 0, "layer_group_size": 4, "hidden_size": 1536, "vocab_size": 157_184,
        "num_attention_heads": 16, "head_dim": 128, "short_conv_kernel_size": 4, "no_kda_lora": true,
        "kda_safe_gate": true, "kda_lower_bound": -5, "q_lora_rank": 256, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "rope_theta": 6_000_000,
        "gated_attention_proj_granularity_type": "head_wise", "first_k_dense_replace": 1,
        "intermediate_size": 4608, "moe_intermediate_size": 512, "moe_shared_expert_intermediate_size": 512,
        "num_experts": 128, "num_experts_per_tok": 8, "num_shared_experts": 1, "n_group": 8, "topk_group": 4,
        "score_function": "sigmoid", "routed_scaling_factor": 2.5, "norm_topk_prob": true,
        "expert_swiglu_limit_list": null, "share_expert_swiglu_limit_list": null, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": false, "max_position_embeddings": 131_072,
    })
}

/// The hyperparameters of a preset with `NAME=VALUE` changes; what `convert` refuses is refused here.
///
/// # Errors
/// An unknown field, a value that is not JSON, sizes that contradict each other.
pub fn config(preset: Preset, layers: Option<u64>, sets: &[String]) -> Result<CheckpointConfig> {
    let mut json = if preset.is_ling() { ling_tiny() } else { real() };
    let fields = json.as_object_mut().context("the preset is an object")?;
    let changes = preset.changes();
    let changed = changes.as_object().into_iter().flatten();
    changed.for_each(|(name, value)| drop(fields.insert(name.clone(), value.clone())));
    if let Some(layers) = layers {
        fields.insert("num_hidden_layers".into(), layers.into());
    }
    for set in sets {
        let Some((name, text)) = set.split_once('=') else {
            bail!("--set: expected FIELD=VALUE, found {set}");
        };
        let Some(value) = fields.get_mut(name) else {
            let known: Vec<_> = fields.keys().map(String::as_str).collect();
            bail!("--set: expected one of {}, found {name}", known.join(", "));
        };
        *value = serde_json::from_str(text).with_context(|| format!("--set {name}: {text}"))?;
    }
    if preset.is_ling() {
        add_ids(&mut json, (157_184, [None, Some(156_895), Some(156_892)]));
        return Ok(CheckpointConfig::parse("synth", json.to_string().as_bytes())?);
    }
    let take = |name| fields[name].clone();
    let n_layers = fields["num_hidden_layers"].as_u64().unwrap_or(0).min(MAX_LAYERS);
    let (full, kda): (Vec<u64>, Vec<u64>) =
        (1..=n_layers).partition(|layer| preset == Preset::AllMla || is_full(*layer, n_layers));
    json["linear_attn_config"] = json!({
        "full_attn_layers": full, "kda_layers": kda, "num_heads": take("kda_heads"),
        "head_dim": take("kda_dim"), "short_conv_kernel_size": 4,
    });
    add_ids(&mut json, (163_840, [Some(163_584), Some(163_586), Some(163_839)]));
    Ok(CheckpointConfig::parse("synth", json.to_string().as_bytes())?)
}

/// More are refused by [`CheckpointConfig::parse`]; a bound on the lists made for it.
const MAX_LAYERS: u64 = 1 << 13;

/// Every fourth layer is MLA, and so is the 27th of the real model.
fn is_full(layer: u64, n_layers: u64) -> bool {
    layer.is_multiple_of(4) || (layer == n_layers && n_layers % 4 == 3)
}

/// The special ids: the real ones of a vocabulary as large as the `real` one, else its last.
fn add_ids(json: &mut Value, real: (u64, [Option<u64>; 3])) {
    let vocab = json["vocab_size"].as_u64().unwrap_or(0);
    let from_end = |n: u64| Some(vocab.saturating_sub(n));
    let ids = if vocab == real.0 { real.1 } else { [from_end(4), from_end(3), from_end(1)] };
    for (role, id) in ["bos", "eos", "pad"].into_iter().zip(ids) {
        json[format!("{role}_token_id")] = id.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets() {
        let mla = |preset| {
            let kinds = config(preset, None, &[]).unwrap().full_attention;
            (0..kinds.len()).filter(|i| kinds[*i]).map(|i| i + 1).collect::<Vec<_>>()
        };
        assert_eq!(mla(Preset::Real), [4, 8, 12, 16, 20, 24, 27]);
        assert_eq!(mla(Preset::FiveLayers), [4]);
        assert_eq!(mla(Preset::AllMla), (1..=27).collect::<Vec<_>>());
        assert_eq!(mla(Preset::Tiny), [4, 8]);
        assert_eq!(mla(Preset::TinyD128), [4, 8]);
        let weights = |w: &convert::names::TensorSpec| w.shape.iter().product::<u64>();
        let all = convert::names::tensor_specs(&config(Preset::Real, None, &[]).unwrap());
        assert_eq!((all.len(), all.iter().map(weights).sum::<u64>()), (610, 49_122_681_728));
        let parameters = |preset| {
            let specs = convert::names::tensor_specs(&config(preset, None, &[]).unwrap());
            specs.iter().map(weights).sum::<u64>()
        };
        // The counts of the published models; 35B is the name's rounding.
        assert_eq!(parameters(Preset::LingTiny), 7_893_392_800);
        assert_eq!(parameters(Preset::LingFlash), 127_486_405_600);
        assert_eq!(parameters(Preset::Reap35b) / 100_000_000, 351);
        assert_eq!(mla(Preset::LingFlash), [6, 12, 18, 24, 30, 36, 42, 43]);
        let ids = config(Preset::LingTiny, Some(4), &[]).unwrap();
        assert_eq!((ids.layers(), ids.bos, ids.eos, ids.pad), (4, None, Some(156_895), Some(156_892)));
    }

    #[test]
    fn changes() {
        let set = |text: &str| config(Preset::Tiny, Some(3), &[text.to_owned()]);
        let c = set("num_experts=24").unwrap();
        assert_eq!((c.layers(), c.experts, c.kda_heads), (3, 24, 4));
        assert_eq!(set("kda_heads=3").unwrap().kda_heads, 3);
        let refused = |text, start: &str| {
            let error = set(text).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        };
        refused("x", "--set: expected FIELD=VALUE, found x");
        refused("x=1", "--set: expected one of ");
        refused("num_experts=many", "--set num_experts: many");
        refused("num_experts=0", "synth: num_experts: expected a whole number from 1 to ");
    }
}
