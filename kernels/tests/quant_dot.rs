//! Dot products with quantized rows: every instruction set is bit-identical to the scalar loops, for any bytes, and the
//! scalar loops are exact to within the rounding of 8-bit activations.

#[path = "common/random.rs"]
mod random;

use kernels::quant::{Activation, Format, matmul_tile};
use kernels::simd::SimdLevel;
use random::Random;

/// Small, odd, even and long rows, in blocks.
const BLOCKS: [usize; 9] = [0, 1, 2, 3, 4, 5, 7, 16, 33];

impl Random {
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 32) as u8).collect()
    }
    /// Values with a roughly Gaussian distribution.
    fn floats(&mut self, n: usize) -> Vec<f32> {
        let mut one = || (0..4).map(|i| (self.next() >> (8 * i) & 0xffff) as f32 / 32768.0 - 1.0).sum();
        (0..n).map(|_| one()).collect()
    }
}

fn levels() -> (SimdLevel, Vec<SimdLevel>) {
    let all = SimdLevel::available();
    (all[0], all)
}

fn activations(format: Format, level: SimdLevel, x: &[f32]) -> Vec<u8> {
    let mut out = vec![0; format.activation().row_bytes(x.len())];
    format.activation().quantize_row(level, x, &mut out);
    out
}

/// The bits of a float, with one NaN for all: machines differ in which of two NaN they propagate.
fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| if y.is_nan() { f32::NAN.to_bits() } else { y.to_bits() }).collect()
}

/// Compares the dot products with rows of these bytes on every instruction set.
fn check(format: Format, cols: usize, weights: &[u8], x: &[f32]) {
    let rows = weights.len() / (format.row_bytes(cols as u64).expect("whole blocks") as usize).max(1);
    let (scalar, all) = levels();
    let mut expected = vec![1.0; rows];
    matmul_tile(scalar, format, weights, cols, &activations(format, scalar, x), &mut expected);
    for level in all {
        let x = activations(format, level, x);
        let mut y = vec![2.0; rows];
        matmul_tile(level, format, weights, cols, &x, &mut y);
        assert_eq!(bits(&y), bits(&expected), "{} x {cols} at {}", format.name(), level.name());
    }
}

fn column_counts(format: Format) -> impl Iterator<Item = usize> {
    let tails = if format.block_len() == 1 { vec![8, 9, 31, 32, 63, 100, 577] } else { vec![] };
    BLOCKS.into_iter().map(move |n| n * format.block_len()).chain(tails)
}

#[test]
fn random_bytes_give_the_same_bits_everywhere() {
    let mut random = Random::new(1);
    for format in Format::ALL {
        for cols in column_counts(format) {
            let bytes = format.row_bytes(cols as u64).expect("whole blocks") as usize;
            let x = random.floats(cols);
            check(format, cols, &random.bytes(3 * bytes), &x);
        }
    }
}

#[test]
fn extreme_bytes_give_the_same_bits_everywhere() {
    let mut random = Random::new(7);
    for format in Format::ALL {
        for cols in column_counts(format) {
            let bytes = format.row_bytes(cols as u64).expect("whole blocks") as usize;
            let plus = vec![1.0; cols];
            let alternating: Vec<f32> = (0..cols).map(|i| if i % 2 == 0 { -1e4 } else { 1e4 }).collect();
            let odd: Vec<f32> =
                (0..cols).map(|i| [f32::NAN, f32::INFINITY, 1e-44, 3e38, -0.0][i * i % 5]).collect();
            for fill in [0x00, 0x11, 0x3b, 0x77, 0x7b, 0x7f, 0x80, 0x81, 0x88, 0xaa, 0xff] {
                let weights = vec![fill; bytes];
                for x in [&plus, &alternating, &odd, &random.floats(cols)] {
                    check(format, cols, &weights, x);
                }
            }
        }
    }
}

#[test]
fn quantized_rows_give_the_same_bits_everywhere_and_the_right_sum() {
    let mut random = Random::new(42);
    for format in Format::ALL {
        for cols in column_counts(format).filter(|&n| n > 0) {
            let (w, x) = (random.floats(2 * cols), random.floats(cols));
            let mut weights = vec![0; 2 * format.row_bytes(cols as u64).expect("whole blocks") as usize];
            format.quantize_row(&w, &mut weights);
            check(format, cols, &weights, &x);
            right_sum(format, cols, &weights, &x);
        }
    }
}

/// Compares with f64 sums over the stored weights. An activation is off by at most half a quantization step of its block, a
/// step is 1/127 of the largest activation, and the error is at most the sum of |w| times that; f32 sums lose a little more.
fn right_sum(format: Format, cols: usize, weights: &[u8], x: &[f32]) {
    let scalar = levels().0;
    let mut w = vec![0.0; 2 * cols];
    format.dequantize_row(weights, &mut w);
    let mut y = [0.0; 2];
    matmul_tile(scalar, format, weights, cols, &activations(format, scalar, x), &mut y);
    let most = x.iter().fold(0.0, |m: f32, x| m.max(x.abs())) as f64;
    let step = if format.activation() == Activation::F32 { 0.0 } else { most / 127.0 };
    for (w, y) in w.chunks_exact(cols).zip(y) {
        let exact: f64 = w.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum();
        let sizes: f64 = w.iter().map(|w| w.abs() as f64).sum();
        let bound = sizes * (step / 2.0 * 1.0001 + most * 2e-6);
        assert!((y as f64 - exact).abs() <= bound, "{} x {cols}: {y}, not {exact} +- {bound}", format.name());
    }
}

#[test]
fn tokens_do_not_see_each_other() {
    let mut random = Random::new(99);
    for format in Format::ALL {
        let (cols, rows, tokens) = (5 * format.block_len().max(64), 37, 21);
        let mut weights = vec![0; rows * format.row_bytes(cols as u64).expect("whole blocks") as usize];
        format.quantize_row(&random.floats(rows * cols), &mut weights);
        for level in levels().1 {
            let x: Vec<_> = (0..tokens).map(|_| activations(format, level, &random.floats(cols))).collect();
            for batch in 1..=tokens {
                let mut y = vec![0.0; batch * rows];
                matmul_tile(level, format, &weights, cols, &x[..batch].concat(), &mut y);
                for (x, y) in x.iter().zip(y.chunks_exact(rows)) {
                    let mut alone = vec![0.0; rows];
                    matmul_tile(level, format, &weights, cols, x, &mut alone);
                    assert_eq!(y, alone, "{} at {}, {batch} tokens", format.name(), level.name());
                }
            }
        }
    }
}

#[test]
fn many_tokens_give_the_same_bits_everywhere() {
    let mut random = Random::new(5);
    let (scalar, all) = levels();
    for format in Format::ALL {
        let (cols, rows) = (3 * format.block_len().max(64), 19);
        let row_bytes = format.row_bytes(cols as u64).expect("whole blocks") as usize;
        for tokens in [4, 5, 16, 17, 33, 129] {
            for fill in [None, Some(0x7f), Some(0x80), Some(0xff)] {
                let weights =
                    fill.map_or_else(|| random.bytes(rows * row_bytes), |b| vec![b; rows * row_bytes]);
                let mut x = random.floats(tokens * cols);
                x[..cols].fill(-1.0); // quants of -127
                let x = activations(format, scalar, &x);
                let mut expected = vec![1.0; tokens * rows];
                matmul_tile(scalar, format, &weights, cols, &x, &mut expected);
                for &level in &all {
                    let mut y = vec![2.0; tokens * rows];
                    matmul_tile(level, format, &weights, cols, &x, &mut y);
                    let case = format!("{} at {}, {tokens} tokens, {fill:?}", format.name(), level.name());
                    assert_eq!(bits(&y), bits(&expected), "{case}");
                }
            }
        }
    }
}

#[test]
fn activations_are_the_same_bytes_everywhere() {
    let mut random = Random::new(3);
    let (scalar, all) = levels();
    let mut x = random.floats(2048);
    x[..256].fill(0.0);
    x[256..512].fill(1e-44);
    x[700] = f32::NAN;
    x[1000] = f32::NEG_INFINITY;
    x[1300] = 3e38;
    for format in [Format::F32, Format::Q4_0, Format::Q4_K] {
        for &level in &all {
            assert_eq!(activations(format, level, &x), activations(format, scalar, &x), "{}", level.name());
        }
    }
}

#[test]
#[should_panic(expected = "bytes of 0 x 256 activations")]
fn a_wrong_length_panics() {
    matmul_tile(levels().0, Format::Q8_0, &[0; 272], 256, &[0; 10], &mut [0.0]);
}
