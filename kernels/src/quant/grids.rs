//! The codebooks of the IQ1, IQ2 and IQ3 formats: vectors of eight or four weights, of which a block stores the number.
//!
//! `make_grids.py` makes `grids.bin` from the tables in llama.cpp's Python package `gguf`: 16 bits an entry, eight digits of
//! two bits or four of three, the first weight lowest. The tables here are expanded at compile time, so that a lookup
//! gives bytes. Next: `grid_block`, the products with them.

use crate::simd::{Fours, Indices, Isa};

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
pub(super) static IQ3_XXS: Fours<256> = fours(256 + 512 + 1024, &IQ3_XXS_VALUES);
pub(super) static IQ3_S: Fours<512> = fours(256 + 512 + 1024 + 256, &IQ3_S_VALUES);
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

const fn fours<const N: usize>(first: usize, values: &[i8; 8]) -> Fours<N> {
    let mut nibbles = [0; N];
    let mut i = 0;
    while i < 4 * N {
        nibbles[i / 4] |= (packed(first + i / 4) >> (3 * (i % 4)) & 7) << (i % 4 * 4);
        i += 1;
    }
    let mut sixteen = [0; 16];
    let (eight, _) = sixteen.split_at_mut(8);
    eight.copy_from_slice(values);
    Fours::new(nibbles, sixteen)
}

/// Numbers of bytes to repeat with [`Isa::table_lookup`]: from `first` on `width` bytes, until there are `len`, then the
/// `width` bytes after them.
pub(super) const fn repeated(first: u8, width: u8, len: u8) -> [u8; 32] {
    let mut out = [0; 32];
    let mut i = 0;
    while i < 32 {
        out[i as usize] = first + i / len * width + i % width;
        i += 1;
    }
    out
}

/// Sixteen numbers of vectors: `low`, and above it the bits of `mask` in sixteen words.
#[inline(always)]
pub(super) fn numbers<I: Isa>(isa: I, low: &[u8; 16], high: I::Bytes, mask: u16) -> I::Bytes {
    let [a, b] = mask.to_le_bytes();
    isa.or(isa.words(low), isa.and(high, isa.broadcast_u32([a, b, a, b])))
}

/// Looks up 32 vectors of eight weights.
#[inline(always)]
pub(super) fn lookup_eights<I: Isa, const N: usize>(
    isa: I,
    grid: &[u64; N],
    numbers: &[Indices<N>; 2],
) -> [I::Bytes; 8] {
    let mut out = [isa.splat_byte(0); 8];
    for j in 0..8 {
        let mut entries = [0; 4];
        for k in 0..4 {
            entries[k] = numbers[j / 4].of(grid, j % 4 * 4 + k);
        }
        out[j] = isa.set_u64(entries);
    }
    out
}

/// Signs of eight weights in each byte: the seven that are stored, and an eighth that makes the number of negative weights
/// even.
#[inline(always)]
pub(super) fn even_signs<I: Isa>(isa: I, sevens: I::Bytes) -> [[u8; 4]; 8] {
    // Adding bytes that are 0 or 128 is an exclusive or.
    let low = isa.table_lookup(&PARITY, isa.and(sevens, isa.splat_byte(15)));
    let parity = isa.add_bytes(low, isa.table_lookup(&PARITY, isa.shr::<4>(sevens)));
    let mut out = [0; 32];
    isa.store_bytes(isa.add_bytes(sevens, parity), &mut out);
    bytemuck::cast(out)
}

/// -128 where an odd number of bits is set.
static PARITY: [i8; 16] = {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i as usize] = if u8::count_ones(i) % 2 == 1 { i8::MIN } else { 0 };
        i += 1;
    }
    out
};

/// The lower seven of four times eight signs, as [`Isa::sevens`] reads them.
pub(super) fn seven_signs(signs: [u8; 4]) -> u32 {
    (0..4).map(|b| (signs[b] as u32 & 127) << (7 * b)).sum()
}

/// 2 sc + 1 of eight scales in nibbles, the lower one first.
#[inline(always)]
pub(super) fn odd_scales_8(nibbles: [u8; 4]) -> [[u8; 8]; 2] {
    let mut v = u32::from_le_bytes(nibbles) as u64;
    v = (v | v << 16) & 0x0000_ffff_0000_ffff;
    v = (v | v << 8) & 0x00ff_00ff_00ff_00ff;
    v = (v | v << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    [(v << 1 | ONES).to_le_bytes(); 2]
}

/// 2 sc + 1 of sixteen scales in nibbles: of the lower ones, then of the upper.
#[inline(always)]
pub(super) fn odd_scales_16(nibbles: [u8; 8]) -> [[u8; 8]; 2] {
    let v = u64::from_le_bytes(nibbles);
    let (low, high) = (v & 0x0f0f_0f0f_0f0f_0f0f, v >> 4 & 0x0f0f_0f0f_0f0f_0f0f);
    [(low << 1 | ONES).to_le_bytes(), (high << 1 | ONES).to_le_bytes()]
}
/// A one in each of eight bytes.
pub(super) const ONES: u64 = 0x0101_0101_0101_0101;

/// 2 sc + 1 of eight scales in the upper bits of each four bytes.
#[inline(always)]
pub(super) fn top_scales<I: Isa>(isa: I, tails: I::Bytes) -> [[u8; 8]; 2] {
    let odd = isa.unsigned_byte(isa.or(isa.shr::<3>(tails), isa.splat_byte(1)), 3);
    let mut out = [0; 32];
    isa.store_bytes(isa.pack_i8([odd; 4]), &mut out);
    [*out.first_chunk().expect("32 bytes"); 2]
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
    use crate::simd::Scalar;
    use std::array::from_fn;

    #[test]
    fn entries_have_the_values_of_their_digits_and_are_distinct() {
        for (grid, values) in
            [(&IQ2_XXS[..], IQ2_VALUES), (&IQ2_XS, IQ2_VALUES), (&IQ2_S, IQ2_VALUES), (&IQ1, IQ1_VALUES)]
        {
            assert!(grid.iter().flat_map(|e| e.to_le_bytes()).all(|b| values.contains(&b.cast_signed())));
            assert!(grid.is_sorted_by(|a, b| digits(*a, values) < digits(*b, values)));
        }
        for (grid, values) in [(&IQ3_XXS.entries[..], IQ3_XXS_VALUES), (&IQ3_S.entries, IQ3_S_VALUES)] {
            assert!(grid.iter().flat_map(|e| e.to_le_bytes()).all(|b| values.contains(&b.cast_signed())));
        }
        assert_eq!(IQ2_XXS[1], 0x0808_0808_0808_082b);
    }

    fn digits(entry: u64, values: [i8; 3]) -> u64 {
        let digit = |b: u8| values.iter().position(|v| *v == b.cast_signed()).unwrap() as u64;
        entry.to_le_bytes().iter().rev().fold(0, |n, b| 4 * n + digit(*b))
    }

    #[test]
    fn signs_are_even_and_packed_as_they_are_read() {
        for v in 0..128_u8 {
            let signs = [v, 127 - v, v ^ 1, v ^ 64].map(|v| v | (v.count_ones() as u8 & 1) << 7);
            let isa = Scalar::detect();
            let stored = seven_signs(signs) | 15 << 28;
            let all = even_signs(isa, isa.sevens(isa.broadcast_u32(stored.to_le_bytes())));
            assert_eq!(all, [signs; 8]);
        }
    }

    #[test]
    fn nibbles_become_odd_scales() {
        let (even, odd) = (from_fn(|i| 4 * i as u8 + 1), from_fn(|i| 4 * i as u8 + 3));
        assert_eq!(odd_scales_16([0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]), [even, odd]);
        assert_eq!(odd_scales_8([0x10, 0x32, 0x54, 0x76]), [from_fn(|i| 2 * i as u8 + 1); 2]);
        let tails: [[u8; 4]; 8] = from_fn(|j| [255, 255, 255, (2 * j as u8) << 4 | 15]);
        let isa = Scalar::detect();
        assert_eq!(top_scales(isa, isa.bytes(bytemuck::cast_ref(&tails))), [even; 2]);
    }
}
