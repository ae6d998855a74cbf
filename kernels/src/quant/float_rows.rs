//! Multiplies rows of the float formats (F32, F16, BF16) with f32 activations.
//!
//! A sum has 32 partial sums per token, each in the order of the row, so that long rows lose little precision.

use super::activation::F32Le;
use super::block::{Block, Gemm, Gemv, Tile};
use crate::simd::Isa;

/// A format whose weights are floats, loaded eight at a time.
pub(super) trait FloatFormat: Block<X = F32Le> {
    fn load<I: Isa>(isa: I, w: &[Self; 8]) -> I::Floats;
}

/// Converts weights to f32, eight at a time; the rest one by one.
#[inline(always)]
pub(super) fn to_f32<I: Isa, W: FloatFormat>(isa: I, w: &[W], out: &mut [f32]) {
    let ((eights, rest), (out, out_rest)) = (w.as_chunks(), out.as_chunks_mut());
    for (w, out) in eights.iter().zip(out) {
        isa.store(W::load(isa, w), out);
    }
    for (w, out) in rest.iter().zip(out_rest) {
        w.dequantize(isa, std::slice::from_mut(out));
    }
}

/// GEMV and GEMM of every [`FloatFormat`].
pub(crate) struct FloatDot;

impl<W: FloatFormat> Gemv<W> for FloatDot {
    #[inline(always)]
    fn gemv<I: Isa>(isa: I, tile: &mut Tile<'_, W>) {
        rows::<I, W, 1>(isa, tile, 0);
    }
}

impl<W: FloatFormat> Gemm<W> for FloatDot {
    /// Takes two tokens at a time: with four sums a token, two fill the registers.
    #[inline(always)]
    fn gemm<I: Isa>(isa: I, tile: &mut Tile<'_, W>) {
        let tokens = tile.tokens();
        let mut first = 0;
        while first < tokens {
            if tokens - first >= 2 {
                rows::<I, W, 2>(isa, tile, first);
                first += 2;
            } else {
                rows::<I, W, 1>(isa, tile, first);
                first += 1;
            }
        }
    }
}

/// Multiplies all rows with `T` tokens from token `first` on.
#[inline(always)]
fn rows<I: Isa, W: FloatFormat, const T: usize>(isa: I, tile: &mut Tile<'_, W>, first: usize) {
    let (cols, rows) = (tile.blocks, tile.rows);
    let mut x = [&tile.x[first * cols..][..cols]; T];
    for t in 1..T {
        x[t] = &tile.x[(first + t) * cols..][..cols];
    }
    let y = &mut tile.y[first * rows..][..T * rows];
    for (row, w) in tile.w.chunks_exact(cols).enumerate() {
        let sums = dot(isa, w, x);
        for t in 0..T {
            y[t * rows + row] = sums[t];
        }
    }
}

/// Sums of w_i x_i for `T` tokens.
#[inline(always)]
fn dot<I: Isa, W: FloatFormat, const T: usize>(isa: I, w: &[W], x: [&[F32Le]; T]) -> [f32; T] {
    let mut acc = [[isa.splat(0.0); 4]; T];
    let (whole, rest) = w.as_chunks::<32>();
    for (i, w) in whole.iter().enumerate() {
        let w = w.as_chunks::<8>().0;
        for lane in 0..4 {
            let w = W::load(isa, &w[lane]);
            for t in 0..T {
                let x = x[t][32 * i..32 * i + 32].as_chunks::<8>().0;
                acc[t][lane] = isa.fma(w, isa.load(bytemuck::cast_ref(&x[lane])), acc[t][lane]);
            }
        }
    }
    let mut sums = [0.0; T];
    for t in 0..T {
        let acc = tail(isa, acc[t], rest, &x[t][32 * whole.len()..]);
        sums[t] = isa.reduce_add(isa.add(isa.add(acc[0], acc[2]), isa.add(acc[1], acc[3])));
    }
    sums
}

/// Adds the last columns, fewer than 32, padded with zeros.
#[inline(always)]
fn tail<I: Isa, W: FloatFormat>(isa: I, mut acc: [I::Floats; 4], w: &[W], x: &[F32Le]) -> [I::Floats; 4] {
    for (lane, (w, x)) in w.chunks(8).zip(x.chunks(8)).enumerate() {
        let (mut w8, mut x8) = ([W::zeroed(); 8], [[0; 4]; 8]);
        w8[..w.len()].copy_from_slice(w);
        x8[..x.len()].copy_from_slice(x);
        acc[lane] = isa.fma(W::load(isa, &w8), isa.load(bytemuck::cast_ref(&x8)), acc[lane]);
    }
    acc
}
