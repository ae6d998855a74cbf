//! Materializes one head's keys and values from a Q8_0 cache by int8 products, and attends with int8 products.
//!
//! The head's projections are requantized to Q8_0, W_k transposed, so that both products run over the latent's columns.
//! Latents and positional keys are the cache's own quants. Keys and values are quantized per row and 32 columns; groups
//! that a token sees in part use the values before that.

use super::{HeadPart, MaterializedSpan};
use crate::backend::KvUpProjection;
use crate::cpu::Cpu;
use crate::cpu::attention::int8::{PackKeys, PackValues, PackedQueries, PartBuffers, QueryGroup};
use crate::cpu::attention::{BLOCK, GROUP};
use crate::cpu::cache::SEGMENT;
use crate::cpu::f32_gemm::View;
use crate::cpu::memory::Buffer;
use crate::quant::{self, Activation, CopyBlocks, Format, Q8_0, Q8x32};
use std::ops::Range;

/// Keys and values of a part as int8.
pub(super) struct Int8Head {
    /// First token of the prepared queries.
    start: usize,
    /// The cache rows of the part.
    rows: Range<usize>,
    /// W_k transposed, then W_v, rows of Q8_0 over the latent's columns.
    weights: Buffer,
    /// The quantized blocks of each query, `[tokens][blocks]`.
    q: Buffer,
    packed: PartBuffers,
    /// Values in f32, `[SEGMENT, dim]`.
    values: Buffer,
}

impl Int8Head {
    /// Whether the cache is Q8_0 and all columns are whole blocks.
    pub(super) fn fits(look: &MaterializedSpan<'_>) -> bool {
        let KvUpProjection { k, v, latent } = look.w;
        let columns = [look.cache.width(), *latent, k.cols, v.rows, look.width];
        look.cache.format() == Format::Q8_0 && columns.iter().all(|n| n.is_multiple_of(BLOCK))
    }
}

/// Bytes of `rows` Q8_0 rows of `cols` values.
fn q8_bytes(rows: usize, cols: usize) -> usize {
    rows * cols / BLOCK * size_of::<Q8_0>()
}

impl HeadPart for Int8Head {
    fn new(cpu: &Cpu, look: &MaterializedSpan<'_>, h: usize, tokens: Range<usize>) -> Int8Head {
        let KvUpProjection { k, v, latent } = look.w;
        let mut scratch = cpu.buffers.floats(2 * k.rows * k.cols + v.rows * v.cols);
        let (w_k, rest) = scratch.floats_mut().split_at_mut(k.rows * k.cols);
        let (transposed, w_v) = rest.split_at_mut(k.rows * k.cols);
        let w_v = &mut w_v[..v.rows * v.cols];
        k.format.dequantize_row(k.matrix_rows(h, 0..k.rows), w_k);
        v.format.dequantize_row(v.matrix_rows(h, 0..v.rows), w_v);
        for (i, row) in transposed.chunks_exact_mut(*latent).enumerate() {
            row.iter_mut().zip(w_k[i..].iter().step_by(k.cols)).for_each(|(out, w)| *out = *w);
        }
        let sizes = [q8_bytes(k.cols, *latent), q8_bytes(v.rows, *latent)];
        let mut weights = cpu.buffers.bytes(sizes[0] + sizes[1]);
        let (k_bytes, v_bytes) = weights.values_mut()[..sizes[0] + sizes[1]].split_at_mut(sizes[0]);
        Format::Q8_0.quantize_row(transposed, k_bytes);
        Format::Q8_0.quantize_row(w_v, v_bytes);

        let (width, row) = (look.width, Activation::Q8x32.row_bytes(look.width));
        let mut q = cpu.buffers.bytes(tokens.len() * row);
        for (t, out) in tokens.clone().zip(q.values_mut().chunks_exact_mut(row)) {
            let query = &look.q[(t * k.count + h) * width..][..width];
            Activation::Q8x32.quantize_row(cpu.level, query, out);
        }
        Int8Head {
            start: tokens.start,
            rows: 0..0,
            weights,
            q,
            packed: PartBuffers::new(cpu, SEGMENT / BLOCK, width / BLOCK, v.rows / BLOCK),
            values: cpu.buffers.floats(SEGMENT * v.rows),
        }
    }

    fn materialize(&mut self, cpu: &Cpu, look: &MaterializedSpan<'_>, rows: Range<usize>) {
        let KvUpProjection { k, v, latent } = look.w;
        let (nope, dim, all) = (k.cols, v.rows, look.width / BLOCK);
        let (stored, latents) = (look.cache.width() / BLOCK, latent / BLOCK);
        let cached: &[Q8_0] = bytemuck::cast_slice(look.cache.stored(rows.clone()));
        let sizes = [q8_bytes(nope, *latent), q8_bytes(dim, *latent)];
        let (w_k, w_v) = self.weights.values_mut()[..sizes[0] + sizes[1]].split_at_mut(sizes[0]);
        let n = rows.len();
        let [x_bytes, key_bytes, value_bytes] =
            [*latent, nope, dim].map(|cols| n * Activation::Q8x32.row_bytes(cols));
        let mut scratch = cpu.buffers.bytes(x_bytes + key_bytes + value_bytes);
        let (x, rest) = scratch.values_mut().split_at_mut(x_bytes);
        let (keys, rest) = rest.split_at_mut(key_bytes);
        let values = &mut rest[..value_bytes];
        let x_blocks: &mut [Q8x32] = bytemuck::cast_slice_mut(x);
        for (from, out) in cached.chunks_exact(stored).zip(x_blocks.chunks_exact_mut(latents)) {
            cpu.level.run(CopyBlocks { from: &from[..latents], out });
        }
        let mut made = cpu.buffers.floats(n * nope);
        let made = &mut made.floats_mut()[..n * nope];
        quant::matmul_tile(cpu.level, Format::Q8_0, w_k, *latent, x, made);
        Activation::Q8x32.quantize_row(cpu.level, made, keys);
        let plain = &mut self.values.floats_mut()[..n * dim];
        quant::matmul_tile(cpu.level, Format::Q8_0, w_v, *latent, x, plain);
        Activation::Q8x32.quantize_row(cpu.level, plain, values);

        let (mut packed, mut packed_values) = self.packed.split();
        let (rows_of, made): (&[Q8x32], usize) = (bytemuck::cast_slice(keys), nope / BLOCK);
        let keys = &mut packed;
        cpu.level.run(PackKeys { rows: rows_of, stored: made, blocks: 0..made, all, keys });
        if made < all {
            // The positional part of each cache row follows its latent.
            let keys = &mut packed;
            cpu.level.run(PackKeys { rows: &cached[latents..], stored, blocks: made..all, all, keys });
        }
        let (rows_of, blocks): (&[Q8x32], usize) = (bytemuck::cast_slice(values), dim / BLOCK);
        cpu.level.run(PackValues { rows: rows_of, stored: blocks, blocks, values: &mut packed_values });
        self.rows = rows;
    }

    fn attend(&mut self, cpu: &Cpu, look: &MaterializedSpan<'_>, tokens: Range<usize>, out: &mut [f32]) {
        let (dim, blocks, n) = (look.w.v.rows, look.width / BLOCK, tokens.len());
        let mut seen = [0; GROUP];
        for (t, seen) in tokens.clone().zip(&mut seen) {
            *seen = (look.before + t + 1).saturating_sub(self.rows.start).min(self.rows.len());
        }
        let row = Activation::Q8x32.row_bytes(look.width);
        let q: &mut [u8] =
            &mut self.q.values_mut()[(tokens.start - self.start) * row..(tokens.end - self.start) * row];
        let queries = PackedQueries::new(cpu, bytemuck::cast_slice(q), blocks, n);
        let group = QueryGroup { queries: queries.group(0), seen, scale: look.scale };
        let (mut keys, values) = self.packed.split();
        let mut scores = group.scores(cpu, |groups, score| score(&keys.groups(groups, blocks)));
        group.weights(cpu, &mut scores, out);
        let acc = &mut out[2 * n..];
        let plain = &self.values;
        let newest = |g: usize, add: &mut dyn FnMut(View<'_>)| {
            add(View { values: &plain.floats_ref()[g * BLOCK * dim..], step: dim });
        };
        group.add_newest(cpu, &scores, newest, acc);
        group.add_values(cpu, scores, &values, acc);
    }
}
