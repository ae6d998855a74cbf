//! Chooses each tensor's format by a named mix (`Q4_K_M`, `MXFP4_MOE`).
//!
//! The rules for this architecture are those of `llama-quantize`, so that a name implies the same quality and size;
//! `SENSITIVE_TENSORS` is the one difference. Next: `plan`.

use crate::error::{Error, Result};
use kernels::quant::Format;

/// A named choice of formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    name: &'static str,
    /// llama.cpp's number for the mix (`LLAMA_FTYPE`), written as `general.file_type`.
    file_type: u32,
    /// Format of the weights that no rule of the mix excepts.
    base: Format,
}

const MIXES: [Mix; 20] = [
    Mix { name: "F32", file_type: 0, base: Format::F32 },
    Mix { name: "F16", file_type: 1, base: Format::F16 },
    Mix { name: "BF16", file_type: 32, base: Format::BF16 },
    Mix { name: "Q8_0", file_type: 7, base: Format::Q8_0 },
    Mix { name: "Q4_0", file_type: 2, base: Format::Q4_0 },
    Mix { name: "Q4_1", file_type: 3, base: Format::Q4_1 },
    Mix { name: "Q5_0", file_type: 8, base: Format::Q5_0 },
    Mix { name: "Q5_1", file_type: 9, base: Format::Q5_1 },
    Mix { name: "Q2_K", file_type: 10, base: Format::Q2_K },
    Mix { name: "Q2_K_S", file_type: 21, base: Format::Q2_K },
    Mix { name: "Q3_K_S", file_type: 11, base: Format::Q3_K },
    Mix { name: "Q3_K_M", file_type: 12, base: Format::Q3_K },
    Mix { name: "Q3_K_L", file_type: 13, base: Format::Q3_K },
    Mix { name: "Q4_K_S", file_type: 14, base: Format::Q4_K },
    Mix { name: "Q4_K_M", file_type: 15, base: Format::Q4_K },
    Mix { name: "Q5_K_S", file_type: 16, base: Format::Q5_K },
    Mix { name: "Q5_K_M", file_type: 17, base: Format::Q5_K },
    Mix { name: "Q6_K", file_type: 18, base: Format::Q6_K },
    Mix { name: "IQ4_NL", file_type: 25, base: Format::IQ4_NL },
    Mix { name: "IQ4_XS", file_type: 30, base: Format::IQ4_XS },
];

const MXFP4_MOE: Mix = Mix { name: "MXFP4_MOE", file_type: 38, base: Format::MXFP4 };

/// Tensors that are never stored below Q8_0. They are a thousandth of the bytes, and their errors accumulate in the
/// recurrent state or the latent cache. `llama-quantize` quantizes them like the rest.
const SENSITIVE_TENSORS: [&str; 8] = [
    "ssm_beta.weight",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
    "attn_kv_a_mqa.weight",
];

impl Mix {
    /// Every known mix, in the order in which messages list them.
    pub fn all() -> impl Iterator<Item = Mix> {
        MIXES.into_iter().chain([MXFP4_MOE])
    }

    /// The mix with this name, in any case; `Q3_K`, `Q4_K` and `Q5_K` mean their `_M`.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones.
    pub fn from_name(name: &str) -> Result<Mix> {
        let medium = ["Q3_K", "Q4_K", "Q5_K"].iter().any(|short| short.eq_ignore_ascii_case(name));
        let full = if medium { format!("{name}_M") } else { name.to_owned() };
        Mix::all().find(|mix| mix.name.eq_ignore_ascii_case(&full)).ok_or_else(|| {
            let known: Vec<_> = Mix::all().map(|mix| mix.name).collect();
            Error::Option(format!("expected one of {}, found {name}", known.join(", ")))
        })
    }

    /// The name as `llama-quantize` prints it.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// llama.cpp's number for the mix, written as `general.file_type`.
    pub fn file_type(self) -> u32 {
        self.file_type
    }

    /// The format of a tensor, by its GGUF name and `ne` (fastest first), in a model of `n_layers` layers.
    pub fn format_for(self, name: &str, shape: &[u64], n_layers: u64) -> Format {
        if !quantizable(name, shape) {
            return Format::F32;
        }
        if self.base.block_len() == 1 {
            return self.base;
        }
        let mut format = self.by_role(name, shape, n_layers);
        if SENSITIVE_TENSORS.iter().any(|suffix| name.ends_with(suffix)) {
            format = Format::Q8_0;
        }
        fit(format, shape[0])
    }

    fn by_role(self, name: &str, shape: &[u64], n_layers: u64) -> Format {
        let role =
            name.rsplit_once("blk.").map_or(name, |(_, rest)| rest.split_once('.').map_or(rest, |r| r.1));
        let layer = layer(name).unwrap_or(0);
        if self == MXFP4_MOE {
            return if shape.len() > 2 && shape[2] > 1 { Format::MXFP4 } else { Format::Q8_0 };
        }
        let chosen = match role {
            "output.weight"
                if self.base == Format::Q8_0 || !shape[0].is_multiple_of(self.base.block_len() as u64) =>
            {
                Some(Format::Q8_0)
            }
            "output.weight" => Some(Format::Q6_K),
            "attn_v.weight" => self.attn_v(layer, n_layers),
            "attn_output.weight" => self.attn_output(),
            _ if role.starts_with("ffn_down") => self.ffn_down(layer, n_layers),
            _ => None,
        };
        chosen.unwrap_or(self.base)
    }

    fn attn_v(self, layer: u64, n_layers: u64) -> Option<Format> {
        match self.name {
            "Q2_K" => Some(Format::Q3_K),
            "Q3_K_M" => Some(if layer < 2 { Format::Q5_K } else { Format::Q4_K }),
            "Q3_K_L" => Some(Format::Q5_K),
            "Q4_K_S" if layer < 4 => Some(Format::Q5_K),
            "Q4_K_M" | "Q5_K_M" if more_bits(layer, n_layers) => Some(Format::Q6_K),
            _ => None,
        }
    }

    fn attn_output(self) -> Option<Format> {
        match self.name {
            "Q2_K" => Some(Format::Q3_K),
            "Q3_K_M" => Some(Format::Q4_K),
            "Q3_K_L" => Some(Format::Q5_K),
            _ => None,
        }
    }

    fn ffn_down(self, layer: u64, n_layers: u64) -> Option<Format> {
        let early = layer < n_layers / 8;
        match self.name {
            "Q2_K" => Some(Format::Q3_K),
            "Q2_K_S" if early => Some(Format::Q4_K),
            "Q3_K_M" => Some(if layer < n_layers / 16 { Format::Q5_K } else { Format::Q4_K }),
            "Q3_K_L" => Some(Format::Q5_K),
            "Q4_K_S" | "IQ4_NL" | "IQ4_XS" if early => Some(Format::Q5_K),
            "Q4_K_M" | "Q5_K_M" if more_bits(layer, n_layers) => Some(Format::Q6_K),
            _ => None,
        }
    }
}

/// Returns whether a tensor may be quantized: matrices except norms, routers and convolutions.
pub fn quantizable(name: &str, shape: &[u64]) -> bool {
    name.ends_with(".weight")
        && shape.len() >= 2
        && !["_norm.weight", "ffn_gate_inp.weight"].iter().any(|end| name.ends_with(end))
        && !name.contains("ssm_conv1d")
}

/// Parses the layer of `blk.N.`.
pub fn layer(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
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
        Format::Q2_K | Format::Q3_K | Format::IQ4_XS => Format::IQ4_NL,
        Format::IQ1_S | Format::IQ1_M | Format::IQ2_XXS | Format::IQ2_XS | Format::IQ2_S => Format::IQ4_NL,
        Format::IQ3_XXS | Format::IQ3_S => Format::IQ4_NL,
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        _ => Format::Q8_0,
    };
    if fits(smaller_block) { smaller_block } else { Format::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mix: &str, name: &str, shape: &[u64], expected: Format) {
        let mix = Mix::from_name(mix).unwrap();
        assert_eq!(mix.format_for(name, shape, 27), expected, "{} {name}", mix.name());
    }

    #[test]
    fn names() {
        assert_eq!(Mix::from_name("q4_k_m").unwrap().file_type(), 15);
        assert_eq!(Mix::from_name("q5_k").unwrap().name(), "Q5_K_M");
        let error = Mix::from_name("q7").unwrap_err().to_string();
        assert!(error.starts_with("expected one of F32, F16,"), "{error}");
        assert!(error.ends_with("MXFP4_MOE, found q7"), "{error}");
        for mix in Mix::all() {
            assert_eq!(models::gguf::file_type::file_type_name(mix.file_type()), Some(mix.name()));
        }
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
        for mix in Mix::all().filter(|mix| mix.base.block_len() > 1) {
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
        let coarse = [("Q2_K", Format::IQ4_NL), ("Q3_K_S", Format::IQ4_NL), ("IQ4_XS", Format::IQ4_NL)];
        for (mix, format) in rows.into_iter().chain(coarse) {
            check(mix, q, &[192, 128], format);
            check(mix, q, &[100, 128], Format::F16);
        }
        check("Q4_K_M", "output.weight", &[192, 1536], Format::Q8_0);
        check("BF16", q, &[7, 3], Format::BF16);
    }
}
