//! Weights on the device: stored blocks, split into planes so that their levels lie at multiples of 16 bytes.
//!
//! No byte is added and none is changed: a plane is the same part of every block, block after block. What stands in
//! which plane is drawn in kernels/cuda/quant.cuh. Next: `product`.

use super::driver::{Address, Driver};
use super::hot::Slots;
use crate::backend::{Error, Stored};
use crate::quant::Format;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Planes a format has at most.
pub(super) const PLANES: usize = 3;

/// A stack of matrices on the device.
pub struct Weight {
    pub(super) format: Format,
    pub(super) count: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Where each plane begins; 0 where the format has fewer.
    pub(super) planes: [Address; PLANES],
    /// Held for as long as the addresses are used.
    _memory: Option<Memory>,
    /// Where it is if it is not on the device: experts in RAM.
    pub(super) host: Option<crate::cpu::Weight>,
    /// Of experts in RAM, those that are on the device too.
    pub(super) slots: Option<Slots>,
}

/// Memory of weights.
pub(super) struct Memory {
    at: Address,
    driver: Arc<Driver>,
}

impl Memory {
    /// For so many blocks of a format, and where each plane begins.
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
        for ((address, start), _) in addresses.iter_mut().zip(starts).zip(planes(format)) {
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

/// The bytes of a block that are its planes.
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
pub(super) fn planes(format: Format) -> &'static [Range<usize>] {
    match format {
        Format::F32 => &[0..4],
        Format::F16 | Format::BF16 => &[0..2],
        Format::Q4_0 | Format::IQ4_NL => &[2..18, 0..2],
        Format::Q4_1 => &[4..20, 0..4],
        Format::Q5_0 => &[6..22, 0..2, 2..6],
        Format::Q5_1 => &[8..24, 0..4, 4..8],
        Format::Q8_0 => &[2..34, 0..2],
        Format::MXFP4 => &[1..17, 0..1],
        Format::Q2_K => &[16..80, 0..16, 80..84],
        Format::Q3_K => &[0..96, 96..108, 108..110],
        Format::Q4_K => &[0..144],
        Format::Q5_K => &[0..176],
        Format::Q6_K => &[0..208, 208..210],
        Format::IQ4_XS => &[8..136, 0..8],
    }
}

/// Where planes of `blocks` blocks begin, and the bytes of them all.
pub(super) fn layout(format: Format, blocks: usize) -> ([usize; PLANES], usize) {
    let (mut starts, mut end) = ([0; PLANES], 0_usize);
    for (start, plane) in starts.iter_mut().zip(planes(format)) {
        *start = end.next_multiple_of(256);
        end = *start + blocks * plane.len();
    }
    (starts, end)
}

/// Bytes on the device of a stack of matrices in a format: what a placement counts with.
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
    pub(super) fn new(driver: &Arc<Driver>, stored: &Stored) -> Result<Weight, Error> {
        let Stored { format, count, rows, cols, bytes } = stored;
        let row = format.row_bytes(*cols as u64).expect("rows of whole blocks") as usize;
        assert_eq!(bytes.len(), count * rows * row, "bytes of a weight");
        let blocks = bytes.len() / format.block_bytes();
        let (memory, places) = Memory::planes(driver, *format, blocks, "a weight on the CUDA device")?;
        for (place, part) in places.iter().zip(planes(*format)) {
            driver.upload(*place, &plane(bytes, format.block_bytes(), part));
        }
        let (format, count, rows, cols) = (*format, *count, *rows, *cols);
        let (host, slots) = (None, None);
        Ok(Weight { format, count, rows, cols, planes: places, _memory: Some(memory), host, slots })
    }

    /// A stack that stays in RAM but for what has slots.
    pub(super) fn on_host(stored: &Stored, host: crate::cpu::Weight, slots: Option<Slots>) -> Weight {
        let Stored { format, count, rows, cols, .. } = *stored;
        Weight { format, count, rows, cols, planes: [0; PLANES], _memory: None, host: Some(host), slots }
    }

    /// `count` matrices like its own with their planes at these addresses, which are somebody else's.
    pub(super) fn placed(&self, count: usize, planes: [Address; PLANES]) -> Weight {
        let Weight { format, rows, cols, .. } = *self;
        Weight { format, count, rows, cols, planes, _memory: None, host: None, slots: None }
    }

    /// The stack of its slots.
    pub(super) fn hot(&self) -> Weight {
        let slots = self.slots.as_ref().expect("slots of all three stacks");
        self.placed(slots.count, slots.planes)
    }

    /// The bytes of experts in RAM.
    pub(super) fn in_ram(&self) -> &[u8] {
        &self.host.as_ref().expect("experts in RAM").bytes
    }

    /// Asserts that it is on the device.
    pub(super) fn on_device(&self) -> &Weight {
        assert!(self.host.is_none(), "a weight in RAM in a product on the device: only experts may be there");
        self
    }

    /// Floats of a small weight that is stored as floats: norms, taps, biases.
    pub(super) fn floats(&self) -> Address {
        assert_eq!((self.format, self.count), (Format::F32, 1), "a vector of the graph is F32");
        self.planes[0]
    }

    /// Columns are bytes with scales when they meet it, not floats.
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
            planes(format).iter().for_each(|p| covered[p.clone()].iter_mut().for_each(|c| *c += 1));
            assert!(covered.iter().all(|c| *c == 1), "{}", format.name());
            assert!(
                format.block_len() == 1 || planes(format)[0].len().is_multiple_of(16),
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
