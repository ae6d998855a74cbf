//! Replacement policies of the expert cache, replayed on the steps of one layer: the one of the GPU, and others to compare.
//!
//! Hits are counted against the contents before a step, as on the GPU, where an upload serves later steps. Next:
//! `kernels::cuda::expert_policy`, the policy of the GPU.

use kernels::cuda::{DecayedLfu, distinct_misses};
use serde::Serialize;
use std::cmp::Reverse;
use std::ops::AddAssign;

/// A replacement policy of the expert cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachePolicy {
    /// The policy of the GPU: decayed use counts, few uploads.
    DecayedLfu,
    /// Caches every miss in place of the least recently used expert.
    Lru,
    /// Caches the experts with the most uses so far.
    Lfu,
    /// Caches the experts with the most uses in the whole trace, which it knows, from the start.
    Static,
    /// Caches the experts that are used next, which it knows (Belady): the most hits of steps of one token.
    Optimum,
}

impl CachePolicy {
    pub const ALL: [CachePolicy; 5] = [
        CachePolicy::DecayedLfu,
        CachePolicy::Lru,
        CachePolicy::Lfu,
        CachePolicy::Static,
        CachePolicy::Optimum,
    ];

    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            CachePolicy::DecayedLfu => "decayed LFU",
            CachePolicy::Lru => "LRU",
            CachePolicy::Lfu => "LFU",
            CachePolicy::Static => "static",
            CachePolicy::Optimum => "optimum",
        }
    }

    /// Replays the steps of a layer with this many slots for its experts.
    pub fn replay(self, experts: usize, slots: usize, steps: &[LayerStep<'_>]) -> CacheCounts {
        match self {
            CachePolicy::DecayedLfu => decayed_lfu(experts, slots, steps),
            CachePolicy::Static => fixed(experts, slots, steps),
            CachePolicy::Lru => on_demand(ExpertRanking::Recency(vec![0; experts]), slots, steps),
            CachePolicy::Lfu => on_demand(ExpertRanking::Frequency(vec![0; experts]), slots, steps),
            CachePolicy::Optimum => on_demand(ExpertRanking::NextUse(uses_of(experts, steps)), slots, steps),
        }
    }
}

/// The experts of one layer in a step.
#[derive(Clone, Copy, Debug)]
pub struct LayerStep<'a> {
    /// Selected experts, `[token * selected]`.
    pub chosen: &'a [u32],
    /// The tokens of the step.
    pub tokens: usize,
    /// Whether all experts of the layer pass through the GPU, as in a large batch of a prompt: there are then no lookups, and
    /// experts are cached without uploads.
    pub is_staged: bool,
}

/// The hits and uploads of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounts {
    /// Lookups that found the expert in the cache.
    pub hits: u64,
    /// Experts that were looked up: each selected expert of each token counts once.
    pub lookups: u64,
    /// Experts uploaded to the cache for it alone.
    pub uploads: u64,
}

impl AddAssign for CacheCounts {
    fn add_assign(&mut self, other: CacheCounts) {
        self.hits += other.hits;
        self.lookups += other.lookups;
        self.uploads += other.uploads;
    }
}

impl CacheCounts {
    /// The counts of a layer whose experts are all on the GPU.
    pub fn all_hits(steps: &[LayerStep<'_>]) -> CacheCounts {
        let counted = steps.iter().filter(|step| !step.is_staged);
        let hits = counted.map(|step| step.chosen.len() as u64).sum();
        CacheCounts { hits, lookups: hits, uploads: 0 }
    }

    fn of_step(chosen: &[u32], is_hit: impl Fn(u32) -> bool) -> CacheCounts {
        let hits = chosen.iter().filter(|e| is_hit(**e)).count() as u64;
        CacheCounts { hits, lookups: chosen.len() as u64, uploads: 0 }
    }
}

fn decayed_lfu(experts: usize, slots: usize, steps: &[LayerStep<'_>]) -> CacheCounts {
    let (mut policy, mut counts) = (DecayedLfu::new(experts, slots), CacheCounts::default());
    for LayerStep { chosen, tokens, is_staged } in steps {
        if *is_staged {
            policy.record_uses(chosen, *tokens);
            let evictions = policy.evictions();
            policy.evict(&evictions);
            continue;
        }
        let places = policy.places(chosen, *tokens);
        let hits = places.iter().filter(|place| **place >= 0).count() as u64;
        let uploads = policy.promote(distinct_misses(chosen, &places)).len() as u64;
        counts += CacheCounts { hits, lookups: chosen.len() as u64, uploads };
    }
    counts
}

/// Caches the most used experts of all steps with lookups.
fn fixed(experts: usize, slots: usize, steps: &[LayerStep<'_>]) -> CacheCounts {
    let mut uses = vec![0_u64; experts];
    let counted = || steps.iter().filter(|step| !step.is_staged);
    counted().flat_map(|step| step.chosen).for_each(|e| uses[*e as usize] += 1);
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by_key(|e| Reverse(uses[*e]));
    let mut cached = vec![false; experts];
    order.iter().take(slots).for_each(|e| cached[*e] = true);
    let mut counts = CacheCounts::default();
    counted().for_each(|step| counts += CacheCounts::of_step(step.chosen, |e| cached[e as usize]));
    counts
}

/// How [`on_demand`] ranks experts, by expert.
enum ExpertRanking {
    /// The last step that used the expert, from 1.
    Recency(Vec<usize>),
    /// The number of uses so far.
    Frequency(Vec<usize>),
    /// The steps with lookups that use the expert, the last first; those until now are removed.
    NextUse(Vec<Vec<usize>>),
}

impl ExpertRanking {
    /// Records the uses of a step.
    fn record(&mut self, step: usize, chosen: &[u32]) {
        for e in chosen.iter().map(|e| *e as usize) {
            match self {
                ExpertRanking::Recency(last) => last[e] = step + 1,
                ExpertRanking::Frequency(uses) => uses[e] += 1,
                ExpertRanking::NextUse(uses) => while uses[e].pop_if(|at| *at <= step).is_some() {},
            }
        }
    }

    /// The rank of an expert, larger for a better one; None if it is not worth a slot.
    fn rank(&self, expert: usize) -> Option<usize> {
        match self {
            ExpertRanking::Recency(ranks) | ExpertRanking::Frequency(ranks) => Some(ranks[expert]),
            ExpertRanking::NextUse(uses) => uses[expert].last().map(|at| usize::MAX - at),
        }
    }
}

/// Steps with lookups that use each expert, the last first.
fn uses_of(experts: usize, steps: &[LayerStep<'_>]) -> Vec<Vec<usize>> {
    let mut uses = vec![Vec::new(); experts];
    for (i, step) in steps.iter().enumerate().rev().filter(|(_, step)| !step.is_staged) {
        step.chosen.iter().for_each(|e| uses[*e as usize].push(i));
    }
    uses
}

/// Caches the best ranked of the cached experts and those of a step, after each step. Cached experts come first among equals.
fn on_demand(mut ranking: ExpertRanking, slots: usize, steps: &[LayerStep<'_>]) -> CacheCounts {
    let (mut cached, mut counts) = (Vec::<usize>::new(), CacheCounts::default());
    for (i, LayerStep { chosen, is_staged, .. }) in steps.iter().enumerate() {
        let mut used: Vec<usize> = chosen.iter().map(|e| *e as usize).collect();
        used.sort_unstable();
        used.dedup();
        used.retain(|e| !cached.contains(e));
        ranking.record(i, chosen);
        let before = cached.len();
        if !is_staged {
            counts += CacheCounts::of_step(chosen, |e| cached.contains(&(e as usize)));
        }
        cached.extend(used);
        let mut order: Vec<(usize, usize)> =
            (0..cached.len()).filter_map(|at| Some((at, ranking.rank(cached[at])?))).collect();
        order.sort_by_key(|(_, rank)| Reverse(*rank));
        order.truncate(slots);
        if !is_staged {
            counts.uploads += order.iter().filter(|(at, _)| *at >= before).count() as u64;
        }
        cached = order.into_iter().map(|(at, _)| cached[at]).collect();
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replays steps of single tokens that select one expert each; returns hits and uploads of [`CachePolicy::ALL`].
    fn counts(slots: usize, chosen: &[u32]) -> [(u64, u64); 5] {
        let steps: Vec<LayerStep<'_>> = chosen.chunks(1).map(|chosen| step(chosen, false)).collect();
        CachePolicy::ALL.map(|policy| {
            let counts = policy.replay(4, slots, &steps);
            assert_eq!(counts.lookups, chosen.len() as u64);
            (counts.hits, counts.uploads)
        })
    }

    fn step(chosen: &[u32], is_staged: bool) -> LayerStep<'_> {
        LayerStep { chosen, tokens: chosen.len(), is_staged }
    }

    /// Contents of two slots after each step, computed by hand:
    /// decayed LFU {} {1} {1} {0,1} and no change, as an eviction takes eight misses and a free slot two;
    /// LRU {0} {0,1} {0,1} {0,2} {0,2} {0,1} {1,2} {1,2} {1,2}, LFU {0} {0,1} and no change;
    /// the optimum {0} {0,1} {0,1} {0,1} {1} {1} {1,2} {2} {}.
    #[test]
    fn policies_on_a_trace_computed_by_hand() {
        assert_eq!(counts(2, &[0, 1, 0, 2, 0, 1, 2, 1, 2]), [(3, 2), (4, 5), (4, 2), (6, 0), (5, 3)]);
        assert_eq!(counts(0, &[0, 1, 0]), [(0, 0); 5]);
        assert_eq!(counts(4, &[3; 6]), [(4, 1), (5, 1), (5, 1), (6, 0), (5, 1)]);
    }

    #[test]
    fn a_staged_step_fills_the_cache_without_lookups_or_uploads() {
        let steps = [step(&[2, 3], true), step(&[2], false), step(&[3, 3, 1], false)];
        let expected = CacheCounts { hits: 3, lookups: 4, uploads: 0 };
        for policy in CachePolicy::ALL {
            let counts = policy.replay(4, 2, &steps);
            assert_eq!(counts, CacheCounts { uploads: counts.uploads.min(1), ..expected }, "{policy:?}");
            assert!(counts.uploads == 0 || policy == CachePolicy::Lru, "{policy:?}");
        }
        assert_eq!(CacheCounts::all_hits(&steps), CacheCounts { hits: 4, ..expected });
    }

    /// No policy that caches experts on use hits more than the optimum, whatever the trace.
    #[test]
    fn the_optimum_is_an_upper_bound() {
        let mut x = 1_u32;
        let trace: Vec<u32> = (0..3000)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (x >> 30) & (x >> 28)
            })
            .collect();
        for slots in 0..=4 {
            let [decayed, lru, lfu, _, optimum] = counts(slots, &trace).map(|(hits, _)| hits);
            assert!(optimum >= decayed.max(lru).max(lfu), "{slots}: {decayed} {lru} {lfu} {optimum}");
            assert!(slots == 0 || slots == 4 || optimum > lru, "{slots}: {lru} {optimum}");
        }
    }
}
