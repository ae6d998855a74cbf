//! Computes MLA attention with materialized keys and values of each head, for prefill of many tokens.
//!
//! Per cache row, token and head this costs 320 multiply-adds, absorbed attention 1,088; materializing costs 131,072 per
//! row and head, which pays from 170 tokens on. A head processes parts of 256 rows, whose keys and values it
//! materializes once for all of its tokens and keeps in cache. Parts, blocks and summation order are those of
//! `attention`, so a token's result has the same bits for any batch size and thread count. Over a Q8_0 cache both the
//! materializing and the attention are int8 products ([`int8`]).

mod int8;

use super::attention::{BLOCK, GROUP, MergeSoftmax, Values, Weights, clear, finish, split};
use super::autovec::run;
use super::cache::{Cache, SEGMENT};
use super::f32_gemm::{Left, View, gemm_accumulate, matmul_nt};
use super::memory::{Buffer, Tensor};
use super::pool::Parts;
use super::{Cpu, Weight};
use crate::backend::{KvUpProjection, Span};
use crate::simd::{Isa, Kernel};
use int8::Int8Head;
use std::ops::Range;

/// A span's queries and cache.
pub(super) struct MaterializedSpan<'a> {
    pub cache: &'a Cache,
    /// Queries of the span's tokens, `[tokens, heads * width]`.
    pub q: &'a [f32],
    pub w: &'a KvUpProjection<'a, Weight>,
    /// Columns of a head's query and keys.
    pub width: usize,
    /// Rows in the cache before the span's first.
    pub before: usize,
    pub scale: f32,
}

/// One head's keys and values of a part, in one of the precisions.
pub(super) trait HeadPart {
    /// Prepares the head's projections and the queries of a range of tokens.
    fn new(cpu: &Cpu, look: &MaterializedSpan<'_>, h: usize, tokens: Range<usize>) -> Self;
    /// Materializes keys and values of these rows, which are one part.
    fn materialize(&mut self, cpu: &Cpu, look: &MaterializedSpan<'_>, rows: Range<usize>);
    /// The softmax of a group of tokens over the part; overwrites `out`.
    fn attend(&mut self, cpu: &Cpu, look: &MaterializedSpan<'_>, tokens: Range<usize>, out: &mut [f32]);
}

pub(super) fn materialized_attention(
    cpu: &Cpu,
    spans: &mut [Span<'_, Cache>],
    q: &Tensor,
    w: &KvUpProjection<'_, Weight>,
    scale: f32,
) -> Tensor {
    let (heads, latent, value_dim) = (w.k.count, w.latent, w.v.rows);
    assert_eq!((w.k.rows, w.v.cols), (latent, latent), "columns of the latent that the matrices take");
    assert!(heads > 0 && q.cols.is_multiple_of(heads), "{} columns in {heads} heads", q.cols);
    assert_eq!(w.v.count, heads, "heads of the values' matrices");
    let width = q.cols / heads;
    let mut o = cpu.spanned(q.rows, heads * value_dim, spans);
    let out = Parts::new(o.values_mut());
    for span in spans {
        let (cache, n) = (&*span.state, span.rows.len());
        assert_eq!(cache.width() - latent, width - w.k.cols, "columns that keys have besides the latent's");
        assert!(n <= cache.len(), "{n} queries over {} cache rows", cache.len());
        if n == 0 || value_dim == 0 {
            continue;
        }
        let q = &q.values()[span.rows.start * q.cols..span.rows.end * q.cols];
        let look = MaterializedSpan { cache, q, w, width, before: cache.len() - n, scale };
        // More threads than heads: split the tokens of a head, materializing its keys more than once.
        let each = n.div_ceil((cpu.pool.threads() / heads).max(1)).next_multiple_of(GROUP);
        let pieces = n.div_ceil(each);
        cpu.pool.parallel_for(heads * pieces, |i| {
            let (h, tokens) = (i / pieces, i % pieces * each..n.min((i % pieces + 1) * each));
            let put = |t: usize, values: &[f32]| {
                let at = ((span.rows.start + t) * heads + h) * value_dim;
                // SAFETY: a token's columns of this head, and each token and head is in one piece.
                unsafe { out.get(at..at + value_dim) }.copy_from_slice(values);
            };
            if Int8Head::fits(&look) {
                head::<Int8Head>(cpu, &look, h, tokens.clone(), put);
            } else {
                head::<F32Head>(cpu, &look, h, tokens.clone(), put);
            }
        });
    }
    o
}

/// One head's attention for a range of tokens; `out` receives each token's values.
fn head<H: HeadPart>(
    cpu: &Cpu,
    look: &MaterializedSpan<'_>,
    h: usize,
    tokens: Range<usize>,
    out: impl Fn(usize, &[f32]),
) {
    let (n, dim) = (tokens.len(), look.w.v.rows);
    let mut part = H::new(cpu, look, h, tokens.clone());
    let size = GROUP * (dim + 2);
    let groups = n.div_ceil(GROUP);
    let of = |g: usize| tokens.start + g * GROUP..tokens.end.min(tokens.start + (g + 1) * GROUP);
    let mut buffer = cpu.buffers.floats((groups + 1) * size);
    let (softmax, wholes) = buffer.floats_mut()[..(groups + 1) * size].split_at_mut(size);
    wholes.chunks_exact_mut(size).enumerate().for_each(|(g, whole)| clear(whole, of(g).len()));
    for first in (0..look.before + tokens.end).step_by(SEGMENT) {
        part.materialize(cpu, look, first..(first + SEGMENT).min(look.before + tokens.end));
        for (g, whole) in wholes.chunks_exact_mut(size).enumerate() {
            let group = of(g);
            if look.before + group.end > first {
                let n = group.len();
                part.attend(cpu, look, group, &mut softmax[..n * (dim + 2)]);
                run(cpu.level, MergeSoftmax::of(n, dim, whole, softmax));
            }
        }
    }
    let o = &mut softmax[..GROUP * dim];
    for (g, whole) in wholes.chunks_exact_mut(size).enumerate() {
        let group = of(g);
        finish(whole, dim, &mut o[..group.len() * dim]);
        group.zip(o.chunks_exact(dim)).for_each(|(t, values)| out(t, values));
    }
}

/// Keys, a column each, and values of a part in f32.
struct F32Head {
    h: usize,
    /// The cache rows of the part.
    rows: Range<usize>,
    buffer: Buffer,
    /// Lengths of W_k, W_v, keys and values in the buffer.
    sizes: [usize; 4],
}

impl F32Head {
    fn split(&mut self) -> [&mut [f32]; 4] {
        let (w_k, rest) = self.buffer.floats_mut().split_at_mut(self.sizes[0]);
        let (w_v, rest) = rest.split_at_mut(self.sizes[1]);
        let (keys, values) = rest.split_at_mut(self.sizes[2]);
        [w_k, w_v, keys, values]
    }
}

impl HeadPart for F32Head {
    fn new(cpu: &Cpu, look: &MaterializedSpan<'_>, h: usize, _: Range<usize>) -> F32Head {
        let KvUpProjection { k, v, .. } = look.w;
        let sizes = [k.rows * k.cols, v.rows * v.cols, SEGMENT * look.width, SEGMENT * v.rows];
        let buffer = cpu.buffers.floats(sizes.iter().sum());
        let mut head = F32Head { h, rows: 0..0, buffer, sizes };
        let [w_k, w_v, ..] = head.split();
        k.format.dequantize_row(k.matrix_rows(h, 0..k.rows), w_k);
        v.format.dequantize_row(v.matrix_rows(h, 0..v.rows), w_v);
        head
    }

    fn materialize(&mut self, cpu: &Cpu, look: &MaterializedSpan<'_>, rows: Range<usize>) {
        self.rows = rows.clone();
        let [w_k, w_v, keys, values] = self.split();
        let (step, dim) = (look.cache.stored_width(), look.w.v.rows);
        let mut scratch = cpu.buffers.floats(BLOCK * (step + look.width));
        let (latents, made) = scratch.floats_mut().split_at_mut(BLOCK * step);
        for first in rows.clone().step_by(BLOCK) {
            let (block, at) = (first..rows.end.min(first + BLOCK), first - rows.start);
            look.cache.dequantize_rows(block.clone(), latents);
            cpu.level.run(MaterializeRows {
                rows: View { values: &latents[..block.len() * step], step },
                w_k: View { values: w_k, step: look.w.k.cols },
                w_v: View { values: w_v, step: look.w.v.cols },
                keys: &mut made[..block.len() * look.width],
                values: &mut values[at * dim..][..block.len() * dim],
                width: look.width,
                dim,
            });
            for (i, column) in keys.chunks_exact_mut(SEGMENT).enumerate() {
                let made = made[i..].iter().step_by(look.width);
                column[at..at + block.len()].iter_mut().zip(made).for_each(|(key, made)| *key = *made);
            }
        }
    }

    fn attend(&mut self, cpu: &Cpu, look: &MaterializedSpan<'_>, tokens: Range<usize>, out: &mut [f32]) {
        let (n, width, dim) = (tokens.len(), look.width, look.w.v.rows);
        let (h, part) = (self.h, self.rows.clone());
        let [_, _, keys, values] = self.split();
        clear(out, n);
        let [max, sum, acc] = split(out, n);
        let mut scratch = cpu.buffers.floats(GROUP * (BLOCK + 1));
        let (scores, factors) = scratch.floats_mut().split_at_mut(GROUP * BLOCK);
        let q_step = look.w.k.count * width;
        let q = Left { values: &look.q[tokens.start * q_step + h * width..], row: q_step, col: 1 };
        for first in part.clone().step_by(BLOCK) {
            let (rows, at) = (first..part.end.min(first + BLOCK), first - part.start);
            if rows.start >= look.before + tokens.end {
                break; // newer than all of them
            }
            let keys = View { values: &keys[at..], step: SEGMENT };
            cpu.level.run(KeyScores { q, keys, scores, size: [n, rows.len(), width] });
            let seen =
                |i: usize| (look.before + tokens.start + i + 1).saturating_sub(rows.start).min(rows.len());
            run(cpu.level, Weights { scores, seen, scale: look.scale, factors: &mut factors[..n], max, sum });
            let rows_of = View { values: &values[at * dim..], step: dim };
            cpu.level.run(Values { scores, factors, rows: rows_of, acc, size: [n, dim, rows.len()] });
        }
    }
}

/// scores_ij = q_i . key_j for `size` = [queries, keys, columns]
struct KeyScores<'a> {
    q: Left<'a>,
    /// Keys of a block, one per column.
    keys: View<'a>,
    scores: &'a mut [f32],
    size: [usize; 3],
}

impl Kernel for KeyScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.scores.fill(0.0);
        gemm_accumulate(isa, self.size, self.q, self.keys, self.scores, (BLOCK, |_| 0.0));
    }
}

/// key_s = [W_k^T c_s | pe_s],  value_s = W_v c_s
struct MaterializeRows<'a> {
    /// Cache rows [c_s | pe_s] to project.
    rows: View<'a>,
    /// W_k,h in f32, row-major, `[latent, nope]`.
    w_k: View<'a>,
    /// W_v,h in f32, row-major, `[dim, latent]`.
    w_v: View<'a>,
    keys: &'a mut [f32],
    values: &'a mut [f32],
    width: usize,
    dim: usize,
}

impl Kernel for MaterializeRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (nope, latent, n) = (self.w_k.step, self.w_v.step, self.keys.len() / self.width);
        for (key, row) in self.keys.chunks_exact_mut(self.width).zip(self.rows.values.chunks(self.rows.step))
        {
            let (made, pe) = key.split_at_mut(nope);
            made.fill(0.0);
            pe.copy_from_slice(&row[latent..latent + pe.len()]);
        }
        let c = Left { values: self.rows.values, row: self.rows.step, col: 1 };
        gemm_accumulate(isa, [n, nope, latent], c, self.w_k, self.keys, (self.width, |_| 0.0));
        matmul_nt(isa, [n, self.dim, latent], self.rows, self.w_v, self.values, self.dim);
    }
}
