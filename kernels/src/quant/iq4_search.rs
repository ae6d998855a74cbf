//! Holds the codebook of IQ4_NL and IQ4_XS, and searches their scales for eight sub-blocks of 32, one per lane.
//!
//! As in `scale_search`, each lane repeats ggml's arithmetic in ggml's order, so the bytes are equal.

use super::scale_search::{LanePerBlock, NOTHING, absolute};
use crate::simd::Isa;

/// The values of the sixteen quants of IQ4_NL and IQ4_XS.
pub(super) const CODEBOOK: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Candidates on either side of the first scale.
const TRIES: i32 = 7;

/// The codebook value nearest to v; the upper of two equally near.
#[inline(always)]
fn nearest<I: Isa>(isa: I, v: I::Floats) -> I::Floats {
    let mut level = isa.splat(CODEBOOK[0] as f32);
    for pair in CODEBOOK.windows(2) {
        let middle = (pair[0] as f32 + pair[1] as f32) / 2.0;
        level = isa.select(v, isa.splat(middle), level, isa.splat(pair[1] as f32));
    }
    level
}

/// The sums of w q x and w q q, which give the best scale for fixed quants.
#[inline(always)]
fn regress<I: Isa>(isa: I, x: &LanePerBlock<32>, w: &LanePerBlock<32>, inverse: I::Floats) -> [I::Floats; 2] {
    let (mut sum_qx, mut sum_q2) = (isa.splat(0.0), isa.splat(0.0));
    for (x, w) in x.iter().zip(w) {
        let (x, w) = (isa.load_floats(x), isa.load_floats(w));
        let q = nearest(isa, isa.mul(inverse, x));
        let wq = isa.mul(w, q);
        sum_qx = isa.add(sum_qx, isa.mul(wq, x));
        sum_q2 = isa.add(sum_q2, isa.mul(wq, q));
    }
    [sum_qx, sum_q2]
}

/// The candidate scale of each sub-block with the least squared error weighted by `w`.
#[inline(always)]
pub(super) fn scales<I: Isa>(isa: I, x: &LanePerBlock<32>, w: &LanePerBlock<32>) -> [f32; 8] {
    let zero = isa.splat(0.0);
    let (mut most, mut furthest) = (zero, zero);
    for x in x {
        let x = isa.load_floats(x);
        let size = absolute(isa, x);
        furthest = isa.select(most, size, x, furthest);
        most = isa.select(most, size, size, most);
    }
    let lowest = isa.splat(CODEBOOK[0] as f32);
    let first = isa.div(isa.sub(zero, furthest), lowest);
    let [sum_qx, sum_q2] = regress(isa, x, w, isa.div(isa.splat(1.0), first));
    let mut scale = isa.select(zero, sum_q2, isa.div(sum_qx, sum_q2), zero);
    let mut best = isa.mul(scale, sum_qx);
    for k in -TRIES..=TRIES {
        let inverse = isa.div(isa.splat((k + CODEBOOK[0] as i32) as f32), furthest);
        let [sum_qx, sum_q2] = regress(isa, x, w, inverse);
        let (ours, theirs) = (isa.mul(sum_qx, sum_qx), isa.mul(best, sum_q2));
        let theirs = isa.select(zero, sum_q2, theirs, isa.splat(f32::INFINITY));
        scale = isa.select(theirs, ours, isa.div(sum_qx, sum_q2), scale);
        best = isa.select(theirs, ours, isa.mul(scale, sum_qx), best);
    }
    let mut out = [0.0; 8];
    isa.store(isa.select(most, isa.splat(NOTHING), zero, scale), &mut out);
    out
}

/// The index of the codebook value nearest to each value times its lane's inverse scale.
#[inline(always)]
pub(super) fn quants<I: Isa>(isa: I, x: &LanePerBlock<32>, inverse: [f32; 8]) -> [[u8; 8]; 32] {
    let inverse = isa.load_floats(&inverse);
    let mut out = [[0; 8]; 32];
    for (out, x) in out.iter_mut().zip(x) {
        let v = isa.mul(inverse, isa.load_floats(x));
        let mut index = isa.splat(0.0);
        for (i, pair) in CODEBOOK.windows(2).enumerate() {
            let middle = (pair[0] as f32 + pair[1] as f32) / 2.0;
            index = isa.select(v, isa.splat(middle), index, isa.splat((i + 1) as f32));
        }
        let mut lanes = [0.0; 8];
        isa.store(index, &mut lanes);
        *out = lanes.map(|l| l as u8);
    }
    out
}
