//! Q5_0: 32 weights in 22 bytes, 5.5 bits per weight.
//!
//! ```text
//! byte 0       2              6        22
//!      | d f16 | high 32 bits | q 16 B |        w_i = d (q_i - 16)
//!
//! q, byte b = 0..16:  bits 3..0 = lower bits of q[b],  bits 7..4 = those of q[16 + b]
//! high, bit i:        bit 4 of q[i]
//! ```

use super::activation::Q8x32;
use super::block::Block;
use super::block32::{Block32, Block32Dot};
use super::minmax::{fifth_bits, furthest, inverse, nibbles, quants};
use super::refine::{self, BlockGroup};
use super::scale_search::{eights, lane, mean_square, symmetric, weigh};
use crate::matmul::IntegerDot;
use crate::simd::Isa;
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::array::from_fn;
use std::ops::Range;

/// 32 weights: a scale, the quants' fifth bits, their lower four.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_0 {
    d: [u8; 2],
    high: [u8; 4],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Q5_0>() == 22);

impl Block for Q5_0 {
    type X = Q8x32;
    type Dot = IntegerDot<Block32Dot>;
    const LEN: usize = 32;
    const CUDA_PLANES: &'static [Range<usize>] = &[6..22, 0..2, 2..6];

    #[inline(always)]
    fn quantize<I: Isa>(_: I, x: &[f32]) -> Q5_0 {
        let d = furthest(x) / -16.0;
        let quants = quants(x, 0.0, inverse(d), 16.5, 31);
        Q5_0 { d: f16::from_f32(d).to_le_bytes(), high: fifth_bits(&quants), q: nibbles(&quants) }
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Q5_0]) {
        let variance = [mean_square(x, 1.0); 8];
        for ((x, importance), out) in eights(x).zip(eights(importance)).zip(out.chunks_mut(8)) {
            let w = weigh(isa, &x, &importance, variance);
            let found = symmetric(isa, &x, &w, 16.0);
            for (j, out) in out.iter_mut().enumerate() {
                let q = lane(&found.quants, j);
                *out = Q5_0 {
                    d: f16::from_f32(found.scale[j]).to_le_bytes(),
                    high: fifth_bits(&q),
                    q: nibbles(&q),
                };
            }
        }
    }

    #[inline(always)]
    fn refine_all<I: Isa>(isa: I, x: &[f32], weight: &[f32], blocks: &mut [Q5_0]) {
        for ((x, w), blocks) in eights(x).zip(eights(weight)).zip(blocks.chunks_mut(8)) {
            let d = from_fn(|j| blocks.get(j).map_or(0.0, |b| f16::from_le_bytes(b.d).to_f32()));
            let found = refine::blocks(isa, &BlockGroup { x, w }, [d, [0.0; 8]], [-16.0, 15.0], false);
            for (j, block) in blocks.iter_mut().enumerate() {
                let q = lane(&found.quants, j);
                *block =
                    Q5_0 { d: f16::from_f32(found.d[j]).to_le_bytes(), high: fifth_bits(&q), q: nibbles(&q) };
            }
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let d = isa.f16(self.d);
        let mut q = [0; 32];
        isa.store_bytes(self.quants(isa), &mut q);
        for (y, q) in y.iter_mut().zip(q) {
            *y = (q as i32 - 16) as f32 * d;
        }
    }
}

impl Block32 for Q5_0 {
    const SIGNED: bool = false;
    const MAX_QUANT: u8 = 31;
    const ZERO: i32 = 16;

    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> I::Bytes {
        let fifth = isa.and(isa.mask(self.high), isa.splat_byte(16));
        isa.or(isa.nibbles(&self.q), fifth)
    }
    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
}
