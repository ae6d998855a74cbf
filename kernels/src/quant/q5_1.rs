//! Q5_1: 32 weights in 24 bytes, 6 bits per weight.
//!
//! ```text
//! byte 0       2       4              8        24
//!      | d f16 | m f16 | high 32 bits | q 16 B |        w_i = d q_i + m
//!
//! q, byte b = 0..16:  bits 3..0 = lower bits of q[b],  bits 7..4 = those of q[16 + b]
//! high, bit i:        bit 4 of q[i]
//! ```

use super::activation::Q8x32;
use super::block::Block;
use super::block32::{Block32, Block32Dot};
use super::minmax::{extremes, fifth_bits, inverse, nibbles, quants};
use super::refine::{self, BlockGroup};
use super::scale_search::{Cost, WEIGHTED_STEPS, affine, eights, lane, mean_square, weigh};
use crate::matmul::IntegerDot;
use crate::simd::Isa;
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::array::from_fn;
use std::ops::Range;

/// 32 weights: a scale, a minimum, the quants' fifth bits, their lower four.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_1 {
    d: [u8; 2],
    m: [u8; 2],
    high: [u8; 4],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Q5_1>() == 24);

impl Block for Q5_1 {
    type X = Q8x32;
    type Dot = IntegerDot<Block32Dot>;
    const LEN: usize = 32;
    const CUDA_PLANES: &'static [Range<usize>] = &[8..24, 0..4, 4..8];

    #[inline(always)]
    fn quantize<I: Isa>(_: I, x: &[f32]) -> Q5_1 {
        let (low, high) = extremes(x);
        let d = (high - low) / 31.0;
        let quants = quants(x, low, inverse(d), 0.5, 31);
        let [d, m] = [d, low].map(|v| f16::from_f32(v).to_le_bytes());
        Q5_1 { d, m, high: fifth_bits(&quants), q: nibbles(&quants) }
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Q5_1]) {
        let variance = [mean_square(x, 1.0); 8];
        for ((x, importance), out) in eights(x).zip(eights(importance)).zip(out.chunks_mut(8)) {
            let w = weigh(isa, &x, &importance, variance);
            let found = affine(isa, &x, &w, (31, Cost::Square), WEIGHTED_STEPS);
            for (j, out) in out.iter_mut().enumerate() {
                let [d, m] = [found.scale[j], -found.min[j]].map(|v| f16::from_f32(v).to_le_bytes());
                let q = lane(&found.quants, j);
                *out = Q5_1 { d, m, high: fifth_bits(&q), q: nibbles(&q) };
            }
        }
    }

    #[inline(always)]
    fn refine_all<I: Isa>(isa: I, x: &[f32], weight: &[f32], blocks: &mut [Q5_1]) {
        for ((x, w), blocks) in eights(x).zip(eights(weight)).zip(blocks.chunks_mut(8)) {
            let d = from_fn(|j| blocks.get(j).map_or(0.0, |b| f16::from_le_bytes(b.d).to_f32()));
            let m = from_fn(|j| blocks.get(j).map_or(0.0, |b| f16::from_le_bytes(b.m).to_f32()));
            let found = refine::blocks(isa, &BlockGroup { x, w }, [d, m], [0.0, 31.0], true);
            for (j, block) in blocks.iter_mut().enumerate() {
                let q = lane(&found.quants, j);
                *block = Q5_1 {
                    d: f16::from_f32(found.d[j]).to_le_bytes(),
                    m: f16::from_f32(found.m[j]).to_le_bytes(),
                    high: fifth_bits(&q),
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

impl Block32 for Q5_1 {
    const SIGNED: bool = false;
    const MAX_QUANT: u8 = 31;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> I::Bytes {
        let fifth = isa.and(isa.mask(self.high), isa.splat_byte(16));
        isa.or(isa.nibbles(&self.q), fifth)
    }
    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, self.m]
    }
}
