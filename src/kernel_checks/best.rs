//! Compares top-k of rows on the device with a sort: ties, NaN, and sizes around those of a block.
//!
//! Selected values have to be equal, sums equal up to rounding. Next: [`super::rng`].

use super::CheckRow;
use super::rng::TestRng;
use kernels::backend::{Backend, TopK};
use kernels::cuda::Cuda;
use kernels::reference::Reference;

/// The tolerance of the sum of weights.
const EXACT: f32 = 1e-5;

/// Compares the top `n` of rows of `cols` columns.
pub(super) fn compare(cuda: &Cuda, what: &str, cols: usize, values: &[f32], n: usize) -> CheckRow {
    let rows = values.len() / cols;
    let expected = Reference.top_k(&Reference.tensor(rows, cols, values), n);
    let got = cuda.top_k(&cuda.tensor(rows, cols, values), n);
    let same = |(g, e): (&TopK, &TopK)| g.top == e.top && g.complete == e.complete;
    let wrong = got.iter().zip(&expected).filter(|pair| !same(*pair)).count();
    // Sums are defined only if the largest value is finite.
    let difference = |(g, e): (&TopK, &TopK)| match e.top.first() {
        Some((most, _)) if most.is_finite() => ((g.sum_exp - e.sum_exp) / e.sum_exp).abs(),
        _ => 0.0,
    };
    let nan = |difference: f32| if difference.is_nan() { f32::INFINITY } else { difference };
    let worst = got.iter().zip(&expected).map(difference).map(nan).fold(0.0, f32::max);
    let passed = got.len() == expected.len() && wrong == 0 && worst <= EXACT;
    let found = format!("{wrong} rows differ, sums {worst:.1e}");
    CheckRow { what: format!("top {n} of {rows} x {cols}, {what}"), found, passed: Some(passed) }
}

/// Checks random rows, rows of ties, and rows with many NaN values.
pub fn rows(cuda: &Cuda, seed: u64) -> Vec<CheckRow> {
    let mut n = TestRng::new(seed);
    let mut all = Vec::new();
    for (rows, cols, most) in
        [(1, 1, 1), (3, 255, 256), (2, 1024, 1), (5, 1025, 40), (33, 4099, 256), (1, 163_840, 256)]
    {
        let values: Vec<f32> = n.vec(rows * cols).iter().map(|x| x * 15.0).collect();
        all.push(compare(cuda, "random", cols, &values, most));
    }
    let ties: Vec<f32> = n.vec(2 * 9001).iter().map(|x| (x * 2.0).round()).collect();
    let few = |n: &mut TestRng, other: f32| -> Vec<f32> {
        (0..2 * 9001).map(|_| if n.uniform(0.0, 1.0) < 0.01 { n.uniform(-9.0, 9.0) } else { other }).collect()
    };
    let (mut infinite, mut nothing) = (few(&mut n, f32::NEG_INFINITY), few(&mut n, f32::NAN));
    infinite[5000] = f32::INFINITY;
    nothing[..9001].fill(f32::NAN);
    for (what, values) in [
        ("ties", ties),
        ("equal", vec![-3.0; 2 * 9001]),
        ("few numbers", few(&mut n, f32::NAN)),
        ("few possible", few(&mut n, f32::NEG_INFINITY)),
        ("an infinite one", infinite),
        ("no number", nothing),
    ] {
        all.extend([1, 256].map(|most| compare(cuda, what, 9001, &values, most)));
    }
    all
}
