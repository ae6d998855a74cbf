//! Stores weights on the device: blocks split into planes, so that quants are 16-byte aligned.
//!
//! A plane holds the same byte range of every block; no byte is added or changed. kernels/cuda/quant.cuh draws the planes
//! of each format. Next: `matmul`.

use super::driver::{Address, Driver};
use super::expert_cache::Slots;
use crate::backend::{Error, QuantTensor};
use crate::quant::Format;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Largest number of planes of a format.
pub(super) const PLANES: usize = 3;

/// A stack of matrices on the device.
pub struct Weight {
    pub(super) format: Format,
    pub(super) count: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Address of each plane; 0 where the format has fewer.
    pub(super) planes: [Address; PLANES],
    /// Owns the memory behind the addresses.
    _memory: Option<Memory>,
    /// The weight in RAM, for experts that are not on the device.
    pub(super) host: Option<crate::cpu::Weight>,
    /// Expert cache slots of a weight in RAM.
    pub(super) slots: Option<Slots>,
}

/// Device memory of a weight.
pub(super) struct Memory {
    at: Address,
    driver: Arc<Driver>,
}

impl Memory {
    /// Allocates planes for a number of blocks; returns their addresses.
    pub(super) fn planes(
        driver: &Arc<Driver>,
        format: Format,
        blocks: usize,
        what: &'static str,
    ) -> Result<(Memory, [Address; PLANES]), Error> {
        let (starts, size) = layout(format, blocks);
        let missing = || Error::OutOfMemory { what, bytes: size as u64 };
        let at = driver.allocate(size.max(1)).ok_or_else(missing)?;
        let mut addresses = [0; PLANES];
        for ((address, start), _) in addresses.iter_mut().zip(starts).zip(format.cuda_planes()) {
            *address = at + start as u64;
        }
        Ok((Memory { at, driver: driver.clone() }, addresses))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.driver.give_up();
        self.driver.free(self.at);
    }
}

/// Plane offsets for `blocks` blocks, and total bytes.
pub(super) fn layout(format: Format, blocks: usize) -> ([usize; PLANES], usize) {
    let (mut starts, mut end) = ([0; PLANES], 0_usize);
    for (start, plane) in starts.iter_mut().zip(format.cuda_planes()) {
        *start = end.next_multiple_of(256);
        end = *start + blocks * plane.len();
    }
    (starts, end)
}

/// Device bytes of a stack of matrices, for memory planning.
pub fn device_bytes(format: Format, weights: u64) -> u64 {
    layout(format, (weights / format.block_len() as u64) as usize).1 as u64
}

/// One plane of all blocks.
fn plane<'a>(bytes: &'a [u8], block: usize, part: &Range<usize>) -> Cow<'a, [u8]> {
    if part.len() == block {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned(bytes.chunks_exact(block).flat_map(|b| &b[part.clone()]).copied().collect())
}

impl Weight {
    pub(super) fn new(driver: &Arc<Driver>, stored: &QuantTensor) -> Result<Weight, Error> {
        let QuantTensor { format, count, rows, cols, bytes } = stored;
        let row = format.row_bytes(*cols as u64).expect("rows of whole blocks") as usize;
        assert_eq!(bytes.len(), count * rows * row, "bytes of a weight");
        let blocks = bytes.len() / format.block_bytes();
        let (memory, places) = Memory::planes(driver, *format, blocks, "a weight on the CUDA device")?;
        for (place, part) in places.iter().zip(format.cuda_planes()) {
            driver.upload(*place, &plane(bytes, format.block_bytes(), part));
        }
        let (format, count, rows, cols) = (*format, *count, *rows, *cols);
        let (host, slots) = (None, None);
        Ok(Weight { format, count, rows, cols, planes: places, _memory: Some(memory), host, slots })
    }

    /// A stack in RAM, with optional expert cache slots.
    pub(super) fn on_host(stored: &QuantTensor, host: crate::cpu::Weight, slots: Option<Slots>) -> Weight {
        let QuantTensor { format, count, rows, cols, .. } = *stored;
        Weight { format, count, rows, cols, planes: [0; PLANES], _memory: None, host: Some(host), slots }
    }

    /// A borrowed stack of `count` matrices of the same shape at other addresses.
    pub(super) fn placed(&self, count: usize, planes: [Address; PLANES]) -> Weight {
        let Weight { format, rows, cols, .. } = *self;
        Weight { format, count, rows, cols, planes, _memory: None, host: None, slots: None }
    }

    /// The stack of its expert cache slots.
    pub(super) fn hot(&self) -> Weight {
        let slots = self.slots.as_ref().expect("slots of all three stacks");
        self.placed(slots.count, slots.planes)
    }

    /// The bytes of experts in RAM.
    pub(super) fn in_ram(&self) -> &[u8] {
        &self.host.as_ref().expect("experts in RAM").bytes
    }

    /// Asserts that the weight is on the device.
    pub(super) fn on_device(&self) -> &Weight {
        assert!(self.host.is_none(), "a weight in RAM in a product on the device: only experts may be there");
        self
    }

    /// Address of a small F32 weight: norms, taps, biases.
    pub(super) fn floats(&self) -> Address {
        assert_eq!((self.format, self.count), (Format::F32, 1), "a vector of the graph is F32");
        self.planes[0]
    }

    /// Returns whether activations are quantised for this weight.
    pub(super) fn is_block(&self) -> bool {
        self.format.block_len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_the_whole_block_and_levels_are_aligned() {
        for format in Format::ALL {
            let mut covered = vec![0; format.block_bytes()];
            format.cuda_planes().iter().for_each(|p| covered[p.clone()].iter_mut().for_each(|c| *c += 1));
            assert!(covered.iter().all(|c| *c == 1), "{}", format.name());
            assert!(
                format.block_len() == 1 || format.cuda_planes()[0].len().is_multiple_of(16),
                "{}",
                format.name()
            );
            let (starts, size) = layout(format, 7);
            assert!(starts.iter().all(|s| s % 16 == 0) && size >= 7 * format.block_bytes());
        }
    }

    #[test]
    fn a_plane_is_a_part_of_each_block() {
        let bytes: Vec<u8> = (0..36).collect();
        assert_eq!(&*plane(&bytes, 18, &(0..2)), [0, 1, 18, 19]);
        assert_eq!(plane(&bytes, 18, &(2..18)).len(), 32);
    }
}
