//! Q4_K: 256 weights in 144 bytes, 4.5 bits a weight: eight sub-blocks of 32 with a scale and a minimum each.
//!
//! ```text
//! byte 0       2          4                16                                  144
//!      | d f16 | dmin f16 | scales 12 B    | q 4 x 32 B                          |
//!
//! w_i = d sc_j q_i - dmin m_j          sub-block j = i / 32;  sc, m in 0..64;  q in 0..16
//!
//! q, group p = 0..4, byte b = 0..32:   bits 3..0 = q[64 p + b],  bits 7..4 = q[64 p + 32 + b]
//! scales: see [`super::scales`]
//! ```

use super::scales::{self, Found};
use super::{Block, Q8x256};
use crate::cpu::isa::Isa;
use bytemuck::{Pod, Zeroable};
use half::f16;

/// 256 weights.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Q4K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    q: [[u8; 32]; 4],
}
const _: () = assert!(size_of::<Q4K>() == 144);

impl Block for Q4K {
    type X = Q8x256;
    const LEN: usize = 256;

    #[inline(always)]
    fn quantise<I: Isa>(isa: I, x: &[f32]) -> Q4K {
        let Found { d, dmin, scales, levels } =
            scales::find(isa, x, 15, scales::Steps { first: -1.0, count: 20 });
        let mut q = [[0; 32]; 4];
        for (q, levels) in q.iter_mut().zip(levels.as_chunks::<64>().0) {
            for (b, q) in q.iter_mut().enumerate() {
                *q = levels[b] | levels[b + 32] << 4;
            }
        }
        Q4K { d, dmin, scales, q }
    }

    #[inline(always)]
    fn dequantise(&self, y: &mut [f32]) {
        let d = f16::from_le_bytes(self.d).to_f32();
        let dmin = f16::from_le_bytes(self.dmin).to_f32();
        let (sc, m) = scales::unpack(self.scales);
        for (j, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (d, m) = (d * sc[j] as f32, dmin * m[j] as f32);
            for (y, q) in y.iter_mut().zip(self.q[j / 2]) {
                *y = d * (q >> (j % 2 * 4) & 15) as f32 - m;
            }
        }
    }

    #[inline(always)]
    fn accumulate<I: Isa>(isa: I, acc: I::Floats, w: &Q4K, x: &Q8x256) -> I::Floats {
        let (sc, m) = scales::unpack(w.scales);
        let mut sum = isa.zeros();
        for p in 0..4 {
            let q = isa.bytes(&w.q[p]);
            let (low, high) = (isa.and(q, isa.splat_byte(15)), isa.shr::<4>(q));
            sum = isa.dot_scaled(sum, low, isa.bytes(&x.q[2 * p]), [sc[2 * p] as i16; 2]);
            sum = isa.dot_scaled(sum, high, isa.bytes(&x.q[2 * p + 1]), [sc[2 * p + 1] as i16; 2]);
        }
        let acc = isa.fma(isa.splat(isa.f16(w.d) * x.d()), isa.floats(sum), acc);
        let mins = isa.floats(isa.dot_sums_8(m, &x.sums));
        isa.fma(isa.splat(-(isa.f16(w.dmin) * x.d())), mins, acc)
    }
}
