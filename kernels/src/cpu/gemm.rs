//! Small products of f32 matrices in the cache: the pieces of attention and of the chunked delta rule.
//!
//! Tiles of 4 x 2 registers, so that the multipliers and not the loads are the bound. The order of sums of
//! one output does not depend on its place in a tile, nor on how many rows there are: rows cut anywhere give
//! the same bits. Products with stored weights are in `product`. Next: `kda`.

use super::isa::Isa;

/// Eight floats, zeros after the end of `x`.
#[inline(always)]
pub(super) fn load<I: Isa>(isa: I, x: &[f32]) -> I::Floats {
    match x.first_chunk::<8>() {
        Some(x) => isa.load_floats(x),
        None => {
            let mut eight = [0.0; 8];
            eight[..x.len()].copy_from_slice(x);
            isa.load_floats(&eight)
        }
    }
}

/// Writes eight floats, or as many as `out` takes.
#[inline(always)]
pub(super) fn store<I: Isa>(isa: I, v: I::Floats, out: &mut [f32]) {
    match out.first_chunk_mut::<8>() {
        Some(out) => isa.store(v, out),
        None => {
            let mut eight = [0.0; 8];
            isa.store(v, &mut eight);
            out.copy_from_slice(&eight[..out.len()]);
        }
    }
}

/// A matrix inside a slice: element (i, j) is at `i * step + j`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub values: &'a [f32],
    pub step: usize,
}

impl<'a> View<'a> {
    #[inline(always)]
    fn row(self, i: usize, cols: usize) -> &'a [f32] {
        &self.values[i * self.step..][..cols]
    }
}

/// c_ij = sum_l a_il b_jl for `m` rows of a and `n` rows of b, `k` columns each; c has `c_step` columns.
#[inline(always)]
pub(super) fn rows_by_rows<I: Isa>(
    isa: I,
    [m, n, k]: [usize; 3],
    a: View<'_>,
    b: View<'_>,
    c: &mut [f32],
    c_step: usize,
) {
    for i in (0..m).step_by(4) {
        for j in (0..n).step_by(2) {
            // The last rows again where a tile would go beyond.
            let rows: [&[f32]; 4] = std::array::from_fn(|r| a.row((i + r).min(m - 1), k));
            let cols: [&[f32]; 2] = std::array::from_fn(|r| b.row((j + r).min(n - 1), k));
            let sums = dots(isa, k, rows, cols);
            for (r, sums) in sums.iter().enumerate().take(m - i) {
                for (s, sum) in sums.iter().enumerate().take(n - j) {
                    c[(i + r) * c_step + j + s] = *sum;
                }
            }
        }
    }
}

#[inline(always)]
fn dots<I: Isa>(isa: I, k: usize, a: [&[f32]; 4], b: [&[f32]; 2]) -> [[f32; 2]; 4] {
    let mut sums = [[isa.splat(0.0); 2]; 4];
    let mut step = |a: [I::Floats; 4], b: [I::Floats; 2]| {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = isa.fma(a, b, *sum);
            }
        }
    };
    let eights = a.map(|a| &a.as_chunks::<8>().0[..k / 8]);
    let b_eights = b.map(|b| &b.as_chunks::<8>().0[..k / 8]);
    for l in 0..k / 8 {
        step(eights.map(|a| isa.load_floats(&a[l])), b_eights.map(|b| isa.load_floats(&b[l])));
    }
    if !k.is_multiple_of(8) {
        let from = k / 8 * 8;
        step(a.map(|a| load(isa, &a[from..])), b.map(|b| load(isa, &b[from..])));
    }
    sums.map(|sums| sums.map(|sum| isa.total(sum)))
}

/// Where the left factor's elements are: (i, l) at `i * row + l * col`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub col: usize,
}

/// c_ij = f_i c_ij + sum_l a_il b_lj for `m` rows and `n` columns, `k` terms; row i of c is at `i * c_step`.
#[inline(always)]
pub(super) fn add_product<I: Isa>(
    isa: I,
    [m, n, k]: [usize; 3],
    a: Left<'_>,
    b: View<'_>,
    c: &mut [f32],
    (c_step, factor): (usize, impl Fn(usize) -> f32 + Copy),
) {
    for j in (0..n).step_by(16) {
        let cols = j..n.min(j + 16);
        let mut i = 0;
        while i < m {
            if m - i >= 4 {
                add_tile::<I, 4>(isa, (i, cols.clone(), k), a, b, c, (c_step, factor));
                i += 4;
            } else {
                add_tile::<I, 1>(isa, (i, cols.clone(), k), a, b, c, (c_step, factor));
                i += 1;
            }
        }
    }
}

#[inline(always)]
fn add_tile<I: Isa, const M: usize>(
    isa: I,
    (i, cols, k): (usize, std::ops::Range<usize>, usize),
    a: Left<'_>,
    b: View<'_>,
    c: &mut [f32],
    (c_step, factor): (usize, impl Fn(usize) -> f32),
) {
    let mid = cols.len().min(8);
    let mut sums = [[isa.splat(0.0); 2]; M];
    for (r, sums) in sums.iter_mut().enumerate() {
        let c = &c[(i + r) * c_step..][cols.clone()];
        let f = isa.splat(factor(i + r));
        *sums = [isa.mul(f, load(isa, &c[..mid])), isa.mul(f, load(isa, &c[mid..]))];
    }
    for l in 0..k {
        let b = &b.values[l * b.step..][cols.clone()];
        let b = match b.as_chunks::<8>().0 {
            [low, high] => [isa.load_floats(low), isa.load_floats(high)],
            _ => [load(isa, &b[..mid]), load(isa, &b[mid..])],
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            let f = isa.splat(a.values[(i + r) * a.row + l * a.col]);
            *sums = [isa.fma(f, b[0], sums[0]), isa.fma(f, b[1], sums[1])];
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let c = &mut c[(i + r) * c_step..][cols.clone()];
        let (low, high) = c.split_at_mut(mid);
        store(isa, sums[0], low);
        store(isa, sums[1], high);
    }
}
