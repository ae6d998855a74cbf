//! Packs quantized queries for int8 scores: transposed to panels with one query per lane, once for all rows of the cache.

use super::LANES;
use crate::cpu::Cpu;
use crate::cpu::memory::Buffer;
use crate::quant::Q8x32;
use crate::simd::{Isa, Kernel, PanelSimd};

/// Words of a query's block in a panel: eight of quants, the start of the sum and the scale.
const PACKED_QUERY: usize = 10;

/// Quantized queries in groups, transposed to panels with one query per lane.
pub(in crate::cpu) struct PackedQueries {
    /// The panels of each group, `PACKED_QUERY * blocks * lanes` words.
    buffer: Buffer,
    blocks: usize,
    len: usize,
    group: usize,
}

impl PackedQueries {
    /// Packs queries, `[queries][blocks]`, in groups of `group`.
    pub(in crate::cpu) fn new(cpu: &Cpu, q: &[Q8x32], blocks: usize, group: usize) -> PackedQueries {
        let len = q.len() / blocks;
        let words = len.div_ceil(group) * group.next_multiple_of(LANES) * blocks * PACKED_QUERY;
        let mut packed = PackedQueries { buffer: cpu.buffers.floats(words), blocks, len, group };
        cpu.level.run(PackQueries { q, packed: &mut packed });
        packed
    }

    /// Words that the panels of a group take.
    fn group_words(&self) -> usize {
        self.group.next_multiple_of(LANES) * self.blocks * PACKED_QUERY
    }

    pub(in crate::cpu) fn group(&self, g: usize) -> QueryPanels<'_> {
        let len = self.group.min(self.len - g * self.group);
        let all = self.blocks * len.next_multiple_of(LANES);
        let words = &self.buffer.floats_ref()[g * self.group_words()..][..PACKED_QUERY * all];
        let (words, rest) = words.split_at(8 * all);
        let (starts, scales) = rest.split_at(all);
        let (words, starts) = (bytemuck::cast_slice(words), bytemuck::cast_slice(starts));
        QueryPanels { words, starts, scales, blocks: self.blocks, len }
    }
}

/// The panels of a group of queries.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct QueryPanels<'a> {
    /// Words of four quants, `[blocks][panels][8][MR]`.
    pub(super) words: &'a [u8],
    /// The start of each query's integer sum, `[blocks][lanes]`.
    pub(super) starts: &'a [i32],
    /// The scale of each query, `[blocks][lanes]`.
    pub(super) scales: &'a [f32],
    pub(super) blocks: usize,
    pub(super) len: usize,
}

impl QueryPanels<'_> {
    pub(super) fn lanes(&self) -> usize {
        self.len.next_multiple_of(LANES)
    }
}

/// Transposes the quants of each panel of queries, block by block.
struct PackQueries<'a> {
    q: &'a [Q8x32],
    packed: &'a mut PackedQueries,
}

impl Kernel for PackQueries<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (blocks, group, words) = (self.packed.blocks, self.packed.group, self.packed.group_words());
        let groups = self.packed.buffer.floats_mut().chunks_exact_mut(words);
        for (q, out) in self.q.chunks(group * blocks).zip(groups) {
            pack_panels(isa, q, blocks, out);
        }
    }
}

/// Packs the queries of a group.
#[inline(always)]
fn pack_panels<I: Isa>(isa: I, q: &[Q8x32], blocks: usize, out: &mut [f32]) {
    let (p, mr, lanes) = (isa.panel(), I::Panel::MR, (q.len() / blocks).next_multiple_of(LANES));
    let (words, rest) = out.split_at_mut(8 * blocks * lanes);
    let (starts, scales) = rest.split_at_mut(blocks * lanes);
    let (words, starts): (&mut [u8], &mut [i32]) =
        (bytemuck::cast_slice_mut(words), bytemuck::cast_slice_mut(starts));
    for (i, words) in words.chunks_exact_mut(32 * mr).enumerate() {
        let (b, lane) = (i * mr / lanes, i * mr % lanes);
        let zero = [0; 32];
        let mut rows = [&zero; 16];
        for l in 0..mr {
            let (mut start, mut scale) = (0, 0.0);
            if let Some(block) = q.get((lane + l) * blocks + b) {
                (rows[l], start, scale) = (&block.q, -(I::Panel::X_BIAS as i32) * block.sum(), block.d());
            }
            (starts[i * mr + l], scales[i * mr + l]) = (start, scale);
        }
        for (words, quants) in words.chunks_exact_mut(4 * mr).zip(p.transpose(&rows)) {
            let mut all = [0; 64];
            p.store_bytes(quants, &mut all);
            words.copy_from_slice(&all[..4 * mr]);
        }
    }
}
