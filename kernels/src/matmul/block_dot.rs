//! Declares what the GEMV and GEMM kernels need from a block format. Next: `quant::q8_0`, the plainest format.

use crate::quant::Q8x32;
use crate::quant::block::{Block, Tile};
use crate::simd::{Isa, PanelSimd};
use std::ops::Range;

/// Dot products of one kind of block with its activations.
pub(crate) trait BlockDot<B: Block> {
    /// The sign with which a second term (the minimum) is added, for formats that have one.
    const MIN_SIGN: Option<f32>;

    /// GEMV: eight partial sums of the quants' dot product, and of the second term.
    fn sums<I: Isa>(isa: I, w: &B, x: &B::X) -> [I::Ints; 2];
    /// The sums of eight blocks; overridden where an instruction of one block waits long for another of it.
    #[inline(always)]
    fn sums_x8<I: Isa>(isa: I, w: &[B; 8], x: &[B::X; 8]) -> [[I::Ints; 8]; 2] {
        let mut sums = [[isa.zeros(); 8]; 2];
        for i in 0..8 {
            [sums[0][i], sums[1][i]] = Self::sums(isa, &w[i], &x[i]);
        }
        sums
    }
    /// The scales of eight blocks, and of their second terms.
    fn scales_x8<I: Isa>(isa: I, w: [&B; 8]) -> [I::Floats; 2];
    /// The scale of a block, and of its second term.
    fn scales<I: Isa>(isa: I, w: &B) -> [f32; 2];
    /// The scale of an activation block.
    fn act_scale(x: &B::X) -> f32;

    /// GEMM: the decoded blocks of a row panel, one row per SIMD lane.
    type Panel<P: PanelSimd>;
    /// Makes a panel of zeros, for [`BlockDot::decode_panel`] to fill.
    fn new_panel<P: PanelSimd>(simd: P) -> Self::Panel<P>;
    /// Decodes the same block of each row.
    fn decode_panel<I: Isa>(isa: I, rows: &[&B; 16], out: &mut Self::Panel<I::Panel>);
    /// Adds the dot products with `T` tokens to their sums.
    fn dot_panel<P: PanelSimd, const T: usize>(
        w: &Self::Panel<P>,
        simd: P,
        x: [&B::X; T],
        y: &mut [P::Floats],
    );

    /// GEMM with matrix registers, overridden where they are faster than [`BlockDot::dot_panel`]; false if it did nothing.
    #[inline(always)]
    fn matrix_gemm<I: Isa>(_: I, _: &mut Tile<'_, B>, _: Range<usize>) -> bool {
        false
    }
}

/// Dot products with matrix registers.
pub(crate) trait MatrixDot<B: Block>: BlockDot<B> {
    /// A panel in the form that the registers multiply, and integer sums for sixteen tokens.
    type Matrix<P: PanelSimd>;
    type MatrixSums;
    /// Makes a matrix of zeros, for [`MatrixDot::prepare_matrix`] to fill.
    fn new_matrix<P: PanelSimd>(simd: P) -> Self::Matrix<P>;
    fn new_sums() -> Self::MatrixSums;
    /// Prepares the decoded blocks of a panel.
    fn prepare_matrix<P: PanelSimd>(w: &Self::Panel<P>, simd: &P::Matrix, out: &mut Self::Matrix<P>);
    /// Multiplies a prepared panel with a block of several tokens, which are `step` blocks apart.
    fn multiply_matrix<P: PanelSimd>(
        w: &Self::Matrix<P>,
        simd: &P::Matrix,
        x: &[B::X],
        step: usize,
        sums: &mut Self::MatrixSums,
    );
    /// Adds the dot product of token `t` of a multiplied matrix to its sum.
    fn finish_matrix<P: PanelSimd>(
        w: &Self::Panel<P>,
        simd: P,
        x: &B::X,
        sums: (&Self::MatrixSums, usize),
        y: P::Floats,
    ) -> P::Floats;
}

/// Dot products of signed quants in blocks of 32 weights with matrix registers.
pub(crate) trait SignedDot<B: Block<X = Q8x32>>: BlockDot<B> {
    /// The quants of the same block of each row, four per lane, and the scale of each.
    fn signed_panel<I: Isa>(isa: I, rows: &[&B; 16]) -> SignedPanel<I::Panel>;
}

/// Quants and scales of a panel's rows.
pub(crate) type SignedPanel<P> = ([<P as PanelSimd>::Bytes; 8], <P as PanelSimd>::Floats);
