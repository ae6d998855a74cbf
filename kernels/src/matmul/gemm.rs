//! GEMM microkernel: a panel of weight rows, one per SIMD lane; each block is decoded once per token batch.
//!
//! A panel has [`PanelSimd::MR`] rows, 8 or 16. Up to [`TOKEN_BLOCK`] tokens share a decoded block, so that it and
//! the activations stay in L1; [`PanelSimd::NR`] tokens at a time keep their sums in registers.

use super::IntegerDot;
use super::block_dot::BlockDot;
use crate::quant::block::{Block, Gemm, Tile};
use crate::simd::{Isa, PanelSimd};
use std::ops::Range;

/// Tokens that share a decoded block.
const TOKEN_BLOCK: usize = 64;

impl<B: Block, D: BlockDot<B>> Gemm<B> for IntegerDot<D> {
    #[inline(always)]
    fn gemm<I: Isa>(isa: I, tile: &mut Tile<'_, B>) {
        for first in (0..tile.tokens()).step_by(TOKEN_BLOCK) {
            gemm_block::<I, B, D>(isa, tile, first..tile.tokens().min(first + TOKEN_BLOCK));
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
            let mut panel_rows = [&tile.w[b]; 16];
            for (r, row) in panel_rows.iter_mut().enumerate() {
                // A partial panel repeats the last row.
                *row = &tile.w[(first + r).min(rows - 1) * blocks + b];
                if tokens.start == 0 {
                    isa.prefetch_l2(*row, I::Panel::MR * blocks * size_of::<B>());
                }
            }
            D::decode_panel(isa, &panel_rows, &mut panel);
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
        for (t, y) in tokens.clone().zip(y) {
            let mut lanes = [0.0; 16];
            simd.store(*y, &mut lanes);
            let out = &mut tile.y[t * rows..(t + 1) * rows][first..];
            let len = out.len().min(I::Panel::MR);
            out[..len].copy_from_slice(&lanes[..len]);
        }
    }
}
