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
use super::block::{Block, each_weighted};
use super::grid_block::{self, Coded, Entries, GridBlock};
use super::grid_neighbours::{Grid, Signs, Table};
use super::grid_search;
use super::grids::{IQ2_VALUES, IQ2_XS, even_sign, odd_scales_16};
use super::superblock::SuperBlockDot;
use crate::matmul::IntegerDot;
use crate::simd::Isa;
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
static TABLE: Table<8> = Table::new();

impl Block for Iq2Xs {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[2..66, 66..74, 0..2];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq2Xs {
        grid_search::quantize(isa, x, None, (&GRID, &TABLE))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq2Xs]) {
        each_weighted(x, importance, out, |x, importance| {
            grid_search::quantize(isa, x, Some(importance), (&GRID, &TABLE))
        });
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        grid_block::dequantize(isa, self, y);
    }
}

impl GridBlock for Iq2Xs {
    const SUBS: usize = 16;
    const UNIT: f32 = 0.125;
    const ENTRIES: Entries = Entries::Magnitudes;

    #[inline(always)]
    fn scales(&self) -> [u8; 16] {
        odd_scales_16(self.scales)
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        self.d
    }

    #[inline(always)]
    fn signs(&self) -> [[u8; 4]; 8] {
        let mut out = [0; 32];
        for v in 0..32 {
            out[v] = even_sign(u16::from_le_bytes(self.vectors.as_flattened()[v]) >> 9);
        }
        bytemuck::cast(out)
    }

    #[inline(always)]
    fn entries<I: Isa>(&self, isa: I, j: usize) -> I::Bytes {
        let v = self.vectors[j];
        let entry = |k: usize| IQ2_XS[u16::from_le_bytes(v[k]) as usize & 511];
        isa.set_u64([entry(0), entry(1), entry(2), entry(3)])
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
