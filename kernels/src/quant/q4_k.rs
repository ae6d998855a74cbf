//! Q4_K: 256 weights in 144 bytes, 4.5 bits a weight: eight sub-blocks of 32 with a scale and a minimum each.
//!
//! ```text
//! byte 0       2          4             16              144
//!      | d f16 | dmin f16 | scales 12 B | q 4 groups x 32 B |
//!
//! w_i = d sc_j q_i - dmin m_j          sub-block j = i / 32;  sc, m in 0..64;  q in 0..16
//!
//! q, group p = 0..4, byte b = 0..32:   bits 3..0 = q[64 p + b],  bits 7..4 = q[64 p + 32 + b]
//! ```
//! The scales are packed as the head of `scales` draws it.

use super::block::Tile;
use super::scales::{self, Found};
use super::search::Steps;
use super::superblock::{self, Offset, SuperBlock, Unpacked, window};
use super::{Block, Q8x256};
use crate::cpu::isa::{Isa, Lanes};
use bytemuck::{Pod, Zeroable};

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

impl Q4K {
    /// The levels of each sub-block.
    #[inline(always)]
    fn levels<I: Isa>(&self, isa: I) -> [I::Bytes; 8] {
        let low = isa.splat_byte(15);
        let mut levels = [low; 8];
        for p in 0..4 {
            let q = isa.bytes(&self.q[p]);
            levels[2 * p] = isa.and(q, low);
            levels[2 * p + 1] = isa.shr::<4>(q);
        }
        levels
    }
}

impl Block for Q4K {
    type X = Q8x256;
    const LEN: usize = 256;

    #[inline(always)]
    fn quantise<I: Isa>(isa: I, x: &[f32]) -> Q4K {
        let Found { d, dmin, scales, levels } = scales::find(isa, x, 15, Steps { first: -1.0, count: 20 });
        let mut q = [[0; 32]; 4];
        for (q, levels) in q.iter_mut().zip(levels.as_chunks::<64>().0) {
            for (b, q) in q.iter_mut().enumerate() {
                *q = levels[b] | levels[b + 32] << 4;
            }
        }
        Q4K { d, dmin, scales, q }
    }

    #[inline(always)]
    fn dequantise<I: Isa>(&self, isa: I, y: &mut [f32]) {
        scales::dequantise(isa, self.levels(isa), [self.d, self.dmin], self.scales, y);
    }

    #[inline(always)]
    fn product<I: Isa>(isa: I, tile: &mut Tile<'_, Self>) {
        superblock::product(isa, tile);
    }
}

impl SuperBlock for Q4K {
    const SUBS: usize = 8;
    const OFFSET: Offset = Offset::Minima;

    #[inline(always)]
    fn unpack<L: Lanes>(l: L, rows: &[&Q4K; 16], out: &mut Unpacked<L>) {
        scales::spread(l, rows, out);
        let low = l.splat_byte(15);
        // The 32 bytes of group p: sub-blocks 2 p and 2 p + 1.
        let groups =
            [window::<_, 16>(rows), window::<_, 48>(rows), window::<_, 80>(rows), window::<_, 112>(rows)];
        for p in 0..4 {
            let q = l.turn(&groups[p]);
            for c in 0..8 {
                out.levels[16 * p + c] = l.and(q[c], low);
                out.levels[16 * p + 8 + c] = l.shr::<4>(q[c]);
            }
        }
    }

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &Q4K, x: &Q8x256) -> [I::Ints; 2] {
        scales::sums(isa, w.levels(isa), w.scales, x)
    }

    #[inline(always)]
    fn factors(&self) -> [[u8; 2]; 2] {
        [self.d, self.dmin]
    }
}
