//! Names the mixes of formats that llama.cpp writes as `general.file_type`.
//!
//! A mix says what most weights are stored as; the format of each tensor is in its own entry. Next: `parse`.

/// llama.cpp's numbers (`LLAMA_FTYPE`) and the names that `llama-quantize` prints.
const NAMES: [(u32, &str); 33] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4_MOE"),
];

/// The name of a mix by its number in `general.file_type`.
pub fn file_type_name(number: u32) -> Option<&'static str> {
    NAMES.iter().find(|(n, _)| *n == number).map(|(_, name)| *name)
}

/// Whether `name` is a mix that llama.cpp writes, such as `IQ2_M`.
pub fn is_file_type(name: &str) -> bool {
    NAMES.iter().any(|(_, known)| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_llama_cpps() {
        assert_eq!(file_type_name(29), Some("IQ2_M"));
        assert_eq!(file_type_name(33), None);
        assert!(is_file_type("IQ3_XS") && !is_file_type("IQ3"));
    }
}
