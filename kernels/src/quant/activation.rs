//! Quantizes activations into the types that weights are multiplied with (ggml's `vec_dot_type`).
//!
//! These types never appear in a file. The scale is f32, so no activation overflows it, and the sums of the quants are
//! stored with them for formats whose weights have a minimum or an offset: sum (w - o) x = sum w x - o sum x.
//!
//! ```text
//! Q8x32   | d f32 | sum i32 | q 32 x i8 |                     x_i = d q_i,   sum = sum q_i
//! Q8x256  | d f32 | sums 16 x i16 | 28 zeros | q 256 x i8 |   sums_j = sum of q over 16 values
//! ```
//! Quants are in -127..=127. A NaN or an infinity in a block makes its scale NaN or infinite.

use super::cast;
use crate::simd::{Isa, Kernel, SimdLevel};
use bytemuck::{Pod, Zeroable};

/// The type of the activations that a format is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Unquantized floats, little endian, for the float formats.
    F32,
    /// Blocks of 32 with one scale, for formats with 32 weights per block.
    Q8x32,
    /// Blocks of 256 with one scale, for formats with 256 weights per block.
    Q8x256,
}

impl Activation {
    /// Bytes of a row of `cols` values, which must be whole blocks.
    pub const fn row_bytes(self, cols: usize) -> usize {
        let (len, bytes) = match self {
            Activation::F32 => (1, 4),
            Activation::Q8x32 => (32, size_of::<Q8x32>()),
            Activation::Q8x256 => (256, size_of::<Q8x256>()),
        };
        assert!(cols.is_multiple_of(len), "a row is whole blocks");
        cols / len * bytes
    }

    /// Quantizes one row or several contiguous rows; the same bytes at every [`SimdLevel`].
    ///
    /// # Panics
    /// If `x` is not whole blocks, or `out` is not `row_bytes(x.len())`.
    pub fn quantize_row(self, level: SimdLevel, x: &[f32], out: &mut [u8]) {
        assert_eq!(out.len(), self.row_bytes(x.len()), "bytes of {} activations", x.len());
        match self {
            Activation::F32 => {
                for (out, x) in out.as_chunks_mut().0.iter_mut().zip(x) {
                    *out = x.to_le_bytes();
                }
            }
            Activation::Q8x32 => level.run(Quantize32 { x, out: cast::many_mut(out) }),
            Activation::Q8x256 => level.run(Quantize256 { x, out: cast::many_mut(out) }),
        }
    }
}

/// One f32 activation, little endian.
pub(crate) type F32Le = [u8; 4];

/// One block of an activation type, as it lies in memory.
pub(crate) trait ActivationBlock: Pod {
    const ACTIVATION: Activation;
}

impl ActivationBlock for F32Le {
    const ACTIVATION: Activation = Activation::F32;
}

impl ActivationBlock for Q8x32 {
    const ACTIVATION: Activation = Activation::Q8x32;
}

impl ActivationBlock for Q8x256 {
    const ACTIVATION: Activation = Activation::Q8x256;
}

/// 32 activations in 40 bytes: the scale, the sum of the quants, the quants.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q8x32 {
    pub(super) d: [u8; 4],
    pub(super) sum: [u8; 4],
    pub(crate) q: [u8; 32],
}
const _: () = assert!(size_of::<Q8x32>() == 40);

/// 256 activations in 320 bytes: the scale, the quants' sums over 16, the quants, in whole cache lines because a load
/// of 64 bytes that crosses one takes twice the time.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q8x256 {
    pub(super) d: [u8; 4],
    pub(super) sums: [u8; 32],
    padding: [u8; 28],
    pub(super) q: [[u8; 32]; 8],
}
const _: () = assert!(size_of::<Q8x256>() == 320);

impl Q8x32 {
    /// Offset of the quants in bytes.
    pub(crate) const QUANTS: usize = std::mem::offset_of!(Q8x32, q);

    #[inline(always)]
    pub(crate) fn d(&self) -> f32 {
        f32::from_le_bytes(self.d)
    }
    #[inline(always)]
    pub(crate) fn sum(&self) -> i32 {
        i32::from_le_bytes(self.sum)
    }
}

/// 32 signed quants with one scale.
pub(crate) trait Int8Block: Pod {
    /// The scale of all 32 quants.
    fn scale<I: Isa>(&self, isa: I) -> f32;
    /// Quants in -127..=127, two's complement.
    fn quants(&self) -> &[u8; 32];
}

impl Int8Block for Q8x32 {
    #[inline(always)]
    fn scale<I: Isa>(&self, _: I) -> f32 {
        self.d()
    }
    #[inline(always)]
    fn quants(&self) -> &[u8; 32] {
        &self.q
    }
}

/// Copies blocks of another type, whose values are the same.
pub(crate) struct CopyBlocks<'a, B> {
    pub from: &'a [B],
    pub out: &'a mut [Q8x32],
}

impl<B: Int8Block> Kernel for CopyBlocks<'_, B> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let ones = isa.splat_byte(1);
        for (out, block) in self.out.iter_mut().zip(self.from) {
            let q = isa.bytes(block.quants());
            let sum = isa.reduce_add_i32(isa.dot(isa.zeros(), ones, q));
            *out = Q8x32 { d: block.scale(isa).to_le_bytes(), sum: sum.to_le_bytes(), q: *block.quants() };
        }
    }
}

impl Q8x256 {
    #[inline(always)]
    pub(super) fn d(&self) -> f32 {
        f32::from_le_bytes(self.d)
    }
}

/// Eight integers whose sum is sum_j s_j (q_j . x_j) over the eight sub-blocks; each half of a sub-block has its own
/// scale. Two accumulators halve the dependency chain.
#[inline(always)]
pub(super) fn scaled_dots<I: Isa>(isa: I, q: [I::Bytes; 8], s: I::Scales, x: &Q8x256) -> I::Ints {
    let (mut even, mut odd) = (isa.zeros(), isa.zeros());
    for j in [0, 2, 4, 6] {
        even = isa.dot_scaled(even, q[j], isa.bytes(&x.q[j]), s, j);
        odd = isa.dot_scaled(odd, q[j + 1], isa.bytes(&x.q[j + 1]), s, j + 1);
    }
    isa.add_ints(even, odd)
}

/// The same of signed quants.
#[inline(always)]
pub(super) fn signed_scaled_dots<I: Isa>(isa: I, q: [I::Bytes; 8], s: I::Scales, x: &Q8x256) -> I::Ints {
    let (mut even, mut odd) = (isa.zeros(), isa.zeros());
    for j in [0, 2, 4, 6] {
        even = isa.dot_signed_scaled(even, q[j], isa.bytes(&x.q[j]), s, j);
        odd = isa.dot_signed_scaled(odd, q[j + 1], isa.bytes(&x.q[j + 1]), s, j + 1);
    }
    isa.add_ints(even, odd)
}

/// The largest |v|, by its bits; NaN orders above infinity, so it propagates to the scale.
#[inline(always)]
fn magnitude<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let mut most = isa.zeros();
    for x in x.as_chunks().0 {
        most = isa.max_ints(most, isa.magnitude(isa.load_floats(x)));
    }
    f32::from_bits(isa.largest(most).cast_unsigned())
}

/// Scale and its inverse for quants up to 127. A scale too small to invert counts as zero.
#[inline(always)]
fn scale(most: f32) -> (f32, f32) {
    let inverse = 127.0 / most;
    if most == 0.0 || inverse == f32::INFINITY { (0.0, 0.0) } else { (most / 127.0, inverse) }
}

/// Rounds 32 values times `inverse` to quants in -127..=127.
#[inline(always)]
fn quants<I: Isa>(isa: I, x: &[f32; 32], inverse: f32) -> I::Bytes {
    let (low, high) = (isa.splat(-127.0), isa.splat(127.0));
    let mut q = [isa.zeros(); 4];
    for (q, x) in q.iter_mut().zip(x.as_chunks().0) {
        let v = isa.mul(isa.load_floats(x), isa.splat(inverse));
        *q = isa.round(isa.min(isa.max(v, low), high));
    }
    isa.pack_i8(q)
}

struct Quantize32<'a> {
    x: &'a [f32],
    out: &'a mut [Q8x32],
}

impl Kernel for Quantize32<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let ones = isa.splat_byte(1);
        for (out, x) in self.out.iter_mut().zip(self.x.as_chunks::<32>().0) {
            let (d, inverse) = scale(magnitude(isa, x));
            let q = quants(isa, x, inverse);
            out.d = d.to_le_bytes();
            out.sum = isa.reduce_add_i32(isa.dot(isa.zeros(), ones, q)).to_le_bytes();
            isa.store_bytes(q, &mut out.q);
        }
    }
}

struct Quantize256<'a> {
    x: &'a [f32],
    out: &'a mut [Q8x256],
}

impl Kernel for Quantize256<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (out, x) in self.out.iter_mut().zip(self.x.as_chunks::<256>().0) {
            let (d, inverse) = scale(magnitude(isa, x));
            (out.d, out.padding) = (d.to_le_bytes(), [0; 28]);
            for (q, x) in out.q.iter_mut().zip(x.as_chunks().0) {
                isa.store_bytes(quants(isa, x, inverse), q);
            }
            let groups = out.q.as_flattened().as_chunks::<16>().0;
            for (sum, q) in out.sums.as_chunks_mut().0.iter_mut().zip(groups) {
                let s: i16 = q.iter().map(|&q| q.cast_signed() as i16).sum();
                *sum = s.to_le_bytes();
            }
        }
    }
}
