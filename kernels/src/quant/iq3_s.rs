//! IQ3_S: 256 weights in 110 bytes, 3.4375 bits per weight: vectors of four weights from a grid of 512, eight sub-blocks
//! of 32 with a scale each.
//!
//! ```text
//! byte 0       2          66         74           106          110
//!      | d f16 | low 64 B | high 8 B | signs 32 B | scales 4 B |
//!
//! w_i = d (2 sc_j + 1) s_i GRID[n_v][i % 4]     vector v = i / 4;  sub-block j = i / 32;  n in 0..512;  sc in 0..16
//!
//! low, byte v:                  bits 7..0 of n[v]
//! high, byte j, bit k:          bit 8 of n[8 j + k]
//! signs, byte b, bit k:         s[8 b + k] is -1 where set
//! scales, byte k:               bits 3..0 = sc[2 k],  bits 7..4 = sc[2 k + 1]
//! ```

use super::activation::Q8x256;
use super::block::{Block, weighted_blocks};
use super::grid_block::{self, Coded, Entries, GridBlock, sixteen};
use super::grid_neighbours::{Grid, Neighbours, Signs};
use super::grid_search;
use super::grids::{IQ3_S, IQ3_S_VALUES, numbers, odd_scales_8, repeated};
use super::superblock::SuperBlockDot;
use crate::matmul::IntegerDot;
use crate::simd::{Indices, Isa};
use bytemuck::{Pod, Zeroable};
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: d, the numbers of 64 vectors, signs, packed scales.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq3S {
    d: [u8; 2],
    low: [[u8; 16]; 4],
    high: [u8; 8],
    signs: [[u8; 4]; 8],
    scales: [u8; 4],
}
const _: () = assert!(size_of::<Iq3S>() == 110);

const GRID: Grid<4, 8> = Grid {
    entry: |n| IQ3_S.entries[n].to_le_bytes(),
    len: 512,
    values: IQ3_S_VALUES,
    signs: Signs::Free,
    scales: 16,
    groups: 2,
};
static NEIGHBOURS: Neighbours<4> = Neighbours::new();

/// The byte of `high` for each of 16 vectors, twice.
static HIGH: [[u8; 32]; 4] = [repeated(0, 1, 16), repeated(2, 1, 16), repeated(4, 1, 16), repeated(6, 1, 16)];
/// Factors that move bit k to bit 8, of four bits each.
const BIT_TO_8: [u64; 2] = [0x0020_0040_0080_0100, 0x0002_0004_0008_0010];

impl Block for Iq3S {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[2..66, 66..110, 0..2];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq3S {
        grid_search::quantize(isa, x, None, (&GRID, &NEIGHBOURS))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq3S]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            *out = grid_search::quantize(isa, x, Some(importance), (&GRID, &NEIGHBOURS));
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        grid_block::dequantize(isa, self, y);
    }
}

impl GridBlock for Iq3S {
    const SUBS: usize = 8;
    const UNIT: f32 = 1.0;
    type Unpacked = [Indices<512>; 4];
    const ENTRIES: Entries = Entries::Magnitudes;
    const MATRIX_TOKENS: usize = 48;

    #[inline(always)]
    fn scales<I: Isa>(&self, _: I) -> [[u8; 8]; 2] {
        odd_scales_8(self.scales)
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }

    #[inline(always)]
    fn unpack<I: Isa>(&self, isa: I) -> Self::Unpacked {
        let mut out = Self::Unpacked::default();
        for p in 0..4 {
            let high = isa.table_lookup(sixteen::<_, 66>(self), isa.bytes(&HIGH[p]));
            // Bit k moves to 8.
            let high = isa.mul_words(high, isa.set_u64([BIT_TO_8[0], BIT_TO_8[1], BIT_TO_8[0], BIT_TO_8[1]]));
            out[p] = Indices::new(isa, numbers(isa, &self.low[p], high, 0x100));
        }
        out
    }

    #[inline(always)]
    fn entries<I: Isa>(&self, isa: I, unpacked: &Self::Unpacked) -> [I::Bytes; 8] {
        isa.lookup_fours(&IQ3_S, unpacked)
    }

    #[inline(always)]
    fn signs<'a>(&'a self, _: &'a Self::Unpacked) -> &'a [[u8; 4]; 8] {
        &self.signs
    }

    fn from_coded(d: [u8; 2], coded: &Coded) -> Iq3S {
        let n = &coded.entries;
        Iq3S {
            d,
            low: from_fn(|p| from_fn(|i| n[16 * p + i] as u8)),
            high: from_fn(|j| (0..8).map(|k| ((n[8 * j + k] >> 8) as u8) << k).sum()),
            signs: from_fn(|j| from_fn(|k| coded.signs[4 * j + k])),
            scales: from_fn(|k| coded.scales[2 * k] | coded.scales[2 * k + 1] << 4),
        }
    }
}
