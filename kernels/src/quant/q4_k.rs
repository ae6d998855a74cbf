//! Q4_K: 256 weights in 144 bytes, 4.5 bits per weight: eight sub-blocks of 32 with a scale and a minimum each.
//!
//! ```text
//! byte 0       2          4             16              144
//!      | d f16 | dmin f16 | scales 12 B | q 4 groups x 32 B |
//!
//! w_i = d sc_j q_i - dmin m_j          sub-block j = i / 32;  sc, m in 0..64;  q in 0..16
//!
//! q, group p = 0..4, byte b = 0..32:   bits 3..0 = q[64 p + b],  bits 7..4 = q[64 p + 32 + b]
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

/// 256 weights: d and dmin, packed scales and minima, four-bit quants.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q4K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    q: [[u8; 32]; 4],
}
const _: () = assert!(size_of::<Q4K>() == 144);

impl Q4K {
    /// The quants of each sub-block.
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> [I::Bytes; 8] {
        let low = isa.splat_byte(15);
        let mut quants = [low; 8];
        for p in 0..4 {
            let q = isa.bytes(&self.q[p]);
            quants[2 * p] = isa.and(q, low);
            quants[2 * p + 1] = isa.shr::<4>(q);
        }
        quants
    }
}

/// The block of these scales, minima and quants.
#[inline(always)]
fn pack(Found { d, dmin, scales, quants }: Found) -> Q4K {
    let mut q = [[0; 32]; 4];
    for (q, quants) in q.iter_mut().zip(quants.as_chunks::<64>().0) {
        for (b, q) in q.iter_mut().enumerate() {
            *q = quants[b] | quants[b + 32] << 4;
        }
    }
    Q4K { d, dmin, scales, q }
}

impl Block for Q4K {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    #[allow(clippy::single_range_in_vec_init, reason = "one plane")]
    const CUDA_PLANES: &'static [Range<usize>] = &[0..144];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Q4K {
        pack(k_scales::find(isa, x, 15, ScaleSteps { first: -1.0, step: 0.1, count: 20 }))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Q4K]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            *out = pack(k_scales::find_weighted(isa, x, importance, 15));
        }
    }

    #[inline(always)]
    fn refine_all<I: Isa>(isa: I, x: &[f32], weight: &[f32], blocks: &mut [Q4K]) {
        for ((x, weight), block) in weighted_blocks::<Self>(x, weight).zip(blocks) {
            let found = k_scales::refined(isa, (x, weight), [block.d, block.dmin], block.scales, 15);
            *block = pack(found);
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        k_scales::dequantize(isa, self.quants(isa), [self.d, self.dmin], self.scales, y);
    }
}

impl SuperBlock for Q4K {
    const SUBS: usize = 8;
    const OFFSET: Offset = Offset::Minima;
    const MAX_QUANT: u8 = 15;

    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&Q4K; 16], out: &mut SuperBlockPanel<I::Panel>) {
        let l = isa.panel();
        k_scales::decode_scales(l, rows, out);
        let low = l.splat_byte(15);
        // The 32 bytes of group p: sub-blocks 2 p and 2 p + 1.
        let groups =
            [window::<_, 16>(rows), window::<_, 48>(rows), window::<_, 80>(rows), window::<_, 112>(rows)];
        for p in 0..4 {
            let q = l.transpose(&groups[p]);
            for c in 0..8 {
                out.quants[16 * p + c] = l.and(q[c], low);
                out.quants[16 * p + 8 + c] = l.shr::<4>(q[c]);
            }
        }
    }

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &Q4K, x: &Q8x256) -> [I::Ints; 2] {
        k_scales::sums(isa, w.quants(isa), w.scales, x)
    }

    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, self.dmin]
    }
}
