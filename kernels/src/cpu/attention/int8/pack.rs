//! Packs the Q8_0 rows of a part for int8 products: keys with a bias, values with the bytes of four rows interleaved.

use super::{FOURS, GROUPS};
use crate::cpu::Cpu;
use crate::cpu::attention::BLOCK;
use crate::cpu::cache::SEGMENT;
use crate::cpu::memory::Buffer;
use crate::matmul::gemv::PREFETCH_BYTES;
use crate::quant::Int8Block;
use crate::simd::{Isa, Kernel, PanelSimd};
use std::ops::Range;

/// The keys of groups of rows: 32 bytes of each row, block by block within a group, and the rows' scales.
pub(in crate::cpu) struct Int8Keys<'a> {
    /// Quants biased by `X_BIAS`, in the order `[groups][blocks][BLOCK]`.
    pub(super) bytes: &'a mut [[[u8; 32]; BLOCK]],
    /// One scale per block and row, `[groups][blocks][BLOCK]`.
    pub(super) scales: &'a mut [[f32; BLOCK]],
}

/// The values of a part's whole groups: bytes of four rows interleaved, block by block.
pub(in crate::cpu) struct Int8Values<'a> {
    /// `[blocks][FOURS]`: byte `4 c + r` is column c of row r.
    pub(super) bytes: &'a mut [[u8; 128]],
    /// Scale of each row over the largest of its group, `[blocks][SEGMENT]`.
    pub(super) scales: &'a mut [f32],
    /// Largest scale of each group, `[blocks][GROUPS]`.
    pub(super) largest: &'a mut [f32],
    /// What the bias of the weights adds to each column's sum over a group, `[blocks][GROUPS][32]`.
    pub(super) bias: &'a mut [[i32; 32]],
}

/// Memory for the packed rows of a part, of `keys` and `values` blocks per row.
pub(in crate::cpu) struct PartBuffers {
    buffer: Buffer,
    groups: usize,
    keys: usize,
    values: usize,
}

impl Int8Keys<'_> {
    /// The keys of some groups, of `blocks` blocks.
    pub(in crate::cpu) fn groups(&mut self, groups: Range<usize>, blocks: usize) -> Int8Keys<'_> {
        let blocks = groups.start * blocks..groups.end * blocks;
        Int8Keys { bytes: &mut self.bytes[blocks.clone()], scales: &mut self.scales[blocks] }
    }
}

impl PartBuffers {
    /// Buffers for the keys of `groups` groups and the values of all.
    pub(in crate::cpu) fn new(cpu: &Cpu, groups: usize, keys: usize, values: usize) -> PartBuffers {
        let [key, value] = [keys * groups * BLOCK * 9, values * (FOURS * 32 + SEGMENT + GROUPS * 33)];
        PartBuffers { buffer: cpu.buffers.floats(key + value), groups, keys, values }
    }

    pub(in crate::cpu) fn split(&mut self) -> (Int8Keys<'_>, Int8Values<'_>) {
        let (keys, values) = (self.groups * self.keys, self.values);
        let mut rest = self.buffer.floats_mut();
        let mut take = |n: usize| {
            let (taken, after) = std::mem::take(&mut rest).split_at_mut(n);
            rest = after;
            taken
        };
        let key_bytes = bytemuck::cast_slice_mut(take(keys * BLOCK * 8));
        let value_bytes = bytemuck::cast_slice_mut(take(values * FOURS * 32));
        let bias = bytemuck::cast_slice_mut(take(values * GROUPS * 32));
        (
            Int8Keys { bytes: key_bytes, scales: bytemuck::cast_slice_mut(take(keys * BLOCK)) },
            Int8Values {
                bytes: value_bytes,
                scales: take(values * SEGMENT),
                largest: take(values * GROUPS),
                bias,
            },
        )
    }
}

/// Packs blocks of rows as some of the keys' blocks.
pub(in crate::cpu) struct PackKeys<'a, 'b, B> {
    /// The blocks of each row, `[rows][stored]`, from the first one to pack on.
    pub rows: &'a [B],
    pub stored: usize,
    /// Which of a key's `all` blocks they are.
    pub blocks: Range<usize>,
    pub all: usize,
    pub keys: &'a mut Int8Keys<'b>,
}

impl<B: Int8Block> Kernel for PackKeys<'_, '_, B> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let bias = isa.splat_byte(I::Panel::X_BIAS);
        let out = self.keys.bytes.chunks_exact_mut(self.all).zip(self.keys.scales.chunks_exact_mut(self.all));
        for (rows, (bytes, scales)) in self.rows.chunks(BLOCK * self.stored).zip(out) {
            let (bytes, scales) = (&mut bytes[self.blocks.clone()], &mut scales[self.blocks.clone()]);
            // In memory order, which the hardware prefetches.
            for (r, row) in rows.chunks(self.stored).enumerate() {
                for (block, (bytes, scales)) in row.iter().zip(bytes.iter_mut().zip(scales.iter_mut())) {
                    isa.prefetch_l1(block, PREFETCH_BYTES);
                    isa.store_bytes(isa.add_bytes(isa.bytes(block.quants()), bias), &mut bytes[r]);
                    scales[r] = block.scale(isa);
                }
            }
        }
    }
}

/// Packs the first blocks of rows as values; rows after the last whole group are left out.
pub(in crate::cpu) struct PackValues<'a, 'b, B> {
    /// `[rows][stored]`, of which the first `blocks` are values.
    pub rows: &'a [B],
    pub stored: usize,
    pub blocks: usize,
    pub values: &'a mut Int8Values<'b>,
}

impl<B: Int8Block> Kernel for PackValues<'_, '_, B> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (g, rows) in self.rows.chunks_exact(BLOCK * self.stored).enumerate() {
            for b in 0..self.blocks {
                pack_group(isa, &rows[b..], self.stored, (b, g), self.values);
            }
        }
    }
}

/// Packs one block of a group of rows.
#[inline(always)]
fn pack_group<I: Isa, B: Int8Block>(
    isa: I,
    rows: &[B],
    stored: usize,
    (b, g): (usize, usize),
    out: &mut Int8Values<'_>,
) {
    let ones = isa.splat_byte(1);
    let mut sums = [isa.zeros(); 4];
    let mut scales = [0.0; BLOCK];
    let fours = &mut out.bytes[b * FOURS + g * (BLOCK / 4)..][..BLOCK / 4];
    for (f, four) in fours.iter_mut().enumerate() {
        let blocks = [0, 1, 2, 3].map(|r| &rows[(4 * f + r) * stored]);
        for (scale, block) in scales[4 * f..].iter_mut().zip(blocks) {
            *scale = block.scale(isa);
        }
        let words = isa.interleave(blocks.map(B::quants));
        for (c, out) in four.as_chunks_mut().0.iter_mut().enumerate() {
            isa.store_bytes(words[c], out);
            sums[c] = isa.dot(sums[c], ones, words[c]);
        }
    }
    let bias = isa.splat_int(127 - I::Panel::X_BIAS as i32);
    for (out, sums) in out.bias[b * GROUPS + g].as_chunks_mut().0.iter_mut().zip(sums) {
        isa.store_ints(isa.mul_ints(sums, bias), out);
    }
    let (mut most, mut lanes) = (isa.splat(0.0), [0.0; 8]);
    for scales in scales.as_chunks().0 {
        most = isa.max(isa.load_floats(scales), most);
    }
    isa.store(most, &mut lanes);
    let largest = lanes.iter().fold(0.0, |a: f32, b| if *b > a { *b } else { a });
    let inverse = isa.splat(if largest > 0.0 { 1.0 / largest } else { 0.0 });
    let relative = &mut out.scales[b * SEGMENT + g * BLOCK..][..BLOCK];
    for (out, scales) in relative.as_chunks_mut().0.iter_mut().zip(scales.as_chunks().0) {
        isa.store(isa.mul(isa.load_floats(scales), inverse), out);
    }
    out.largest[b * GROUPS + g] = largest;
}
