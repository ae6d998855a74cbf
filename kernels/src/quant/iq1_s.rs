//! IQ1_S: 256 weights in 50 bytes, 1.5625 bits per weight: vectors of eight weights from a grid of 2048, eight sub-blocks
//! of 32 with a scale and an offset each.
//!
//! ```text
//! byte 0       2          34                  50
//!      | d f16 | low 32 B | heads 8 x 16 bit |
//!
//! w_i = d (2 sc_j + 1) (GRID[n_v][i % 8] + o_j)     vector v = i / 8;  sub-block j = i / 32;  n in 0..2048;  sc in 0..8
//!     = d / 8 (2 sc_j + 1) (8 GRID[n_v][i % 8] + 8 o_j)            GRID in -1..2;  o = 1/8 or -1/8
//!
//! low, byte v:                                bits 7..0 of n[v]
//! head of sub-block j, bits 3 k + 2 .. 3 k:   bits 10..8 of n[4 j + k], k = 0..4
//!                      bits 14..12:           sc[j]
//!                      bit 15:                o[j] is -1/8 where set
//! ```

use super::activation::Q8x256;
use super::block::{Block, weighted_blocks};
use super::grid_block::{self, Coded, Entries, GridBlock};
use super::grid_neighbours::{Grid, Neighbours, Signs};
use super::grid_search;
use super::grids::{IQ1, IQ1_BIAS, IQ1_VALUES, lookup_eights, numbers, offsets, repeated};
use super::superblock::SuperBlockDot;
use crate::matmul::IntegerDot;
use crate::simd::{Indices, Isa};
use bytemuck::{Pod, Zeroable};
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: d, the lower bits of 32 vectors' numbers; their upper bits with scales and offsets.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq1S {
    d: [u8; 2],
    low: [[u8; 16]; 2],
    heads: [[u8; 2]; 8],
}
const _: () = assert!(size_of::<Iq1S>() == 50);

const GRID: Grid<8, 3> = Grid {
    entry: |n| IQ1[n].to_le_bytes(),
    len: 2048,
    values: IQ1_VALUES,
    signs: Signs::Offset(4),
    scales: 8,
    groups: 4,
};
static NEIGHBOURS: Neighbours<8> = Neighbours::new();

/// The bytes of `heads` for each of 16 vectors.
static HIGH: [[u8; 32]; 2] = [repeated(0, 2, 8), repeated(8, 2, 8)];

impl Block for Iq1S {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[2..34, 34..50, 0..2];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq1S {
        grid_search::quantize(isa, x, None, (&GRID, &NEIGHBOURS))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq1S]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            *out = grid_search::quantize(isa, x, Some(importance), (&GRID, &NEIGHBOURS));
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        grid_block::dequantize(isa, self, y);
    }
}

impl GridBlock for Iq1S {
    const SUBS: usize = 8;
    const UNIT: f32 = 0.125;
    type Unpacked = [Indices<2048>; 2];
    const ENTRIES: Entries = Entries::Biased(IQ1_BIAS);

    #[inline(always)]
    fn scales<I: Isa>(&self, isa: I) -> [[u8; 8]; 2] {
        let heads = isa.twice(bytemuck::cast_ref(&self.heads));
        let sc = isa.and(isa.shr::<4>(isa.upper_bytes(heads, heads)), isa.splat_byte(7));
        let mut out = [0; 32];
        isa.store_bytes(isa.or(isa.shl::<1>(sc), isa.splat_byte(1)), &mut out);
        [*out.first_chunk().expect("32 bytes"); 2]
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }

    #[inline(always)]
    fn unpack<I: Isa>(&self, isa: I) -> Self::Unpacked {
        let mut out = Self::Unpacked::default();
        for h in 0..2 {
            let high = isa.table_lookup(bytemuck::cast_ref(&self.heads), isa.bytes(&HIGH[h]));
            // Bits 3 k + 2..3 k move to 13..11, then to 10..8.
            let high = isa.mul_words(high, isa.set_u64([0x0004_0020_0100_0800; 4]));
            out[h] = Indices::new(isa, numbers(isa, &self.low[h], isa.shr::<3>(high), 0x700));
        }
        out
    }

    #[inline(always)]
    fn entries<I: Isa>(&self, isa: I, unpacked: &Self::Unpacked) -> [I::Bytes; 8] {
        let mut entries = lookup_eights(isa, &IQ1, unpacked);
        for j in 0..8 {
            entries[j] =
                isa.add_bytes(entries[j], offsets(isa, if self.heads[j][1] >> 7 == 1 { 15 } else { 0 }));
        }
        entries
    }

    #[inline(always)]
    fn signs<'a>(&'a self, _: &'a Self::Unpacked) -> &'a [[u8; 4]; 8] {
        &[[0; 4]; 8]
    }

    fn from_coded(d: [u8; 2], coded: &Coded) -> Iq1S {
        let n = &coded.entries;
        let head = |j: usize| {
            let high: u16 = (0..4).map(|k| n[4 * j + k] >> 8 << (3 * k)).sum();
            (high | (coded.scales[j] as u16) << 12 | (coded.signs[4 * j] as u16) << 15).to_le_bytes()
        };
        Iq1S { d, low: from_fn(|h| from_fn(|i| n[16 * h + i] as u8)), heads: from_fn(head) }
    }
}
