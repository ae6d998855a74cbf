//! Q5_0: 32 weights in 22 bytes, 5.5 bits a weight.
//!
//! ```text
//! byte 0       2              6        22
//!      | d f16 | high 32 bits | q 16 B |        w_i = d (q_i - 16)
//!
//! q, byte b = 0..16:  bits 3..0 = lower bits of q[b],  bits 7..4 = those of q[16 + b]
//! high, bit i:        bit 4 of q[i]
//! ```

use super::block::Tile;
use super::range::{fifth_bits, furthest, inverse, levels, nibbles};
use super::small::{self, SmallBlock};
use super::{Block, Q8x32};
use crate::cpu::isa::Isa;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// 32 weights.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q5_0 {
    d: [u8; 2],
    high: [u8; 4],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Q5_0>() == 22);

impl Block for Q5_0 {
    type X = Q8x32;
    const LEN: usize = 32;

    #[inline(always)]
    fn quantise<I: Isa>(_: I, x: &[f32]) -> Q5_0 {
        let d = furthest(x) / -16.0;
        let levels = levels(x, 0.0, inverse(d), 16.5, 31);
        Q5_0 { d: f16::from_f32(d).to_le_bytes(), high: fifth_bits(&levels), q: nibbles(&levels) }
    }

    #[inline(always)]
    fn dequantise<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let d = isa.f16(self.d);
        let mut q = [0; 32];
        isa.store_bytes(self.levels(isa), &mut q);
        for (y, q) in y.iter_mut().zip(q) {
            *y = (q as i32 - 16) as f32 * d;
        }
    }

    #[inline(always)]
    fn product<I: Isa>(isa: I, tile: &mut Tile<'_, Self>) {
        small::product(isa, tile);
    }
}

impl SmallBlock for Q5_0 {
    const SIGNED: bool = false;
    const ZERO: i32 = 16;

    #[inline(always)]
    fn levels<I: Isa>(&self, isa: I) -> I::Bytes {
        let fifth = isa.and(isa.mask(self.high), isa.splat_byte(16));
        isa.or(isa.nibbles(&self.q), fifth)
    }
    #[inline(always)]
    fn halves(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
}
