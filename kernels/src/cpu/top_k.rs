//! Finds the top-k logits of each row for sampling.
//!
//! A row is split into parts. At least n values reach the n-th largest of the parts' maxima, so only values at or above
//! that threshold are sorted: few more than n where ties are rare. Parts have a fixed size and their sums are added in
//! order, so the result does not depend on the number of threads. Next: `pool`.

use super::Cpu;
use super::autovec::{AutovecKernel, exp, run};
use super::memory::Tensor;
use crate::backend::{MAX_TOP_K, TopK};
use std::cmp::Ordering;

/// Largest number of columns per part; narrow rows use fewer, so that there are more parts than requested values.
const PART: usize = 256;
/// Columns a thread claims at a time: about 5 us.
const CHUNK: usize = 16 * 1024;

pub(super) fn top_k(cpu: &Cpu, x: &Tensor, n: usize) -> Vec<TopK> {
    assert!((1..=MAX_TOP_K).contains(&n), "top-{n}: n must be 1 to {MAX_TOP_K}");
    let part = (x.cols / (2 * n) / 16 * 16).clamp(16, PART);
    let mut of_parts = cpu.buffers.floats(x.cols.div_ceil(part));
    let of_parts = &mut of_parts.floats_mut()[..x.cols.div_ceil(part)];
    (0..x.rows).map(|r| of_row(cpu, x.row(r), n, part, of_parts)).collect()
}

fn of_row(cpu: &Cpu, row: &[f32], n: usize, part: usize, of_parts: &mut [f32]) -> TopK {
    let each = CHUNK / part;
    let values = |i: usize| &row[i * each * part..row.len().min((i + 1) * each * part)];
    cpu.pool.for_chunks(of_parts, each, |i, out| run(cpu.level, Maxima { row: values(i), part, out }));
    let mut sorted = of_parts.to_vec();
    let most = sorted.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = match sorted.len() < n {
        true => f32::NEG_INFINITY,
        false => *sorted.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1,
    };
    let mut top = Vec::with_capacity(2 * n);
    for (i, values) in row.chunks(part).enumerate().filter(|(i, _)| of_parts[*i] >= least) {
        let columns = values.iter().zip((i * part) as u32..);
        top.extend(columns.filter(|(v, _)| **v >= least).map(|(v, c)| (v + 0.0, c))); // -0 equals 0
    }
    if top.len() > n {
        top.select_nth_unstable_by(n - 1, descending);
        top.truncate(n);
    }
    top.sort_unstable_by(descending);
    cpu.pool.for_chunks(of_parts, each, |i, out| run(cpu.level, ExpSums { row: values(i), part, most, out }));
    TopK {
        complete: top.len() < n || row.len() <= n,
        top,
        sum_exp: of_parts.iter().map(|sum| f64::from(*sum)).sum::<f64>() as f32,
    }
}

fn descending(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The largest number of each part; -inf where there is none.
struct Maxima<'a> {
    row: &'a [f32],
    part: usize,
    out: &'a mut [f32],
}

impl AutovecKernel for Maxima<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (values, out) in self.row.chunks(self.part).zip(self.out) {
            let mut lanes = [f32::NEG_INFINITY; 16];
            let (whole, rest) = values.as_chunks::<16>();
            for values in whole {
                for l in 0..16 {
                    lanes[l] = if values[l] > lanes[l] { values[l] } else { lanes[l] };
                }
            }
            let larger = |most: f32, v: &f32| if *v > most { *v } else { most };
            *out = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, larger);
        }
    }
}

/// The sum of e^(x - most) over each part's numbers.
struct ExpSums<'a> {
    row: &'a [f32],
    part: usize,
    most: f32,
    out: &'a mut [f32],
}

impl AutovecKernel for ExpSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (values, out) in self.row.chunks(self.part).zip(self.out) {
            let mut lanes = [0.0; 16];
            let (whole, rest) = values.as_chunks::<16>();
            for values in whole {
                for l in 0..16 {
                    let weight = exp::<FMA>(values[l] - self.most);
                    lanes[l] += if values[l].is_nan() { 0.0 } else { weight };
                }
            }
            let numbers = rest.iter().filter(|v| !v.is_nan());
            *out = lanes.iter().sum::<f32>() + numbers.map(|v| exp::<FMA>(v - self.most)).sum::<f32>();
        }
    }
}
