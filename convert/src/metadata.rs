//! Builds the metadata of the file from the hyperparameters, with llama.cpp's keys, so that it loads there too.
//!
//! Two keys are specific to this project and are written only for models that llama.cpp's keys cannot express. Next:
//! `vocabulary`, which adds the tokenizer's keys.

use crate::config::{CheckpointConfig, Family, LingConfig};
use crate::mix::Mix;
use models::gguf::{Array, Metadata, Value};
use models::{kimi_linear, ling};

/// Value of `general.quantization_version` for ggml's current block layouts.
const QUANTIZATION_VERSION: u32 = 2;

/// Sets the keys that describe the mix.
pub fn set_mix(metadata: &mut Metadata, mix: Mix) {
    metadata.set("general.file_type", Value::U32(mix.file_type()));
    metadata.set("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
}

/// The keys of a checkpoint called `name`: `general.` and those of its architecture.
pub fn metadata(c: &CheckpointConfig, name: &str, mix: Mix) -> Metadata {
    let text = |s: &str| Value::String(s.to_owned());
    let mut m = Metadata::default();
    let architecture = match c.family {
        Family::KimiLinear => kimi_linear::ARCHITECTURE,
        Family::Ling(_) => ling::ARCHITECTURE,
    };
    m.set("general.architecture", text(architecture));
    m.set("general.type", text("model"));
    m.set("general.name", text(name));
    set_mix(&mut m, mix);
    for (key, number) in counts(c) {
        m.set(
            &format!("{architecture}.{key}"),
            Value::U32(u32::try_from(number).expect("bounded by CheckpointConfig::parse")),
        );
    }
    let floats = [
        ("attention.layer_norm_rms_epsilon", c.eps),
        ("expert_weights_scale", c.expert_scale),
        ("rope.freq_base", c.rope_theta),
    ];
    for (key, number) in floats {
        m.set(&format!("{architecture}.{key}"), Value::F32(number));
    }
    m.set(&format!("{architecture}.expert_weights_norm"), Value::Bool(c.expert_normalize));
    // Zero marks a KDA layer; the latent of an MLA layer is one head wide.
    let kv_heads = c.full_attention.iter().map(|full| i32::from(*full)).collect();
    m.set(&format!("{architecture}.attention.head_count_kv"), Value::Array(Array::I32(kv_heads)));
    if let Family::Ling(ling) = &c.family {
        set_ling(&mut m, architecture, ling);
    }
    m
}

fn set_ling(m: &mut Metadata, architecture: &str, ling: &LingConfig) {
    let mut set = |key: &str, value| m.set(&format!("{architecture}.{key}"), value);
    set("kda.safe_gate", Value::Bool(true));
    set("kda.gate_lower_bound", Value::F32(ling.gate_lower_bound));
    let count = |n: u64| Value::U32(u32::try_from(n).expect("bounded by CheckpointConfig::parse"));
    set("expert_shared_feed_forward_length", count(ling.shared_intermediate));
    if let Some(rank) = ling.q_lora {
        set("attention.q_lora_rank", count(rank));
    }
    if ling.mtp_blocks > 0 {
        set("nextn_predict_layers", count(ling.mtp_blocks));
    }
    for (key, limits) in
        [("swiglu_clamp_exp", &ling.expert_clamp), ("swiglu_clamp_shexp", &ling.shared_clamp)]
    {
        if !limits.is_empty() {
            set(key, Value::Array(Array::F32(limits.clone())));
        }
    }
}

fn counts(c: &CheckpointConfig) -> Vec<(&'static str, u64)> {
    let mut counts = vec![
        ("vocab_size", c.vocab),
        ("context_length", c.context),
        ("embedding_length", c.hidden),
        ("block_count", c.layers()),
        ("feed_forward_length", c.intermediate),
        ("leading_dense_block_count", c.dense_layers),
        ("attention.head_count", c.heads),
        ("attention.key_length", c.kv_lora + c.rope),
        // The latent's width, which block formats divide; llama.cpp refuses a quantized cache otherwise.
        ("attention.value_length", c.kv_lora),
        ("attention.key_length_mla", c.nope + c.rope),
        ("attention.value_length_mla", c.v_dim),
        ("attention.kv_lora_rank", c.kv_lora),
        ("rope.dimension_count", c.rope),
        ("ssm.conv_kernel", c.conv),
        ("kda.head_dim", c.kda_dim),
        ("expert_count", c.experts),
        ("expert_used_count", c.experts_used),
        ("expert_shared_count", c.experts_shared),
        ("expert_feed_forward_length", c.expert_intermediate),
        ("expert_gating_func", 2),
        ("expert_group_used_count", c.expert_groups_used),
    ];
    if c.expert_groups > 1 {
        counts.push(("expert_group_count", c.expert_groups));
    }
    if c.kda_heads != c.heads {
        counts.push(("kda.head_count", c.kda_heads));
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ling::tests::parsed;
    use crate::config::tests::{OFFICIAL, with};
    use serde_json::json;

    fn of(text: &str) -> Metadata {
        metadata(
            &CheckpointConfig::parse("c", text.as_bytes()).unwrap(),
            "n",
            Mix::from_name("Q4_K_M").unwrap(),
        )
    }

    #[test]
    fn official() {
        let m = of(OFFICIAL);
        let number = |key: &str| match m.get(key) {
            Some(Value::U32(n)) => *n,
            other => panic!("{key}: {other:?}"),
        };
        assert_eq!(number("kimi-linear.attention.key_length"), 576);
        assert_eq!(number("kimi-linear.attention.value_length"), 512);
        assert_eq!(number("kimi-linear.attention.key_length_mla"), 192);
        assert_eq!(number("kimi-linear.context_length"), 1 << 20);
        assert_eq!(number("general.file_type"), 15);
        assert_eq!(m.get("kimi-linear.expert_weights_scale"), Some(&Value::F32(2.446)));
        assert_eq!(m.get("kimi-linear.kda.head_count"), None);
        assert_eq!(m.get("kimi-linear.expert_group_count"), None);
        let Some(Value::Array(Array::I32(kinds))) = m.get("kimi-linear.attention.head_count_kv") else {
            panic!()
        };
        assert_eq!((kinds.len(), kinds.iter().sum::<i32>(), kinds[3], kinds[26]), (27, 7, 1, 1));
    }

    #[test]
    fn ling_has_keys_of_its_own() {
        let fields = json!({"num_nextn_predict_layers": 1, "share_expert_swiglu_limit_list": [0, 5]});
        let m = metadata(&parsed(&fields).unwrap(), "n", Mix::from_name("Q4_K_M").unwrap());
        let get = |key: &str| m.get(&format!("bailingmoe3.{key}"));
        assert_eq!(get("block_count"), Some(&Value::U32(25)));
        assert_eq!(get("nextn_predict_layers"), Some(&Value::U32(1)));
        assert_eq!(get("attention.q_lora_rank"), Some(&Value::U32(256)));
        assert_eq!(get("kda.gate_lower_bound"), Some(&Value::F32(-5.0)));
        assert_eq!(get("expert_group_used_count"), Some(&Value::U32(4)));
        assert_eq!(get("swiglu_clamp_exp"), None);
        let Some(Value::Array(Array::F32(limits))) = get("swiglu_clamp_shexp") else { panic!() };
        assert_eq!((limits.len(), &limits[..3]), (25, &[0.0, 5.0, 0.0][..]));
        let Some(Value::Array(Array::I32(kinds))) = get("attention.head_count_kv") else { panic!() };
        assert_eq!((kinds.len(), kinds.iter().sum::<i32>(), kinds[24]), (25, 7, 1));
    }

    #[test]
    fn project_keys_only_if_needed() {
        let m = of(&with("/linear_attn_config/num_heads", 16.into()));
        assert_eq!(m.get("kimi-linear.kda.head_count"), Some(&Value::U32(16)));
        let mut grouped: serde_json::Value = serde_json::from_str(OFFICIAL).unwrap();
        grouped["num_expert_group"] = 8.into();
        grouped["topk_group"] = 4.into();
        let m = of(&grouped.to_string());
        assert_eq!(m.get("kimi-linear.expert_group_count"), Some(&Value::U32(8)));
        assert_eq!(m.get("kimi-linear.expert_group_used_count"), Some(&Value::U32(4)));
    }
}
