//! GEMV: weight rows times one token. Rows are read once, in memory order.
//!
//! Eight blocks of a row are reduced at a time, one block per lane. Once eight rows are reduced, an 8x8 transpose puts
//! one row in each lane, and the f32 sums run over the blocks in the order that `superblock` and `block32` define. Next:
//! [`super::block_dot`] (what a format implements).

use super::IntegerDot;
use super::block_dot::BlockDot;
use crate::quant::block::{Block, Gemv, Tile};
use crate::simd::Isa;

/// Prefetch distance in bytes: how far ahead of the current block rows are fetched.
pub(crate) const PREFETCH_BYTES: usize = 2048;
/// Blocks of eight rows that are reduced before they are transposed.
const CHUNK_BLOCKS: usize = 128;

/// Values of eight rows' blocks: of the first term, then of the second.
type Terms = [[[f32; CHUNK_BLOCKS]; 8]; 2];

impl<B: Block, D: BlockDot<B>> Gemv<B> for IntegerDot<D> {
    #[inline(always)]
    fn gemv<I: Isa>(isa: I, tile: &mut Tile<'_, B>) {
        let (blocks, rows) = (tile.blocks, tile.rows);
        let empty: Terms = [[[0.0; CHUNK_BLOCKS]; 8]; 2];
        let (mut scales, mut sums) = (empty, empty);
        for first in (0..rows).step_by(8) {
            let mut y = isa.splat(0.0);
            for from in (0..blocks).step_by(CHUNK_BLOCKS) {
                let chunk = from..blocks.min(from + CHUNK_BLOCKS);
                let x = &tile.x[chunk.clone()];
                for r in 0..8.min(rows - first) {
                    let w = &tile.w[(first + r) * blocks..][chunk.clone()];
                    let ((eights, rest), (x, x_rest)) = (w.as_chunks::<8>(), x.as_chunks::<8>());
                    for (i, (w, x)) in eights.iter().zip(x).enumerate() {
                        reduce_x8::<I, B, D>(isa, w, x, (r, 8 * i), [&mut scales, &mut sums]);
                    }
                    for (i, (w, x)) in rest.iter().zip(x_rest).enumerate() {
                        reduce::<I, B, D>(isa, w, x, (r, 8 * eights.len() + i), [&mut scales, &mut sums]);
                    }
                }
                for b in (0..x.len()).step_by(8) {
                    let (d, sum) = (transposed(isa, &scales[0], b), transposed(isa, &sums[0], b));
                    if D::MIN_SIGN.is_none() {
                        for i in 0..8.min(x.len() - b) {
                            y = isa.fma(d[i], sum[i], y);
                        }
                    } else {
                        let (d2, sum2) = (transposed(isa, &scales[1], b), transposed(isa, &sums[1], b));
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
}

/// Reduces block `at` of row `r`.
#[inline(always)]
fn reduce<I: Isa, B: Block, D: BlockDot<B>>(
    isa: I,
    w: &B,
    x: &B::X,
    (r, at): (usize, usize),
    [scales, totals]: [&mut Terms; 2],
) {
    isa.prefetch_l1(w, PREFETCH_BYTES);
    let (act_scale, [d, d2], [sum, second]) = (D::act_scale(x), D::scales(isa, w), D::sums(isa, w, x));
    scales[0][r][at] = d * act_scale;
    totals[0][r][at] = isa.reduce_add_i32(sum) as f32;
    if let Some(sign) = D::MIN_SIGN {
        scales[1][r][at] = d2 * (sign * act_scale);
        totals[1][r][at] = isa.reduce_add_i32(second) as f32;
    }
}

/// Reduces eight blocks of row `r`, from block `at` on.
#[inline(always)]
fn reduce_x8<I: Isa, B: Block, D: BlockDot<B>>(
    isa: I,
    w: &[B; 8],
    x: &[B::X; 8],
    (r, at): (usize, usize),
    [scales, totals]: [&mut Terms; 2],
) {
    let mut act_scales = [0.0; 8];
    for i in 0..8 {
        isa.prefetch_l1(&w[i], PREFETCH_BYTES);
        act_scales[i] = D::act_scale(&x[i]);
    }
    let [sums, second] = D::sums_x8(isa, w, x);
    let (act_scale, [d, d2]) = (isa.load_floats(&act_scales), D::scales_x8(isa, w.each_ref()));
    isa.store(isa.mul(d, act_scale), lanes(&mut scales[0][r], at));
    isa.store(isa.floats(isa.reduce_add_each(sums)), lanes(&mut totals[0][r], at));
    if let Some(sign) = D::MIN_SIGN {
        isa.store(isa.mul(d2, isa.mul(isa.splat(sign), act_scale)), lanes(&mut scales[1][r], at));
        isa.store(isa.floats(isa.reduce_add_each(second)), lanes(&mut totals[1][r], at));
    }
}

#[inline(always)]
fn lanes(of: &mut [f32; CHUNK_BLOCKS], at: usize) -> &mut [f32; 8] {
    &mut of.as_chunks_mut().0[at / 8]
}

/// Blocks `b..b + 8` with one row per lane.
#[inline(always)]
fn transposed<I: Isa>(isa: I, of: &[[f32; CHUNK_BLOCKS]; 8], b: usize) -> [I::Floats; 8] {
    let mut rows = [&[0; 32]; 8];
    for r in 0..8 {
        rows[r] = bytemuck::cast_ref(&of[r].as_chunks::<8>().0[b / 8]);
    }
    let bytes = isa.transpose_8x8(rows);
    let mut out = [isa.splat(0.0); 8];
    for i in 0..8 {
        out[i] = isa.as_floats(bytes[i]);
    }
    out
}
