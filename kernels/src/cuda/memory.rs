//! Allocates tensors and scratch on the device from a pool.
//!
//! A dropped buffer is reusable at once: the stream runs in order, so nothing is overwritten before it is read. When the
//! device is full, unused buffers are freed first. (Debug builds and [`DevicePool::poison`] fill buffers with NaN, so that
//! tests detect unwritten values.) Next: `weight`.

use super::driver::{Address, Driver, GraphExec};
use bytemuck::Pod;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The pool; clones share it.
#[derive(Clone)]
pub(super) struct DevicePool {
    pub(super) driver: Arc<Driver>,
    unused: Arc<Unused>,
    poisoned: Arc<AtomicBool>,
}

/// Unused allocations by their size in bytes.
type FreeBySize = BTreeMap<usize, Vec<Address>>;

/// Allocations that no buffer uses; dropping it returns them to the driver.
struct Unused {
    driver: Arc<Driver>,
    pool: Mutex<FreeLists>,
}

#[derive(Default)]
struct FreeLists {
    by_size: FreeBySize,
    /// During graph capture: buffers that the step has released, reserved for its launches.
    captured: Option<FreeBySize>,
}

impl FreeLists {
    /// Takes an unused allocation, the captured step's own first.
    fn take(&mut self, size: usize) -> Option<Address> {
        let mut all = self.captured.iter_mut().chain([&mut self.by_size]);
        all.find_map(|sizes| sizes.get_mut(&size)?.pop())
    }
}

impl Unused {
    fn lock(&self) -> MutexGuard<'_, FreeLists> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees all unused memory except that of a step being captured.
    fn trim(&self) {
        let all = std::mem::take(&mut self.lock().by_size);
        all.into_values().flatten().for_each(|at| self.driver.free(at));
    }
}

/// Allocations reserved for a captured graph; dropping it returns them to the pool.
pub(super) struct CapturedMemory {
    by_size: FreeBySize,
    home: DevicePool,
}

impl Drop for CapturedMemory {
    fn drop(&mut self) {
        let mut pool = self.home.unused.lock();
        for (size, mut all) in std::mem::take(&mut self.by_size) {
            pool.by_size.entry(size).or_default().append(&mut all);
        }
    }
}

/// The pool's part of a capture. A drop before its end returns the memory to the pool, so that a panic reserves none.
struct PoolCapture<'a>(&'a DevicePool);

impl PoolCapture<'_> {
    fn begin(pool: &DevicePool) -> PoolCapture<'_> {
        pool.unused.lock().captured = Some(FreeBySize::new());
        PoolCapture(pool)
    }

    fn end(&self) -> CapturedMemory {
        let by_size = self.0.unused.lock().captured.take().unwrap_or_default();
        CapturedMemory { by_size, home: self.0.clone() }
    }
}

impl Drop for PoolCapture<'_> {
    fn drop(&mut self) {
        drop(self.end()); // empty after the end
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        self.trim();
    }
}

/// Device memory; dropping it returns it to the pool.
pub(super) struct DeviceBuffer {
    pub(super) at: Address,
    size: usize,
    /// The pool that the memory returns to; None for memory that a graph reserves.
    home: Option<DevicePool>,
}

/// f32 `[rows, cols]` on the device.
pub struct Tensor {
    /// Number of rows, mostly one per token.
    pub rows: usize,
    /// Number of values in a row; rows are contiguous.
    pub cols: usize,
    buffer: DeviceBuffer,
    /// The quantized values, once a matmul has needed them.
    pub(super) bytes: OnceLock<Levels>,
}

/// Quantized activations: `q` `[rows, cols]`, and a scale with two sums per 32 values.
pub(super) struct Levels {
    pub(super) q: DeviceBuffer,
    pub(super) scale: DeviceBuffer,
}

/// Every allocation is a multiple of this many bytes.
const GRAIN: usize = 512;

impl DevicePool {
    pub(super) fn new(driver: Arc<Driver>) -> DevicePool {
        let poisoned = Arc::new(AtomicBool::new(cfg!(debug_assertions)));
        let unused = Unused { driver: driver.clone(), pool: Mutex::default() };
        DevicePool { driver, unused: Arc::new(unused), poisoned }
    }

    /// Enables or disables filling buffers with NaN.
    pub(super) fn poison(&self, on: bool) {
        self.trim(); // buffers without poison begin as new ones
        self.poisoned.store(on, Ordering::Relaxed);
    }

    /// At least `bytes` uninitialized bytes; None when the device is full.
    pub(super) fn try_bytes(&self, bytes: usize) -> Option<DeviceBuffer> {
        self.try_size(size_class(bytes), bytes)
    }

    /// The same without rounding up to a size class, for many buffers of one size.
    pub(super) fn exactly(&self, bytes: usize) -> DeviceBuffer {
        self.try_size(bytes.next_multiple_of(GRAIN), bytes).unwrap_or_else(|| self.out_of_memory(bytes))
    }

    /// An allocation of `size` bytes of which `bytes` are used. The emulator takes the poisoned bytes for all that may be
    /// accessed.
    fn try_size(&self, size: usize, bytes: usize) -> Option<DeviceBuffer> {
        let at = self.take(size)?;
        if self.poisoned.load(Ordering::Relaxed) {
            self.driver.poison(at, bytes);
        }
        Some(DeviceBuffer { at, size, home: Some(self.clone()) })
    }

    /// An allocation of a size.
    fn take(&self, size: usize) -> Option<Address> {
        let _turn = self.driver.turn();
        let unused = self.unused.lock().take(size);
        unused.or_else(|| self.driver.allocate(size)).or_else(|| {
            self.trim();
            self.driver.allocate(size)
        })
    }

    /// The same for results and scratch, which the memory plan has reserved.
    pub(super) fn bytes(&self, bytes: usize) -> DeviceBuffer {
        self.try_bytes(bytes).unwrap_or_else(|| self.out_of_memory(bytes))
    }

    fn out_of_memory(&self, bytes: usize) -> ! {
        let [free, _] = self.driver.memory();
        panic!(
            "CUDA: out of memory: expected {bytes} bytes for a batch, found {free}; a smaller --batch needs less"
        )
    }

    /// A buffer initialized with values.
    pub(super) fn upload<T: Pod>(&self, values: &[T]) -> DeviceBuffer {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.bytes(bytes.len());
        self.driver.upload(buffer.at, bytes);
        buffer
    }

    /// Allocates a tensor with undefined values; they are NaN when poisoned.
    pub(super) fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        let len = rows.checked_mul(cols).expect("a tensor that fits the address space");
        Tensor { rows, cols, buffer: self.bytes(4 * len), bytes: OnceLock::new() }
    }

    /// Captures the launches of `issue`; buffers that it takes and releases stay reserved for the graph. Buffers unused
    /// before the capture qualify too: their last users were issued before any replay.
    pub(super) fn capture(&self, issue: impl FnOnce()) -> (GraphExec, CapturedMemory) {
        let mut own = None;
        let graph = self.driver.capture(|| {
            let capture = PoolCapture::begin(self);
            issue();
            own = Some(capture.end());
        });
        (graph, own.expect("the capture ended"))
    }

    /// Returns all unused allocations to the driver.
    pub(super) fn trim(&self) {
        self.unused.trim();
    }
}

/// Rounds up to one of four sizes per power of two: wastes at most a fifth and keeps sizes few.
fn size_class(bytes: usize) -> usize {
    let grains = bytes.div_ceil(GRAIN).max(1);
    let step = ((1_usize << grains.ilog2()) / 4).max(1);
    grains.next_multiple_of(step) * GRAIN
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let Some(home) = &self.home else { return };
        let _turn = home.driver.turn();
        let mut pool = home.unused.lock();
        let FreeLists { by_size, captured } = &mut *pool;
        captured.as_mut().unwrap_or(by_size).entry(self.size).or_default().push(self.at);
    }
}

impl DeviceBuffer {
    fn reserved(&self) -> DeviceBuffer {
        DeviceBuffer { at: self.at, size: self.size, home: None }
    }
}

impl Tensor {
    /// The same values for the replay of a captured step, whose graph reserves the memory.
    pub(super) fn reserved(&self) -> Tensor {
        let levels = self.bytes.get();
        let levels = levels.map(|Levels { q, scale }| Levels { q: q.reserved(), scale: scale.reserved() });
        let bytes = levels.map_or_else(OnceLock::new, OnceLock::from);
        Tensor { rows: self.rows, cols: self.cols, buffer: self.buffer.reserved(), bytes }
    }

    /// Device address of the first value.
    pub(super) fn at(&self) -> Address {
        self.buffer.at
    }

    /// Addresses of the quantized values and their scales; 0 if absent.
    pub(super) fn levels_at(&self) -> [Address; 2] {
        self.bytes.get().map_or([0; 2], |levels| [levels.q.at, levels.scale.at])
    }

    /// Number of values, `rows * cols`.
    pub(super) fn len(&self) -> usize {
        self.rows * self.cols
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
    fn size_classes() {
        for bytes in (0..5_000_000).step_by(997) {
            let class = size_class(bytes);
            assert!(class >= bytes && class * 4 <= bytes * 5 + 4 * GRAIN, "{bytes}: {class}");
            assert_eq!((size_class(class), class % GRAIN), (class, 0));
        }
    }
}
