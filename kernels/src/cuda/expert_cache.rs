//! Caches the most used experts of a RAM-resident layer in GPU slots: their memory and uploads.
//!
//! [`DecayedLfu`] decides what is cached. Uploads overlap with compute on a second stream: they start when issued work has
//! read the slot ([`SlotLayer::free`]), and the next reader waits for them ([`SlotLayer::full`]). Next: `expert_policy`.

use super::driver::{Address, Driver, Event, Pinned, Stream};
use super::expert_policy::DecayedLfu;
use super::planes::{PLANES, PlaneMemory};
use super::{Cuda, Grid, Weight, arg};
use crate::backend::{Error, GatedMlp, QuantTensor};
use crate::cpu::ThreadPool;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
        let layer = SlotLayer { heat, full: driver.event(), free: driver.event() };
        Ok(Slots { count, planes, _memory: memory, layer: Mutex::new(layer) })
    }

    pub(super) fn layer(&self) -> MutexGuard<'_, SlotLayer> {
        self.layer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pinned memory for uploading the three matrices of an expert.
pub(super) type Uploader = Option<[Pinned; 3]>;

impl Cuda {
    /// Uploads experts to slots if the policy evicts any, after the CPU has computed `missed` experts.
    pub(super) fn promote(&self, w: &GatedMlp<'_, Weight>, layer: &mut SlotLayer, missed: usize) {
        if missed == 0 {
            return;
        }
        let stacks = [w.gate, w.up, w.down];
        let sizes = stacks.map(|w| w.in_ram().len() / w.count);
        let mut uploader = self.uploader.lock().unwrap_or_else(PoisonError::into_inner);
        let largest = sizes.into_iter().max().unwrap_or(0);
        if uploader.as_ref().is_none_or(|buffers| buffers[0].len < largest) {
            let buffer = || self.driver.pinned(largest);
            *uploader = buffer().and_then(|first| Some([first, buffer()?, buffer()?]));
        }
        let Some(buffers) = uploader.as_mut() else { return };
        let evictions = layer.heat.promote(missed);
        if evictions.is_empty() {
            return;
        }
        self.driver.mark(Stream::Work, &layer.free);
        self.driver.after(Stream::Copies, &layer.free);
        for [slot, expert] in evictions {
            for ((buffer, w), size) in buffers.iter_mut().zip(stacks).zip(sizes) {
                self.send_matrix(buffer, w, &w.in_ram()[expert as usize * size..][..size], slot as usize);
            }
        }
        self.driver.mark(Stream::Copies, &layer.full);
    }

    /// Uploads a matrix of `w` to a slot, plane by plane.
    fn send_matrix(&self, buffer: &mut Pinned, w: &Weight, matrix: &[u8], slot: usize) {
        let (block, slots) = (w.format.block_bytes(), w.slots().expect("slots of all three stacks"));
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
