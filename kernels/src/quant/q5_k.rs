//! Q5_K: 256 weights in 176 bytes, 5.5 bits a weight: Q4_K with a fifth bit a weight.
//!
//! ```text
//! byte 0       2          4             16          48              176
//!      | d f16 | dmin f16 | scales 12 B | high 32 B | q 4 groups x 32 B |
//!
//! w_i = d sc_j q_i - dmin m_j          sub-block j = i / 32;  sc, m in 0..64;  q in 0..32
//!
//! q, group p = 0..4, byte b = 0..32:   bits 3..0 = low of q[64 p + b],  bits 7..4 = low of q[64 p + 32 + b]
//! high, byte b, bit j:                 bit 4 of q[32 j + b]
//! ```
//! The scales are packed as the head of `scales` draws it.

use super::scales::{self, Found};
use super::search::Steps;
use super::{Block, Q8x256};
use crate::cpu::isa::Isa;
use bytemuck::{Pod, Zeroable};

/// 256 weights.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q5K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    high: [u8; 32],
    q: [[u8; 32]; 4],
}
const _: () = assert!(size_of::<Q5K>() == 176);

impl Q5K {
    /// The levels of each sub-block.
    #[inline(always)]
    fn levels<I: Isa>(&self, isa: I) -> [I::Bytes; 8] {
        let (low, fifth) = (isa.splat_byte(15), isa.splat_byte(16));
        let h = isa.bytes(&self.high);
        // Bit j of h as the fifth bit.
        let mut levels = [
            isa.shl::<4>(h),
            isa.shl::<3>(h),
            isa.shl::<2>(h),
            isa.shl::<1>(h),
            h,
            isa.shr::<1>(h),
            isa.shr::<2>(h),
            isa.shr::<3>(h),
        ];
        for p in 0..4 {
            let q = isa.bytes(&self.q[p]);
            levels[2 * p] = isa.or(isa.and(levels[2 * p], fifth), isa.and(q, low));
            levels[2 * p + 1] = isa.or(isa.and(levels[2 * p + 1], fifth), isa.shr::<4>(q));
        }
        levels
    }
}

impl Block for Q5K {
    type X = Q8x256;
    const LEN: usize = 256;

    #[inline(always)]
    fn quantise<I: Isa>(isa: I, x: &[f32]) -> Q5K {
        let Found { d, dmin, scales, levels } = scales::find(isa, x, 31, Steps { first: -0.5, count: 15 });
        let (mut q, mut high) = ([[0; 32]; 4], [0; 32]);
        for (p, (q, levels)) in q.iter_mut().zip(levels.as_chunks::<64>().0).enumerate() {
            for b in 0..32 {
                q[b] = levels[b] & 15 | levels[b + 32] << 4;
                high[b] |= (levels[b] >> 4 | levels[b + 32] >> 4 << 1) << (2 * p);
            }
        }
        Q5K { d, dmin, scales, high, q }
    }

    #[inline(always)]
    fn dequantise<I: Isa>(&self, isa: I, y: &mut [f32]) {
        scales::dequantise(isa, self.levels(isa), [self.d, self.dmin], self.scales, y);
    }

    #[inline(always)]
    fn accumulate<I: Isa, const T: usize>(isa: I, acc: &mut [I::Floats; T], w: &Q5K, x: [&Q8x256; T]) {
        scales::accumulate(isa, acc, w.levels(isa), [w.d, w.dmin], w.scales, x);
    }
}
