//! Compares the errors of the grid formats (IQ1, IQ2, IQ3) with those of ggml's quantizers on the same rows.
//!
//! `data/make_search_goldens.py` makes the rows, the importance of their columns and ggml's errors. The bytes differ, because
//! the search is another one. `cargo test -p kernels --test grid_search -- --nocapture` prints both errors.

use half::f16;
use kernels::quant::Format;
use std::path::Path;

const COLS: usize = 1024;

fn read(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quant/search").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn rows(kind: &str) -> Vec<f32> {
    read(&format!("{kind}.f16")).as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
}

/// The sum of importance times squared error, relative to that of the weights.
fn error(format: Format, x: &[f32], importance: Option<&[f32]>) -> f64 {
    let mut bytes = vec![0; format.row_bytes(COLS as u64).expect("whole blocks") as usize];
    let mut y = vec![0.0; COLS];
    let (mut errors, mut weights) = (0.0, 0.0);
    for x in x.chunks_exact(COLS) {
        match importance {
            Some(importance) => format.quantize_row_weighted(x, importance, &mut bytes),
            None => format.quantize_row(x, &mut bytes),
        }
        format.dequantize_row(&bytes, &mut y);
        for i in 0..COLS {
            let (x, y, w) = (x[i] as f64, y[i] as f64, importance.map_or(1.0, |v| v[i] as f64));
            errors += w * (x - y) * (x - y);
            weights += w * x * x;
        }
    }
    errors / weights
}

#[test]
fn errors_are_below_those_of_ggml() {
    let importance: Vec<f32> =
        read("importance.f32").as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let table = String::from_utf8(read("ggml.txt")).expect("text");
    let mut worse = Vec::new();
    for line in table.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let (format, x) = (Format::from_name(fields[0]).expect("a format"), rows(fields[1]));
        for (how, importance, theirs) in
            [("with", Some(&importance[..]), fields[2]), ("without", None, fields[3])]
        {
            let (ours, theirs) = (error(format, &x, importance), theirs.parse::<f64>().expect("a number"));
            let shown = format!(
                "{:<8} {:<9} {how:<8} ours {ours:.6} ggml {theirs:.6} ratio {:.3}",
                fields[0],
                fields[1],
                ours / theirs
            );
            println!("{shown}");
            if ours > theirs {
                worse.push(shown);
            }
        }
    }
    assert!(worse.is_empty(), "{}", worse.join("\n"));
}

/// Damaged or extreme importance must not make values that are not finite.
#[test]
fn extreme_importance_gives_finite_values() {
    let x = &rows("outliers")[..COLS];
    let many = [0.0, 1e-30, 1e30, f32::MIN_POSITIVE];
    for format in Format::ALL.into_iter().filter(|f| f.block_len() > 1) {
        let cases = many.into_iter().map(|v| vec![v; COLS]).chain([(0..COLS).map(|i| many[i % 4]).collect()]);
        for importance in cases {
            let mut bytes = vec![0; format.row_bytes(COLS as u64).expect("whole blocks") as usize];
            format.quantize_row_weighted(x, &importance, &mut bytes);
            let mut y = vec![f32::NAN; COLS];
            format.dequantize_row(&bytes, &mut y);
            assert!(y.iter().all(|y| y.is_finite() && y.abs() < 10.0), "{} {}", format.name(), importance[2]);
        }
    }
}
