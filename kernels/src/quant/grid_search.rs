//! Quantizes to the grid formats: a scale per sub-block, then for each vector the entry nearest to its rounded values.
//!
//! This is a plain search by least squares. It knows no importance matrix and does not reproduce the bytes of ggml's
//! quantizers. Next: `iq3_s`.

use super::grid_block::{Coded, GridBlock};
use crate::simd::to_int;
use half::f16;
use std::sync::OnceLock;

/// How the signs of eight weights are stored.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Signs {
    /// A bit for each weight.
    Free,
    /// The number of negative weights is even.
    Even,
    /// Entries are signed; an offset of 1 has a sign for each of this many groups of eight.
    Offset(usize),
}

/// A grid and how to find its entries.
pub(super) struct Grid {
    /// The bytes of an entry, by number.
    pub(super) entry: fn(usize) -> u64,
    /// The number of entries in it.
    pub(super) len: usize,
    /// Weights of an entry: 4 or 8.
    pub(super) width: usize,
    /// The values that an entry's bytes take, ascending.
    pub(super) values: &'static [i8],
    pub(super) signs: Signs,
    /// Scales that a sub-block can have: 8 or 16.
    pub(super) scales: u8,
    /// The entry nearest to each combination of values, made on first use.
    pub(super) nearest: OnceLock<Vec<u16>>,
}

/// Scales to try for a sub-block: its largest weight then is this many times the largest value of the grid.
const FIRST: f32 = 0.8;
const STEP: f32 = 0.15;
const TRIES: usize = 13;

/// A sub-block's vectors at a scale.
#[derive(Clone, Copy, Default)]
struct VectorFit {
    entries: [u16; 8],
    signs: [u8; 4],
    /// Sums of x q and of q q.
    xq: f32,
    qq: f32,
}

impl VectorFit {
    /// The least-squares scale of these quants.
    fn scale(&self) -> f32 {
        if self.qq > 0.0 { (self.xq / self.qq).max(0.0) } else { 0.0 }
    }

    /// By how much the squared error is below that of zeros, at the least-squares scale.
    fn gain(&self) -> f32 {
        self.scale() * self.xq
    }

    /// The same at a given scale.
    fn gain_at(&self, scale: f32) -> f32 {
        scale * (2.0 * self.xq - scale * self.qq)
    }
}

/// Quantizes 256 weights to a block.
pub(super) fn quantize<B: GridBlock>(x: &[f32], grid: &Grid) -> B {
    let len = 256 / B::SUBS;
    let mut scale = [0.0; 16];
    for (scale, x) in scale.iter_mut().zip(x.chunks_exact(len)) {
        *scale = grid.scale_of(x);
    }
    let largest = scale.iter().fold(0.0, |a: f32, &b| a.max(b));
    let d = f16::from_f32(largest / (B::UNIT * (2 * grid.scales - 1) as f32));
    let unit = d.to_f32() * B::UNIT;
    let mut coded = Coded { entries: [0; 64], signs: [0; 32], scales: [0; 16] };
    for (j, x) in x.chunks_exact(len).enumerate() {
        let sc = if unit > 0.0 { to_int(((scale[j] / unit - 1.0) / 2.0).round_ties_even()) } else { 0 };
        let sc = sc.clamp(0, grid.scales as i32 - 1) as u8;
        let fit = grid.fit(x, unit * (2 * sc + 1) as f32);
        let (vectors, eights) = (len / grid.width, len / 8);
        coded.scales[j] = sc;
        coded.entries[j * vectors..][..vectors].copy_from_slice(&fit.entries[..vectors]);
        coded.signs[j * eights..][..eights].copy_from_slice(&fit.signs[..eights]);
    }
    B::from_coded(d.to_le_bytes(), &coded)
}

impl Grid {
    /// The scale of a sub-block with the least squared error of those that are tried.
    fn scale_of(&self, x: &[f32]) -> f32 {
        let most = x.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
        let largest = match self.signs {
            Signs::Offset(_) => 9.0,
            _ => self.values[self.values.len() - 1] as f32,
        };
        let fits = (0..TRIES).map(|i| self.fit(x, most / (largest * (FIRST + STEP * i as f32))));
        fits.reduce(|a, b| if b.gain() > a.gain() { b } else { a }).map_or(0.0, |fit| fit.scale())
    }

    /// The entries for a sub-block at a scale.
    fn fit(&self, x: &[f32], scale: f32) -> VectorFit {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut all = VectorFit::default();
        let part = if let Signs::Offset(eights) = self.signs { 8 * eights } else { 8 };
        for (i, x) in x.chunks_exact(part).enumerate() {
            let fit = match self.signs {
                Signs::Offset(_) => {
                    let [plus, minus] = [1.0, -1.0].map(|offset| self.with_offset(x, inverse, offset));
                    if minus.gain_at(scale) > plus.gain_at(scale) { minus } else { plus }
                }
                signs => self.with_signs(x, inverse, signs == Signs::Even),
            };
            let (vectors, eights) = (part / self.width, part / 8);
            all.entries[i * vectors..][..vectors].copy_from_slice(&fit.entries[..vectors]);
            all.signs[i * eights..][..eights].copy_from_slice(&fit.signs[..eights]);
            all.xq += fit.xq;
            all.qq += fit.qq;
        }
        all
    }

    /// Eight weights by the magnitudes of entries.
    fn with_signs(&self, x: &[f32], inverse: f32, even: bool) -> VectorFit {
        let mut signs = x.iter().enumerate().fold(0_u8, |bits, (i, x)| bits | ((*x < 0.0) as u8) << i);
        if even && !signs.count_ones().is_multiple_of(2) {
            let least = (1..8).fold(0, |a, b| if x[b].abs() < x[a].abs() { b } else { a });
            signs ^= 1 << least;
        }
        let sign = |i: usize| if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
        let mut fit = VectorFit { signs: [signs, 0, 0, 0], ..VectorFit::default() };
        for v in 0..8 / self.width {
            let at = v * self.width;
            let target = |k: usize| x[at + k] * sign(at + k) * inverse;
            let entry = self.nearest_to(target);
            fit.entries[v] = entry;
            for (k, q) in (self.entry)(entry as usize).to_le_bytes()[..self.width].iter().enumerate() {
                let q = *q as f32 * sign(at + k);
                fit.xq += x[at + k] * q;
                fit.qq += q * q;
            }
        }
        fit
    }

    /// Vectors of eight weights by signed entries, stored plus 8, and an offset.
    fn with_offset(&self, x: &[f32], inverse: f32, offset: f32) -> VectorFit {
        let mut fit = VectorFit::default();
        for (v, x) in x.as_chunks::<8>().0.iter().enumerate() {
            let entry = self.nearest_to(|k| x[k] * inverse + 8.0 - offset);
            fit.entries[v] = entry;
            fit.signs[v] = (offset < 0.0) as u8;
            for (x, q) in x.iter().zip((self.entry)(entry as usize).to_le_bytes()) {
                let q = q as f32 - 8.0 + offset;
                fit.xq += x * q;
                fit.qq += q * q;
            }
        }
        fit
    }

    /// The entry nearest to the values of the grid that are nearest to `target`.
    fn nearest_to(&self, target: impl Fn(usize) -> f32) -> u16 {
        let mut key = 0;
        for k in (0..self.width).rev() {
            let t = target(k);
            // The number of midpoints between values that t exceeds.
            let digit =
                self.values.windows(2).filter(|v| 2.0 * t > (v[0] as i32 + v[1] as i32) as f32).count();
            key = key * self.values.len() + digit;
        }
        self.nearest.get_or_init(|| self.nearest_entries())[key]
    }

    fn nearest_entries(&self) -> Vec<u16> {
        let entries: Vec<[u8; 8]> = (0..self.len).map(|n| (self.entry)(n).to_le_bytes()).collect();
        let base = self.values.len();
        let nearest_to = |key: usize| {
            let mut values = [0_i32; 8];
            values[..self.width].iter_mut().fold(key, |rest, v| {
                *v = self.values[rest % base] as i32;
                rest / base
            });
            let distance = |e: &[u8; 8]| -> i32 { (0..8).map(|k| (e[k] as i32 - values[k]).pow(2)).sum() };
            let distances: Vec<i32> = entries.iter().map(distance).collect();
            let least = distances.iter().min().copied().unwrap_or(0);
            let nearest: Vec<u16> =
                (0..self.len as u16).filter(|n| distances[*n as usize] == least).collect();
            // The first of equally near ones would be the one of the lowest values, which moves the mean of a tensor.
            nearest[key % nearest.len()]
        };
        (0..base.pow(self.width as u32)).map(nearest_to).collect()
    }
}
