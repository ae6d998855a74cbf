//! Splits the blocks of a weight into planes on the device, so that quants are 16-byte aligned.
//!
//! A plane holds the same byte range of every block; no byte is added or changed. `Block::CUDA_PLANES` in each format's file
//! lists its planes; kernels/cuda/quant.cuh reads them. Next: `weight`.

use super::driver::{Address, Driver};
use crate::backend::Error;
use crate::quant::Format;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Largest number of planes of a format.
pub(super) const PLANES: usize = 3;

/// Device memory of the planes of a weight.
pub(super) struct PlaneMemory {
    at: Address,
    driver: Arc<Driver>,
}

impl PlaneMemory {
    /// Allocates the planes of a number of blocks; returns their addresses too.
    pub(super) fn allocate(
        driver: &Arc<Driver>,
        format: Format,
        blocks: usize,
        what: &'static str,
    ) -> Result<(PlaneMemory, [Address; PLANES]), Error> {
        let (starts, size) = layout(format, blocks);
        let missing = || Error::OutOfMemory { what, bytes: size as u64 };
        let at = driver.allocate(size.max(1)).ok_or_else(missing)?;
        let mut addresses = [0; PLANES];
        for ((address, start), _) in addresses.iter_mut().zip(starts).zip(format.cuda_planes()) {
            *address = at + start as u64;
        }
        Ok((PlaneMemory { at, driver: driver.clone() }, addresses))
    }
}

impl Drop for PlaneMemory {
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
pub(super) fn plane<'a>(bytes: &'a [u8], block: usize, part: &Range<usize>) -> Cow<'a, [u8]> {
    if part.len() == block {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned(bytes.chunks_exact(block).flat_map(|b| &b[part.clone()]).copied().collect())
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
