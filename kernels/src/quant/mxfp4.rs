//! MXFP4: 32 weights in 17 bytes, 4.25 bits per weight: four-bit floats with a power of two as scale.
//!
//! ```text
//! byte 0    1        17
//!      | e  | q 16 B |           w_i = 2^(e - 128) CODEBOOK[q_i]
//!
//! q, byte b = 0..16:   bits 3..0 = q[b],  bits 7..4 = q[16 + b]
//! q_i:                 bit 3 = sign,  bits 2..1 = exponent,  bit 0 = fraction  (E2M1)
//! ```
//! The codebook holds twice the E2M1 values, which makes them integers; hence 128 where the standard has 127.

use super::activation::Q8x32;
use super::block::Block;
use super::block32::{Block32, Block32Dot};
use super::minmax::nibbles;
use crate::matmul::IntegerDot;
use crate::simd::{Isa, PanelSimd, to_int};
use bytemuck::{Pod, Zeroable};
use std::array::from_fn;
use std::ops::Range;

/// Twice the values of the sixteen quants.
const CODEBOOK: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 weights: the exponent of their scale and indices into [`CODEBOOK`].
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Mxfp4 {
    e: u8,
    q: [u8; 16],
}
const _: () = assert!(size_of::<Mxfp4>() == 17);

/// 2^(e - 128) for each e: the two smallest are subnormal.
const SCALES: [f32; 256] = {
    let mut scales = [0.0; 256];
    let mut e = 0;
    while e < 256 {
        scales[e] = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 });
        e += 1;
    }
    scales
};

/// The quant nearest to x; the first of two equally near.
#[inline(always)]
fn nearest(x: f32, d: f32) -> u8 {
    let (mut best, mut least) = (0, x.abs());
    for (i, &level) in CODEBOOK.iter().enumerate() {
        let error = (level as f32 * d - x).abs();
        if error < least {
            (best, least) = (i as u8, error);
        }
    }
    best
}

impl Block for Mxfp4 {
    type X = Q8x32;
    type Dot = IntegerDot<Block32Dot>;
    const LEN: usize = 32;
    const CUDA_PLANES: &'static [Range<usize>] = &[1..17, 0..1];

    #[inline(always)]
    fn quantize<I: Isa>(_: I, x: &[f32]) -> Mxfp4 {
        let most = super::minmax::furthest(x).abs();
        let e = if most > 0.0 { to_int(most.log2().floor() - 2.0 + 127.0) as u8 } else { 0 };
        let d = SCALES[e as usize];
        Mxfp4 { e, q: nibbles(&from_fn(|i| nearest(x[i], d))) }
    }

    #[inline(always)]
    fn dequantize<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let d = SCALES[self.e as usize];
        let mut q = [0; 32];
        isa.store_bytes(isa.nibbles(&self.q), &mut q);
        for (y, q) in y.iter_mut().zip(q) {
            *y = CODEBOOK[q as usize] as f32 * d;
        }
    }
}

impl Block32 for Mxfp4 {
    const SIGNED: bool = true;

    #[inline(always)]
    fn quants<I: Isa>(&self, isa: I) -> I::Bytes {
        isa.table_lookup(&CODEBOOK, isa.nibbles(&self.q))
    }
    #[inline(always)]
    fn d_and_min(&self) -> [[u8; 2]; 2] {
        [[0; 2]; 2]
    }
    #[inline(always)]
    fn scales<I: Isa>(&self, _: I) -> [f32; 2] {
        [SCALES[self.e as usize], 0.0]
    }
    #[inline(always)]
    fn panel_scales<L: PanelSimd>(l: L, rows: &[&Mxfp4; 16]) -> [L::Floats; 2] {
        let mut d = [0.0; 16];
        for r in 0..16 {
            d[r] = SCALES[rows[r].e as usize];
        }
        [l.load(&d), l.splat(0.0)]
    }
}
