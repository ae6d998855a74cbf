//! Block formats of GGUF: how weights are stored, one file a format.
//!
//! Every format has 32 or 256 weights a block and rows are whole blocks. This file is the registry: ids,
//! names and sizes as ggml has them, and the row-wise entry points. It knows no tensor and no thread.
//! Next: `q8_0`, the plainest block; then `q4_k`; `strips` is how blocks meet many tokens, `alone` one.

#![allow(clippy::needless_range_loop, reason = "plain loops over lanes and tokens keep vectors in registers")]

mod activation;
mod alone;
mod bf16;
mod block;
mod cast;
mod f16;
mod f32;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nonlinear;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod range;
mod scales;
mod search;
mod small;
mod strips;
mod superblock;

pub use activation::Activation;
pub use block::{dot_rows, dot_tile};

use activation::{Q8x32, Q8x256};
use block::Block;

/// A stored format, with ggml's type id as discriminant (GGUF `tensor_info.type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "the ecosystem's names")]
#[allow(missing_docs, reason = "each format's file documents it")]
#[repr(u32)]
pub enum Format {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    IQ4_XS = 23,
    BF16 = 30,
    MXFP4 = 39,
}

/// The name of a type that ggml has and this crate does not read, for the line that refuses it.
pub fn unsupported_name(ggml_id: u32) -> Option<&'static str> {
    Some(match ggml_id {
        4 => "Q4_2 (withdrawn)",
        5 => "Q4_3 (withdrawn)",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4 (withdrawn)",
        32 => "Q4_0_4_8 (withdrawn)",
        33 => "Q4_0_8_8 (withdrawn)",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4 (withdrawn)",
        37 => "IQ4_NL_4_8 (withdrawn)",
        38 => "IQ4_NL_8_8 (withdrawn)",
        40 => "NVFP4",
        41 => "Q1_0",
        42 => "Q2_0",
        _ => return None,
    })
}

impl Format {
    /// Every format, in the order of ggml's ids.
    pub const ALL: [Format; 16] = [
        Format::F32,
        Format::F16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::IQ4_NL,
        Format::IQ4_XS,
        Format::BF16,
        Format::MXFP4,
    ];

    /// The format with ggml's type id, if this crate reads it.
    pub fn from_ggml(id: u32) -> Option<Format> {
        Format::ALL.into_iter().find(|f| *f as u32 == id)
    }

    /// The name people know, as `llama-quantize` prints it: `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q8_0 => "Q8_0",
            Format::Q2_K => "Q2_K",
            Format::Q3_K => "Q3_K",
            Format::Q4_K => "Q4_K",
            Format::Q5_K => "Q5_K",
            Format::Q6_K => "Q6_K",
            Format::IQ4_NL => "IQ4_NL",
            Format::IQ4_XS => "IQ4_XS",
            Format::BF16 => "BF16",
            Format::MXFP4 => "MXFP4",
        }
    }

    /// The format with this name, in any case.
    pub fn from_name(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|f| f.name().eq_ignore_ascii_case(name))
    }

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => 32,
            Format::IQ4_NL | Format::MXFP4 => 32,
            Format::Q2_K | Format::Q3_K | Format::Q4_K | Format::Q5_K | Format::Q6_K | Format::IQ4_XS => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q4_0 | Format::IQ4_NL => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q2_K => 84,
            Format::Q3_K => 110,
            Format::Q4_K => 144,
            Format::Q5_K => 176,
            Format::Q6_K => 210,
            Format::IQ4_XS => 136,
            Format::MXFP4 => 17,
        }
    }

    /// Bytes of a row of `cols` weights, or None where `cols` is not whole blocks or the size overflows.
    pub fn row_bytes(self, cols: u64) -> Option<u64> {
        let len = self.block_len() as u64;
        cols.is_multiple_of(len).then(|| (cols / len).checked_mul(self.block_bytes() as u64)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::{Format, unsupported_name};

    #[test]
    fn every_id_of_ggml_is_read_or_refused_by_name() {
        for id in 0..=42 {
            let read = Format::from_ggml(id);
            assert_ne!(read.is_some(), unsupported_name(id).is_some(), "id {id}");
            assert_eq!(read.and_then(|f| Format::from_name(f.name())), read, "id {id}");
        }
        assert_eq!(unsupported_name(18), Some("IQ3_XXS"));
        assert_eq!(unsupported_name(43), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        for format in Format::ALL {
            let (len, bytes) = (format.block_len() as u64, format.block_bytes() as u64);
            assert_eq!(format.row_bytes(3 * len), Some(3 * bytes));
            assert_eq!(format.row_bytes(3 * len + 1).is_some(), len == 1);
            assert_eq!(format.row_bytes(u64::MAX / len * len).is_some(), bytes <= len);
        }
    }
}
