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
use super::block::{Block, each_weighted};
use super::grid_block::{self, Coded, Entries, GridBlock};
use super::grid_neighbours::{Grid, Signs, Table};
use super::grid_search;
use super::grids::{IQ1, IQ1_BIAS, IQ1_VALUES, offsets};
use super::superblock::SuperBlockDot;
use crate::matmul::IntegerDot;
use crate::simd::Isa;
use bytemuck::{Pod, Zeroable};
use std::array::from_fn;
use std::ops::Range;

/// 256 weights: the lower bits of 32 vectors' numbers; their upper bits with offsets; scales.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq1M {
    low: [[u8; 4]; 8],
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
static TABLE: Table<8> = Table::new();

/// A one in each of four words.
const EACH_32: u128 = 0x0000_0001_0000_0001_0000_0001_0000_0001;
/// A one in each of sixteen bytes.
const ONES: u128 = 0x0101_0101 * EACH_32;

impl Block for Iq1M {
    type X = Q8x256;
    type Dot = IntegerDot<SuperBlockDot>;
    const LEN: usize = 256;
    const CUDA_PLANES: &'static [Range<usize>] = &[0..48, 48..56];

    #[inline(always)]
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Iq1M {
        grid_search::quantize(isa, x, None, (&GRID, &TABLE))
    }

    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Iq1M]) {
        each_weighted(x, importance, out, |x, importance| {
            grid_search::quantize(isa, x, Some(importance), (&GRID, &TABLE))
        });
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        grid_block::dequantize(isa, self, y);
    }
}

impl GridBlock for Iq1M {
    const SUBS: usize = 16;
    const UNIT: f32 = 0.125;
    const ENTRIES: Entries = Entries::Biased(IQ1_BIAS);

    #[inline(always)]
    fn scales(&self) -> [u8; 16] {
        let words = u64::from_le_bytes(bytemuck::cast(self.scales)) as u128;
        // Each word to 32 bits, then its four scales to a byte each.
        let words = (words | words << 32) & 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff;
        let words = (words | words << 16) & 0x0000_ffff_0000_ffff_0000_ffff_0000_ffff;
        let pairs = (words & 0x003f_0000_003f_0000_003f_0000_003f) | (words & (0x0fc0 * EACH_32)) << 10;
        let sc = (pairs & (0x0007_0007 * EACH_32)) | (pairs & (0x0038_0038 * EACH_32)) << 5;
        (sc << 1 | ONES).to_le_bytes()
    }

    #[inline(always)]
    fn d(&self) -> [u8; 2] {
        let words = u64::from_le_bytes(bytemuck::cast(self.scales));
        let d = words >> 12 & 15 | words >> 24 & 0xf0 | words >> 36 & 0xf00 | words >> 48 & 0xf000;
        (d as u16).to_le_bytes()
    }

    #[inline(always)]
    fn signs(&self) -> [[u8; 4]; 8] {
        [[0; 4]; 8]
    }

    #[inline(always)]
    fn entries<I: Isa>(&self, isa: I, j: usize) -> I::Bytes {
        let (low, high) = (self.low[j], u16::from_le_bytes(self.high[j]) as usize);
        let entry = |k: usize| IQ1[low[k] as usize | (high >> (4 * k) & 7) << 8];
        let grid = isa.set_u64([entry(0), entry(1), entry(2), entry(3)]);
        let negative = high >> 3 & 1 | high >> 6 & 2 | high >> 9 & 4 | high >> 12 & 8;
        isa.add_bytes(grid, offsets(isa, negative))
    }

    fn from_coded(d: [u8; 2], coded: &Coded) -> Iq1M {
        let (n, d) = (&coded.entries, u16::from_le_bytes(d));
        let nibble = |v: usize| (n[v] >> 8) as u8 | coded.signs[v] << 3;
        let word = |k: usize| {
            let sc: u16 = (0..4).map(|i| (coded.scales[4 * k + i] as u16) << (3 * i)).sum();
            (sc | (d >> (4 * k) & 15) << 12).to_le_bytes()
        };
        Iq1M {
            low: from_fn(|j| from_fn(|k| n[4 * j + k] as u8)),
            high: from_fn(|j| from_fn(|b| nibble(4 * j + 2 * b) | nibble(4 * j + 2 * b + 1) << 4)),
            scales: from_fn(word),
        }
    }
}
