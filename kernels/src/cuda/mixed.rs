//! Launches the products of one input with matrices of several formats at once: a layer's projections of a decoded token.
//!
//! The arithmetic is in kernels/cuda/mixed.cu. Other formats take a launch each. Next: `fused`.

use super::driver::Address;
use super::matmul::{GEMV_MAX_TOKENS, Input, TOGETHER, Target, lanes};
use super::memory::Tensor;
use super::{Cuda, Grid, block};
use crate::quant::Format;
use bytemuck::{Pod, Zeroable};

/// Largest number of matrices per launch, as in mixed.cu.
const MIXED: usize = 8;
/// The formats of one launch, in the order of `MixedFormat` in mixed.cu.
const FORMATS: [Format; 6] =
    [Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q5_K, Format::Q6_K, Format::Q8_0];

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MixedMatrix {
    planes: [Address; 3],
    y: Address,
    rows: i32,
    first: i32,
    lanes: i32,
    format: i32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Mixed {
    of: [MixedMatrix; MIXED],
    q: Address,
    scale: Address,
    n: i32,
    cols: i32,
    vectors: i32,
    unused: i32,
}

impl Cuda {
    /// Multiplies a few tokens with matrices of several formats; false for other shapes and where one format needs one launch
    /// anyway.
    pub(super) fn mixed_products(&self, to: &[Target<'_>], x: &Tensor) -> bool {
        let format = |t: &Target<'_>| FORMATS.iter().position(|f| *f == t.w.format);
        let first = to.first().and_then(format);
        let alike = to.iter().all(|t| format(t) == first);
        if alike || to.len() > MIXED || !(1..=GEMV_MAX_TOKENS).contains(&x.rows) {
            return false;
        }
        let (mut of, mut blocks) = ([MixedMatrix::zeroed(); MIXED], 0);
        for (m, t) in of.iter_mut().zip(to) {
            let Some(format) = format(t) else { return false };
            let (w, lanes) = (t.w.on_device(), lanes(t.w.format, t.w.cols));
            let [rows, first, lanes_arg, format] = [w.rows, blocks, lanes, format].map(|n| n as i32);
            *m = MixedMatrix { planes: w.planes, y: t.y, rows, first, lanes: lanes_arg, format };
            blocks += (w.rows * lanes).div_ceil(128);
        }
        let Input { q, scale, .. } = self.input(to[0].w, x);
        let [n, cols, vectors] = [to.len(), x.cols, x.rows].map(|n| n as i32);
        let p = Mixed { of, q, scale, n, cols, vectors, unused: 0 };
        let (kernel, together) = if x.rows > 1 { ("mixed4", TOGETHER) } else { ("mixed1", 1) };
        if blocks > 0 {
            let grid = Grid { blocks: [blocks, x.rows.div_ceil(together), 1], threads: 128, shared: 0 };
            self.driver.launch([kernel, ""], grid, &[block(&p)]);
        }
        true
    }
}
