//! Compares the errors of quantizers whose scales are refined with those of ggml's quantizers on the same rows.
//!
//! The rows are those of `grid_search.rs`; ggml's bytes are those of `quantize_row` and `quantize_row_weighted`, which
//! `quant_goldens.rs` pins. `cargo test -p kernels --test refine -- --nocapture` prints the ratios.

use half::f16;
use kernels::quant::Format;
use std::path::Path;

const COLS: usize = 1024;
/// Formats whose scales are refined.
const REFINED: [Format; 9] = [
    Format::Q2_K,
    Format::Q3_K,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
];

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quant/search").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn rows(kind: &str) -> Vec<f32> {
    read(&format!("{kind}.f16")).as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
}

fn importance() -> Vec<f32> {
    read("importance.f32").as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// The sum of importance times squared error of a row with ggml's bytes, and with refined scales.
fn errors(format: Format, x: &[f32], importance: Option<&[f32]>) -> [f64; 2] {
    let mut bytes = vec![0; format.row_bytes(x.len() as u64).expect("whole blocks") as usize];
    let mut y = vec![0.0; x.len()];
    [false, true].map(|refined| {
        match importance {
            _ if refined => format.quantize_row_refined(x, importance, &mut bytes),
            Some(importance) => format.quantize_row_weighted(x, importance, &mut bytes),
            None => format.quantize_row(x, &mut bytes),
        }
        format.dequantize_row(&bytes, &mut y);
        let weight = |i: usize| importance.map_or(1.0, |w| f64::from(w[i]));
        (0..x.len()).map(|i| weight(i) * f64::from(x[i] - y[i]).powi(2)).sum()
    })
}

#[test]
fn no_row_has_a_larger_error_than_with_the_bytes_of_ggml() {
    let importance = importance();
    for format in Format::ALL.into_iter().filter(|format| COLS.is_multiple_of(format.block_len())) {
        for kind in ["gaussian", "laplace", "outliers", "demo"] {
            for (how, importance) in [("with", Some(&importance[..])), ("without", None)] {
                let (mut sums, mut equal) = ([0.0; 2], true);
                for x in rows(kind).chunks_exact(COLS) {
                    let [theirs, ours] = errors(format, x, importance);
                    assert!(ours <= theirs, "{} {kind} {how}: {ours} after {theirs}", format.name());
                    sums = [sums[0] + theirs, sums[1] + ours];
                    equal &= ours == theirs;
                }
                println!("{:<8} {kind:<9} {how:<8} ratio {:.3}", format.name(), sums[1] / sums[0]);
                assert_eq!(equal, !REFINED.contains(&format), "{}", format.name());
                assert!(equal || sums[1] < 0.99 * sums[0], "{} {kind} {how}: {sums:?}", format.name());
            }
        }
    }
}

#[test]
fn rows_of_zeros_and_of_unimportant_columns_stay_finite() {
    let gaussian = &rows("gaussian")[..COLS];
    for format in REFINED {
        for (x, weight) in [(&vec![0.0; COLS][..], 1.0), (gaussian, 0.0), (gaussian, 1e-30), (gaussian, 1e30)]
        {
            let [theirs, ours] = errors(format, x, Some(&vec![weight; COLS]));
            assert!(ours.is_finite() && ours <= theirs, "{} {weight}: {ours} after {theirs}", format.name());
        }
    }
}
