//! Launches delta attention: token by token, in chunks for long spans, and fused for decode.
//!
//! The arithmetic is in kernels/cuda/{delta,delta_chunk,delta_step}.cu. Next: `matmul`.

use super::driver::Address;
use super::elementwise::{TAPS, bound_of};
use super::memory::Tensor;
use super::span::groups;
use super::{Cuda, Grid, Weight, block};
use crate::backend::{DeltaProjections, DeltaRule, DeltaState, DeltaWeights, Span};
use bytemuck::{Pod, Zeroable};

/// Largest number of rows of a head's S, as in delta.cu.
pub(super) const DELTA_ROWS: usize = 128;
/// Largest number of heads: the second grid dimension.
pub(super) const MAX_HEADS: usize = 65_535;
/// Shared memory of a block in bytes: the size of `DeltaShared` in delta.cu.
const DELTA_SHARED: usize = 4 * (3 * 3 * DELTA_ROWS + 2 * 3 * 4 * 32);
/// Tokens per chunk and channels per head, as in delta_chunk.cu.
const CHUNK: usize = 32;
const DIM: usize = 128;
/// Floats written per chunk and head (`CHUNK_FLOATS` in delta_chunk.cu).
const CHUNK_FLOATS: usize = 4 * CHUNK * DIM + CHUNK * CHUNK + DIM;
/// Bytes of `ChunkShared` and of `ApplyShared`.
const CHUNK_SHARED: usize = 4 * (3 * CHUNK * DIM + CHUNK * CHUNK + CHUNK);
const APPLY_SHARED: usize = 4 * (DIM + CHUNK) * 34;
/// Smallest span that is computed in chunks, in tokens; chosen by operation count, not measured.
const CHUNKED_MIN_TOKENS: usize = 64;
/// Tokens per slab of chunks: 36 MB for 32 heads, which fits the L2 of large cards.
const SLAB: usize = 512;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Delta {
    inputs: [Address; 5],
    o: Address,
    heads: i32,
    dk: i32,
    dv: i32,
    unused: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Chunks {
    inputs: [Address; 5],
    o: Address,
    state: Address,
    scratch: Address,
    first: i32,
    rows: i32,
    heads: i32,
    chunks: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct DeltaStep {
    projections: [Address; 6],
    taps: [Address; 3],
    a: Address,
    dt_bias: Address,
    norm: Address,
    y: Address,
    levels: [Address; 2],
    heads: i32,
    n: i32,
    scale: f32,
    l2_eps: f32,
    norm_eps: f32,
    bound: f32,
}

impl Cuda {
    /// Fused delta attention of one token per sequence; None for other spans or head sizes.
    pub(super) fn delta_step(
        &self,
        spans: &[Span<'_, DeltaState<Tensor>>],
        x: &DeltaProjections<Tensor>,
        w: &DeltaWeights<'_, Weight>,
    ) -> Option<Tensor> {
        let (tokens, heads, dim) = (x.beta.rows, x.beta.cols, w.head_dim);
        let (channels, n) = (heads * dim, w.taps[0].cols);
        let name = match dim {
            128 => "delta_step_128",
            64 => "delta_step_64",
            32 => "delta_step_32",
            _ => return None,
        };
        let projections = [&x.q, &x.k, &x.v, &x.f, &x.beta, &x.gate];
        let alone = spans.len() == tokens && spans.iter().all(|span| span.rows.len() == 1);
        let alike = projections.iter().enumerate().all(|(i, m)| i == 4 || m.shape() == [tokens, channels]);
        if !alone || !alike || tokens == 0 || w.norm.cols != dim || !w.taps.iter().all(|w| w.cols == n) {
            return None;
        }
        assert!((1..=TAPS).contains(&n), "1 to {TAPS} taps, not {n}");
        assert_eq!((w.a.cols, w.dt_bias.cols), (heads, channels), "heads and channels of the decay");
        assert!(w.taps.iter().all(|w| (w.count, w.rows) == (1, channels)), "taps: matrices, channels");
        for span in spans {
            assert_eq!(span.state.s.shape(), [channels, dim], "shape of S");
            let tails = span.state.conv.iter().all(|tail| tail.shape() == [n - 1, channels]);
            assert!(tails, "shapes of the states of convolutions");
        }
        let y = self.with_levels(tokens, channels, true);
        let step = DeltaStep {
            projections: projections.map(Tensor::at),
            taps: w.taps.map(Weight::floats),
            a: w.a.floats(),
            dt_bias: w.dt_bias.floats(),
            norm: w.norm.floats(),
            y: y.at(),
            levels: y.levels_at(),
            heads: heads as i32,
            n: n as i32,
            scale: w.scale,
            l2_eps: w.l2_eps,
            norm_eps: w.norm_eps,
            bound: bound_of(w.decay),
        };
        let s = groups(spans, |state| state.s.at());
        let [q, k, v] = [0, 1, 2].map(|i| groups(spans, |state| state.conv[i].at()));
        for (((s, q), k), v) in s.iter().zip(&q).zip(&k).zip(&v) {
            let grid = Grid { blocks: [heads, s.n, 1], threads: 4 * dim, shared: 4 * 16 * dim };
            let spans = [s, q, k, v].map(|group| block(&group.spans));
            self.driver.launch([name, ""], grid, &[&spans[..], &[block(&step)]].concat());
        }
        Some(y)
    }

    pub(super) fn rule(&self, spans: &mut [Span<'_, Tensor>], x: &DeltaRule<'_, Tensor>) -> Tensor {
        let (tokens, heads) = (x.beta.rows, x.beta.cols);
        assert!(heads > 0, "a delta rule without heads");
        let (dk, dv) = (x.q.cols / heads, x.v.cols / heads);
        assert!(dk <= DELTA_ROWS, "CUDA: expected at most {DELTA_ROWS} key channels of a head, found {dk}");
        for (name, m, cols) in
            [("q", x.q, heads * dk), ("k", x.k, heads * dk), ("g", x.g, heads * dk), ("v", x.v, heads * dv)]
        {
            assert_eq!(m.shape(), [tokens, cols], "shape of {name}");
        }
        for span in spans.iter() {
            assert_eq!(span.state.shape(), [heads * dk, dv], "shape of S");
        }
        let o = self.spanned(tokens, heads * dv, spans);
        let long = |span: &Span<'_, Tensor>| [dk, dv] == [DIM; 2] && span.rows.len() >= CHUNKED_MIN_TOKENS;
        spans.iter().filter(|span| long(span)).for_each(|span| self.in_chunks(span, x, &o));
        let short = spans.iter_mut().filter(|span| !long(span));
        let short: Vec<_> = short.map(|s| Span { rows: s.rows.clone(), state: &mut *s.state }).collect();
        self.by_token(&short, x, &o);
        o
    }

    fn by_token(&self, spans: &[Span<'_, Tensor>], x: &DeltaRule<'_, Tensor>, o: &Tensor) {
        let heads = x.beta.cols;
        let (dk, dv) = (x.q.cols / heads, x.v.cols / heads);
        let sizes = [heads, dk, dv].map(|n| n as i32);
        let (inputs, o) = (inputs(x), o.at());
        let delta = Delta { inputs, o, heads: sizes[0], dk: sizes[1], dv: sizes[2], unused: 0 };
        let name = if dk <= 32 { "delta_rule_32" } else { "delta_rule_128" };
        for group in groups(spans, |s| s.at()) {
            let grid = Grid { blocks: [dv.div_ceil(32), heads, group.n], threads: 128, shared: DELTA_SHARED };
            self.driver.launch([name, ""], grid, &[block(&group.spans), block(&delta)]);
        }
    }

    /// Computes one span slab by slab.
    fn in_chunks(&self, span: &Span<'_, Tensor>, x: &DeltaRule<'_, Tensor>, o: &Tensor) {
        let heads = x.beta.cols;
        let most = span.rows.len().min(SLAB).div_ceil(CHUNK);
        let scratch = self.buffers.bytes(4 * CHUNK_FLOATS * most * heads);
        for first in span.rows.clone().step_by(SLAB) {
            let rows = (span.rows.end - first).min(SLAB);
            let chunks = rows.div_ceil(CHUNK);
            let slab = Chunks {
                inputs: inputs(x),
                o: o.at(),
                state: span.state.at(),
                scratch: scratch.at,
                first: first as i32,
                rows: rows as i32,
                heads: heads as i32,
                chunks: chunks as i32,
            };
            let made = Grid { blocks: [chunks, heads, 1], threads: 256, shared: CHUNK_SHARED };
            let applied = Grid { blocks: [DIM / 32, heads, 1], threads: 128, shared: APPLY_SHARED };
            self.driver.launch(["delta_chunks", ""], made, &[block(&slab)]);
            self.driver.launch(["delta_apply", ""], applied, &[block(&slab)]);
        }
    }
}

fn inputs(x: &DeltaRule<'_, Tensor>) -> [Address; 5] {
    [x.q, x.k, x.v, x.g, x.beta].map(Tensor::at)
}
