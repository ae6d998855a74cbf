//! Searches the scales of K-quants for eight sub-blocks at once, one per lane.
//!
//! Every lane computes what a plain loop over its sub-block would, in the same order and without fused multiply-add,
//! so the bytes equal ggml's on every instruction set.

use crate::simd::Isa;
use std::array::from_fn;

/// Eight sub-blocks of `N` weights, one per lane: `[position][sub-block]`.
pub(super) type LanePerBlock<const N: usize> = [[f32; 8]; N];

/// Transposes eight sub-blocks of `N` weights.
#[inline(always)]
pub(super) fn columns<const N: usize>(x: &[f32]) -> LanePerBlock<N> {
    from_fn(|i| from_fn(|j| x[N * j + i]))
}

/// The blocks of 32 weights of a row, eight at a time, one per lane; the last lanes may be empty.
#[inline(always)]
pub(super) fn eights(x: &[f32]) -> impl Iterator<Item = LanePerBlock<32>> {
    x.chunks(256).map(|x| {
        let mut padded = [0.0; 256];
        padded[..x.len()].copy_from_slice(x);
        columns(&padded)
    })
}

/// The quants of one lane.
pub(super) fn lane<const N: usize>(quants: &[[u8; 8]; N], j: usize) -> [u8; N] {
    from_fn(|i| quants[i][j])
}

/// Candidates for the scale: `(most + first + step k) / range` for k = 0..=count.
#[derive(Clone, Copy)]
pub(super) struct ScaleSteps {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) count: u32,
}

/// Candidates of all formats with minima where an importance matrix gives the weights of errors.
pub(super) const WEIGHTED_STEPS: ScaleSteps = ScaleSteps { first: -0.9, step: 0.05, count: 36 };

/// The error that the search minimizes, summed over a sub-block with importance weights.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Cost {
    Square,
    Absolute,
}

/// A group whose weights are all smaller than this is stored as zeros.
pub(super) const NOTHING: f32 = 1e-15;

/// The unpacked quants, sub-block after sub-block.
#[inline(always)]
pub(super) fn stored<I: Isa>(isa: I, quants: [I::Bytes; 8]) -> [u8; 256] {
    let mut q = [0; 256];
    for (quants, q) in quants.into_iter().zip(q.as_chunks_mut().0) {
        isa.store_bytes(quants, q);
    }
    q
}

/// `w_i = scale q_i - min`, for each of eight sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Affine<const N: usize> {
    pub(super) scale: [f32; 8],
    pub(super) min: [f32; 8],
    pub(super) quants: [[u8; 8]; N],
}

impl<const N: usize> Affine<N> {
    pub(super) const ZERO: Affine<N> = Affine { scale: [0.0; 8], min: [0.0; 8], quants: [[0; 8]; N] };
}

/// The weight of each error without an importance matrix: root mean square of its sub-block plus |w|.
#[inline(always)]
pub(super) fn default_weights<I: Isa, const N: usize>(isa: I, x: &LanePerBlock<N>) -> LanePerBlock<N> {
    let mut squares = isa.splat(0.0);
    for x in x {
        let x = isa.load_floats(x);
        squares = isa.add(squares, isa.mul(x, x));
    }
    let mut rms = [0.0; 8];
    isa.store(squares, &mut rms);
    let rms = rms.map(|s| (s / N as f32).sqrt());
    from_fn(|i| from_fn(|j| rms[j] + x[i][j].abs()))
}

/// The mean square of the weights: their sum, in order, times `factor / x.len()`.
#[inline(always)]
pub(super) fn mean_square(x: &[f32], factor: f32) -> f32 {
    factor * x.iter().fold(0.0, |sum: f32, x| sum + x * x) / x.len() as f32
}

/// The weight of each error by an importance matrix: importance times sqrt(`variance` + w w).
#[inline(always)]
pub(super) fn weigh<I: Isa, const N: usize>(
    isa: I,
    x: &LanePerBlock<N>,
    importance: &LanePerBlock<N>,
    variance: [f32; 8],
) -> LanePerBlock<N> {
    let variance = isa.load_floats(&variance);
    let mut out = *importance;
    for (out, x) in out.iter_mut().zip(x) {
        let x = isa.load_floats(x);
        let mut sum = [0.0; 8];
        isa.store(isa.add(variance, isa.mul(x, x)), &mut sum);
        *out = from_fn(|j| out[j] * sum[j].sqrt());
    }
    out
}

/// The sum over each sub-block, in order.
#[inline(always)]
pub(super) fn sums<I: Isa, const N: usize>(isa: I, w: &LanePerBlock<N>) -> [f32; 8] {
    let sum = w.iter().fold(isa.splat(0.0), |sum, w| isa.add(sum, isa.load_floats(w)));
    let mut out = [0.0; 8];
    isa.store(sum, &mut out);
    out
}

/// The squares of the weights, by which errors count where there is no importance matrix.
#[inline(always)]
pub(super) fn squares<const N: usize>(x: &LanePerBlock<N>) -> LanePerBlock<N> {
    x.map(|x| x.map(|x| x * x))
}

/// Quants for `iscale`: round((x - min) * iscale) in 0..=most.
#[inline(always)]
fn quant<I: Isa>(isa: I, x: I::Floats, min: I::Floats, iscale: I::Floats, most: f32) -> I::Floats {
    let level = isa.floats(isa.round(isa.mul(iscale, isa.sub(x, min))));
    isa.min(isa.max(level, isa.splat(0.0)), isa.splat(most))
}

/// Computes |v|; -0 and NaN pass unchanged.
#[inline(always)]
pub(super) fn absolute<I: Isa>(isa: I, v: I::Floats) -> I::Floats {
    isa.select(v, isa.splat(0.0), isa.sub(isa.splat(0.0), v), v)
}

/// Sum of importance times squared error.
#[inline(always)]
fn error<I: Isa, const N: usize>(
    isa: I,
    x: &LanePerBlock<N>,
    w: &LanePerBlock<N>,
    of: Trial<I>,
) -> I::Floats {
    let mut error = isa.splat(0.0);
    for (x, w) in x.iter().zip(w) {
        let (x, w) = (isa.load_floats(x), isa.load_floats(w));
        let l = quant(isa, x, of.base, of.iscale, of.most);
        let diff = isa.sub(isa.add(isa.mul(of.scale, l), of.min), x);
        let cost = match of.cost {
            Cost::Square => isa.mul(diff, diff),
            Cost::Absolute => absolute(isa, diff),
        };
        error = isa.add(error, isa.mul(w, cost));
    }
    error
}

#[derive(Clone, Copy)]
struct Trial<I: Isa> {
    base: I::Floats,
    iscale: I::Floats,
    most: f32,
    cost: Cost,
    scale: I::Floats,
    min: I::Floats,
}

/// The scale and minimum with the least weighted squared error. The first candidate spans the range; each further one
/// fixes the quants by a trial scale and fits scale and minimum by linear regression.
#[inline(always)]
pub(super) fn affine<I: Isa, const N: usize>(
    isa: I,
    x: &LanePerBlock<N>,
    w: &LanePerBlock<N>,
    (most, cost): (u8, Cost),
    steps: ScaleSteps,
) -> Affine<N> {
    let most = most as f32;
    let zero = isa.splat(0.0);
    let first = isa.load_floats(&x[0]);
    let (mut low, mut high) = (first, first);
    let mut sum_w = isa.load_floats(&w[0]);
    let mut sum_x = isa.mul(sum_w, first);
    for (x, w) in x.iter().zip(w).skip(1) {
        let (x, w) = (isa.load_floats(x), isa.load_floats(w));
        low = isa.select(x, low, x, low);
        high = isa.select(high, x, x, high);
        sum_w = isa.add(sum_w, w);
        sum_x = isa.add(sum_x, isa.mul(w, x));
    }
    low = isa.select(zero, low, zero, low);
    let range = isa.sub(high, low);

    let iscale = isa.div(isa.splat(most), range);
    let mut best = Trial { base: low, iscale, most, cost, scale: isa.div(isa.splat(1.0), iscale), min: low };
    let mut least = error(isa, x, w, best);
    for k in 0..=steps.count {
        // Quants are counted from the best minimum so far.
        let base = best.min;
        let iscale = isa.div(isa.splat(steps.first + steps.step * k as f32 + most), isa.sub(high, base));
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for (x, w) in x.iter().zip(w) {
            let (x, w) = (isa.load_floats(x), isa.load_floats(w));
            let l = quant(isa, x, base, iscale, most);
            let wl = isa.mul(w, l);
            sum_l = isa.add(sum_l, wl);
            sum_l2 = isa.add(sum_l2, isa.mul(wl, l));
            sum_xl = isa.add(sum_xl, isa.mul(wl, x));
        }
        let det = isa.sub(isa.mul(sum_w, sum_l2), isa.mul(sum_l, sum_l));
        let scale = isa.div(isa.sub(isa.mul(sum_w, sum_xl), isa.mul(sum_x, sum_l)), det);
        let min = isa.div(isa.sub(isa.mul(sum_l2, sum_x), isa.mul(sum_l, sum_xl)), det);
        // A minimum above zero cannot be stored: fit a line through zero instead.
        let scale = isa.select(zero, min, isa.div(sum_xl, sum_l2), scale);
        let min = isa.select(zero, min, zero, min);
        let trial = Trial { base, iscale, scale, min, ..best };
        let error = error(isa, x, w, trial);
        let error = isa.select(zero, det, error, isa.splat(f32::INFINITY));
        let keep = |new, old| isa.select(error, least, new, old);
        best.base = keep(base, best.base);
        best.iscale = keep(iscale, best.iscale);
        best.scale = keep(scale, best.scale);
        best.min = keep(min, best.min);
        least = keep(error, least);
    }
    finish(isa, x, best, range)
}

/// Stores the lanes; a sub-block without range gets scale zero and quants zero.
#[inline(always)]
fn finish<I: Isa, const N: usize>(
    isa: I,
    x: &LanePerBlock<N>,
    best: Trial<I>,
    range: I::Floats,
) -> Affine<N> {
    let zero = isa.splat(0.0);
    let flat = |value, otherwise| isa.select(zero, range, value, otherwise);
    let mut out = Affine::ZERO;
    isa.store(flat(best.scale, zero), &mut out.scale);
    isa.store(isa.mul(best.min, isa.splat(-1.0)), &mut out.min);
    for (quants, x) in out.quants.iter_mut().zip(x) {
        let mut l = [0.0; 8];
        isa.store(flat(quant(isa, isa.load_floats(x), best.base, best.iscale, best.most), zero), &mut l);
        *quants = l.map(|l| l as u8);
    }
    out
}

/// `w_i = scale (q_i - offset)`, for each of eight groups of `N`.
#[derive(Clone, Copy)]
pub(super) struct Symmetric<const N: usize> {
    pub(super) scale: [f32; 8],
    pub(super) quants: [[u8; 8]; N],
}

impl<const N: usize> Symmetric<N> {
    pub(super) const ZERO: Symmetric<N> = Symmetric { scale: [0.0; 8], quants: [[0; 8]; N] };
}

/// The sixteen groups of a super-block, eight at a time.
#[inline(always)]
pub(super) fn halves(x: &[f32]) -> [LanePerBlock<16>; 2] {
    [columns(&x[..128]), columns(&x[128..])]
}

/// Joins the scales and quants of the halves of a super-block.
#[inline(always)]
pub(super) fn sixteen(found: &[Symmetric<16>; 2]) -> ([f32; 16], [u8; 256]) {
    let (mut scale, mut quants) = ([0.0; 16], [0; 256]);
    for (h, found) in found.iter().enumerate() {
        scale[8 * h..8 * h + 8].copy_from_slice(&found.scale);
        for i in 0..128 {
            quants[128 * h + i] = found.quants[i % 16][i / 16];
        }
    }
    (scale, quants)
}

/// The signed value furthest from zero in each column, and 1 where the column is below [`NOTHING`], else 0.
#[inline(always)]
fn furthest<I: Isa, const N: usize>(isa: I, x: &LanePerBlock<N>) -> (I::Floats, I::Floats) {
    let (mut most, mut value) = (isa.splat(0.0), isa.splat(0.0));
    for x in x {
        let x = isa.load_floats(x);
        let size = absolute(isa, x);
        value = isa.select(most, size, x, value);
        most = isa.select(most, size, size, most);
    }
    (value, isa.select(most, isa.splat(NOTHING), isa.splat(1.0), isa.splat(0.0)))
}

/// round(v) in -limit..=limit - 1
#[inline(always)]
fn signed_quant<I: Isa>(isa: I, v: I::Floats, limit: f32) -> I::Floats {
    isa.min(isa.max(isa.floats(isa.round(v)), isa.splat(-limit)), isa.splat(limit - 1.0))
}

/// The sums of w x l and w l l, which give the best scale for fixed quants.
#[inline(always)]
fn regress<I: Isa, const N: usize>(
    isa: I,
    x: &LanePerBlock<N>,
    w: &LanePerBlock<N>,
    iscale: I::Floats,
    limit: f32,
) -> [I::Floats; 2] {
    let (mut sum_xl, mut sum_l2) = (isa.splat(0.0), isa.splat(0.0));
    for (x, w) in x.iter().zip(w) {
        let (x, w) = (isa.load_floats(x), isa.load_floats(w));
        let l = signed_quant(isa, isa.mul(iscale, x), limit);
        sum_xl = isa.add(sum_xl, isa.mul(isa.mul(w, x), l));
        sum_l2 = isa.add(sum_l2, isa.mul(isa.mul(w, l), l));
    }
    [sum_xl, sum_l2]
}

/// Signed quants in -limit..limit: tries eighteen scales near the one that maps the furthest value to -limit.
#[inline(always)]
pub(super) fn symmetric<I: Isa, const N: usize>(
    isa: I,
    x: &LanePerBlock<N>,
    w: &LanePerBlock<N>,
    limit: f32,
) -> Symmetric<N> {
    let zero = isa.splat(0.0);
    let (most, nothing) = furthest(isa, x);
    let mut best_iscale = isa.div(isa.splat(-limit), most);
    let [sum_xl, sum_l2] = regress(isa, x, w, best_iscale, limit);
    let mut scale = isa.select(zero, sum_l2, isa.div(sum_xl, sum_l2), zero);
    let mut best = isa.mul(scale, sum_xl);
    for k in (-9..=9).filter(|&k| k != 0) {
        let iscale = isa.div(isa.splat(-(limit + 0.1 * k as f32)), most);
        let [sum_xl, sum_l2] = regress(isa, x, w, iscale, limit);
        let (ours, theirs) = (isa.mul(sum_xl, sum_xl), isa.mul(best, sum_l2));
        let theirs = isa.select(zero, sum_l2, theirs, isa.splat(f32::INFINITY));
        let keep = |new, old| isa.select(theirs, ours, new, old);
        best_iscale = keep(iscale, best_iscale);
        scale = keep(isa.div(sum_xl, sum_l2), scale);
        best = isa.select(theirs, ours, isa.mul(scale, sum_xl), best);
    }
    let mut quants = [zero; N];
    for (l, x) in quants.iter_mut().zip(x) {
        *l = signed_quant(isa, isa.mul(best_iscale, isa.load_floats(x)), limit);
    }
    centre(isa, scale, quants, limit, nothing)
}

/// [`symmetric`] by coordinate descent: improves one quant at a time, in at most five rounds.
#[inline(always)]
pub(super) fn symmetric_by_turns<I: Isa>(isa: I, x: &LanePerBlock<16>, limit: f32) -> Symmetric<16> {
    let zero = isa.splat(0.0);
    let (most, nothing) = furthest(isa, x);
    let iscale = isa.div(isa.splat(-limit), most);
    let [mut sum_xl, mut sum_l2] = regress(isa, x, &squares(x), iscale, limit);
    let mut quants = [zero; 16];
    for (l, x) in quants.iter_mut().zip(x) {
        *l = signed_quant(isa, isa.mul(iscale, isa.load_floats(x)), limit);
    }
    for _ in 0..5 {
        for (l, x) in quants.iter_mut().zip(x) {
            let x = isa.load_floats(x);
            let w = isa.mul(x, x);
            let (wx, wl) = (isa.mul(w, x), isa.mul(w, *l));
            // The sums without this weight, the quant that is optimal for them, and the sums with it.
            let xl = isa.sub(sum_xl, isa.mul(wx, *l));
            let l2 = isa.sub(sum_l2, isa.mul(wl, *l));
            let new = signed_quant(isa, isa.div(isa.mul(x, l2), xl), limit);
            let new_xl = isa.add(xl, isa.mul(wx, new));
            let new_l2 = isa.add(l2, isa.mul(isa.mul(w, new), new));
            let ours = isa.mul(isa.mul(new_xl, new_xl), sum_l2);
            let theirs = isa.mul(isa.mul(sum_xl, sum_xl), new_l2);
            let theirs = isa.select(zero, xl, theirs, isa.splat(f32::INFINITY));
            let change = absolute(isa, isa.sub(new, *l));
            let theirs = isa.select(zero, change, theirs, isa.splat(f32::INFINITY));
            let theirs = isa.select(zero, new_l2, theirs, isa.splat(f32::INFINITY));
            let keep = |new, old| isa.select(theirs, ours, new, old);
            (*l, sum_xl, sum_l2) = (keep(new, *l), keep(new_xl, sum_xl), keep(new_l2, sum_l2));
        }
    }
    let scale = isa.select(zero, sum_l2, isa.div(sum_xl, sum_l2), zero);
    centre(isa, scale, quants, limit, nothing)
}

/// Stores the lanes with unsigned quants; a group below [`NOTHING`] gets scale zero and quants zero.
#[inline(always)]
fn centre<I: Isa, const N: usize>(
    isa: I,
    scale: I::Floats,
    quants: [I::Floats; N],
    limit: f32,
    nothing: I::Floats,
) -> Symmetric<N> {
    let zero = isa.splat(0.0);
    let there = |v| isa.select(zero, nothing, zero, v);
    let mut out = Symmetric { scale: [0.0; 8], quants: [[0; 8]; N] };
    isa.store(there(scale), &mut out.scale);
    for (out, level) in out.quants.iter_mut().zip(quants) {
        let mut l = [0.0; 8];
        isa.store(there(isa.add(level, isa.splat(limit))), &mut l);
        *out = l.map(|l| l as u8);
    }
    out
}
