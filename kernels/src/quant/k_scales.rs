//! Packs and searches the scales of Q4_K and Q5_K: eight scales and eight minima of six bits in twelve bytes.
//!
//! ```text
//! byte 0..4   a_j   bits 5..0 = sc[j]            bits 7..6 = upper bits of sc[j + 4]
//! byte 4..8   b_j   bits 5..0 = m[j]             bits 7..6 = upper bits of m[j + 4]
//! byte 8..12  c_j   bits 3..0 = lower of sc[j+4] bits 7..4 = lower of m[j + 4]           j = 0..4
//! ```
//! Four bytes are unpacked at a time; the masks keep bytes apart.

use super::activation::{Q8x256, scaled_dots};
use super::block::Block;
use super::refine::{self, BlockGroup, Ranges, SuperBlockScales};
use super::scale_rounding;
use super::scale_search::{self, Affine, Cost, ScaleSteps, WEIGHTED_STEPS};
use super::superblock::{SuperBlockPanel, window};
use crate::simd::{Isa, PanelSimd, to_int};
use half::f16;

/// Scales and minima of the eight sub-blocks.
#[inline(always)]
pub(super) fn unpack(s: [u8; 12]) -> ([u8; 8], [u8; 8]) {
    let a = u32::from_le_bytes([s[0], s[1], s[2], s[3]]);
    let b = u32::from_le_bytes([s[4], s[5], s[6], s[7]]);
    let c = u32::from_le_bytes([s[8], s[9], s[10], s[11]]);
    let sc_high = c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4;
    let m_high = c >> 4 & 0x0f0f_0f0f | (b >> 6 & 0x0303_0303) << 4;
    let sc = (a & 0x3f3f_3f3f) as u64 | (sc_high as u64) << 32;
    let m = (b & 0x3f3f_3f3f) as u64 | (m_high as u64) << 32;
    (sc.to_le_bytes(), m.to_le_bytes())
}

/// The inverse of [`unpack`], for values below 64.
fn pack(sc: [u8; 8], m: [u8; 8]) -> [u8; 12] {
    let mut s = [0; 12];
    for j in 0..4 {
        s[j] = sc[j] | sc[j + 4] >> 4 << 6;
        s[j + 4] = m[j] | m[j + 4] >> 4 << 6;
        s[j + 8] = sc[j + 4] & 15 | m[j + 4] << 4;
    }
    s
}

/// A quantized super-block with unpacked quants.
pub(super) struct Found {
    pub(super) d: [u8; 2],
    pub(super) dmin: [u8; 2],
    pub(super) scales: [u8; 12],
    pub(super) quants: [u8; 256],
}

/// Quantizes 256 weights to `0..=most`: finds the scale and minimum of each sub-block with the least weighted squared
/// error, rounds both to six bits, then requantizes with the rounded values.
#[inline(always)]
pub(super) fn find<I: Isa>(isa: I, x: &[f32], most: u8, steps: ScaleSteps) -> Found {
    let columns = scale_search::columns::<32>(x);
    let weight = scale_search::default_weights(isa, &columns);
    let found = scale_search::affine(isa, &columns, &weight, (most, Cost::Square), steps);

    let largest = |v: &[f32; 8]| v.iter().fold(0.0, |a: f32, &b| if b > a { b } else { a });
    let (max_scale, max_min) = (largest(&found.scale), largest(&found.min));
    let six_bits = |v: [f32; 8], max: f32| {
        let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
        v.map(|v| (to_int((inverse * v).round_ties_even()) as u8).min(63))
    };
    let scales = (six_bits(found.scale, max_scale), f16::from_f32(max_scale / 63.0));
    rounded(x, most, scales, (six_bits(found.min, max_min), f16::from_f32(max_min / 63.0)), &found.quants)
}

/// [`find`] with an importance matrix, by which the rounding of scales and minima is weighted too.
#[inline(always)]
pub(super) fn find_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], most: u8) -> Found {
    let [columns, importance] = [x, importance].map(scale_search::columns::<32>);
    let weight = scale_search::weigh(isa, &columns, &importance, [scale_search::mean_square(x, 2.0); 8]);
    let Affine { scale, min, quants } =
        scale_search::affine(isa, &columns, &weight, (most, Cost::Square), WEIGHTED_STEPS);
    let sums = scale_search::sums(isa, &weight);
    let [scales, minima] = [scale, min].map(|v| {
        let (d, q) = scale_rounding::unsigned(&v, &sums, 63);
        (q, f16::from_f32(d))
    });
    rounded(x, most, scales, minima, &quants)
}

/// Refines d, dmin and the scales of a super-block for its weights and the weights of their errors, and requantizes.
#[inline(always)]
pub(super) fn refined<I: Isa>(
    isa: I,
    (x, weight): (&[f32], &[f32]),
    d: [[u8; 2]; 2],
    scales: [u8; 12],
    most: u8,
) -> Found {
    let ([d, dmin], (sc, m)) = (d.map(f16::from_le_bytes), unpack(scales));
    let group = BlockGroup { x: scale_search::columns::<32>(x), w: scale_search::columns::<32>(weight) };
    let start = SuperBlockScales { d, dmin, sc: [sc.map(f32::from)], m: [m.map(f32::from)] };
    let ranges = Ranges { quants: [0.0, most.into()], sc: [0.0, 63.0], m: 63.0 };
    let SuperBlockScales { d, dmin, sc: [sc], m: [m] } = refine::super_block(isa, &[group], start, &ranges);
    let [sc, m] = [sc, m].map(|codes| codes.map(|code| code as u8));
    rounded(x, most, (sc, d), (m, dmin), &[[0; 8]; 32])
}

/// Requantizes with the rounded scales and minima.
#[inline(always)]
fn rounded(
    x: &[f32],
    most: u8,
    (sc, d): ([u8; 8], f16),
    (m, dmin): ([u8; 8], f16),
    quants: &[[u8; 8]; 32],
) -> Found {
    let mut out = [0; 256];
    for i in 0..256 {
        let (d, m) = (d.to_f32() * sc[i / 32] as f32, dmin.to_f32() * m[i / 32] as f32);
        let level = to_int(((x[i] + m) / d).round_ties_even()).clamp(0, most as i32) as u8;
        out[i] = if d == 0.0 { quants[i % 32][i / 32] } else { level };
    }
    Found { d: d.to_le_bytes(), dmin: dmin.to_le_bytes(), scales: pack(sc, m), quants: out }
}

/// y_i = d sc_j q_i - dmin m_j
#[inline(always)]
pub(super) fn dequantize<I: Isa>(isa: I, q: [I::Bytes; 8], d: [[u8; 2]; 2], scales: [u8; 12], y: &mut [f32]) {
    let ([d, dmin], (sc, m)) = (d.map(|d| isa.f16(d)), unpack(scales));
    let q = scale_search::stored(isa, q);
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * sc[i / 32] as f32 * q[i] as f32 - dmin * m[i / 32] as f32;
    }
}

/// Partial sums of sum_j sc_j (q_j . x_j), and of sum_j m_j sum(x_j).
#[inline(always)]
pub(super) fn sums<I: Isa>(isa: I, q: [I::Bytes; 8], scales: [u8; 12], x: &Q8x256) -> [I::Ints; 2] {
    let (sc, m) = unpack(scales);
    [scaled_dots(isa, q, isa.scales_8(sc), x), isa.dot_sums_8(m, &x.sums)]
}

/// Decodes d, dmin, scales and minima of a panel from the first 16 bytes of its blocks: d, dmin, a, b, c.
#[inline(always)]
pub(super) fn decode_scales<L: PanelSimd, B: Block>(l: L, rows: &[&B; 16], out: &mut SuperBlockPanel<L>) {
    let head = l.transpose(&window::<_, 0>(rows));
    out.d_and_min = [l.half(head[0], 0), l.half(head[0], 1)];
    let (a, b, c) = (head[1], head[2], head[3]);
    let (six, low) = (l.splat_byte(0x3f), l.splat_byte(15));
    let sc = [l.and(a, six), l.or(l.and(c, low), l.shl::<4>(l.shr::<6>(a)))];
    let m = [l.and(b, six), l.or(l.shr::<4>(c), l.shl::<4>(l.shr::<6>(b)))];
    for j in 0..8 {
        out.scales[j] = l.unsigned_byte(sc[j / 4], j % 4);
        let m = l.unsigned_byte(m[j / 4], j % 4);
        out.pairs[j] = l.pair(m, m); // one minimum for two sums of sixteen
    }
}
