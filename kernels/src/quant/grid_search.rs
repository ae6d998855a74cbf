//! Quantizes to the grid formats: searches the scales of a block and its sub-blocks, and the entry of each vector.
//!
//! The sum of importance times squared error is made small, in four steps: a scale per sub-block, each with its own
//! entries; the scale of the block under which the rounded scales of sub-blocks lose least; entries again for the rounded
//! scales; and the best scale of the block for these. ggml stops after rounding and reaches larger errors. Next:
//! `grid_neighbours`.

use super::grid_block::{Coded, GridBlock};
use super::grid_neighbours::{Candidates, Grid, Neighbours, Signs};
use super::scale_search::NOTHING;
use crate::simd::{Isa, to_int};
use half::f16;

/// Scales to try for a sub-block: its largest weight then is this many times the largest value of the grid.
const TRIES: [f32; 8] = [0.85, 1.0, 1.15, 1.32, 1.5, 1.7, 1.95, 2.3];
/// Rounds in which a sub-block's scale follows its entries and the entries its scale.
const ROUNDS: usize = 2;

/// A sub-block's vectors at a scale.
#[derive(Clone, Copy, Default)]
struct VectorFit {
    entries: [u16; 8],
    /// The sign of each offset, set where negative.
    offsets: [u8; 4],
    /// Sums of w x q and of w q q.
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

/// A block's weights in units of the largest, as magnitudes where signs are stored, and the weights of their errors.
struct Targets {
    x: [f32; 256],
    w: [f32; 256],
    signs: [u8; 32],
    unit: f32,
}

impl Targets {
    /// None where all weights would be zero.
    #[inline(always)]
    fn new(x: &[f32], importance: Option<&[f32]>, signs: Signs) -> Option<Targets> {
        let unit = x.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
        if unit < NOTHING {
            return None;
        }
        let mut out = Targets { x: [0.0; 256], w: [1.0; 256], signs: [0; 32], unit };
        for (out, x) in out.x.iter_mut().zip(x) {
            *out = x / unit;
        }
        if let Some(importance) = importance {
            let sum: f32 = importance.iter().sum();
            if sum > 0.0 {
                let factor = 256.0 / sum;
                out.w.iter_mut().zip(importance).for_each(|(w, v)| *w = v * factor);
            }
        }
        if !matches!(signs, Signs::Offset(_)) {
            out.take_signs(signs == Signs::Even);
        }
        Some(out)
    }

    /// Replaces the weights by their magnitudes. Where the number of signs must be even, the weight whose wrong sign costs
    /// least may become negative.
    #[inline(always)]
    fn take_signs(&mut self, even: bool) {
        let eights = self.x.as_chunks_mut::<8>().0.iter_mut().zip(self.w.as_chunks::<8>().0);
        for (signs, (x, w)) in self.signs.iter_mut().zip(eights) {
            let mut least = 0;
            for i in 0..8 {
                *signs |= ((x[i] < 0.0) as u8) << i;
                x[i] = x[i].abs();
                if w[i] * x[i] < w[least] * x[least] {
                    least = i;
                }
            }
            if even && !signs.count_ones().is_multiple_of(2) {
                *signs ^= 1 << least;
                x[least] = -x[least];
            }
        }
    }
}

/// Quantizes 256 weights to a block.
#[inline(always)]
pub(super) fn quantize<B: GridBlock, I: Isa, const W: usize, const V: usize>(
    isa: I,
    x: &[f32],
    importance: Option<&[f32]>,
    (grid, table): (&Grid<W, V>, &Neighbours<W>),
) -> B {
    let mut coded = Coded { entries: [0; 64], signs: [0; 32], scales: [0; 16] };
    let Some(targets) = Targets::new(x, importance, grid.signs) else { return B::from_coded([0; 2], &coded) };
    coded.signs = targets.signs;
    let (table, len) = (table.get_or_init(|| grid.make_table()), 256 / B::SUBS);
    let (mut scale, mut weight) = ([0.0; 16], [0.0; 16]);
    for (j, (x, w)) in targets.x.chunks_exact(len).zip(targets.w.chunks_exact(len)).enumerate() {
        let fit = grid.scale_of(isa, table, x, w);
        (scale[j], weight[j]) = (fit.scale(), fit.qq);
    }
    let mut unit = unit_of(&scale, &weight, grid.scales);
    for _ in 0..ROUNDS {
        let stored = f16::from_f32(unit * targets.unit / B::UNIT).to_f32() * B::UNIT / targets.unit;
        let (mut xq, mut qq) = (0.0, 0.0);
        for (j, (x, w)) in targets.x.chunks_exact(len).zip(targets.w.chunks_exact(len)).enumerate() {
            let sc = code(scale[j], stored, grid.scales);
            let odd = (2 * sc + 1) as f32;
            let fit = grid.fit(isa, table, x, w, stored * odd);
            let (vectors, eights) = (len / W, len / 8);
            coded.scales[j] = sc;
            coded.entries[j * vectors..][..vectors].copy_from_slice(&fit.entries[..vectors]);
            if matches!(grid.signs, Signs::Offset(_)) {
                coded.signs[j * eights..][..eights].copy_from_slice(&fit.offsets[..eights]);
            }
            xq += odd * fit.xq;
            qq += odd * odd * fit.qq;
            scale[j] = fit.scale();
        }
        unit = if qq > 0.0 { xq / qq } else { 0.0 };
    }
    B::from_coded(f16::from_f32(unit * targets.unit / B::UNIT).to_le_bytes(), &coded)
}

/// The number sc of the scale `unit (2 sc + 1)` nearest to `scale`.
#[inline(always)]
fn code(scale: f32, unit: f32, scales: u8) -> u8 {
    let sc = if unit > 0.0 { to_int(((scale / unit - 1.0) * 0.5).round_ties_even()) } else { 0 };
    sc.clamp(0, scales as i32 - 1) as u8
}

/// The unit for which rounding the scales to odd multiples of it costs least.
#[inline(always)]
fn unit_of(scale: &[f32; 16], weight: &[f32; 16], scales: u8) -> f32 {
    let largest = scale.iter().fold(0.0, |a: f32, &b| a.max(b));
    let top = (2 * scales - 1) as f32;
    let (mut least, mut best) = (f32::INFINITY, 0.0);
    for k in -8..=8 {
        let unit = largest / (top + 0.5 * k as f32);
        let mut cost = 0.0;
        for j in 0..16 {
            let rounded = unit * (2.0 * code(scale[j], unit, scales) as f32 + 1.0);
            cost += weight[j] * (rounded - scale[j]) * (rounded - scale[j]);
        }
        if cost < least {
            (least, best) = (cost, unit);
        }
    }
    best
}

impl<const W: usize, const V: usize> Grid<W, V> {
    /// The best of the tried scales of a sub-block, refined.
    #[inline(always)]
    fn scale_of<I: Isa>(&self, isa: I, table: &[Candidates<W>], x: &[f32], w: &[f32]) -> VectorFit {
        let most = x.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
        let largest = match self.signs {
            Signs::Offset(_) => 9.0,
            _ => self.values[V - 1] as f32,
        };
        let mut best = VectorFit::default();
        for i in 0..TRIES.len() + ROUNDS {
            let scale = TRIES.get(i).map_or_else(|| best.scale(), |factor| most / (largest * factor));
            let fit = self.fit(isa, table, x, w, scale);
            if fit.gain() > best.gain() {
                best = fit;
            }
        }
        best
    }

    /// The entries for a sub-block at a scale.
    #[inline(always)]
    fn fit<I: Isa>(&self, isa: I, table: &[Candidates<W>], x: &[f32], w: &[f32], scale: f32) -> VectorFit {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let Signs::Offset(eights) = self.signs else { return self.vectors(isa, table, x, w, (inverse, 0.0)) };
        let mut all = VectorFit::default();
        for (i, (x, w)) in x.chunks_exact(8 * eights).zip(w.chunks_exact(8 * eights)).enumerate() {
            // Entries are stored plus 8.
            let plus = self.vectors(isa, table, x, w, (inverse, -7.0));
            let minus = self.vectors(isa, table, x, w, (inverse, -9.0));
            let negative = minus.gain_at(scale) > plus.gain_at(scale);
            let fit = if negative { minus } else { plus };
            all.entries[i * eights..][..eights].copy_from_slice(&fit.entries[..eights]);
            all.offsets[i * eights..][..eights].fill(negative as u8);
            all.xq += fit.xq;
            all.qq += fit.qq;
        }
        all
    }

    /// The entries whose bytes plus `shift` are nearest to the weights times `inverse`.
    #[inline(always)]
    fn vectors<I: Isa>(
        &self,
        isa: I,
        table: &[Candidates<W>],
        x: &[f32],
        w: &[f32],
        (inverse, shift): (f32, f32),
    ) -> VectorFit {
        let mut fit = VectorFit::default();
        let (mut xq, mut qq) = ([0.0; W], [0.0; W]);
        for (v, (x, w)) in x.as_chunks::<W>().0.iter().zip(w.as_chunks::<W>().0).enumerate() {
            let (number, entry) = self.nearest(isa, table, &x.map(|x| x * inverse - shift), w);
            fit.entries[v] = number;
            for k in 0..W {
                let q = entry[k] as f32 + shift;
                xq[k] += w[k] * x[k] * q;
                qq[k] += w[k] * q * q;
            }
        }
        fit.xq = xq.iter().sum();
        fit.qq = qq.iter().sum();
        fit
    }
}
