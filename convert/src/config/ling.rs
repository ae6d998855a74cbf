//! Reads the hyperparameters of a Ling 3.0 checkpoint.

use super::{CheckpointConfig, Family, Fields};
use crate::error::Result;
use serde_json::Value;

/// The hyperparameters that only Ling has.
#[derive(Clone, Debug, PartialEq)]
pub struct LingConfig {
    /// Rank of the query projection, if it has two factors.
    pub q_lora: Option<u64>,
    /// Bound of the logarithm of a step's decay, below 0.
    pub gate_lower_bound: f32,
    /// Rows of the shared expert: those of all shared experts together.
    pub shared_intermediate: u64,
    /// The embedding is the output matrix too.
    pub tied: bool,
    /// Blocks for multi-token prediction, which follow the decoder layers: 0 or 1.
    pub mtp_blocks: u64,
    /// Clamp of the routed experts' SwiGLU for each layer; 0 for none. Empty if no layer has one.
    pub expert_clamp: Vec<f32>,
    /// The same for the shared expert.
    pub shared_clamp: Vec<f32>,
}

pub(super) fn parse(c: &Fields<'_>) -> Result<CheckpointConfig> {
    refuse_variants(c)?;
    let layers = c.count("num_hidden_layers", 1..=4096)?;
    let mtp_blocks = c.count_or("num_nextn_predict_layers", 0..=1, 0)?;
    let group = c.count("layer_group_size", 1..=layers)?;
    let heads = c.count("num_attention_heads", 1..=1 << 16)?;
    let experts_shared = c.count("num_shared_experts", 1..=1 << 10)?;
    let inner = c.count("moe_intermediate_size", 1..=1 << 20)?;
    let groups = c.count_or("n_group", 1..=65536, 1)?;
    let dense_layers = c.count("first_k_dense_replace", 0..=layers)?;
    let clamps = |field| clamps(c, field, layers + mtp_blocks, dense_layers);
    // The layers after the last whole group have attention, and so has the MTP block.
    let is_full = |layer: u64| (layer + 1).is_multiple_of(group) || layer >= layers / group * group;
    Ok(CheckpointConfig {
        vocab: c.count("vocab_size", 1..=1 << 28)?,
        hidden: c.count("hidden_size", 1..=1 << 20)?,
        intermediate: c.count("intermediate_size", 1..=1 << 22)?,
        dense_layers,
        heads,
        kv_lora: c.count("kv_lora_rank", 1..=1 << 16)?,
        nope: c.count("qk_nope_head_dim", 1..=1 << 14)?,
        rope: c.count("qk_rope_head_dim", 1..=1 << 14)?,
        v_dim: c.count("v_head_dim", 1..=1 << 14)?,
        kda_heads: heads,
        kda_dim: c.count("head_dim", 1..=1 << 14)?,
        conv: c.count("short_conv_kernel_size", 1..=64)?,
        experts: c.count("num_experts", 1..=1 << 16)?,
        experts_used: c.count("num_experts_per_tok", 1..=1 << 16)?,
        experts_shared,
        expert_intermediate: inner,
        expert_groups: groups,
        expert_groups_used: if groups > 1 { c.count("topk_group", 1..=groups)? } else { 1 },
        expert_scale: c.positive("routed_scaling_factor")?,
        expert_normalize: c.flag("norm_topk_prob", true)?,
        eps: c.positive("rms_norm_eps")?,
        rope_theta: rope_theta(c)?,
        context: c.context()?,
        full_attention: (0..layers + mtp_blocks).map(is_full).collect(),
        bos: c.token("bos_token_id")?,
        eos: c.token("eos_token_id")?,
        pad: c.token("pad_token_id")?,
        fp8_block: c.quantization()?,
        family: Family::Ling(LingConfig {
            q_lora: c.get("q_lora_rank").map(|_| c.count("q_lora_rank", 1..=1 << 16)).transpose()?,
            gate_lower_bound: gate_lower_bound(c)?,
            shared_intermediate: c.count_or("moe_shared_expert_intermediate_size", 1..=1 << 20, inner)?
                * experts_shared,
            tied: c.flag("tie_word_embeddings", false)?,
            mtp_blocks,
            expert_clamp: clamps("expert_swiglu_limit_list")?,
            shared_clamp: clamps("share_expert_swiglu_limit_list")?,
        }),
    })
}

/// Refuses values that the graph does not implement.
fn refuse_variants(c: &Fields<'_>) -> Result<()> {
    let required = [
        ("no_kda_lora", Value::from(true)),
        ("gated_attention_proj_granularity_type", Value::from("head_wise")),
    ];
    for (field, value) in required {
        if c.get(field) != Some(&value) {
            return Err(c.bad(field, value, c.get(field).unwrap_or(&Value::Null)));
        }
    }
    c.refuse_others(&[
        ("hidden_act", Value::from("silu")),
        ("kda_safe_gate", Value::from(true)),
        ("rope_interleave", Value::from(true)),
        ("score_function", Value::from("sigmoid")),
        ("moe_router_enable_expert_bias", Value::from(true)),
        ("mtp_use_kda", Value::from(false)),
        ("up_proj_norm", Value::from(false)),
        ("use_bias", Value::from(false)),
        ("use_mla_nope", Value::from(false)),
        ("use_nGPT", Value::from(false)),
        ("use_qkv_bias", Value::from(false)),
        ("value_norm", Value::from(false)),
    ])?;
    match c.get("rope_scaling") {
        Some(scaling) => Err(c.bad("rope_scaling", "null", scaling)),
        None => Ok(()),
    }
}

/// The base of the rotary frequencies; newer configs have it in `rope_parameters` alone.
fn rope_theta(c: &Fields<'_>) -> Result<f32> {
    let Some(Value::Object(map)) = c.get("rope_parameters") else { return c.positive("rope_theta") };
    let inner = Fields { path: c.path, prefix: "rope_parameters.", map };
    inner.refuse_others(&[("rope_type", Value::from("default"))])?;
    inner.positive("rope_theta")
}

fn gate_lower_bound(c: &Fields<'_>) -> Result<f32> {
    let found = c.get("kda_lower_bound").unwrap_or(&Value::Null);
    match found.as_f64() {
        Some(bound) if bound < 0.0 && bound.is_finite() => Ok(bound as f32),
        _ => Err(c.bad("kda_lower_bound", "a number below 0", found)),
    }
}

/// Reads a limit per layer. Null, 0 and a list that ends early mean none; dense layers have none.
fn clamps(c: &Fields<'_>, field: &str, layers: u64, dense_layers: u64) -> Result<Vec<f32>> {
    let list = match c.get(field) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(c.bad(field, "a list of limits", other)),
    };
    let limit = |layer: u64| match list.get(layer as usize).filter(|_| layer >= dense_layers) {
        None | Some(Value::Null) => Ok(0.0),
        Some(value) => match value.as_f64() {
            Some(limit) if limit >= 0.0 && limit.is_finite() => Ok(limit as f32),
            _ => Err(c.bad(field, "limits of at least 0", value)),
        },
    };
    (0..layers).map(limit).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The published config of Ling-3.0-tiny, without fields that do not matter here.
    pub(crate) fn tiny() -> Value {
        serde_json::from_str(
            r#"{
            "architectures": ["BailingMoeV3ForCausalLM"], "model_type": "bailing_hybrid", "eos_token_id": 156895,
            "expert_swiglu_limit_list": null, "first_k_dense_replace": 1,
            "gated_attention_proj_granularity_type": "head_wise", "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 1536, "intermediate_size": 4608, "kda_lower_bound": -5, "kda_safe_gate": true,
            "kv_lora_rank": 512, "layer_group_size": 4, "max_position_embeddings": 131072,
            "moe_intermediate_size": 512, "moe_shared_expert_intermediate_size": 512, "n_group": 8,
            "no_kda_lora": true, "norm_topk_prob": true, "num_attention_heads": 16, "num_experts": 128,
            "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_nextn_predict_layers": 0,
            "num_shared_experts": 1, "pad_token_id": 156892, "partial_rotary_factor": 0.5, "q_lora_rank": 256,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_interleave": true,
            "rope_theta": 6000000, "routed_scaling_factor": 2.5, "score_function": "sigmoid",
            "share_expert_swiglu_limit_list": null, "short_conv_kernel_size": 4, "tie_word_embeddings": false,
            "topk_group": 4, "v_head_dim": 128, "vocab_size": 157184
        }"#,
        )
        .unwrap()
    }

    /// Parses the published config with fields set.
    pub(crate) fn parsed(fields: &Value) -> Result<CheckpointConfig> {
        let mut json = tiny();
        for (field, value) in fields.as_object().unwrap() {
            json[field] = value.clone();
        }
        CheckpointConfig::parse("c", json.to_string().as_bytes())
    }

    fn ling(fields: &Value) -> (CheckpointConfig, LingConfig) {
        let config = parsed(fields).unwrap();
        match config.family.clone() {
            Family::Ling(ling) => (config, ling),
            Family::KimiLinear => panic!("expected Ling"),
        }
    }

    #[test]
    fn tiny_has_six_layers_of_attention() {
        let (c, own) = ling(&json!({}));
        let full: Vec<_> = (0..).zip(&c.full_attention).filter(|(_, f)| **f).map(|(i, _)| i).collect();
        assert_eq!(full, [3, 7, 11, 15, 19, 23]);
        assert_eq!((own.q_lora, own.gate_lower_bound, own.mtp_blocks), (Some(256), -5.0, 0));
        assert_eq!((c.layers(), c.rope_theta, c.expert_groups_used, own.tied), (24, 6e6, 4, false));
        assert_eq!((own.expert_clamp.len(), own.shared_intermediate), (0, 512));
    }

    #[test]
    fn layers_after_the_last_group_and_the_mtp_block_are_attention() {
        let fields = json!({"num_hidden_layers": 6, "num_nextn_predict_layers": 1, "q_lora_rank": null,
            "expert_swiglu_limit_list": [7, 7, null, 3.5], "share_expert_swiglu_limit_list": [1]});
        let (c, own) = ling(&fields);
        assert_eq!(c.full_attention, [false, false, false, true, true, true, true]);
        assert_eq!((own.q_lora, own.mtp_blocks), (None, 1));
        assert_eq!(own.expert_clamp, [0.0, 7.0, 0.0, 3.5, 0.0, 0.0, 0.0]);
        assert_eq!(own.shared_clamp, [0.0; 7]);
    }

    #[test]
    fn variants_are_refused() {
        let check = |field: &str, value: Value, message: &str| {
            let error = parsed(&json!({field: value})).unwrap_err().to_string();
            assert_eq!(error, format!("c: {field}: expected {message}"));
        };
        let granularity = "gated_attention_proj_granularity_type";
        check(granularity, json!("element_wise"), "\"head_wise\", found \"element_wise\"");
        check(granularity, Value::Null, "\"head_wise\", found null");
        check("no_kda_lora", json!(false), "true, found false");
        check("kda_safe_gate", json!(false), "true, found false");
        check("kda_lower_bound", json!(0), "a number below 0, found 0");
        check("num_nextn_predict_layers", json!(2), "a whole number from 0 to 1, found 2");
        check("expert_swiglu_limit_list", json!([0, -1]), "limits of at least 0, found -1");
        check("topk_group", json!(9), "a whole number from 1 to 8, found 9");
        check("n_group", json!(5), "a divisor of 128 experts, found 5");
        check("model_type", json!("bailing_moe"), "kimi_linear or bailing_hybrid, found bailing_moe");
    }
}
