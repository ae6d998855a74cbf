//! GEMM with matrix registers: one instruction multiplies a panel of weight rows with sixteen tokens.
//!
//! [`super::gemm`] decodes the blocks of a panel. They are prepared once for up to [`TOKEN_BLOCK`] tokens; the sums are exact
//! integers, so the results have the bits of the plain kernel.

use super::block_dot::MatrixDot;
use super::gemm::{TOKEN_BLOCK, decode, put};
use crate::quant::block::{Block, Tile};
use crate::simd::{Isa, PanelSimd};
use std::ops::Range;

/// Tokens per operation of matrix registers.
const MATRIX_TILE: usize = 16;
/// Panels that use a block of the activations, in L1, before the next block.
const MATRIX_PANELS: usize = 4;
/// Bytes that are prefetched in each row of these panels, which are read block by block.
const MATRIX_AHEAD: usize = 512;

/// Multiplies these tokens with matrix registers if the machine has them; otherwise returns false.
#[inline(always)]
pub(crate) fn gemm<I: Isa, B: Block, D: MatrixDot<B>>(
    isa: I,
    tile: &mut Tile<'_, B>,
    tokens: Range<usize>,
) -> bool {
    // Tiles of equal height, as registers are set up once; the last repeats tokens of the one before.
    let height = tokens.len().div_ceil(tokens.len().div_ceil(MATRIX_TILE));
    let Some(registers) = isa.panel().matrix(height) else { return false };
    matrix_block::<I, B, D>(isa, &registers, height, tile, tokens);
    true
}

/// Multiplies all panels with registers set up for `height` tokens.
#[inline(always)]
fn matrix_block<I: Isa, B: Block, D: MatrixDot<B>>(
    isa: I,
    registers: &<I::Panel as PanelSimd>::Matrix,
    height: usize,
    tile: &mut Tile<'_, B>,
    tokens: Range<usize>,
) {
    let (blocks, n, mr, simd, x) = (tile.blocks, tokens.len(), I::Panel::MR, isa.panel(), tile.x);
    // A product takes hundreds of cycles: its sums are read after the next one is started, so each has a panel and sums.
    let (mut panels, mut sums) = ([D::new_panel(simd), D::new_panel(simd)], [D::new_sums(), D::new_sums()]);
    let mut matrix = D::new_matrix(simd);
    let mut y = [[simd.splat(0.0); TOKEN_BLOCK]; MATRIX_PANELS];
    let ahead = if tokens.start == 0 { MATRIX_AHEAD.div_ceil(size_of::<B>()).max(2) } else { 0 };
    for group in (0..tile.rows).step_by(MATRIX_PANELS * mr) {
        let count = (tile.rows - group).div_ceil(mr).min(MATRIX_PANELS);
        for r in group..tile.rows.min(group + count * mr) {
            for block in tile.w[r * blocks..].iter().take(ahead.min(blocks)) {
                isa.prefetch_l2(block, 0);
            }
        }
        for y in &mut y[..count] {
            y[..n].fill(simd.splat(0.0));
        }
        let mut pending: Option<PendingProduct<'_, B>> = None;
        let (mut slot, mut next) = (0, 0);
        for b in 0..blocks {
            for p in 0..count {
                slot = 1 - slot;
                decode::<I, B, D>(isa, tile, (group + p * mr, b), ahead, &mut panels[slot]);
                D::prepare_matrix(&panels[slot], registers, &mut matrix);
                for from in (0..n).step_by(height) {
                    let first = from.min(n - height);
                    let x = &x[(tokens.start + first) * blocks + b..];
                    D::multiply_matrix(&matrix, registers, x, blocks, &mut sums[next]);
                    if let Some(done) = pending {
                        done.add::<I::Panel, D>(simd, &panels, &sums[1 - next], &mut y[done.panel]);
                    }
                    pending =
                        Some(PendingProduct { slot, panel: p, x, blocks, first, skip: from - first, height });
                    next = 1 - next;
                }
            }
        }
        if let Some(done) = pending {
            done.add::<I::Panel, D>(simd, &panels, &sums[1 - next], &mut y[done.panel]);
        }
        for (p, y) in y[..count].iter().enumerate() {
            put::<I::Panel, B>(simd, tile, group + p * mr, tokens.start, &y[..n]);
        }
    }
}

/// A product of a panel with some tokens, whose sums are not added yet.
#[derive(Clone, Copy)]
struct PendingProduct<'a, B: Block> {
    /// Which of the two decoded panels it used.
    slot: usize,
    /// The panel's number in its group.
    panel: usize,
    /// The block of each token, `blocks` apart.
    x: &'a [B::X],
    blocks: usize,
    /// The first token, how many repeat tokens of the product before, and how many there are with them.
    first: usize,
    skip: usize,
    height: usize,
}

impl<B: Block> PendingProduct<'_, B> {
    #[inline(always)]
    fn add<P: PanelSimd, D: MatrixDot<B>>(
        &self,
        simd: P,
        panels: &[D::Panel<P>; 2],
        sums: &D::MatrixSums,
        y: &mut [P::Floats; TOKEN_BLOCK],
    ) {
        let xs = self.x.iter().step_by(self.blocks);
        for (t, (y, x)) in
            y[self.first..self.first + self.height].iter_mut().zip(xs).enumerate().skip(self.skip)
        {
            *y = D::finish_matrix(&panels[self.slot], simd, x, (sums, t), *y);
        }
    }
}
