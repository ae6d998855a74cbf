//! F32: a weight is a float, little endian. `w_i = f32`
//!
//! Reads 4 B a weight; bound by memory. The sum of products of all three float formats is here.

use super::Block;
use crate::cpu::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One weight.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct F32([u8; 4]);
const _: () = assert!(size_of::<F32>() == 4);

impl Block for F32 {
    type X = F32;
    const LEN: usize = 1;

    #[inline(always)]
    fn quantise<I: Isa>(_: I, x: &[f32]) -> F32 {
        F32(x[0].to_le_bytes())
    }

    #[inline(always)]
    fn dequantise<I: Isa>(&self, _: I, y: &mut [f32]) {
        y[0] = f32::from_le_bytes(self.0);
    }

    #[inline(always)]
    fn dequantise_all<I: Isa>(isa: I, w: &[F32], out: &mut [f32]) {
        floats(isa, w, out);
    }

    #[inline(always)]
    fn dot<I: Isa, const T: usize>(isa: I, w: &[F32], x: [&[F32]; T]) -> [f32; T] {
        dot_floats(isa, w, x)
    }
}

/// A format whose weights are floats, eight of which one instruction makes f32.
pub(super) trait Eight: Pod {
    fn load<I: Isa>(isa: I, w: &[Self; 8]) -> I::Floats;
}

impl Eight for F32 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, w: &[F32; 8]) -> I::Floats {
        isa.load(bytemuck::cast_ref(w))
    }
}

/// The weights as floats.
#[inline(always)]
pub(super) fn floats<I: Isa, W: Eight + Block>(isa: I, w: &[W], out: &mut [f32]) {
    let ((eights, rest), (out, out_rest)) = (w.as_chunks(), out.as_chunks_mut());
    for (w, out) in eights.iter().zip(out) {
        isa.store(W::load(isa, w), out);
    }
    for (w, out) in rest.iter().zip(out_rest) {
        w.dequantise(isa, std::slice::from_mut(out));
    }
}

/// Sums of w_i x_i: 32 partial sums a token, each in the order of the row, so that long rows lose little.
#[inline(always)]
pub(super) fn dot_floats<I: Isa, W: Eight, const T: usize>(isa: I, w: &[W], x: [&[F32]; T]) -> [f32; T] {
    let mut acc = [[isa.splat(0.0); 4]; T];
    let (whole, rest) = w.as_chunks::<32>();
    for (i, w) in whole.iter().enumerate() {
        let w = w.as_chunks().0;
        for lane in 0..4 {
            let w = W::load(isa, &w[lane]);
            for t in 0..T {
                let x = x[t][32 * i..32 * i + 32].as_chunks().0;
                acc[t][lane] = isa.fma(w, F32::load(isa, &x[lane]), acc[t][lane]);
            }
        }
    }
    let mut sums = [0.0; T];
    for t in 0..T {
        let acc = tail(isa, acc[t], rest, &x[t][32 * whole.len()..]);
        sums[t] = isa.total(isa.add(isa.add(acc[0], acc[2]), isa.add(acc[1], acc[3])));
    }
    sums
}

/// The last columns, fewer than 32, with zeros after them.
#[inline(always)]
fn tail<I: Isa, W: Eight>(isa: I, mut acc: [I::Floats; 4], w: &[W], x: &[F32]) -> [I::Floats; 4] {
    for (lane, (w, x)) in w.chunks(8).zip(x.chunks(8)).enumerate() {
        let (mut w8, mut x8) = ([W::zeroed(); 8], [F32::zeroed(); 8]);
        w8[..w.len()].copy_from_slice(w);
        x8[..x.len()].copy_from_slice(x);
        acc[lane] = isa.fma(W::load(isa, &w8), F32::load(isa, &x8), acc[lane]);
    }
    acc
}
