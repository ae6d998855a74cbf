//! Many tokens times stored rows: a strip of rows side by side, a row a lane, each block unpacked once for all tokens.
//!
//! Sixteen rows (or eight, see [`Lanes`]) and up to 64 tokens at a time: what was unpacked and the activations stay in the
//! nearest cache. It knows no format. Next: `alone`, then `superblock` and `small`, the two
//! kinds of blocks.

use super::alone;
use super::block::{Block, Tile};
use crate::cpu::isa::{Isa, Lanes};
use std::ops::Range;

/// How one token meets a block (see `alone`), and many meet a strip of them.
pub(super) trait Kind<B: Block> {
    /// A block has a second term (its minimum), taken with this sign.
    const SECOND: Option<f32>;
    /// Eight whole numbers that sum to that of the block, and to that of the second term.
    fn sums<I: Isa>(isa: I, w: &B, x: &B::X) -> [I::Ints; 2];
    /// The factors of eight blocks, and of their second terms.
    fn factors<I: Isa>(isa: I, w: [&B; 8]) -> [I::Floats; 2];
    /// The factor of a block, and of its second term.
    fn factor<I: Isa>(isa: I, w: &B) -> [f32; 2];
    /// The step of the activations.
    fn step(x: &B::X) -> f32;

    /// A block of each row of a strip.
    type Unpacked<L: Lanes>;
    /// Room for it.
    fn empty<L: Lanes>(l: L) -> Self::Unpacked<L>;
    /// The same block of each row.
    fn unpack<I: Isa>(isa: I, rows: &[&B; 16], out: &mut Self::Unpacked<I::Lanes>);
    /// Adds the products with `T` tokens to their sums.
    fn meet<L: Lanes, const T: usize>(w: &Self::Unpacked<L>, l: L, x: [&B::X; T], y: &mut [L::Floats]);
}

/// All rows times all tokens of a tile.
#[inline(always)]
pub(super) fn product<I: Isa, B: Block, K: Kind<B>>(isa: I, tile: &mut Tile<'_, B>) {
    if tile.tokens() == 1 {
        alone::one_token::<I, B, K>(isa, tile)
    } else {
        many_tokens::<I, B, K>(isa, tile)
    }
}

/// Tokens whose sums are kept at a time.
const BATCH: usize = 64;

#[inline(always)]
fn many_tokens<I: Isa, B: Block, K: Kind<B>>(isa: I, tile: &mut Tile<'_, B>) {
    for first in (0..tile.tokens()).step_by(BATCH) {
        batch::<I, B, K>(isa, tile, first..tile.tokens().min(first + BATCH));
    }
}

#[inline(always)]
fn batch<I: Isa, B: Block, K: Kind<B>>(isa: I, tile: &mut Tile<'_, B>, tokens: Range<usize>) {
    let (blocks, rows, l) = (tile.blocks, tile.rows, isa.lanes());
    let mut unpacked = K::empty(l);
    for first in (0..rows).step_by(I::Lanes::ROWS) {
        let mut y = [l.splat(0.0); BATCH];
        let y = &mut y[..tokens.len()];
        for b in 0..blocks {
            let mut strip = [&tile.w[b]; 16];
            for (r, row) in strip.iter_mut().enumerate() {
                // The last row again where the strip goes beyond.
                *row = &tile.w[(first + r).min(rows - 1) * blocks + b];
                if tokens.start == 0 {
                    isa.prefetch_near(*row, I::Lanes::ROWS * blocks * size_of::<B>());
                }
            }
            K::unpack(isa, &strip, &mut unpacked);
            let x = |t: usize| &tile.x[(tokens.start + t) * blocks + b];
            let mut t = 0;
            while t < y.len() {
                let y = &mut y[t..];
                if I::Lanes::TOKENS >= 8 && y.len() >= 8 {
                    let x = [x(t), x(t + 1), x(t + 2), x(t + 3), x(t + 4), x(t + 5), x(t + 6), x(t + 7)];
                    K::meet::<_, 8>(&unpacked, l, x, y);
                    t += 8;
                } else if y.len() >= 4 {
                    K::meet::<_, 4>(&unpacked, l, [x(t), x(t + 1), x(t + 2), x(t + 3)], y);
                    t += 4;
                } else {
                    K::meet::<_, 1>(&unpacked, l, [x(t)], y);
                    t += 1;
                }
            }
        }
        for (t, y) in tokens.clone().zip(y) {
            let mut lanes = [0.0; 16];
            l.store(*y, &mut lanes);
            let out = &mut tile.y[t * rows..(t + 1) * rows][first..];
            let len = out.len().min(I::Lanes::ROWS);
            out[..len].copy_from_slice(&lanes[..len]);
        }
    }
}
