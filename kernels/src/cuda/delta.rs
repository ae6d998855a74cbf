//! Launches of the delta rule: token by token, and of long spans in chunks.
//!
//! The arithmetic is in kernels/cuda/{delta,delta_chunk}.cu. Next: `product`.

use super::driver::Address;
use super::memory::Tensor;
use super::span::groups;
use super::{Cuda, Grid, block};
use crate::backend::{DeltaRule, Span};
use bytemuck::{Pod, Zeroable};

/// Rows of a head's S at most, as in delta.cu.
pub(super) const DELTA_ROWS: usize = 128;
/// Bytes of `DeltaShared`.
const DELTA_SHARED: usize = 4 * (3 * 3 * DELTA_ROWS + 2 * 3 * 4 * 32);
/// Tokens of a chunk and channels of a head, as in delta_chunk.cu.
const CHUNK: usize = 32;
const DIM: usize = 128;
/// Floats that a chunk of a head leaves, `CHUNK_FLOATS` there.
const CHUNK_FLOATS: usize = 4 * CHUNK * DIM + CHUNK * CHUNK + DIM;
/// Bytes of `ChunkShared` and of `ApplyShared`.
const CHUNK_SHARED: usize = 4 * (3 * CHUNK * DIM + CHUNK * CHUNK + CHUNK);
const APPLY_SHARED: usize = 4 * (DIM + CHUNK) * 34;
/// Tokens from which a span goes in chunks: by count, not yet by measurement.
const LONG: usize = 64;
/// Tokens whose chunks are made at once: 36 MB for 32 heads, which near caches of large cards hold.
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

impl Cuda {
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
        let long = |span: &Span<'_, Tensor>| [dk, dv] == [DIM; 2] && span.rows.len() >= LONG;
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

    /// One span, a slab after the other.
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
