//! GEMM microkernel: a panel of weight rows, one per SIMD lane; each block is decoded once per token batch.
//!
//! A panel has [`PanelSimd::MR`] rows, 8 or 16. Up to [`TOKEN_BLOCK`] tokens share a decoded block, so that it and
//! the activations stay in L1; [`PanelSimd::NR`] tokens at a time keep their sums in registers. Where the machine has matrix
//! registers, super-blocks use `matrix` and signed blocks of 32 weights `matrix32`.

use super::IntegerDot;
use super::block_dot::BlockDot;
use crate::quant::block::{Block, Gemm, Tile};
use crate::simd::{Isa, PanelSimd};
use std::ops::Range;

/// Tokens that share a decoded block.
pub(super) const TOKEN_BLOCK: usize = 64;

impl<B: Block, D: BlockDot<B>> Gemm<B> for IntegerDot<D> {
    #[inline(always)]
    fn gemm<I: Isa>(isa: I, tile: &mut Tile<'_, B>) {
        for first in (0..tile.tokens()).step_by(TOKEN_BLOCK) {
            let tokens = first..tile.tokens().min(first + TOKEN_BLOCK);
            if !D::matrix_gemm(isa, tile, tokens.clone()) {
                gemm_block::<I, B, D>(isa, tile, tokens);
            }
        }
    }
}

#[inline(always)]
fn gemm_block<I: Isa, B: Block, D: BlockDot<B>>(isa: I, tile: &mut Tile<'_, B>, tokens: Range<usize>) {
    let (blocks, rows, simd) = (tile.blocks, tile.rows, isa.panel());
    let mut panel = D::new_panel(simd);
    for first in (0..rows).step_by(I::Panel::MR) {
        let mut y = [simd.splat(0.0); TOKEN_BLOCK];
        let y = &mut y[..tokens.len()];
        for b in 0..blocks {
            let next = if tokens.start == 0 { I::Panel::MR * blocks } else { 0 };
            decode::<I, B, D>(isa, tile, (first, b), next, &mut panel);
            let x = |t: usize| &tile.x[(tokens.start + t) * blocks + b];
            let mut t = 0;
            while t < y.len() {
                let y = &mut y[t..];
                if I::Panel::NR >= 8 && y.len() >= 8 {
                    let x = [x(t), x(t + 1), x(t + 2), x(t + 3), x(t + 4), x(t + 5), x(t + 6), x(t + 7)];
                    D::dot_panel::<_, 8>(&panel, simd, x, y);
                    t += 8;
                } else if y.len() >= 4 {
                    D::dot_panel::<_, 4>(&panel, simd, [x(t), x(t + 1), x(t + 2), x(t + 3)], y);
                    t += 4;
                } else {
                    D::dot_panel::<_, 1>(&panel, simd, [x(t)], y);
                    t += 1;
                }
            }
        }
        put::<I::Panel, B>(simd, tile, first, tokens.start, y);
    }
}

/// Decodes block b of the panel of rows from `first` on; prefetches the block that is `ahead` blocks later if not 0.
#[inline(always)]
pub(super) fn decode<I: Isa, B: Block, D: BlockDot<B>>(
    isa: I,
    tile: &Tile<'_, B>,
    (first, b): (usize, usize),
    ahead: usize,
    panel: &mut D::Panel<I::Panel>,
) {
    D::decode_panel(isa, &panel_rows(isa, tile, (first, b), ahead), panel);
}

/// Block b of each row of the panel from row `first` on; prefetches the block that is `ahead` blocks later if not 0.
#[inline(always)]
pub(super) fn panel_rows<'a, I: Isa, B: Block>(
    isa: I,
    tile: &Tile<'a, B>,
    (first, b): (usize, usize),
    ahead: usize,
) -> [&'a B; 16] {
    let mut rows = [&tile.w[b]; 16];
    for (r, row) in rows.iter_mut().enumerate() {
        // A partial panel repeats the last row.
        *row = &tile.w[(first + r).min(tile.rows - 1) * tile.blocks + b];
        if ahead > 0 {
            isa.prefetch_l2(*row, ahead * size_of::<B>());
        }
    }
    rows
}

/// Writes the sums of a panel's rows, from `first` on, for the tokens from `start` on.
#[inline(always)]
pub(super) fn put<P: PanelSimd, B: Block>(
    simd: P,
    tile: &mut Tile<'_, B>,
    first: usize,
    start: usize,
    y: &[P::Floats],
) {
    let rows = tile.rows;
    for (t, y) in y.iter().enumerate() {
        let mut lanes = [0.0; 16];
        simd.store(*y, &mut lanes);
        let out = &mut tile.y[(start + t) * rows..(start + t + 1) * rows][first..];
        let len = out.len().min(P::MR);
        out[..len].copy_from_slice(&lanes[..len]);
    }
}
