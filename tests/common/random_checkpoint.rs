//! Small random checkpoints in the official Kimi-Linear layout: names, dtypes, shapes and config fields.
//!
//! `tests/reference/gen_tiny.py` writes the same files; `tests/shapes.rs` compares the two where Python is available.

use super::numpy_random::NumpyGenerator;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The path of the published `config.json`.
pub const OFFICIAL_CONFIG: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/official/config.json");

/// Sizes that are odd on purpose: `hidden_size` is no power of two, KDA and MLA differ in heads.
const TINY: &[(&str, u64)] = &[
    ("hidden_size", 192),
    ("num_attention_heads", 6),
    ("num_key_value_heads", 6),
    ("vocab_size", 1536),
    ("intermediate_size", 320),
    ("moe_intermediate_size", 96),
    ("num_experts", 16),
    ("num_experts_per_token", 4),
    ("kv_lora_rank", 64),
    ("qk_nope_head_dim", 32),
    ("qk_rope_head_dim", 16),
    ("v_head_dim", 32),
    ("kda_heads", 4),
    ("kda_dim", 32),
];

/// The published geometry per head; rows are multiples of 256 where the published ones are.
const TINY_D128: &[(&str, u64)] = &[
    ("hidden_size", 256),
    ("num_attention_heads", 2),
    ("num_key_value_heads", 2),
    ("vocab_size", 1024),
    ("intermediate_size", 512),
    ("moe_intermediate_size", 256),
    ("num_experts", 16),
    ("num_experts_per_token", 8),
    ("kv_lora_rank", 512),
    ("qk_nope_head_dim", 128),
    ("qk_rope_head_dim", 64),
    ("v_head_dim", 128),
    ("kda_heads", 2),
    ("kda_dim", 128),
];

/// A tensor's name, shape, and whether it is stored as F32 instead of BF16.
pub type CheckpointTensor = (String, Vec<u64>, bool);

/// Writes `config.json` and `model.safetensors` of a preset to `dir`; `fields` are `FIELD=VALUE`.
pub fn write(dir: &Path, preset: &str, seed: u32, fields: &[&str]) {
    fs::create_dir_all(dir).unwrap();
    let config = config(preset, fields);
    fs::write(dir.join("config.json"), serde_json::to_string_pretty(&config).unwrap()).unwrap();
    let mut random = NumpyGenerator::new(seed);
    // All values are drawn in the order of the layers; the file is in the order of the names.
    let tensors: BTreeMap<String, (Vec<u64>, bool, Vec<u8>)> = tensor_specs(&config)
        .into_iter()
        .map(|(name, shape, is_f32)| {
            let bytes = values(&name, &shape, is_f32, &mut random);
            (name, (shape, is_f32, bytes))
        })
        .collect();
    let (mut header, mut end) = (json!({ "__metadata__": { "format": "pt" } }), 0);
    for (name, (shape, is_f32, bytes)) in &tensors {
        let (start, dtype) = (end, if *is_f32 { "F32" } else { "BF16" });
        end += bytes.len();
        header[name] = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
    }
    let mut header = header.to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    tensors.values().for_each(|(_, _, bytes)| file.extend(bytes));
    fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// The published config with the sizes of a preset.
fn config(preset: &str, fields: &[&str]) -> Value {
    let preset = match preset {
        "tiny" => TINY,
        "tiny_d128" => TINY_D128,
        other => panic!("{other}: no such preset"),
    };
    let mut sizes: BTreeMap<&str, u64> = preset.iter().copied().collect();
    for field in fields {
        let (name, value) = field.split_once('=').expect("FIELD=VALUE");
        sizes.insert(name, value.parse().expect("a field is a count"));
    }
    let [kda_heads, kda_dim] = ["kda_heads", "kda_dim"].map(|name| sizes.remove(name).unwrap());
    let layers = *sizes.entry("num_hidden_layers").or_insert(8);
    let context = sizes.remove("model_max_length").unwrap_or(4096);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(OFFICIAL_CONFIG).unwrap()).unwrap();
    for (name, value) in &sizes {
        config[*name] = json!(value);
    }
    // As published: every fourth layer is full attention, and so is the last.
    let (full, kda): (Vec<u64>, Vec<u64>) = (1..=layers).partition(|i| i % 4 == 0 || *i == layers);
    config["head_dim"] = json!(sizes["hidden_size"] / sizes["num_attention_heads"]);
    config["linear_attn_config"] = json!({
        "full_attn_layers": full,
        "head_dim": kda_dim,
        "kda_layers": kda,
        "num_heads": kda_heads,
        "short_conv_kernel_size": 4,
    });
    config["model_max_length"] = json!(context);
    let vocab = sizes["vocab_size"];
    // 163840 is the published vocabulary, whose ids stay.
    if vocab != 163_840 {
        for (name, from_end) in [("bos_token_id", 4), ("eos_token_id", 3), ("pad_token_id", 1)] {
            config[name] = json!(vocab - from_end);
        }
    }
    config
}

/// All tensors of a checkpoint, as `tests/reference/tensor_list.py` lists them.
pub fn tensor_specs(config: &Value) -> Vec<CheckpointTensor> {
    let size = |name: &str| config[name].as_u64().unwrap_or_else(|| panic!("{name} in config.json"));
    let kda_layers: Vec<u64> =
        serde_json::from_value(config["linear_attn_config"]["kda_layers"].clone()).unwrap();
    let (hidden, vocab) = (size("hidden_size"), size("vocab_size"));
    let mut specs = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden], false)];
    for layer in 0..size("num_hidden_layers") {
        let prefix = format!("model.layers.{layer}.");
        let mut push = |name: &str, shape: &[u64], is_f32: bool| {
            specs.push((format!("{prefix}{name}"), shape.to_vec(), is_f32));
        };
        match kda_layers.contains(&(layer + 1)) {
            true => push_kda(config, &mut push),
            false => push_mla(config, &mut push),
        }
        match layer >= size("first_k_dense_replace") {
            true => push_experts(config, &mut push),
            false => {
                let wide = size("intermediate_size");
                push("mlp.gate_proj.weight", &[wide, hidden], false);
                push("mlp.up_proj.weight", &[wide, hidden], false);
                push("mlp.down_proj.weight", &[hidden, wide], false);
            }
        }
        push("input_layernorm.weight", &[hidden], false);
        push("post_attention_layernorm.weight", &[hidden], false);
    }
    specs.push(("model.norm.weight".to_owned(), vec![hidden], false));
    specs.push(("lm_head.weight".to_owned(), vec![vocab, hidden], false));
    specs
}

fn push_kda(config: &Value, push: &mut impl FnMut(&str, &[u64], bool)) {
    let attention = &config["linear_attn_config"];
    let size = |name: &str| attention[name].as_u64().unwrap();
    let (heads, dim, taps) = (size("num_heads"), size("head_dim"), size("short_conv_kernel_size"));
    let (hidden, wide) = (config["hidden_size"].as_u64().unwrap(), heads * dim);
    push("self_attn.A_log", &[1, 1, heads, 1], true);
    push("self_attn.dt_bias", &[wide], true);
    for name in ["q_proj", "k_proj", "v_proj"] {
        push(&format!("self_attn.{name}.weight"), &[wide, hidden], false);
    }
    for name in ["q_conv1d", "k_conv1d", "v_conv1d"] {
        push(&format!("self_attn.{name}.weight"), &[wide, 1, taps], false);
    }
    push("self_attn.f_a_proj.weight", &[dim, hidden], false);
    push("self_attn.f_b_proj.weight", &[wide, dim], false);
    push("self_attn.b_proj.weight", &[heads, hidden], false);
    push("self_attn.g_a_proj.weight", &[dim, hidden], false);
    push("self_attn.g_b_proj.weight", &[wide, dim], false);
    push("self_attn.o_norm.weight", &[dim], false);
    push("self_attn.o_proj.weight", &[hidden, wide], false);
}

fn push_mla(config: &Value, push: &mut impl FnMut(&str, &[u64], bool)) {
    let size = |name: &str| config[name].as_u64().unwrap();
    let (hidden, heads, rank) = (size("hidden_size"), size("num_attention_heads"), size("kv_lora_rank"));
    let (nope, rope, value) = (size("qk_nope_head_dim"), size("qk_rope_head_dim"), size("v_head_dim"));
    push("self_attn.q_proj.weight", &[heads * (nope + rope), hidden], false);
    push("self_attn.kv_a_proj_with_mqa.weight", &[rank + rope, hidden], false);
    push("self_attn.kv_a_layernorm.weight", &[rank], false);
    push("self_attn.kv_b_proj.weight", &[heads * (nope + value), rank], false);
    push("self_attn.o_proj.weight", &[hidden, heads * value], false);
}

fn push_experts(config: &Value, push: &mut impl FnMut(&str, &[u64], bool)) {
    let size = |name: &str| config[name].as_u64().unwrap();
    let (hidden, wide, experts) = (size("hidden_size"), size("moe_intermediate_size"), size("num_experts"));
    for expert in 0..experts {
        for (name, shape) in [("w1", [wide, hidden]), ("w2", [hidden, wide]), ("w3", [wide, hidden])] {
            push(&format!("block_sparse_moe.experts.{expert}.{name}.weight"), &shape, false);
        }
    }
    push("block_sparse_moe.gate.weight", &[experts, hidden], false);
    push("block_sparse_moe.gate.e_score_correction_bias", &[experts], false);
    let shared = wide * size("num_shared_experts");
    push("block_sparse_moe.shared_experts.gate_proj.weight", &[shared, hidden], false);
    push("block_sparse_moe.shared_experts.up_proj.weight", &[shared, hidden], false);
    push("block_sparse_moe.shared_experts.down_proj.weight", &[hidden, shared], false);
}

/// The random values of a tensor as they are stored.
fn values(name: &str, shape: &[u64], is_f32: bool, random: &mut NumpyGenerator) -> Vec<u8> {
    let mut draw = distribution(name, shape);
    let count = shape.iter().product::<u64>() as usize;
    let mut bytes = Vec::with_capacity(if is_f32 { 4 * count } else { 2 * count });
    for _ in 0..count {
        let value = draw(random) as f32;
        match is_f32 {
            true => bytes.extend(value.to_le_bytes()),
            false => {
                // BF16, to the nearest, ties to even.
                let bits = value.to_bits();
                let rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
                bytes.extend((rounded as u16).to_le_bytes());
            }
        }
    }
    bytes
}

/// The distribution of a tensor's values, by its name.
fn distribution(name: &str, shape: &[u64]) -> Box<dyn FnMut(&mut NumpyGenerator) -> f64> {
    let scaled = |scale: f64, width: u64| scale / (width as f64).sqrt();
    let deviation = match name {
        // The published initialization.
        _ if name.ends_with("A_log") => return Box::new(|r| r.uniform(1.0, 16.0).ln()),
        // Some channels remember thousands of tokens, some forget at once.
        _ if name.ends_with("dt_bias") => return Box::new(|r| r.uniform(-7.0, 1.0)),
        // Large enough to change the choice of experts.
        _ if name.ends_with("e_score_correction_bias") => 0.15,
        _ if name.contains("norm") => return Box::new(|r| 1.0 + r.normal(0.0, 0.15)),
        _ if name.contains("conv1d") => 0.5,
        _ if name.ends_with("embed_tokens.weight") => 1.0,
        _ if name.ends_with("lm_head.weight") => scaled(2.5, shape[1]),
        _ if name.ends_with("gate.weight") || name.ends_with("f_b_proj.weight") => scaled(1.5, shape[1]),
        _ if name.ends_with(".b_proj.weight") => scaled(1.5, shape[1]),
        _ => scaled(1.2, *shape.last().unwrap()),
    };
    Box::new(move |r| r.normal(0.0, deviation))
}
