//! Refines the scales of quantized blocks, so that squared errors weighted by the importance of columns become smaller than
//! ggml's search leaves them.
//!
//! A super-block's codes of scales and minima are moved by one and two, each with the quants nearest to the weights; then d and
//! dmin are fitted to the quants by least squares; both repeat while the error falls. Blocks of 32 have no codes: their quants
//! start from several scales, and scale and minimum are fitted. It does not search the quants of codebooks and grids.
//! Next: `scale_search`, whose lanes it uses.

use super::scale_search::{LanePerBlock, halves};
use crate::simd::Isa;
use half::f16;

/// Most repetitions for a super-block; the error rarely falls in more.
const ROUNDS: usize = 6;
/// An error that falls by a smaller part ends the search.
const LEAST_GAIN: f64 = 1e-4;
/// Changes of the codes of scale and minimum that are tried together.
const STEPS: [[f32; 2]; 16] = [
    [-1.0, 0.0],
    [1.0, 0.0],
    [0.0, -1.0],
    [0.0, 1.0],
    [-1.0, -1.0],
    [-1.0, 1.0],
    [1.0, -1.0],
    [1.0, 1.0],
    [-2.0, 0.0],
    [2.0, 0.0],
    [0.0, -2.0],
    [0.0, 2.0],
    [-2.0, -2.0],
    [2.0, 2.0],
    [-3.0, -3.0],
    [3.0, 3.0],
];
/// Factors on the best scale from which quants of blocks of 32 start.
const FACTORS: [f32; 9] = [1.0, 0.98, 1.02, 0.95, 1.05, 0.91, 1.09, 0.86, 1.14];

/// `w = d sc_j q - dmin m_j` for `8 H` sub-blocks j; the codes sc and m are whole numbers.
#[derive(Clone, Copy)]
pub(super) struct SuperBlockScales<const H: usize> {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) sc: [[f32; 8]; H],
    pub(super) m: [[f32; 8]; H],
}

/// Smallest and largest numbers that a format stores.
#[derive(Clone, Copy)]
pub(super) struct Ranges {
    pub(super) quants: [f32; 2],
    pub(super) sc: [f32; 2],
    /// Largest code of a minimum; 0 for formats without minima.
    pub(super) m: f32,
}

/// A group of eight sub-blocks: their weights and the weights of their errors.
#[derive(Clone, Copy)]
pub(super) struct BlockGroup<const N: usize> {
    pub(super) x: LanePerBlock<N>,
    pub(super) w: LanePerBlock<N>,
}

/// The sixteen sub-blocks of a super-block in two groups.
#[inline(always)]
pub(super) fn groups(x: &[f32], w: &[f32]) -> [BlockGroup<16>; 2] {
    let ([x0, x1], [w0, w1]) = (halves(x), halves(w));
    [BlockGroup { x: x0, w: w0 }, BlockGroup { x: x1, w: w1 }]
}

/// The sixteen codes of two groups, as the numbers of a format.
#[inline(always)]
pub(super) fn codes<T>(codes: [[f32; 8]; 2], number: impl Fn(f32) -> T) -> [T; 16] {
    std::array::from_fn(|g| number(codes[g / 8][g % 8]))
}

/// The codes in two groups of eight, the inverse of [`codes`].
#[inline(always)]
pub(super) fn split(codes: [f32; 16]) -> [[f32; 8]; 2] {
    std::array::from_fn(|h| std::array::from_fn(|j| codes[8 * h + j]))
}

/// `scale q + base` with q in a range, for each lane.
#[derive(Clone, Copy)]
struct QuantLine<I: Isa> {
    scale: I::Floats,
    base: I::Floats,
    inverse: I::Floats,
    range: [f32; 2],
}

impl<I: Isa> QuantLine<I> {
    #[inline(always)]
    fn new(isa: I, scale: I::Floats, base: I::Floats, range: [f32; 2]) -> QuantLine<I> {
        let zero = isa.splat(0.0);
        let inverse = isa.select(zero, isa.mul(scale, scale), isa.div(isa.splat(1.0), scale), zero);
        QuantLine { scale, base, inverse, range }
    }

    /// The quant nearest to x.
    #[inline(always)]
    fn quant(&self, isa: I, x: I::Floats) -> I::Floats {
        let q = isa.floats(isa.round(isa.mul(isa.sub(x, self.base), self.inverse)));
        isa.min(isa.max(q, isa.splat(self.range[0])), isa.splat(self.range[1]))
    }

    #[inline(always)]
    fn error<const N: usize>(&self, isa: I, group: &BlockGroup<N>) -> I::Floats {
        let mut error = isa.splat(0.0);
        for (x, w) in group.x.iter().zip(&group.w) {
            let (x, w) = (isa.load_floats(x), isa.load_floats(w));
            let difference = isa.sub(isa.add(isa.mul(self.scale, self.quant(isa, x)), self.base), x);
            error = isa.add(error, isa.mul(w, isa.mul(difference, difference)));
        }
        error
    }

    /// The sums over w of: q q, q, 1, x q, x.
    #[inline(always)]
    fn moments<const N: usize>(&self, isa: I, group: &BlockGroup<N>) -> [I::Floats; 5] {
        let mut sums = [isa.splat(0.0); 5];
        for (x, w) in group.x.iter().zip(&group.w) {
            let (x, w) = (isa.load_floats(x), isa.load_floats(w));
            let q = self.quant(isa, x);
            let wq = isa.mul(w, q);
            let terms = [isa.mul(wq, q), wq, w, isa.mul(wq, x), isa.mul(w, x)];
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum = isa.add(*sum, term);
            }
        }
        sums
    }

    /// The quants, counted from the lowest of the range.
    #[inline(always)]
    fn stored<const N: usize>(&self, isa: I, x: &LanePerBlock<N>) -> [[u8; 8]; N] {
        let mut out = [[0; 8]; N];
        for (out, x) in out.iter_mut().zip(x) {
            let mut q = [0.0; 8];
            isa.store(isa.sub(self.quant(isa, isa.load_floats(x)), isa.splat(self.range[0])), &mut q);
            *out = q.map(|q| q as u8);
        }
        out
    }
}

#[inline(always)]
fn lanes<I: Isa>(isa: I, v: I::Floats) -> [f32; 8] {
    let mut out = [0.0; 8];
    isa.store(v, &mut out);
    out
}

#[inline(always)]
fn line<I: Isa>(isa: I, d: f16, dmin: f16, [sc, m]: [I::Floats; 2], range: [f32; 2]) -> QuantLine<I> {
    let scale = isa.mul(isa.splat(d.to_f32()), sc);
    QuantLine::new(isa, scale, isa.mul(isa.splat(-dmin.to_f32()), m), range)
}

/// The error of a super-block with some scales.
#[inline(always)]
fn total<I: Isa, const N: usize, const H: usize>(
    isa: I,
    groups: &[BlockGroup<N>; H],
    scales: &SuperBlockScales<H>,
    ranges: &Ranges,
) -> f64 {
    let mut sum = 0.0;
    for (h, group) in groups.iter().enumerate() {
        let codes = [isa.load_floats(&scales.sc[h]), isa.load_floats(&scales.m[h])];
        let error = line(isa, scales.d, scales.dmin, codes, ranges.quants).error(isa, group);
        sum += lanes(isa, error).iter().map(|e| f64::from(*e)).sum::<f64>();
    }
    sum
}

/// Moves each sub-block's codes to the best of the [`STEPS`].
#[inline(always)]
fn step<I: Isa, const N: usize, const H: usize>(
    isa: I,
    groups: &[BlockGroup<N>; H],
    scales: &mut SuperBlockScales<H>,
    ranges: &Ranges,
) {
    for (h, group) in groups.iter().enumerate() {
        let start = [isa.load_floats(&scales.sc[h]), isa.load_floats(&scales.m[h])];
        let mut best = start;
        let mut least = line(isa, scales.d, scales.dmin, best, ranges.quants).error(isa, group);
        for [sc, m] in STEPS {
            if ranges.m == 0.0 && m != 0.0 {
                continue;
            }
            let limits = [[ranges.sc[0], ranges.sc[1]], [0.0, ranges.m]];
            let mut codes = start;
            for ((code, change), [low, high]) in codes.iter_mut().zip([sc, m]).zip(limits) {
                let moved = isa.add(*code, isa.splat(change));
                *code = isa.min(isa.max(moved, isa.splat(low)), isa.splat(high));
            }
            let error = line(isa, scales.d, scales.dmin, codes, ranges.quants).error(isa, group);
            for (best, code) in best.iter_mut().zip(codes) {
                *best = isa.select(error, least, code, *best);
            }
            least = isa.select(error, least, error, least);
        }
        [scales.sc[h], scales.m[h]] = best.map(|codes| lanes(isa, codes));
    }
}

/// Fits d and dmin to the quants of the scales by least squares.
#[inline(always)]
fn fit<I: Isa, const N: usize, const H: usize>(
    isa: I,
    groups: &[BlockGroup<N>; H],
    scales: &SuperBlockScales<H>,
    ranges: &Ranges,
) -> SuperBlockScales<H> {
    // With a = sc q and b = m: the sums over w of a a, a b, b b, x a, x b.
    let [mut aa, mut ab, mut bb, mut xa, mut xb] = [0.0f64; 5];
    for (h, group) in groups.iter().enumerate() {
        let codes = [isa.load_floats(&scales.sc[h]), isa.load_floats(&scales.m[h])];
        let sums = line(isa, scales.d, scales.dmin, codes, ranges.quants).moments(isa, group);
        let [qq, q, one, xq, x] = sums.map(|sum| lanes(isa, sum).map(f64::from));
        for j in 0..8 {
            let (sc, m) = (f64::from(scales.sc[h][j]), f64::from(scales.m[h][j]));
            aa += sc * sc * qq[j];
            ab += sc * m * q[j];
            bb += m * m * one[j];
            xa += sc * xq[j];
            xb += m * x[j];
        }
    }
    let det = aa * bb - ab * ab;
    let (d, dmin) = if bb > 0.0 && det > 1e-9 * aa * bb {
        ((xa * bb - ab * xb) / det, (ab * xa - aa * xb) / det)
    } else if aa > 0.0 {
        let dmin = f64::from(scales.dmin.to_f32());
        ((xa + dmin * ab) / aa, dmin)
    } else {
        return *scales;
    };
    SuperBlockScales { d: f16::from_f64(d), dmin: f16::from_f64(dmin), ..*scales }
}

/// Refines the scales of a super-block; the quants are those nearest to its weights.
#[inline(always)]
pub(super) fn super_block<I: Isa, const N: usize, const H: usize>(
    isa: I,
    groups: &[BlockGroup<N>; H],
    start: SuperBlockScales<H>,
    ranges: &Ranges,
) -> SuperBlockScales<H> {
    let mut best = start;
    let mut least = total(isa, groups, &best, ranges);
    for _ in 0..ROUNDS {
        let mut moved = best;
        step(isa, groups, &mut moved, ranges);
        let fitted = fit(isa, groups, &moved, ranges);
        let [of_moved, of_fitted] = [moved, fitted].map(|scales| total(isa, groups, &scales, ranges));
        let (next, error) = if of_fitted < of_moved { (fitted, of_fitted) } else { (moved, of_moved) };
        let improves = least - error > LEAST_GAIN * least;
        if error < least {
            (best, least) = (next, error);
        }
        if !improves {
            break;
        }
    }
    best
}

/// Scale, minimum and quants of eight blocks of 32; both as their f16 has them. Quants count from the lowest.
pub(super) struct FittedBlocks {
    pub(super) d: [f32; 8],
    pub(super) m: [f32; 8],
    pub(super) quants: [[u8; 8]; 32],
}

/// Refines `w = d q + m` of eight blocks of 32; without `has_min` m stays as it is.
#[inline(always)]
pub(super) fn blocks<I: Isa>(
    isa: I,
    group: &BlockGroup<32>,
    [d, m]: [[f32; 8]; 2],
    range: [f32; 2],
    has_min: bool,
) -> FittedBlocks {
    let zero = isa.splat(0.0);
    let mut best = [isa.load_floats(&d), isa.load_floats(&m)];
    let mut least = QuantLine::new(isa, best[0], best[1], range).error(isa, group);
    for factor in FACTORS.into_iter().chain(FACTORS) {
        let trial = QuantLine::new(isa, isa.mul(isa.splat(factor), best[0]), best[1], range);
        let [qq, q, one, xq, x] = trial.moments(isa, group);
        let through_base = isa.div(isa.sub(xq, isa.mul(best[1], q)), qq);
        let through_base = isa.select(zero, qq, through_base, best[0]);
        let fitted = if has_min {
            let det = isa.sub(isa.mul(qq, one), isa.mul(q, q));
            let d = isa.div(isa.sub(isa.mul(xq, one), isa.mul(q, x)), det);
            let m = isa.div(isa.sub(isa.mul(qq, x), isa.mul(q, xq)), det);
            let clear = isa.mul(isa.splat(1e-6), isa.mul(qq, one));
            [isa.select(clear, det, d, through_base), isa.select(clear, det, m, best[1])]
        } else {
            [through_base, best[1]]
        };
        let fitted = fitted.map(|v| isa.load_floats(&lanes(isa, v).map(|v| f16::from_f32(v).to_f32())));
        let error = QuantLine::new(isa, fitted[0], fitted[1], range).error(isa, group);
        for (best, fitted) in best.iter_mut().zip(fitted) {
            *best = isa.select(error, least, fitted, *best);
        }
        least = isa.select(error, least, error, least);
    }
    let quants = QuantLine::new(isa, best[0], best[1], range).stored(isa, &group.x);
    FittedBlocks { d: lanes(isa, best[0]), m: lanes(isa, best[1]), quants }
}
