//! Derives the scale of 32-weight formats from the extremes of the block, without a search.

use crate::simd::to_int;

/// 1 / d, and 0 for 0.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The value with the largest |x|, sign kept; the first of equals, 0 for an empty block.
#[inline(always)]
pub(super) fn furthest(x: &[f32]) -> f32 {
    let (mut most, mut value) = (0.0, 0.0);
    for &x in x {
        if most < x.abs() {
            (most, value) = (x.abs(), x);
        }
    }
    value
}

/// Smallest and largest value of a block; NaN is skipped.
#[inline(always)]
pub(super) fn extremes(x: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = (f32::MAX, f32::MIN);
    for &x in x {
        if x < low {
            low = x;
        }
        if x > high {
            high = x;
        }
    }
    (low, high)
}

/// Quants `(x - low) * inverse + half`, truncated and clamped to `most`.
#[inline(always)]
pub(super) fn quants(x: &[f32], low: f32, inverse: f32, half: f32, most: u8) -> [u8; 32] {
    let mut q = [0; 32];
    for (q, x) in q.iter_mut().zip(x) {
        *q = (to_int((x - low) * inverse + half) as u8).min(most);
    }
    q
}

/// Packs 32 quants as nibbles: byte b holds quant b in its low half and quant 16 + b in its high half.
#[inline(always)]
pub(super) fn nibbles(q: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|b| q[b] & 15 | q[b + 16] << 4)
}

/// The fifth bits of 32 quants: bit i of the word is bit 4 of quant i.
#[inline(always)]
pub(super) fn fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    q.iter().enumerate().fold(0_u32, |bits, (i, q)| bits | (*q as u32 >> 4 & 1) << i).to_le_bytes()
}
