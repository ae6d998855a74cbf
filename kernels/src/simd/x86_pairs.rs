//! Implements [`Isa::add_scaled_dots`] with AVX2. `vpmaddubsw` sums two products in 16 bits: as many of its results as fit are
//! added in 16 bits, before `vpmaddwd` applies the scale and widens them. This file contains intrinsics only.

#![allow(clippy::needless_range_loop, reason = "plain loops keep vectors in registers")]

use super::panel::NativePanel;
use super::{Isa, X86};
use std::arch::x86_64::*;

#[inline(always)]
pub(super) fn add_scaled_dots<const VNNI: bool, const T: usize>(
    isa: X86<VNNI>,
    mut totals: [__m256i; T],
    w: &[__m256i],
    max_quant: u8,
    x: [&[[u8; 4]]; T],
    scale: __m256i,
) -> [__m256i; T]
where
    X86<VNNI>: NativePanel,
{
    // The sums of pairs that fit 16 bits: 1 for quants of at most 128, 8 for those of at most 15.
    let fitting = i16::MAX as usize / (2 * 127 * max_quant as usize);
    let scales = isa.pair(scale, scale);
    let mut first = 0;
    while first < w.len() {
        let mut sums = [isa.zeros(); T];
        for i in first..w.len().min(first + fitting) {
            for t in 0..T {
                // SAFETY: the token proves AVX2.
                sums[t] = unsafe {
                    _mm256_add_epi16(sums[t], _mm256_maddubs_epi16(w[i], isa.broadcast_u32(x[t][i])))
                };
            }
        }
        for t in 0..T {
            // SAFETY: the token proves AVX2.
            totals[t] = unsafe { _mm256_add_epi32(totals[t], _mm256_madd_epi16(sums[t], scales)) };
        }
        first += fitting;
    }
    totals
}
