//! Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight: sixteen groups of 16 with a scale each.
//!
//! ```text
//! byte 0               128                  192            208     210
//!      | low 2 x 64 B  | high 2 halves x 32 B | scales 16 i8 | d f16 |
//!
//! w_i = d sc_g (q_i - 32)              group g = i / 16;  sc in -128..128;  q in 0..64
//!
//! half h = 0..2, byte b = 0..32, sub-block j = 4 h + s:
//! low,  byte 64 h + b:                 bits 3..0 of q[32 j + b]: s = 0 in bits 3..0, s = 2 in bits 7..4
//!       byte 64 h + 32 + b:            the same of s = 1 and s = 3
//! high, byte 32 h + b:                 bits 5..4 of q[32 j + b] in bits 2 s + 1 .. 2 s
//! ```

use super::activation::{Q8x256, scaled_dots};
use super::block::{Block, weighted_blocks};
use super::refine::{self, Ranges, SuperBlockScales};
use super::scale_search::{self, Symmetric, halves};
use super::superblock::{Offset, SuperBlock, SuperBlockDot, SuperBlockPanel, decode_16_scales, window};
use crate::matmul::IntegerDot;
use crate::simd::{Isa, PanelSimd, to_int};
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::ops::Range;

/// 256 weights: the quants' lower four bits, their upper two, signed scales, d.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q6K {
    low: [[[u8; 32]; 2]; 2],
    high: [[u8; 32]; 2],
    scales: [u8; 16],
    d: [u8; 2],
}
const _: () = assert!(size_of::<Q6K>() == 210);

impl Q6K {
    /// The quants of each sub-block, 0..64.
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> [I::Bytes; 8] {
        let (last, upper) = (isa.splat_byte(15), isa.splat_byte(0x30));
        let mut quants = [last; 8];
        for h in 0..2 {
            let (a, b) = (isa.bytes(&self.low[h][0]), isa.bytes(&self.low[h][1]));
            let high = isa.bytes(&self.high[h]);
            quants[4 * h] = isa.or(isa.and(a, last), isa.and(isa.shl::<4>(high), upper));
            quants[4 * h + 1] = isa.or(isa.and(b, last), isa.and(isa.shl::<2>(high), upper));
            quants[4 * h + 2] = isa.or(isa.shr::<4>(a), isa.and(high, upper));
            quants[4 * h + 3] = isa.or(isa.shr::<4>(b), isa.and(isa.shr::<2>(high), upper));
        }
        quants
    }
}

/// Rounds the scales, requantizes with them, and packs.
#[inline(always)]
fn rounded(x: &[f32], (scale, quants): ([f32; 16], [u8; 256])) -> Q6K {
    let furthest = super::minmax::furthest(&scale);
    if furthest.abs() < scale_search::NOTHING {
        return Q6K::zeroed();
    }
    let inverse = -128.0 / furthest;
    let d = f16::from_f32(1.0 / inverse);
    let sc = scale.map(|s| to_int((inverse * s).round_ties_even()).min(127) as i8);
    requantized(x, sc, d, quants)
}

/// Requantizes with the rounded scales, and packs; weights whose scale is zero keep their quants.
#[inline(always)]
fn requantized(x: &[f32], sc: [i8; 16], d: f16, mut quants: [u8; 256]) -> Q6K {
    for i in 0..256 {
        let d = d.to_f32() * sc[i / 16] as f32;
        if d != 0.0 {
            quants[i] = (to_int((x[i] / d).round_ties_even()).clamp(-32, 31) + 32) as u8;
        }
    }
    let (mut low, mut high) = ([[[0; 32]; 2]; 2], [[0; 32]; 2]);
    for (i, level) in quants.iter().enumerate() {
        let (h, s, b) = (i / 128, i / 32 % 4, i % 32);
        low[h][s % 2][b] |= (level & 15) << (s / 2 * 4);
        high[h][b] |= (level >> 4) << (2 * s);
    }
    Q6K { low, high, scales: sc.map(i8::cast_unsigned), d: d.to_le_bytes() }
}

impl Block for Q6K {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[0..208, 208..210];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Q6K {
        let mut found = [Symmetric::ZERO; 2];
        for (found, x) in found.iter_mut().zip(&halves(x)) {
            *found = scale_search::symmetric(isa, x, &scale_search::squares(x), 32.0);
        }
        rounded(x, scale_search::sixteen(&found))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Q6K]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            let mut found = [Symmetric::ZERO; 2];
            for (found, (x, weight)) in found.iter_mut().zip(halves(x).iter().zip(&halves(importance))) {
                *found = scale_search::symmetric(isa, x, weight, 32.0);
            }
            *out = rounded(x, scale_search::sixteen(&found));
        }
    }

    #[inline(always)]
    fn refine_all<I: Isa>(isa: I, x: &[f32], weight: &[f32], blocks: &mut [Q6K]) {
        let ranges = Ranges { quants: [-32.0, 31.0], sc: [-128.0, 127.0], m: 0.0 };
        for ((x, weight), block) in weighted_blocks::<Self>(x, weight).zip(blocks) {
            let sc = refine::split(block.scales.map(|s| f32::from(s.cast_signed())));
            let start =
                SuperBlockScales { d: f16::from_le_bytes(block.d), dmin: f16::ZERO, sc, m: [[0.0; 8]; 2] };
            let found = refine::super_block(isa, &refine::groups(x, weight), start, &ranges);
            *block = requantized(x, refine::codes(found.sc, |code| code as i8), found.d, [32; 256]);
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let d = isa.f16(self.d);
        let q = scale_search::stored(isa, self.quants(isa));
        for (i, y) in y.iter_mut().enumerate() {
            *y = d * self.scales[i / 16].cast_signed() as f32 * (q[i] as i32 - 32) as f32;
        }
    }
}

impl SuperBlock for Q6K {
    const SUBS: usize = 16;
    const OFFSET: Offset = Offset::Zero(32);
    const MAX_QUANT: u8 = 63;

    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&Q6K; 16], out: &mut SuperBlockPanel<I::Panel>) {
        let l = isa.panel();
        let (last, upper) = (l.splat_byte(15), l.splat_byte(0x30));
        let low =
            [[window::<_, 0>(rows), window::<_, 32>(rows)], [window::<_, 64>(rows), window::<_, 96>(rows)]];
        let high = [window::<_, 128>(rows), window::<_, 160>(rows)];
        for h in 0..2 {
            let (a, b, high) = (l.transpose(&low[h][0]), l.transpose(&low[h][1]), l.transpose(&high[h]));
            for c in 0..8 {
                let quants = &mut out.quants[32 * h + c..];
                quants[0] = l.or(l.and(a[c], last), l.and(l.shl::<4>(high[c]), upper));
                quants[8] = l.or(l.and(b[c], last), l.and(l.shl::<2>(high[c]), upper));
                quants[16] = l.or(l.shr::<4>(a[c]), l.and(high[c], upper));
                quants[24] = l.or(l.shr::<4>(b[c]), l.and(l.shr::<2>(high[c]), upper));
            }
        }
        let scales = l.transpose(&window::<_, 176>(rows));
        decode_16_scales(l, [scales[4], scales[5], scales[6], scales[7]], false, out);
        out.d_and_min[0] = l.half(l.transpose(&window::<_, 178>(rows))[7], 1);
    }

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &Q6K, x: &Q8x256) -> [I::Ints; 2] {
        let sum = scaled_dots(isa, w.quants(isa), isa.scales_16(w.scales), x);
        let offset = isa.shl_ints::<5>(isa.dot_sums_16(w.scales, &x.sums));
        [isa.sub_ints(sum, offset), isa.zeros()]
    }

    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
}
