//! Implements on 64-bit Arm what [`super::Isa::lookup_fours`] and the unpacking of its indices need.

use super::{Fours, Indices, Isa, Neon};
use std::arch::aarch64::*;

#[inline(always)]
pub(super) fn lookup_fours<const DOT: bool, const N: usize>(
    isa: Neon<DOT>,
    grid: &Fours<N>,
    numbers: &[Indices<N>; 4],
) -> [uint8x16x2_t; 8] {
    let mut out = [isa.splat_byte(0); 8];
    for v in 0..8 {
        let mut pairs = [0; 4];
        for l in 0..8 {
            pairs[l / 2] |= (numbers[v / 2].of(&grid.entries, v % 2 * 8 + l) as u64) << (l % 2 * 32);
        }
        out[v] = isa.set_u64(pairs);
    }
    out
}

/// Sixteen bytes as 16-bit words.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn words(v: &[u8; 16]) -> uint8x16x2_t {
    // SAFETY: v is sixteen readable bytes.
    let (v, zero) = (unsafe { vld1q_u8(v.as_ptr()) }, vdupq_n_u8(0));
    uint8x16x2_t(vzip1q_u8(v, zero), vzip2q_u8(v, zero))
}

/// The product of 16-bit words, modulo 2^16.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn mul_words(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    vreinterpretq_u8_u16(vmulq_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)))
}

/// The second, fourth, ... of sixteen groups of four bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn odd_fours(v: &[u8; 64]) -> uint8x16x2_t {
    let v = v.as_ptr();
    // SAFETY: v is 64 readable bytes.
    let [a, b, c, d] =
        unsafe { [vld1q_u8(v), vld1q_u8(v.add(16)), vld1q_u8(v.add(32)), vld1q_u8(v.add(48))] };
    let low = vuzp2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b));
    let high = vuzp2q_u32(vreinterpretq_u32_u8(c), vreinterpretq_u32_u8(d));
    uint8x16x2_t(vreinterpretq_u8_u32(low), vreinterpretq_u8_u32(high))
}

/// Byte b of each four = bits `7 b .. 7 b + 7` of the four.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sevens(v: uint8x16_t) -> uint8x16_t {
    let v = vreinterpretq_u32_u8(v);
    let first = vandq_u32(v, vdupq_n_u32(0x7f));
    let second = vandq_u32(vshlq_n_u32::<1>(v), vdupq_n_u32(0x7f00));
    let third = vandq_u32(vshlq_n_u32::<2>(v), vdupq_n_u32(0x007f_0000));
    let fourth = vandq_u32(vshlq_n_u32::<3>(v), vdupq_n_u32(0x7f00_0000));
    vreinterpretq_u8_u32(vorrq_u32(vorrq_u32(first, second), vorrq_u32(third, fourth)))
}
