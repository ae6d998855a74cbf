//! BF16: a weight is the upper half of a float, rounded to nearest even. Reads 2 B a weight; bound by memory.
//!
//! ```text
//! bit 15   14..7      6..0
//!     sign exponent   fraction
//! ```

use super::Block;
use super::f32::{Eight, F32, dot_floats, floats};
use crate::cpu::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// One weight.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BF16([u8; 2]);
const _: () = assert!(size_of::<BF16>() == 2);

impl Block for BF16 {
    type X = F32;
    const LEN: usize = 1;

    #[inline(always)]
    fn quantise<I: Isa>(_: I, x: &[f32]) -> BF16 {
        BF16(half::bf16::from_f32(x[0]).to_le_bytes())
    }

    #[inline(always)]
    fn dequantise<I: Isa>(&self, _: I, y: &mut [f32]) {
        y[0] = f32::from_bits((u16::from_le_bytes(self.0) as u32) << 16);
    }

    #[inline(always)]
    fn dequantise_all<I: Isa>(isa: I, w: &[BF16], out: &mut [f32]) {
        floats(isa, w, out);
    }

    #[inline(always)]
    fn dot<I: Isa, const T: usize>(isa: I, w: &[BF16], x: [&[F32]; T]) -> [f32; T] {
        dot_floats(isa, w, x)
    }
}

impl Eight for BF16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, w: &[BF16; 8]) -> I::Floats {
        isa.load_bf16(bytemuck::cast_ref(w))
    }
}
