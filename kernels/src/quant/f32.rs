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
    fn dot<I: Isa>(isa: I, w: &[F32], x: &[F32]) -> f32 {
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

/// Sum of w_i x_i: 32 partial sums, each in the order of the row, so that long rows lose little.
#[inline(always)]
pub(super) fn dot_floats<I: Isa, W: Eight>(isa: I, w: &[W], x: &[F32]) -> f32 {
    let mut acc = [isa.splat(0.0); 4];
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<32>(), x.as_chunks::<32>());
    for (w, x) in w.iter().zip(x) {
        let (w, x) = (w.as_chunks().0, x.as_chunks().0);
        for lane in 0..4 {
            acc[lane] = isa.fma(W::load(isa, &w[lane]), F32::load(isa, &x[lane]), acc[lane]);
        }
    }
    for (lane, (w, x)) in w_rest.chunks(8).zip(x_rest.chunks(8)).enumerate() {
        let (mut w8, mut x8) = ([W::zeroed(); 8], [F32::zeroed(); 8]);
        w8[..w.len()].copy_from_slice(w);
        x8[..x.len()].copy_from_slice(x);
        acc[lane] = isa.fma(W::load(isa, &w8), F32::load(isa, &x8), acc[lane]);
    }
    isa.total(isa.add(isa.add(acc[0], acc[2]), isa.add(acc[1], acc[3])))
}
