//! BF16: a weight is the upper half of a float, rounded to nearest even. Reads 2 B a weight; memory-bound.
//!
//! ```text
//! bit 15   14..7      6..0
//!     sign exponent   fraction
//! ```

use super::activation::F32Le;
use super::block::Block;
use super::float_rows::{self, FloatDot, FloatFormat};
use crate::simd::Isa;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// One weight: its two bytes, little endian.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BF16([u8; 2]);
const _: () = assert!(size_of::<BF16>() == 2);

impl Block for BF16 {
    type X = F32Le;
    type Dot = FloatDot;
    const LEN: usize = 1;
    #[allow(clippy::single_range_in_vec_init, reason = "one plane")]
    const CUDA_PLANES: &'static [Range<usize>] = &[0..2];

    #[inline(always)]
    fn quantize<I: Isa>(_: I, x: &[f32]) -> BF16 {
        BF16(half::bf16::from_f32(x[0]).to_le_bytes())
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, _: I, y: &mut [f32]) {
        y[0] = f32::from_bits((u16::from_le_bytes(self.0) as u32) << 16);
    }

    #[inline(always)]
    fn dequantize_all<I: Isa>(isa: I, w: &[BF16], out: &mut [f32]) {
        float_rows::to_f32(isa, w, out);
    }
}

impl FloatFormat for BF16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, w: &[BF16; 8]) -> I::Floats {
        isa.load_bf16(bytemuck::cast_ref(w))
    }
}
