//! Products of blocks of 32 weights.
//!
//! What a row and a token get, at every level and in any batch (b over blocks):
//! ```text
//! y <- fma(d_b dx_b, float(q_b . x_b), y)
//! y <- fma(m_b dx_b, float(sum(x_b)), y)                               where the format has a minimum
//! ```
//! As in `superblock` the products are whole numbers. It knows no format.

use super::activation::Q8x32;
use super::block::{Block, Tile};
use super::strips::{self, Kind};
use crate::cpu::isa::{Eight, Isa, Lanes};

/// A format of blocks of 32 weights.
pub(super) trait SmallBlock: Block<X = Q8x32> {
    /// Levels are signed.
    const SIGNED: bool;
    /// Unsigned levels stand this much higher.
    const ZERO: i32 = 0;
    /// There is a minimum.
    const MINIMUM: bool = false;

    /// The levels of a block.
    fn levels<I: Isa>(&self, isa: I) -> I::Bytes;
    /// The same block of each row: four levels a row.
    #[inline(always)]
    fn turn<I: Isa>(isa: I, rows: &[&Self; 16]) -> [<I::Lanes as Lanes>::Bytes; 8] {
        let mut levels = [[0; 32]; 16];
        for r in 0..I::Lanes::ROWS {
            isa.store_bytes(rows[r].levels(isa), &mut levels[r]);
        }
        isa.lanes().turn(&levels.each_ref())
    }
    /// d and the minimum as they are stored.
    fn halves(&self) -> [[u8; 2]; 2];
    /// d and the minimum.
    #[inline(always)]
    fn factor<I: Isa>(&self, isa: I) -> [f32; 2] {
        let [d, m] = self.halves();
        [isa.f16(d), isa.f16(m)]
    }
    /// d and the minimum of sixteen blocks.
    #[inline(always)]
    fn row_factors<L: Lanes>(l: L, rows: &[&Self; 16]) -> [L::Floats; 2] {
        let (mut d, mut m) = ([[0; 2]; 16], [[0; 2]; 16]);
        for r in 0..16 {
            [d[r], m[r]] = rows[r].halves();
        }
        [l.gather_f16(d), l.gather_f16(m)]
    }
}

/// Blocks of 32.
struct Small;

/// A block of each row of a strip: levels, d and minimum.
pub(super) struct Unpacked<L: Lanes> {
    levels: [L::Bytes; 8],
    factors: [L::Floats; 2],
}

impl<B: SmallBlock> Kind<B> for Small {
    const SECOND: Option<f32> = if B::MINIMUM { Some(1.0) } else { None };

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &B, x: &Q8x32) -> [I::Ints; 2] {
        let (levels, values) = (w.levels(isa), isa.bytes(&x.q));
        let sum = if B::SIGNED {
            isa.dot_signed(isa.zeros(), levels, values)
        } else if B::ZERO == 0 {
            isa.dot(isa.zeros(), levels, values)
        } else {
            isa.dot(isa.first(-B::ZERO * x.sum()), levels, values)
        };
        [sum, if B::MINIMUM { isa.first(x.sum()) } else { isa.zeros() }]
    }
    #[inline(always)]
    fn factors<I: Isa>(isa: I, w: [&B; 8]) -> [I::Floats; 2] {
        let [a, b, c, d, e, f, g, h] = w;
        B::row_factors(Eight::of(isa), &[a, b, c, d, e, f, g, h, h, h, h, h, h, h, h, h])
    }
    #[inline(always)]
    fn factor<I: Isa>(isa: I, w: &B) -> [f32; 2] {
        w.factor(isa)
    }
    #[inline(always)]
    fn step(x: &Q8x32) -> f32 {
        x.d()
    }

    type Unpacked<L: Lanes> = Unpacked<L>;

    #[inline(always)]
    fn empty<L: Lanes>(l: L) -> Unpacked<L> {
        Unpacked { levels: [l.splat_byte(0); 8], factors: [l.splat(0.0); 2] }
    }
    #[inline(always)]
    fn unpack<I: Isa>(isa: I, rows: &[&B; 16], out: &mut Unpacked<I::Lanes>) {
        let l = isa.lanes();
        out.levels = B::turn(isa, rows);
        if B::SIGNED {
            for i in 0..8 {
                out.levels[i] = l.signed(out.levels[i]);
            }
        }
        out.factors = B::row_factors(l, rows);
    }
    #[inline(always)]
    fn meet<L: Lanes, const T: usize>(w: &Unpacked<L>, l: L, x: [&Q8x32; T], y: &mut [L::Floats]) {
        let zero = if B::SIGNED { L::ADDED } else { B::ZERO };
        let mut sums = [l.zeros(); T];
        if zero != 0 {
            for t in 0..T {
                sums[t] = l.splat_int(-zero * x[t].sum());
            }
        }
        for i in 0..8 {
            for t in 0..T {
                let x = x[t].q.as_chunks().0[i];
                sums[t] = if B::SIGNED {
                    l.dot_signed(sums[t], w.levels[i], x)
                } else {
                    l.dot(sums[t], w.levels[i], x)
                };
            }
        }
        for t in 0..T {
            let d = l.splat(x[t].d());
            y[t] = l.fma(l.mul(w.factors[0], d), l.floats(sums[t]), y[t]);
            if B::MINIMUM {
                y[t] = l.fma(l.mul(w.factors[1], d), l.splat(x[t].sum() as f32), y[t]);
            }
        }
    }
}

/// All rows times all tokens of a tile.
#[inline(always)]
pub(super) fn product<I: Isa, B: SmallBlock>(isa: I, tile: &mut Tile<'_, B>) {
    strips::product::<I, B, Small>(isa, tile);
}
