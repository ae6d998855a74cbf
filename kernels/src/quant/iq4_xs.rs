//! IQ4_XS: 256 weights in 136 bytes, 4.25 bits per weight: the codebook of IQ4_NL, eight sub-blocks of 32 with a
//! scale each.
//!
//! ```text
//! byte 0       2              4         8                  136
//!      | d f16 | high 16 bits | low 4 B | q 8 groups x 16 B |
//!
//! w_i = d (sc_j - 32) CODEBOOK[q_i]      sub-block j = i / 32;  sc in 0..64
//!
//! q, sub-block j, byte b = 0..16:      bits 3..0 = q[32 j + b],  bits 7..4 = q[32 j + 16 + b]
//! low, byte k = 0..4:                  bits 3..0 = low of sc[2 k],  bits 7..4 = low of sc[2 k + 1]
//! high, bits 2 j + 1 .. 2 j:           bits 5..4 of sc[j]
//! ```

use super::activation::Q8x256;
use super::activation::signed_scaled_dots;
use super::block::{Block, weighted_blocks};
use super::iq4_search::{self, CODEBOOK};
use super::minmax::{furthest, inverse, nibbles};
use super::q3_k::less_32;
use super::scale_search::{LanePerBlock, columns, mean_square, squares, weigh};
use super::superblock::{Offset, SuperBlock, SuperBlockDot, SuperBlockPanel, window};
use crate::matmul::IntegerDot;
use crate::simd::{Isa, PanelSimd, to_int};
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: d, the two parts of the packed scales, codebook indices.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq4Xs {
    d: [u8; 2],
    high: [u8; 2],
    low: [u8; 4],
    q: [[u8; 16]; 8],
}
const _: () = assert!(size_of::<Iq4Xs>() == 136);

impl Iq4Xs {
    /// The scales minus 32, as i8.
    #[inline(always)]
    fn scales(&self) -> [u8; 8] {
        let mut low = u32::from_le_bytes(self.low) as u64;
        let mut high = u16::from_le_bytes(self.high) as u64;
        // Each step moves the upper half of every group away from the lower: at last nibble j is byte j.
        low = (low | low << 16) & 0x0000_ffff_0000_ffff;
        low = (low | low << 8) & 0x00ff_00ff_00ff_00ff;
        low = (low | low << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        // The same for pairs of bits.
        high = (high | high << 24) & 0x0000_00ff_0000_00ff;
        high = (high | high << 12) & 0x000f_000f_000f_000f;
        high = (high | high << 6) & 0x0303_0303_0303_0303;
        less_32(low | high << 4).to_le_bytes()
    }
}

/// Quantizes eight sub-blocks whose errors are weighted by `w`.
#[inline(always)]
fn with_weights<I: Isa>(isa: I, x: &LanePerBlock<32>, w: &LanePerBlock<32>) -> Iq4Xs {
    let scale = iq4_search::scales(isa, x, w);
    let d = furthest(&scale) / -32.0;
    let id = inverse(d);
    let sc = scale.map(|s| to_int((id * s).round_ties_even()).clamp(-32, 31));
    let quants = iq4_search::quants(isa, x, sc.map(|sc| inverse(d * sc as f32)));
    let (mut low, mut high) = ([0; 4], 0_u16);
    for (j, sc) in sc.into_iter().enumerate() {
        let sc = (sc + 32) as u8;
        low[j / 2] |= (sc & 15) << (j % 2 * 4);
        high |= (sc as u16 >> 4) << (2 * j);
    }
    let q = from_fn(|j| nibbles(&from_fn(|i| quants[i][j])));
    Iq4Xs { d: f16::from_f32(d).to_le_bytes(), high: high.to_le_bytes(), low, q }
}

impl Block for Iq4Xs {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[8..136, 0..8];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq4Xs {
        let x = columns::<32>(x);
        with_weights(isa, &x, &squares(&x))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq4Xs]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            let variance = [mean_square(x, 2.0); 8];
            let [x, importance] = [x, importance].map(columns::<32>);
            *out = with_weights(isa, &x, &weigh(isa, &x, &importance, variance));
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let (d, sc) = (isa.f16(self.d), self.scales());
        for (j, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let d = d * sc[j].cast_signed() as f32;
            let mut q = [0; 32];
            isa.store_bytes(isa.nibbles(&self.q[j]), &mut q);
            for (y, q) in y.iter_mut().zip(q) {
                *y = d * CODEBOOK[q as usize] as f32;
            }
        }
    }
}

impl SuperBlock for Iq4Xs {
    const SUBS: usize = 8;
    const OFFSET: Offset = Offset::Signed;

    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&Iq4Xs; 16], out: &mut SuperBlockPanel<I::Panel>) {
        let l = isa.panel();
        let low = l.splat_byte(15);
        // The bytes of sub-blocks 2 p and 2 p + 1.
        let groups =
            [window::<_, 8>(rows), window::<_, 40>(rows), window::<_, 72>(rows), window::<_, 104>(rows)];
        for p in 0..4 {
            let q = l.transpose(&groups[p]);
            for c in 0..8 {
                let at = 16 * p + c / 4 * 8 + c % 4;
                out.quants[at] = l.signed(l.table_lookup(&CODEBOOK, l.and(q[c], low)));
                out.quants[at + 4] = l.signed(l.table_lookup(&CODEBOOK, l.shr::<4>(q[c])));
            }
        }
        let head = l.transpose(&window::<_, 0>(rows));
        out.d_and_min[0] = l.half(head[0], 0);
        let nibbles = [l.and(head[1], low), l.shr::<4>(head[1])];
        // Two bits of sub-blocks j and 4 + j, where they belong in a byte.
        let upper = [l.shl::<4>(head[0]), l.shl::<2>(head[0]), head[0], l.shr::<2>(head[0])];
        for j in 0..8 {
            let upper = l.unsigned_byte(l.and(upper[j % 4], l.splat_byte(0x30)), 2 + j / 4);
            let sc = l.add(l.add(l.unsigned_byte(nibbles[j % 2], j / 2), upper), l.splat_int(-32));
            out.scales[j] = sc;
            out.pairs[j] = l.pair(sc, sc); // one scale for two sums of sixteen
        }
    }

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &Iq4Xs, x: &Q8x256) -> [I::Ints; 2] {
        let mut quants = [isa.splat_byte(0); 8];
        for j in 0..8 {
            quants[j] = isa.table_lookup(&CODEBOOK, isa.nibbles(&w.q[j]));
        }
        [signed_scaled_dots(isa, quants, isa.scales_8(w.scales()), x), isa.zeros()]
    }

    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
}
