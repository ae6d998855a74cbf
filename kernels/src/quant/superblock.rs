//! Implements the dot products of formats with 256 weights per block (super-blocks).
//!
//! The result for a row and a token, at every SIMD level and batch size (b over super-blocks, j over sub-blocks):
//! ```text
//! y <- fma(d_b dx_b, float(sum_j sc_j (q_j . x_j)), y)
//! y <- fma(dmin_b -dx_b, float(sum_j m_j sum(x_j)), y)                 where the format has minima
//! ```
//! The terms in brackets are exact integers, so the order of their sums does not matter: GEMM decodes a panel of rows
//! once ([`SuperBlockPanel`]), GEMV works on the stored rows.

use super::activation::Q8x256;
use super::block::{Block, Tile};
use crate::matmul::block_dot::{BlockDot, MatrixDot};
use crate::matmul::matrix;
use crate::simd::{Isa, MatrixSimd, MatrixTokens, PanelSimd, PanelSums, add_scaled_dots};
use std::mem::offset_of;
use std::ops::Range;

/// How a format represents negative weights.
pub(super) enum Offset {
    /// Each sub-block has a minimum, in units of `dmin`.
    Minima,
    /// Unsigned quants with this offset.
    Zero(i32),
    /// Signed quants, which need no correction.
    Signed,
}

/// A format of super-blocks of 256 weights.
pub(crate) trait SuperBlock: Block<X = Q8x256> {
    /// Sub-blocks with a scale each: 8 or 16.
    const SUBS: usize;
    /// How negative weights are represented.
    const OFFSET: Offset;
    /// The largest unsigned quant of a decoded panel, at most 128.
    const MAX_QUANT: u8 = 128;
    /// The unit of d, a power of two.
    const UNIT: f32 = 1.0;
    /// Tokens from which preparing a panel for matrix registers pays, measured (kernels/benches/NOTES.md).
    const MATRIX_TOKENS: usize = 16;

    /// Decodes the same block of each row.
    fn decode_panel<I: Isa>(isa: I, rows: &[&Self; 16], out: &mut SuperBlockPanel<I::Panel>);
    /// Eight partial sums of `sum_j sc_j (q_j . x_j)`, and of `sum_j m_j sum(x_j)`.
    fn sums<I: Isa>(isa: I, w: &Self, x: &Q8x256) -> [I::Ints; 2];
    /// The sums of eight blocks; see [`BlockDot::sums_x8`].
    #[inline(always)]
    fn sums_x8<I: Isa>(isa: I, w: &[Self; 8], x: &[Q8x256; 8]) -> [[I::Ints; 8]; 2] {
        let mut sums = [[isa.zeros(); 8]; 2];
        for i in 0..8 {
            [sums[0][i], sums[1][i]] = Self::sums(isa, &w[i], &x[i]);
        }
        sums
    }
    /// d and dmin as stored; dmin is 0 in formats without minima.
    fn d_and_min(&self) -> [[u8; 2]; 2];
}

/// [`BlockDot`] of every [`SuperBlock`] format.
pub(crate) struct SuperBlockDot;

/// The decoded super-block of each row of a panel.
pub(crate) struct SuperBlockPanel<P: PanelSimd> {
    /// Four quants per lane; signed ones biased by [`PanelSimd::U8_BIAS`].
    pub(super) quants: [P::Bytes; 64],
    /// The scale of each sub-block.
    pub(super) scales: [P::Ints; 16],
    /// Factors of the activation sums, two per lane: minima, or scales where quants have an offset.
    pub(super) pairs: [P::Ints; 8],
    /// d and dmin in f32, one value per row.
    pub(super) d_and_min: [P::Floats; 2],
}

/// A panel for matrix registers: quants times their scales, in 16 bits, split into low (unsigned) and high (signed) bytes,
/// so that `sum_j sc_j (q_j . x_j)` is two sums over all 256 columns.
pub(crate) struct SuperBlockMatrix<P: PanelSimd> {
    low: [P::Bytes; 64],
    high: [P::Bytes; 64],
}

/// Thirty-two bytes of each row's block, from byte `AT` on.
#[inline(always)]
pub(super) fn window<'a, B: Block, const AT: usize>(rows: &[&'a B; 16]) -> [&'a [u8; 32]; 16] {
    let mut out = [&[0; 32]; 16];
    for (out, row) in out.iter_mut().zip(rows) {
        *out = bytemuck::bytes_of(*row)[AT..].first_chunk().expect("inside a block");
    }
    out
}

/// Decodes sixteen scales, four bytes of each row at a time: signed, or six bits with an offset of 32.
#[inline(always)]
pub(super) fn decode_16_scales<P: PanelSimd>(
    simd: P,
    sc: [P::Bytes; 4],
    higher: bool,
    out: &mut SuperBlockPanel<P>,
) {
    for j in 0..16 {
        out.scales[j] = if higher {
            simd.add(simd.unsigned_byte(sc[j / 4], j % 4), simd.splat_int(-32))
        } else {
            simd.signed_byte(sc[j / 4], j % 4)
        };
    }
    for p in 0..8 {
        out.pairs[p] = simd.pair(out.scales[2 * p], out.scales[2 * p + 1]);
    }
}

impl<P: PanelSimd> SuperBlockPanel<P> {
    #[inline(always)]
    fn new(simd: P) -> Self {
        let (bytes, ints, floats) = (simd.splat_byte(0), simd.zeros(), simd.splat(0.0));
        SuperBlockPanel { quants: [bytes; 64], scales: [ints; 16], pairs: [ints; 8], d_and_min: [floats; 2] }
    }

    /// Adds the products with `T` tokens to their sums.
    #[inline(always)]
    fn dot_panel<B: SuperBlock, const T: usize>(&self, simd: P, x: [&Q8x256; T], y: &mut [P::Floats]) {
        let mut totals = [simd.zeros(); T];
        let len = 64 / B::SUBS;
        for j in 0..B::SUBS {
            let columns = j * len..(j + 1) * len;
            let (w, mut fours) = (&self.quants[columns.clone()], [[].as_slice(); T]);
            for t in 0..T {
                fours[t] = &x[t].q.as_flattened().as_chunks().0[columns.clone()];
            }
            totals = match B::OFFSET {
                Offset::Signed => add_scaled_dots::<P, T, true>(simd, totals, w, fours, self.scales[j]),
                _ => simd.add_scaled_dots(totals, w, B::MAX_QUANT, fours, self.scales[j]),
            };
        }
        for t in 0..T {
            y[t] = self.finish::<B>(simd, x[t], totals[t], y[t]);
        }
    }

    #[inline(always)]
    fn finish<B: SuperBlock>(&self, simd: P, x: &Q8x256, total: P::Ints, y: P::Floats) -> P::Floats {
        let zero = match B::OFFSET {
            Offset::Minima => 0,
            Offset::Zero(zero) => zero,
            Offset::Signed => P::U8_BIAS,
        };
        let minima = matches!(B::OFFSET, Offset::Minima);
        let (mut total, mut offset) = (total, simd.zeros());
        if minima || zero != 0 {
            for p in 0..8 {
                offset = simd.dot_pairs(offset, self.pairs[p], x.sums.as_chunks().0[p]);
            }
        }
        if zero != 0 {
            total = simd.mul_add(total, offset, simd.splat_int(-zero));
        }
        let y = simd.fma(simd.mul(self.d_and_min[0], simd.splat(x.d())), simd.floats(total), y);
        if !minima {
            return y;
        }
        simd.fma(simd.mul(self.d_and_min[1], simd.splat(-x.d())), simd.floats(offset), y)
    }
}

impl<B: SuperBlock> BlockDot<B> for SuperBlockDot {
    const MIN_SIGN: Option<f32> = if matches!(B::OFFSET, Offset::Minima) { Some(-1.0) } else { None };

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &B, x: &Q8x256) -> [I::Ints; 2] {
        B::sums(isa, w, x)
    }
    #[inline(always)]
    fn sums_x8<I: Isa>(isa: I, w: &[B; 8], x: &[Q8x256; 8]) -> [[I::Ints; 8]; 2] {
        B::sums_x8(isa, w, x)
    }
    #[inline(always)]
    fn scales_x8<I: Isa>(isa: I, w: [&B; 8]) -> [I::Floats; 2] {
        let (mut d, mut dmin) = ([[0; 2]; 8], [[0; 2]; 8]);
        for i in 0..8 {
            [d[i], dmin[i]] = w[i].d_and_min();
        }
        [isa.mul(isa.gather_f16(d), isa.splat(B::UNIT)), isa.gather_f16(dmin)]
    }
    #[inline(always)]
    fn scales<I: Isa>(isa: I, w: &B) -> [f32; 2] {
        let [d, dmin] = w.d_and_min();
        [isa.f16(d) * B::UNIT, isa.f16(dmin)]
    }
    #[inline(always)]
    fn act_scale(x: &Q8x256) -> f32 {
        x.d()
    }

    type Panel<P: PanelSimd> = SuperBlockPanel<P>;

    #[inline(always)]
    fn new_panel<P: PanelSimd>(simd: P) -> SuperBlockPanel<P> {
        SuperBlockPanel::new(simd)
    }
    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&B; 16], out: &mut SuperBlockPanel<I::Panel>) {
        B::decode_panel(isa, rows, out);
    }
    #[inline(always)]
    fn dot_panel<P: PanelSimd, const T: usize>(
        w: &SuperBlockPanel<P>,
        simd: P,
        x: [&Q8x256; T],
        y: &mut [P::Floats],
    ) {
        w.dot_panel::<B, T>(simd, x, y);
    }

    #[inline(always)]
    fn matrix_gemm<I: Isa>(isa: I, tile: &mut Tile<'_, B>, tokens: Range<usize>) -> bool {
        tokens.len() >= B::MATRIX_TOKENS && matrix::gemm::<I, B, Self>(isa, tile, tokens)
    }
}

impl<B: SuperBlock> MatrixDot<B> for SuperBlockDot {
    type Matrix<P: PanelSimd> = SuperBlockMatrix<P>;
    /// Sums of the low and of the high bytes.
    type MatrixSums = [PanelSums; 2];

    #[inline(always)]
    fn new_matrix<P: PanelSimd>(simd: P) -> SuperBlockMatrix<P> {
        let bytes = [simd.splat_byte(0); 64];
        SuperBlockMatrix { low: bytes, high: bytes }
    }
    #[inline(always)]
    fn new_sums() -> [PanelSums; 2] {
        [PanelSums::ZERO; 2]
    }
    #[inline(always)]
    fn prepare_matrix<P: PanelSimd>(w: &SuperBlockPanel<P>, simd: &P::Matrix, out: &mut SuperBlockMatrix<P>) {
        for i in 0..64 {
            [out.low[i], out.high[i]] = simd.scaled(w.quants[i], w.scales[i * B::SUBS / 64]);
        }
    }
    #[inline(always)]
    fn multiply_matrix<P: PanelSimd>(
        w: &SuperBlockMatrix<P>,
        simd: &P::Matrix,
        x: &[Q8x256],
        step: usize,
        sums: &mut [PanelSums; 2],
    ) {
        let bytes = &bytemuck::cast_slice(x)[offset_of!(Q8x256, q)..];
        let tokens = MatrixTokens { bytes, step: step * size_of::<Q8x256>() };
        simd.dot_256(tokens, [&w.low, &w.high], sums);
    }
    #[inline(always)]
    fn finish_matrix<P: PanelSimd>(
        w: &SuperBlockPanel<P>,
        simd: P,
        x: &Q8x256,
        ([low, high], t): (&[PanelSums; 2], usize),
        y: P::Floats,
    ) -> P::Floats {
        let (low, high) = (simd.load_ints(&low.0[t]), simd.load_ints(&high.0[t]));
        w.finish::<B>(simd, x, simd.mul_add(low, high, simd.splat_int(256)), y)
    }
}
