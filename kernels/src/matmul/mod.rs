//! Multiplies quantised weight rows with quantised activations: GEMV for one token, GEMM for several.
//!
//! A format implements [`BlockDot`] through `quant::superblock` (256 weights) or `quant::block32` (32 weights). The
//! result for a token is the same bits with either kernel. Next: [`gemv`] (decode), [`gemm`] (prefill).

pub(crate) mod block_dot;
mod gemm;
mod gemv;

use crate::quant::block::{Block, Tile};
use crate::simd::Isa;
use block_dot::BlockDot;

/// Multiplies all rows of a tile with all its tokens.
#[inline(always)]
pub(crate) fn matmul<I: Isa, B: Block, D: BlockDot<B>>(isa: I, tile: &mut Tile<'_, B>) {
    if tile.tokens() == 1 { gemv::gemv::<I, B, D>(isa, tile) } else { gemm::gemm::<I, B, D>(isa, tile) }
}
