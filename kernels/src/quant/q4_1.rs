//! Q4_1: 32 weights in 20 bytes, 5 bits per weight.
//!
//! ```text
//! byte 0       2       4        20
//!      | d f16 | m f16 | q 16 B |        w_i = d q_i + m
//!
//! q, byte b = 0..16:  bits 3..0 = q[b],  bits 7..4 = q[16 + b]
//! ```

use super::activation::Q8x32;
use super::block::Block;
use super::block32::{Block32, Block32Dot};
use super::minmax::{extremes, inverse, nibbles, quants};
use super::refine::{self, BlockGroup};
use super::scale_search::{Cost, WEIGHTED_STEPS, affine, eights, lane, mean_square, weigh};
use crate::matmul::IntegerDot;
use crate::simd::Isa;
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::array::from_fn;
use std::ops::Range;

/// 32 weights: a scale, a minimum, four-bit quants.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q4_1 {
    d: [u8; 2],
    m: [u8; 2],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Q4_1>() == 20);

impl Block for Q4_1 {
    type X = Q8x32;
    type Dot = IntegerDot<Block32Dot>;
    const LEN: usize = 32;
    const CUDA_PLANES: &'static [Range<usize>] = &[4..20, 0..4];

    #[inline(always)]
    fn quantize<I: Isa>(_: I, x: &[f32]) -> Q4_1 {
        let (low, high) = extremes(x);
        let d = (high - low) / 15.0;
        let quants = quants(x, low, inverse(d), 0.5, 15);
        let [d, m] = [d, low].map(|v| f16::from_f32(v).to_le_bytes());
        Q4_1 { d, m, q: nibbles(&quants) }
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Q4_1]) {
        let variance = [mean_square(x, 1.0); 8];
        for ((x, importance), out) in eights(x).zip(eights(importance)).zip(out.chunks_mut(8)) {
            let w = weigh(isa, &x, &importance, variance);
            let found = affine(isa, &x, &w, (15, Cost::Square), WEIGHTED_STEPS);
            for (j, out) in out.iter_mut().enumerate() {
                let [d, m] = [found.scale[j], -found.min[j]].map(|v| f16::from_f32(v).to_le_bytes());
                let q = lane(&found.quants, j);
                *out = Q4_1 { d, m, q: nibbles(&q) };
            }
        }
    }

    #[inline(always)]
    fn refine_all<I: Isa>(isa: I, x: &[f32], weight: &[f32], blocks: &mut [Q4_1]) {
        for ((x, w), blocks) in eights(x).zip(eights(weight)).zip(blocks.chunks_mut(8)) {
            let d = from_fn(|j| blocks.get(j).map_or(0.0, |b| f16::from_le_bytes(b.d).to_f32()));
            let m = from_fn(|j| blocks.get(j).map_or(0.0, |b| f16::from_le_bytes(b.m).to_f32()));
            let found = refine::blocks(isa, &BlockGroup { x, w }, [d, m], [0.0, 15.0], true);
            for (j, block) in blocks.iter_mut().enumerate() {
                let q = lane(&found.quants, j);
                *block = Q4_1 {
                    d: f16::from_f32(found.d[j]).to_le_bytes(),
                    m: f16::from_f32(found.m[j]).to_le_bytes(),
                    q: nibbles(&q),
                };
            }
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let [d, m] = [self.d, self.m].map(|v| isa.f16(v));
        let mut q = [0; 32];
        isa.store_bytes(self.quants(isa), &mut q);
        for (y, q) in y.iter_mut().zip(q) {
            *y = q as f32 * d + m;
        }
    }
}

impl Block32 for Q4_1 {
    const SIGNED: bool = false;
    const MAX_QUANT: u8 = 15;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> I::Bytes {
        isa.nibbles(&self.q)
    }
    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, self.m]
    }
}
