//! Names the ggml types that this crate does not read, with the reason, so that messages can say more than a number.
//!
//! Blocks are those of `ggml-common.h`. A type that is added to the table of formats leaves this one.

/// A ggml type without a [`super::Format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsupportedType {
    /// ggml's id, which GGUF files hold in `tensor_info.type`.
    pub id: u32,
    /// ggml's name, as `llama-quantize` prints it.
    pub name: &'static str,
    /// Weights and bytes of a block; None for withdrawn types, whose blocks depended on the machine.
    pub block: Option<[u64; 2]>,
    /// Why it is not read, as the end of a sentence.
    pub why: &'static str,
}

const WITHDRAWN: &str = "llama.cpp has withdrawn it";
const ACTIVATIONS: &str = "it is for activations, not for files";
const NUMBERS: &str = "no weight of this model is stored so";
const TERNARY: &str = "it is for models trained with ternary weights";
const FEW_BITS: &str = "it is for models trained with 1 or 2 bits";
/// ggml's graph multiplies the products by a scale that is another tensor of the file.
const NVFP4: &str = "its weights need scales from further tensors, which no file of this model has";

/// The types in the order of ggml's ids.
const TYPES: [UnsupportedType; 20] = [
    of(4, "Q4_2", None, WITHDRAWN),
    of(5, "Q4_3", None, WITHDRAWN),
    of(9, "Q8_1", Some([32, 36]), ACTIVATIONS),
    of(15, "Q8_K", Some([256, 292]), ACTIVATIONS),
    of(24, "I8", Some([1, 1]), NUMBERS),
    of(25, "I16", Some([1, 2]), NUMBERS),
    of(26, "I32", Some([1, 4]), NUMBERS),
    of(27, "I64", Some([1, 8]), NUMBERS),
    of(28, "F64", Some([1, 8]), NUMBERS),
    of(31, "Q4_0_4_4", None, WITHDRAWN),
    of(32, "Q4_0_4_8", None, WITHDRAWN),
    of(33, "Q4_0_8_8", None, WITHDRAWN),
    of(34, "TQ1_0", Some([256, 54]), TERNARY),
    of(35, "TQ2_0", Some([256, 66]), TERNARY),
    of(36, "IQ4_NL_4_4", None, WITHDRAWN),
    of(37, "IQ4_NL_4_8", None, WITHDRAWN),
    of(38, "IQ4_NL_8_8", None, WITHDRAWN),
    of(40, "NVFP4", Some([64, 36]), NVFP4),
    of(41, "Q1_0", Some([128, 18]), FEW_BITS),
    of(42, "Q2_0", Some([64, 18]), FEW_BITS),
];

const fn of(id: u32, name: &'static str, block: Option<[u64; 2]>, why: &'static str) -> UnsupportedType {
    UnsupportedType { id, name, block, why }
}

/// The ggml type with this id, if it is known and not read.
pub fn unsupported(ggml_id: u32) -> Option<&'static UnsupportedType> {
    TYPES.iter().find(|t| t.id == ggml_id)
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::unsupported;

    #[test]
    fn every_ggml_id_is_supported_or_refused_by_name() {
        for id in 0..=42 {
            let read = Format::from_ggml(id);
            assert_ne!(read.is_some(), unsupported(id).is_some(), "id {id}");
            assert_eq!(read.and_then(|f| Format::from_name(f.name())), read, "id {id}");
        }
        assert_eq!(unsupported(40).map(|t| t.name), Some("NVFP4"));
        assert_eq!(unsupported(43), None);
    }
}
