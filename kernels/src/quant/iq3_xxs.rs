//! IQ3_XXS: 256 weights in 98 bytes, 3.0625 bits per weight: vectors of four weights from a grid of 256, eight sub-blocks
//! of 32 with a scale each.
//!
//! ```text
//! byte 0       2         66                98
//!      | d f16 | n 64 B  | tails 8 x 32 bit |
//!
//! w_i = d / 4 (2 sc_j + 1) s_i GRID[n_v][i % 4]     vector v = i / 4;  sub-block j = i / 32;  sc in 0..16
//!
//! tail of sub-block j, bits 7 b + k, k = 0..7:  s[32 j + 8 b + k] is -1 where set; the eighth sign of b = 0..4 makes the
//!                                               number of negative weights even
//!                      bits 31..28:             sc[j]
//! ```

use super::activation::Q8x256;
use super::block::{Block, weighted_blocks};
use super::grid_block::{self, Coded, Entries, GridBlock};
use super::grid_neighbours::{Grid, Neighbours, Signs};
use super::grid_search;
use super::grids::{IQ3_XXS, IQ3_XXS_VALUES, even_signs, seven_signs, top_scales};
use super::superblock::SuperBlockDot;
use crate::matmul::IntegerDot;
use crate::simd::{Indices, Isa};
use bytemuck::{Pod, Zeroable};
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: d, the numbers of 64 vectors, signs and scales of the sub-blocks.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq3Xxs {
    d: [u8; 2],
    n: [[u8; 16]; 4],
    tails: [[u8; 4]; 8],
}
const _: () = assert!(size_of::<Iq3Xxs>() == 98);

const GRID: Grid<4, 8> = Grid {
    entry: |n| IQ3_XXS.entries[n].to_le_bytes(),
    len: 256,
    values: IQ3_XXS_VALUES,
    signs: Signs::Even,
    scales: 16,
    groups: 2,
};
static NEIGHBOURS: Neighbours<4> = Neighbours::new();

impl Block for Iq3Xxs {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[2..98, 0..2];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq3Xxs {
        grid_search::quantize(isa, x, None, (&GRID, &NEIGHBOURS))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq3Xxs]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            *out = grid_search::quantize(isa, x, Some(importance), (&GRID, &NEIGHBOURS));
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        grid_block::dequantize(isa, self, y);
    }
}

impl GridBlock for Iq3Xxs {
    const SUBS: usize = 8;
    const UNIT: f32 = 0.25;
    type Unpacked = ([Indices<256>; 4], [[u8; 4]; 8]);
    const ENTRIES: Entries = Entries::Magnitudes;

    #[inline(always)]
    fn scales<I: Isa>(&self, isa: I) -> [[u8; 8]; 2] {
        top_scales(isa, isa.bytes(bytemuck::cast_ref(&self.tails)))
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }

    #[inline(always)]
    fn unpack<I: Isa>(&self, isa: I) -> Self::Unpacked {
        let mut numbers = [Indices::default(); 4];
        for p in 0..4 {
            numbers[p] = Indices::new(isa, isa.words(&self.n[p]));
        }
        (numbers, even_signs(isa, isa.sevens(isa.bytes(bytemuck::cast_ref(&self.tails)))))
    }

    #[inline(always)]
    fn entries<I: Isa>(&self, isa: I, unpacked: &Self::Unpacked) -> [I::Bytes; 8] {
        isa.lookup_fours(&IQ3_XXS, &unpacked.0)
    }

    #[inline(always)]
    fn signs<'a>(&'a self, unpacked: &'a Self::Unpacked) -> &'a [[u8; 4]; 8] {
        &unpacked.1
    }

    fn from_coded(d: [u8; 2], coded: &Coded) -> Iq3Xxs {
        Iq3Xxs {
            d,
            n: from_fn(|p| from_fn(|i| coded.entries[16 * p + i] as u8)),
            tails: from_fn(|j| {
                let signs = seven_signs(from_fn(|b| coded.signs[4 * j + b]));
                (signs | (coded.scales[j] as u32) << 28).to_le_bytes()
            }),
        }
    }
}
