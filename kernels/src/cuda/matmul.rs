//! Launches matrix products: selects the kernel for a shape and fills its arguments.
//!
//! Up to [`GEMV_MAX_TOKENS`] vectors use the GEMV kernels, which read each weight once per four vectors; more use tensor
//! core tiles. Both support a single matrix, one matrix per head, and routed experts. The arithmetic is in
//! kernels/cuda/{product,gemm}.cuh. Next: `mixed`.

use super::driver::Address;
use super::graph::captured_ids;
use super::memory::{DeviceBuffer, Tensor};
use super::norm::NormAfter;
use super::route::ExpertChoice;
use super::{Cuda, Grid, Weight, arg, block};
use crate::backend::GatedMlp;
use crate::quant::Format;
use bytemuck::{Pod, Zeroable};

/// Largest number of tokens for the GEMV kernels.
pub(super) const GEMV_MAX_TOKENS: usize = 8;
/// Vectors that share one read of a weight.
pub(super) const TOGETHER: usize = 4;
/// Largest number of matrices per launch, as in product.cuh.
const MATRICES: usize = 8;
/// Rows and vectors per tile, and its shared memory in bytes for block and float formats.
pub(super) const TILE: [usize; 2] = [128, 64];
const TILE_SHARED: usize = (128 + 64) * 144 + 4 * (2 * 8 * 128 + 4 * 64 + 8 * 64) + 2 * 4 * 64;
pub(super) const PLAIN: [usize; 2] = [64, 64];
const PLAIN_SHARED: usize = 4 * (2 * 16 * 68 + 64);

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MatrixArg {
    planes: [Address; 3],
    y: Address,
    rows: i32,
    first: i32,
    y_stride: i32,
    unused: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Product {
    of: [MatrixArg; MATRICES],
    x: Input,
    chosen: Address,
    n: i32,
    rows: i32,
    cols: i32,
    vectors: i32,
    groups: i32,
    x_div: i32,
    lanes: i32,
    unused: i32,
    norm: NormAfter,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GemmArgs {
    planes: [Address; 3],
    y: Address,
    x: Input,
    pairs: Address,
    starts: Address,
    tiles: Address,
    rows: i32,
    cols: i32,
    y_stride: i32,
    groups: i32,
    vectors: i32,
    x_div: i32,
}

/// Addresses of activations: quantized, their scales, f32. A kernel reads its format's activation type.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Input {
    pub(super) q: Address,
    pub(super) scale: Address,
    pub(super) floats: Address,
}

/// Maps each vector of a product to its matrix and its activation row.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) vectors: usize,
    /// Matrices that vectors cycle through when none are routed.
    pub(super) groups: usize,
    /// Consecutive vectors that share an activation row: `top_k` for the gate and up of experts, else 1.
    pub(super) x_div: usize,
    /// Address of each vector's matrix index (-1 skips it), or 0.
    pub(super) chosen: Address,
}

/// A weight and its output.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) w: &'a Weight,
    pub(super) y: Address,
    pub(super) y_stride: usize,
}

/// (token, slot) pairs sorted by expert.
pub(super) struct Pairs {
    pub(super) order: DeviceBuffer,
    pub(super) starts: DeviceBuffer,
    pub(super) tiles: DeviceBuffer,
}

/// Weights of a block format that a thread of the GEMV kernels reads at once: 64 where quant.cuh sets `PAIRED`.
pub(super) fn piece(format: Format) -> usize {
    match format {
        Format::Q4_K | Format::Q5_K | Format::Q6_K => 64,
        _ => 32,
    }
}

/// Threads per row: the count that wastes the fewest iterations. A multiple of 4, which pairs require.
pub(super) fn lanes(format: Format, cols: usize) -> usize {
    if format.block_len() == 1 {
        return 32;
    }
    let pieces = cols / piece(format);
    [32, 16, 8, 4].into_iter().min_by_key(|lanes| pieces.div_ceil(*lanes) * lanes).unwrap_or(32)
}

impl Cuda {
    pub(super) fn input(&self, w: &Weight, x: &Tensor) -> Input {
        if !w.is_block() {
            return Input { q: 0, scale: 0, floats: x.at() };
        }
        let levels = x.bytes.get_or_init(|| self.levels(x.at(), [x.rows, x.cols, x.cols]));
        Input { q: levels.q.at, scale: levels.scale.at, floats: 0 }
    }

    /// GEMV of a few vectors with up to [`MATRICES`] weights of one format; with a norm, the result of the only one is added
    /// to its target, the residual stream.
    pub(super) fn gemv(
        &self,
        kernel: &'static str,
        to: &[Target<'_>],
        x: Input,
        shape: Shape,
        norm: NormAfter,
    ) {
        let w = to[0].w.on_device();
        let mut of = [MatrixArg::zeroed(); MATRICES];
        let mut rows = 0;
        for (m, t) in of.iter_mut().zip(to) {
            let (y_stride, r) = (t.y_stride as i32, t.w.rows as i32);
            *m = MatrixArg { planes: t.w.planes, y: t.y, rows: r, first: rows, y_stride, unused: 0 };
            rows += r;
        }
        let lanes = lanes(w.format, w.cols);
        let together = if kernel == "matvec4" { TOGETHER } else { 1 };
        let [n, cols, vectors, groups, x_div] =
            [to.len(), w.cols, shape.vectors, shape.groups, shape.x_div].map(|n| n as i32);
        let (chosen, unused, lanes_arg) = (shape.chosen, 0, lanes as i32);
        let p =
            Product { of, x, chosen, n, rows, cols, vectors, groups, x_div, lanes: lanes_arg, unused, norm };
        let blocks = [(rows as usize * lanes).div_ceil(128), shape.vectors.div_ceil(together), 1];
        if rows > 0 && shape.vectors > 0 {
            let grid = Grid { blocks, threads: 128, shared: norm.shared() };
            self.driver.launch([kernel, w.format.name()], grid, &[block(&p)]);
        }
    }

    /// Sorts the pairs of a routing by expert, in tiles of the GEMM kernels.
    pub(super) fn pairs(&self, choice: ExpertChoice, experts: usize) -> Pairs {
        const { assert!(TILE[1] == PLAIN[1]) };
        let n = choice.rows * choice.top_k;
        let room = n / TILE[1] + experts;
        let [order, starts, tiles] = [n, experts + 1, 2 * room].map(|values| self.buffers.bytes(4 * values));
        let [n, experts_arg, tile] = [n, experts, TILE[1]].map(|n| arg(n as i32));
        let [places, order_at, starts_at, tiles_at] = [choice.places, order.at, starts.at, tiles.at].map(arg);
        let arguments = [places, n, experts_arg, tile, order_at, starts_at, tiles_at];
        let grid = Grid { blocks: [1, 1, 1], threads: 1024, shared: 8 * experts };
        self.driver.launch(["group_pairs", ""], grid, &arguments);
        Pairs { order, starts, tiles }
    }

    /// GEMM of many vectors with a stack.
    pub(super) fn gemm(&self, to: Target<'_>, x: Input, shape: Shape, pairs: Option<&Pairs>) {
        let w = to.w.on_device();
        let (tile, shared) = if w.is_block() { (TILE, TILE_SHARED) } else { (PLAIN, PLAIN_SHARED) };
        let each = shape.vectors / shape.groups;
        let [rows, cols, y_stride, groups, vectors, x_div] =
            [w.rows, w.cols, to.y_stride, shape.groups, each, shape.x_div].map(|n| n as i32);
        let address = |of: fn(&Pairs) -> &DeviceBuffer| pairs.map_or(0, |p| of(p).at);
        let [order, starts, tiles] = [address(|p| &p.order), address(|p| &p.starts), address(|p| &p.tiles)];
        let (planes, y) = (w.planes, to.y);
        let p = GemmArgs {
            planes,
            y,
            x,
            pairs: order,
            starts,
            tiles,
            rows,
            cols,
            y_stride,
            groups,
            vectors,
            x_div,
        };
        let tiles = match pairs {
            Some(_) => shape.vectors / tile[1] + shape.groups,
            None => shape.groups * each.div_ceil(tile[1]),
        };
        if w.rows > 0 && shape.vectors > 0 {
            let grid = Grid { blocks: [w.rows.div_ceil(tile[0]), tiles, 1], threads: 256, shared };
            self.driver.launch(["gemm", w.format.name()], grid, &[block(&p)]);
        }
    }

    /// y = x W^T for each weight.
    pub(super) fn products<const N: usize>(&self, w: [&Weight; N], x: &Tensor) -> [Tensor; N] {
        for w in w {
            assert_eq!((w.count, w.cols), (1, x.cols), "a product: matrices, columns");
        }
        let y = w.map(|w| self.buffers.tensor(x.rows, w.rows));
        let shape = Shape { vectors: x.rows, groups: 1, x_div: 1, chosen: 0 };
        let target = |i: usize| Target { w: w[i], y: y[i].at(), y_stride: w[i].rows };
        if x.rows > GEMV_MAX_TOKENS {
            (0..N).for_each(|i| self.gemm(target(i), self.input(w[i], x), shape, None));
            return y;
        }
        let targets: [_; N] = std::array::from_fn(target);
        if self.mixed_products(&targets, x) {
            return y;
        }
        for format in Format::ALL {
            let same: Vec<Target<'_>> = (0..N).filter(|i| w[*i].format == format).map(target).collect();
            for part in same.chunks(MATRICES) {
                let kernel = if x.rows > 1 { "matvec4" } else { "matvec1" };
                self.gemv(kernel, part, self.input(part[0].w, x), shape, NormAfter::NONE);
            }
        }
        y
    }

    /// y_h = [W_h x_h[..cols] | x_h[cols..]]
    pub(super) fn by_head(&self, w: &Weight, x: &Tensor) -> Tensor {
        assert!(x.cols.is_multiple_of(w.count), "{} columns in {} heads", x.cols, w.count);
        let width = x.cols / w.count;
        assert!(w.cols <= width, "heads of {width} columns, matrices of {}", w.cols);
        let (rest, vectors) = (width - w.cols, x.rows * w.count);
        let y_width = w.rows + rest;
        if (1..=GEMV_MAX_TOKENS).contains(&x.rows) {
            return self.fused_heads(w, x);
        }
        let y = self.buffers.tensor(x.rows, w.count * y_width);
        if y.len() == 0 {
            return y;
        }
        let levels = w.is_block().then(|| self.levels(x.at(), [vectors, w.cols, width]));
        let floats = (!w.is_block()).then(|| self.columns(x.at(), [vectors, w.cols, width]));
        let input = Input {
            q: levels.as_ref().map_or(0, |l| l.q.at),
            scale: levels.as_ref().map_or(0, |l| l.scale.at),
            floats: floats.as_ref().map_or(0, |f| f.at),
        };
        let shape = Shape { vectors, groups: w.count, x_div: 1, chosen: 0 };
        self.gemm(Target { w, y: y.at(), y_stride: y_width }, input, shape, None);
        let [x_width, y_width, each] = [width, y_width, rest].map(|n| arg(n as i32));
        self.each("pass_through", vectors * rest, &[arg(x.at()), arg(y.at()), x_width, y_width, each]);
        y
    }

    /// The first `cols` values of each `width`.
    fn columns(&self, x: Address, [rows, cols, width]: [usize; 3]) -> DeviceBuffer {
        let y = self.buffers.bytes(4 * rows * cols);
        self.each("first_columns", rows * cols, &[arg(x), arg(y.at), arg(cols as i32), arg(width as i32)]);
        y
    }

    pub(super) fn embed_rows(&self, table: &Weight, ids: &[u32]) -> Tensor {
        assert_eq!(table.count, 1, "a table of rows");
        assert!(ids.iter().all(|id| (*id as usize) < table.rows), "ids of a table of {} rows", table.rows);
        let y = self.buffers.tensor(ids.len(), table.cols);
        if y.len() == 0 {
            return y;
        }
        let captured = captured_ids();
        let indices = captured.is_none().then(|| self.buffers.upload(ids));
        let chosen = indices.as_ref().map_or(captured, |own| Some(own.at)).unwrap_or(0);
        self.rows_to(table, y.at(), [ids.len(), table.cols], chosen);
        y
    }

    /// Dequantizes all matrices of a stack.
    pub(super) fn floats_of(&self, w: &Weight) -> DeviceBuffer {
        let each = w.rows * w.cols; // rows are whole blocks, so a matrix is one long row
        let y = self.buffers.bytes(4 * w.count * each);
        if w.count * each > 0 {
            self.rows_to(w, y.at, [w.count, each], 0);
        }
        y
    }

    /// Dequantizes rows of `cols` values: the listed ones, or the first ones.
    fn rows_to(&self, w: &Weight, y: Address, [n, cols]: [usize; 2], chosen: Address) {
        let mut of = [MatrixArg::zeroed(); MATRICES];
        let [vectors, width] = [n, cols].map(|n| n as i32);
        let planes = w.on_device().planes;
        of[0] = MatrixArg { planes, y, rows: 1, first: 0, y_stride: width, unused: 0 };
        let mut p = Product::zeroed();
        (p.of, p.chosen, p.n, p.rows, p.cols) = (of, chosen, 1, 1, width);
        (p.vectors, p.groups, p.x_div, p.lanes) = (vectors, 1, 1, 1);
        let work = if w.is_block() { cols / 32 } else { cols };
        let grid = Grid { blocks: [n, work.div_ceil(128), 1], threads: 128, shared: 0 };
        self.driver.launch(["embed", w.format.name()], grid, &[block(&p)]);
    }

    /// SiLU(gate) * up of one input.
    pub(super) fn gate_and_up(
        &self,
        w: &GatedMlp<'_, Weight>,
        x: &Tensor,
        shape: Shape,
        pairs: Option<&Pairs>,
        partial: bool,
    ) -> Tensor {
        let hidden = w.gate.rows;
        let y = self.buffers.tensor(shape.vectors, hidden);
        let gate = Target { w: w.gate, y: y.at(), y_stride: hidden };
        let input = self.input(w.gate, x);
        let up_y = self.buffers.tensor(shape.vectors, hidden);
        let up = Target { w: w.up, y: up_y.at(), y_stride: hidden };
        if partial {
            // No product writes the rows of absent experts, which the next kernels read before they are skipped.
            for y in [&y, &up_y] {
                self.driver.fill(y.at(), 0, 4 * y.len());
            }
        }
        for (to, input) in [(gate, input), (up, self.input(w.up, x))] {
            if pairs.is_some() {
                self.gemm(to, input, shape, pairs)
            } else {
                self.gemv("matvec1", &[to], input, shape, NormAfter::NONE)
            }
        }
        self.limited_silu_mul(&y, &up_y, w.limit);
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_waste_no_turn_of_the_real_widths() {
        for format in [Format::Q8_0, Format::Q4_K] {
            for cols in [2304, 4096, 1024, 512, 256, 9216] {
                let (pieces, lanes) = (cols / piece(format), lanes(format, cols));
                assert_eq!(pieces.div_ceil(lanes) * lanes, pieces, "{cols}: {lanes} lanes");
            }
        }
        assert_eq!(lanes(Format::F32, 1), 32);
    }
}
