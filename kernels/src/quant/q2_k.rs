//! Q2_K: 256 weights in 84 bytes, 2.625 bits per weight: sixteen groups of 16 with a scale and a minimum each.
//!
//! ```text
//! byte 0             16               80      82         84
//!      | scales 16 B | q 2 halves x 32 B | d f16 | dmin f16 |
//!
//! w_i = d sc_g q_i - dmin m_g          group g = i / 16;  sc, m in 0..16;  q in 0..4
//!
//! scales, byte g:                      bits 3..0 = sc_g,  bits 7..4 = m_g
//! q, half h = 0..2, byte b = 0..32:    bits 1..0 = q[128 h + b],       bits 3..2 = q[128 h + 32 + b],
//!                                      bits 5..4 = q[128 h + 64 + b],  bits 7..6 = q[128 h + 96 + b]
//! ```

use super::activation::{Q8x256, scaled_dots};
use super::block::{Block, weighted_blocks};
use super::refine::{self, Ranges, SuperBlockScales};
use super::scale_rounding;
use super::scale_search::{self, Affine, Cost, ScaleSteps, WEIGHTED_STEPS, halves};
use super::superblock::{Offset, SuperBlock, SuperBlockDot, SuperBlockPanel, window};
use crate::matmul::IntegerDot;
use crate::simd::{Isa, PanelSimd, to_int};
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: packed scales and minima, two-bit quants, d and dmin.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q2K {
    scales: [u8; 16],
    q: [[u8; 32]; 2],
    d: [u8; 2],
    dmin: [u8; 2],
}
const _: () = assert!(size_of::<Q2K>() == 84);

/// The two-bit quants of each sub-block, from two halves of 32 bytes.
#[inline(always)]
pub(super) fn two_bits<I: Isa>(isa: I, q: &[[u8; 32]; 2]) -> [I::Bytes; 8] {
    let last = isa.splat_byte(3);
    let mut quants = [last; 8];
    for h in 0..2 {
        let q = isa.bytes(&q[h]);
        quants[4 * h] = isa.and(q, last);
        quants[4 * h + 1] = isa.and(isa.shr::<2>(q), last);
        quants[4 * h + 2] = isa.and(isa.shr::<4>(q), last);
        quants[4 * h + 3] = isa.shr::<6>(q);
    }
    quants
}

/// The inverse of [`two_bits`]: the lowest two bits of 256 quants.
#[inline(always)]
pub(super) fn pack_two_bits(quants: &[u8; 256]) -> [[u8; 32]; 2] {
    let two = |i: usize| quants[i] & 3;
    from_fn(|h| {
        from_fn(|b| {
            let i = 128 * h + b;
            two(i) | two(i + 32) << 2 | two(i + 64) << 4 | two(i + 96) << 6
        })
    })
}

/// Sixteen values as fifteenths of the largest, which is returned in fifteenths too.
fn four_bits(v: [f32; 16]) -> ([u8; 16], f16) {
    let largest = v.iter().fold(0.0, |a: f32, &b| if b > a { b } else { a });
    if largest <= 0.0 {
        return ([0; 16], f16::ZERO);
    }
    let inverse = 15.0 / largest;
    (v.map(|v| to_int((inverse * v).round_ties_even()) as u8), f16::from_f32(largest / 15.0))
}

/// The scale, minimum and quants of each group.
struct ScaledGroups {
    scale: [f32; 16],
    min: [f32; 16],
    quants: [u8; 256],
}

/// Joins the groups of the halves of a super-block.
#[inline(always)]
fn groups(found: &[Affine<16>; 2]) -> ScaledGroups {
    let mut out = ScaledGroups { scale: [0.0; 16], min: [0.0; 16], quants: [0; 256] };
    for (h, found) in found.iter().enumerate() {
        out.scale[8 * h..8 * h + 8].copy_from_slice(&found.scale);
        out.min[8 * h..8 * h + 8].copy_from_slice(&found.min);
        for i in 0..128 {
            out.quants[128 * h + i] = found.quants[i % 16][i / 16];
        }
    }
    out
}

/// Requantizes with the rounded scales and minima, and packs.
#[inline(always)]
fn rounded(x: &[f32], (sc, d): ([u8; 16], f16), (m, dmin): ([u8; 16], f16), mut quants: [u8; 256]) -> Q2K {
    for i in 0..256 {
        let (d, m) = (d.to_f32() * sc[i / 16] as f32, dmin.to_f32() * m[i / 16] as f32);
        if d != 0.0 {
            quants[i] = to_int(((x[i] + m) / d).round_ties_even()).clamp(0, 3) as u8;
        }
    }
    let [d, dmin] = [d, dmin].map(f16::to_le_bytes);
    Q2K { scales: from_fn(|g| sc[g] | m[g] << 4), q: pack_two_bits(&quants), d, dmin }
}

impl Block for Q2K {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[16..80, 0..16, 80..84];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Q2K {
        let mut found = [Affine::ZERO; 2];
        for (found, x) in found.iter_mut().zip(&halves(x)) {
            let weight = x.map(|x| x.map(f32::abs));
            let steps = ScaleSteps { first: -0.5, step: 0.1, count: 15 };
            *found = scale_search::affine(isa, x, &weight, (3, Cost::Absolute), steps);
        }
        let found = groups(&found);
        let [scales, minima] = [four_bits(found.scale), four_bits(found.min)];
        rounded(x, scales, minima, found.quants)
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Q2K]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            let variance = [scale_search::mean_square(x, 1.0); 8];
            let (mut found, mut sums) = ([Affine::ZERO; 2], [0.0; 16]);
            for (h, (x, importance)) in halves(x).iter().zip(&halves(importance)).enumerate() {
                let weight = scale_search::weigh(isa, x, importance, variance);
                sums[8 * h..8 * h + 8].copy_from_slice(&scale_search::sums(isa, &weight));
                found[h] = scale_search::affine(isa, x, &weight, (3, Cost::Square), WEIGHTED_STEPS);
            }
            let found = groups(&found);
            let [scales, minima] = [&found.scale, &found.min].map(|v| {
                let (d, q) = scale_rounding::unsigned(v, &sums, 15);
                (q, f16::from_f32(d))
            });
            *out = rounded(x, scales, minima, found.quants);
        }
    }

    #[inline(always)]
    fn refine_all<I: Isa>(isa: I, x: &[f32], weight: &[f32], blocks: &mut [Q2K]) {
        let ranges = Ranges { quants: [0.0, 3.0], sc: [0.0, 15.0], m: 15.0 };
        for ((x, weight), block) in weighted_blocks::<Self>(x, weight).zip(blocks) {
            let [d, dmin] = [block.d, block.dmin].map(f16::from_le_bytes);
            let sc = refine::split(block.scales.map(|s| f32::from(s & 15)));
            let m = refine::split(block.scales.map(|s| f32::from(s >> 4)));
            let start = SuperBlockScales { d, dmin, sc, m };
            let found = refine::super_block(isa, &refine::groups(x, weight), start, &ranges);
            let [sc, m] = [found.sc, found.m].map(|codes| refine::codes(codes, |code| code as u8));
            *block = rounded(x, (sc, found.d), (m, found.dmin), [0; 256]);
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let [d, dmin] = [self.d, self.dmin].map(|d| isa.f16(d));
        let q = scale_search::stored(isa, two_bits(isa, &self.q));
        for (i, y) in y.iter_mut().enumerate() {
            let s = self.scales[i / 16];
            *y = d * (s & 15) as f32 * q[i] as f32 - dmin * (s >> 4) as f32;
        }
    }
}

impl SuperBlock for Q2K {
    const SUBS: usize = 16;
    const OFFSET: Offset = Offset::Minima;
    const MAX_QUANT: u8 = 3;

    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&Q2K; 16], out: &mut SuperBlockPanel<I::Panel>) {
        let l = isa.panel();
        spread_two_bits(l, [window::<_, 16>(rows), window::<_, 48>(rows)], out);
        let (head, low) = (l.transpose(&window::<_, 0>(rows)), l.splat_byte(15));
        for j in 0..16 {
            out.scales[j] = l.unsigned_byte(l.and(head[j / 4], low), j % 4);
        }
        for p in 0..8 {
            let m = l.shr::<4>(head[p / 2]);
            out.pairs[p] = l.pair(l.unsigned_byte(m, 2 * p % 4), l.unsigned_byte(m, 2 * p % 4 + 1));
        }
        let tail = l.transpose(&window::<_, 52>(rows))[7];
        out.d_and_min = [l.half(tail, 0), l.half(tail, 1)];
    }

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &Q2K, x: &Q8x256) -> [I::Ints; 2] {
        // Sixteen bytes at once; the masks keep bytes apart.
        let scales = u128::from_le_bytes(w.scales);
        let nibbles = u128::from_le_bytes([15; 16]);
        let (sc, m) = ((scales & nibbles).to_le_bytes(), (scales >> 4 & nibbles).to_le_bytes());
        [scaled_dots(isa, two_bits(isa, &w.q), isa.scales_16(sc), x), isa.dot_sums_16(m, &x.sums)]
    }

    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, self.dmin]
    }
}

/// [`two_bits`] of a row panel.
#[inline(always)]
pub(super) fn spread_two_bits<L: PanelSimd>(l: L, q: [[&[u8; 32]; 16]; 2], out: &mut SuperBlockPanel<L>) {
    let last = l.splat_byte(3);
    for h in 0..2 {
        let q = l.transpose(&q[h]);
        for c in 0..8 {
            let quants = &mut out.quants[32 * h + c..];
            quants[0] = l.and(q[c], last);
            quants[8] = l.and(l.shr::<2>(q[c]), last);
            quants[16] = l.and(l.shr::<4>(q[c]), last);
            quants[24] = l.shr::<6>(q[c]);
        }
    }
}
