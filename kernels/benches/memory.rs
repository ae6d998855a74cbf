//! Compares the speed of GEMV on all cores with memory bandwidth: `cargo bench -p kernels --bench memory [FORMAT ...]`.
//!
//! Weight rows that exceed the caches are multiplied in chunks claimed from a pool, as in decode, alternating with a plain
//! sum over the same bytes in the same chunks. Prints medians of nine rounds.

use kernels::cpu::Cpu;
use kernels::quant::{Format, matmul_tile};
use kernels::simd::SimdLevel;
use std::hint::black_box;
use std::time::Instant;

const COLS: usize = 2304;
const BYTES: usize = 768 << 20;
const CHUNK_BYTES: usize = 384 << 10;
const ROUNDS: usize = 9;

/// Rows of a format: a few valid rows, repeated.
fn stored(format: Format) -> (Vec<u8>, usize) {
    let row = format.row_bytes(COLS as u64).expect("whole blocks") as usize;
    let values: Vec<f32> = (0..8 * COLS).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
    let mut eight = vec![0; 8 * row];
    format.quantize_row(&values, &mut eight);
    (eight.repeat(BYTES / row / 8), row)
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter_map(|name| Format::from_name(&name)).collect();
    let cpu = Cpu::detect(None);
    let pool = cpu.pool();
    let level = *SimdLevel::available().last().expect("scalar at least");
    println!("{} threads, {}", pool.threads(), level.name());
    for format in Format::ALL.into_iter().filter(|f| wanted.is_empty() || wanted.contains(f)) {
        let (w, row) = stored(format);
        let mut x = vec![0; format.activation().row_bytes(COLS)];
        format.activation().quantize_row(level, &vec![0.5; COLS], &mut x);
        let chunk = (CHUNK_BYTES / row).next_multiple_of(8) * row;
        let chunks = w.len() / chunk;
        let (mut plain, mut product) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            plain.push(seconds(|| {
                pool.parallel_for(chunks, |i| {
                    let words = bytemuck::pod_align_to::<u8, u64>(&w[i * chunk..(i + 1) * chunk]).1;
                    black_box(words.iter().fold(0u64, |a, x| a.wrapping_add(*x)));
                });
            }));
            product.push(seconds(|| {
                pool.parallel_for(chunks, |i| {
                    let mut y = [0.0; 4096];
                    matmul_tile(
                        level,
                        format,
                        &w[i * chunk..(i + 1) * chunk],
                        COLS,
                        &x,
                        &mut y[..chunk / row],
                    );
                    black_box(&y);
                });
            }));
        }
        let rate = |seconds: Vec<f64>| (chunks * chunk) as f64 / median(seconds) / 1e9;
        let (plain, product) = (rate(plain), rate(product));
        println!("{:7} {product:6.1} GB/s of {plain:6.1} = {:3.0} %", format.name(), product / plain * 100.0);
    }
}
