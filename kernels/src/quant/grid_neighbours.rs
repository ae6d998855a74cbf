//! Finds the entries of a grid that are nearest to a vector of weights.
//!
//! A table lists, for each way to round the elements of a vector to values of the grid, the entries nearest to the rounded
//! vector, eight side by side. A lookup computes the weighted errors of those alone: exhaustive search would be fifty times
//! slower. `grid_search` chooses scales and signs. Next: `grids`.

use crate::simd::Isa;
use std::array::from_fn;
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

/// A grid of vectors of `W` elements that take `V` values.
pub(super) struct Grid<const W: usize, const V: usize> {
    /// The bytes of an entry, by number.
    pub(super) entry: fn(usize) -> [u8; W],
    /// The number of entries in it.
    pub(super) len: usize,
    /// The values that an entry's bytes take, ascending.
    pub(super) values: [i8; V],
    pub(super) signs: Signs,
    /// Scales that a sub-block can have: 8 or 16.
    pub(super) scales: u8,
    /// Candidates of a lookup, in eights.
    pub(super) groups: usize,
}

/// The candidates for each rounded vector, made on first use.
pub(super) type Neighbours<const W: usize> = OnceLock<Vec<Candidates<W>>>;

/// Eight entries: their elements side by side, and their numbers.
#[derive(Clone, Copy)]
pub(super) struct Candidates<const W: usize> {
    elements: [[u8; 8]; W],
    numbers: [u16; 8],
}

impl<const W: usize, const V: usize> Grid<W, V> {
    /// The entry q with the least sum of w (q - u)^2 among the candidates for the vector `u`: its number and elements.
    #[inline(always)]
    pub(super) fn nearest<I: Isa>(
        &self,
        isa: I,
        table: &[Candidates<W>],
        u: &[f32; W],
        w: &[f32; W],
    ) -> (u16, [u8; W]) {
        let mut key = 0;
        for k in (0..W).rev() {
            // The number of midpoints between values that u exceeds.
            let mut digit = 0;
            for v in 0..V - 1 {
                digit += usize::from(2.0 * u[k] > (self.values[v] as i32 + self.values[v + 1] as i32) as f32);
            }
            key = key * V + digit;
        }
        let near = &table[key * self.groups..][..self.groups];
        let (mut least, mut group) = (isa.splat(f32::INFINITY), isa.splat(0.0));
        for (g, near) in near.iter().enumerate() {
            // Without the constant w u^2.
            let mut error = isa.splat(0.0);
            for k in 0..W {
                let q = isa.load_floats(&near.elements[k].map(f32::from));
                let slope = isa.fma(isa.splat(w[k]), q, isa.splat(-2.0 * w[k] * u[k]));
                error = isa.fma(slope, q, error);
            }
            group = isa.select(error, least, isa.splat(g as f32), group);
            least = isa.min(error, least);
        }
        let (mut errors, mut groups) = ([0.0; 8], [0.0; 8]);
        isa.store(least, &mut errors);
        isa.store(group, &mut groups);
        let mut best = 0;
        for lane in 1..8 {
            if errors[lane] < errors[best] {
                best = lane;
            }
        }
        let near = &near[groups[best] as usize];
        (near.numbers[best], from_fn(|k| near.elements[k][best]))
    }

    /// Finds the candidates of every rounded vector.
    pub(super) fn make_table(&self) -> Vec<Candidates<W>> {
        let entries: Vec<[u8; W]> = (0..self.len).map(self.entry).collect();
        let mut order: Vec<u64> = vec![0; self.len];
        let mut table = Vec::with_capacity(V.pow(W as u32) * self.groups);
        for key in 0..V.pow(W as u32) {
            let mut rest = key;
            let values: [i32; W] = from_fn(|_| {
                let digit = rest % V;
                rest /= V;
                self.values[digit] as i32
            });
            for (n, (order, entry)) in order.iter_mut().zip(&entries).enumerate() {
                let distance: i32 = (0..W).map(|k| (entry[k] as i32 - values[k]).pow(2)).sum();
                // Of equally near entries not always the first ones, which would move the mean of a tensor.
                *order = (distance as u64) << 32 | ((n + key) % self.len) as u64;
            }
            let wanted = 8 * self.groups;
            if wanted < self.len {
                order.select_nth_unstable(wanted);
            }
            let number =
                |i: usize| ((order[i] as u32 as usize + self.len - key % self.len) % self.len) as u16;
            for g in 0..self.groups {
                let numbers = from_fn(|j| number(8 * g + j));
                let elements = from_fn(|k| numbers.map(|n| entries[n as usize][k]));
                table.push(Candidates { elements, numbers });
            }
        }
        table
    }
}
