//! Launches MLA attention with materialized keys and values, for spans of many tokens.
//!
//! The cache is processed in chunks of [`CHUNK_ROWS`] rows, so scratch memory is constant in depth. Wider shapes than the
//! published model's and short spans use absorbed attention. The arithmetic is in kernels/cuda/materialized.cu.

use super::cache::CacheShape;
use super::driver::Address;
use super::memory::{DeviceBuffer, Tensor};
use super::{Cache, Cuda, Grid, Weight, arg, block};
use crate::backend::{KvUpProjection, Span};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Largest key and value widths, as in materialized.cu.
const NOPE: usize = 128;
const PE: usize = 64;
const VALUE: usize = 128;
const MADE: usize = NOPE + VALUE;
/// Tile rows, columns and k-step of `materialize`.
const SIDE: usize = 128;
const DEEP: usize = 32;
/// Queries per block of `attend_materialized`, and keys per tile.
const QUERIES: usize = 128;
const KEYS: usize = 64;
/// Bytes of shared memory: the tile of `materialize_weights`, `MaterializeShared`, `AttendShared`.
const WEIGHTS_SHARED: usize = 4 * 32 * 33;
const MATERIALIZE_SHARED: usize = 2 * 2 * 2 * SIDE * (DEEP + 8);
const ATTEND_SHARED: usize = 2 * 2 * KEYS * (NOPE + PE + 8 + VALUE + 8);
/// Rows whose keys and values are materialized at once: 64 MiB for 32 heads. The running softmax carried between chunks,
/// 32 KiB per token beside 84 million multiply-adds, then costs a few percent of the time.
pub(super) const CHUNK_ROWS: usize = 4096;
/// Smallest span, in tokens, for which materializing pays. The break-even by multiply-adds is 170; absorbed attention
/// also rereads the cache for each token, which lowers it. Not measured.
const MATERIALIZE_MIN_TOKENS: usize = 32;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct WeightHalves {
    floats: [Address; 2],
    weights: Address,
    latent: i32,
    padded: i32,
    nope: i32,
    value_dim: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LatentRows {
    header: Address,
    rows: Address,
    cache: CacheShape,
    first: i32,
    n: i32,
    latent: i32,
    padded: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Materialize {
    rows: Address,
    weights: Address,
    made: Address,
    n: i32,
    padded: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MaterializedAttention {
    q: Address,
    o: Address,
    carry: Address,
    rows: Address,
    made: Address,
    first: i32,
    tokens: i32,
    before: i32,
    from: i32,
    to: i32,
    n: i32,
    heads: i32,
    nope: i32,
    pe: i32,
    value_dim: i32,
    padded: i32,
    scale: f32,
}

/// Head sizes of an MLA layer, from which [`materialized_bytes`] computes the scratch memory.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Number of query heads; the kernels take up to 65,535, a grid dimension.
    pub count: usize,
    /// Key columns projected from the latent.
    pub nope: usize,
    /// Key columns stored in the row.
    pub pe: usize,
    /// Columns of a cache row that hold the latent c_s.
    pub latent: usize,
    /// Columns of a head's value, projected from the latent.
    pub value_dim: usize,
}

impl Heads {
    /// Returns whether the kernels support these sizes.
    fn fit(&self) -> bool {
        let Heads { count, nope, pe, latent, value_dim } = *self;
        (1..=65_535).contains(&count)
            && nope <= NOPE
            && pe <= PE
            && (1..=VALUE).contains(&value_dim)
            && latent > 0
    }

    fn padded(&self) -> u64 {
        (self.latent as u64).checked_next_multiple_of(DEEP as u64).unwrap_or(u64::MAX)
    }

    /// Scratch bytes for a number of rows and tokens: f16 matrices, rows, keys and values, the running softmax.
    fn scratch(&self, rows: u64, tokens: u64) -> [u64; 4] {
        let bytes = |factors: [u64; 3]| factors.into_iter().fold(2, u64::saturating_mul);
        let (heads, made) = (self.count as u64, MADE as u64);
        [
            bytes([heads, made, self.padded()]),
            bytes([rows, self.padded().saturating_add(PE as u64), 1]),
            bytes([heads, rows, made]),
            bytes([heads, tokens, 4]),
        ]
    }
}

/// Device scratch bytes of materialized attention for one step.
pub fn materialized_bytes(heads: &Heads, context: u64, tokens: u64) -> u64 {
    if !heads.fit() {
        return 0;
    }
    let rows = context.min(CHUNK_ROWS as u64).next_multiple_of(SIDE as u64);
    let floats = [heads.count, heads.latent, heads.nope + heads.value_dim];
    let floats = floats.into_iter().fold(4, |all: u64, n| all.saturating_mul(n as u64));
    heads.scratch(rows, tokens).into_iter().fold(floats, u64::saturating_add)
}

/// Arguments shared by the launches of a call.
struct Call<'a> {
    q: &'a Tensor,
    o: &'a Tensor,
    heads: Heads,
    weights: DeviceBuffer,
    rows: DeviceBuffer,
    made: DeviceBuffer,
    carry: DeviceBuffer,
    scale: f32,
}

impl Cuda {
    /// Sets the chunk size in rows, rounded up to 128 and at most the default: for tests of the running softmax.
    pub fn set_chunk_rows(&self, rows: usize) {
        self.chunk_rows.store(rows.clamp(1, CHUNK_ROWS).next_multiple_of(SIDE), Ordering::Relaxed);
    }

    pub(super) fn attend_materialized(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Tensor,
        w: &KvUpProjection<'_, Weight>,
        scale: f32,
    ) -> Tensor {
        let (count, latent) = (w.k.count, w.latent);
        assert_eq!((w.k.rows, w.v.cols), (latent, latent), "columns of the latent that the matrices take");
        assert!(count > 0 && q.cols.is_multiple_of(count), "{} columns in {count} heads", q.cols);
        assert_eq!(w.v.count, count, "heads of the values' matrices");
        let (nope, value_dim) = (w.k.cols, w.v.rows);
        let pe = (q.cols / count).checked_sub(nope).expect("queries as wide as what keys are made of");
        let heads = Heads { count, nope, pe, latent, value_dim };
        let takes = heads.fit() && scale > 0.0;
        let all = spans.iter_mut().map(|s| Span { rows: s.rows.clone(), state: &mut *s.state });
        let with_rows = all.filter(|span| !span.rows.is_empty());
        let (mut long, mut short): (Vec<_>, Vec<_>) =
            with_rows.partition(|span| takes && span.rows.len() >= MATERIALIZE_MIN_TOKENS);
        if long.is_empty() && !short.is_empty() {
            return self.absorbed(&mut short, q, w, scale);
        }
        let o = self.spanned(q.rows, count * value_dim, &long);
        if !long.is_empty() {
            self.long_spans(&mut long, [q, &o], w, &heads, scale);
        }
        if !short.is_empty() {
            let rest = self.absorbed(&mut short, q, w, scale); // zero in the rows of other spans
            self.each("add", o.len(), &[arg(o.at()), arg(rest.at())]);
        }
        o
    }

    /// Computes short spans by absorbed attention: W_k is absorbed into the queries, W_v into the outputs.
    fn absorbed(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Tensor,
        w: &KvUpProjection<'_, Weight>,
        scale: f32,
    ) -> Tensor {
        let q = self.by_head(w.k, q);
        self.by_head(w.v, &self.attend(spans, &q, w.latent, scale))
    }

    fn long_spans(
        &self,
        spans: &mut [Span<'_, Cache>],
        [q, o]: [&Tensor; 2],
        w: &KvUpProjection<'_, Weight>,
        heads: &Heads,
        scale: f32,
    ) {
        let rows = spans.iter().map(|span| span.state.len()).max().unwrap_or(0);
        let tokens = spans.iter().map(|span| span.rows.len()).max().unwrap_or(0);
        let chunk = rows.next_multiple_of(SIDE).min(self.chunk_rows.load(Ordering::Relaxed));
        let sizes = heads.scratch(chunk as u64, tokens as u64);
        let [weights, rows, made, carry] = sizes.map(|bytes| self.buffers.bytes(bytes as usize));
        self.halves(w, heads, weights.at);
        let scale = scale * std::f32::consts::LOG2_E;
        let call = Call { q, o, heads: *heads, weights, rows, made, carry, scale };
        for span in spans {
            let (len, width) = (span.state.len(), span.state.width());
            assert_eq!(width, heads.latent + heads.pe, "width of the cache, of the latent and of pe");
            assert!(span.rows.len() <= len, "more queries than rows");
            span.state.prepare(0);
            for first in (0..len).step_by(chunk) {
                self.attend_chunk(&call, span, first..len.min(first + chunk));
            }
        }
    }

    /// The heads' matrices as rows of f16.
    fn halves(&self, w: &KvUpProjection<'_, Weight>, heads: &Heads, weights: Address) {
        let floats = [w.k, w.v].map(|w| self.floats_of(w));
        let padded = heads.padded() as usize;
        let [latent, padded_arg, nope, value_dim] =
            [heads.latent, padded, heads.nope, heads.value_dim].map(|n| n as i32);
        let floats_at = floats.each_ref().map(|f| f.at);
        let p = WeightHalves { floats: floats_at, weights, latent, padded: padded_arg, nope, value_dim };
        let blocks = [padded / 32, MADE / 32, heads.count];
        let grid = Grid { blocks, threads: 256, shared: WEIGHTS_SHARED };
        self.driver.launch(["materialize_weights", ""], grid, &[block(&p)]);
    }

    /// A span's tokens over one chunk of its cache.
    fn attend_chunk(&self, call: &Call<'_>, span: &Span<'_, Cache>, chunk: Range<usize>) {
        let Heads { count, nope, pe, latent, value_dim } = call.heads;
        let room = chunk.len().next_multiple_of(SIDE);
        let before = span.state.len() - span.rows.len();
        let [first, tokens, from, to, n] =
            [span.rows.start, span.rows.len(), chunk.start, chunk.end, room].map(|n| n as i32);
        let [latent, padded] = [latent as i32, call.heads.padded() as i32];
        let (header, cache) = (span.state.header(), span.state.shape());
        let rows =
            LatentRows { header, rows: call.rows.at, cache, first: from, n: to - from, latent, padded };
        let grid = Grid { blocks: [room, 1, 1], threads: 128, shared: 0 };
        self.driver.launch(["latent_rows", ""], grid, &[block(&rows)]);
        let (rows, weights, made) = (call.rows.at, call.weights.at, call.made.at);
        let materialize = Materialize { rows, weights, made, n, padded };
        let grid = Grid { blocks: [2 * count, room / SIDE, 1], threads: 256, shared: MATERIALIZE_SHARED };
        self.driver.launch(["materialize", ""], grid, &[block(&materialize)]);
        let [before, heads, nope, pe, value_dim] = [before, count, nope, pe, value_dim].map(|n| n as i32);
        let p = MaterializedAttention {
            q: call.q.at(),
            o: call.o.at(),
            carry: call.carry.at,
            rows,
            made,
            first,
            tokens,
            before,
            from,
            to,
            n,
            heads,
            nope,
            pe,
            value_dim,
            padded,
            scale: call.scale,
        };
        let blocks = [span.rows.len().div_ceil(QUERIES), count, 1];
        let grid = Grid { blocks, threads: 256, shared: ATTEND_SHARED };
        self.driver.launch(["attend_materialized", ""], grid, &[block(&p)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_of_the_real_shape_has_one_size_at_every_depth() {
        let heads = Heads { count: 32, nope: 128, pe: 64, latent: 512, value_dim: 128 };
        assert_eq!(heads.scratch(4096, 1024), [8 << 20, 4096 * 576 * 2, 64 << 20, 256 << 10]);
        let far = materialized_bytes(&heads, 1 << 20, 1024);
        assert_eq!(far, (16 << 20) + heads.scratch(4096, 1024).iter().sum::<u64>());
        assert_eq!(far, materialized_bytes(&heads, 4000, 1024));
        assert!(materialized_bytes(&heads, 100, 1024) < far);
        assert_eq!(materialized_bytes(&Heads { nope: 129, ..heads }, 1 << 20, 1024), 0, "over latents");
        assert_eq!(materialized_bytes(&Heads { latent: usize::MAX, ..heads }, 1 << 20, 1024), u64::MAX);
    }
}
