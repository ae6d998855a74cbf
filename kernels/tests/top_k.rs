//! Compares the largest values of rows and the sums, on every CPU and on the CUDA emulator, with the reference.

mod common;

use common::{Numbers, cpus};
use kernels::backend::{Backend, TopK};
use kernels::reference::Reference;

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

/// Asserts that the choice from some rows is the reference's.
fn check(what: &str, rows: usize, values: &[f32], n: usize) {
    let cols = values.len() / rows.max(1);
    let expected = Reference.top_k(&Reference.tensor(rows, cols, values), n);
    if let Some(cuda) = common::emulator::cuda() {
        compare(&format!("CUDA, {what}"), &cuda.top_k(&cuda.tensor(rows, cols, values), n), &expected);
    }
    for cpu in cpus() {
        let what = format!("{}, {what}", cpu.describe());
        compare(&what, &cpu.top_k(&cpu.tensor(rows, cols, values), n), &expected);
    }
}

fn compare(what: &str, got: &[TopK], expected: &[TopK]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        let n = expected.top.len();
        assert_eq!(
            (&got.top, got.complete),
            (&expected.top, expected.complete),
            "{what}, row {row}, the best {n}"
        );
        if expected.top.first().is_some_and(|(most, _)| most.is_finite()) {
            let apart = (got.sum_exp - expected.sum_exp).abs() / expected.sum_exp;
            assert!(apart < 1e-5, "{what}, row {row}: a sum of {}, not {}", got.sum_exp, expected.sum_exp);
        }
    }
}

/// A part of a row is 1024 columns and a block merges 4096 keys: sizes around both, and odd ones.
#[test]
fn any_size() {
    let mut numbers = Numbers(1);
    for (rows, cols) in [
        (1, 1),
        (1, 7),
        (3, 255),
        (2, 256),
        (1, 257),
        (2, 1023),
        (1, 1024),
        (3, 1025),
        (2, 5003),
        (1, 18_000),
    ] {
        let values: Vec<f32> = numbers.vec(rows * cols).iter().map(|v| v * 12.0).collect();
        for n in [1, 2, 5, 64, 200, 256] {
            check(&format!("[{rows}, {cols}]"), rows, &values, n);
        }
    }
    check("no rows", 0, &[], 3);
    check("no columns", 2, &[], 3);
}

/// Rows as wide as a vocabulary, whose lists are merged more than once, and rows of so many parts that the maxima are too.
#[test]
fn long_rows() {
    let values: Vec<f32> = Numbers(2).vec(163_840).iter().map(|v| v * 20.0).collect();
    check("a vocabulary", 1, &values, 256);
    check("a vocabulary", 1, &values, 1);
    let mut rising: Vec<f32> = (0..163_840).map(|i| i as f32).collect();
    check("rising", 1, &rising, 256);
    rising.reverse();
    check("falling", 1, &rising, 256);
}

/// Few different values, each in many columns.
#[test]
fn ties_go_to_the_lowest_column() {
    let mut numbers = Numbers(3);
    for kinds in [1, 2, 3, 40] {
        let values: Vec<f32> = (0..3 * 3001).map(|_| numbers.below(kinds) as f32 - 1.0).collect();
        for n in [1, 3, 256] {
            check(&format!("{kinds} values"), 3, &values, n);
        }
    }
    let zeros: Vec<f32> = (0..2000).map(|i| if i % 3 == 0 { 0.0 } else { -0.0 }).collect();
    check("zeros", 1, &zeros, 30);
}

/// Single numbers among NaN, infinities, and the smallest and largest numbers.
#[test]
fn what_is_no_number_is_left_out() {
    let few = |numbers: &[(usize, f32)], other: f32| -> Vec<f32> {
        let mut row = vec![other; 5000];
        numbers.iter().for_each(|(at, v)| row[*at] = *v);
        row
    };
    let tiny = f32::from_bits(1);
    for (what, row) in [
        ("no number", few(&[], NAN)),
        ("another NaN", few(&[(3, -NAN)], NAN)),
        ("one number", few(&[(4999, -3.0)], NAN)),
        ("few numbers", few(&[(0, -7.0), (1023, 2.0), (1024, 2.0), (4998, -INF)], NAN)),
        ("nothing is likely", few(&[], -INF)),
        ("one is possible", few(&[(2222, -1e30)], -INF)),
        ("infinite ones", few(&[(7, INF), (4000, INF), (9, NAN)], 1.0)),
        ("far apart", few(&[(1, f32::MAX), (2, f32::MIN), (3, 1e30)], -1.0)),
        ("smallest ones", few(&[(5, tiny), (6, -tiny), (4097, f32::MIN_POSITIVE), (4098, 2.0 * tiny)], 0.0)),
    ] {
        for n in [1, 4, 256] {
            check(what, 1, &row, n);
            check(what, 2, &[&row[..], &Numbers(4).vec(5000)].concat(), n);
        }
    }
}

/// Results do not depend on the order in which blocks and threads run.
#[test]
fn the_same_each_time() {
    let Some(b) = common::emulator::cuda() else { return };
    let x = b.tensor(2, 9000, &Numbers(5).vec(18_000));
    let first = b.top_k(&x, 256);
    (0..3).for_each(|_| assert_eq!(b.top_k(&x, 256), first));
}
