//! Parses and validates the hyperparameters in a checkpoint's `config.json`.
//!
//! Every field that the file format or the graph depends on is required, bounded and checked against the others. A
//! variant that this project does not run is an error that names the field. Next: `ling`, which reads Ling's fields;
//! `names`.

pub(crate) mod ling;

pub use ling::LingConfig;

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The hyperparameters of a checkpoint; counts are at least 1 unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are config.json's, or their obvious short forms")]
pub struct CheckpointConfig {
    pub vocab: u64,
    pub hidden: u64,
    /// Rows of the dense FFN in the first `dense_layers` layers.
    pub intermediate: u64,
    /// May be 0, or all.
    pub dense_layers: u64,
    /// Attention heads of the MLA layers.
    pub heads: u64,
    pub kv_lora: u64,
    pub nope: u64,
    pub rope: u64,
    pub v_dim: u64,
    /// Heads of the KDA layers; they may differ from `heads`.
    pub kda_heads: u64,
    pub kda_dim: u64,
    pub conv: u64,
    pub experts: u64,
    pub experts_used: u64,
    pub experts_shared: u64,
    pub expert_intermediate: u64,
    pub expert_groups: u64,
    pub expert_groups_used: u64,
    pub expert_scale: f32,
    pub expert_normalize: bool,
    pub eps: f32,
    pub rope_theta: f32,
    pub context: u64,
    /// For each layer from 0, with MTP blocks at the end: true for MLA, false for KDA.
    pub full_attention: Vec<bool>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
    /// `[rows, columns]` of a weight that share one FP8 scale.
    pub fp8_block: [u64; 2],
    pub family: Family,
}

/// The family of models, with the hyperparameters that only it has.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are the models'")]
pub enum Family {
    KimiLinear,
    Ling(LingConfig),
}

impl CheckpointConfig {
    /// Number of decoder layers (`num_hidden_layers`) and MTP blocks.
    pub fn layers(&self) -> u64 {
        self.full_attention.len() as u64
    }

    /// Parses the text of a `config.json`; `path` is used in messages.
    ///
    /// # Errors
    /// A field that is missing, out of bounds, of another type, or contradicts another.
    pub fn parse(path: &str, text: &[u8]) -> Result<CheckpointConfig> {
        let json: Value = serde_json::from_slice(text)
            .map_err(|e| Error::bad(path, format_args!("line {}", e.line()), "JSON", e))?;
        let Value::Object(map) = &json else {
            return Err(Error::bad(path, "the file", "a JSON object", kind(&json)));
        };
        let c = Fields { path, prefix: "", map };
        let config = if c.is_ling()? { ling::parse(&c)? } else { c.kimi_linear()? };
        c.contradictions(&config)?;
        Ok(config)
    }
}

/// A JSON object in the file, with its path.
struct Fields<'a> {
    path: &'a str,
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn kimi_linear(&self) -> Result<CheckpointConfig> {
        let c = self;
        c.refuse_variants()?;
        let linear = c.object("linear_attn_config")?;
        let layers = c.count("num_hidden_layers", 1..=4096)?;
        let grouped = c.flag("use_grouped_topk", true)?;
        let groups = if grouped { c.count_or("num_expert_group", 1..=65536, 1)? } else { 1 };
        Ok(CheckpointConfig {
            vocab: c.count("vocab_size", 1..=1 << 28)?,
            hidden: c.count("hidden_size", 1..=1 << 20)?,
            intermediate: c.count("intermediate_size", 1..=1 << 22)?,
            dense_layers: c.count("first_k_dense_replace", 0..=layers)?,
            heads: c.count("num_attention_heads", 1..=1 << 16)?,
            kv_lora: c.count("kv_lora_rank", 1..=1 << 16)?,
            nope: c.count("qk_nope_head_dim", 1..=1 << 14)?,
            rope: c.count("qk_rope_head_dim", 1..=1 << 14)?,
            v_dim: c.count("v_head_dim", 1..=1 << 14)?,
            kda_heads: linear.count("num_heads", 1..=1 << 16)?,
            kda_dim: linear.count("head_dim", 1..=1 << 14)?,
            conv: linear.count("short_conv_kernel_size", 1..=64)?,
            experts: c.count("num_experts", 1..=1 << 16)?,
            experts_used: c.count("num_experts_per_token", 1..=1 << 16)?,
            experts_shared: c.count("num_shared_experts", 1..=1 << 10)?,
            expert_intermediate: c.count("moe_intermediate_size", 1..=1 << 20)?,
            expert_groups: groups,
            expert_groups_used: if groups > 1 { c.count("topk_group", 1..=groups)? } else { 1 },
            expert_scale: c.positive("routed_scaling_factor")?,
            expert_normalize: c.flag("moe_renormalize", true)?,
            eps: c.positive("rms_norm_eps")?,
            rope_theta: if c.map.contains_key("rope_theta") { c.positive("rope_theta")? } else { 10000.0 },
            context: c.context()?,
            full_attention: c.layer_kinds(&linear, layers)?,
            bos: c.token("bos_token_id")?,
            eos: c.token("eos_token_id")?,
            pad: c.token("pad_token_id")?,
            fp8_block: c.quantization()?,
            family: Family::KimiLinear,
        })
    }

    fn bad(&self, field: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
        Error::bad(self.path, format_args!("{}{field}", self.prefix), expected, found)
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn object(&self, field: &'static str) -> Result<Fields<'a>> {
        match self.get(field) {
            Some(Value::Object(map)) => Ok(Fields { path: self.path, prefix: "linear_attn_config.", map }),
            other => Err(self.bad(field, "an object", other.map_or("nothing", kind))),
        }
    }

    fn count(&self, field: &str, range: RangeInclusive<u64>) -> Result<u64> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let value = self.get(field).ok_or_else(|| self.bad(field, &expected, "nothing"))?;
        match value.as_u64() {
            Some(n) if range.contains(&n) => Ok(n),
            _ => Err(self.bad(field, expected, value)),
        }
    }

    fn count_or(&self, field: &str, range: RangeInclusive<u64>, default: u64) -> Result<u64> {
        if self.get(field).is_none() { Ok(default) } else { self.count(field, range) }
    }

    fn positive(&self, field: &str) -> Result<f32> {
        let value = self.get(field).ok_or_else(|| self.bad(field, "a positive number", "nothing"))?;
        match value.as_f64().map(|x| x as f32) {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(self.bad(field, "a positive number", value)),
        }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.bad(field, "true or false", other)),
        }
    }

    /// A token id, or the first of a list of them.
    fn token(&self, field: &str) -> Result<Option<u32>> {
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        match self.get(field) {
            None => Ok(None),
            Some(Value::Array(list)) if list.is_empty() => Ok(None),
            Some(value) => match one(value.as_array().and_then(|list| list.first()).unwrap_or(value)) {
                Some(id) => Ok(Some(id)),
                None => Err(self.bad(field, "a token id", value)),
            },
        }
    }

    fn context(&self) -> Result<u64> {
        let range = 1..=u64::from(u32::MAX);
        match self.get("model_max_length") {
            Some(_) => self.count("model_max_length", range),
            None => self.count("max_position_embeddings", range),
        }
    }

    /// Whether the checkpoint is Ling 3.0 rather than Kimi Linear. Ling 2.5 has the same model type.
    fn is_ling(&self) -> Result<bool> {
        let named = self.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        let model_type = self.get("model_type").and_then(Value::as_str);
        match (model_type, named) {
            (Some("kimi_linear"), _) | (None, Some("KimiLinearForCausalLM")) => Ok(false),
            (Some("bailing_hybrid") | None, Some("BailingMoeV3ForCausalLM")) => Ok(true),
            (Some("bailing_hybrid"), other) => {
                Err(self.bad("architectures", "BailingMoeV3ForCausalLM", other.unwrap_or("nothing")))
            }
            (other, _) => {
                let expected = "kimi_linear or bailing_hybrid";
                Err(self.bad("model_type", expected, other.or(named).unwrap_or("nothing")))
            }
        }
    }

    /// Refuses values that the graph does not implement; an absent field has the supported value.
    fn refuse_variants(&self) -> Result<()> {
        self.refuse_others(&[
            ("hidden_act", Value::from("silu")),
            ("mla_use_nope", Value::from(true)),
            ("moe_layer_freq", Value::from(1)),
            ("moe_router_activation_func", Value::from("sigmoid")),
            ("num_nextn_predict_layers", Value::from(0)),
            ("tie_word_embeddings", Value::from(false)),
        ])?;
        match self.get("q_lora_rank") {
            Some(found) => Err(self.bad("q_lora_rank", "null", found)),
            None => Ok(()),
        }
    }

    /// Refuses values other than these; an absent field has the supported value.
    fn refuse_others(&self, only: &[(&str, Value)]) -> Result<()> {
        for (field, value) in only {
            match self.get(field) {
                Some(found) if found != value => return Err(self.bad(field, value, found)),
                _ => (),
            }
        }
        Ok(())
    }

    /// Reads the 1-based lists of KDA and MLA layers, which must partition 1..=n.
    fn layer_kinds(&self, linear: &Fields<'a>, layers: u64) -> Result<Vec<bool>> {
        let mut kinds = vec![None; layers as usize];
        for (field, full) in [("kda_layers", false), ("full_attn_layers", true)] {
            let Some(Value::Array(list)) = linear.get(field) else {
                let found = linear.get(field).map_or("nothing", kind);
                return Err(linear.bad(field, "a list of layers", found));
            };
            for value in list {
                let layer = value.as_u64().filter(|n| (1..=layers).contains(n));
                let layer =
                    layer.ok_or_else(|| linear.bad(field, format!("layers from 1 to {layers}"), value))?;
                if kinds[layer as usize - 1].replace(full).is_some() {
                    return Err(linear.bad(field, "each layer once in both lists", format!("{layer} again")));
                }
            }
        }
        let missing = kinds.iter().position(Option::is_none).map(|i| i + 1);
        if let Some(layer) = missing {
            return Err(linear.bad(
                "kda_layers",
                "every layer in one of both lists",
                format!("{layer} in none"),
            ));
        }
        Ok(kinds.into_iter().flatten().collect())
    }

    /// No quantization, or FP8 with a scale per block.
    fn quantization(&self) -> Result<[u64; 2]> {
        let Some(found) = self.get("quantization_config") else { return Ok([128, 128]) };
        let method = found.get("quant_method").and_then(Value::as_str).unwrap_or("nothing");
        if method != "fp8" {
            return Err(self.bad("quantization_config.quant_method", "fp8", method));
        }
        let Some(block) = found.get("weight_block_size").filter(|b| !b.is_null()) else {
            return Ok([128, 128]);
        };
        let side = |i| block.get(i).and_then(Value::as_u64).filter(|n| (1..=1 << 20).contains(n));
        match (side(0), side(1), block.get(2)) {
            (Some(rows), Some(cols), None) => Ok([rows, cols]),
            _ => Err(self.bad("quantization_config.weight_block_size", "[rows, columns]", block)),
        }
    }

    fn contradictions(&self, c: &CheckpointConfig) -> Result<()> {
        let [groups, used] = match c.family {
            Family::KimiLinear => ["num_expert_group", "num_experts_per_token"],
            Family::Ling(_) => ["n_group", "num_experts_per_tok"],
        };
        for (field, each) in [("num_experts", c.experts), ("num_attention_heads", c.heads)] {
            if c.layers() * each > 1 << 18 {
                return Err(self.bad(field, "at most 262144 in all layers", c.layers() * each));
            }
        }
        if !c.experts.is_multiple_of(c.expert_groups) {
            return Err(self.bad(groups, format!("a divisor of {} experts", c.experts), c.expert_groups));
        }
        let eligible = c.experts / c.expert_groups * c.expert_groups_used;
        if c.experts_used > eligible {
            let expected = format!("at most the {eligible} experts of the chosen groups");
            return Err(self.bad(used, expected, c.experts_used));
        }
        for (field, id) in [("bos_token_id", c.bos), ("eos_token_id", c.eos), ("pad_token_id", c.pad)] {
            if let Some(id) = id
                && u64::from(id) >= c.vocab
            {
                return Err(self.bad(field, format!("an id below vocab_size {}", c.vocab), id));
            }
        }
        Ok(())
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const OFFICIAL: &str = include_str!("../../tests/reference/official/config.json");

    /// The official config with one field set.
    pub(crate) fn with(pointer: &str, value: Value) -> String {
        let mut json: Value = serde_json::from_str(OFFICIAL).unwrap();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[field] = value;
        json.to_string()
    }

    fn refused(pointer: &str, value: Value, message: &str) {
        let error = CheckpointConfig::parse("c", with(pointer, value).as_bytes()).unwrap_err().to_string();
        assert_eq!(error, format!("c: {message}"));
    }

    #[test]
    fn official() {
        let c = CheckpointConfig::parse("c", OFFICIAL.as_bytes()).unwrap();
        assert_eq!((c.layers(), c.hidden, c.vocab, c.experts, c.context), (27, 2304, 163840, 256, 1 << 20));
        let full: Vec<_> = (1..).zip(&c.full_attention).filter(|(_, f)| **f).map(|(i, _)| i).collect();
        assert_eq!(full, [4, 8, 12, 16, 20, 24, 27]);
        assert_eq!((c.expert_scale, c.eos, c.pad), (2.446, Some(163586), Some(163839)));
    }

    #[test]
    fn contradictions_are_refused_in_one_line() {
        let json = |text: &str| serde_json::from_str(text).unwrap();
        refused(
            "/model_type",
            json(r#""llama""#),
            "model_type: expected kimi_linear or bailing_hybrid, found llama",
        );
        refused(
            "/hidden_size",
            Value::Null,
            "hidden_size: expected a whole number from 1 to 1048576, found nothing",
        );
        refused("/hidden_size", json("0"), "hidden_size: expected a whole number from 1 to 1048576, found 0");
        refused("/rms_norm_eps", json("\"x\""), "rms_norm_eps: expected a positive number, found \"x\"");
        refused("/q_lora_rank", json("256"), "q_lora_rank: expected null, found 256");
        refused(
            "/num_expert_group",
            json("7"),
            "num_expert_group: expected a divisor of 256 experts, found 7",
        );
        refused("/moe_layer_freq", json("2"), "moe_layer_freq: expected 1, found 2");
        let awq = json(r#"{"quant_method": "awq"}"#);
        refused("/quantization_config", awq, "quantization_config.quant_method: expected fp8, found awq");
        let lists = "/linear_attn_config/full_attn_layers";
        let place = "linear_attn_config.full_attn_layers: expected";
        refused(lists, json("[4, 5]"), &format!("{place} each layer once in both lists, found 5 again"));
        refused(lists, json("[28]"), &format!("{place} layers from 1 to 27, found 28"));
        let none =
            "linear_attn_config.kda_layers: expected every layer in one of both lists, found 8 in none";
        refused(lists, json("[4]"), none);
        refused("/linear_attn_config", json("1"), "linear_attn_config: expected an object, found a number");
    }

    #[test]
    fn not_json() {
        let error = CheckpointConfig::parse("c", b"{\"a\": 1,\n}").unwrap_err().to_string();
        assert!(error.starts_with("c: line 2: expected JSON, found"), "{error}");
        let deep = "[".repeat(100_000);
        assert!(
            CheckpointConfig::parse("c", deep.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("recursion limit")
        );
    }
}
