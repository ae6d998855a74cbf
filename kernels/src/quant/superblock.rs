//! Products of super-blocks.
//!
//! What a row and a token get, at every level and in any batch (b over super-blocks, j over sub-blocks):
//! ```text
//! y <- fma(d_b dx_b, float(sum_j sc_j (q_j . x_j)), y)
//! y <- fma(dmin_b -dx_b, float(sum_j m_j sum(x_j)), y)                 where the format has minima
//! ```
//! All within the brackets is whole numbers, so how they are summed does not matter: many tokens meet a strip of rows
//! that was unpacked once ([`Unpacked`]), one token meets eight rows as they are stored. It knows no format.

use super::activation::Q8x256;
use super::block::{Block, Tile};
use super::strips::{self, Kind};
use crate::cpu::isa::{Isa, Lanes};

/// What is taken off the products of levels, which are stored unsigned.
pub(super) enum Offset {
    /// Each sub-block has a minimum, in units of `dmin`.
    Minima,
    /// Levels stand this much higher.
    Zero(i32),
    /// Levels are signed.
    Signed,
}

/// A format of super-blocks of 256 weights.
pub(super) trait SuperBlock: Block<X = Q8x256> {
    /// Sub-blocks with a scale each: 8 or 16.
    const SUBS: usize;
    /// What stands beside the levels.
    const OFFSET: Offset;

    /// The same block of each row, as lanes.
    fn unpack<L: Lanes>(l: L, rows: &[&Self; 16], out: &mut Unpacked<L>);
    /// Eight whole numbers that sum to `sum_j sc_j (q_j . x_j)`, and to `sum_j m_j sum(x_j)`.
    fn sums<I: Isa>(isa: I, w: &Self, x: &Q8x256) -> [I::Ints; 2];
    /// d and dmin.
    fn factors(&self) -> [[u8; 2]; 2];
}

/// Super-blocks.
struct Super;

/// A super-block of each row of a strip.
pub(super) struct Unpacked<L: Lanes> {
    /// Four levels a row, signed ones as [`Lanes::signed`] gives them.
    pub(super) levels: [L::Bytes; 64],
    /// A scale a row for each sub-block.
    pub(super) scales: [L::Ints; 16],
    /// What meets the sums of sixteen activations, two a row: minima, or scales where levels have a zero.
    pub(super) pairs: [L::Ints; 8],
    /// d and dmin.
    pub(super) factors: [L::Floats; 2],
}

/// Thirty-two bytes of each row's block, from byte `AT` on.
#[inline(always)]
pub(super) fn window<'a, B: Block, const AT: usize>(rows: &[&'a B; 16]) -> [&'a [u8; 32]; 16] {
    let mut out = [&[0; 32]; 16];
    for (out, row) in out.iter_mut().zip(rows) {
        *out = bytemuck::bytes_of(*row)[AT..].first_chunk().expect("inside a block");
    }
    out
}

/// Sixteen scales from four bytes of each row at a time: signed, or six bits that stand 32 higher.
#[inline(always)]
pub(super) fn sixteen_scales<L: Lanes>(l: L, sc: [L::Bytes; 4], higher: bool, out: &mut Unpacked<L>) {
    for j in 0..16 {
        out.scales[j] = if higher {
            l.add(l.unsigned_byte(sc[j / 4], j % 4), l.splat_int(-32))
        } else {
            l.signed_byte(sc[j / 4], j % 4)
        };
    }
    for p in 0..8 {
        out.pairs[p] = l.pair(out.scales[2 * p], out.scales[2 * p + 1]);
    }
}

impl<L: Lanes> Unpacked<L> {
    #[inline(always)]
    fn new(l: L) -> Self {
        let (bytes, ints, floats) = (l.splat_byte(0), l.zeros(), l.splat(0.0));
        Unpacked { levels: [bytes; 64], scales: [ints; 16], pairs: [ints; 8], factors: [floats; 2] }
    }

    /// Adds the products with `T` tokens to their sums.
    #[inline(always)]
    fn meet<B: SuperBlock, const T: usize>(&self, l: L, x: [&Q8x256; T], y: &mut [L::Floats]) {
        let mut totals = [l.zeros(); T];
        let len = 64 / B::SUBS;
        for j in 0..B::SUBS {
            let mut sums = [l.zeros(); T];
            for i in j * len..(j + 1) * len {
                for t in 0..T {
                    let x = x[t].q.as_flattened().as_chunks().0[i];
                    sums[t] = match B::OFFSET {
                        Offset::Signed => l.dot_signed(sums[t], self.levels[i], x),
                        _ => l.dot(sums[t], self.levels[i], x),
                    };
                }
            }
            for t in 0..T {
                totals[t] = l.mul_add(totals[t], self.scales[j], sums[t]);
            }
        }
        for t in 0..T {
            y[t] = self.finish::<B>(l, x[t], totals[t], y[t]);
        }
    }

    #[inline(always)]
    fn finish<B: SuperBlock>(&self, l: L, x: &Q8x256, total: L::Ints, y: L::Floats) -> L::Floats {
        let zero = match B::OFFSET {
            Offset::Minima => 0,
            Offset::Zero(zero) => zero,
            Offset::Signed => L::ADDED,
        };
        let minima = matches!(B::OFFSET, Offset::Minima);
        let (mut total, mut offset) = (total, l.zeros());
        if minima || zero != 0 {
            for p in 0..8 {
                offset = l.dot_pairs(offset, self.pairs[p], x.sums.as_chunks().0[p]);
            }
        }
        if zero != 0 {
            total = l.mul_add(total, offset, l.splat_int(-zero));
        }
        let y = l.fma(l.mul(self.factors[0], l.splat(x.d())), l.floats(total), y);
        if !minima {
            return y;
        }
        l.fma(l.mul(self.factors[1], l.splat(-x.d())), l.floats(offset), y)
    }
}

impl<B: SuperBlock> Kind<B> for Super {
    const SECOND: Option<f32> = if matches!(B::OFFSET, Offset::Minima) { Some(-1.0) } else { None };

    #[inline(always)]
    fn sums<I: Isa>(isa: I, w: &B, x: &Q8x256) -> [I::Ints; 2] {
        B::sums(isa, w, x)
    }
    #[inline(always)]
    fn factors<I: Isa>(isa: I, w: [&B; 8]) -> [I::Floats; 2] {
        let (mut d, mut dmin) = ([[0; 2]; 8], [[0; 2]; 8]);
        for i in 0..8 {
            [d[i], dmin[i]] = w[i].factors();
        }
        [isa.gather_f16(d), isa.gather_f16(dmin)]
    }
    #[inline(always)]
    fn factor<I: Isa>(isa: I, w: &B) -> [f32; 2] {
        let [d, dmin] = w.factors();
        [isa.f16(d), isa.f16(dmin)]
    }
    #[inline(always)]
    fn step(x: &Q8x256) -> f32 {
        x.d()
    }

    type Unpacked<L: Lanes> = Unpacked<L>;

    #[inline(always)]
    fn empty<L: Lanes>(l: L) -> Unpacked<L> {
        Unpacked::new(l)
    }
    #[inline(always)]
    fn unpack<I: Isa>(isa: I, rows: &[&B; 16], out: &mut Unpacked<I::Lanes>) {
        B::unpack(isa.lanes(), rows, out);
    }
    #[inline(always)]
    fn meet<L: Lanes, const T: usize>(w: &Unpacked<L>, l: L, x: [&Q8x256; T], y: &mut [L::Floats]) {
        w.meet::<B, T>(l, x, y);
    }
}

/// All rows times all tokens of a tile.
#[inline(always)]
pub(super) fn product<I: Isa, B: SuperBlock>(isa: I, tile: &mut Tile<'_, B>) {
    strips::product::<I, B, Super>(isa, tile);
}
