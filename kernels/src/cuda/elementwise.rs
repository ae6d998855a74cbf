//! Launches row-wise ops: elementwise functions, norms, the short convolution.
//!
//! The arithmetic is in kernels/cuda/rows.cu. Next: `delta`.

use super::driver::Address;
use super::matmul::GEMV_MAX_TOKENS;
use super::memory::{Levels, Tensor};
use super::span::groups;
use super::{Cuda, Grid, Weight, arg, block};
use crate::backend::{Decay, Span};

/// Tokens per thread of the convolution, and largest number of taps, as in rows.cu.
const STRETCH: usize = 32;
pub(super) const TAPS: usize = 8;
/// Threads per row of a norm: each holds up to six values, as in rows.cu; three where few rows leave the device idle.
fn norm_threads(rows: usize, cols: usize) -> usize {
    let values = if rows <= GEMV_MAX_TOKENS { 3 } else { 6 };
    cols.div_ceil(values).next_multiple_of(32).clamp(128, 1024)
}

/// The bound of a decay, as kernels take it: 0 for an unbounded one.
pub(super) fn bound_of(decay: Decay) -> f32 {
    match decay {
        Decay::Softplus => 0.0,
        Decay::Bounded(bound) => bound,
    }
}

/// Grid of a kernel with one warp per head.
fn warp_each(heads: usize) -> Grid {
    Grid { blocks: [heads.div_ceil(4), 1, 1], threads: 128, shared: 0 }
}

impl Cuda {
    /// Quantizes rows of `cols` values with a stride.
    pub(super) fn levels(&self, x: Address, [rows, cols, stride]: [usize; 3]) -> Levels {
        let q = self.buffers.bytes(rows * cols);
        let scale = self.buffers.bytes(rows * cols / 32 * 8);
        if rows * cols > 0 {
            let grid = Grid { blocks: [rows, cols.div_ceil(256), 1], threads: 256, shared: 0 };
            let [x, q, scale] = [x, q.at, scale.at].map(arg);
            let arguments = [x, q, scale, arg(cols as i32), arg(stride as i32)];
            self.driver.launch(["quantise", ""], grid, &arguments);
        }
        Levels { q, scale }
    }

    pub(super) fn gather_rows(&self, x: &Tensor, rows: &[usize]) -> Tensor {
        let y = self.buffers.tensor(rows.len(), x.cols);
        assert!(rows.iter().all(|r| *r < x.rows), "rows of a batch of {}", x.rows);
        if rows.first().is_some_and(|first| rows.iter().copied().eq(*first..first + rows.len())) {
            let from = x.at() + (4 * rows[0] * x.cols) as u64;
            self.driver.copy(y.at(), from, 4 * y.len());
        } else if y.len() > 0 {
            let indices = self.buffers.upload(&rows.iter().map(|r| *r as i32).collect::<Vec<_>>());
            let grid = Grid { blocks: [rows.len(), x.cols.div_ceil(256), 1], threads: 256, shared: 0 };
            let [x_at, rows, y_at] = [x.at(), indices.at, y.at()].map(arg);
            self.driver.launch(["gather", ""], grid, &[x_at, rows, y_at, arg(x.cols as i32)]);
        }
        y
    }

    /// A result tensor with room for quantized values, where rows are whole blocks.
    pub(super) fn with_levels(&self, rows: usize, cols: usize, whole: bool) -> Tensor {
        let x = self.buffers.tensor(rows, cols);
        if whole && cols.is_multiple_of(32) && x.len() > 0 {
            let [q, scale] = [rows * cols, rows * cols / 32 * 8].map(|bytes| self.buffers.bytes(bytes));
            x.bytes.get_or_init(|| Levels { q, scale });
        }
        x
    }

    /// h = RMSNorm(x), after x += y where there is a y.
    pub(super) fn norm_rows(&self, x: &Tensor, y: Option<&Tensor>, w: &Weight, eps: f32) -> Tensor {
        assert!(w.cols <= x.cols, "a norm over {} of {} columns", w.cols, x.cols);
        let h = self.with_levels(x.rows, x.cols, w.cols == x.cols);
        if x.len() > 0 {
            let grid = Grid { blocks: [x.rows, 1, 1], threads: norm_threads(x.rows, x.cols), shared: 33 * 4 };
            let [q, scale] = h.levels_at();
            let addresses = [x.at(), y.map_or(0, Tensor::at), w.floats(), h.at(), q, scale].map(arg);
            let sizes = [w.cols, x.cols].map(|n| arg(n as i32));
            self.driver.launch(["rms_norm", ""], grid, &[&addresses[..], &sizes, &[arg(eps)]].concat());
        }
        h
    }

    pub(super) fn norm_heads(&self, x: Tensor, dim: usize, eps: f32, scale: f32) -> Tensor {
        assert!(x.cols.is_multiple_of(dim), "{} columns in heads of {dim}", x.cols);
        if x.len() > 0 {
            let (n, heads) = (dim as i32, (x.len() / dim) as i64);
            let arguments = [arg(x.at()), arg(n), arg(eps), arg(scale), arg(heads)];
            self.driver.launch(["l2_norm", ""], warp_each(x.len() / dim), &arguments);
        }
        x
    }

    pub(super) fn gated_norm(&self, x: &Tensor, w: &Weight, gate: &Tensor, eps: f32) -> Tensor {
        assert_eq!(x.shape(), gate.shape(), "shapes of x and its gate");
        assert!(x.cols.is_multiple_of(w.cols), "{} columns in heads of {}", x.cols, w.cols);
        let y = self.with_levels(x.rows, x.cols, w.cols.is_multiple_of(32));
        if x.len() > 0 {
            let (n, heads) = (w.cols as i32, (x.len() / w.cols) as i64);
            let [q, scale] = y.levels_at();
            let addresses = [x.at(), w.floats(), gate.at(), y.at(), q, scale].map(arg);
            let arguments = [&addresses[..], &[arg(n), arg(eps), arg(heads)]].concat();
            self.driver.launch(["gated_rms_norm", ""], warp_each(x.len() / w.cols), &arguments);
        }
        y
    }

    pub(super) fn conv(&self, spans: &mut [Span<'_, Tensor>], x: &Tensor, taps: &Weight) -> Tensor {
        let (n, channels) = (taps.cols, x.cols);
        assert!((1..=TAPS).contains(&n), "1 to {TAPS} taps, not {n}");
        assert_eq!((taps.count, taps.rows), (1, channels), "taps: matrices, channels");
        for span in spans.iter() {
            assert_eq!(span.state.shape(), [n - 1, channels], "shape of a convolution's state");
        }
        let y = self.spanned(x.rows, channels, spans);
        for group in groups(spans, |s| s.at()) {
            let stretches = group.longest.div_ceil(STRETCH);
            let grid = Grid { blocks: [channels.div_ceil(128), stretches, group.n], threads: 128, shared: 0 };
            let [channels, n] = [channels, n].map(|size| arg(size as i32));
            let spans = block(&group.spans);
            let arguments = [spans, arg(x.at()), arg(taps.floats()), arg(y.at()), channels, n];
            self.driver.launch(["short_conv", ""], grid, &arguments);
            if stretches > 1 {
                let grid = Grid { blocks: [grid.blocks[0], 1, group.n], ..grid };
                self.driver.launch(["conv_tail", ""], grid, &[spans, arg(x.at()), channels, n]);
            }
        }
        y
    }

    /// gate <- SiLU(gate) * up, both limited.
    pub(super) fn limited_silu_mul(&self, gate: &Tensor, up: &Tensor, limit: f32) {
        assert_eq!(gate.shape(), up.shape(), "shapes of gate and up");
        self.each("silu_mul", gate.len(), &[arg(gate.at()), arg(up.at()), arg(limit)]);
    }

    pub(super) fn gate_each_head(&self, x: Tensor, gate: &Tensor) -> Tensor {
        assert!(x.rows == gate.rows && x.cols.is_multiple_of(gate.cols), "shapes of heads and their gates");
        let dim = x.cols / gate.cols;
        self.each("gate_heads", x.len(), &[arg(x.at()), arg(gate.at()), arg(dim as i32)]);
        x
    }

    pub(super) fn decay(&self, f: Tensor, a: &Weight, dt_bias: &Weight, decay: Decay) -> Tensor {
        assert_eq!((f.cols, f.cols % a.cols), (dt_bias.cols, 0), "channels, and channels in heads");
        let (cols, dim) = (f.cols as i32, (f.cols / a.cols) as i32);
        let (a, bias) = (a.floats(), dt_bias.floats());
        self.each(
            "kda_decay",
            f.len(),
            &[arg(f.at()), arg(a), arg(bias), arg(cols), arg(dim), arg(bound_of(decay))],
        );
        f
    }
}
