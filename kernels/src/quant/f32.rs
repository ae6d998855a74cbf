//! F32: a weight is an IEEE binary32, little endian. Reads 4 B a weight; memory-bound.

use super::activation::F32Le;
use super::block::Block;
use super::float_rows::{self, FloatDot, FloatFormat};
use crate::simd::Isa;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// One weight: its four bytes, little endian.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct F32([u8; 4]);
const _: () = assert!(size_of::<F32>() == 4);

impl Block for F32 {
    type X = F32Le;
    type Dot = FloatDot;
    const LEN: usize = 1;
    #[allow(clippy::single_range_in_vec_init, reason = "one plane")]
    const CUDA_PLANES: &'static [Range<usize>] = &[0..4];

    #[inline(always)]
    fn quantize<I: Isa>(_: I, x: &[f32]) -> F32 {
        F32(x[0].to_le_bytes())
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, _: I, y: &mut [f32]) {
        y[0] = f32::from_le_bytes(self.0);
    }

    #[inline(always)]
    fn dequantize_all<I: Isa>(isa: I, w: &[F32], out: &mut [f32]) {
        float_rows::to_f32(isa, w, out);
    }
}

impl FloatFormat for F32 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, w: &[F32; 8]) -> I::Floats {
        isa.load(bytemuck::cast_ref(w))
    }
}
