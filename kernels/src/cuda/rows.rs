//! Launches of the ops on rows: elements, norms, the short convolution, the delta rule's inputs, routing.
//!
//! The arithmetic is in kernels/cuda/{rows,route}.cu. Next: `delta`.

use super::delta::DELTA_ROWS;
use super::driver::Address;
use super::memory::{Buffer, Levels, Tensor};
use super::span::groups;
use super::{Cuda, Grid, Weight, arg, block};
use crate::backend::{DeltaProjections, DeltaWeights, Routing, Span};
use bytemuck::{Pod, Zeroable};

/// Tokens of a thread of the convolution, and taps at most, as in rows.cu.
const STRETCH: usize = 32;
const TAPS: usize = 8;
/// Experts at most: 32 a lane.
const EXPERTS: usize = 1024;

/// The experts chosen for each row of a batch, and their weights, best first.
pub struct Routed {
    /// Rows of the batch.
    pub rows: usize,
    /// Experts of a row.
    pub top_k: usize,
    pub(super) chosen: Buffer,
    pub(super) weights: Buffer,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Inputs {
    projections: [Address; 5],
    taps: [Address; 3],
    decay: [Address; 2],
    out: [Address; 3],
    /// Heads, channels of a head, taps.
    sizes: [i32; 3],
    eps: f32,
    scale: f32,
    unused: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Route {
    logits: Address,
    bias: Address,
    chosen: Address,
    weights: Address,
    experts: i32,
    top_k: i32,
    groups: i32,
    top_groups: i32,
    normalise: i32,
    scale: f32,
}

/// Grid of a kernel with a warp a head.
fn warp_each(heads: usize) -> Grid {
    Grid { blocks: [heads.div_ceil(4), 1, 1], threads: 128, shared: 0 }
}

impl Cuda {
    /// Rows of `cols` values, each `stride` after the one before, as bytes with scales.
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

    /// A tensor for results that products are likely to meet as bytes: with room for these, where rows are whole blocks.
    fn with_levels(&self, rows: usize, cols: usize, whole: bool) -> Tensor {
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
            let grid = Grid { blocks: [x.rows, 1, 1], threads: 256, shared: 33 * 4 };
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

    /// What the delta rule is given, of spans of one token each; None where there are others.
    pub(super) fn rule_inputs(
        &self,
        spans: &[Span<'_, [Tensor; 3]>],
        x: &DeltaProjections<Tensor>,
        w: &DeltaWeights<'_, Weight>,
    ) -> Option<[Tensor; 3]> {
        let (tokens, heads, dim) = (x.beta.rows, x.beta.cols, w.head_dim);
        let (channels, n) = (heads * dim, w.taps[0].cols);
        let alone = spans.len() == tokens && spans.iter().all(|span| span.rows.len() == 1);
        let alike = [&x.q, &x.k, &x.v, &x.f].iter().all(|m| m.shape() == [tokens, channels]);
        if !alone || !alike || tokens == 0 || dim > DELTA_ROWS || !w.taps.iter().all(|w| w.cols == n) {
            return None;
        }
        assert!((1..=TAPS).contains(&n), "1 to {TAPS} taps, not {n}");
        assert_eq!((w.a.cols, w.dt_bias.cols), (heads, channels), "heads and channels of the decay");
        for (state, taps) in spans.iter().flat_map(|span| span.state.iter().zip(w.taps)) {
            assert_eq!((taps.count, taps.rows), (1, channels), "taps: matrices, channels");
            assert_eq!(state.shape(), [n - 1, channels], "shape of a convolution's state");
        }
        let y = [(); 3].map(|()| self.buffers.tensor(tokens, channels));
        let inputs = Inputs {
            projections: [&x.q, &x.k, &x.v, &x.f, &x.beta].map(Tensor::at),
            taps: w.taps.map(Weight::floats),
            decay: [w.a.floats(), w.dt_bias.floats()],
            out: y.each_ref().map(Tensor::at),
            sizes: [heads, dim, n].map(|n| n as i32),
            eps: w.eps,
            scale: w.scale,
            unused: 0,
        };
        let [q, k, v] = [0, 1, 2].map(|i| groups(spans, |state| state[i].at()));
        for ((q, k), v) in q.iter().zip(&k).zip(&v) {
            let grid = Grid { blocks: [heads, q.n, 1], threads: 128, shared: 4 * 2 * DELTA_ROWS };
            let arguments = [block(&q.spans), block(&k.spans), block(&v.spans), block(&inputs)];
            self.driver.launch(["delta_inputs", ""], grid, &arguments);
        }
        Some(y)
    }

    pub(super) fn decay(&self, f: Tensor, a: &Weight, dt_bias: &Weight) -> Tensor {
        assert_eq!((f.cols, f.cols % a.cols), (dt_bias.cols, 0), "channels, and channels in heads");
        let (cols, dim) = (f.cols as i32, (f.cols / a.cols) as i32);
        let (a, bias) = (a.floats(), dt_bias.floats());
        self.each("kda_decay", f.len(), &[arg(f.at()), arg(a), arg(bias), arg(cols), arg(dim)]);
        f
    }

    pub(super) fn choose(&self, logits: &Tensor, bias: &Weight, how: Routing) -> Routed {
        let (rows, experts, top_k) = (logits.rows, logits.cols, how.top_k);
        assert_eq!(experts, bias.cols, "experts: logits and bias");
        assert!(experts <= EXPERTS, "CUDA: expected at most {EXPERTS} experts, found {experts}");
        assert!(
            how.groups > 0 && experts.is_multiple_of(how.groups),
            "{experts} experts in {} groups",
            how.groups
        );
        assert!(how.top_groups <= how.groups, "{} of {} groups", how.top_groups, how.groups);
        let eligible = experts / how.groups * how.top_groups;
        assert!(top_k <= eligible, "{top_k} of {eligible} eligible experts");
        let [chosen, weights] = [(); 2].map(|()| self.buffers.bytes(4 * rows * top_k));
        if rows * top_k > 0 {
            let route = Route {
                logits: logits.at(),
                bias: bias.floats(),
                chosen: chosen.at,
                weights: weights.at,
                experts: experts as i32,
                top_k: top_k as i32,
                groups: how.groups as i32,
                top_groups: how.top_groups as i32,
                normalise: how.normalise.into(),
                scale: how.scale,
            };
            let shared = 4 * (2 * experts + how.groups);
            self.driver.launch(
                ["route", ""],
                Grid { blocks: [rows, 1, 1], threads: 32, shared },
                &[block(&route)],
            );
        }
        Routed { rows, top_k, chosen, weights }
    }
}
