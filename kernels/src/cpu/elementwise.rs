//! Computes row-wise ops: elementwise functions, norms, the short convolution and the KDA decay.
//!
//! They are memory-bound; rows are split over the threads when there are enough to amortise a parallel region. Next:
//! `matmul`.

use super::autovec::{AutovecKernel, dot, fma, run, sigmoid, softplus};
use super::memory::Tensor;
use super::{Cpu, Weight};
use crate::backend::{Decay, Span};

/// Smallest number of values per thread that amortises a wake-up: about 5 us of work.
const WORTH_A_CHUNK: usize = 16 * 1024;

/// An op on one row, in place.
trait RowOp: Sync {
    /// Computes row `r` of the batch into `y`, which may hold the op's input.
    fn row<const FMA: bool>(&self, r: usize, y: &mut [f32]);
}

struct RowChunk<'a, R> {
    op: &'a R,
    first: usize,
    cols: usize,
    y: &'a mut [f32],
}

impl<R: RowOp> AutovecKernel for RowChunk<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (i, y) in self.y.chunks_exact_mut(self.cols).enumerate() {
            self.op.row::<FMA>(self.first + i, y);
        }
    }
}

/// Computes all rows of `y`, `cols` values each, from row `first` of the op on.
fn each_row(cpu: &Cpu, y: &mut [f32], cols: usize, op: impl RowOp) {
    if cols == 0 {
        return;
    }
    let rows = WORTH_A_CHUNK.div_ceil(cols);
    cpu.pool.for_chunks(y, rows * cols, |chunk, y| {
        run(cpu.level, RowChunk { op: &op, first: chunk * rows, cols, y });
    });
}

// ---- elements ------------------------------------------------------------------------------------------

struct Sigmoid;

impl RowOp for Sigmoid {
    #[inline(always)]
    fn row<const FMA: bool>(&self, _: usize, y: &mut [f32]) {
        y.iter_mut().for_each(|y| *y = sigmoid::<FMA>(*y));
    }
}

struct SiluMul<'a> {
    up: &'a Tensor,
    limit: f32,
}

impl RowOp for SiluMul<'_> {
    #[inline(always)]
    fn row<const FMA: bool>(&self, r: usize, y: &mut [f32]) {
        let up = self.up.row(r).iter();
        y.iter_mut().zip(up).for_each(|(y, up)| *y = limited_silu_mul::<FMA>(*y, *up, self.limit));
    }
}

/// SiLU(gate) * up, both limited. NaN stays NaN.
#[inline(always)]
pub(super) fn limited_silu_mul<const FMA: bool>(gate: f32, up: f32, limit: f32) -> f32 {
    let gate = gate * sigmoid::<FMA>(gate);
    let gate = if gate > limit { limit } else { gate };
    gate * up.clamp(-limit, limit)
}

struct GateHeads<'a> {
    gate: &'a Tensor,
}

impl RowOp for GateHeads<'_> {
    #[inline(always)]
    fn row<const FMA: bool>(&self, r: usize, y: &mut [f32]) {
        let gates = self.gate.row(r);
        for (y, gate) in y.chunks_exact_mut(y.len() / gates.len()).zip(gates) {
            let gate = sigmoid::<FMA>(*gate);
            y.iter_mut().for_each(|y| *y *= gate);
        }
    }
}

struct Add<'a>(&'a Tensor);

impl RowOp for Add<'_> {
    #[inline(always)]
    fn row<const FMA: bool>(&self, r: usize, y: &mut [f32]) {
        y.iter_mut().zip(self.0.row(r)).for_each(|(y, x)| *y += x);
    }
}

struct KdaDecay<'a> {
    a: &'a [f32],
    dt_bias: &'a [f32],
    decay: Decay,
}

impl RowOp for KdaDecay<'_> {
    #[inline(always)]
    fn row<const FMA: bool>(&self, _: usize, y: &mut [f32]) {
        let dim = y.len() / self.a.len();
        for ((y, bias), a) in y.chunks_exact_mut(dim).zip(self.dt_bias.chunks_exact(dim)).zip(self.a) {
            let y = y.iter_mut().zip(bias);
            match self.decay {
                Decay::Softplus => y.for_each(|(y, bias)| *y = a * softplus::<FMA>(*y + bias)),
                Decay::Bounded(bound) => y.for_each(|(y, bias)| *y = bound * sigmoid::<FMA>(a * (*y + bias))),
            }
        }
    }
}

pub(super) fn apply_sigmoid(cpu: &Cpu, mut x: Tensor) -> Tensor {
    let cols = x.cols;
    each_row(cpu, x.values_mut(), cols, Sigmoid);
    x
}

pub(super) fn silu_mul(cpu: &Cpu, mut gate: Tensor, up: &Tensor, limit: f32) -> Tensor {
    assert_eq!(gate.shape(), up.shape(), "shapes of gate and up");
    let cols = gate.cols;
    each_row(cpu, gate.values_mut(), cols, SiluMul { up, limit });
    gate
}

pub(super) fn gate_heads(cpu: &Cpu, mut x: Tensor, gate: &Tensor) -> Tensor {
    assert!(x.rows == gate.rows && x.cols.is_multiple_of(gate.cols), "shapes of heads and their gates");
    let cols = x.cols;
    each_row(cpu, x.values_mut(), cols, GateHeads { gate });
    x
}

pub(super) fn add(cpu: &Cpu, x: &mut Tensor, y: &Tensor) {
    assert_eq!(x.shape(), y.shape(), "shapes of a sum");
    let cols = x.cols;
    each_row(cpu, x.values_mut(), cols, Add(y));
}

pub(super) fn kda_decay(cpu: &Cpu, mut f: Tensor, a: &Weight, dt_bias: &Weight, decay: Decay) -> Tensor {
    let (a, dt_bias) = (cpu.floats(a), cpu.floats(dt_bias));
    assert_eq!(f.cols, dt_bias.len(), "channels: f and dt_bias");
    assert!(!a.is_empty() && f.cols.is_multiple_of(a.len()), "{} channels in {} heads", f.cols, a.len());
    let cols = f.cols;
    each_row(cpu, f.values_mut(), cols, KdaDecay { a: &a, dt_bias: &dt_bias, decay });
    f
}

// ---- norms ---------------------------------------------------------------------------------------------

struct RmsNorm<'a> {
    x: &'a Tensor,
    w: &'a [f32],
    eps: f32,
}

impl RowOp for RmsNorm<'_> {
    #[inline(always)]
    fn row<const FMA: bool>(&self, r: usize, y: &mut [f32]) {
        let (x, rest) = self.x.row(r).split_at(self.w.len());
        let (y, y_rest) = y.split_at_mut(self.w.len());
        rms_norm::<FMA>(x, self.w, self.eps, y);
        y_rest.copy_from_slice(rest);
    }
}

struct GatedRmsNorm<'a> {
    x: &'a Tensor,
    w: &'a [f32],
    gate: &'a Tensor,
    eps: f32,
}

impl RowOp for GatedRmsNorm<'_> {
    #[inline(always)]
    fn row<const FMA: bool>(&self, r: usize, y: &mut [f32]) {
        let dim = self.w.len();
        let heads = self.x.row(r).chunks_exact(dim).zip(self.gate.row(r).chunks_exact(dim));
        for ((x, gate), y) in heads.zip(y.chunks_exact_mut(dim)) {
            rms_norm::<FMA>(x, self.w, self.eps, y);
            y.iter_mut().zip(gate).for_each(|(y, gate)| *y *= sigmoid::<FMA>(*gate));
        }
    }
}

struct L2Norm {
    dim: usize,
    eps: f32,
    scale: f32,
}

impl RowOp for L2Norm {
    #[inline(always)]
    fn row<const FMA: bool>(&self, _: usize, y: &mut [f32]) {
        for head in y.chunks_exact_mut(self.dim) {
            let factor = self.scale / (dot::<FMA>(head, head) + self.eps).sqrt();
            head.iter_mut().for_each(|y| *y *= factor);
        }
    }
}

#[inline(always)]
fn rms_norm<const FMA: bool>(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let factor = 1.0 / (dot::<FMA>(x, x) / x.len() as f32 + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = x * factor * w;
    }
}

pub(super) fn rms_norm_rows(cpu: &Cpu, x: &Tensor, w: &Weight, eps: f32) -> Tensor {
    let w = cpu.floats(w);
    assert!(w.len() <= x.cols, "a norm over {} of {} columns", w.len(), x.cols);
    let mut y = cpu.buffers.tensor(x.rows, x.cols);
    each_row(cpu, y.values_mut(), x.cols, RmsNorm { x, w: &w, eps });
    y
}

pub(super) fn gated_rms_norm(cpu: &Cpu, x: &Tensor, w: &Weight, gate: &Tensor, eps: f32) -> Tensor {
    let w = cpu.floats(w);
    assert_eq!(x.shape(), gate.shape(), "shapes of x and its gate");
    assert!(!w.is_empty() && x.cols.is_multiple_of(w.len()), "{} columns in heads of {}", x.cols, w.len());
    let mut y = cpu.buffers.tensor(x.rows, x.cols);
    each_row(cpu, y.values_mut(), x.cols, GatedRmsNorm { x, w: &w, gate, eps });
    y
}

pub(super) fn l2_norm(cpu: &Cpu, mut x: Tensor, dim: usize, eps: f32, scale: f32) -> Tensor {
    assert!(dim > 0 && x.cols.is_multiple_of(dim), "{} columns in heads of {dim}", x.cols);
    let cols = x.cols;
    each_row(cpu, x.values_mut(), cols, L2Norm { dim, eps, scale });
    x
}

// ---- short convolution ---------------------------------------------------------------------------------

struct ShortConv<'a> {
    /// `[channels, n]`; the last column multiplies the newest input.
    taps: &'a [f32],
    n: usize,
    /// The n-1 inputs before the first row, oldest first.
    state: &'a [f32],
    /// Inputs of the span's rows, `[rows, channels]`.
    x: &'a [f32],
}

impl ShortConv<'_> {
    /// The input of tap `j` for row `r`.
    #[inline(always)]
    fn input(&self, r: usize, j: usize, channels: usize) -> &[f32] {
        let at = r + j;
        match at.checked_sub(self.n - 1) {
            Some(row) => &self.x[row * channels..][..channels],
            None => &self.state[at * channels..][..channels],
        }
    }
}

impl RowOp for ShortConv<'_> {
    #[inline(always)]
    fn row<const FMA: bool>(&self, r: usize, y: &mut [f32]) {
        let channels = y.len();
        if self.n == 4 {
            let x: [&[f32]; 4] = std::array::from_fn(|j| self.input(r, j, channels));
            for (c, taps) in self.taps.as_chunks::<4>().0[..channels].iter().enumerate() {
                let sum = taps[0] * x[0][c];
                let sum = fma::<FMA>(taps[1], x[1][c], sum);
                let sum = fma::<FMA>(taps[2], x[2][c], sum);
                y[c] = fma::<FMA>(taps[3], x[3][c], sum);
            }
        } else {
            y.fill(0.0);
            for j in 0..self.n {
                let taps = self.taps[j..].iter().step_by(self.n);
                for ((y, x), tap) in y.iter_mut().zip(self.input(r, j, channels)).zip(taps) {
                    *y = fma::<FMA>(*tap, *x, *y);
                }
            }
        }
        y.iter_mut().for_each(|y| *y *= sigmoid::<FMA>(*y));
    }
}

pub(super) fn short_conv(cpu: &Cpu, spans: &mut [Span<'_, Tensor>], x: &Tensor, taps: &Weight) -> Tensor {
    let n = taps.cols;
    assert!(n > 0 && (taps.count, taps.rows) == (1, x.cols), "taps of {} channels for {}", taps.rows, x.cols);
    let taps = cpu.floats(taps);
    let channels = x.cols;
    let mut y = cpu.spanned(x.rows, channels, spans);
    for span in spans {
        assert_eq!(span.state.shape(), [n - 1, channels], "shape of a convolution's state");
        let rows = span.rows.start * channels..span.rows.end * channels;
        let x = &x.values()[rows.clone()];
        let state = span.state.values();
        each_row(cpu, &mut y.values_mut()[rows], channels, ShortConv { taps: &taps, n, state, x });
        keep_last(span.state.values_mut(), x);
    }
    y
}

/// The states of [`short_conv`] after the spans' rows.
pub(super) fn advance_conv(spans: &mut [Span<'_, Tensor>], x: &Tensor, taps: &Weight) {
    for span in spans {
        assert_eq!(span.state.shape(), [taps.cols - 1, x.cols], "shape of a convolution's state");
        keep_last(span.state.values_mut(), &x.values()[span.rows.start * x.cols..span.rows.end * x.cols]);
    }
}

/// The new state: the last values of state ++ x.
fn keep_last(state: &mut [f32], x: &[f32]) {
    let kept = state.len().saturating_sub(x.len());
    state.copy_within(state.len() - kept.., 0);
    let added = state.len() - kept;
    state[kept..].copy_from_slice(&x[x.len() - added..]);
}
