//! Implements on x86 the transpositions of rows of bytes. This file contains intrinsics only.

use super::X86;
use std::arch::x86_64::*;

#[inline(always)]
pub(super) fn interleave<const VNNI: bool>(_: X86<VNNI>, rows: [&[u8; 32]; 4]) -> [__m256i; 4] {
    // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 32 bytes of a row at any alignment.
    unsafe {
        let [a, b, c, d] = rows.map(|row| _mm256_loadu_si256(row.as_ptr().cast()));
        let (low_ab, low_cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
        let (high_ab, high_cd) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
        // Columns 0..4, 4..8, 8..12 and 12..16 of each half.
        let first = (_mm256_unpacklo_epi16(low_ab, low_cd), _mm256_unpackhi_epi16(low_ab, low_cd));
        let second = (_mm256_unpacklo_epi16(high_ab, high_cd), _mm256_unpackhi_epi16(high_ab, high_cd));
        [
            _mm256_permute2x128_si256::<0x20>(first.0, first.1),
            _mm256_permute2x128_si256::<0x20>(second.0, second.1),
            _mm256_permute2x128_si256::<0x31>(first.0, first.1),
            _mm256_permute2x128_si256::<0x31>(second.0, second.1),
        ]
    }
}

#[inline(always)]
pub(super) fn transpose_8x8<const VNNI: bool>(_: X86<VNNI>, rows: [&[u8; 32]; 8]) -> [__m256i; 8] {
    // SAFETY: the token proves AVX2, FMA and F16C; loadu reads the 32 bytes of a row at any alignment.
    unsafe {
        let r = rows.map(|row| _mm256_loadu_si256(row.as_ptr().cast()));
        let mut twos = r;
        for i in 0..4 {
            twos[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]); // columns 0 and 1 of each half
            twos[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]); // 2 and 3
        }
        let mut fours = r;
        for i in 0..2 {
            for c in 0..2 {
                let (a, b) = (twos[4 * i + c], twos[4 * i + c + 2]);
                fours[4 * i + 2 * c] = _mm256_unpacklo_epi64(a, b);
                fours[4 * i + 2 * c + 1] = _mm256_unpackhi_epi64(a, b);
            }
        }
        let mut out = r;
        for c in 0..4 {
            out[c] = _mm256_permute2x128_si256::<0x20>(fours[c], fours[4 + c]);
            out[4 + c] = _mm256_permute2x128_si256::<0x31>(fours[c], fours[4 + c]);
        }
        out
    }
}
