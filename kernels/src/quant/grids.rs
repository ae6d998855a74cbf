//! The codebooks of the IQ1, IQ2 and IQ3 formats: vectors of eight or four weights, of which a block stores the number.
//!
//! `make_grids.py` makes `grids.bin` from the tables in llama.cpp's Python package `gguf`: 16 bits an entry, eight digits of
//! two bits or four of three, the first weight lowest. The tables here are expanded at compile time, so that a lookup
//! gives bytes. Next: `grid_block`, the products with them.

use crate::simd::Isa;
use std::array::from_fn;

/// The packed entries of all grids, one grid after the other.
static PACKED: &[u8; 9216] = include_bytes!("grids.bin");

/// Values of the digits of the IQ2 grids, as magnitudes.
pub(super) const IQ2_VALUES: [i8; 3] = [8, 25, 43];
/// Values of the digits of the IQ3_XXS grid, as magnitudes.
pub(super) const IQ3_XXS_VALUES: [i8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
/// Values of the digits of the IQ3_S grid, as magnitudes.
pub(super) const IQ3_S_VALUES: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
/// Eight times the values -1, 0, 1 of the IQ1 grid, plus 8.
pub(super) const IQ1_VALUES: [i8; 3] = [0, 8, 16];

/// Entries of 8 weights, a byte each.
pub(super) static IQ2_XXS: [u64; 256] = eights(0, &IQ2_VALUES);
pub(super) static IQ2_XS: [u64; 512] = eights(256, &IQ2_VALUES);
pub(super) static IQ2_S: [u64; 1024] = eights(256 + 512, &IQ2_VALUES);
/// Entries of 4 weights, a byte each.
pub(super) static IQ3_XXS: [u32; 256] = fours(256 + 512 + 1024, &IQ3_XXS_VALUES);
pub(super) static IQ3_S: [u32; 512] = fours(256 + 512 + 1024 + 256, &IQ3_S_VALUES);
/// Entries of 8 weights, a byte each.
pub(super) static IQ1: [u64; 2048] = eights(256 + 512 + 1024 + 256 + 512, &IQ1_VALUES);

const fn packed(at: usize) -> u16 {
    u16::from_le_bytes([PACKED[2 * at], PACKED[2 * at + 1]])
}

const fn eights<const N: usize>(first: usize, values: &[i8; 3]) -> [u64; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        let mut k = 0;
        while k < 8 {
            let digit = packed(first + i) >> (2 * k) & 3;
            out[i] |= (values[digit as usize] as u64) << (8 * k);
            k += 1;
        }
        i += 1;
    }
    out
}

const fn fours<const N: usize>(first: usize, values: &[i8; 8]) -> [u32; N] {
    let mut out = [0; N];
    let mut i = 0;
    while i < N {
        let mut k = 0;
        while k < 4 {
            let digit = packed(first + i) >> (3 * k) & 7;
            out[i] |= (values[digit as usize] as u32) << (8 * k);
            k += 1;
        }
        i += 1;
    }
    out
}

/// Four groups of eight signs from 28 bits: seven each, and an eighth that makes the number of negative weights even.
#[inline(always)]
pub(super) fn even_signs(v: u32) -> u32 {
    let seven = v & 0x7f | (v & 0x3f80) << 1 | (v & 0x1f_c000) << 2 | (v & 0xfe0_0000) << 3;
    // Bit 0 of each byte becomes the parity of its byte; the bits above it also see the next byte.
    let mut parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    seven | (parity & 0x0101_0101) << 7
}

/// One group of eight signs from seven bits.
#[inline(always)]
pub(super) fn even_sign(seven: u16) -> u8 {
    let mut parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    (seven | (parity & 1) << 7) as u8
}

/// The lower seven of four times eight signs, as [`even_signs`] reads them.
pub(super) fn seven_signs(signs: [u8; 4]) -> u32 {
    (0..4).map(|b| (signs[b] as u32 & 127) << (7 * b)).sum()
}

/// 2 sc + 1 of eight scales in nibbles, the lower one first.
#[inline(always)]
pub(super) fn odd_scales_8(nibbles: [u8; 4]) -> [u8; 16] {
    let mut v = u32::from_le_bytes(nibbles) as u64;
    v = (v | v << 16) & 0x0000_ffff_0000_ffff;
    v = (v | v << 8) & 0x00ff_00ff_00ff_00ff;
    v = (v | v << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    ((v << 1 | 0x0101_0101_0101_0101) as u128).to_le_bytes()
}

/// 2 sc + 1 of sixteen scales in nibbles, the lower one first.
#[inline(always)]
pub(super) fn odd_scales_16(nibbles: [u8; 8]) -> [u8; 16] {
    let v = u64::from_le_bytes(nibbles);
    let (low, high) = (v & 0x0f0f_0f0f_0f0f_0f0f, v >> 4 & 0x0f0f_0f0f_0f0f_0f0f);
    let (low, high) = ((low << 1 | ONES).to_le_bytes(), (high << 1 | ONES).to_le_bytes());
    from_fn(|i| if i % 2 == 0 { low[i / 2] } else { high[i / 2] })
}
const ONES: u64 = 0x0101_0101_0101_0101;

/// 2 sc + 1 of eight scales in the upper four bits of 32.
#[inline(always)]
pub(super) fn top_scales(tails: [[u8; 4]; 8]) -> [u8; 16] {
    let mut out = [0; 16];
    for j in 0..8 {
        out[j] = tails[j][3] >> 3 | 1;
    }
    out
}

/// What entries of [`IQ1`] with [`offsets`] exceed the quants by.
pub(super) const IQ1_BIAS: u8 = 9;

/// Eight times the offset of each weight, plus 1: 2, or 0 where bit k of `negative` is set for the vector k.
#[inline(always)]
pub(super) fn offsets<I: Isa>(isa: I, negative: usize) -> I::Bytes {
    isa.bytes(&OFFSETS[negative & 15])
}

static OFFSETS: [[u8; 32]; 16] = {
    let mut out = [[0; 32]; 16];
    let mut i = 0;
    while i < 16 * 32 {
        let (negative, weight) = (i / 32, i % 32);
        out[negative][weight] = if negative >> (weight / 8) & 1 == 1 { 0 } else { 2 };
        i += 1;
    }
    out
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_values_of_their_digits_and_are_distinct() {
        for (grid, values) in
            [(&IQ2_XXS[..], IQ2_VALUES), (&IQ2_XS, IQ2_VALUES), (&IQ2_S, IQ2_VALUES), (&IQ1, IQ1_VALUES)]
        {
            assert!(grid.iter().flat_map(|e| e.to_le_bytes()).all(|b| values.contains(&b.cast_signed())));
            assert!(grid.is_sorted_by(|a, b| digits(*a, values) < digits(*b, values)));
        }
        for (grid, values) in [(&IQ3_XXS[..], IQ3_XXS_VALUES), (&IQ3_S, IQ3_S_VALUES)] {
            assert!(grid.iter().flat_map(|e| e.to_le_bytes()).all(|b| values.contains(&b.cast_signed())));
        }
        assert_eq!(IQ2_XXS[1], 0x0808_0808_0808_082b);
    }

    fn digits(entry: u64, values: [i8; 3]) -> u64 {
        let digit = |b: u8| values.iter().position(|v| *v == b.cast_signed()).unwrap() as u64;
        entry.to_le_bytes().iter().rev().fold(0, |n, b| 4 * n + digit(*b))
    }

    #[test]
    fn signs_are_even() {
        for v in 0..128_u32 {
            let signs = even_signs(v | (127 - v) << 7 | v << 14 | (v ^ 1) << 21).to_le_bytes();
            assert_eq!(even_sign(v as u16), signs[0]);
            for (byte, seven) in signs.into_iter().zip([v, 127 - v, v, v ^ 1]) {
                assert_eq!((byte & 127) as u32, seven);
                assert!(byte.count_ones().is_multiple_of(2));
            }
        }
    }

    #[test]
    fn signs_are_packed_as_they_are_read() {
        for signs in [[0, 0x81, 0x7e, 0xff], [3, 5, 6, 0xc0]] {
            assert_eq!(even_signs(seven_signs(signs) | 15 << 28).to_le_bytes(), signs);
        }
    }

    #[test]
    fn nibbles_become_odd_scales() {
        let odd: [u8; 16] = from_fn(|i| 2 * i as u8 + 1);
        assert_eq!(odd_scales_16([0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]), odd);
        assert_eq!(odd_scales_8([0x10, 0x32, 0x54, 0x76])[..8], odd[..8]);
        assert_eq!(
            top_scales(from_fn(|j| [255, 255, 255, (2 * j as u8) << 4 | 15]))[..8],
            from_fn::<_, 8, _>(|j| odd[2 * j])
        );
    }
}
