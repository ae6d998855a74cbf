//! Launches fused kernels for few tokens: decode is bound by the number of launches.
//!
//! The arithmetic is in kernels/cuda/fused.cuh. Unsupported shapes run op by op. Next: `experts`.

use super::driver::Address;
use super::matmul::{GEMV_MAX_TOKENS, Input, lanes, piece};
use super::memory::Tensor;
use super::norm::NormAfter;
use super::route::{EXPERTS, ExpertChoice, Route};
use super::{Cuda, Grid, Routed, Weight, block};
use crate::backend::{GatedMlp, Routing};
use bytemuck::{Pod, Zeroable};

/// Largest number of matrices per launch with one input each, as in fused.cuh.
const FRESH: usize = 2;
/// Largest number of columns for which each block quantizes its input itself.
const NARROW: usize = 1024;
/// Rows of gate and up per block, and weights that the threads of a row read at once.
const UP_ROWS: usize = 32;
const UP_COLS: usize = 256;
/// Bytes of shared memory per slot of `ffn_down`: `FfnSlot` in fused.cuh.
const SLOT_BYTES: usize = 40;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FreshMatrix {
    planes: [Address; 3],
    x: Address,
    y: Address,
    rows: i32,
    x_stride: i32,
    y_stride: i32,
    rest: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Fresh {
    of: [FreshMatrix; FRESH],
    cols: i32,
    groups: i32,
    lanes: i32,
    unused: i32,
    levels: [Address; 2],
}

/// Rows per block whose results are also quantized.
const LEVEL_ROWS: usize = 32;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FusedFfn {
    stacks: [[Address; 3]; 3],
    shared: [[Address; 3]; 3],
    q: Address,
    scale: Address,
    places: Address,
    weights: Address,
    inner: Address,
    inner_scale: Address,
    y: Address,
    dim: i32,
    hidden: i32,
    top_k: i32,
    shared_too: i32,
    lanes: i32,
    limit: f32,
    norm: NormAfter,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Router {
    route: Route,
    planes: [Address; 3],
    x: Address,
    logits: Address,
    count: Address,
    cols: i32,
    unused: i32,
}

/// A weight with its input and output.
struct FreshTo<'a> {
    w: &'a Weight,
    x: Address,
    y: Address,
    /// Strides of inputs and outputs in values.
    strides: [usize; 2],
    /// Input columns copied behind the results.
    rest: usize,
}

/// The routed experts and the shared expert of a batch; at least one is present.
pub(super) struct FfnParts<'a> {
    pub(super) experts: Option<(&'a GatedMlp<'a, Weight>, ExpertChoice)>,
    pub(super) shared: Option<&'a GatedMlp<'a, Weight>>,
}

impl FfnParts<'_> {
    fn first(&self) -> &GatedMlp<'_, Weight> {
        let experts = self.experts.as_ref().map(|(w, _)| *w);
        experts.or(self.shared).expect("experts or a shared expert")
    }

    /// Whether the kernels of [`Cuda::fused_ffn`] take these shapes.
    pub(super) fn is_fusable(&self, tokens: usize) -> bool {
        let first = self.first();
        let alike =
            self.shared.is_none_or(|shared| shape(first) == shape(shared) && first.limit == shared.limit);
        (1..=GEMV_MAX_TOKENS).contains(&tokens) && fits(first) && alike
    }
}

impl Cuda {
    /// Multiplies a few tokens with weights that have one input each; None for unsupported shapes.
    pub(super) fn products_each<const N: usize>(
        &self,
        w: [&Weight; N],
        x: [&Tensor; N],
    ) -> Option<[Tensor; N]> {
        let (format, cols, tokens) = (w.first()?.format, w[0].cols, x[0].rows);
        let alike = |i: usize| w[i].format == format && w[i].count == 1 && x[i].shape() == [tokens, cols];
        if N > FRESH || !(1..=GEMV_MAX_TOKENS).contains(&tokens) || cols > NARROW || !(0..N).all(alike) {
            return None;
        }
        assert!(w.iter().all(|w| w.cols == cols), "a product's columns");
        let y = w.map(|w| self.buffers.tensor(tokens, w.rows));
        let to =
            |i: usize| FreshTo { w: w[i], x: x[i].at(), y: y[i].at(), strides: [cols, w[i].rows], rest: 0 };
        self.fresh(&(0..N).map(to).collect::<Vec<_>>(), [tokens, 1], [0; 2]);
        Some(y)
    }

    /// Per head, for a few tokens; also quantized where 32 results share a scale.
    pub(super) fn fused_heads(&self, w: &Weight, x: &Tensor) -> Tensor {
        let width = x.cols / w.count;
        let rest = width - w.cols;
        let strides = [width, w.rows + rest];
        let y =
            self.with_levels(x.rows, w.count * strides[1], rest == 0 && w.rows.is_multiple_of(LEVEL_ROWS));
        let to = FreshTo { w, x: x.at(), y: y.at(), strides, rest };
        self.fresh(&[to], [x.rows * w.count, w.count], y.levels_at());
        y
    }

    /// Multiplies vectors that cycle through the matrices of a stack.
    fn fresh(&self, to: &[FreshTo<'_>], [vectors, groups]: [usize; 2], levels: [Address; 2]) {
        let (w, mut of) = (to[0].w.on_device(), [FreshMatrix::zeroed(); FRESH]);
        for (m, to) in of.iter_mut().zip(to) {
            let [x_stride, y_stride, rows, rest] =
                [to.strides[0], to.strides[1], to.w.rows, to.rest].map(|n| n as i32);
            let planes = to.w.on_device().planes;
            *m = FreshMatrix { planes, x: to.x, y: to.y, rows, x_stride, y_stride, rest };
        }
        let lanes = if levels[0] > 0 { 128 / LEVEL_ROWS } else { lanes(w.format, w.cols) };
        let [cols, groups, lanes_arg] = [w.cols, groups, lanes].map(|n| n as i32);
        let p = Fresh { of, cols, groups, lanes: lanes_arg, unused: 0, levels };
        let rows = to.iter().map(|to| to.w.rows).max().unwrap_or(0);
        if rows > 0 && vectors > 0 {
            let shared = 4 * LEVEL_ROWS + if w.is_block() { w.cols + w.cols / 32 * 8 } else { 0 };
            let blocks = [(rows * lanes).div_ceil(128), vectors, to.len()];
            let grid = Grid { blocks, threads: 128, shared };
            self.driver.launch(["fresh", w.format.name()], grid, &[block(&p)]);
        }
    }

    /// The router's logits and routing; None for unsupported shapes.
    pub(super) fn fused_route(
        &self,
        router: &Weight,
        x: &Tensor,
        bias: &Weight,
        how: Routing,
    ) -> Option<Routed> {
        let (tokens, cols, experts) = (x.rows, x.cols, router.rows);
        if router.is_block()
            || !cols.is_multiple_of(4)
            || !(1..=GEMV_MAX_TOKENS).contains(&tokens)
            || experts > EXPERTS
        {
            return None;
        }
        assert_eq!((router.count, router.cols), (1, cols), "a router: matrices, columns");
        let logits = self.buffers.tensor(tokens, experts);
        let (routed, route) = self.choice_of(&logits, bias, how);
        if how.top_k > 0 {
            let (planes, x, logits, count) = (router.planes, x.at(), logits.at(), self.counts.at);
            let p = Router { route, planes, x, logits, count, cols: cols as i32, unused: 0 };
            let shared = 4 * (1 + (2 * experts + how.groups).max(33));
            let grid = Grid { blocks: [experts, tokens, 1], threads: 128, shared };
            self.driver.launch(["matmul_route", router.format.name()], grid, &[block(&p)]);
        }
        Some(routed)
    }

    /// W_down (SiLU(W_gate x) * W_up x)
    pub(super) fn ffn(&self, w: &GatedMlp<'_, Weight>, x: &Tensor) -> Tensor {
        if let Some(y) = self.fused_ffn(&FfnParts { experts: None, shared: Some(w) }, x) {
            return y;
        }
        let [inner, up] = self.products([w.gate, w.up], x);
        self.limited_silu_mul(&inner, &up, w.limit);
        let [y] = self.products([w.down], &inner);
        y
    }

    /// A feed-forward of a few tokens in two launches; None for unsupported shapes.
    pub(super) fn fused_ffn(&self, w: &FfnParts<'_>, x: &Tensor) -> Option<Tensor> {
        w.is_fusable(x.rows).then(|| {
            let y = self.buffers.tensor(x.rows, x.cols);
            self.fused_ffn_to(w, x, y.at(), NormAfter::NONE);
            y
        })
    }

    /// Writes the result of a fusable feed-forward, or with a norm adds it to y, the residual stream.
    pub(super) fn fused_ffn_to(&self, w: &FfnParts<'_>, x: &Tensor, y: Address, norm: NormAfter) {
        let first = w.first();
        assert_eq!(x.cols, first.gate.cols, "columns of a feed-forward's input");
        let (tokens, dim, hidden) = (x.rows, x.cols, first.gate.rows);
        let none = ExpertChoice { places: 0, weights: 0, rows: tokens, top_k: 0, partial: false };
        let choice = w.experts.as_ref().map_or(none, |(_, choice)| *choice);
        let each = choice.top_k + usize::from(w.shared.is_some());
        let planes = |w: &GatedMlp<'_, Weight>| [w.gate, w.up, w.down].map(|w| w.on_device().planes);
        let Input { q, scale, .. } = self.input(first.gate, x);
        let values = tokens * each * hidden;
        let [inner, inner_scale] = [values, values / 32 * 8].map(|bytes| self.buffers.bytes(bytes));
        let lanes = lanes(first.down.format, hidden);
        let p = FusedFfn {
            stacks: w.experts.as_ref().map_or([[0; 3]; 3], |(w, _)| planes(w)),
            shared: w.shared.map_or([[0; 3]; 3], planes),
            q,
            scale,
            places: choice.places,
            weights: choice.weights,
            inner: inner.at,
            inner_scale: inner_scale.at,
            y,
            dim: dim as i32,
            hidden: hidden as i32,
            top_k: choice.top_k as i32,
            shared_too: w.shared.is_some().into(),
            lanes: lanes as i32,
            limit: first.limit,
            norm,
        };
        let blocks = [hidden / UP_ROWS, tokens * each, 1];
        let threads = UP_ROWS * UP_COLS / piece(first.gate.format);
        let up = Grid { blocks, threads, shared: 4 * UP_ROWS };
        let blocks = [(dim * lanes).div_ceil(128), tokens, 1];
        let down = Grid { blocks, threads: 128, shared: (SLOT_BYTES * each).max(norm.shared()) };
        self.driver.launch(["ffn_up", first.gate.format.name()], up, &[block(&p)]);
        self.driver.launch(["ffn_down", first.down.format.name()], down, &[block(&p)]);
    }
}

/// Arguments common to two feed-forwards of one launch.
fn shape(w: &GatedMlp<'_, Weight>) -> [(&'static str, usize, usize); 3] {
    [w.gate, w.up, w.down].map(|w| (w.format.name(), w.rows, w.cols))
}

fn fits(w: &GatedMlp<'_, Weight>) -> bool {
    let (dim, hidden) = (w.gate.cols, w.gate.rows);
    let shapes = [(w.up.rows, w.up.cols), (w.down.cols, w.down.rows)] == [(hidden, dim); 2];
    shapes && w.gate.is_block() && w.up.format == w.gate.format && w.down.is_block() && hidden % UP_ROWS == 0
}
