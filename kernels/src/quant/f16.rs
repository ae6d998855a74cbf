//! F16: a weight is an IEEE binary16, little endian. Reads 2 B a weight; memory-bound.
//!
//! ```text
//! bit 15   14..10     9..0
//!     sign exponent   fraction        largest 65504, beyond which a weight becomes infinite
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
pub struct F16([u8; 2]);
const _: () = assert!(size_of::<F16>() == 2);

impl Block for F16 {
    type X = F32Le;
    type Dot = FloatDot;
    const LEN: usize = 1;
    #[allow(clippy::single_range_in_vec_init, reason = "one plane")]
    const CUDA_PLANES: &'static [Range<usize>] = &[0..2];

    #[inline(always)]
    fn quantize<I: Isa>(_: I, x: &[f32]) -> F16 {
        F16(half::f16::from_f32(x[0]).to_le_bytes())
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, _: I, y: &mut [f32]) {
        y[0] = half::f16::from_le_bytes(self.0).to_f32();
    }

    #[inline(always)]
    fn dequantize_all<I: Isa>(isa: I, w: &[F16], out: &mut [f32]) {
        float_rows::to_f32(isa, w, out);
    }
}

impl FloatFormat for F16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, w: &[F16; 8]) -> I::Floats {
        isa.load_f16(bytemuck::cast_ref(w))
    }
}
