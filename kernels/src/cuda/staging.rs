//! Uploads experts from RAM to the device for a step of many tokens.
//!
//! The upload time of a stack does not depend on the tokens, the CPU's compute time grows with them. From
//! [`UPLOAD_MIN_TOKENS`] tokens on, stacks are uploaded: CPU threads copy their pageable memory into pinned buffers, and
//! two device buffers alternate, so that one stack is uploaded while the other is used. Next: `attention`.

use super::driver::{Address, Driver, Event, Pinned, Stream};
use super::expert_cache::SlotLayer;
use super::expert_policy::DecayedLfu;
use super::matmul::{Shape, Target};
use super::memory::{DeviceBuffer, Tensor};
use super::planes::{PLANES, layout};
use super::route::ExpertChoice;
use super::{Cuda, Weight, arg};
use crate::backend::{Error, GatedMlp};
use crate::quant::Format;
use std::sync::{Arc, PoisonError};

/// Smallest step, in tokens, for which stacks are uploaded. Estimated, not measured: a layer of the published model in
/// Q4_K_M, 1 GB, takes 45 ms over PCIe 4, in which eight cores compute its experts for 300 to 450 tokens.
pub const UPLOAD_MIN_TOKENS: usize = 256;
/// Bytes of a pinned buffer.
const PINNED_BYTES: usize = 16 << 20;
/// Pinned buffers: one is filled, one is in flight, one is free.
const PINNED_BUFFERS: usize = 3;
/// Device buffers, one uploaded to while the other is used.
const STACK_BUFFERS: usize = 2;

/// Device bytes for a stack, and for its planes; 0 where it has one plane.
pub fn buffer_and_planes(format: Format, weights: u64) -> [u64; 2] {
    let blocks = weights / format.block_len() as u64;
    let split = layout(format, blocks as usize).1 as u64;
    [blocks * format.block_bytes() as u64, if format.cuda_planes().len() > 1 { split } else { 0 }]
}

/// Total device bytes for uploads, from the largest [`buffer_and_planes`].
pub fn staging_bytes([buffer, planes]: [u64; 2]) -> u64 {
    // Planes use a pool buffer, which may be a quarter too large.
    buffer.saturating_mul(STACK_BUFFERS as u64).saturating_add(planes.saturating_add(planes / 4))
}

/// Device buffers for uploaded stacks.
pub(super) struct Staging {
    stacks: [StackBuffer; STACK_BUFFERS],
    buffers: [Pinned; PINNED_BUFFERS],
    /// Size of each device buffer in bytes: the largest stack that it takes.
    bytes: usize,
    /// The buffer of the next stack.
    next: usize,
}

struct StackBuffer {
    at: Address,
    driver: Arc<Driver>,
    /// Signals that a stack is complete.
    full: Event,
    /// Signals that its readers are done.
    read: Event,
}

impl Drop for StackBuffer {
    fn drop(&mut self) {
        self.driver.free(self.at);
    }
}

/// A stack that a device buffer holds for this step.
struct UploadedStack {
    weight: Weight,
    /// Its planes, where the format has several, which frees the buffer.
    planes: Option<DeviceBuffer>,
    buffer: usize,
}

impl Staging {
    /// Allocates buffers for stacks of at most `bytes` bytes.
    ///
    /// # Errors
    /// The device or the host is out of memory.
    pub(super) fn new(driver: &Arc<Driver>, bytes: usize) -> Result<Staging, Error> {
        let missing = |what, bytes: usize| move || Error::OutOfMemory { what, bytes: bytes as u64 };
        let stack = || {
            let at =
                driver.allocate(bytes).ok_or_else(missing("arriving experts on the CUDA device", bytes))?;
            Ok(StackBuffer { at, driver: driver.clone(), full: driver.event(), read: driver.event() })
        };
        let buffer =
            || driver.pinned(PINNED_BYTES).ok_or_else(missing("pinned buffers of experts", PINNED_BYTES));
        let stacks = [stack()?, stack()?];
        Ok(Staging { stacks, buffers: [buffer()?, buffer()?, buffer()?], bytes, next: 0 })
    }

    /// Starts the upload of a stack, except cached experts; returns the buffer's index.
    fn send(&mut self, cuda: &Cuda, w: &Weight, heat: Option<&DecayedLfu>) -> usize {
        let bytes = w.in_ram();
        assert!(bytes.len() <= self.bytes, "{} bytes into a buffer of {}", bytes.len(), self.bytes);
        let (driver, index, matrix) = (&cuda.driver, self.next, bytes.len() / w.count);
        self.next = (index + 1) % STACK_BUFFERS;
        let StackBuffer { at, full, read, .. } = &self.stacks[index];
        driver.after(Stream::Copies, read);
        let mut buffers = (0..PINNED_BUFFERS).cycle();
        let whole = || std::iter::once(0..w.count).collect();
        for run in heat.map_or_else(whole, DecayedLfu::absent) {
            let first = run.start * matrix;
            for (i, part) in bytes[first..run.end * matrix].chunks(PINNED_BYTES).enumerate() {
                let buffer = &mut self.buffers[buffers.next().unwrap_or(0)];
                cuda.host().pool().copy(&mut buffer.bytes()[..part.len()], part);
                driver.send(at + (first + i * PINNED_BYTES) as u64, buffer, 0..part.len());
            }
        }
        driver.mark(Stream::Copies, full);
        index
    }

    /// Splits an uploaded stack into planes and copies cached experts from their slots. [`Staging::release`] follows when
    /// its uses are issued.
    fn receive(&self, cuda: &Cuda, w: &Weight, heat: Option<&DecayedLfu>, index: usize) -> UploadedStack {
        let (driver, StackBuffer { at, full, read, .. }) = (&cuda.driver, &self.stacks[index]);
        driver.after(Stream::Work, full); // also orders earlier uploads to slots, on the same stream
        let (places, split) = cuda.split(w, *at, w.in_ram().len());
        if let (Some(heat), Some(slots)) = (heat, w.slots()) {
            cuda.move_matrices(w, places, slots.planes, &heat.present());
        }
        if split.is_some() {
            driver.mark(Stream::Work, read);
        }
        UploadedStack { weight: w.placed(w.count, places), planes: split, buffer: index }
    }

    fn release(&self, cuda: &Cuda, stack: &UploadedStack) {
        if stack.planes.is_none() {
            cuda.driver.mark(Stream::Work, &self.stacks[stack.buffer].read);
        }
    }
}

impl Cuda {
    /// The planes of a stack uploaded to `at`, in separate memory where there are several.
    fn split(&self, w: &Weight, at: Address, bytes: usize) -> ([Address; PLANES], Option<DeviceBuffer>) {
        let mut places = [0; PLANES];
        let parts = w.format.cuda_planes();
        if parts.len() == 1 {
            places[0] = at;
            return (places, None);
        }
        let (block, blocks) = (w.format.block_bytes(), bytes / w.format.block_bytes());
        let (starts, size) = layout(w.format, blocks);
        let split = self.buffers.bytes(size);
        for ((place, start), part) in places.iter_mut().zip(starts).zip(parts) {
            *place = split.at + start as u64;
            let [block, first, len] = [block, part.start, part.len()].map(|n| arg(n as i32));
            self.each("split_plane", blocks * part.len(), &[arg(at), arg(*place), block, first, len]);
        }
        (places, Some(split))
    }

    /// The experts' sum with the three stacks uploaded in turn; None for too few tokens or without upload buffers.
    pub(super) fn experts_uploaded(
        &self,
        w: &GatedMlp<'_, Weight>,
        x: &Tensor,
        choice: ExpertChoice,
    ) -> Option<Tensor> {
        let ExpertChoice { places: chosen, rows, top_k, .. } = choice;
        let groups = w.gate.count;
        if rows < UPLOAD_MIN_TOKENS {
            return None;
        }
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = staging.as_mut()?;
        let mut layer = w.gate.slots().map(|slots| slots.layer());
        let mut evictions = None;
        let pairs = self.pairs(choice, groups);
        let mut product = |w: &Weight, x: &Tensor, x_div: usize| {
            let shape = Shape { vectors: rows * top_k, groups, x_div, chosen };
            let y = self.buffers.tensor(shape.vectors, w.rows);
            let index = staging.send(self, w, layer.as_ref().map(|layer| &layer.heat));
            // Waits for earlier work, not for the current upload.
            let warm = || layer.as_mut().map_or_else(Vec::new, |layer| self.warm(layer, choice));
            let evictions = evictions.get_or_insert_with(warm);
            let stack = staging.receive(self, w, layer.as_ref().map(|layer| &layer.heat), index);
            let target = Target { w: &stack.weight, y: y.at(), y_stride: w.rows };
            self.gemm(target, self.input(&stack.weight, x), shape, Some(&pairs));
            if let Some(slots) = w.slots() {
                self.move_matrices(w, slots.planes, stack.weight.planes, evictions);
            }
            staging.release(self, &stack);
            y
        };
        let (gate, up) = (product(w.gate, x, top_k), product(w.up, x, top_k));
        self.limited_silu_mul(&gate, &up, w.limit);
        let out = product(w.down, &gate, 1);
        if let (Some(layer), Some(evictions)) = (&mut layer, evictions) {
            layer.heat.evict(&evictions);
        }
        Some(self.weighted_sum(&out, choice))
    }

    /// Counts routed experts; returns the resulting evictions.
    fn warm(&self, layer: &mut SlotLayer, choice: ExpertChoice) -> Vec<[i32; 2]> {
        let mut chosen = vec![0_u32; choice.rows * choice.top_k];
        self.driver.download(choice.places, bytemuck::cast_slice_mut(&mut chosen));
        layer.heat.record_uses(&chosen, choice.rows);
        layer.heat.evictions()
    }
}
