//! Implements [`Isa::lookup_fours`] on x86.
//!
//! AVX-512 looks up 32 indices at a time in registers: an instruction reads 64 words of the table. Loads, two vectors a
//! cycle, are the bound of the lookups from memory that AVX2 needs. This file contains intrinsics only.

#![allow(clippy::needless_range_loop, reason = "plain loops keep vectors in registers")]

use super::panel::NativePanel;
use super::{Fours, Indices, Isa, X86};
use std::arch::x86_64::*;

#[inline(always)]
pub(super) fn lookup_fours<const VNNI: bool, const N: usize>(
    isa: X86<VNNI>,
    grid: &Fours<N>,
    numbers: &[Indices<N>; 4],
) -> [__m256i; 8]
where
    X86<VNNI>: NativePanel,
{
    let mut out = [isa.zeros(); 8];
    if VNNI {
        for h in 0..2 {
            // SAFETY: the token proves AVX-512 F, BW and VL.
            let four = unsafe {
                in_registers(grid, isa.bytes(numbers[2 * h].words()), isa.bytes(numbers[2 * h + 1].words()))
            };
            out[4 * h..4 * h + 4].copy_from_slice(&four);
        }
        return out;
    }
    for v in 0..4 {
        for h in 0..2 {
            let mut e = [0; 8];
            for l in 0..8 {
                e[l] = numbers[v].of(&grid.entries, 8 * h + l).cast_signed();
            }
            // SAFETY: the token proves AVX2.
            out[2 * v + h] = unsafe { _mm256_setr_epi32(e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7]) };
        }
    }
    out
}

/// The entries of 32 indices, eight in each vector.
///
/// # Safety
/// The machine has AVX-512 F, BW and VL.
#[inline(always)]
unsafe fn in_registers<const N: usize>(grid: &Fours<N>, a: __m256i, b: __m256i) -> [__m256i; 4] {
    const { assert!(N.is_power_of_two() && N >= 64 && N <= 512) };
    // SAFETY: the caller's promise; loadu reads 64 and 16 bytes inside the table at any alignment.
    unsafe {
        // The second and third eight bytes of each index vector change places, which the unpacking by quarters reverses.
        let order = _mm512_setr_epi64(0, 2, 1, 3, 8, 10, 9, 11);
        let n = _mm512_permutex2var_epi64(_mm512_castsi256_si512(a), order, _mm512_castsi256_si512(b));
        // The lowest six bits select among 64 entries, and each further bit between two of the results.
        let mut found = [n; 8];
        let mut len = N / 64;
        for i in 0..len {
            let words = grid.nibbles.as_ptr().add(64 * i).cast();
            let (low, high) = (_mm512_loadu_si512(words), _mm512_loadu_si512(words.add(1)));
            found[i] = _mm512_permutex2var_epi16(low, n, high);
        }
        let mut bit = 64;
        while len > 1 {
            let second = _mm512_test_epi16_mask(n, _mm512_set1_epi16(bit));
            (len, bit) = (len / 2, bit << 1);
            for i in 0..len {
                found[i] = _mm512_mask_blend_epi16(second, found[2 * i], found[2 * i + 1]);
            }
        }
        let nibble = _mm512_set1_epi8(15);
        let even = _mm512_and_si512(found[0], nibble);
        let odd = _mm512_and_si512(_mm512_srli_epi16::<4>(found[0]), nibble);
        let values = _mm512_broadcast_i32x4(_mm_loadu_si128(grid.values.as_ptr().cast()));
        let first = _mm512_shuffle_epi8(values, _mm512_unpacklo_epi8(even, odd));
        let second = _mm512_shuffle_epi8(values, _mm512_unpackhi_epi8(even, odd));
        [
            _mm512_castsi512_si256(first),
            _mm512_castsi512_si256(second),
            _mm512_extracti64x4_epi64::<1>(first),
            _mm512_extracti64x4_epi64::<1>(second),
        ]
    }
}
