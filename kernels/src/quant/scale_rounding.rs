//! Rounds the scales or minima of a super-block to a few bits so that the errors that follow are small.
//!
//! The arithmetic is ggml's, in its order. Next: `k_scales` and `q2_k`, which round both.

use super::scale_search::NOTHING;
use crate::simd::to_int;

/// Rounds that improve one value at a time.
const ROUNDS: usize = 5;

fn rounded(v: f32) -> i32 {
    to_int(v.round_ties_even())
}

/// `v_i = scale q_i` with q in 0..=most: the scale and quants with a small squared error weighted by `w`. It tries scales
/// near the one that maps the largest value to `most`, then improves one quant at a time.
pub(super) fn unsigned<const N: usize>(v: &[f32; N], w: &[f32; N], most: u8) -> (f32, [u8; N]) {
    let largest = v.iter().fold(0.0, |a: f32, &b| if b > a { b } else { a });
    if largest < NOTHING {
        return (0.0, [0; N]);
    }
    let top = most as f32;
    let quant = |v: f32, inverse: f32| rounded(inverse * v).min(most.into()) as f32;
    let error = |inverse: f32| {
        let scale = 1.0 / inverse;
        v.iter().zip(w).fold(0.0, |sum: f32, (&v, w)| {
            let difference = v - scale * quant(v, inverse);
            sum + w * difference * difference
        })
    };
    let mut inverse = top / largest;
    let mut least = error(inverse);
    for k in (-4..=4).filter(|&k| k != 0) {
        let trial = (0.1 * k as f32 + top) / largest;
        let error = error(trial);
        if error < least {
            (inverse, least) = (trial, error);
        }
    }
    let mut q = v.map(|v| quant(v, inverse));
    let (mut sum_vq, mut sum_q2) = (0.0, 0.0);
    for i in 0..N {
        sum_vq += w[i] * v[i] * q[i];
        sum_q2 += w[i] * q[i] * q[i];
    }
    for _ in 0..ROUNDS {
        let before = q;
        for i in 0..N {
            let (vq, q2) = (sum_vq - w[i] * v[i] * q[i], sum_q2 - w[i] * q[i] * q[i]);
            if !(vq > 0.0 && q2 > 0.0) {
                continue;
            }
            let new = quant(v[i], q2 / vq);
            let (new_vq, new_q2) = (vq + w[i] * v[i] * new, q2 + w[i] * new * new);
            if new != q[i] && new_vq * new_vq * sum_q2 > sum_vq * sum_vq * new_q2 {
                (q[i], sum_vq, sum_q2) = (new, new_vq, new_q2);
            }
        }
        if q == before {
            break;
        }
    }
    (if sum_q2 > 0.0 { sum_vq / sum_q2 } else { 0.0 }, q.map(|q| q as u8))
}

#[cfg(test)]
mod tests {
    use super::unsigned;

    #[test]
    fn values_on_a_scale_are_kept_and_unimportant_ones_give_way() {
        let (scale, q) = unsigned(&[0.5, 1.0, 7.5, 0.0], &[1.0; 4], 15);
        assert_eq!((scale, q), (0.5, [1, 2, 15, 0]));
        assert_eq!(unsigned(&[0.0; 8], &[1.0; 8], 63), (0.0, [0; 8]));
        assert_eq!(unsigned(&[0.25, 1.0], &[0.0; 2], 3).0, 0.0);
        // 0.4 between 1/3 and 2/3 of 1.0: its error moves to the second value where that one does not count.
        let (scale, q) = unsigned(&[0.4, 1.0], &[1.0, 1e-6], 3);
        assert!((scale * q[0] as f32 - 0.4).abs() < 0.01, "{scale} {q:?}");
    }
}
