//! Multiplies small f32 matrices in cache: the blocks of attention.
//!
//! Register tiles of 4 x 2 sums (4 x 4 with 32 registers) keep the multipliers busy rather than the load ports. The
//! summation order of an output depends neither on its position in a tile nor on the number of rows, so a batch split
//! anywhere gives the same bits. Products with stored weights are in `matmul`. Next: `kda`.

use crate::simd::Isa;

/// Loads eight floats, zero-padded past the end of `x`.
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

/// Rows of b per cache block: 18 KiB of attention's 576 columns, which stay in L1.
const NC: usize = 8;

/// c_ij = sum_l a_il b_jl for `m` rows of a and `n` rows of b, `k` columns each; c has `c_step` columns.
#[inline(always)]
pub(super) fn matmul_nt<I: Isa>(
    isa: I,
    [m, n, k]: [usize; 3],
    a: View<'_>,
    b: View<'_>,
    c: &mut [f32],
    c_step: usize,
) {
    for near in (0..n).step_by(NC) {
        let end = n.min(near + NC);
        for i in (0..m).step_by(4) {
            let mut j = near;
            while j < end {
                if I::MANY_REGISTERS && n - j >= 4 {
                    dots_tile::<I, 4>(isa, [m, n, k], (i, j), [a, b], c, c_step);
                    j += 4;
                } else {
                    dots_tile::<I, 2>(isa, [m, n, k], (i, j), [a, b], c, c_step);
                    j += 2;
                }
            }
        }
    }
}

/// Four rows of a times `N` of b; a partial tile repeats the last rows.
#[inline(always)]
fn dots_tile<I: Isa, const N: usize>(
    isa: I,
    [m, n, k]: [usize; 3],
    (i, j): (usize, usize),
    [a, b]: [View<'_>; 2],
    c: &mut [f32],
    c_step: usize,
) {
    let (mut rows, mut cols) = ([[].as_slice(); 4], [[].as_slice(); N]);
    for (r, row) in rows.iter_mut().enumerate() {
        *row = a.row((i + r).min(m - 1), k);
    }
    for (r, col) in cols.iter_mut().enumerate() {
        *col = b.row((j + r).min(n - 1), k);
    }
    let sums = dots::<I, N>(isa, k, rows, cols);
    for (r, sums) in sums.iter().enumerate().take(m - i) {
        let c = &mut c[(i + r) * c_step + j..];
        for (c, sum) in c.iter_mut().zip(sums).take(n - j) {
            *c = isa.reduce_add(*sum);
        }
    }
}

/// Plain loops: closures and `map` would not be compiled for the instruction set.
#[inline(always)]
fn dots<I: Isa, const N: usize>(isa: I, k: usize, a: [&[f32]; 4], b: [&[f32]; N]) -> [[I::Floats; N]; 4] {
    let mut sums = [[isa.splat(0.0); N]; 4];
    let whole = k / 8;
    let (mut left, mut right) = ([[].as_slice(); 4], [[].as_slice(); N]);
    for r in 0..4 {
        left[r] = eights(a[r], whole);
    }
    for r in 0..N {
        right[r] = eights(b[r], whole);
    }
    for l in 0..whole {
        let mut b = [isa.splat(0.0); N];
        for n in 0..N {
            b[n] = isa.load_floats(&right[n][l]);
        }
        for r in 0..4 {
            let a = isa.load_floats(&left[r][l]);
            for n in 0..N {
                sums[r][n] = isa.fma(a, b[n], sums[r][n]);
            }
        }
    }
    if !k.is_multiple_of(8) {
        for r in 0..4 {
            let a = load(isa, &a[r][whole * 8..]);
            for n in 0..N {
                sums[r][n] = isa.fma(a, load(isa, &b[n][whole * 8..]), sums[r][n]);
            }
        }
    }
    sums
}

#[inline(always)]
fn eights(x: &[f32], n: usize) -> &[[f32; 8]] {
    &x.as_chunks::<8>().0[..n]
}

/// A strided left factor: element (i, l) is at `i * row + l * col`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub col: usize,
}

/// c_ij = f_i c_ij + sum_l a_il b_lj for `m` rows and `n` columns, `k` terms; row i of c is at `i * c_step`.
#[inline(always)]
pub(super) fn gemm_accumulate<I: Isa>(
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
            if I::MANY_REGISTERS && m - i >= 8 {
                add_tile::<I, 8>(isa, (i, cols.clone(), k), a, b, c, (c_step, factor));
                i += 8;
            } else if m - i >= 4 {
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
    if k > 0 {
        assert!((k - 1) * b.step + cols.end <= b.values.len(), "rows of the right factor");
        assert!((i + M - 1) * a.row + (k - 1) * a.col < a.values.len(), "elements of the left factor");
    }
    for l in 0..k {
        // SAFETY: asserted above for the last row.
        let b = unsafe { b.values.get_unchecked(l * b.step + cols.start..l * b.step + cols.end) };
        let b = match b.as_chunks::<8>().0 {
            [low, high] => [isa.load_floats(low), isa.load_floats(high)],
            _ => [load(isa, &b[..mid]), load(isa, &b[mid..])],
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: asserted above for the last row and column.
            let f = isa.splat(unsafe { *a.values.get_unchecked((i + r) * a.row + l * a.col) });
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
