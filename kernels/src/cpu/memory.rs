//! Allocates tensors and scratch of the CPU backend from a buffer pool.
//!
//! A dropped buffer returns to the pool and is reused for the next request of about its size, so decode allocates
//! nothing in the steady state. [`LIMIT`] bounds the unused buffers. Buffers are not cleared; every op writes its whole
//! result. (Debug builds fill them with NaN, so that tests detect unwritten values.) Next: `elementwise`.

use bytemuck::{Pod, Zeroable};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Largest total size of unused buffers in bytes: several times the working set of a 512-token prefill batch of the
/// 48B model.
pub const LIMIT: usize = 1 << 29;

/// Sixteen floats, one cache line: the alignment of buffers.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct CacheLine([f32; 16]);

/// The pool; clones share it.
#[derive(Clone, Default)]
pub struct BufferPool(Arc<Mutex<Free>>);

#[derive(Default)]
struct Free {
    /// Unused buffers by size in cache lines.
    by_size: Vec<(usize, Vec<Box<[CacheLine]>>)>,
    bytes: usize,
}

/// Memory from the pool, 64-byte aligned; dropping it returns it.
pub struct Buffer {
    lines: Box<[CacheLine]>,
    home: BufferPool,
}

/// An f32 matrix `[rows, cols]` in a buffer from the pool, row-major.
pub struct Tensor {
    /// Number of rows, mostly one per token.
    pub rows: usize,
    /// Number of values in a row; rows are contiguous.
    pub cols: usize,
    buffer: Buffer,
}

impl BufferPool {
    /// At least `len` floats of any value.
    pub fn floats(&self, len: usize) -> Buffer {
        let size = size_class(len.div_ceil(16));
        let unused = self.lock().take(size);
        let lines = unused.unwrap_or_else(|| vec![CacheLine::zeroed(); size].into_boxed_slice());
        let mut buffer = Buffer { lines, home: self.clone() };
        if cfg!(debug_assertions) {
            buffer.floats_mut().fill(f32::NAN);
        }
        buffer
    }

    /// At least `len` bytes of any value.
    pub fn bytes(&self, len: usize) -> Buffer {
        self.floats(len.div_ceil(4))
    }

    /// A tensor of any values.
    pub fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        let len = rows.checked_mul(cols).expect("a tensor that fits the address space");
        Tensor { rows, cols, buffer: self.floats(len) }
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    fn take(&mut self, size: usize) -> Option<Box<[CacheLine]>> {
        let at = self.by_size.binary_search_by_key(&size, |(size, _)| *size).ok()?;
        let lines = self.by_size[at].1.pop()?;
        self.bytes -= size_of_val(&*lines);
        Some(lines)
    }

    fn put(&mut self, lines: Box<[CacheLine]>) {
        let bytes = size_of_val(&*lines);
        if bytes == 0 {
            return;
        }
        while self.bytes + bytes > LIMIT {
            // Evict the largest first: decode reuses the small ones.
            match self.by_size.iter_mut().rev().find(|(_, unused)| !unused.is_empty()) {
                Some((size, unused)) if *size > lines.len() => {
                    unused.pop();
                    self.bytes -= *size * size_of::<CacheLine>();
                }
                _ => return,
            }
        }
        self.bytes += bytes;
        match self.by_size.binary_search_by_key(&lines.len(), |(size, _)| *size) {
            Ok(at) => self.by_size[at].1.push(lines),
            Err(at) => self.by_size.insert(at, (lines.len(), vec![lines])),
        }
    }
}

/// Rounds up to one of four sizes per power of two: wastes at most a fifth and keeps sizes few.
fn size_class(lines: usize) -> usize {
    let step = lines.checked_ilog2().map_or(1, |log| (1usize << log) / 4).max(1);
    lines.next_multiple_of(step)
}

impl Buffer {
    /// All of it as floats.
    pub fn floats_ref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }

    /// All of it as mutable floats.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }

    /// All of it as plain values of another type.
    pub fn values_ref<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    /// All of it as mutable values of another type.
    pub fn values_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        self.home.lock().put(lines);
    }
}

impl AsRef<[f32]> for Tensor {
    fn as_ref(&self) -> &[f32] {
        self.values()
    }
}

impl Tensor {
    /// The values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.buffer.floats_ref()[..self.rows * self.cols]
    }

    /// The mutable values, row after row.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.buffer.floats_mut()[..self.rows * self.cols]
    }

    /// The values of row `r`, of which there are `cols`.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.values()[r * self.cols..][..self.cols]
    }

    /// Both sizes at once: `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_tensor_serves_the_next() {
        let buffers = BufferPool::default();
        let first = buffers.tensor(3, 100);
        let address = first.values().as_ptr();
        drop(first);
        let second = buffers.tensor(1, 290);
        assert_eq!(second.values().as_ptr(), address);
        assert_eq!(address as usize % 64, 0);
        assert_ne!(buffers.tensor(3, 100).values().as_ptr(), address);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let buffers = BufferPool::default();
        let all: Vec<Tensor> = (0..10).map(|_| buffers.tensor(LIMIT / 16, 1)).collect();
        drop(all);
        assert!(buffers.lock().bytes <= LIMIT && buffers.lock().bytes > 0);
    }

    #[test]
    fn size_classes() {
        for lines in 0..5000 {
            let class = size_class(lines);
            assert!(class >= lines && class * 4 <= lines * 5 + 3, "{lines}: {class}");
            assert_eq!(size_class(class), class);
        }
    }

    #[test]
    fn nothing_at_all() {
        assert_eq!(BufferPool::default().tensor(0, 7).values().len(), 0);
    }
}
