//! Defines what a format implements for one block, and the tile of rows and tokens that products work on.

use crate::simd::{Isa, Kernel};
use bytemuck::Pod;
use std::ops::Range;

/// One block of a format.
pub(crate) trait Block: Pod {
    /// The activations that one block is multiplied with.
    type X: super::activation::ActivationBlock;
    /// The GEMV and GEMM kernels.
    type Dot: Gemv<Self> + Gemm<Self>;
    /// Weights per block: 1, 32 or 256.
    const LEN: usize;
    /// Byte ranges that a GPU stores as planes; see [`super::Format::cuda_planes`].
    const CUDA_PLANES: &'static [Range<usize>];

    /// The block of `LEN` weights, as ggml would make it.
    fn quantize<I: Isa>(isa: I, x: &[f32]) -> Self;
    /// The `LEN` weights of a block.
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]);

    /// Quantizes many blocks; overridden where a scale search runs over several blocks at once.
    #[inline(always)]
    fn quantize_all<I: Isa>(isa: I, x: &[f32], out: &mut [Self]) {
        for (x, out) in x.chunks_exact(Self::LEN).zip(out) {
            *out = Self::quantize(isa, x);
        }
    }

    /// Quantizes the blocks of one row so that errors weighted by `importance`, a number per weight, are small. Formats
    /// that derive their scales without a search ignore it.
    #[inline(always)]
    fn quantize_weighted<I: Isa>(isa: I, x: &[f32], importance: &[f32], out: &mut [Self]) {
        let _ = importance;
        Self::quantize_all(isa, x, out);
    }

    /// Moves the scales of the blocks of one row towards a smaller squared error weighted by `weight`, a number per weight, with
    /// the nearest quants. Formats without an override keep what their quantizer found.
    #[inline(always)]
    fn refine_all<I: Isa>(isa: I, x: &[f32], weight: &[f32], blocks: &mut [Self]) {
        let _ = (isa, x, weight, blocks);
    }

    /// Dequantizes many blocks; overridden where several blocks fill a register.
    #[inline(always)]
    fn dequantize_all<I: Isa>(isa: I, w: &[Self], out: &mut [f32]) {
        for (w, out) in w.iter().zip(out.chunks_exact_mut(Self::LEN)) {
            w.dequantize(isa, out);
        }
    }
}

/// The blocks of a row, each with its importance. Quantizers loop over these: a closure as large as a scale search is not
/// inlined, and would be compiled without the vectors of the instruction set.
#[inline(always)]
pub(crate) fn weighted_blocks<'a, B: Block>(
    x: &'a [f32],
    importance: &'a [f32],
) -> impl Iterator<Item = (&'a [f32], &'a [f32])> {
    x.chunks_exact(B::LEN).zip(importance.chunks_exact(B::LEN))
}

/// The product of a format's rows with one token.
pub(crate) trait Gemv<B: Block> {
    /// Multiplies all rows with the tile's one token.
    fn gemv<I: Isa>(isa: I, tile: &mut Tile<'_, B>);
}

/// The product of a format's rows with several tokens.
pub(crate) trait Gemm<B: Block> {
    /// Multiplies all rows with all tokens of the tile.
    fn gemm<I: Isa>(isa: I, tile: &mut Tile<'_, B>);
}

/// Weight rows and activation rows to multiply.
pub(crate) struct Tile<'a, B: Block> {
    /// Blocks of the weights, row after row.
    pub(crate) w: &'a [B],
    /// Blocks of the activations, token after token.
    pub(crate) x: &'a [B::X],
    /// Blocks of a row, at least one.
    pub(crate) blocks: usize,
    pub(crate) rows: usize,
    /// Dot products, one per token and row: `[tokens, rows]`.
    pub(crate) y: &'a mut [f32],
}

impl<B: Block> Tile<'_, B> {
    pub(crate) fn tokens(&self) -> usize {
        self.x.len() / self.blocks
    }
}

impl<B: Block> Kernel for Tile<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        if self.tokens() == 1 { B::Dot::gemv(isa, &mut self) } else { B::Dot::gemm(isa, &mut self) }
    }
}
