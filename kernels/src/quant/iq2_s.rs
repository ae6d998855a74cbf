//! IQ2_S: 256 weights in 82 bytes, 2.5625 bits per weight: vectors of eight weights from a grid of 1024, sixteen groups of
//! 16 with a scale each.
//!
//! ```text
//! byte 0       2          34           66         74           82
//!      | d f16 | low 32 B | signs 32 B | high 8 B | scales 8 B |
//!
//! w_i = d / 8 (2 sc_g + 1) s_i GRID[n_v][i % 8]     vector v = i / 8;  group g = i / 16;  n in 0..1024;  sc in 0..16
//!
//! low, byte v:                      bits 7..0 of n[v]
//! high, byte j, bits 2 k + 1..2 k:  bits 9..8 of n[4 j + k]
//! signs, byte v, bit k:             s[8 v + k] is -1 where set
//! scales, byte k:                   bits 3..0 = sc[2 k],  bits 7..4 = sc[2 k + 1]
//! ```

use super::activation::Q8x256;
use super::block::{Block, weighted_blocks};
use super::grid_block::{self, Coded, Entries, GridBlock, sixteen};
use super::grid_neighbours::{Grid, Neighbours, Signs};
use super::grid_search;
use super::grids::{IQ2_S, IQ2_VALUES, lookup_eights, numbers, odd_scales_16, repeated};
use super::superblock::SuperBlockDot;
use crate::matmul::IntegerDot;
use crate::simd::{Indices, Isa};
use bytemuck::{Pod, Zeroable};
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: d, the lower bits of 32 vectors' numbers, signs, the upper bits, packed scales.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2S {
    d: [u8; 2],
    low: [[u8; 16]; 2],
    signs: [[u8; 4]; 8],
    high: [u8; 8],
    scales: [u8; 8],
}
const _: () = assert!(size_of::<Iq2S>() == 82);

const GRID: Grid<8, 3> = Grid {
    entry: |n| IQ2_S[n].to_le_bytes(),
    len: 1024,
    values: IQ2_VALUES,
    signs: Signs::Free,
    scales: 16,
    groups: 3,
};
static NEIGHBOURS: Neighbours<8> = Neighbours::new();

/// The byte of `high` for each of 16 vectors, twice.
static HIGH: [[u8; 32]; 2] = [repeated(0, 1, 8), repeated(4, 1, 8)];

impl Block for Iq2S {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[2..66, 66..82, 0..2];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq2S {
        grid_search::quantize(isa, x, None, (&GRID, &NEIGHBOURS))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq2S]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            *out = grid_search::quantize(isa, x, Some(importance), (&GRID, &NEIGHBOURS));
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        grid_block::dequantize(isa, self, y);
    }
}

impl GridBlock for Iq2S {
    const SUBS: usize = 16;
    const UNIT: f32 = 0.125;
    type Unpacked = [Indices<1024>; 2];
    const ENTRIES: Entries = Entries::Magnitudes;

    #[inline(always)]
    fn scales<I: Isa>(&self, _: I) -> [[u8; 8]; 2] {
        odd_scales_16(self.scales)
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }

    #[inline(always)]
    fn unpack<I: Isa>(&self, isa: I) -> Self::Unpacked {
        let mut out = Self::Unpacked::default();
        for h in 0..2 {
            let high = isa.table_lookup(sixteen::<_, 66>(self), isa.bytes(&HIGH[h]));
            // Bits 2 k + 1..2 k move to 9..8.
            let high = isa.mul_words(high, isa.set_u64([0x0004_0010_0040_0100; 4]));
            out[h] = Indices::new(isa, numbers(isa, &self.low[h], high, 0x300));
        }
        out
    }

    #[inline(always)]
    fn entries<I: Isa>(&self, isa: I, unpacked: &Self::Unpacked) -> [I::Bytes; 8] {
        lookup_eights(isa, &IQ2_S, unpacked)
    }

    #[inline(always)]
    fn signs<'a>(&'a self, _: &'a Self::Unpacked) -> &'a [[u8; 4]; 8] {
        &self.signs
    }

    fn from_coded(d: [u8; 2], coded: &Coded) -> Iq2S {
        let n = &coded.entries;
        Iq2S {
            d,
            low: from_fn(|h| from_fn(|i| n[16 * h + i] as u8)),
            signs: from_fn(|j| from_fn(|k| coded.signs[4 * j + k])),
            high: from_fn(|j| (0..4).map(|k| ((n[4 * j + k] >> 8) as u8) << (2 * k)).sum()),
            scales: from_fn(|k| coded.scales[2 * k] | coded.scales[2 * k + 1] << 4),
        }
    }
}
