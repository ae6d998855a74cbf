//! Q8_0: 32 weights in 34 bytes, 8.5 bits per weight.
//!
//! ```text
//! byte 0      2                                  34
//!      | d f16 | q0 q1 ... q31  (i8)              |        w_i = d q_i
//! ```

use super::activation::{Int8Block, Q8x32};
use super::block::Block;
use super::block32::{Block32, Block32Dot};
use super::minmax::inverse;
use crate::matmul::IntegerDot;
use crate::simd::{Isa, PanelSimd, to_int};
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::ops::Range;

/// 32 weights: a scale and signed eight-bit quants.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q8_0 {
    d: [u8; 2],
    q: [u8; 32],
}
const _: () = assert!(size_of::<Q8_0>() == 34);

impl Block for Q8_0 {
    type X = Q8x32;
    type Dot = IntegerDot<Block32Dot>;
    const LEN: usize = 32;
    const CUDA_PLANES: &'static [Range<usize>] = &[2..34, 0..2];

    #[inline(always)]
    fn quantize<I: Isa>(_: I, x: &[f32]) -> Q8_0 {
        let most = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        let d = most / 127.0;
        let inverse = inverse(d);
        let mut q = [0; 32];
        for (q, x) in q.iter_mut().zip(x) {
            *q = to_int((x * inverse).round()) as u8;
        }
        Q8_0 { d: f16::from_f32(d).to_le_bytes(), q }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, _: I, y: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        for (y, q) in y.iter_mut().zip(self.q) {
            *y = q.cast_signed() as f32 * d;
        }
    }
}

impl Int8Block for Q8_0 {
    #[inline(always)]
    fn scale<I: Isa>(&self, isa: I) -> f32 {
        isa.f16(self.d)
    }
    #[inline(always)]
    fn quants(&self) -> &[u8; 32] {
        &self.q
    }
}

impl Block32 for Q8_0 {
    const SIGNED: bool = true;

    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> I::Bytes {
        isa.bytes(&self.q)
    }
    #[inline(always)]
    fn transpose_quants<I: Isa>(isa: I, rows: &[&Q8_0; 16]) -> [<I::Panel as PanelSimd>::Bytes; 8] {
        let mut quants = [&[0; 32]; 16];
        for r in 0..16 {
            quants[r] = &rows[r].q;
        }
        isa.panel().transpose(&quants)
    }
    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
}
