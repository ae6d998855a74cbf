//! Chooses the format of each tensor of a mix by its role.
//!
//! The rules for this architecture are those of `llama-quantize`, so that a name implies the same quality and size;
//! `SENSITIVE_TENSORS` is the one difference. `tests/data/make_mixes.py` records llama.cpp's choices. Next: `plan`.

use crate::mix::{Mix, layer, quantizable};
use crate::names::TensorSpec;
use kernels::quant::Format;

/// Tensors that are never stored below Q8_0. They are a thousandth of the bytes, and their errors accumulate in the
/// recurrent state or the latent cache. `llama-quantize` quantizes them like the rest.
const SENSITIVE_TENSORS: [&str; 9] = [
    "attn_gate.weight",
    "ssm_beta.weight",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
    "attn_kv_a_mqa.weight",
];

/// First factors of the decay and the output gate, which are whole projections in a model without low ranks: these are a
/// tenth of a layer's bytes and are quantized like the rest.
const FULL_RANK: [&str; 2] = ["ssm_f_a.weight", "ssm_g_a.weight"];

/// A mix and what its rules depend on besides the tensor at hand.
pub struct MixRules {
    mix: Mix,
    n_layers: u64,
    /// Experts of a layer; the rules have exceptions for eight and for at least four.
    n_experts: u64,
    has_importance: bool,
    /// Whether the embedding is the output matrix too.
    tied: bool,
    /// Layers with an `attn_v`, ascending: here the KDA layers. llama.cpp counts these instead of all layers.
    attn_v: Vec<u64>,
    /// Layer and name of each `ffn_down`, ascending. The mixes below 2.7 bits count these instead of layers.
    ffn_down: Vec<(u64, String)>,
}

/// The roles of tensors that the rules know.
#[derive(Clone, Copy, PartialEq)]
enum TensorRole {
    Output,
    Embedding,
    Query,
    Key,
    Value,
    AttentionOutput,
    Down,
    GateOrUp,
    Other,
}

impl TensorRole {
    fn of(name: &str, tied: bool) -> TensorRole {
        let in_layer =
            name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, r)| r);
        match in_layer {
            "output.weight" => TensorRole::Output,
            "token_embd.weight" if tied => TensorRole::Output,
            "token_embd.weight" => TensorRole::Embedding,
            "attn_q.weight" => TensorRole::Query,
            "attn_k.weight" => TensorRole::Key,
            "attn_v.weight" => TensorRole::Value,
            "attn_output.weight" => TensorRole::AttentionOutput,
            _ if in_layer.starts_with("ffn_down") => TensorRole::Down,
            _ if in_layer.starts_with("ffn_gate") || in_layer.starts_with("ffn_up") => TensorRole::GateOrUp,
            _ => TensorRole::Other,
        }
    }
}

impl MixRules {
    /// The rules for a model with these tensors.
    pub fn new(mix: Mix, specs: &[TensorSpec], n_layers: u64, has_importance: bool) -> MixRules {
        let experts = specs.iter().find(|spec| spec.name.ends_with("_exps.weight"));
        let n_experts = experts.and_then(|spec| spec.shape.get(2)).copied().unwrap_or(0);
        let tied = !specs.iter().any(|spec| spec.name == "output.weight");
        let of = |role: TensorRole| specs.iter().filter(move |spec| TensorRole::of(&spec.name, tied) == role);
        let mut attn_v: Vec<u64> = of(TensorRole::Value).filter_map(|spec| layer(&spec.name)).collect();
        let mut ffn_down: Vec<_> =
            of(TensorRole::Down).map(|spec| (layer(&spec.name).unwrap_or(0), spec.name.clone())).collect();
        attn_v.sort_unstable();
        ffn_down.sort_unstable();
        MixRules { mix, n_layers, n_experts, has_importance, tied, attn_v, ffn_down }
    }

    /// The format of a tensor, by its GGUF name and `ne` (fastest first).
    pub fn format(&self, name: &str, shape: &[u64]) -> Format {
        if !quantizable(name, shape) {
            return Format::F32;
        }
        if self.mix.base().block_len() == 1 {
            return self.mix.base();
        }
        let full_rank = FULL_RANK.iter().any(|suffix| name.ends_with(suffix)) && shape[1] >= shape[0];
        let sensitive = SENSITIVE_TENSORS.iter().any(|suffix| name.ends_with(suffix)) && !full_rank;
        fit(if sensitive { Format::Q8_0 } else { self.by_role(name, shape) }, shape[0])
    }

    fn by_role(&self, name: &str, shape: &[u64]) -> Format {
        let role = TensorRole::of(name, self.tied);
        if self.mix.name() == "MXFP4_MOE" {
            let experts = shape.len() > 2 && shape[2] > 1 && role != TensorRole::Output;
            return if experts { Format::MXFP4 } else { Format::Q8_0 };
        }
        let layer = layer(name).unwrap_or(0);
        let chosen = match role {
            TensorRole::Output => Some(self.output(shape[0])),
            TensorRole::Embedding => self.embedding(),
            _ if self.is_low() => self.low(role, layer, name),
            TensorRole::Value => self.attn_v(layer),
            TensorRole::Key if self.n_experts == 8 => Some(Format::Q8_0),
            TensorRole::Key | TensorRole::Query => match self.mix.name() {
                "IQ3_XS" => Some(Format::IQ3_XXS),
                "IQ3_XXS" => Some(Format::IQ2_S),
                _ => None,
            },
            TensorRole::AttentionOutput => self.attn_output(),
            TensorRole::Down => self.ffn_down(layer),
            TensorRole::GateOrUp => {
                let middle = layer >= self.n_layers / 8 && layer < 7 * self.n_layers / 8;
                (self.mix.name() == "IQ3_XS" && middle).then_some(Format::IQ3_XXS)
            }
            TensorRole::Other => None,
        };
        chosen.unwrap_or(self.mix.base())
    }

    /// Whether the mix has at most 2.7 bits per weight.
    fn is_low(&self) -> bool {
        ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"].contains(&self.mix.name())
    }

    /// Whether the mix is one of the larger two of those, whose exceptions are stored in IQ3_S.
    fn is_iq2_s_or_m(&self) -> bool {
        ["IQ2_S", "IQ2_M"].contains(&self.mix.name())
    }

    fn output(&self, cols: u64) -> Format {
        let base = self.mix.base();
        match self.mix.name() {
            _ if !cols.is_multiple_of(base.block_len() as u64) => Format::Q8_0,
            _ if self.is_low() || self.mix.name() == "IQ3_XXS" => Format::Q5_K,
            _ if base == Format::Q8_0 => Format::Q8_0,
            _ => Format::Q6_K,
        }
    }

    fn embedding(&self) -> Option<Format> {
        match self.mix.name() {
            "IQ1_S" | "IQ1_M" | "IQ2_XXS" | "IQ2_XS" => Some(Format::Q2_K),
            "IQ2_S" | "IQ2_M" | "IQ3_XXS" => Some(Format::IQ3_S),
            _ => None,
        }
    }

    fn low(&self, role: TensorRole, layer: u64, name: &str) -> Option<Format> {
        let finer = if self.is_iq2_s_or_m() { Format::IQ3_S } else { Format::Q2_K };
        match role {
            TensorRole::Value => Some(if self.n_experts >= 4 { Format::Q4_K } else { finer }),
            TensorRole::Key if self.n_experts == 8 => Some(Format::Q4_K),
            TensorRole::Down => {
                let rank = self.ffn_down.partition_point(|(l, n)| (*l, n.as_str()) < (layer, name));
                ((rank as u64) < self.n_layers / 8).then_some(finer)
            }
            TensorRole::AttentionOutput if self.n_experts == 8 => Some(Format::Q5_K),
            TensorRole::AttentionOutput if self.is_iq2_s_or_m() => Some(Format::IQ3_S),
            TensorRole::AttentionOutput if self.mix.name().starts_with("IQ1") => Some(Format::IQ2_XXS),
            _ => None,
        }
    }

    fn attn_v(&self, layer: u64) -> Option<Format> {
        let rank = self.attn_v.partition_point(|l| *l < layer) as u64;
        match self.mix.name() {
            _ if self.n_experts == 8 => Some(Format::Q8_0),
            "Q2_K" => Some(Format::Q3_K),
            "IQ3_XXS" if !self.has_importance => Some(Format::IQ3_S),
            "IQ3_M" => Some(Format::Q4_K),
            "Q3_K_M" => Some(if rank < 2 { Format::Q5_K } else { Format::Q4_K }),
            "Q3_K_L" => Some(Format::Q5_K),
            "Q4_K_S" if rank < 4 => Some(Format::Q5_K),
            "Q4_K_M" | "Q5_K_M" if more_bits(rank, self.attn_v.len() as u64) => Some(Format::Q6_K),
            _ => None,
        }
    }

    fn attn_output(&self) -> Option<Format> {
        let name = self.mix.name();
        if self.n_experts == 8 {
            let finer = ["Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS"].contains(&name);
            return (finer || name.starts_with("IQ3_")).then_some(Format::Q5_K);
        }
        match name {
            "Q2_K" => Some(Format::Q3_K),
            "IQ3_XXS" => Some(Format::IQ3_S),
            "Q3_K_M" | "IQ3_M" => Some(Format::Q4_K),
            "Q3_K_L" => Some(Format::Q5_K),
            _ => None,
        }
    }

    fn ffn_down(&self, layer: u64) -> Option<Format> {
        let n = self.n_layers;
        let early = layer < n / 8;
        match self.mix.name() {
            "Q2_K" => Some(Format::Q3_K),
            "Q2_K_S" if early => Some(Format::Q4_K),
            "IQ3_XXS" if !self.has_importance => Some(if early { Format::Q4_K } else { Format::Q3_K }),
            "IQ3_M" if early || self.n_experts == 8 && more_bits(layer, n) => Some(Format::Q4_K),
            "Q3_K_M" => Some(if layer < n / 16 { Format::Q5_K } else { Format::Q4_K }),
            "Q3_K_L" => Some(Format::Q5_K),
            "Q4_K_S" if early => Some(Format::Q5_K),
            "IQ4_NL" | "IQ4_XS" if early && !self.has_importance => Some(Format::Q5_K),
            "Q4_K_M" | "Q5_K_M" if more_bits(layer, n) => Some(Format::Q6_K),
            "Q4_0" if early && self.has_importance => Some(Format::Q4_1),
            "Q5_0" if early && self.has_importance => Some(Format::Q5_1),
            _ => None,
        }
    }
}

/// Returns whether a layer is in the first or last eighth, or is every third between them.
fn more_bits(layer: u64, n_layers: u64) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// The format itself, or the next finer one whose blocks divide a row of `cols` weights.
fn fit(format: Format, cols: u64) -> Format {
    let fits = |f: Format| cols.is_multiple_of(f.block_len() as u64);
    let smaller_block = match format {
        _ if fits(format) => return format,
        Format::Q2_K | Format::Q3_K => Format::Q4_0,
        Format::IQ1_S | Format::IQ1_M | Format::IQ2_XXS | Format::IQ2_XS | Format::IQ2_S => Format::IQ4_NL,
        Format::IQ3_XXS | Format::IQ3_S | Format::IQ4_XS => Format::IQ4_NL,
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        _ => Format::Q8_0,
    };
    if fits(smaller_block) { smaller_block } else { Format::F16 }
}
#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn spec(name: &str, shape: &[u64]) -> TensorSpec {
        TensorSpec { name: name.to_owned(), shape: shape.to_vec(), parts: vec![] }
    }

    /// The tensors of the real model's layers that the rules look at.
    fn rules(mix: &str, has_importance: bool) -> MixRules {
        let mut specs = vec![spec("output.weight", &[2304, 163840])];
        for i in 0..27 {
            specs.push(spec(&format!("blk.{i}.ffn_down_exps.weight"), &[1024, 2304, 256]));
            if i % 4 != 3 && i != 26 {
                specs.push(spec(&format!("blk.{i}.attn_v.weight"), &[2304, 4096]));
            }
        }
        MixRules::new(Mix::from_name(mix).unwrap(), &specs, 27, has_importance)
    }

    fn check(mix: &str, name: &str, shape: &[u64], expected: Format) {
        assert_eq!(rules(mix, false).format(name, shape), expected, "{mix} {name}");
    }

    /// The names and shapes of `tests/data/make_mixes.py`.
    fn recorded_specs(experts: u64, cols: u64, full_attention: &[Value]) -> Vec<TensorSpec> {
        let mut specs = vec![
            spec("token_embd.weight", &[cols, 2]),
            spec("output_norm.weight", &[cols]),
            spec("output.weight", &[cols, 2]),
        ];
        for i in 0..27_u64 {
            let full = full_attention.contains(&i.into());
            let attention: &[&str] = if full {
                &["attn_q", "attn_output", "attn_kv_a_mqa"]
            } else {
                &[
                    "attn_q",
                    "attn_output",
                    "attn_k",
                    "attn_v",
                    "ssm_f_a",
                    "ssm_f_b",
                    "ssm_g_a",
                    "ssm_g_b",
                    "ssm_beta",
                ]
            };
            let dense: &[&str] = if i == 0 {
                &["ffn_gate", "ffn_up", "ffn_down"]
            } else {
                &["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate_inp"]
            };
            let stacks: &[&str] = match (full, i) {
                (false, 0) => &[],
                (false, _) => &["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"],
                _ => &["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "attn_k_b", "attn_v_b"],
            };
            let named = |role: &str, shape: &[u64]| spec(&format!("blk.{i}.{role}.weight"), shape);
            specs.extend(attention.iter().chain(dense).map(|role| named(role, &[cols, 2])));
            specs.extend(stacks.iter().map(|role| named(role, &[cols, 2, experts])));
        }
        specs
    }

    /// Compares with the formats that llama.cpp chose, except for those of `SENSITIVE_TENSORS`.
    #[test]
    fn formats_are_those_of_llama_cpp() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/mixes.json");
        let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let full_attention = recorded["full_attention"].as_array().unwrap();
        let mut compared = 0;
        for case in recorded["cases"].as_array().unwrap() {
            let (experts, cols) = (case["experts"].as_u64().unwrap(), case["cols"].as_u64().unwrap());
            let specs = recorded_specs(experts, cols, full_attention);
            for (mix, roles) in case["mixes"].as_object().unwrap() {
                let importance = case["importance"].as_bool().unwrap();
                let rules = MixRules::new(Mix::from_name(mix).unwrap(), &specs, 27, importance);
                for (role, formats) in roles.as_object().unwrap() {
                    let end = format!("{role}.weight");
                    let same = |spec: &&TensorSpec| {
                        spec.name
                            .rsplit_once("blk.")
                            .map_or(spec.name == end, |(_, rest)| rest.split_once('.').unwrap().1 == end)
                    };
                    let ours: Vec<_> =
                        specs.iter().filter(same).map(|s| rules.format(&s.name, &s.shape).name()).collect();
                    let sensitive = SENSITIVE_TENSORS.contains(&&end[..]);
                    let theirs: Vec<_> = formats
                        .as_str()
                        .unwrap()
                        .split(", ")
                        .flat_map(|run| {
                            let (count, format) = run.split_once(' ').unwrap();
                            vec![if sensitive { "Q8_0" } else { format }; count.parse().unwrap()]
                        })
                        .collect();
                    assert_eq!(
                        ours, theirs,
                        "{experts} experts, {cols} columns, importance {importance}: {mix} {role}"
                    );
                    compared += ours.len();
                }
            }
        }
        assert!(compared > 50_000, "{compared} tensors compared");
    }

    #[test]
    fn medium_mixes_give_some_layers_more_bits() {
        let down = |layer| format!("blk.{layer}.ffn_down_exps.weight");
        for (layer, format) in [(0, Format::Q6_K), (3, Format::Q4_K), (5, Format::Q6_K), (26, Format::Q6_K)] {
            check("Q4_K_M", &down(layer), &[1024, 2304, 256], format);
        }
        check("Q4_K_M", "output.weight", &[2304, 163840], Format::Q6_K);
        check("Q8_0", "output.weight", &[2304, 163840], Format::Q8_0);
        check("Q4_K_M", "token_embd.weight", &[2304, 163840], Format::Q4_K);
        check("Q3_K_M", "blk.9.attn_output.weight", &[4096, 2304], Format::Q4_K);
        check("Q4_K_S", "blk.2.attn_v.weight", &[2304, 4096], Format::Q5_K);
        check("Q2_K", "blk.2.ffn_gate_exps.weight", &[2304, 1024, 256], Format::Q2_K);
        check("IQ4_XS", "blk.9.ffn_down_shexp.weight", &[1024, 2304], Format::IQ4_XS);
        check("MXFP4_MOE", "blk.1.ffn_up_exps.weight", &[2304, 1024, 256], Format::MXFP4);
        check("MXFP4_MOE", "blk.1.attn_q.weight", &[2304, 4096], Format::Q8_0);
    }

    #[test]
    fn sensitive_tensors_stay_fine_and_vectors_f32() {
        for mix in Mix::all().filter(|mix| mix.base().block_len() > 1) {
            check(mix.name(), "blk.3.attn_k_b.weight", &[128, 512, 32], Format::Q8_0);
            check(mix.name(), "blk.0.ssm_f_a.weight", &[2304, 128], Format::Q8_0);
            check(mix.name(), "blk.0.ssm_g_b.weight", &[40, 128], Format::F16);
        }
        for mix in Mix::all() {
            check(mix.name(), "blk.1.ffn_gate_inp.weight", &[2304, 256], Format::F32);
            check(mix.name(), "blk.0.ssm_conv1d_q.weight", &[4, 1, 4096, 1], Format::F32);
            check(mix.name(), "blk.0.ssm_a", &[1, 32, 1, 1], Format::F32);
            check(mix.name(), "output_norm.weight", &[2304], Format::F32);
        }
    }

    #[test]
    fn rows_that_are_not_whole_blocks_fall_back() {
        let q = "blk.0.attn_q.weight";
        let rows = [("Q4_K_M", Format::Q5_0), ("Q5_K_S", Format::Q5_1), ("Q6_K", Format::Q8_0)];
        let coarse = [("Q2_K", Format::Q4_0), ("Q3_K_S", Format::Q4_0), ("IQ4_XS", Format::IQ4_NL)];
        for (mix, format) in rows.into_iter().chain(coarse) {
            check(mix, q, &[192, 128], format);
            check(mix, q, &[100, 128], Format::F16);
        }
        check("Q4_K_M", "output.weight", &[192, 1536], Format::Q8_0);
        check("BF16", q, &[7, 3], Format::BF16);
    }
}
