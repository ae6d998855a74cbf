//! Decides which experts of a layer are cached on the GPU: decayed LFU with eviction hysteresis.
//!
//! An expert's heat is its use count, decayed by [`DECAY`] per token. Once the CPU has computed [`MISSES_PER_UPLOAD`] missed
//! experts, the hottest expert without a slot evicts a clearly colder one; free slots are filled faster
//! ([`MISSES_PER_FILL`]). A step of many tokens, which has all stacks on the device for a moment, assigns slots to the
//! hottest at once. Nothing here touches a device: `kimi bench
//! --replay-experts` runs the same code on recorded routings. Next: `staging`.

use std::ops::Range;

/// Decay of an expert's heat per token.
const DECAY: f32 = 0.995;
/// Heat ratio that an expert must exceed to evict another: avoids thrashing between equally used experts.
const EVICT_HYSTERESIS: f32 = 1.25;
/// Experts that the CPU reads from RAM for each one uploaded in place of another.
const MISSES_PER_UPLOAD: usize = 8;
/// The same for each one uploaded to a free slot: that happens once per slot, and all later tokens gain from it.
const MISSES_PER_FILL: usize = 2;

/// Slot assignment by decayed use counts.
pub struct DecayedLfu {
    /// The slot of each expert, or -1.
    slot_of: Vec<i32>,
    /// The expert in each slot, or -1.
    expert_in: Vec<i32>,
    heat: Vec<f32>,
    /// Missed experts since the last upload that they allowed.
    missed: usize,
}

impl DecayedLfu {
    /// No expert of `experts` is in one of `slots` slots yet.
    pub fn new(experts: usize, slots: usize) -> DecayedLfu {
        DecayedLfu {
            slot_of: vec![-1; experts],
            expert_in: vec![-1; slots],
            heat: vec![0.0; experts],
            missed: 0,
        }
    }

    /// Counts the experts routed by `rows` tokens, as if token by token with evenly spread uses.
    pub fn record_uses(&mut self, chosen: &[u32], rows: usize) {
        let keep = DECAY.powi(rows as i32);
        let each = (1.0 - keep) / (1.0 - DECAY) / rows.max(1) as f32;
        self.heat.iter_mut().for_each(|heat| *heat *= keep);
        chosen.iter().for_each(|e| self.heat[*e as usize] += each);
    }

    /// The slots of experts routed by `rows` tokens, -1 for misses; counts the uses.
    pub fn places(&mut self, chosen: &[u32], rows: usize) -> Vec<i32> {
        self.record_uses(chosen, rows);
        chosen.iter().map(|e| self.slot_of[*e as usize]).collect()
    }

    fn assign(&mut self, slot: usize, expert: usize) {
        let before = std::mem::replace(&mut self.expert_in[slot], expert as i32);
        if before >= 0 {
            self.slot_of[before as usize] = -1;
        }
        self.slot_of[expert] = slot as i32;
    }

    /// Heat of a slot's expert; below every heat for a free slot.
    fn heat_in(&self, slot: usize) -> f32 {
        usize::try_from(self.expert_in[slot]).map_or(f32::NEG_INFINITY, |expert| self.heat[expert])
    }

    /// The next eviction as [slot, expert]: the coldest slot and the hottest uncached expert, if clearly hotter.
    fn next_eviction(&self) -> Option<[usize; 2]> {
        let absent = (0..self.heat.len()).filter(|e| self.slot_of[*e] < 0);
        let expert = absent.max_by(|a, b| self.heat[*a].total_cmp(&self.heat[*b]).then(b.cmp(a)))?;
        let slots = 0..self.expert_in.len();
        let slot = slots.min_by(|a, b| self.heat_in(*a).total_cmp(&self.heat_in(*b)))?;
        (self.heat[expert] > (EVICT_HYSTERESIS * self.heat_in(slot) + 1.0).max(0.0)).then_some([slot, expert])
    }

    /// Evictions, as [slot, expert], that the misses of a step allow after the CPU has computed `missed` distinct experts. The
    /// caller uploads the experts.
    pub fn promote(&mut self, missed: usize) -> Vec<[i32; 2]> {
        self.missed += missed;
        let mut evictions = Vec::new();
        while let Some([slot, expert]) = self.next_eviction() {
            let price = if self.expert_in[slot] < 0 { MISSES_PER_FILL } else { MISSES_PER_UPLOAD };
            if self.missed < price {
                break;
            }
            self.missed -= price;
            self.assign(slot, expert);
            evictions.push([slot as i32, expert as i32]);
        }
        self.missed %= MISSES_PER_UPLOAD; // unused uploads do not accumulate
        evictions
    }

    /// All evictions, as [slot, expert], after which the hottest experts are cached.
    pub fn evictions(&self) -> Vec<[i32; 2]> {
        let mut order: Vec<usize> = (0..self.heat.len()).filter(|e| self.heat[*e] > 0.0).collect();
        order.sort_by(|a, b| self.heat[*b].total_cmp(&self.heat[*a]).then(a.cmp(b)));
        order.truncate(self.expert_in.len());
        let stays = |slot: &i32| usize::try_from(*slot).is_ok_and(|expert| order.contains(&expert));
        let slots = (0..).zip(&self.expert_in).filter(|(_, expert)| !stays(expert)).map(|(slot, _)| slot);
        let coming = order.iter().filter(|e| self.slot_of[**e] < 0);
        slots.zip(coming).map(|(slot, expert)| [slot, *expert as i32]).collect()
    }

    /// Assigns each `[slot, expert]` pair's slot to the expert, which evicts the previous one.
    pub fn evict(&mut self, evictions: &[[i32; 2]]) {
        evictions.iter().for_each(|[slot, expert]| self.assign(*slot as usize, *expert as usize));
    }

    /// [expert, slot] of cached experts.
    pub(super) fn present(&self) -> Vec<[i32; 2]> {
        (0..).zip(&self.slot_of).filter(|(_, slot)| **slot >= 0).map(|(e, slot)| [e, *slot]).collect()
    }

    /// Runs of adjacent experts that have no slot.
    pub(super) fn absent(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for e in (0..self.slot_of.len()).filter(|e| self.slot_of[*e] < 0) {
            match runs.last_mut().filter(|run| run.end == e) {
                Some(run) => run.end += 1,
                None => runs.push(e..e + 1),
            }
        }
        runs
    }
}

/// The number of distinct experts among the misses of a step, which the CPU computes; `places` is from
/// [`DecayedLfu::places`].
pub fn distinct_misses(chosen: &[u32], places: &[i32]) -> usize {
    let misses = chosen.iter().zip(places).filter(|(_, place)| **place < 0);
    let mut experts: Vec<u32> = misses.map(|(expert, _)| *expert).collect();
    experts.sort_unstable();
    experts.dedup();
    experts.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_have_the_slots_in_the_end() {
        let mut heat = DecayedLfu::new(6, 2);
        assert_eq!((heat.next_eviction(), heat.evictions()), (None, vec![]));
        assert_eq!(heat.places(&[4, 1], 1), [-1, -1]);
        assert_eq!(heat.next_eviction(), Some([0, 1])); // a free slot, the first of equals
        heat.assign(0, 1);
        assert_eq!(heat.evictions(), [[1, 4]]);
        heat.evict(&[[1, 4]]);
        assert_eq!((heat.present(), heat.absent()), (vec![[1, 0], [4, 1]], vec![0..1, 2..4, 5..6]));
        assert_eq!(heat.places(&[5, 4], 1), [-1, 1]);
        assert_eq!(heat.next_eviction(), None); // 1.0 is not clearly more than 0.995
        heat.record_uses(&[5, 5], 2);
        let [slot, expert] = heat.next_eviction().unwrap();
        assert_eq!([slot, expert], [0, 5]);
        heat.assign(slot, expert);
        assert_eq!(heat.present(), [[4, 1], [5, 0]]);
        assert_eq!(heat.places(&[1, 5, 4], 1), [-1, 0, 1]);
    }

    #[test]
    fn free_slots_are_filled_before_experts_are_evicted() {
        let mut heat = DecayedLfu::new(8, 2);
        assert_eq!((heat.places(&[5, 2, 3], 1), heat.promote(3)), (vec![-1; 3], vec![[0, 2]]));
        assert_eq!((heat.places(&[3], 1), heat.promote(1)), (vec![-1], vec![[1, 3]])); // one miss was left
        for missed in [7, 1] {
            heat.record_uses(&[5; 9], 1);
            assert_eq!(heat.promote(missed), if missed == 7 { vec![] } else { vec![[0, 5]] });
        }
        heat.record_uses(&[0], 1);
        assert!(heat.promote(80).is_empty(), "not clearly hotter");
        heat.record_uses(&[0, 0, 0, 0], 1);
        assert_eq!((heat.promote(7), heat.promote(1)), (vec![], vec![[1, 0]])); // the 80 are gone
        assert_eq!(distinct_misses(&[4, 6, 4, 0], &[-1, -1, -1, 1]), 2);
    }

    #[test]
    fn many_tokens_count_as_one_after_the_other() {
        let (mut at_once, mut in_turn) = (DecayedLfu::new(3, 1), DecayedLfu::new(3, 1));
        at_once.record_uses(&[0, 2].repeat(300), 300);
        (0..300).for_each(|_| in_turn.record_uses(&[0, 2], 1));
        for (a, b) in at_once.heat.iter().zip(&in_turn.heat) {
            assert!((a - b).abs() < 1e-3 * b.max(1.0), "{a} {b}");
        }
        at_once.record_uses(&[1; 400], 400);
        assert_eq!(at_once.evictions(), [[0, 1]]);
    }
}
