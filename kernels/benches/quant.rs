//! Measures the quant formats on one core: `cargo bench -p kernels --bench quant [FORMAT ...]`.
//!
//! For each format and SIMD level it prints GB/s of weights through `matmul_tile` from L2 and from memory, G
//! multiply-adds/s of `matmul_tile` with 32 tokens, and Mweights/s of `quantize_row`, `quantize_row_weighted`, `dequantize_row` and
//! activation quantization. Results are the best of several passes; from memory, the median of slices.

use kernels::quant::{Activation, Format, matmul_tile};
use kernels::simd::SimdLevel;
use std::hint::black_box;
use std::time::Instant;

const COLS: usize = 2304;
const NEAR_BYTES: usize = 512 << 10;
const FAR_BYTES: usize = 192 << 20;
const TOKENS: usize = 32;
const ROWS_AT_ONCE: usize = 1024;

/// Best seconds of a pass.
fn best(passes: usize, mut pass: impl FnMut()) -> f64 {
    let one = |pass: &mut dyn FnMut()| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    };
    (0..passes).map(|_| one(&mut pass)).fold(f64::INFINITY, f64::min)
}

/// Seconds for a buffer that exceeds the caches, from the median of its slices, each of which is shorter than a scheduler
/// time slice.
fn far_seconds(far: &[u8], rows: usize, mut slice: impl FnMut(&[u8], usize)) -> f64 {
    let (slices, row) = (rows / ROWS_AT_ONCE, far.len() / rows);
    let mut seconds: Vec<f64> = (0..2 * slices)
        .map(|i| {
            best(1, || slice(&far[i % slices * ROWS_AT_ONCE * row..][..ROWS_AT_ONCE * row], ROWS_AT_ONCE))
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[slices] * rows as f64 / ROWS_AT_ONCE as f64
}

fn noise(n: usize) -> Vec<f32> {
    let mut state = 88172645463325252_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (0..4).map(|i| (state >> (16 * i) & 0xffff) as f32 / 32768.0 - 1.0).sum()
    };
    (0..n).map(|_| next()).collect()
}

/// Rows of a format, about this many bytes: a few valid rows, repeated.
fn stored(format: Format, bytes: usize) -> (Vec<u8>, usize) {
    let row = format.row_bytes(COLS as u64).expect("whole blocks") as usize;
    let rows = (bytes / row).max(8) / 8 * 8;
    let mut eight = vec![0; 8 * row];
    format.quantize_row(&noise(8 * COLS), &mut eight);
    (eight.repeat(rows / 8), rows)
}

fn prepared(level: SimdLevel, activation: Activation, tokens: usize) -> Vec<u8> {
    let mut x = vec![0; activation.row_bytes(COLS * tokens)];
    activation.quantize_row(level, &noise(COLS * tokens), &mut x);
    x
}

fn products(format: Format, far: &[u8], far_rows: usize) {
    let (near, near_rows) = stored(format, NEAR_BYTES);
    for level in SimdLevel::available() {
        let x = prepared(level, format.activation(), 1);
        let mut y = vec![0.0; far_rows];
        let quick = best(30, || {
            for _ in 0..10 {
                matmul_tile(level, format, black_box(&near), COLS, &x, black_box(&mut y[..near_rows]));
            }
        });
        let slow = far_seconds(far, far_rows, |w, rows| {
            matmul_tile(level, format, black_box(w), COLS, &x, black_box(&mut y[..rows]));
        });
        let many = prepared(level, format.activation(), TOKENS);
        let mut out = vec![0.0; TOKENS * near_rows];
        let tile = best(4, || matmul_tile(level, format, black_box(&near), COLS, &many, black_box(&mut out)));
        println!(
            "{:7} {:13} {:8.1} GB/s near {:8.1} GB/s far {:8.1} G multiply-adds/s tiled",
            format.name(),
            level.name(),
            near.len() as f64 * 10.0 / quick / 1e9,
            far.len() as f64 / slow / 1e9,
            (near_rows * COLS * TOKENS) as f64 / tile / 1e9,
        );
    }
}

fn conversions(format: Format) {
    let x = noise(64 * COLS);
    let mut bytes = vec![0; format.row_bytes(x.len() as u64).expect("whole blocks") as usize];
    let mut y = vec![0.0; x.len()];
    let write = best(5, || format.quantize_row(black_box(&x), black_box(&mut bytes)));
    let importance: Vec<f32> = noise(x.len()).iter().map(|v| v * v).collect();
    let weighted = best(5, || {
        format.quantize_row_weighted(black_box(&x), black_box(&importance), black_box(&mut bytes))
    });
    let read = best(20, || format.dequantize_row(black_box(&bytes), black_box(&mut y)));
    let rate = |seconds: f64| x.len() as f64 / seconds / 1e6;
    println!(
        "{:7} {:8.1} M/s quantized {:8.1} M/s with importance {:8.0} M/s dequantized",
        format.name(),
        rate(write),
        rate(weighted),
        rate(read)
    );
}

fn memory() {
    let far = vec![1_u64; FAR_BYTES / 8];
    let seconds = best(5, || {
        black_box(black_box(&far).iter().fold(0_u64, |a, b| a ^ b));
    });
    println!("memory read by a plain loop: {:.1} GB/s", FAR_BYTES as f64 / seconds / 1e9);
}

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter_map(|name| Format::from_name(&name)).collect();
    let formats: Vec<_> =
        Format::ALL.into_iter().filter(|f| wanted.is_empty() || wanted.contains(f)).collect();
    memory();
    for &format in &formats {
        let (far, rows) = stored(format, FAR_BYTES);
        products(format, &far, rows);
    }
    for &format in &formats {
        conversions(format);
    }
    for (name, activation) in [("Q8x32", Activation::Q8x32), ("Q8x256", Activation::Q8x256)] {
        for level in SimdLevel::available() {
            let (x, mut out) = (noise(COLS), vec![0; activation.row_bytes(COLS)]);
            let run = || activation.quantize_row(level, black_box(&x), black_box(&mut out));
            println!(
                "{name:7} {:13} {:8.1} GB/s of f32",
                level.name(),
                COLS as f64 * 4.0 / best(2000, run) / 1e9
            );
        }
    }
}
