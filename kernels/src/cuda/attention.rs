//! Launches absorbed MLA attention: splits the cache into parts and selects the kernel for a shape.
//!
//! The arithmetic is in kernels/cuda/attention.cu. Next: `materialized`.

use super::cache::CacheShape;
use super::driver::Address;
use super::memory::Tensor;
use super::span::groups;
use super::{Cache, Cuda, Device, Grid, Weight, arg, block};
use crate::backend::{CacheFormat, Rope, Span};
use bytemuck::{Pod, Zeroable};

/// Limits of `attend_tensor` and its shared memory in bytes, as in attention.cu.
const HEADS: usize = 32;
const VALUES: usize = 512;
const MOST_WIDTH: usize = 576;
const ROWS: usize = 16;
const STAGES: usize = 3;
const TENSOR_SHARED: usize =
    2 * (HEADS + STAGES * ROWS) * (MOST_WIDTH + 8) + 2 * HEADS * (ROWS + 8) + 4 * HEADS * (2 * ROWS + 2);
/// Largest value width of `attend_plain`, and its cache rows per block.
pub(super) const PLAIN_VALUES: usize = 512;
/// Largest width of a cache row: `attend_plain` holds a query in shared memory, of which 48 KiB need no opt-in.
pub(super) const MAX_WIDTH: usize = 8192;
const PLAIN_ROWS: usize = 32;
/// Largest number of parts of a cache: about two per SM of the largest cards.
const PARTS: usize = 256;
/// Shared memory of an SM, which two resident blocks share.
const FOR_TWO: usize = 2 * (TENSOR_SHARED + 1024);
/// Smallest number of rows per part: merging a part costs the traffic of two rows per head.
const PART_ROWS: usize = 128;
/// Warps of an appending block, and largest number of blocks per span.
const APPENDING: usize = 16;
const APPENDERS: usize = 128;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Attention {
    q: Address,
    o: Address,
    cache: CacheShape,
    heads: i32,
    value_dim: i32,
    parts: i32,
    scale: f32,
    part_share: u32,
    tail_bytes: i32,
    tile_bytes: u32,
    unused: i32,
}

/// Largest useful number of parts for a number of rows; it grows by doubling, so few graphs differ in it.
pub(super) fn reach(rows: usize) -> usize {
    rows.div_ceil(PART_ROWS).next_power_of_two().min(PARTS)
}

/// Number of parts that fills the device while each part has enough rows.
fn parts(blocks: usize, longest: usize, at_a_time: usize) -> usize {
    let wanted = at_a_time / blocks.max(1);
    wanted.min(reach(longest)).max(1)
}

/// Reserves the rows of x in the caches.
fn prepare_rows(spans: &mut [Span<'_, Cache>], x: &Tensor, format: CacheFormat) {
    for span in spans {
        assert_eq!(span.state.width(), x.cols, "width of a cache and of its new rows");
        assert_eq!(span.state.format(), format, "one format of caches in a batch");
        span.state.prepare(span.rows.len());
    }
}

impl Cuda {
    pub(super) fn rotate_rows(&self, spans: &mut [Span<'_, Cache>], q: &Tensor, kv: &Tensor, rope: Rope) {
        let (width, dims) = (q.cols / rope.heads, rope.dims);
        assert!(q.cols.is_multiple_of(rope.heads), "{} columns in {} heads", q.cols, rope.heads);
        assert!(dims.is_multiple_of(2) && dims <= width.min(kv.cols), "{dims} rotated columns");
        spans.iter_mut().for_each(|span| span.state.prepare(span.rows.len()));
        for group in groups(spans, Cache::header) {
            let grid = Grid { blocks: [group.longest, group.n, 1], threads: 32, shared: 0 };
            let sizes = [rope.heads, width, kv.cols, dims].map(|n| arg(n as i32));
            let rows = [block(&group.spans), arg(q.at()), arg(kv.at())];
            self.driver.launch(["rotate", ""], grid, &[&rows[..], &sizes, &[arg(rope.base)]].concat());
        }
    }

    pub(super) fn append_rows(&self, spans: &mut [Span<'_, Cache>], x: &Tensor) {
        let Some(first) = spans.first() else { return };
        let (shape, format) = (first.state.shape(), first.state.format());
        prepare_rows(spans, x, format);
        for group in groups(spans, Cache::header) {
            let share = (group.longest * shape.blocks as usize).div_ceil(4 * APPENDING).clamp(1, APPENDERS);
            let grid = Grid { blocks: [group.n, share, 1], threads: 32 * APPENDING, shared: 0 };
            self.driver.launch(["append", ""], grid, &[block(&group.spans), block(&shape), arg(x.at())]);
            if share > 1 {
                let grid = Grid { blocks: [1, 1, 1], threads: 32, shared: 0 };
                self.driver.launch(["advance", ""], grid, &[block(&group.spans), arg(group.n as i32)]);
            }
        }
        spans.iter_mut().for_each(|span| span.state.advance(span.rows.len()));
    }

    /// Appends the norms of single rows; false where spans have more.
    pub(super) fn append_normalized(
        &self,
        spans: &mut [Span<'_, Cache>],
        x: &Tensor,
        w: &Weight,
        eps: f32,
    ) -> bool {
        let Some(first) = spans.first() else { return true };
        if spans.iter().any(|span| span.rows.len() != 1) {
            return false;
        }
        let (shape, format) = (first.state.shape(), first.state.format());
        assert!(w.cols <= x.cols, "a norm over {} of {} columns", w.cols, x.cols);
        prepare_rows(spans, x, format);
        for group in groups(spans, Cache::header) {
            let grid = Grid { blocks: [group.n, 1, 1], threads: 32 * APPENDING, shared: 33 * 4 };
            let norm = [arg(w.floats()), arg(w.cols as i32), arg(eps)];
            let rows = [block(&group.spans), block(&shape), arg(x.at())];
            self.driver.launch(["append_norm", ""], grid, &[&rows[..], &norm].concat());
        }
        spans.iter_mut().for_each(|span| span.state.advance(1));
        true
    }

    pub(super) fn attend(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Tensor,
        value_dim: usize,
        scale: f32,
    ) -> Tensor {
        let Some(first) = spans.first() else { return self.buffers.tensor(q.rows, 0) };
        let (cache, width, format) = (first.state.shape(), first.state.width(), first.state.format());
        assert!(q.cols.is_multiple_of(width) && value_dim <= width, "{} columns, rows of {width}", q.cols);
        assert!(
            value_dim <= PLAIN_VALUES,
            "CUDA: expected at most {PLAIN_VALUES} values a head, found {value_dim}"
        );
        let heads = q.cols / width;
        let o = self.spanned(q.rows, heads * value_dim, spans);
        for span in spans.iter_mut() {
            assert_eq!(span.state.width(), width, "width of the caches of one batch");
            assert!(span.rows.len() <= span.state.len(), "more queries than rows");
            span.state.prepare(0);
        }
        if o.len() == 0 {
            return o;
        }
        let tensor = format != CacheFormat::F32
            && heads.is_multiple_of(HEADS)
            && value_dim == VALUES
            && width <= MOST_WIDTH
            && width.is_multiple_of(32);
        let longest = spans.iter().map(|span| span.state.len()).max().unwrap_or(0);
        let blocks = q.rows * if tensor { 1 } else { heads };
        let Device { multiprocessors, shared, .. } = self.driver.device;
        let n = parts(blocks, longest, multiprocessors * if tensor && shared < FOR_TWO { 1 } else { 2 });
        let parted = (n > 1).then(|| self.spanned(q.rows, heads * n * (value_dim + 2), spans));
        let [heads_arg, values, n_arg] = [heads, value_dim, n].map(|n| n as i32);
        let out = parted.as_ref().map_or(o.at(), Tensor::at);
        let part_share = (1_u32 << 31).div_ceil(n as u32);
        let (tail_bytes, tile_bytes) =
            (2 * (width as i32 - VALUES as i32), (ROWS * cache.row_bytes()) as u32);
        let p = Attention {
            q: q.at(),
            o: out,
            cache,
            heads: heads_arg,
            value_dim: values,
            parts: n_arg,
            scale,
            part_share,
            tail_bytes,
            tile_bytes,
            unused: 0,
        };
        for group in groups(spans, Cache::header) {
            if !tensor {
                let blocks = [group.longest * heads, n, group.n];
                let grid = Grid { blocks, threads: 128, shared: 4 * (width + 2 * PLAIN_ROWS) };
                self.driver.launch(["attend_plain", ""], grid, &[block(&group.spans), block(&p)]);
                continue;
            }
            let format = if format == CacheFormat::F16 { "F16" } else { "Q8_0" };
            let grid = Grid { blocks: [group.longest, n, group.n], threads: 256, shared: TENSOR_SHARED };
            for first in (0..heads).step_by(HEADS) {
                let of_head = if n > 1 { n * (value_dim + 2) } else { value_dim };
                let [q, o] = [(p.q, width), (p.o, of_head)].map(|(at, each)| at + (4 * first * each) as u64);
                let of_heads = Attention { q, o, ..p };
                self.driver.launch(["attend_tensor", format], grid, &[block(&group.spans), block(&of_heads)]);
            }
        }
        if let Some(parted) = &parted {
            let blocks = [q.rows * heads, value_dim.div_ceil(128), 1];
            let grid = Grid { blocks, threads: 512, shared: 4 * (n + 512) };
            let arguments = [arg(parted.at()), arg(o.at()), arg(n_arg), arg(values)];
            self.driver.launch(["merge", ""], grid, &arguments);
        }
        o
    }
}
