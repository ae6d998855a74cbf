//! GEMM with matrix registers for signed blocks of 32 weights: one product of K = 32 per block, whose sums are scaled at once.
//!
//! The float sums of sixteen tokens stay in registers over a run of blocks. A product is issued before the sums of the one
//! before are read, so that products and scaling overlap. The results have the bits of [`super::gemm`].

use super::block_dot::SignedDot;
use super::gemm::{TOKEN_BLOCK, panel_rows, put};
use crate::quant::Q8x32;
use crate::quant::block::{Block, Tile};
use crate::simd::{Isa, MatrixSimd, MatrixTokens, PanelSimd, PanelSums};
use std::ops::Range;

/// Tokens that a product multiplies.
const TOKENS: usize = 16;
/// Tokens from which a last product that repeats most of its tokens costs less than the plain kernel.
const MANY: usize = 41;
/// Blocks of a panel that are decoded before they are multiplied: with their activations they stay in L1.
const RUN: usize = 16;
/// Bytes that are prefetched in each row.
const AHEAD: usize = 512;

/// The decoded run of blocks of a panel, and the scale of each row.
struct PanelRun<P: PanelSimd> {
    quants: [[P::Bytes; 8]; RUN],
    scales: [P::Floats; RUN],
}

/// Multiplies these tokens with matrix registers if the machine has them and they are faster; otherwise returns false.
#[inline(always)]
pub(crate) fn gemm<I: Isa, B: Block<X = Q8x32>, D: SignedDot<B>>(
    isa: I,
    tile: &mut Tile<'_, B>,
    tokens: Range<usize>,
) -> bool {
    let (blocks, n, simd) = (tile.blocks, tokens.len(), isa.panel());
    if n < TOKENS || !n.is_multiple_of(TOKENS) && n < MANY {
        return false;
    }
    let Some(registers) = simd.matrix(TOKENS) else { return false };
    let (zero, mut sums) = (simd.splat(0.0), [PanelSums::ZERO; 2]);
    let mut run = PanelRun { quants: [[simd.splat_byte(0); 8]; RUN], scales: [zero; RUN] };
    let ahead = if tokens.start == 0 { AHEAD / size_of::<B>() } else { 0 };
    for first in (0..tile.rows).step_by(I::Panel::MR) {
        let mut y = [zero; TOKEN_BLOCK];
        for start in (0..blocks).step_by(RUN) {
            let len = RUN.min(blocks - start);
            for b in 0..len {
                let rows = panel_rows(isa, tile, (first, start + b), ahead);
                (run.quants[b], run.scales[b]) = D::signed_panel(isa, &rows);
            }
            for from in (0..n).step_by(TOKENS) {
                // The last product repeats tokens of the one before, whose sums are dropped.
                let token = from.min(n - TOKENS);
                let x = &tile.x[(tokens.start + token) * blocks + start..];
                let y: &mut [_; TOKENS] = y[token..].first_chunk_mut().expect("sixteen tokens");
                let added = multiply::<I::Panel>(simd, (&registers, &mut sums), &run, len, (x, blocks), *y);
                y[from - token..].copy_from_slice(&added[from - token..]);
            }
        }
        put::<I::Panel, B>(simd, tile, first, tokens.start, &y[..n]);
    }
    true
}

/// Adds the products of `len` blocks with sixteen tokens, whose blocks are `x.1` apart, to their sums.
#[inline(always)]
fn multiply<P: PanelSimd>(
    simd: P,
    (registers, sums): (&P::Matrix, &mut [PanelSums; 2]),
    run: &PanelRun<P>,
    len: usize,
    (x, step): (&[Q8x32], usize),
    mut y: [P::Floats; TOKENS],
) -> [P::Floats; TOKENS] {
    product::<P>(registers, &run.quants[0], x, step, &mut sums[0]);
    for b in 0..len {
        if b + 1 < len {
            product::<P>(registers, &run.quants[b + 1], &x[b + 1..], step, &mut sums[(b + 1) % 2]);
        }
        for t in 0..TOKENS {
            let factor = simd.mul(run.scales[b], simd.splat(x[t * step + b].d()));
            y[t] = simd.fma(factor, simd.floats(simd.load_ints(&sums[b % 2].0[t])), y[t]);
        }
    }
    y
}

/// Sums of a block of each row with the block of each token.
#[inline(always)]
fn product<P: PanelSimd>(
    registers: &P::Matrix,
    w: &[P::Bytes; 8],
    x: &[Q8x32],
    step: usize,
    sums: &mut PanelSums,
) {
    let bytes = &bytemuck::cast_slice(x)[Q8x32::QUANTS..];
    registers.dot_32(MatrixTokens { bytes, step: step * size_of::<Q8x32>() }, w, sums);
}
