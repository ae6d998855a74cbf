//! Q3_K: 256 weights in 110 bytes, 3.4375 bits per weight: sixteen groups of 16 with a scale each.
//!
//! ```text
//! byte 0          32                 96            108     110
//!      | high 32 B | q 2 halves x 32 B | scales 12 B | d f16 |
//!
//! w_i = d (sc_g - 32) (q_i - 4)        group g = i / 16;  sc in 0..64;  q in 0..8
//!
//! high, byte b, bit j:                 bit 2 of q[32 j + b]
//! q, half h = 0..2, byte b = 0..32:    bits 1..0 = low of q[128 h + b],       bits 3..2 = low of q[128 h + 32 + b],
//!                                      bits 5..4 = low of q[128 h + 64 + b],  bits 7..6 = low of q[128 h + 96 + b]
//! scales, byte k = 0..8:               bits 3..0 = low of sc[k],  bits 7..4 = low of sc[8 + k]
//!         byte 8 + k, k = 0..4:        bits 1..0 = high of sc[k],      bits 3..2 = high of sc[4 + k],
//!                                      bits 5..4 = high of sc[8 + k],  bits 7..6 = high of sc[12 + k]
//! ```

use super::activation::{Q8x256, scaled_dots};
use super::block::{Block, weighted_blocks};
use super::q2_k::{pack_two_bits, spread_two_bits, two_bits};
use super::refine::{self, Ranges, SuperBlockScales};
use super::scale_search::{self, Symmetric, halves};
use super::superblock::{Offset, SuperBlock, SuperBlockDot, SuperBlockPanel, decode_16_scales, window};
use crate::matmul::IntegerDot;
use crate::simd::{Isa, PanelSimd, to_int};
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::ops::Range;

/// 256 weights: the quants' high bits, their low bits, packed scales, d.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q3K {
    high: [u8; 32],
    q: [[u8; 32]; 2],
    scales: [u8; 12],
    d: [u8; 2],
}
const _: () = assert!(size_of::<Q3K>() == 110);

impl Q3K {
    /// The quants of each sub-block, 0..8.
    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> [I::Bytes; 8] {
        let third = isa.splat_byte(4);
        let h = isa.bytes(&self.high);
        // Bit j of h as the third bit.
        let high = [
            isa.shl::<2>(h),
            isa.shl::<1>(h),
            h,
            isa.shr::<1>(h),
            isa.shr::<2>(h),
            isa.shr::<3>(h),
            isa.shr::<4>(h),
            isa.shr::<5>(h),
        ];
        let mut quants = two_bits(isa, &self.q);
        for j in 0..8 {
            quants[j] = isa.or(quants[j], isa.and(high[j], third));
        }
        quants
    }

    /// The sixteen scales minus 32, as i8. Several bytes at a time; the masks keep bytes apart.
    #[inline(always)]
    fn scales(&self) -> [u8; 16] {
        let s = &self.scales;
        let low = u64::from_le_bytes([s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]]);
        let high = u32::from_le_bytes([s[8], s[9], s[10], s[11]]) as u64;
        let (nibbles, two) = (0x0f0f_0f0f_0f0f_0f0f, 0x0303_0303_0303_0303);
        // sc[0..4] in the lower word, sc[4..8] in the upper; then sc[8..16] in the same way.
        let first = low & nibbles | ((high | high << 30) & two) << 4;
        let second = low >> 4 & nibbles | ((high >> 4 | high >> 6 << 32) & two) << 4;
        bytemuck::cast([less_32(first).to_le_bytes(), less_32(second).to_le_bytes()])
    }
}

/// Subtracts 32 from eight bytes below 64: flips bit 5 and copies it to bits 6 and 7.
#[inline(always)]
pub(super) fn less_32(bytes: u64) -> u64 {
    let flipped = bytes ^ 0x2020_2020_2020_2020;
    let sign = flipped & 0x2020_2020_2020_2020;
    flipped | sign << 1 | sign << 2
}

/// Packs six bits each, as drawn above.
fn pack(sc: [u8; 16]) -> [u8; 12] {
    let mut s = [0; 12];
    for (g, sc) in sc.into_iter().enumerate() {
        s[g % 8] |= (sc & 15) << (g / 8 * 4);
        s[8 + g % 4] |= sc >> 4 << (g / 4 * 2);
    }
    s
}

/// Requantizes with the rounded scales, and packs.
#[inline(always)]
fn rounded(x: &[f32], sc: [u8; 16], d: f16, mut quants: [u8; 256]) -> Q3K {
    for i in 0..256 {
        let d = d.to_f32() * (sc[i / 16] as i32 - 32) as f32;
        if d != 0.0 {
            quants[i] = (to_int((x[i] / d).round_ties_even()).clamp(-4, 3) + 4) as u8;
        }
    }
    let mut high = [0; 32];
    for (i, level) in quants.iter().enumerate() {
        high[i % 32] |= (level >> 2) << (i / 32);
    }
    Q3K { high, q: pack_two_bits(&quants), scales: pack(sc), d: d.to_le_bytes() }
}

impl Block for Q3K {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[0..96, 96..108, 108..110];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Q3K {
        let mut found = [Symmetric::ZERO; 2];
        for (found, x) in found.iter_mut().zip(&halves(x)) {
            *found = scale_search::symmetric_by_turns(isa, x, 4.0);
        }
        let (scale, quants) = scale_search::sixteen(&found);
        let furthest = super::minmax::furthest(&scale);
        let inverse = -32.0 / furthest;
        let (mut sc, mut d) = ([0; 16], f16::ZERO);
        if furthest != 0.0 {
            sc = scale.map(|s| (to_int((inverse * s).round_ties_even()).clamp(-32, 31) + 32) as u8);
            d = f16::from_f32(1.0 / inverse);
        }
        rounded(x, sc, d, quants)
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Q3K]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            let variance = [scale_search::mean_square(x, 2.0); 8];
            let (mut found, mut sums) = ([Symmetric::ZERO; 2], [0.0; 16]);
            for (h, (x, importance)) in halves(x).iter().zip(&halves(importance)).enumerate() {
                let weight = scale_search::weigh(isa, x, importance, variance);
                sums[8 * h..8 * h + 8].copy_from_slice(&scale_search::sums(isa, &weight));
                found[h] = scale_search::symmetric(isa, x, &weight, 4.0);
            }
            let (scale, quants) = scale_search::sixteen(&found);
            // The scales are quantized like weights; all lanes do the same.
            let [scale, sums] = [scale, sums].map(|v| v.map(|v| [v; 8]));
            let found = scale_search::symmetric(isa, &scale, &sums, 32.0);
            *out = rounded(x, found.quants.map(|lanes| lanes[0]), f16::from_f32(found.scale[0]), quants);
        }
    }

    #[inline(always)]
    fn refine_all<I: Isa>(isa: I, x: &[f32], weight: &[f32], blocks: &mut [Q3K]) {
        let ranges = Ranges { quants: [-4.0, 3.0], sc: [-32.0, 31.0], m: 0.0 };
        for ((x, weight), block) in weighted_blocks::<Self>(x, weight).zip(blocks) {
            let sc = refine::split(block.scales().map(|s| f32::from(s.cast_signed())));
            let start =
                SuperBlockScales { d: f16::from_le_bytes(block.d), dmin: f16::ZERO, sc, m: [[0.0; 8]; 2] };
            let found = refine::super_block(isa, &refine::groups(x, weight), start, &ranges);
            *block = rounded(x, refine::codes(found.sc, |code| (code + 32.0) as u8), found.d, [4; 256]);
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let (d, sc) = (isa.f16(self.d), self.scales());
        let q = scale_search::stored(isa, self.quants(isa));
        for (i, y) in y.iter_mut().enumerate() {
            *y = d * sc[i / 16].cast_signed() as f32 * (q[i] as i32 - 4) as f32;
        }
    }
}

impl SuperBlock for Q3K {
    const SUBS: usize = 16;
    const OFFSET: Offset = Offset::Zero(4);
    const MAX_QUANT: u8 = 7;

    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&Q3K; 16], out: &mut SuperBlockPanel<I::Panel>) {
        let l = isa.panel();
        spread_two_bits(l, [window::<_, 32>(rows), window::<_, 64>(rows)], out);
        let (h, third) = (l.transpose(&window::<_, 0>(rows)), l.splat_byte(4));
        for c in 0..8 {
            let high = [
                l.shl::<2>(h[c]),
                l.shl::<1>(h[c]),
                h[c],
                l.shr::<1>(h[c]),
                l.shr::<2>(h[c]),
                l.shr::<3>(h[c]),
                l.shr::<4>(h[c]),
                l.shr::<5>(h[c]),
            ];
            for j in 0..8 {
                out.quants[8 * j + c] = l.or(out.quants[8 * j + c], l.and(high[j], third));
            }
        }
        let tail = l.transpose(&window::<_, 76>(rows)); // the twelve bytes of scales end at 108
        let (a, b, high, low) = (tail[5], tail[6], tail[7], l.splat_byte(15));
        let two = l.splat_byte(3);
        let sc = [
            l.or(l.and(a, low), l.shl::<4>(l.and(high, two))),
            l.or(l.and(b, low), l.shl::<4>(l.and(l.shr::<2>(high), two))),
            l.or(l.shr::<4>(a), l.shl::<4>(l.and(l.shr::<4>(high), two))),
            l.or(l.shr::<4>(b), l.shl::<4>(l.shr::<6>(high))),
        ];
        decode_16_scales(l, sc, true, out);
        out.d_and_min[0] = l.half(l.transpose(&window::<_, 78>(rows))[7], 1);
    }

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &Q3K, x: &Q8x256) -> [I::Ints; 2] {
        let sc = w.scales();
        let sum = scaled_dots(isa, w.quants(isa), isa.scales_16(sc), x);
        let offset = isa.shl_ints::<2>(isa.dot_sums_16(sc, &x.sums));
        [isa.sub_ints(sum, offset), isa.zeros()]
    }

    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
}
