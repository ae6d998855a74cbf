//! Computes absorbed MLA attention over the latent cache: an online softmax over blocks of rows, all heads at once.
//!
//! Query rows are (token, head) pairs. A group of up to 64 of them is multiplied with a block of 32 cache rows, which is
//! dequantized once to f32 in L1/L2, so one read of the cache serves all heads. The softmax runs within parts of 256
//! rows, counted from position 0, and parts are merged in order: a token's result has the same bits for any batch size
//! and thread count. In prefill each group processes all parts; in decode the few groups are split over parts, 64 at a
//! time. Scratch is O(active groups * 64 * width), about 10 MiB at any depth. With 32 heads this is compute-bound. Next:
//! `materialized`, the path for prefill at depth.

pub(super) mod int8;

use super::Cpu;
use super::autovec::{AutovecKernel, exp, fma, largest, run, sum};
use super::cache::{Cache, SEGMENT};
use super::f32_gemm::{Left, View, gemm_accumulate, matmul_nt};
use super::matmul::{Activations, activations};
use super::memory::Tensor;
use super::pool::Parts;
use crate::backend::Span;
use crate::quant::{Activation, Q8_0};
use crate::simd::{Isa, Kernel};
use int8::{PackKeys, PackValues, PackedQueries, PartBuffers, QueryGroup, QueryPanels, SCORED};
use std::ops::Range;

/// Largest number of queries per group.
pub(super) const GROUP: usize = 64;
/// Cache rows that are dequantized and scored together.
pub(super) const BLOCK: usize = 32;
/// The activation type of queries over a Q8_0 cache.
const LEVELS: Activation = Activation::Q8x32;
/// Queries that a thread merges at a time.
const MERGED: usize = 8;
/// (group, part) pairs whose partial results are buffered for merging.
const WAVE: usize = 64;

/// A span's queries and cache.
struct AbsorbedSpan<'a> {
    cache: &'a Cache,
    /// The query of each (token, head) pair, `[queries, width]`.
    q: &'a [f32],
    /// The quantized queries, for int8 dot products with a Q8_0 cache.
    levels: Option<&'a [u8]>,
    heads: usize,
    /// Rows in the cache before the span's first.
    before: usize,
    value_dim: usize,
    scale: f32,
}

/// Whether attention over Q8_0 rows of these sizes uses int8 products: both are whole blocks.
pub(super) fn is_int8(latent: usize, pe: usize) -> bool {
    latent > 0 && latent.is_multiple_of(BLOCK) && pe.is_multiple_of(BLOCK)
}

pub(super) fn append(cpu: &Cpu, spans: &mut [Span<'_, Cache>], x: &Tensor) {
    for span in spans {
        let mut scratch = cpu.buffers.floats(span.state.stored_width());
        let width = span.state.stored_width();
        for t in span.rows.clone() {
            span.state.push(x.row(t), &mut scratch.floats_mut()[..width]);
        }
    }
}

pub(super) fn latent_attention(
    cpu: &Cpu,
    spans: &mut [Span<'_, Cache>],
    q: &Tensor,
    value_dim: usize,
    scale: f32,
) -> Tensor {
    let width = spans.first().map_or(q.cols.max(1), |span| span.state.width());
    assert!(q.cols.is_multiple_of(width) && value_dim <= width, "{} columns, rows of {width}", q.cols);
    let heads = q.cols / width;
    let mut o = cpu.spanned(q.rows, heads * value_dim, spans);
    for span in spans {
        let (cache, n) = (&*span.state, span.rows.len());
        assert_eq!(cache.width(), width, "width of the caches of one batch");
        assert!(n <= cache.len(), "{n} queries over {} cache rows", cache.len());
        let rows = |width: usize| span.rows.start * heads * width..span.rows.end * heads * width;
        let q = &q.values()[rows(width)];
        let form = cache.format().activation();
        let int8 = form == LEVELS && is_int8(value_dim, width - value_dim);
        let levels = int8.then(|| activations(cpu, form, q, width));
        let levels = levels.as_ref().map(Activations::bytes);
        let look = AbsorbedSpan { cache, q, levels, heads, before: cache.len() - n, value_dim, scale };
        attend(cpu, &look, n * heads, &mut o.values_mut()[rows(value_dim)]);
    }
    o
}

/// The running softmax of a group: `n` largest scores, `n` sums of weights, `[n, value_dim]` weighted values.
pub(super) fn split(softmax: &mut [f32], n: usize) -> [&mut [f32]; 3] {
    let (max, rest) = softmax.split_at_mut(n);
    let (sum, acc) = rest.split_at_mut(n);
    [max, sum, acc]
}

/// Resets to the softmax of no scores: maxima of -inf, sums and values of 0.
pub(super) fn clear(softmax: &mut [f32], n: usize) {
    let [max, sum, acc] = split(softmax, n);
    max.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    acc.fill(0.0);
}

/// Attends with all queries of a span; writes `o`, `[queries, value_dim]`.
fn attend(cpu: &Cpu, look: &AbsorbedSpan<'_>, queries: usize, o: &mut [f32]) {
    if queries == 0 || look.value_dim == 0 {
        return;
    }
    let (parts, threads) = (look.cache.len().div_ceil(SEGMENT), cpu.pool.threads());
    let few = queries.div_ceil(GROUP) * parts < 2 * threads;
    let group = if few { queries.div_ceil(2 * threads).next_multiple_of(16).min(GROUP) } else { GROUP };
    let groups = queries.div_ceil(group);
    let of = |g: usize| g * group..queries.min((g + 1) * group);
    if groups >= 4 * threads {
        cpu.pool.for_chunks(o, group * look.value_dim, |g, o| all_parts(cpu, look, of(g), o));
        return;
    }
    let size = group * (look.value_dim + 2);
    let at_once = (WAVE / groups).clamp(1, parts);
    let (mut wholes, mut wave) =
        (cpu.buffers.floats(groups * size), cpu.buffers.floats(groups * at_once * size));
    let wholes = &mut wholes.floats_mut()[..groups * size];
    wholes.chunks_exact_mut(size).enumerate().for_each(|(g, whole)| clear(whole, of(g).len()));
    let packed = pack_queries(cpu, look, 0..queries, group);
    for first in (0..parts).step_by(at_once) {
        let n = at_once.min(parts - first);
        let wave = &mut wave.floats_mut()[..groups * n * size];
        cpu.pool.for_chunks(wave, size, |i, part| {
            let g = i / n;
            one_part(cpu, look, of(g), packed.as_ref().map(|packed| packed.group(g)), first + i % n, part);
        });
        merge_parts(cpu, wholes, wave, [groups, size], [queries, group, look.value_dim]);
    }
    for (o, whole) in o.chunks_mut(group * look.value_dim).zip(wholes.chunks_exact_mut(size)) {
        finish(whole, look.value_dim, o);
    }
}

/// Merges the parts of a wave into the running softmax of their groups, some queries at a time.
fn merge_parts(
    cpu: &Cpu,
    wholes: &mut [f32],
    wave: &[f32],
    [groups, size]: [usize; 2],
    [queries, group, dim]: [usize; 3],
) {
    let (slices, parts) = (group.div_ceil(MERGED), wave.len() / (groups * size));
    let wholes = Parts::new(wholes);
    cpu.pool.parallel_for(groups * slices, |i| {
        let (g, first) = (i / slices, i % slices * MERGED);
        let n = group.min(queries - g * group); // queries of this group
        let rows = first.min(n)..n.min(first + MERGED);
        // SAFETY: the maxima, sums and values of these queries, which belong to one chunk.
        let [max, sum, acc] = areas(n, dim, &rows)
            .map(|area| unsafe { wholes.get(g * size + area.start..g * size + area.end) });
        for part in wave[g * parts * size..(g + 1) * parts * size].chunks_exact(size) {
            let part = areas(n, dim, &rows).map(|area| &part[area]);
            run(cpu.level, MergeSoftmax { dim, whole: [&mut *max, &mut *sum, &mut *acc], part });
        }
    });
}

/// Where a running softmax of n queries has the maxima, sums and values of some of them.
fn areas(n: usize, dim: usize, queries: &Range<usize>) -> [Range<usize>; 3] {
    let Range { start, end } = *queries;
    [start..end, n + start..n + end, 2 * n + start * dim..2 * n + end * dim]
}

/// The queries in panels, for int8 products.
fn pack_queries(
    cpu: &Cpu,
    look: &AbsorbedSpan<'_>,
    queries: Range<usize>,
    group: usize,
) -> Option<PackedQueries> {
    let (levels, width) = (look.levels?, look.cache.width());
    let bytes = LEVELS.row_bytes(width);
    let q = bytemuck::cast_slice(&levels[queries.start * bytes..queries.end * bytes]);
    Some(PackedQueries::new(cpu, q, width / BLOCK, group))
}

/// Processes all parts in order.
fn all_parts(cpu: &Cpu, look: &AbsorbedSpan<'_>, queries: Range<usize>, o: &mut [f32]) {
    let (n, dim) = (queries.len(), look.value_dim);
    let size = n * (dim + 2);
    let mut scratch = cpu.buffers.floats(2 * size);
    let (whole, part) = scratch.floats_mut()[..2 * size].split_at_mut(size);
    clear(whole, n);
    let last = look.before + (queries.end - 1) / look.heads; // the newest row visible to any of them
    let packed = pack_queries(cpu, look, queries.clone(), n);
    let panels = packed.as_ref().map(|packed| packed.group(0));
    for p in 0..last / SEGMENT + 1 {
        one_part(cpu, look, queries.clone(), panels, p, part);
        run(cpu.level, MergeSoftmax::of(n, dim, whole, part));
    }
    finish(whole, dim, o);
}

/// o = weighted values / sum of weights
pub(super) fn finish(whole: &mut [f32], dim: usize, o: &mut [f32]) {
    let [_, sum, acc] = split(whole, o.len() / dim);
    for ((o, acc), sum) in o.chunks_exact_mut(dim).zip(acc.chunks_exact(dim)).zip(&*sum) {
        o.iter_mut().zip(acc).for_each(|(o, acc)| *o = acc / sum);
    }
}

/// The softmax of a group over rows `p * SEGMENT..` of the cache.
fn one_part(
    cpu: &Cpu,
    look: &AbsorbedSpan<'_>,
    queries: Range<usize>,
    panels: Option<QueryPanels<'_>>,
    p: usize,
    out: &mut [f32],
) {
    let out = &mut out[..queries.len() * (look.value_dim + 2)];
    match panels {
        Some(panels) => int8_part(cpu, look, panels, queries.start, p, out),
        None => {
            clear(out, queries.len());
            f32_part(cpu, look, queries, p, out);
        }
    }
}

/// A part of a Q8_0 cache, by int8 products; overwrites `out`.
fn int8_part(
    cpu: &Cpu,
    look: &AbsorbedSpan<'_>,
    queries: QueryPanels<'_>,
    first: usize,
    p: usize,
    out: &mut [f32],
) {
    let (blocks, n) = (look.cache.width() / BLOCK, out.len() / (look.value_dim + 2));
    let rows = p * SEGMENT..look.cache.len().min((p + 1) * SEGMENT);
    let visible = |i: usize| (look.before + (first + i) / look.heads + 1).saturating_sub(rows.start);
    let mut seen = [0; GROUP];
    seen[..n].iter_mut().enumerate().for_each(|(i, seen)| *seen = visible(i).min(rows.len()));
    let group = QueryGroup { queries, seen, scale: look.scale };
    let stored: &[Q8_0] = bytemuck::cast_slice(look.cache.stored(rows.clone()));
    let value_blocks = look.value_dim / BLOCK;
    let mut buffers = PartBuffers::new(cpu, SCORED, blocks, value_blocks);
    let (mut keys, mut values) = buffers.split();
    let mut scores = group.scores(cpu, |groups, score| {
        let end = stored.len().min(groups.end * BLOCK * blocks);
        let packed = &stored[groups.start * BLOCK * blocks..end];
        cpu.level.run(PackKeys {
            rows: packed,
            stored: blocks,
            blocks: 0..blocks,
            all: blocks,
            keys: &mut keys,
        });
        score(&keys);
    });
    group.weights(cpu, &mut scores, out);
    let acc = &mut out[2 * n..];
    let mut block = cpu.buffers.floats(BLOCK * look.cache.width());
    let newest = |g: usize, add: &mut dyn FnMut(View<'_>)| {
        let first = rows.start + g * BLOCK;
        look.cache.dequantize_rows(first..rows.end.min(first + BLOCK), block.floats_mut());
        add(View { values: block.floats_ref(), step: look.cache.width() });
    };
    group.add_newest(cpu, &scores, newest, acc);
    cpu.level.run(PackValues { rows: stored, stored: blocks, blocks: value_blocks, values: &mut values });
    group.add_values(cpu, scores, &values, acc);
}

/// A part of a float cache, block by block.
fn f32_part(cpu: &Cpu, look: &AbsorbedSpan<'_>, queries: Range<usize>, p: usize, out: &mut [f32]) {
    let (n, width, step) = (queries.len(), look.cache.width(), look.cache.stored_width());
    let [max, sum, acc] = split(out, n);
    let mut scratch = cpu.buffers.floats(BLOCK * step + GROUP * (BLOCK + 1));
    let (block, rest) = scratch.floats_mut().split_at_mut(BLOCK * step);
    let (scores, factors) = rest.split_at_mut(GROUP * BLOCK);
    let q = View { values: &look.q[queries.start * width..queries.end * width], step: width };
    for first in (p * SEGMENT..look.cache.len().min((p + 1) * SEGMENT)).step_by(BLOCK) {
        let rows = first..look.cache.len().min(first + BLOCK);
        if rows.start > look.before + (queries.end - 1) / look.heads {
            break; // beyond the causal mask of all queries
        }
        look.cache.dequantize_rows(rows.clone(), block);
        let block = View { values: block, step };
        cpu.level.run(LatentScores { q, rows: block, scores, size: [n, rows.len(), width] });
        let seen = |i: usize| (look.before + (queries.start + i) / look.heads + 1).saturating_sub(rows.start);
        let (scale, seen) = (look.scale, |i: usize| seen(i).min(rows.len()));
        run(cpu.level, Weights { scores, seen, scale, factors: &mut factors[..n], max, sum });
        cpu.level.run(Values { scores, factors, rows: block, acc, size: [n, look.value_dim, rows.len()] });
    }
}

/// scores_ij = q_i . c_j for `size` = [queries, rows, columns]
struct LatentScores<'a> {
    q: View<'a>,
    rows: View<'a>,
    scores: &'a mut [f32],
    size: [usize; 3],
}

impl Kernel for LatentScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        matmul_nt(isa, self.size, self.q, self.rows, self.scores, BLOCK);
    }
}

/// Turns scores into weights e^(scale * score - max); `factors` rescales the earlier sums.
pub(super) struct Weights<'a, F> {
    pub scores: &'a mut [f32],
    /// Rows of the block visible to a query.
    pub seen: F,
    pub scale: f32,
    pub factors: &'a mut [f32],
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
}

impl<F: Fn(usize) -> usize> AutovecKernel for Weights<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (i, (scores, factor)) in
            self.scores.as_chunks_mut::<BLOCK>().0.iter_mut().zip(self.factors).enumerate()
        {
            let (seen, old) = ((self.seen)(i), self.max[i]);
            scores.iter_mut().for_each(|s| *s *= self.scale);
            scores[seen..].fill(f32::NEG_INFINITY);
            let max = largest(scores, old);
            // No visible row: all weights are zero.
            let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
            scores.iter_mut().for_each(|s| *s = exp::<FMA>(*s - base));
            *factor = exp::<FMA>(old - base);
            self.sum[i] = fma::<FMA>(self.sum[i], *factor, sum(scores));
            self.max[i] = max;
        }
    }
}

/// acc_i = factor_i acc_i + sum_j weight_ij c_j[..value_dim] for `size` = [queries, value_dim, rows]
pub(super) struct Values<'a> {
    pub scores: &'a [f32],
    pub factors: &'a [f32],
    pub rows: View<'a>,
    pub acc: &'a mut [f32],
    pub size: [usize; 3],
}

impl Kernel for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let weights = Left { values: self.scores, row: BLOCK, col: 1 };
        let factors = self.factors;
        gemm_accumulate(isa, self.size, weights, self.rows, self.acc, (self.size[1], |i| factors[i]));
    }
}

/// Merges a later part into the running softmax.
pub(super) struct MergeSoftmax<'a> {
    dim: usize,
    /// Maxima, sums and values of the merged queries.
    whole: [&'a mut [f32]; 3],
    part: [&'a [f32]; 3],
}

impl<'a> MergeSoftmax<'a> {
    /// Merges a part into the softmax of all `n` queries.
    pub(super) fn of(n: usize, dim: usize, whole: &'a mut [f32], part: &'a [f32]) -> MergeSoftmax<'a> {
        let areas = areas(n, dim, &(0..n));
        MergeSoftmax { dim, whole: split(whole, n), part: areas.map(|area| &part[area]) }
    }
}

impl AutovecKernel for MergeSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let dim = self.dim;
        let ([max, sum, acc], [part_max, part_sum, part_acc]) = (self.whole, self.part);
        for i in 0..part_max.len() {
            if part_max[i] == f32::NEG_INFINITY {
                continue;
            }
            let new = max[i].max(part_max[i]);
            let (old, add) = (exp::<FMA>(max[i] - new), exp::<FMA>(part_max[i] - new));
            sum[i] = fma::<FMA>(sum[i], old, part_sum[i] * add);
            let part = &part_acc[i * dim..][..dim];
            for (acc, part) in acc[i * dim..][..dim].iter_mut().zip(part) {
                *acc = fma::<FMA>(*acc, old, part * add);
            }
            max[i] = new;
        }
    }
}
