//! Wraps the CUDA driver API: one device, memory, code, launches and two streams.
//!
//! [`Driver::open`] loads the driver library at run time, so the program starts without one. Compute runs on one stream in
//! order, weight uploads on the other, and [`Event`]s order the two. An error after opening (a lost device, an address that a
//! kernel should not have touched) leaves nothing to go on with and panics with the driver's words. It knows no op.
//! Here are the device, its memory and the streams; `launch` runs kernels. Next: `code`, what is launched.

mod launch;

pub(super) use launch::{Argument, GraphExec, Grid, arg, block};

use super::ptx::Code;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use launch::Loaded;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

/// An address in the device's memory.
pub(super) type Address = u64;

/// Why there is no device to compute on, in a line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

/// Uploads of up to so many bytes go through pinned memory and wait for nothing; as many may be under way.
const SMALL: usize = 64 << 10;
const UNDER_WAY: usize = 16;
/// Downloads of up to so many bytes go through pinned memory: a token's logits are 640 KiB.
const DOWN: usize = 1 << 20;

pub(super) struct Driver {
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Of weights that travel while work is done.
    copies: sys::CUstream,
    code: Code,
    loaded: Mutex<Loaded>,
    /// Locked exclusively during a capture, shared by threads that issue work.
    capture_lock: RwLock<()>,
    /// Small uploads under way, the oldest first.
    small: Mutex<VecDeque<Pinned>>,
    /// Where downloads of up to [`DOWN`] bytes arrive.
    down: Mutex<Option<Pinned>>,
    /// Counts weights that were given up: their addresses may come again.
    epoch: AtomicU64,
    /// Counts kernels that were launched or captured.
    pub(super) launched: AtomicU64,
    pub(super) device: Device,
}

/// What the device is.
#[derive(Clone, Debug)]
pub struct Device {
    /// As the vendor calls it.
    pub name: String,
    /// Compute capability: 9.0 is Hopper.
    pub capability: [i32; 2],
    /// Blocks of threads that run at the same time, at least.
    pub multiprocessors: usize,
    /// Shared memory a block may have, in bytes.
    pub shared: usize,
    /// The driver's version of CUDA: 12040 is 12.4.
    pub version: i32,
}

/// Which stream.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    /// Of ops.
    Work,
    /// Of weights that travel.
    Copies,
}

/// A point in what was issued to a stream.
pub(super) struct Event(sys::CUevent);

// SAFETY: a handle of the driver, which may be used and given up by any thread.
unsafe impl Send for Event {}

impl Event {
    fn wait(&self) {
        // SAFETY: it is alive.
        done("work on the device", unsafe { sys::cuEventSynchronize(self.0) });
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `event` and dropped once; the driver keeps what waits for it.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// Memory of the host that the device reads by itself.
pub(super) struct Pinned {
    at: *mut u8,
    pub(super) len: usize,
    /// The device has read what was sent last.
    sent: Event,
}

// SAFETY: memory like any other, with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Its bytes, once the device has read what was sent of them.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.sent.wait();
        // SAFETY: `len` bytes from `at` are this value's own and were written when they were made; no copy reads them now,
        // and the next one needs this borrow to have ended.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.sent.wait();
        // SAFETY: made by `pinned` and dropped once; no copy reads it now.
        let _ = unsafe { sys::cuMemFreeHost(self.at.cast()) };
    }
}

// SAFETY: handles of the driver may be used by any thread that has the context current, which every call sees to; the
// maps are behind a lock.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver serialises calls on a stream.
unsafe impl Sync for Driver {}

/// What the driver says of a failure.
fn words(code: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the pointer is written with the address of a string that lives as long as the library.
    let found = unsafe { sys::cuGetErrorString(code, &mut text) };
    if found != CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("error {code:?}");
    }
    // SAFETY: the driver gave a string that ends with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn done(what: &str, code: CUresult) {
    assert!(code == CUresult::CUDA_SUCCESS, "CUDA: {what}: {}", words(code));
}

fn opened(what: &str, code: CUresult) -> Result<(), Unavailable> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(Unavailable(format!("{what}: {}", words(code)))) }
}

impl Driver {
    /// The first device of the driver, if there are both and they are new enough for our code.
    pub(super) fn open() -> Result<Driver, Unavailable> {
        // SAFETY: looks for the library and runs nothing but its start-up code.
        if !unsafe { sys::is_culib_present() } {
            return Err(Unavailable("no CUDA driver (libcuda) found".into()));
        }
        let (mut handle, mut count, mut context) = (0, 0, std::ptr::null_mut());
        let (mut stream, mut copies) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: each call writes to the local it is given, and comes after those it needs.
        unsafe {
            opened("the CUDA driver does not start", sys::cuInit(0))?;
            opened("no CUDA device", sys::cuDeviceGetCount(&mut count))?;
            if count == 0 {
                return Err(Unavailable("the CUDA driver has no device".into()));
            }
            opened("no CUDA device", sys::cuDeviceGet(&mut handle, 0))?;
            opened("no context on the CUDA device", sys::cuDevicePrimaryCtxRetain(&mut context, handle))?;
            opened("no context on the CUDA device", sys::cuCtxSetCurrent(context))?;
            opened("no stream on the CUDA device", sys::cuStreamCreate(&mut stream, 1))?;
            opened("no stream on the CUDA device", sys::cuStreamCreate(&mut copies, 1))?;
        }
        let device = describe(handle)?;
        if device.version < 12040 || device.capability < [8, 0] {
            let ([major, minor], version) = (device.capability, device.version);
            return Err(Unavailable(format!(
                "{}: expected compute capability 8.0 and a driver of CUDA 12.4, found {major}.{minor} and CUDA {}.{}",
                device.name,
                version / 1000,
                version % 1000 / 10
            )));
        }
        Ok(Driver {
            context,
            stream,
            copies,
            code: Code::embedded(),
            loaded: Mutex::default(),
            capture_lock: RwLock::new(()),
            small: Mutex::default(),
            down: Mutex::default(),
            epoch: AtomicU64::new(0),
            launched: AtomicU64::new(0),
            device,
        })
    }

    /// How many weights were given up.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// A weight is given up.
    pub(super) fn give_up(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes the context the calling thread's.
    fn current(&self) {
        // SAFETY: the context is alive as long as the process.
        done("context", unsafe { sys::cuCtxSetCurrent(self.context) });
    }

    /// Free bytes, and all.
    pub(super) fn memory(&self) -> [u64; 2] {
        self.current();
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes to the two locals.
        done("memory", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) });
        [free as u64, total as u64]
    }

    /// Bytes of any value; None if there are not so many.
    pub(super) fn allocate(&self, bytes: usize) -> Option<Address> {
        self.current();
        let mut address = 0;
        // SAFETY: writes to the local.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => None,
            code => {
                done("allocation", code);
                Some(address)
            }
        }
    }

    /// Gives back what [`Driver::allocate`] gave, once all work that was issued is done.
    pub(super) fn free(&self, address: Address) {
        self.current();
        // SAFETY: the address came from `allocate` and its owner is being dropped; freeing waits for the device.
        done("free", unsafe { sys::cuMemFree_v2(address) });
    }

    /// Copies bytes to the device. The bytes may change afterwards.
    pub(super) fn upload(&self, to: Address, bytes: &[u8]) {
        self.current();
        let _turn = self.turn();
        if bytes.is_empty() || self.upload_small(to, bytes) {
            return;
        }
        // SAFETY: the bytes are readable, and borrowed until the wait is over.
        done("upload", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream)
        });
        self.wait_now();
    }

    /// Through pinned memory, without waiting for work before it; false if there is none, or for too many bytes.
    fn upload_small(&self, to: Address, bytes: &[u8]) -> bool {
        if bytes.len() > SMALL {
            return false;
        }
        let mut all = self.small.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = if all.len() < UNDER_WAY { None } else { all.pop_front() };
        let Some(mut piece) = oldest.or_else(|| self.pinned(SMALL)).or_else(|| all.pop_front()) else {
            return false;
        };
        piece.bytes()[..bytes.len()].copy_from_slice(bytes);
        self.send_now(Stream::Work, to, &mut piece, 0..bytes.len());
        all.push_back(piece);
        true
    }

    /// Copies bytes from the device, once all work issued before is done.
    pub(super) fn download(&self, from: Address, bytes: &mut [u8]) {
        self.downloads(&mut [(from, bytes)]);
    }

    /// Several of these, waiting once.
    pub(super) fn downloads(&self, all: &mut [(Address, &mut [u8])]) {
        self.current();
        let total: usize = all.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut room = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if room.is_none() && total <= DOWN {
            *room = self.pinned(DOWN);
        }
        let _turn = self.turn();
        // What goes to memory that the device cannot reach goes there part by part, with a wait each.
        let pinned = room.as_ref().filter(|_| total <= DOWN).map(|room| room.at);
        let mut start = 0;
        for (from, bytes) in all.iter_mut().filter(|(_, bytes)| !bytes.is_empty()) {
            // SAFETY: the bytes are writable and borrowed until the wait is over; parts of the room follow each other.
            unsafe {
                let to = pinned.map_or(bytes.as_mut_ptr(), |at| at.add(start)).cast();
                done("download", sys::cuMemcpyDtoHAsync_v2(to, *from, bytes.len(), self.stream));
            }
            start += bytes.len();
        }
        self.wait_now();
        if pinned.is_some()
            && let Some(room) = room.as_mut()
        {
            let mut arrived = &room.bytes()[..total];
            all.iter_mut()
                .for_each(|(_, to)| to.copy_from_slice(arrived.split_off(..to.len()).unwrap_or_default()));
        }
    }

    /// So many bytes that the device reads by itself; None if there are not so many.
    pub(super) fn pinned(&self, bytes: usize) -> Option<Pinned> {
        self.current();
        let mut at = std::ptr::null_mut();
        // SAFETY: writes to the local.
        if unsafe { sys::cuMemHostAlloc(&mut at, bytes, 0) } != CUresult::CUDA_SUCCESS {
            return None;
        }
        let at = at.cast::<u8>();
        // SAFETY: `bytes` bytes from `at` are ours.
        unsafe { at.write_bytes(0, bytes) };
        Some(Pinned { at, len: bytes, sent: self.event() })
    }

    /// Nothing has marked it: waiting for it is over at once.
    pub(super) fn event(&self) -> Event {
        self.current();
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes to the local.
        done("event", unsafe { sys::cuEventCreate(&mut handle, 2) }); // without times
        Event(handle)
    }

    fn handle(&self, stream: Stream) -> sys::CUstream {
        match stream {
            Stream::Work => self.stream,
            Stream::Copies => self.copies,
        }
    }

    /// `event` is what was issued to the stream up to now.
    pub(super) fn mark(&self, stream: Stream, event: &Event) {
        self.current();
        let _turn = self.turn();
        // SAFETY: both are alive.
        done("event", unsafe { sys::cuEventRecord(event.0, self.handle(stream)) });
    }

    /// What is issued to the stream from now on is done after `event`.
    pub(super) fn after(&self, stream: Stream, event: &Event) {
        self.current();
        let _turn = self.turn();
        // SAFETY: both are alive.
        done("event", unsafe { sys::cuStreamWaitEvent(self.handle(stream), event.0, 0) });
    }

    /// Lets bytes of `from` travel, beside the work.
    pub(super) fn send(&self, to: Address, from: &mut Pinned, bytes: Range<usize>) {
        self.current();
        let _turn = self.turn();
        self.send_now(Stream::Copies, to, from, bytes);
    }

    fn send_now(&self, stream: Stream, to: Address, from: &mut Pinned, bytes: Range<usize>) {
        assert!(bytes.end <= from.len, "{bytes:?} of {} bytes", from.len);
        if !bytes.is_empty() {
            let stream = self.handle(stream);
            // SAFETY: pinned bytes, unchanged until `sent`, which is recorded here after the copy, has passed.
            unsafe {
                let at = from.at.cast_const().add(bytes.start).cast();
                done("upload", sys::cuMemcpyHtoDAsync_v2(to, at, bytes.len(), stream));
                done("event", sys::cuEventRecord(from.sent.0, stream));
            }
        }
    }

    pub(super) fn copy(&self, to: Address, from: Address, bytes: usize) {
        self.current();
        let _turn = self.turn();
        if bytes > 0 {
            // SAFETY: both are ranges of live allocations, as the callers' buffers are.
            done("copy", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) });
        }
    }

    pub(super) fn fill(&self, at: Address, byte: u8, bytes: usize) {
        self.current();
        let _turn = self.turn();
        if bytes > 0 {
            // SAFETY: a range of a live allocation, as the caller's buffer is.
            done("fill", unsafe { sys::cuMemsetD8Async(at, byte, bytes, self.stream) });
        }
    }

    /// Waits for all that was issued.
    pub(super) fn wait(&self) {
        self.current();
        let _turn = self.turn();
        self.wait_now();
    }

    fn wait_now(&self) {
        // SAFETY: the stream is alive as long as the process.
        done("work on the device", unsafe { sys::cuStreamSynchronize(self.stream) });
    }
}

/// Pinned memory is given back while the context is there.
impl Drop for Driver {
    fn drop(&mut self) {
        self.current();
    }
}

fn describe(handle: sys::CUdevice) -> Result<Device, Unavailable> {
    let (mut name, mut version) = ([0_u8; 128], 0);
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: writes to the local.
        opened("an attribute of the device", unsafe {
            sys::cuDeviceGetAttribute(&mut value, which, handle)
        })?;
        Ok::<i32, Unavailable>(value)
    };
    // SAFETY: at most 127 bytes and a zero are written.
    opened("the device's name", unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 127, handle) })?;
    // SAFETY: writes to the local.
    opened("the driver's version", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    Ok(Device {
        name: CStr::from_bytes_until_nul(&name)
            .map_or_else(|_| "?".into(), |n| n.to_string_lossy().into_owned()),
        capability: [
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ],
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        version,
    })
}
