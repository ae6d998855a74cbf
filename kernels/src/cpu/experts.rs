//! Computes the routed experts of a batch: groups tokens by expert, so that each chosen expert is read once.
//!
//! Two parallel regions: all rows of gate and up, then all rows of down with the weighted sum. A token's sum follows the
//! order of its own ranking, so it does not depend on the batch. Scratch is O(tokens * top_k * widths): an activation row
//! and a hidden row per routed (token, expert) pair. Decode reads the chosen experts' weights once and is memory-bound.
//! Next: `route`.

use super::autovec::{AutovecKernel, axpy, run};
use super::elementwise::limited_silu_mul;
use super::madvise::advise_willneed;
use super::matmul::{TILE, activations, chunk_bytes, prefetch_rows, tile};
use super::memory::{Buffer, Tensor};
use super::pool::Parts;
use super::route::Routed;
use super::{Cpu, Weight};
use crate::backend::GatedMlp;
use crate::quant::Activation;
use std::sync::atomic::Ordering;

/// Largest number of experts of a layer to prefetch from disk: a prefill reads nearly all, in order, which the kernel's
/// readahead handles.
const PREFETCH_MAX_EXPERTS: usize = 64;

/// Marks a slot whose expert is computed elsewhere.
pub const NO_EXPERT: u32 = u32::MAX;

/// (token, slot) pairs sorted by expert.
struct Groups {
    /// `token * top_k + slot`, grouped by expert.
    pairs: Buffer,
    n_pairs: usize,
    /// For each chosen expert: [expert, first pair, pair after the last, 0].
    runs: Buffer,
    n_runs: usize,
}

impl Groups {
    fn new(cpu: &Cpu, routed: &Routed, experts: usize) -> Groups {
        let chosen = routed.experts();
        let mut pairs = cpu.buffers.bytes(4 * chosen.len());
        let mut runs = cpu.buffers.bytes(16 * chosen.len().min(experts));
        let mut starts = cpu.buffers.bytes(4 * (experts + 1));
        let starts = &mut starts.values_mut::<u32>()[..experts + 1];
        starts.fill(0);
        for &e in chosen.iter().filter(|e| **e != NO_EXPERT) {
            assert!((e as usize) < experts, "expert {e} of {experts}");
            starts[e as usize + 1] += 1;
        }
        let mut n_runs = 0;
        for e in 0..experts {
            let (first, count) = (starts[e], starts[e + 1]);
            starts[e + 1] = first + count;
            if count > 0 {
                runs.values_mut::<[u32; 4]>()[n_runs] = [e as u32, first, first + count, 0];
                n_runs += 1;
            }
        }
        for (pair, &e) in chosen.iter().enumerate().filter(|(_, e)| **e != NO_EXPERT) {
            let at = &mut starts[e as usize];
            pairs.values_mut::<u32>()[*at as usize] = pair as u32;
            *at += 1;
        }
        let n_pairs = starts[experts] as usize;
        Groups { pairs, n_pairs, runs, n_runs }
    }

    fn run(&self, i: usize) -> (usize, std::ops::Range<usize>) {
        let [e, first, end, _] = self.runs.values_ref::<[u32; 4]>()[i];
        (e as usize, first as usize..end as usize)
    }

    fn pairs(&self) -> &[u32] {
        &self.pairs.values_ref()[..self.n_pairs]
    }
}

pub(super) fn experts(cpu: &Cpu, w: GatedMlp<'_, Weight>, x: &Tensor, routed: &Routed) -> Tensor {
    let (n, hidden) = (w.gate.count, w.gate.rows);
    assert_eq!((w.up.count, w.up.rows, w.up.cols), (n, hidden, w.gate.cols), "shapes of gate and up");
    assert_eq!((w.down.count, w.down.cols, w.gate.cols), (n, hidden, x.cols), "experts, hidden width, width");
    assert_eq!(routed.rows, x.rows, "routed tokens");
    let groups = Groups::new(cpu, routed, n);
    if cpu.ahead.load(Ordering::Relaxed) && groups.n_runs <= PREFETCH_MAX_EXPERTS {
        for matrix in [w.gate, w.up, w.down] {
            (0..groups.n_runs)
                .for_each(|i| advise_willneed(matrix.matrix_rows(groups.run(i).0, 0..matrix.rows)));
        }
    }
    let hidden = gate_and_up(cpu, &w, x, routed, &groups);
    down(cpu, w.down, &hidden, routed, &groups)
}

/// SiLU(W_gate x) * W_up x of each pair, in the order of `groups`. `[pairs, hidden]`
fn gate_and_up(cpu: &Cpu, w: &GatedMlp<'_, Weight>, x: &Tensor, routed: &Routed, groups: &Groups) -> Tensor {
    let (pairs, rows) = (groups.n_pairs, w.gate.rows);
    let mut hidden = cpu.buffers.tensor(pairs, rows);
    let gathered = |form: Activation| {
        let prepared = activations(cpu, form, x.values(), x.cols);
        let row_bytes = form.row_bytes(x.cols);
        let mut rows = cpu.buffers.bytes(pairs * row_bytes);
        for (out, pair) in rows.values_mut::<u8>().chunks_exact_mut(row_bytes.max(1)).zip(groups.pairs()) {
            let token = *pair as usize / routed.top_k;
            out.copy_from_slice(&prepared.bytes()[token * row_bytes..][..row_bytes]);
        }
        (rows, row_bytes)
    };
    let (x_gate, gate_bytes) = gathered(w.gate.format.activation());
    let other = w.up.format.activation() != w.gate.format.activation();
    let up_rows = other.then(|| gathered(w.up.format.activation()));
    let (x_up, up_bytes) = up_rows.as_ref().map_or((&x_gate, gate_bytes), |(rows, bytes)| (rows, *bytes));
    let parts = Parts::new(hidden.values_mut());
    // A single token takes as many rows as the result buffer holds.
    let bytes = w.gate.row_bytes + w.up.row_bytes;
    let most = if routed.rows == 1 { chunk_bytes(groups.n_runs * rows * bytes) / bytes.max(1) } else { TILE };
    let step = most.clamp(TILE, TILE * TILE) / TILE * TILE;
    let blocks = rows.div_ceil(step);
    cpu.pool.parallel_for(groups.n_runs * blocks, |chunk| {
        let (expert, run_pairs) = groups.run(chunk / blocks);
        let first = chunk % blocks * step;
        let block = first..rows.min(first + step);
        let (w_gate, w_up) =
            (w.gate.matrix_rows(expert, block.clone()), w.up.matrix_rows(expert, block.clone()));
        prefetch_rows(cpu, w.gate, w_gate, run_pairs.len());
        prefetch_rows(cpu, w.up, w_up, run_pairs.len());
        let (mut gate, mut up) = ([0.0; TILE * TILE], [0.0; TILE * TILE]);
        for from in run_pairs.clone().step_by(TILE) {
            let to = run_pairs.end.min(from + TILE);
            let gate = tile(
                cpu,
                w.gate,
                w_gate,
                &x_gate.values_ref()[from * gate_bytes..to * gate_bytes],
                &mut gate,
            );
            let up = tile(cpu, w.up, w_up, &x_up.values_ref()[from * up_bytes..to * up_bytes], &mut up);
            for (i, (gate, up)) in
                gate.chunks_exact(block.len()).zip(up.chunks_exact(block.len())).enumerate()
            {
                let at = (from + i) * rows + first;
                // SAFETY: each pair is in one run, and each block of its rows is one chunk.
                let out = unsafe { parts.get(at..at + block.len()) };
                run(cpu.level, SiluMulHidden { gate, up, limit: w.limit, out });
            }
        }
    });
    hidden
}

struct SiluMulHidden<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    limit: f32,
    out: &'a mut [f32],
}

impl AutovecKernel for SiluMulHidden<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (out, (gate, up)) in self.out.iter_mut().zip(self.gate.iter().zip(self.up)) {
            *out = limited_silu_mul::<FMA>(*gate, *up, self.limit);
        }
    }
}

/// y_t = sum over slots, in their order, of weight * W_down hidden.
fn down(cpu: &Cpu, w: &Weight, hidden: &Tensor, routed: &Routed, groups: &Groups) -> Tensor {
    let (tokens, pairs) = (routed.rows, routed.experts().len());
    let form = w.format.activation();
    let x = activations(cpu, form, hidden.values(), hidden.cols);
    let x_bytes = form.row_bytes(hidden.cols);
    let mut y = cpu.buffers.tensor(tokens, w.rows);
    // In decode each chunk reads a part of every expert and prefetches the next before it ends one.
    let most = if tokens == 1 { TILE * TILE } else { TILE };
    let rows = w.rows.div_ceil(cpu.pool.threads() * 4).clamp(8, most);
    let parts = Parts::new(y.values_mut());
    cpu.pool.parallel_for(w.rows.div_ceil(rows), |chunk| {
        let block = chunk * rows..w.rows.min((chunk + 1) * rows);
        // The results of this row block: [token, slot, row].
        let mut scratch = cpu.buffers.floats(pairs * block.len());
        let mut out = [0.0; TILE * TILE];
        for i in 0..groups.n_runs {
            let (expert, run_pairs) = groups.run(i);
            let weights = w.matrix_rows(expert, block.clone());
            if i + 1 < groups.n_runs {
                prefetch_rows(cpu, w, w.matrix_rows(groups.run(i + 1).0, block.clone()), tokens);
            }
            for from in run_pairs.clone().step_by(TILE) {
                let to = run_pairs.end.min(from + TILE);
                let y = tile(cpu, w, weights, &x.bytes()[from * x_bytes..to * x_bytes], &mut out);
                for (y, pair) in y.chunks_exact(block.len()).zip(&groups.pairs()[from..to]) {
                    scratch.floats_mut()[*pair as usize * block.len()..][..block.len()].copy_from_slice(y);
                }
            }
        }
        let results = &scratch.floats_ref()[..pairs * block.len()];
        let (chosen, weights) = (routed.experts(), routed.weights());
        let sums = WeightedSum { results, chosen, weights, top_k: routed.top_k, len: block.len() };
        for t in 0..tokens {
            // SAFETY: each block of rows is one chunk.
            let y = unsafe { parts.get(t * w.rows + block.start..t * w.rows + block.end) };
            run(cpu.level, WeightedSumKernel { sums: &sums, t, y });
        }
    });
    y
}

struct WeightedSum<'a> {
    results: &'a [f32],
    chosen: &'a [u32],
    weights: &'a [f32],
    top_k: usize,
    len: usize,
}

struct WeightedSumKernel<'a> {
    sums: &'a WeightedSum<'a>,
    t: usize,
    y: &'a mut [f32],
}

impl AutovecKernel for WeightedSumKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let WeightedSum { results, chosen, weights, top_k, len } = *self.sums;
        self.y.fill(0.0);
        for pair in (self.t * top_k..(self.t + 1) * top_k).filter(|pair| chosen[*pair] != NO_EXPERT) {
            axpy::<FMA>(self.y, weights[pair], &results[pair * len..][..len]);
        }
    }
}
