//! Chooses each tensor's format by a named mix (`Q4_K_M`, `MXFP4_MOE`).
//!
//! This is the list of mixes; `mix_rules` says which tensors a mix stores in another format than most. Next: `mix_rules`.

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

const MIXES: [Mix; 30] = [
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
    Mix { name: "IQ1_S", file_type: 24, base: Format::IQ1_S },
    Mix { name: "IQ1_M", file_type: 31, base: Format::IQ1_M },
    Mix { name: "IQ2_XXS", file_type: 19, base: Format::IQ2_XXS },
    Mix { name: "IQ2_XS", file_type: 20, base: Format::IQ2_XS },
    Mix { name: "IQ2_S", file_type: 28, base: Format::IQ2_XS },
    Mix { name: "IQ2_M", file_type: 29, base: Format::IQ2_S },
    Mix { name: "IQ3_XXS", file_type: 23, base: Format::IQ3_XXS },
    Mix { name: "IQ3_XS", file_type: 22, base: Format::IQ3_S },
    Mix { name: "IQ3_S", file_type: 26, base: Format::IQ3_S },
    Mix { name: "IQ3_M", file_type: 27, base: Format::IQ3_S },
    Mix { name: "IQ4_NL", file_type: 25, base: Format::IQ4_NL },
    Mix { name: "IQ4_XS", file_type: 30, base: Format::IQ4_XS },
];

const MXFP4_MOE: Mix = Mix { name: "MXFP4_MOE", file_type: 38, base: Format::MXFP4 };

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

    /// The format of the weights that no rule excepts.
    pub(crate) fn base(self) -> Format {
        self.base
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
