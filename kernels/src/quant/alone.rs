//! One token times stored rows, which are read once, in the order in which they lie in memory.
//!
//! The sums of a row's blocks are made eight blocks at a time, a block a lane. When eight rows have theirs, lanes become
//! rows, and the sums of floats run over the blocks as `superblock` and `small` say. It knows no format.

use super::block::{Block, Tile};
use super::strips::Kind;
use crate::cpu::isa::Isa;

/// How far before its use a block is asked for: bytes.
const AHEAD: usize = 2048;
/// Blocks of eight rows whose sums are kept until lanes become rows.
const PIECE: usize = 128;

/// Factors and sums of blocks, of eight rows: of the first term, then of the second.
type Terms = [[[f32; PIECE]; 8]; 2];

/// All rows times one token.
#[inline(always)]
pub(super) fn one_token<I: Isa, B: Block, K: Kind<B>>(isa: I, tile: &mut Tile<'_, B>) {
    let (blocks, rows) = (tile.blocks, tile.rows);
    let (mut factors, mut sums): (Terms, Terms) = ([[[0.0; PIECE]; 8]; 2], [[[0.0; PIECE]; 8]; 2]);
    for first in (0..rows).step_by(8) {
        let mut y = isa.splat(0.0);
        for from in (0..blocks).step_by(PIECE) {
            let piece = from..blocks.min(from + PIECE);
            let x = &tile.x[piece.clone()];
            for r in 0..8.min(rows - first) {
                let w = &tile.w[(first + r) * blocks..][piece.clone()];
                let ((eights, rest), (x, x_rest)) = (w.as_chunks::<8>(), x.as_chunks::<8>());
                for (i, (w, x)) in eights.iter().zip(x).enumerate() {
                    eight::<I, B, K>(isa, w, x, (r, 8 * i), [&mut factors, &mut sums]);
                }
                for (i, (w, x)) in rest.iter().zip(x_rest).enumerate() {
                    one::<I, B, K>(isa, w, x, (r, 8 * eights.len() + i), [&mut factors, &mut sums]);
                }
            }
            for b in (0..x.len()).step_by(8) {
                let (d, sum) = (turned(isa, &factors[0], b), turned(isa, &sums[0], b));
                if K::SECOND.is_none() {
                    for i in 0..8.min(x.len() - b) {
                        y = isa.fma(d[i], sum[i], y);
                    }
                } else {
                    let (d2, sum2) = (turned(isa, &factors[1], b), turned(isa, &sums[1], b));
                    for i in 0..8.min(x.len() - b) {
                        y = isa.fma(d2[i], sum2[i], isa.fma(d[i], sum[i], y));
                    }
                }
            }
        }
        let mut lanes = [0.0; 8];
        isa.store(y, &mut lanes);
        let out = &mut tile.y[first..];
        let len = out.len().min(8);
        out[..len].copy_from_slice(&lanes[..len]);
    }
}

/// Terms of a block of row `r`, block `at` of the piece.
#[inline(always)]
fn one<I: Isa, B: Block, K: Kind<B>>(
    isa: I,
    w: &B,
    x: &B::X,
    (r, at): (usize, usize),
    [factors, totals]: [&mut Terms; 2],
) {
    isa.prefetch(w, AHEAD);
    let (step, [d, d2], [sum, second]) = (K::step(x), K::factor(isa, w), K::sums(isa, w, x));
    factors[0][r][at] = d * step;
    totals[0][r][at] = isa.sum_lanes(sum) as f32;
    if let Some(sign) = K::SECOND {
        factors[1][r][at] = d2 * (sign * step);
        totals[1][r][at] = isa.sum_lanes(second) as f32;
    }
}

/// Terms of eight blocks of row `r`, block `at` of the piece and after it.
#[inline(always)]
fn eight<I: Isa, B: Block, K: Kind<B>>(
    isa: I,
    w: &[B; 8],
    x: &[B::X; 8],
    (r, at): (usize, usize),
    [factors, totals]: [&mut Terms; 2],
) {
    let (mut sums, mut second) = ([isa.zeros(); 8], [isa.zeros(); 8]);
    let mut steps = [0.0; 8];
    for i in 0..8 {
        isa.prefetch(&w[i], AHEAD);
        [sums[i], second[i]] = K::sums(isa, &w[i], &x[i]);
        steps[i] = K::step(&x[i]);
    }
    let (step, [d, d2]) = (isa.load_floats(&steps), K::factors(isa, w.each_ref()));
    isa.store(isa.mul(d, step), lanes(&mut factors[0][r], at));
    isa.store(isa.floats(isa.add_lanes(sums)), lanes(&mut totals[0][r], at));
    if let Some(sign) = K::SECOND {
        isa.store(isa.mul(d2, isa.mul(isa.splat(sign), step)), lanes(&mut factors[1][r], at));
        isa.store(isa.floats(isa.add_lanes(second)), lanes(&mut totals[1][r], at));
    }
}

#[inline(always)]
fn lanes(of: &mut [f32; PIECE], at: usize) -> &mut [f32; 8] {
    &mut of.as_chunks_mut().0[at / 8]
}

/// Blocks `b..b + 8`, a row a lane.
#[inline(always)]
fn turned<I: Isa>(isa: I, of: &[[f32; PIECE]; 8], b: usize) -> [I::Floats; 8] {
    let mut rows = [&[0; 32]; 8];
    for r in 0..8 {
        rows[r] = bytemuck::cast_ref(&of[r].as_chunks::<8>().0[b / 8]);
    }
    let turned = isa.turn(rows);
    let mut out = [isa.splat(0.0); 8];
    for i in 0..8 {
        out[i] = isa.as_floats(turned[i]);
    }
    out
}
