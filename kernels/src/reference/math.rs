//! Scalar functions of the oracle, and its ops on one row or one head; all sums run in f64.

use crate::backend::Rope;

pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "a dot product of unequal lengths");
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

pub(super) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

pub(super) fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// SiLU(gate) * up, both limited.
pub(super) fn limited(gate: f64, up: f64, limit: f32) -> f64 {
    let limit = limit as f64;
    // Comparisons keep NaN, which min and max would drop.
    let gate = if silu(gate) > limit { limit } else { silu(gate) };
    gate * up.clamp(-limit, limit)
}

/// ln(1 + e^x) without overflow.
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Rotates the last columns of a row.
pub(super) fn rotate(row: &mut [f32], position: f64, rope: Rope) {
    let first = row.len() - rope.dims;
    for (i, pair) in row[first..].chunks_exact_mut(2).enumerate() {
        let angle = position * (rope.base as f64).powf(-2.0 * i as f64 / rope.dims as f64);
        let (sin, cos) = angle.sin_cos();
        let (x, y) = (pair[0] as f64, pair[1] as f64);
        pair.copy_from_slice(&[(x * cos - y * sin) as f32, (x * sin + y * cos) as f32]);
    }
}

/// One token of one head: S is `[dk, dv]`; gives o, `[dv]`.
pub(super) fn delta_rule_step(
    s: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    g: &[f32],
    beta: f32,
) -> Vec<f32> {
    let dv = v.len();
    for (row, g) in s.chunks_exact_mut(dv).zip(g) {
        row.iter_mut().for_each(|s| *s = (*s as f64 * (*g as f64).exp()) as f32);
    }
    // (S^T x)_j
    let read = |s: &[f32], x: &[f32], j: usize| -> f64 {
        x.iter().enumerate().map(|(i, x)| s[i * dv + j] as f64 * *x as f64).sum()
    };
    let mut o = vec![0.0; dv];
    for j in 0..dv {
        let error = v[j] as f64 - read(s, k, j);
        for (i, k) in k.iter().enumerate() {
            s[i * dv + j] += (beta as f64 * *k as f64 * error) as f32;
        }
        o[j] = read(s, q, j) as f32;
    }
    o
}
