//! Implements on 64-bit Arm the transpositions of rows of bytes.

use super::{Isa, Neon};
use std::arch::aarch64::*;

#[inline(always)]
pub(super) fn interleave<const DOT: bool>(_: Neon<DOT>, rows: [&[u8; 32]; 4]) -> [uint8x16x2_t; 4] {
    let mut out = [0; 128];
    // SAFETY: the token proves NEON; a row is 32 readable bytes, and `out` takes two stores of 64.
    unsafe {
        for half in 0..2 {
            let [a, b, c, d] = rows.map(|row| vld1q_u8(row.as_ptr().add(16 * half)));
            vst4q_u8(out.as_mut_ptr().add(64 * half), uint8x16x4_t(a, b, c, d));
        }
        let vector = |c: usize| {
            uint8x16x2_t(vld1q_u8(out.as_ptr().add(32 * c)), vld1q_u8(out.as_ptr().add(32 * c + 16)))
        };
        [vector(0), vector(1), vector(2), vector(3)]
    }
}

#[inline(always)]
pub(super) fn transpose_8x8<const DOT: bool>(isa: Neon<DOT>, rows: [&[u8; 32]; 8]) -> [uint8x16x2_t; 8] {
    let mut out = [isa.splat_byte(0); 8];
    for (c, out) in out.iter_mut().enumerate() {
        let mut lanes = [0; 32];
        for (lane, row) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
            *lane = row.as_chunks::<4>().0[c];
        }
        *out = isa.bytes(&lanes);
    }
    out
}
