//! Computes attention of up to 64 queries over a part of 256 rows in Q8_0 with int8 dot products.
//!
//! Scores are products of quantized queries and keys, one query per lane. Softmax weights are quantized per query and
//! group of 32 rows, after multiplication with the rows' scales:
//!
//! ```text
//! o = sum_j w_j d_jb c_j ~ unit sum_j u_j c_j,   u_j = round(w_j d_jb / unit) in 0..=254,   unit = max w max d_b / 254
//! ```
//!
//! for block b of 32 columns, so a sum of 32 rows is exact in integers. Weights below unit / 2 are lost, 0.2 % of the group's
//! largest product each. A group that a query sees in part, which is its newest one, stays in f32: the result of a query
//! depends only on the rows visible to it, for any batch.

mod pack;
mod queries;

pub(in crate::cpu) use pack::{Int8Keys, PackKeys, PackValues, PartBuffers};
pub(in crate::cpu) use queries::{PackedQueries, QueryPanels};

use super::{BLOCK, GROUP, split};
use crate::cpu::Cpu;
use crate::cpu::autovec::{AutovecKernel, exp, run};
use crate::cpu::cache::SEGMENT;
use crate::cpu::f32_gemm::{Left, View, gemm_accumulate};
use crate::cpu::memory::Buffer;
use crate::simd::{Isa, Kernel, PanelSimd};
use pack::Int8Values;
use std::ops::Range;

/// Queries per step of the lanes: buffers hold a multiple of it.
const LANES: usize = 16;
/// Queries whose quantized weights are neighbours.
const EIGHT: usize = 8;
/// Groups of rows in a part.
const GROUPS: usize = SEGMENT / BLOCK;
/// Four rows of values, whose bytes are interleaved.
const FOURS: usize = SEGMENT / 4;
/// Groups whose scores are computed before the next: scores and keys of a block stay in L1.
pub(in crate::cpu) const SCORED: usize = 2;
/// The largest weight after quantization.
const MAX_WEIGHT: f32 = 254.0;
/// Adding it rounds to an integer, which is in the low bits of the sum: 2^23, and 256 so that biased weights stay above it.
const ROUND: f32 = 8_388_864.0;
/// A group's largest weight below this counts as zero: its inverse would overflow.
const LEAST: f32 = 1e-30;

/// A group of queries over a part.
pub(in crate::cpu) struct QueryGroup<'a> {
    pub queries: QueryPanels<'a>,
    /// Rows of the part visible to each query; 0 after the last query.
    pub seen: [usize; GROUP],
    pub scale: f32,
}

impl QueryGroup<'_> {
    /// Number of queries in the group.
    fn len(&self) -> usize {
        self.queries.len
    }

    fn lanes(&self) -> usize {
        self.queries.lanes()
    }

    /// Rows of the part that some query sees.
    pub(in crate::cpu) fn rows(&self) -> usize {
        self.seen.iter().copied().max().unwrap_or(0)
    }

    /// Whether query i sees some rows of group g, but not all.
    fn sees_part(&self, i: usize, g: usize) -> bool {
        (g * BLOCK + 1..(g + 1) * BLOCK).contains(&self.seen[i])
    }

    /// Groups of which some query sees all rows.
    fn whole_groups(&self) -> usize {
        self.rows() / BLOCK
    }

    /// Whether [`QueryGroup::add_newest`] writes the values first.
    fn starts_with_newest(&self) -> bool {
        self.whole_groups() == 0 || (0..self.len()).any(|i| !self.seen[i].is_multiple_of(BLOCK))
    }

    /// Scores of all rows that some query sees, `[rows][lanes]`, without the scale: `keys(groups)` are those of some
    /// groups of rows.
    pub(in crate::cpu) fn scores(
        &self,
        cpu: &Cpu,
        mut keys: impl FnMut(Range<usize>, &mut dyn FnMut(&Int8Keys<'_>)),
    ) -> Buffer {
        let (rows, lanes) = (self.rows(), self.lanes());
        let mut buffer = cpu.buffers.floats(SEGMENT * lanes);
        let scores = &mut buffer.floats_mut()[..rows * lanes];
        for (i, scores) in scores.chunks_mut(SCORED * BLOCK * lanes).enumerate() {
            let groups = i * SCORED..rows.div_ceil(BLOCK).min((i + 1) * SCORED);
            keys(groups, &mut |keys| cpu.level.run(Int8Scores { queries: self.queries, keys, scores }));
        }
        buffer
    }

    /// Turns scores into softmax weights relative to the part's largest score; writes maxima and sums to `out`.
    pub(in crate::cpu) fn weights(&self, cpu: &Cpu, scores: &mut Buffer, out: &mut [f32]) {
        let (n, lanes) = (self.len(), self.lanes());
        let scores = &mut scores.floats_mut()[..self.rows() * lanes];
        let [max, sum, _] = split(out, n);
        run(cpu.level, LaneSoftmax { scores, lanes, seen: &self.seen, scale: self.scale, max, sum });
    }

    /// Starts the values with the groups that a query sees in part, if any: `rows(g)` are those of group g in f32.
    pub(in crate::cpu) fn add_newest(
        &self,
        cpu: &Cpu,
        weights: &Buffer,
        mut rows: impl FnMut(usize, &mut dyn FnMut(View<'_>)),
        acc: &mut [f32],
    ) {
        if self.starts_with_newest() {
            acc.fill(0.0);
        }
        let (n, lanes) = (self.len(), self.lanes());
        let (weights, dim) = (weights.floats_ref(), acc.len() / n);
        for g in (0..GROUPS).filter(|g| (0..n).any(|i| self.sees_part(i, *g))) {
            let count = (0..n).filter(|i| self.sees_part(*i, g)).map(|i| self.seen[i] - g * BLOCK).max();
            let count = count.unwrap_or(0);
            let mut newest = [0.0; BLOCK * GROUP];
            for j in 0..count {
                for i in (0..n).filter(|i| self.sees_part(*i, g)) {
                    newest[j * GROUP + i] = weights[(g * BLOCK + j) * lanes + i];
                }
            }
            rows(g, &mut |rows| {
                let weights = Left { values: &newest, row: 1, col: GROUP };
                cpu.level.run(NewestValues { weights, rows, acc, size: [n, dim, count] });
            });
        }
    }

    /// Adds the values of groups that a query sees whole, or starts with them; overwrites the weights.
    pub(in crate::cpu) fn add_values(
        &self,
        cpu: &Cpu,
        mut weights: Buffer,
        values: &Int8Values<'_>,
        acc: &mut [f32],
    ) {
        let (n, lanes) = (self.len(), self.lanes());
        let groups = self.whole_groups();
        if groups == 0 {
            return;
        }
        let mut scratch = cpu.buffers.floats(groups * lanes + groups * BLOCK / 4 * lanes);
        let (units, quants) = scratch.floats_mut().split_at_mut(groups * lanes);
        let quants = &mut bytemuck::cast_slice_mut(quants)[..groups * BLOCK / 4 * lanes];
        let weights = &mut weights.floats_mut()[..groups * BLOCK * lanes];
        run(cpu.level, ScaleWeights { weights, lanes, seen: &self.seen, units });
        let (dim, fresh) = (acc.len() / n, !self.starts_with_newest());
        cpu.level.run(WeightedSums { values, weights, units, quants, lanes, acc, dim, fresh });
    }
}

/// scores_jl = q_l . k_j for lane l and row j of some groups, without the scale.
struct Int8Scores<'a> {
    queries: QueryPanels<'a>,
    keys: &'a Int8Keys<'a>,
    scores: &'a mut [f32],
}

impl Kernel for Int8Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let (mr, lanes) = (I::Panel::MR, self.queries.lanes());
        if !I::MANY_REGISTERS {
            for lane in (0..lanes).step_by(mr) {
                score_panel(isa, &mut self, lane);
            }
            return;
        }
        for b in 0..self.queries.blocks {
            let mut lane = 0;
            while lane < lanes {
                if lanes - lane >= 2 * mr {
                    score_block::<I, 2>(isa, &mut self, b, lane);
                    lane += 2 * mr;
                } else {
                    score_block::<I, 1>(isa, &mut self, b, lane);
                    lane += mr;
                }
            }
        }
    }
}

/// The number of steps of a loop, hidden from the compiler where there are only sixteen registers. It unrolls a loop of known
/// length, adds all steps of one sum before those of the next, and spills the operands that the sums share.
#[inline(always)]
fn rolled<I: Isa>(steps: usize) -> usize {
    if I::MANY_REGISTERS { steps } else { std::hint::black_box(steps) }
}

/// Rows of a tile whose sums of all blocks stay in registers where there are only sixteen.
const TILE_ROWS: usize = 4;

/// The scores of a panel of queries.
#[inline(always)]
fn score_panel<I: Isa>(isa: I, s: &mut Int8Scores<'_>, lane: usize) {
    let (lanes, blocks) = (s.queries.lanes(), s.queries.blocks);
    let groups = s.scores.chunks_mut(BLOCK * lanes).zip(s.keys.bytes.chunks_exact(blocks));
    for ((scores, keys), scales) in groups.zip(s.keys.scales.chunks_exact(blocks)) {
        for (i, scores) in scores.chunks_mut(TILE_ROWS * lanes).enumerate() {
            score_tile(isa, s.queries, (keys, scales), i * TILE_ROWS, (scores, lane));
        }
    }
}

/// The scores of a panel with [`TILE_ROWS`] rows of a group from `first` on, of which those that have scores are written.
#[inline(always)]
fn score_tile<I: Isa>(
    isa: I,
    queries: QueryPanels<'_>,
    (keys, key_scales): (&[[[u8; 32]; BLOCK]], &[[f32; BLOCK]]),
    first: usize,
    (scores, lane): (&mut [f32], usize),
) {
    let (p, mr, lanes) = (isa.panel(), I::Panel::MR, queries.lanes());
    let mut sums = [p.splat(0.0); TILE_ROWS];
    for (b, (keys, key_scales)) in keys.iter().zip(key_scales).enumerate() {
        let at = b * lanes + lane;
        let keys: &[[u8; 32]; TILE_ROWS] =
            keys[first..].first_chunk().expect("a multiple of the tile's rows");
        let keys = keys.each_ref().map(|key| key.as_chunks::<4>().0);
        let mut ints = [load_ints(p, &queries.starts[at..at + mr]); TILE_ROWS];
        let words = queries.words[32 * at..32 * (at + mr)].chunks_exact(4 * mr);
        for (k, quants) in words.take(rolled::<I>(8)).enumerate() {
            ints = p.dot_biased_each(ints, load_bytes(p, quants), keys.map(|key| key[k]));
        }
        let scale = load(p, &queries.scales[at..at + mr]);
        for r in 0..TILE_ROWS {
            sums[r] = p.fma(p.floats(ints[r]), p.mul(scale, p.splat(key_scales[first + r])), sums[r]);
        }
    }
    for (scores, sums) in scores.chunks_exact_mut(lanes).zip(sums) {
        store(p, sums, &mut scores[lane..lane + mr]);
    }
}

/// Adds block b's products of `P` panels of queries with the rows.
#[inline(always)]
fn score_block<I: Isa, const P: usize>(isa: I, s: &mut Int8Scores<'_>, b: usize, lane: usize) {
    let (p, mr, lanes) = (isa.panel(), I::Panel::MR, s.queries.lanes());
    let QueryPanels { words, starts, scales, .. } = s.queries;
    let mut quants = [[p.splat_byte(0); 8]; P];
    let (mut start, mut scale) = ([p.zeros(); P], [p.splat(0.0); P]);
    for n in 0..P {
        let at = b * lanes + lane + n * mr;
        for (quants, words) in quants[n].iter_mut().zip(words[32 * at..].chunks_exact(4 * mr)) {
            *quants = load_bytes(p, words);
        }
        (start[n], scale[n]) = (load_ints(p, &starts[at..at + mr]), load(p, &scales[at..at + mr]));
    }
    let groups = s.scores.chunks_mut(BLOCK * lanes).zip(s.keys.bytes.chunks_exact(s.queries.blocks));
    for ((scores, keys), scales) in groups.zip(s.keys.scales.chunks_exact(s.queries.blocks)) {
        for (scores, (key, d)) in scores.chunks_exact_mut(lanes).zip(keys[b].iter().zip(&scales[b])) {
            let fours = key.as_chunks::<4>().0;
            let mut sums = start;
            for k in 0..8 {
                for n in 0..P {
                    sums[n] = p.dot_biased(sums[n], quants[n][k], fours[k]);
                }
            }
            let d = p.splat(*d);
            for n in 0..P {
                let factor = p.mul(scale[n], d);
                let scores = &mut scores[lane + n * mr..];
                let old = if b == 0 { p.splat(0.0) } else { load(p, scores) };
                store(p, p.fma(p.floats(sums[n]), factor, old), scores);
            }
        }
    }
}

/// Loads the first lanes of `v`, which has at least [`PanelSimd::MR`].
#[inline(always)]
fn load<P: PanelSimd>(p: P, v: &[f32]) -> P::Floats {
    match v.first_chunk() {
        Some(v) => p.load(v),
        None => {
            let mut sixteen = [0.0; 16];
            sixteen[..P::MR].copy_from_slice(&v[..P::MR]);
            p.load(&sixteen)
        }
    }
}

/// Writes the lanes to the start of `out`.
#[inline(always)]
fn store<P: PanelSimd>(p: P, v: P::Floats, out: &mut [f32]) {
    match out.first_chunk_mut() {
        Some(out) => p.store(v, out),
        None => {
            let mut sixteen = [0.0; 16];
            p.store(v, &mut sixteen);
            out[..P::MR].copy_from_slice(&sixteen[..P::MR]);
        }
    }
}

/// Turns scores into weights e^(scale * score - max) of the visible rows, one query per lane.
struct LaneSoftmax<'a> {
    scores: &'a mut [f32],
    lanes: usize,
    seen: &'a [usize; GROUP],
    scale: f32,
    max: &'a mut [f32],
    sum: &'a mut [f32],
}

impl AutovecKernel for LaneSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for first in (0..self.lanes).step_by(LANES) {
            let mut seen = [0; LANES];
            for (out, seen) in seen.iter_mut().zip(&self.seen[first..]) {
                *out = *seen as u32;
            }
            let (mut max, mut sum) = ([f32::NEG_INFINITY; LANES], [0.0; LANES]);
            for (j, row) in self.scores.chunks_exact_mut(self.lanes).enumerate() {
                let scores = lanes_mut(row, first);
                for l in 0..LANES {
                    let score = scores[l] * self.scale;
                    let score = if (j as u32) < seen[l] { score } else { f32::NEG_INFINITY };
                    max[l] = if score > max[l] { score } else { max[l] };
                    scores[l] = score;
                }
            }
            let mut base = max;
            for l in 0..LANES {
                // No visible row: all weights are zero.
                base[l] = if max[l] == f32::NEG_INFINITY { 0.0 } else { max[l] };
            }
            for row in self.scores.chunks_exact_mut(self.lanes) {
                let scores = lanes_mut(row, first);
                for l in 0..LANES {
                    scores[l] = exp::<FMA>(scores[l] - base[l]);
                    sum[l] += scores[l];
                }
            }
            for (l, (max_out, sum_out)) in
                self.max.iter_mut().zip(&mut *self.sum).skip(first).take(LANES).enumerate()
            {
                (*max_out, *sum_out) = (max[l], sum[l]);
            }
        }
    }
}

#[inline(always)]
fn lanes_mut(row: &mut [f32], first: usize) -> &mut [f32; LANES] {
    row[first..].first_chunk_mut().expect("a multiple of the lanes")
}

/// acc_i += sum_j weight_ij c_j for `size` = [queries, dim, rows]
struct NewestValues<'a> {
    weights: Left<'a>,
    rows: View<'a>,
    acc: &'a mut [f32],
    size: [usize; 3],
}

impl Kernel for NewestValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        gemm_accumulate(isa, self.size, self.weights, self.rows, self.acc, (self.size[1], |_| 1.0));
    }
}

/// Scales the weights of each group to `MAX_WEIGHT` and writes the unit; zero where a query does not see the whole group.
struct ScaleWeights<'a> {
    weights: &'a mut [f32],
    lanes: usize,
    seen: &'a [usize; GROUP],
    /// The unit of each group and query, `[groups][lanes]`.
    units: &'a mut [f32],
}

impl AutovecKernel for ScaleWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let groups = self.weights.chunks_exact_mut(BLOCK * self.lanes);
        for (g, (weights, units)) in groups.zip(self.units.chunks_exact_mut(self.lanes)).enumerate() {
            for first in (0..self.lanes).step_by(LANES) {
                let mut most = [0.0; LANES];
                for row in weights.chunks_exact_mut(self.lanes) {
                    let weights = lanes_mut(row, first);
                    for l in 0..LANES {
                        most[l] = if weights[l] > most[l] { weights[l] } else { most[l] };
                    }
                }
                let mut factor = [0.0; LANES];
                for l in 0..LANES {
                    let whole = self.seen[first + l] >= (g + 1) * BLOCK && most[l] > LEAST;
                    factor[l] = if whole { MAX_WEIGHT / most[l] } else { 0.0 };
                    units[first + l] = if whole { most[l] / MAX_WEIGHT } else { 0.0 };
                }
                for row in weights.chunks_exact_mut(self.lanes) {
                    let weights = lanes_mut(row, first);
                    for l in 0..LANES {
                        weights[l] *= factor[l];
                    }
                }
            }
        }
    }
}

/// acc_i += unit sum_j round(weight_ij d_j) c_j over the whole groups that have units, block by block.
struct WeightedSums<'a> {
    values: &'a Int8Values<'a>,
    /// Weights scaled to `MAX_WEIGHT`, in the order `[rows][lanes]`.
    weights: &'a [f32],
    units: &'a [f32],
    /// Quantized weights of a block, four rows per word: `[lanes / EIGHT][fours][EIGHT]`.
    quants: &'a mut [u32],
    lanes: usize,
    acc: &'a mut [f32],
    dim: usize,
    /// Whether the sums overwrite `acc`.
    fresh: bool,
}

impl Kernel for WeightedSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        // A constant number of lanes leaves no bounds to check in the loops.
        match self.lanes / LANES {
            1 => weighted_sums::<I, 1>(isa, &mut self),
            2 => weighted_sums::<I, 2>(isa, &mut self),
            3 => weighted_sums::<I, 3>(isa, &mut self),
            _ => weighted_sums::<I, 4>(isa, &mut self),
        }
    }
}

/// The sums of `N * LANES` lanes.
#[inline(always)]
fn weighted_sums<I: Isa, const N: usize>(isa: I, s: &mut WeightedSums<'_>) {
    for b in 0..s.dim / 32 {
        quantize_weights::<I, N>(s, b);
        if I::MANY_REGISTERS {
            sum_block::<I, N, 4, 2>(isa, s, b);
        } else {
            sum_block::<I, N, EIGHT, 1>(isa, s, b);
        }
    }
}

/// Adds block b in tiles of `Q` queries and `C` panels of columns.
#[inline(always)]
fn sum_block<I: Isa, const N: usize, const Q: usize, const C: usize>(
    isa: I,
    s: &mut WeightedSums<'_>,
    b: usize,
) {
    for column in (0..32).step_by(C * I::Panel::MR) {
        for i in (0..s.acc.len() / s.dim).step_by(Q) {
            sum_tile::<I, N, Q, C>(isa, s, b, (i, column));
        }
    }
}

/// u_j + X_BIAS - 127 of four rows in a word.
#[inline(always)]
fn quantize_weights<I: Isa, const N: usize>(s: &mut WeightedSums<'_>, b: usize) {
    let round = ROUND + (I::Panel::X_BIAS as f32 - 127.0);
    let scales = s.values.scales[b * SEGMENT..].as_chunks::<4>().0;
    let fours = in_lanes::<_, N>(s.weights).as_chunks::<4>().0;
    let out = s.quants.as_chunks_mut::<EIGHT>().0;
    for (n, out) in out.chunks_exact_mut(LANES / EIGHT * fours.len()).enumerate() {
        let (low, high) = out.split_at_mut(fours.len());
        for (((weights, d), low), high) in fours.iter().zip(scales).zip(low).zip(high) {
            let mut words = [0; LANES];
            for l in 0..LANES {
                for r in 0..4 {
                    words[l] |= ((weights[r][n][l] * d[r] + round).to_bits() & 0xff) << (8 * r);
                }
            }
            let (eight, rest) = words.split_at(EIGHT);
            low.copy_from_slice(eight);
            high.copy_from_slice(rest);
        }
    }
}

/// Rows of `N * LANES` values.
#[inline(always)]
fn in_lanes<T, const N: usize>(v: &[T]) -> &[[[T; LANES]; N]] {
    v.as_chunks().0.as_chunks().0
}

/// Adds `C` panels of columns of block b to `Q` queries from i on.
#[inline(always)]
fn sum_tile<I: Isa, const N: usize, const Q: usize, const C: usize>(
    isa: I,
    s: &mut WeightedSums<'_>,
    b: usize,
    (i, column): (usize, usize),
) {
    let (p, mr) = (isa.panel(), I::Panel::MR);
    let mut sums = [[p.splat(0.0); Q]; C];
    let (panel, lane) = (i / LANES, i % LANES);
    let eights = s.quants.as_chunks::<EIGHT>().0.as_chunks::<{ BLOCK / 4 }>().0;
    let (groups, eight) = (eights.len() / (N * LANES / EIGHT), i % EIGHT);
    let quants = eights[i / EIGHT * groups..].iter();
    let values = s.values.bytes[b * FOURS..].as_chunks::<{ BLOCK / 4 }>().0;
    let heads = s.values.bias[b * GROUPS..].iter().zip(&s.values.largest[b * GROUPS..]);
    let units = in_lanes::<_, N>(s.units).iter();
    for ((quants, units), (values, (bias, largest))) in quants.zip(units).zip(values.iter().zip(heads)) {
        let mut ints = [[p.zeros(); Q]; C];
        for (c, ints) in ints.iter_mut().enumerate() {
            *ints = [load_ints(p, &bias[column + c * mr..]); Q];
        }
        for (quants, bytes) in quants.iter().zip(values).take(rolled::<I>(BLOCK / 4)) {
            let quants: &[u32; Q] = quants[eight..].first_chunk().expect("a part of eight");
            let u = quants.map(u32::to_le_bytes);
            for (c, ints) in ints.iter_mut().enumerate() {
                let columns = load_bytes(p, &bytes[4 * (column + c * mr)..]);
                *ints = p.dot_biased_each(*ints, columns, u);
            }
        }
        for q in 0..Q {
            let unit = p.splat(units[panel][lane + q] * largest);
            for c in 0..C {
                sums[c][q] = p.fma(p.floats(ints[c][q]), unit, sums[c][q]);
            }
        }
    }
    let mut at = i * s.dim + 32 * b + column;
    for q in 0..Q {
        if at >= s.acc.len() {
            break; // lanes after the last query
        }
        for (c, sums) in sums.iter().enumerate() {
            let acc = &mut s.acc[at + c * mr..];
            let sum = sums[q];
            let sum = if s.fresh { sum } else { p.fma(load(p, acc), p.splat(1.0), sum) };
            store(p, sum, acc);
        }
        at += s.dim;
    }
}

#[inline(always)]
fn load_ints<P: PanelSimd>(p: P, v: &[i32]) -> P::Ints {
    match v.first_chunk() {
        Some(v) => p.load_ints(v),
        None => {
            let mut sixteen = [0; 16];
            sixteen[..P::MR].copy_from_slice(&v[..P::MR]);
            p.load_ints(&sixteen)
        }
    }
}

#[inline(always)]
fn load_bytes<P: PanelSimd>(p: P, v: &[u8]) -> P::Bytes {
    match v.first_chunk() {
        Some(v) => p.load_bytes(v),
        None => {
            let mut all = [0; 64];
            all[..4 * P::MR].copy_from_slice(&v[..4 * P::MR]);
            p.load_bytes(&all)
        }
    }
}
