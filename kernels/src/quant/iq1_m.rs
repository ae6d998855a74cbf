//! IQ1_M: 256 weights in 56 bytes, 1.75 bits per weight: vectors of eight weights from a grid of 2048 with an offset each,
//! sixteen groups of 16 with a scale each. The scale of the block is spread over the words of the scales.
//!
//! ```text
//! byte 0          32          48                 56
//!      | low 32 B | high 16 B | scales 4 x 16 bit |
//!
//! w_i = d (2 sc_g + 1) (GRID[n_v][i % 8] + o_v)     vector v = i / 8;  group g = i / 16;  n in 0..2048;  sc in 0..8
//!     = d / 8 (2 sc_g + 1) (8 GRID[n_v][i % 8] + 8 o_v)            GRID in -1..2;  o = 1/8 or -1/8
//!
//! low, byte v:       bits 7..0 of n[v]
//! high, byte b:      bits 2..0 = bits 10..8 of n[2 b],      bit 3: o[2 b] is -1/8 where set,
//!                    bits 6..4 = bits 10..8 of n[2 b + 1],  bit 7: o[2 b + 1] is -1/8 where set
//! scales, word k:    bits 3 i + 2 .. 3 i = sc[4 k + i], i = 0..4;  bits 15..12 = bits 4 k + 3 .. 4 k of d, a binary16
//! ```

use super::activation::Q8x256;
use super::block::{Block, weighted_blocks};
use super::grid_block::{self, Coded, Entries, GridBlock};
use super::grid_neighbours::{Grid, Neighbours, Signs};
use super::grid_search;
use super::grids::{IQ1, IQ1_BIAS, IQ1_VALUES, ONES, lookup_eights, numbers, offsets, repeated};
use super::superblock::SuperBlockDot;
use crate::matmul::IntegerDot;
use crate::simd::{Indices, Isa};
use bytemuck::{Pod, Zeroable};
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: the lower bits of 32 vectors' numbers; their upper bits with offsets; scales.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq1M {
    low: [[u8; 16]; 2],
    high: [[u8; 2]; 8],
    scales: [[u8; 2]; 4],
}
const _: () = assert!(size_of::<Iq1M>() == 56);

const GRID: Grid<8, 3> = Grid {
    entry: |n| IQ1[n].to_le_bytes(),
    len: 2048,
    values: IQ1_VALUES,
    signs: Signs::Offset(1),
    scales: 8,
    groups: 4,
};
static NEIGHBOURS: Neighbours<8> = Neighbours::new();

/// The bytes of `high` for each of 16 vectors.
static HIGH: [[u8; 32]; 2] = [repeated(0, 2, 8), repeated(8, 2, 8)];
/// A one in each of four words.
const EACH_16: u64 = 0x0001_0001_0001_0001;

impl Block for Iq1M {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[0..48, 48..56];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq1M {
        grid_search::quantize(isa, x, None, (&GRID, &NEIGHBOURS))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq1M]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            *out = grid_search::quantize(isa, x, Some(importance), (&GRID, &NEIGHBOURS));
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        grid_block::dequantize(isa, self, y);
    }
}

impl GridBlock for Iq1M {
    const SUBS: usize = 16;
    const UNIT: f32 = 0.125;
    type Unpacked = [Indices<2048>; 2];
    const ENTRIES: Entries = Entries::Biased(IQ1_BIAS);

    #[inline(always)]
    fn scales<I: Isa>(&self, _: I) -> [[u8; 8]; 2] {
        let words = u64::from_le_bytes(bytemuck::cast(self.scales));
        // Of four scales in a word the first and the third, then the second and the fourth, to a byte each.
        let first = words & (7 * EACH_16) | words << 2 & (0x700 * EACH_16);
        let second = words >> 3 & (7 * EACH_16) | words >> 1 & (0x700 * EACH_16);
        [(first << 1 | ONES).to_le_bytes(), (second << 1 | ONES).to_le_bytes()]
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        let words = u64::from_le_bytes(bytemuck::cast(self.scales));
        let d = words >> 12 & 15 | words >> 24 & 0xf0 | words >> 36 & 0xf00 | words >> 48 & 0xf000;
        (d as u16).to_le_bytes()
    }

    #[inline(always)]
    fn unpack<I: Isa>(&self, isa: I) -> Self::Unpacked {
        let mut out = Self::Unpacked::default();
        for h in 0..2 {
            let high = isa.table_lookup(bytemuck::cast_ref(&self.high), isa.bytes(&HIGH[h]));
            // Bits 4 k + 2..4 k move to 14..12, then to 10..8.
            let high = isa.mul_words(high, isa.set_u64([0x0001_0010_0100_1000; 4]));
            out[h] = Indices::new(isa, numbers(isa, &self.low[h], isa.shr::<4>(high), 0x700));
        }
        out
    }

    #[inline(always)]
    fn entries<I: Isa>(&self, isa: I, unpacked: &Self::Unpacked) -> [I::Bytes; 8] {
        let mut entries = lookup_eights(isa, &IQ1, unpacked);
        for j in 0..8 {
            // The product moves bits 3, 7, 11 and 15 to 12..16.
            let negative = ((u16::from_le_bytes(self.high[j]) as usize & 0x8888) * 0x249) >> 12;
            entries[j] = isa.add_bytes(entries[j], offsets(isa, negative));
        }
        entries
    }

    #[inline(always)]
    fn signs<'a>(&'a self, _: &'a Self::Unpacked) -> &'a [[u8; 4]; 8] {
        &[[0; 4]; 8]
    }

    fn from_coded(d: [u8; 2], coded: &Coded) -> Iq1M {
        let (n, d) = (&coded.entries, u16::from_le_bytes(d));
        let nibble = |v: usize| (n[v] >> 8) as u8 | coded.signs[v] << 3;
        let word = |k: usize| {
            let sc: u16 = (0..4).map(|i| (coded.scales[4 * k + i] as u16) << (3 * i)).sum();
            (sc | (d >> (4 * k) & 15) << 12).to_le_bytes()
        };
        Iq1M {
            low: from_fn(|h| from_fn(|i| n[16 * h + i] as u8)),
            high: from_fn(|j| from_fn(|b| nibble(4 * j + 2 * b) | nibble(4 * j + 2 * b + 1) << 4)),
            scales: from_fn(word),
        }
    }
}
