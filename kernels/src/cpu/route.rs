//! Routes tokens to experts.
//!
//! Ties resolve to the lowest index, and a NaN ranks below every number. A token takes about a microsecond. Next: `kda`.

use super::autovec::{AutovecKernel, run, sigmoid};
use super::memory::{Buffer, Tensor};
use super::{Cpu, Weight};
use crate::backend::Routing;

/// The experts chosen for each row of a batch, and their weights, best first.
pub struct Routed {
    /// Number of rows of the routed batch, one per token.
    pub rows: usize,
    /// Number of experts chosen for each row.
    pub top_k: usize,
    chosen: Buffer,
    weights: Buffer,
}

impl Routed {
    /// Ids of the chosen experts, `[rows * top_k]`, best first in each row.
    pub fn experts(&self) -> &[u32] {
        &self.chosen.values_ref()[..self.rows * self.top_k]
    }

    /// Weights of the chosen experts, `[rows * top_k]`, in the order of [`Routed::experts`].
    pub fn weights(&self) -> &[f32] {
        &self.weights.floats_ref()[..self.rows * self.top_k]
    }
}

impl Cpu {
    /// Experts routed elsewhere, `top_k` per row, best first, and their weights; [`super::NO_EXPERT`] marks an empty slot.
    pub fn chosen(&self, top_k: usize, experts: &[u32], weights: &[f32]) -> Routed {
        assert!(
            top_k > 0 && experts.len() == weights.len() && experts.len().is_multiple_of(top_k),
            "rows of {top_k}"
        );
        let (mut chosen, mut own) =
            (self.buffers.bytes(4 * experts.len()), self.buffers.floats(weights.len()));
        chosen.values_mut()[..experts.len()].copy_from_slice(experts);
        own.floats_mut()[..weights.len()].copy_from_slice(weights);
        Routed { rows: experts.len() / top_k, top_k, chosen, weights: own }
    }
}

/// Largest number of expert groups, and of experts per token.
pub(super) const MAX_GROUPS: usize = 256;

pub(super) fn route(cpu: &Cpu, logits: &Tensor, bias: &Weight, how: Routing) -> Routed {
    let bias = cpu.floats(bias);
    let (experts, top_k) = (logits.cols, how.top_k);
    assert_eq!(experts, bias.len(), "experts: logits and bias");
    assert!((1..=MAX_GROUPS).contains(&how.groups), "1 to {MAX_GROUPS} groups, not {}", how.groups);
    assert!(how.top_groups <= how.groups, "{} of {} groups", how.top_groups, how.groups);
    assert!(experts.is_multiple_of(how.groups), "{experts} experts in {} groups", how.groups);
    let eligible = experts / how.groups * how.top_groups;
    assert!(top_k <= eligible, "{top_k} of {eligible} eligible experts");
    let (mut chosen, mut weights) =
        (cpu.buffers.bytes(4 * logits.rows * top_k), cpu.buffers.floats(logits.rows * top_k));
    let mut scores = cpu.buffers.floats(2 * experts);
    let (s, biased) = scores.floats_mut()[..2 * experts].split_at_mut(experts);
    for t in 0..logits.rows {
        run(cpu.level, RouterScores { logits: logits.row(t), bias: &bias, s, biased });
        let chosen = &mut chosen.values_mut()[t * top_k..][..top_k];
        choose(biased, &how, chosen);
        routing_weights(s, chosen, &how, &mut weights.floats_mut()[t * top_k..][..top_k]);
    }
    Routed { rows: logits.rows, top_k, chosen, weights }
}

struct RouterScores<'a> {
    logits: &'a [f32],
    bias: &'a [f32],
    s: &'a mut [f32],
    biased: &'a mut [f32],
}

impl AutovecKernel for RouterScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let out = self.s.iter_mut().zip(self.biased);
        for ((s, biased), (logit, bias)) in out.zip(self.logits.iter().zip(self.bias)) {
            *s = sigmoid::<FMA>(*logit);
            let score = *s + bias;
            *biased = if score.is_nan() { f32::NEG_INFINITY } else { score };
        }
    }
}

/// The `chosen.len()` best experts of the eligible groups.
fn choose(biased: &[f32], how: &Routing, chosen: &mut [u32]) {
    let size = biased.len() / how.groups;
    let mut order = [0; MAX_GROUPS];
    let kept = &mut order[..how.top_groups];
    if how.top_groups == how.groups {
        kept.iter_mut().enumerate().for_each(|(i, group)| *group = i as u32);
    } else {
        let mut sums = [0.0; MAX_GROUPS];
        for (sum, group) in sums.iter_mut().zip(biased.chunks_exact(size.max(1))) {
            *sum = two_best(group);
        }
        best(sums[..how.groups].iter().copied().enumerate(), kept);
        kept.sort_unstable();
    }
    let members = |&group: &u32| group as usize * size..(group as usize + 1) * size;
    best(kept.iter().flat_map(members).map(|e| (e, biased[e])), chosen);
}

/// Sum of the two largest scores (of one, where there is only one).
fn two_best(scores: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &s in scores {
        second = second.max(s.min(first));
        first = first.max(s);
    }
    if scores.len() > 1 { first + second } else { first }
}

/// Indices of the largest scores, largest first, the earlier first among equals.
fn best(scores: impl Iterator<Item = (usize, f32)>, out: &mut [u32]) {
    let mut top = [f32::NEG_INFINITY; MAX_GROUPS];
    assert!(out.len() <= top.len(), "{} chosen, {MAX_GROUPS} at most", out.len());
    let mut len = 0;
    for (i, score) in scores {
        let below = |p: usize| top[p] < score;
        if len == out.len() && (len == 0 || !below(len - 1)) {
            continue;
        }
        let mut at = if len < out.len() { len } else { len - 1 };
        while at > 0 && top[at - 1] < score {
            (top[at], out[at]) = (top[at - 1], out[at - 1]);
            at -= 1;
        }
        (top[at], out[at]) = (score, i as u32);
        len = out.len().min(len + 1);
    }
}

/// The weights of the chosen: their unbiased scores, normalized and scaled.
fn routing_weights(s: &[f32], chosen: &[u32], how: &Routing, weights: &mut [f32]) {
    let sum: f32 = chosen.iter().map(|&e| s[e as usize]).sum();
    let norm = if how.normalize { sum + 1e-20 } else { 1.0 };
    for (weight, &e) in weights.iter_mut().zip(chosen) {
        *weight = s[e as usize] / norm * how.scale;
    }
}
