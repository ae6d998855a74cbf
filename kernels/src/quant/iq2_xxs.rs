//! IQ2_XXS: 256 weights in 66 bytes, 2.0625 bits per weight: vectors of eight weights from a grid of 256, eight sub-blocks
//! of 32 with a scale each.
//!
//! ```text
//! byte 0       2                    66
//!      | d f16 | 8 sub-blocks x 8 B |     sub-block j: | n 4 B | tail 32 bit |
//!
//! w_i = d / 8 (2 sc_j + 1) s_i GRID[n_v][i % 8]     vector v = i / 8;  sub-block j = i / 32;  sc in 0..16
//!
//! tail, bits 7 b + k, k = 0..7:  s[32 j + 8 b + k] is -1 where set; the eighth sign of b = 0..4 makes the number of
//!                                negative weights even
//!       bits 31..28:             sc[j]
//! ```

use super::activation::Q8x256;
use super::block::{Block, weighted_blocks};
use super::grid_block::{self, Coded, Entries, GridBlock};
use super::grid_neighbours::{Grid, Neighbours, Signs};
use super::grid_search;
use super::grids::{IQ2_VALUES, IQ2_XXS, even_signs, seven_signs, top_scales};
use super::superblock::SuperBlockDot;
use crate::matmul::IntegerDot;
use crate::simd::Isa;
use bytemuck::{Pod, Zeroable};
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: d, and for each sub-block the numbers of four vectors, signs and scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2Xxs {
    d: [u8; 2],
    subs: [[[u8; 4]; 2]; 8],
}
const _: () = assert!(size_of::<Iq2Xxs>() == 66);

const GRID: Grid<8, 3> = Grid {
    entry: |n| IQ2_XXS[n].to_le_bytes(),
    len: 256,
    values: IQ2_VALUES,
    signs: Signs::Even,
    scales: 16,
    groups: 3,
};
static NEIGHBOURS: Neighbours<8> = Neighbours::new();

impl Block for Iq2Xxs {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[2..66, 0..2];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq2Xxs {
        grid_search::quantize(isa, x, None, (&GRID, &NEIGHBOURS))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq2Xxs]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            *out = grid_search::quantize(isa, x, Some(importance), (&GRID, &NEIGHBOURS));
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        grid_block::dequantize(isa, self, y);
    }
}

impl Iq2Xxs {
    #[inline(always)]
    fn tails<I: Isa>(&self, isa: I) -> I::Bytes {
        isa.odd_fours(bytemuck::cast_ref(&self.subs))
    }
}

impl GridBlock for Iq2Xxs {
    const SUBS: usize = 8;
    const UNIT: f32 = 0.125;
    type Unpacked = [[u8; 4]; 8];
    const ENTRIES: Entries = Entries::Magnitudes;

    #[inline(always)]
    fn scales<I: Isa>(&self, isa: I) -> [[u8; 8]; 2] {
        top_scales(isa, self.tails(isa))
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }

    #[inline(always)]
    fn unpack<I: Isa>(&self, isa: I) -> Self::Unpacked {
        even_signs(isa, isa.sevens(self.tails(isa)))
    }

    #[inline(always)]
    fn entries<I: Isa>(&self, isa: I, _: &Self::Unpacked) -> [I::Bytes; 8] {
        let mut out = [isa.splat_byte(0); 8];
        for j in 0..8 {
            let n = self.subs[j][0];
            let mut entries = [0; 4];
            for k in 0..4 {
                entries[k] = IQ2_XXS[n[k] as usize];
            }
            out[j] = isa.set_u64(entries);
        }
        out
    }

    #[inline(always)]
    fn signs<'a>(&'a self, unpacked: &'a Self::Unpacked) -> &'a [[u8; 4]; 8] {
        unpacked
    }

    fn from_coded(d: [u8; 2], coded: &Coded) -> Iq2Xxs {
        let sub = |j: usize| {
            let signs = seven_signs(from_fn(|b| coded.signs[4 * j + b]));
            let tail = signs | (coded.scales[j] as u32) << 28;
            [from_fn(|k| coded.entries[4 * j + k] as u8), tail.to_le_bytes()]
        };
        Iq2Xxs { d, subs: from_fn(sub) }
    }
}
