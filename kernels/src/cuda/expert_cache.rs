//! Caches the most used experts of a RAM-resident layer in GPU slots, with decayed-LFU replacement.
//!
//! An expert's heat is its use count, decayed by [`DECAY`] per token. Once the CPU has read
//! [`CPU_BYTES_PER_UPLOADED_BYTE`] bytes of experts per byte to upload, the hottest expert without a slot evicts a clearly
//! colder one; a step of many tokens, which has all stacks on the device for a moment, assigns slots to the hottest at
//! once. Uploads overlap with compute on a second stream: they start when issued work has read the slot
//! ([`SlotLayer::free`]), and the next reader waits for them ([`SlotLayer::full`]). Next: `staging`.

use super::driver::{Address, Driver, Event, Pinned, Stream};
use super::planes::{PLANES, PlaneMemory};
use super::{Cuda, Grid, Weight, arg};
use crate::backend::{Error, GatedMlp, QuantTensor};
use crate::cpu::ThreadPool;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Decay of an expert's heat per token.
const DECAY: f32 = 0.995;
/// Heat ratio that an expert must exceed to evict another: avoids thrashing between equally used experts.
const EVICT_HYSTERESIS: f32 = 1.25;
/// Expert bytes that the CPU reads for each byte uploaded to a slot.
const CPU_BYTES_PER_UPLOADED_BYTE: u64 = 8;

/// Device slots for experts of a stack.
pub(super) struct Slots {
    pub(super) count: usize,
    pub(super) planes: [Address; PLANES],
    _memory: PlaneMemory,
    /// Replacement state; of a layer's three stacks the gate's is used.
    layer: Mutex<SlotLayer>,
}

/// Replacement state of a layer's slots.
pub(super) struct SlotLayer {
    pub(super) heat: DecayedLfu,
    /// Bytes that may be uploaded, earned by the expert bytes that the CPU has read.
    credit: u64,
    /// Signals that uploads to slots are complete.
    pub(super) full: Event,
    /// Signals that issued work has read the slots.
    free: Event,
}

impl Slots {
    /// Allocates slots for `count` matrices of a stack.
    pub(super) fn new(driver: &Arc<Driver>, stored: &QuantTensor, count: usize) -> Result<Slots, Error> {
        let blocks = count * stored.rows * stored.cols / stored.format.block_len();
        let (memory, planes) =
            PlaneMemory::allocate(driver, stored.format, blocks, "a cache of experts on the CUDA device")?;
        let heat = DecayedLfu::new(stored.count, count);
        let layer = SlotLayer { heat, credit: 0, full: driver.event(), free: driver.event() };
        Ok(Slots { count, planes, _memory: memory, layer: Mutex::new(layer) })
    }

    pub(super) fn layer(&self) -> MutexGuard<'_, SlotLayer> {
        self.layer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Slot assignment by decayed use counts.
pub(super) struct DecayedLfu {
    /// The slot of each expert, or -1.
    slot_of: Vec<i32>,
    /// The expert in each slot, or -1.
    expert_in: Vec<i32>,
    heat: Vec<f32>,
}

impl DecayedLfu {
    fn new(experts: usize, slots: usize) -> DecayedLfu {
        DecayedLfu { slot_of: vec![-1; experts], expert_in: vec![-1; slots], heat: vec![0.0; experts] }
    }

    /// Counts the experts routed by `rows` tokens, as if token by token with evenly spread uses.
    pub(super) fn record_uses(&mut self, chosen: &[u32], rows: usize) {
        let keep = DECAY.powi(rows as i32);
        let each = (1.0 - keep) / (1.0 - DECAY) / rows.max(1) as f32;
        self.heat.iter_mut().for_each(|heat| *heat *= keep);
        chosen.iter().for_each(|e| self.heat[*e as usize] += each);
    }

    /// The slots of routed experts, -1 for misses; counts hits and lookups.
    pub(super) fn places(&mut self, chosen: &[u32], rows: usize) -> Vec<i32> {
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

    /// All evictions, as [slot, expert], after which the hottest experts are cached.
    pub(super) fn evictions(&self) -> Vec<[i32; 2]> {
        let mut order: Vec<usize> = (0..self.heat.len()).filter(|e| self.heat[*e] > 0.0).collect();
        order.sort_by(|a, b| self.heat[*b].total_cmp(&self.heat[*a]).then(a.cmp(b)));
        order.truncate(self.expert_in.len());
        let stays = |slot: &i32| usize::try_from(*slot).is_ok_and(|expert| order.contains(&expert));
        let slots = (0..).zip(&self.expert_in).filter(|(_, expert)| !stays(expert)).map(|(slot, _)| slot);
        let coming = order.iter().filter(|e| self.slot_of[**e] < 0);
        slots.zip(coming).map(|(slot, expert)| [slot, *expert as i32]).collect()
    }

    /// Assigns each `[slot, expert]` pair's slot to the expert, which evicts the previous one.
    pub(super) fn evict(&mut self, evictions: &[[i32; 2]]) {
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

/// Pinned memory for uploading the three matrices of an expert.
pub(super) type Uploader = Option<[Pinned; 3]>;

impl Cuda {
    /// Uploads experts to slots if the budget allows, after the CPU has computed `missed` experts.
    pub(super) fn promote(&self, w: &GatedMlp<'_, Weight>, layer: &mut SlotLayer, missed: usize) {
        let stacks = [w.gate, w.up, w.down];
        let sizes = stacks.map(|w| w.in_ram().len() / w.count);
        let bytes = sizes.iter().sum::<usize>() as u64;
        layer.credit += missed as u64 * bytes / CPU_BYTES_PER_UPLOADED_BYTE;
        let most = layer.credit / bytes.max(1);
        layer.credit %= bytes.max(1); // unused budget does not accumulate
        if most == 0 || layer.heat.next_eviction().is_none() {
            return;
        }
        let mut uploader = self.uploader.lock().unwrap_or_else(PoisonError::into_inner);
        let largest = sizes.into_iter().max().unwrap_or(0);
        if uploader.as_ref().is_none_or(|buffers| buffers[0].len < largest) {
            let buffer = || self.driver.pinned(largest);
            *uploader = buffer().and_then(|first| Some([first, buffer()?, buffer()?]));
        }
        let Some(buffers) = uploader.as_mut() else { return };
        self.driver.mark(Stream::Work, &layer.free);
        self.driver.after(Stream::Copies, &layer.free);
        for _ in 0..most {
            let Some([slot, expert]) = layer.heat.next_eviction() else { break };
            for ((buffer, w), size) in buffers.iter_mut().zip(stacks).zip(sizes) {
                self.send_matrix(buffer, w, &w.in_ram()[expert * size..][..size], slot);
            }
            layer.heat.assign(slot, expert);
        }
        self.driver.mark(Stream::Copies, &layer.full);
    }

    /// Uploads a matrix of `w` to a slot, plane by plane.
    fn send_matrix(&self, buffer: &mut Pinned, w: &Weight, matrix: &[u8], slot: usize) {
        let (block, slots) = (w.format.block_bytes(), w.slots.as_ref().expect("slots of all three stacks"));
        let blocks = matrix.len() / block;
        let mut start = 0;
        let mut parts = Vec::with_capacity(PLANES);
        for (part, plane) in w.format.cuda_planes().iter().zip(slots.planes) {
            let bytes = start..start + blocks * part.len();
            copy_plane(self.host().pool(), &mut buffer.bytes()[bytes.clone()], matrix, (block, part));
            start = bytes.end;
            parts.push((plane + (slot * bytes.len()) as u64, bytes));
        }
        parts.into_iter().for_each(|(to, bytes)| self.driver.send(to, buffer, bytes));
    }

    /// Copies matrices between stacks of `w`'s format and shape; each move is [to, from].
    pub(super) fn move_matrices(
        &self,
        w: &Weight,
        to: [Address; PLANES],
        from: [Address; PLANES],
        moves: &[[i32; 2]],
    ) {
        if moves.is_empty() {
            return;
        }
        let blocks = w.rows * w.cols / w.format.block_len();
        let list = self.buffers.upload(moves);
        for ((part, to), from) in w.format.cuda_planes().iter().zip(to).zip(from) {
            let bytes = blocks * part.len();
            let grid = Grid {
                blocks: [moves.len(), bytes.div_ceil(16 * 256 * 8).min(64), 1],
                threads: 256,
                shared: 0,
            };
            let arguments = [arg(list.at), arg(from), arg(to), arg(bytes as i64)];
            self.driver.launch(["move_matrices", ""], grid, &arguments);
        }
    }
}

/// A plane of all blocks.
fn copy_plane(pool: &ThreadPool, to: &mut [u8], blocks: &[u8], (block, part): (usize, &Range<usize>)) {
    const AT_ONCE: usize = 512;
    if part.len() == block {
        return pool.copy(to, blocks);
    }
    pool.for_chunks(to, AT_ONCE * part.len(), |i, to| {
        let from = blocks[i * AT_ONCE * block..].chunks_exact(block);
        to.chunks_exact_mut(part.len()).zip(from).for_each(|(to, b)| to.copy_from_slice(&b[part.clone()]));
    });
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
