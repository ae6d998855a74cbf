//! IQ2_XS: 256 weights in 74 bytes, 2.3125 bits per weight: vectors of eight weights from a grid of 512, sixteen groups of
//! 16 with a scale each.
//!
//! ```text
//! byte 0       2                     66           74
//!      | d f16 | 32 vectors x 16 bit | scales 8 B |
//!
//! w_i = d / 8 (2 sc_g + 1) s_i GRID[n_v][i % 8]     vector v = i / 8;  group g = i / 16;  n in 0..512;  sc in 0..16
//!
//! vector v, bits 8..0:              n[v]
//!           bits 9 + k, k = 0..7:   s[8 v + k] is -1 where set; the eighth sign makes the number of negative weights even
//! scales, byte k:                   bits 3..0 = sc[2 k],  bits 7..4 = sc[2 k + 1]
//! ```

use super::activation::Q8x256;
use super::block::{Block, weighted_blocks};
use super::grid_block::{self, Coded, Entries, GridBlock};
use super::grid_neighbours::{Grid, Neighbours, Signs};
use super::grid_search;
use super::grids::{IQ2_VALUES, IQ2_XS, even_signs, lookup_eights, odd_scales_16};
use super::superblock::SuperBlockDot;
use crate::matmul::IntegerDot;
use crate::simd::{Indices, Isa};
use bytemuck::{Pod, Zeroable};
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: d, numbers and signs of 32 vectors, packed scales.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq2Xs {
    d: [u8; 2],
    vectors: [[[u8; 2]; 4]; 8],
    scales: [u8; 8],
}
const _: () = assert!(size_of::<Iq2Xs>() == 74);

const GRID: Grid<8, 3> = Grid {
    entry: |n| IQ2_XS[n].to_le_bytes(),
    len: 512,
    values: IQ2_VALUES,
    signs: Signs::Even,
    scales: 16,
    groups: 3,
};
static NEIGHBOURS: Neighbours<8> = Neighbours::new();

impl Block for Iq2Xs {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[2..66, 66..74, 0..2];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq2Xs {
        grid_search::quantize(isa, x, None, (&GRID, &NEIGHBOURS))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq2Xs]) {
        for ((x, importance), out) in weighted_blocks::<Self>(x, importance).zip(out) {
            *out = grid_search::quantize(isa, x, Some(importance), (&GRID, &NEIGHBOURS));
        }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        grid_block::dequantize(isa, self, y);
    }
}

impl Iq2Xs {
    #[inline(always)]
    fn words<I: Isa>(&self, isa: I) -> [I::Bytes; 2] {
        let [a, b] = bytemuck::cast_ref::<_, [[u8; 32]; 2]>(&self.vectors);
        [isa.bytes(a), isa.bytes(b)]
    }
}

impl GridBlock for Iq2Xs {
    const SUBS: usize = 16;
    const UNIT: f32 = 0.125;
    type Unpacked = ([Indices<512>; 2], [[u8; 4]; 8]);
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
        let [a, b] = self.words(isa);
        let signs = even_signs(isa, isa.shr::<1>(isa.upper_bytes(a, b)));
        ([Indices::new(isa, a), Indices::new(isa, b)], signs)
    }

    #[inline(always)]
    fn entries<I: Isa>(&self, isa: I, unpacked: &Self::Unpacked) -> [I::Bytes; 8] {
        lookup_eights(isa, &IQ2_XS, &unpacked.0)
    }

    #[inline(always)]
    fn signs<'a>(&'a self, unpacked: &'a Self::Unpacked) -> &'a [[u8; 4]; 8] {
        &unpacked.1
    }

    fn from_coded(d: [u8; 2], coded: &Coded) -> Iq2Xs {
        let vector = |v: usize| (coded.entries[v] | (coded.signs[v] as u16) << 9).to_le_bytes();
        Iq2Xs {
            d,
            vectors: from_fn(|j| from_fn(|k| vector(4 * j + k))),
            scales: from_fn(|k| coded.scales[2 * k] | coded.scales[2 * k + 1] << 4),
        }
    }
}
