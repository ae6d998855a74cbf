//! IQ4_NL: 32 weights in 18 bytes, 4.5 bits a weight: levels that stand closer near zero.
//!
//! ```text
//! byte 0       2        18
//!      | d f16 | q 16 B |        w_i = d LEVELS[q_i]
//!
//! q, byte b = 0..16:   bits 3..0 = q[b],  bits 7..4 = q[16 + b]
//! ```

use super::block::Tile;
use super::range::nibbles;
use super::search::{Columns, columns};
use super::small::{self, SmallBlock};
use super::{Block, Q8x32, nonlinear};
use crate::cpu::isa::Isa;
use bytemuck::{Pod, Zeroable};
use half::f16;
use std::array::from_fn;

/// What the sixteen levels mean.
pub(super) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 weights.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Iq4Nl {
    d: [u8; 2],
    q: [u8; 16],
}
const _: () = assert!(size_of::<Iq4Nl>() == 18);

/// Eight blocks at once, one a lane.
#[inline(always)]
fn eight<I: Isa>(isa: I, x: &Columns<32>) -> [Iq4Nl; 8] {
    let scale = nonlinear::scales(isa, x);
    let levels = nonlinear::levels(isa, x, scale.map(super::range::inverse));
    from_fn(|j| {
        let q = from_fn(|i| levels[i][j]);
        Iq4Nl { d: f16::from_f32(scale[j]).to_le_bytes(), q: nibbles(&q) }
    })
}

impl Block for Iq4Nl {
    type X = Q8x32;
    const LEN: usize = 32;

    #[inline(always)]
    fn quantise<I: Isa>(isa: I, x: &[f32]) -> Iq4Nl {
        eight(isa, &from_fn(|i| [x[i]; 8]))[0]
    }

    #[inline(always)]
    fn quantise_all<I: Isa>(isa: I, x: &[f32], out: &mut [Iq4Nl]) {
        let (x, x_rest) = x.as_chunks::<256>();
        let (out, out_rest) = out.as_chunks_mut::<8>();
        for (x, out) in x.iter().zip(out) {
            *out = eight(isa, &columns::<32>(x));
        }
        for (x, out) in x_rest.as_chunks::<32>().0.iter().zip(out_rest) {
            *out = Iq4Nl::quantise(isa, x);
        }
    }

    #[inline(always)]
    fn dequantise<I: Isa>(&self, isa: I, y: &mut [f32]) {
        let d = isa.f16(self.d);
        let mut q = [0; 32];
        isa.store_bytes(isa.nibbles(&self.q), &mut q);
        for (y, q) in y.iter_mut().zip(q) {
            *y = d * LEVELS[q as usize] as f32;
        }
    }

    #[inline(always)]
    fn product<I: Isa>(isa: I, tile: &mut Tile<'_, Self>) {
        small::product(isa, tile);
    }
}

impl SmallBlock for Iq4Nl {
    const SIGNED: bool = true;

    #[inline(always)]
    fn levels<I: Isa>(&self, isa: I) -> I::Bytes {
        isa.look_up(&LEVELS, isa.nibbles(&self.q))
    }
    #[inline(always)]
    fn halves(&self) -> [[u8; 2]; 2] {
        [self.d, [0; 2]]
    }
}
