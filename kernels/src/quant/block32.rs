//! Implements the dot products of formats with 32 weights per block.
//!
//! The result for a row and a token, at every SIMD level and batch size (b over blocks):
//! ```text
//! y <- fma(d_b dx_b, float(q_b . x_b), y)
//! y <- fma(m_b dx_b, float(sum(x_b)), y)                               where the format has a minimum
//! ```
//! As in `superblock`, the products are exact integers.

use super::activation::Q8x32;
use super::block::{Block, Tile};
use crate::matmul::block_dot::{BlockDot, SignedDot, SignedPanel};
use crate::matmul::matrix32;
use crate::simd::{Isa, Panel8, PanelSimd, add_scaled_dots};
use std::ops::Range;

/// A format of blocks of 32 weights.
pub(crate) trait Block32: Block<X = Q8x32> {
    /// True if quants are signed; unsigned ones have the offset `ZERO`.
    const SIGNED: bool;
    /// The largest unsigned quant, at most 128.
    const MAX_QUANT: u8 = 128;
    /// The offset of unsigned quants.
    const ZERO: i32 = 0;
    /// True if blocks have a minimum.
    const MINIMUM: bool = false;

    /// The quants of a block.
    fn quants<I: Isa>(&self, isa: I) -> I::Bytes;
    /// The same block of each row, four quants per lane.
    #[inline(always)]
    fn transpose_quants<I: Isa>(isa: I, rows: &[&Self; 16]) -> [<I::Panel as PanelSimd>::Bytes; 8] {
        let mut quants = [[0; 32]; 16];
        for r in 0..I::Panel::MR {
            isa.store_bytes(rows[r].quants(isa), &mut quants[r]);
        }
        isa.panel().transpose(&quants.each_ref())
    }
    /// d and the minimum as stored.
    fn d_and_min(&self) -> [[u8; 2]; 2];
    /// The scale d and the minimum in f32.
    #[inline(always)]
    fn scales<I: Isa>(&self, isa: I) -> [f32; 2] {
        let [d, m] = self.d_and_min();
        [isa.f16(d), isa.f16(m)]
    }
    /// d and the minimum of sixteen blocks.
    #[inline(always)]
    fn panel_scales<P: PanelSimd>(simd: P, rows: &[&Self; 16]) -> [P::Floats; 2] {
        let (mut d, mut m) = ([[0; 2]; 16], [[0; 2]; 16]);
        for r in 0..16 {
            [d[r], m[r]] = rows[r].d_and_min();
        }
        [simd.gather_f16(d), simd.gather_f16(m)]
    }
}

/// [`BlockDot`] of every [`Block32`] format.
pub(crate) struct Block32Dot;

/// The decoded block of each row of a panel.
pub(crate) struct Block32Panel<P: PanelSimd> {
    quants: [P::Bytes; 8],
    d_and_min: [P::Floats; 2],
}

impl<B: Block32> BlockDot<B> for Block32Dot {
    const MIN_SIGN: Option<f32> = if B::MINIMUM { Some(1.0) } else { None };

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &B, x: &Q8x32) -> [I::Ints; 2] {
        let (quants, values) = (w.quants(isa), isa.bytes(&x.q));
        let sum = if B::SIGNED {
            isa.dot_signed(isa.zeros(), quants, values)
        } else if B::ZERO == 0 {
            isa.dot(isa.zeros(), quants, values)
        } else {
            isa.dot(isa.set_lane0(-B::ZERO * x.sum()), quants, values)
        };
        [sum, if B::MINIMUM { isa.set_lane0(x.sum()) } else { isa.zeros() }]
    }
    #[inline(always)]
    fn scales_x8<I: Isa>(isa: I, w: [&B; 8]) -> [I::Floats; 2] {
        let [a, b, c, d, e, f, g, h] = w;
        B::panel_scales(Panel8::of(isa), &[a, b, c, d, e, f, g, h, h, h, h, h, h, h, h, h])
    }
    #[inline(always)]
    fn scales<I: Isa>(isa: I, w: &B) -> [f32; 2] {
        w.scales(isa)
    }
    #[inline(always)]
    fn act_scale(x: &Q8x32) -> f32 {
        x.d()
    }

    type Panel<P: PanelSimd> = Block32Panel<P>;

    #[inline(always)]
    fn new_panel<P: PanelSimd>(simd: P) -> Block32Panel<P> {
        Block32Panel { quants: [simd.splat_byte(0); 8], d_and_min: [simd.splat(0.0); 2] }
    }
    #[inline(always)]
    fn decode_panel<I: Isa>(isa: I, rows: &[&B; 16], out: &mut Block32Panel<I::Panel>) {
        let simd = isa.panel();
        out.quants = B::transpose_quants(isa, rows);
        if B::SIGNED {
            for i in 0..8 {
                out.quants[i] = simd.signed(out.quants[i]);
            }
        }
        out.d_and_min = B::panel_scales(simd, rows);
    }
    #[inline(always)]
    fn dot_panel<P: PanelSimd, const T: usize>(
        w: &Block32Panel<P>,
        simd: P,
        x: [&Q8x32; T],
        y: &mut [P::Floats],
    ) {
        let zero = if B::SIGNED { P::U8_BIAS } else { B::ZERO };
        let mut sums = [simd.zeros(); T];
        if zero != 0 {
            for t in 0..T {
                sums[t] = simd.splat_int(-zero * x[t].sum());
            }
        }
        let (mut fours, one) = ([[].as_slice(); T], simd.splat_int(1));
        for t in 0..T {
            fours[t] = x[t].q.as_chunks().0;
        }
        sums = if B::SIGNED {
            add_scaled_dots::<P, T, true>(simd, sums, &w.quants, fours, one)
        } else {
            simd.add_scaled_dots(sums, &w.quants, B::MAX_QUANT, fours, one)
        };
        for t in 0..T {
            let d = simd.splat(x[t].d());
            y[t] = simd.fma(simd.mul(w.d_and_min[0], d), simd.floats(sums[t]), y[t]);
            if B::MINIMUM {
                y[t] = simd.fma(simd.mul(w.d_and_min[1], d), simd.splat(x[t].sum() as f32), y[t]);
            }
        }
    }

    #[inline(always)]
    fn matrix_gemm<I: Isa>(isa: I, tile: &mut Tile<'_, B>, tokens: Range<usize>) -> bool {
        // Unsigned quants gain nothing: each token's sum needs an offset or a minimum, too.
        B::SIGNED && matrix32::gemm::<I, B, Self>(isa, tile, tokens)
    }
}

impl<B: Block32> SignedDot<B> for Block32Dot {
    #[inline(always)]
    fn signed_panel<I: Isa>(isa: I, rows: &[&B; 16]) -> SignedPanel<I::Panel> {
        let [d, _] = B::panel_scales(isa.panel(), rows);
        (B::transpose_quants(isa, rows), d)
    }
}
