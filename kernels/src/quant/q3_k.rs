//! Q3_K: 256 weights in 110 bytes, 3.4375 bits a weight: sixteen groups of 16 with a scale each.
//!
//! ```text
//! byte 0          32                 96            108     110
//!      | high 32 B | q 2 halves x 32 B | scales 12 B | d f16 |
//!
//! w_i = d (sc_g - 32) (q_i - 4)        group g = i / 16;  sc in 0..64;  q in 0..8
//!
//! high, byte b, bit j:                 bit 2 of q[32 j + b]
//! q, half h = 0..2, byte b = 0..32:    bits 1..0 = low of q[128 h + b],       bits 3..2 = low of q[128 h + 32 + b],
//!                                      bits 5..4 = low of q[128 h + 64 + b],  bits 7..6 = low of q[128 h + 96 + b]
//! scales, byte k = 0..8:               bits 3..0 = low of sc[k],  bits 7..4 = low of sc[8 + k]
//!         byte 8 + k, k = 0..4:        bits 1..0 = high of sc[k],      bits 3..2 = high of sc[4 + k],
//!                                      bits 5..4 = high of sc[8 + k],  bits 7..6 = high of sc[12 + k]
//! ```

use super::activation::{Levels, Q8x256};
use super::q2_k::{pack_two_bits, two_bits};
use super::{Block, search};
use crate::cpu::isa::{Isa, to_int};
use bytemuck::{Pod, Zeroable};
use half::f16;

/// 256 weights.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q3K {
    high: [u8; 32],
    q: [[u8; 32]; 2],
    scales: [u8; 12],
    d: [u8; 2],
}
const _: () = assert!(size_of::<Q3K>() == 110);

impl Q3K {
    /// The levels of each sub-block, 0..8.
    #[inline(always)]
    fn levels<I: Isa>(&self, isa: I) -> [I::Bytes; 8] {
        let third = isa.splat_byte(4);
        let h = isa.bytes(&self.high);
        // Bit j of h as the third bit.
        let high = [
            isa.shl::<2>(h),
            isa.shl::<1>(h),
            h,
            isa.shr::<1>(h),
            isa.shr::<2>(h),
            isa.shr::<3>(h),
            isa.shr::<4>(h),
            isa.shr::<5>(h),
        ];
        let mut levels = two_bits(isa, &self.q);
        for j in 0..8 {
            levels[j] = isa.or(levels[j], isa.and(high[j], third));
        }
        levels
    }

    /// The sixteen scales less 32, as i8. Several bytes at a time; no mask reaches into a neighbour.
    #[inline(always)]
    fn scales(&self) -> [u8; 16] {
        let s = &self.scales;
        let low = u64::from_le_bytes([s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]]);
        let high = u32::from_le_bytes([s[8], s[9], s[10], s[11]]) as u64;
        let (nibbles, two) = (0x0f0f_0f0f_0f0f_0f0f, 0x0303_0303_0303_0303);
        // sc[0..4] in the lower word, sc[4..8] in the upper; then sc[8..16] in the same way.
        let first = low & nibbles | ((high | high << 30) & two) << 4;
        let second = low >> 4 & nibbles | ((high >> 4 | high >> 6 << 32) & two) << 4;
        bytemuck::cast([less_32(first).to_le_bytes(), less_32(second).to_le_bytes()])
    }
}

/// Eight bytes below 64, each less 32, as i8: flipping bit 5 and copying it to bits 6 and 7 does it.
#[inline(always)]
pub(super) fn less_32(bytes: u64) -> u64 {
    let flipped = bytes ^ 0x2020_2020_2020_2020;
    let sign = flipped & 0x2020_2020_2020_2020;
    flipped | sign << 1 | sign << 2
}

/// Six bits each, as the drawing has them.
fn pack(sc: [u8; 16]) -> [u8; 12] {
    let mut s = [0; 12];
    for (g, sc) in sc.into_iter().enumerate() {
        s[g % 8] |= (sc & 15) << (g / 8 * 4);
        s[8 + g % 4] |= sc >> 4 << (g / 4 * 2);
    }
    s
}

impl Block for Q3K {
    type X = Q8x256;
    const LEN: usize = 256;

    #[inline(always)]
    fn quantise<I: Isa>(isa: I, x: &[f32]) -> Q3K {
        let (scale, mut levels) = search::sixteen(x, |columns| search::symmetric_by_turns(isa, columns, 4.0));
        let furthest = super::range::furthest(&scale);
        let inverse = -32.0 / furthest;
        let (mut sc, mut d) = ([0; 16], f16::ZERO);
        if furthest != 0.0 {
            sc = scale.map(|s| (to_int((inverse * s).round_ties_even()).clamp(-32, 31) + 32) as u8);
            d = f16::from_f32(1.0 / inverse);
        }
        for i in 0..256 {
            let d = d.to_f32() * (sc[i / 16] as i32 - 32) as f32;
            if d != 0.0 {
                levels[i] = (to_int((x[i] / d).round_ties_even()).clamp(-4, 3) + 4) as u8;
            }
        }
        let mut high = [0; 32];
        for (i, level) in levels.iter().enumerate() {
            high[i % 32] |= (level >> 2) << (i / 32);
        }
        let scales = if furthest == 0.0 { [0; 12] } else { pack(sc) };
        Q3K { high, q: pack_two_bits(&levels), scales, d: d.to_le_bytes() }
    }

    #[inline(always)]
    fn dequantise<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let (d, sc) = (isa.f16(self.d), self.scales());
        let q = search::stored(isa, self.levels(isa));
        for (i, y) in y.iter_mut().enumerate() {
            *y = d * sc[i / 16].cast_signed() as f32 * (q[i] as i32 - 4) as f32;
        }
    }

    #[inline(always)]
    fn accumulate<I: Isa, const T: usize>(isa: I, acc: &mut [I::Floats; T], w: &Q3K, x: [&Q8x256; T]) {
        let (d, sc) = (isa.splat_f16(w.d), w.scales());
        let levels = Levels::<I, T>::new(isa, w.levels(isa), isa.scales_16(sc));
        for t in 0..T {
            let offset = isa.shl_ints::<2>(isa.dot_sums_16(sc, &x[t].sums));
            let sum = isa.sub_ints(levels.products(isa, x[t]), offset);
            acc[t] = isa.fma(isa.mul(d, isa.splat(x[t].d())), isa.floats(sum), acc[t]);
        }
    }
}
