//! The searches for scales that K-quants make, eight sub-blocks at once, one a lane.
//!
//! Every lane does what a plain loop over its sub-block would do, in that order and without fused
//! multiply-add, so the result is ggml's, byte for byte, whatever the instruction set.

use crate::cpu::isa::Isa;
use std::array::from_fn;

/// Eight sub-blocks side by side: `[position][sub-block]`.
pub(super) type Columns<const N: usize> = [[f32; 8]; N];

/// Eight sub-blocks of `N` weights, turned on their side.
#[inline(always)]
pub(super) fn columns<const N: usize>(x: &[f32]) -> Columns<N> {
    from_fn(|i| from_fn(|j| x[N * j + i]))
}

/// Candidates for the scale: `(most + first + 0.1 k) / range` for k = 0..=count.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) first: f32,
    pub(super) count: u32,
}

/// `w_i = scale level_i - min`, for each of eight sub-blocks.
pub(super) struct Affine<const N: usize> {
    pub(super) scale: [f32; 8],
    pub(super) min: [f32; 8],
    pub(super) levels: [[u8; 8]; N],
}

/// How much an error in a weight counts: root mean square of its sub-block plus |w|.
#[inline(always)]
pub(super) fn importance<I: Isa, const N: usize>(isa: I, x: &Columns<N>) -> Columns<N> {
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

/// Levels for `iscale`: round((x - min) * iscale) in 0..=most.
#[inline(always)]
fn level<I: Isa>(isa: I, x: I::Floats, min: I::Floats, iscale: I::Floats, most: f32) -> I::Floats {
    let level = isa.floats(isa.round(isa.mul(iscale, isa.sub(x, min))));
    isa.min(isa.max(level, isa.splat(0.0)), isa.splat(most))
}

/// Sum of importance times squared error.
#[inline(always)]
fn error<I: Isa, const N: usize>(isa: I, x: &Columns<N>, w: &Columns<N>, of: Trial<I>) -> I::Floats {
    let mut error = isa.splat(0.0);
    for (x, w) in x.iter().zip(w) {
        let (x, w) = (isa.load_floats(x), isa.load_floats(w));
        let l = level(isa, x, of.base, of.iscale, of.most);
        let diff = isa.sub(isa.add(isa.mul(of.scale, l), of.min), x);
        error = isa.add(error, isa.mul(w, isa.mul(diff, diff)));
    }
    error
}

#[derive(Clone, Copy)]
struct Trial<I: Isa> {
    base: I::Floats,
    iscale: I::Floats,
    most: f32,
    scale: I::Floats,
    min: I::Floats,
}

/// The scale and minimum with the least weighted squared error: the first guess spans the range, then for each
/// candidate scale the levels are fixed and scale and minimum follow by linear regression.
#[inline(always)]
pub(super) fn affine<I: Isa, const N: usize>(
    isa: I,
    x: &Columns<N>,
    w: &Columns<N>,
    most: u8,
    steps: Steps,
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
    let mut best = Trial { base: low, iscale, most, scale: isa.div(isa.splat(1.0), iscale), min: low };
    let mut least = error(isa, x, w, best);
    for k in 0..=steps.count {
        let iscale = isa.div(isa.splat(steps.first + 0.1 * k as f32 + most), range);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for (x, w) in x.iter().zip(w) {
            let (x, w) = (isa.load_floats(x), isa.load_floats(w));
            let l = level(isa, x, low, iscale, most);
            let wl = isa.mul(w, l);
            sum_l = isa.add(sum_l, wl);
            sum_l2 = isa.add(sum_l2, isa.mul(wl, l));
            sum_xl = isa.add(sum_xl, isa.mul(wl, x));
        }
        let det = isa.sub(isa.mul(sum_w, sum_l2), isa.mul(sum_l, sum_l));
        let scale = isa.div(isa.sub(isa.mul(sum_w, sum_xl), isa.mul(sum_x, sum_l)), det);
        let min = isa.div(isa.sub(isa.mul(sum_l2, sum_x), isa.mul(sum_l, sum_xl)), det);
        // A minimum above zero cannot be stored: then the line goes through zero.
        let scale = isa.select(zero, min, isa.div(sum_xl, sum_l2), scale);
        let min = isa.select(zero, min, zero, min);
        let trial = Trial { iscale, scale, min, ..best };
        let cost = error(isa, x, w, trial);
        let cost = isa.select(zero, det, cost, isa.splat(f32::INFINITY));
        let keep = |new, old| isa.select(cost, least, new, old);
        best.iscale = keep(iscale, best.iscale);
        best.scale = keep(scale, best.scale);
        best.min = keep(min, best.min);
        least = keep(cost, least);
    }
    finish(isa, x, best, range)
}

/// Lanes out of the registers; a sub-block without range has scale zero and levels zero.
#[inline(always)]
fn finish<I: Isa, const N: usize>(isa: I, x: &Columns<N>, best: Trial<I>, range: I::Floats) -> Affine<N> {
    let zero = isa.splat(0.0);
    let flat = |value, otherwise| isa.select(zero, range, value, otherwise);
    let mut out = Affine { scale: [0.0; 8], min: [0.0; 8], levels: [[0; 8]; N] };
    isa.store(flat(best.scale, zero), &mut out.scale);
    isa.store(isa.sub(zero, flat(best.min, best.base)), &mut out.min);
    for (levels, x) in out.levels.iter_mut().zip(x) {
        let mut l = [0.0; 8];
        isa.store(flat(level(isa, isa.load_floats(x), best.base, best.iscale, best.most), zero), &mut l);
        *levels = l.map(|l| l as u8);
    }
    out
}
