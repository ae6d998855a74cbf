//! IQ4_NL: 32 weights in 18 bytes, 4.5 bits per weight: a codebook that is denser near zero.
//!
//! ```text
//! byte 0       2        18
//!      | d f16 | q 16 B |        w_i = d CODEBOOK[q_i]
//!
//! q, byte b = 0..16:   bits 3..0 = q[b],  bits 7..4 = q[16 + b]
//! ```

use super::activation::Q8x32;
use super::block::Block;
use super::block32::{Block32, Block32Dot};
use super::iq4_search::{self, CODEBOOK};
use super::minmax::nibbles;
use super::scale_search::{LanePerBlock, eights, lane, squares, sums, weigh};
use crate::matmul::IntegerDot;
use crate::simd::Isa;
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::array::from_fn;
use std::ops::Range;

/// 32 weights: a scale and indices into [`CODEBOOK`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq4Nl {
    d: [u8; 2],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Iq4Nl>() == 18);

/// Quantizes eight blocks at once, one per lane, whose errors are weighted by `w`.
#[inline(always)]
fn eight<I: Isa>(isa: I, x: &LanePerBlock<32>, w: &LanePerBlock<32>) -> [Iq4Nl; 8] {
    let scale = iq4_search::scales(isa, x, w);
    let quants = iq4_search::quants(isa, x, scale.map(super::minmax::inverse));
    from_fn(|j| Iq4Nl { d: f16::from_f32(scale[j]).to_le_bytes(), q: nibbles(&lane(&quants, j)) })
}

impl Block for Iq4Nl {
    type X = Q8x32;
    type Dot = IntegerDot<Block32Dot>;
    const LEN: usize = 32;
    const CUDA_PLANES: &'static [Range<usize>] = &[2..18, 0..2];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq4Nl {
        let x = from_fn(|i| [x[i]; 8]);
        eight(isa, &x, &squares(&x))[0]
    }

    #[inline(always)]
    fn quantize_all<I: Isa>(isa: I, x: &[f32], out: &mut [Iq4Nl]) {
        for (x, out) in eights(x).zip(out.chunks_mut(8)) {
            out.copy_from_slice(&eight(isa, &x, &squares(&x))[..out.len()]);
        }
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq4Nl]) {
        for ((x, importance), out) in eights(x).zip(eights(importance)).zip(out.chunks_mut(8)) {
            // Twice the mean square of each block.
            let variance = sums(isa, &squares(&x)).map(|sum| sum * (2.0 / 32.0));
            out.copy_from_slice(&eight(isa, &x, &weigh(isa, &x, &importance, variance))[..out.len()]);
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let d = isa.f16(self.d);
        let mut q = [0; 32];
        isa.store_bytes(isa.nibbles(&self.q), &mut q);
        for (y, q) in y.iter_mut().zip(q) {
            *y = d * CODEBOOK[q as usize] as f32;
        }
    }
}

impl Block32 for Iq4Nl {
    const SIGNED: bool = true;

    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> I::Bytes {
        isa.table_lookup(&CODEBOOK, isa.nibbles(&self.q))
    }
    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
}
