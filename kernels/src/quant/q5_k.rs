//! Q5_K: 256 weights in 176 bytes, 5.5 bits per weight: Q4_K with a fifth bit a weight.
//!
//! ```text
//! byte 0       2          4             16          48              176
//!      | d f16 | dmin f16 | scales 12 B | high 32 B | q 4 groups x 32 B |
//!
//! w_i = d sc_j q_i - dmin m_j          sub-block j = i / 32;  sc, m in 0..64;  q in 0..32
//!
//! q, group p = 0..4, byte b = 0..32:   bits 3..0 = low of q[64 p + b],  bits 7..4 = low of q[64 p + 32 + b]
//! high, byte b, bit j:                 bit 4 of q[32 j + b]
//! ```
//! `k_scales` draws the packing of the scales.

use super::activation::Q8x256;
use super::block::{Block, weighted_blocks};
use super::k_scales::{self, Found};
use super::scale_search::ScaleSteps;
use super::superblock::{Offset, SuperBlock, SuperBlockDot, SuperBlockPanel, window};
use crate::matmul::IntegerDot;
use crate::simd::{Isa, PanelSimd};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// 256 weights: the fields of Q4_K, with the fifth bits before the lower four.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q5K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    high: [u8; 32],
    q: [[u8; 32]; 4],
}
const _: () = assert!(size_of::<Q5K>() == 176);

impl Q5K {
    /// The quants of each sub-block.
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> [I::Bytes; 8] {
        let (low, fifth) = (isa.splat_byte(15), isa.splat_byte(16));
        let h = isa.bytes(&self.high);
        // Bit j of h as the fifth bit.
        let mut quants = [
            isa.shl::<4>(h),
            isa.shl::<3>(h),
            isa.shl::<2>(h),
            isa.shl::<1>(h),
            h,
            isa.shr::<1>(h),
            isa.shr::<2>(h),
            isa.shr::<3>(h),
        ];
        for p in 0..4 {
            let q = isa.bytes(&self.q[p]);
            quants[2 * p] = isa.or(isa.and(quants[2 * p], fifth), isa.and(q, low));
            quants[2 * p + 1] = isa.or(isa.and(quants[2 * p + 1], fifth), isa.shr::<4>(q));
        }
        quants
    }
}

/// The block of these scales, minima and quants.
#[inline(always)]
fn pack(Found { d, dmin, scales, quants }: Found) -> Q5K {
    let (mut q, mut high) = ([[0; 32]; 4], [0; 32]);
    for (p, (q, quants)) in q.iter_mut().zip(quants.as_chunks::<64>().0).enumerate() {
        for b in 0..32 {
            q[b] = quants[b] & 15 | quants[b + 32] << 4;
            high[b] |= (quants[b] >> 4 | quants[b + 32] >> 4 << 1) << (2 * p);
        }
    }
    Q5K { d, dmin, scales, high, q }
}

impl Block for Q5K {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    #[allow(clippy::single_range_in_vec_init, reason = "one plane")]
    const CUDA_PLANES: &'static [Range<usize>] = &[0..176];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Q5K {
        pack(k_scales::find(isa, x, 31, ScaleSteps { first: -0.5, step: 0.1, count: 15 }))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Q5K]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            *out = pack(k_scales::find_weighted(isa, x, importance, 31));
        }
    }

    #[inline(always)]
    fn refine_all<I: Isa>(isa: I, x: &[f32], weight: &[f32], blocks: &mut [Q5K]) {
        for ((x, weight), block) in weighted_blocks::<Self>(x, weight).zip(blocks) {
            let found = k_scales::refined(isa, (x, weight), [block.d, block.dmin], block.scales, 31);
            *block = pack(found);
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        k_scales::dequantize(isa, self.quants(isa), [self.d, self.dmin], self.scales, y);
    }
}

impl SuperBlock for Q5K {
    const SUBS: usize = 8;
    const OFFSET: Offset = Offset::Minima;
    const MAX_QUANT: u8 = 31;

    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&Q5K; 16], out: &mut SuperBlockPanel<I::Panel>) {
        let l = isa.panel();
        k_scales::decode_scales(l, rows, out);
        let (low, fifth) = (l.splat_byte(15), l.splat_byte(16));
        // The 32 bytes of group p: sub-blocks 2 p and 2 p + 1.
        let groups =
            [window::<_, 48>(rows), window::<_, 80>(rows), window::<_, 112>(rows), window::<_, 144>(rows)];
        let h = l.transpose(&window::<_, 16>(rows));
        for p in 0..4 {
            let q = l.transpose(&groups[p]);
            for c in 0..8 {
                let (even, odd) = match p {
                    0 => (l.shl::<4>(h[c]), l.shl::<3>(h[c])),
                    1 => (l.shl::<2>(h[c]), l.shl::<1>(h[c])),
                    2 => (h[c], l.shr::<1>(h[c])),
                    _ => (l.shr::<2>(h[c]), l.shr::<3>(h[c])),
                };
                out.quants[16 * p + c] = l.or(l.and(even, fifth), l.and(q[c], low));
                out.quants[16 * p + 8 + c] = l.or(l.and(odd, fifth), l.shr::<4>(q[c]));
            }
        }
    }

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &Q5K, x: &Q8x256) -> [I::Ints; 2] {
        k_scales::sums(isa, w.quants(isa), w.scales, x)
    }

    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, self.dmin]
    }
}
