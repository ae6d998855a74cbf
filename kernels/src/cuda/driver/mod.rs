//! Wraps the CUDA driver API: one device, memory, code, launches and two streams.
//!
//! [`Driver::open`] loads the driver library at run time, so the program starts without one. Compute runs on one stream in
//! order, weight uploads on the other, and [`Event`]s order the two. An error after opening (a lost device, an invalid access
//! by a kernel) is unrecoverable and unwinds with the driver's message; `fault` keeps it. This file contains no op: it holds the
//! device, its memory and the streams, and `launch` runs kernels. Next: `ptx`, the embedded code.

mod fault;
mod launch;

pub use fault::DeviceFailure;
pub use launch::LaunchEvent;
pub(super) use launch::{Argument, GraphExec, Grid, arg, block};

use super::ptx::{Code, PROGRAMMATIC};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use fault::DeviceFault;
use launch::{LaunchTrace, LoadedModules};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// An address in device memory.
pub(super) type Address = u64;

/// Why no device is usable, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The machine has no driver or no device.
    #[error("{0}")]
    Absent(String),
    /// There is one, but it cannot be used.
    #[error("{0}")]
    Unusable(String),
}

impl Unavailable {
    /// Whether the machine has no CUDA device at all.
    pub fn is_absent(&self) -> bool {
        matches!(self, Unavailable::Absent(_))
    }
}

/// Largest upload, in bytes, that is copied through pinned memory without waiting, and the number of such uploads in flight.
const SMALL: usize = 64 << 10;
const SMALL_IN_FLIGHT: usize = 16;
/// Largest download, in bytes, that goes through pinned memory: a token's logits are 640 KiB.
const DOWN: usize = 1 << 20;

pub(super) struct Driver {
    context: PrimaryContext,
    stream: sys::CUstream,
    /// Stream of weight uploads that overlap compute.
    copies: sys::CUstream,
    code: Code,
    loaded: Mutex<LoadedModules>,
    /// Locked exclusively during a capture, shared by threads that issue work.
    capture_lock: RwLock<()>,
    /// Whether kernels that wait for the launches before them are launched before these end.
    programmatic: AtomicBool,
    /// Whether the last work of the compute stream, or of its capture, is a kernel that waits for those before it.
    after_waiting: AtomicBool,
    /// Receives modules and kernels before they are loaded and launched.
    trace: OnceLock<LaunchTrace>,
    /// Small uploads in flight, oldest first.
    small: Mutex<VecDeque<Pinned>>,
    /// Pinned buffer for downloads of up to [`DOWN`] bytes.
    down: Mutex<Option<Pinned>>,
    /// Number of freed weights, whose addresses may be reused.
    epoch: AtomicU64,
    /// Number of kernels launched or captured.
    pub(super) launched: AtomicU64,
    /// Number of these that may overlap with the kernel before them.
    pub(super) overlapping: AtomicU64,
    /// Number of graph launches so far.
    pub(super) graphs: AtomicU64,
    pub(super) device: Device,
}

/// Properties that the driver reports for a device.
#[derive(Clone, Debug)]
pub struct Device {
    /// The vendor's name of the device.
    pub name: String,
    /// Compute capability: 9.0 is Hopper.
    pub capability: [i32; 2],
    /// Number of streaming multiprocessors (SMs).
    pub multiprocessors: usize,
    /// Largest shared memory of a block, in bytes.
    pub shared: usize,
    /// CUDA version of the driver: 12040 is 12.4.
    pub version: i32,
    /// Identifies the card among those of its name.
    pub uuid: [u8; 16],
    /// Number of CUDA devices, of which the first is used.
    pub devices: usize,
}

/// One of the two streams.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    /// Compute: kernels run in the order in which they are issued.
    Work,
    /// Weight uploads, which overlap with compute.
    Copies,
}

/// The device's primary context, which lives as long as the process. Calls need it current in their thread.
#[derive(Clone)]
struct PrimaryContext {
    handle: sys::CUcontext,
    fault: Arc<DeviceFault>,
}

impl PrimaryContext {
    /// Makes the context current in the calling thread; unwinds if the device has failed.
    fn enter(&self) {
        self.done("context", self.try_enter());
    }

    /// The same without a panic, for drops.
    fn try_enter(&self) -> CUresult {
        if self.fault.failure().is_some() {
            return CUresult::CUDA_ERROR_UNKNOWN;
        }
        // SAFETY: the context is alive as long as the process.
        unsafe { sys::cuCtxSetCurrent(self.handle) }
    }

    fn done(&self, what: impl std::fmt::Display, code: CUresult) {
        self.fault.done(what, code);
    }
}

/// A point in the work issued to a stream.
pub(super) struct Event {
    handle: sys::CUevent,
    context: PrimaryContext,
}

// SAFETY: a handle of the driver, which may be used and destroyed by any thread.
unsafe impl Send for Event {}

impl Event {
    fn wait(&self) {
        self.context.done("work on the device", self.try_wait());
    }

    /// The same without a panic, for drops.
    fn try_wait(&self) -> CUresult {
        match self.context.try_enter() {
            // SAFETY: the event is alive.
            CUresult::CUDA_SUCCESS => self.context.fault.poll(|| unsafe { sys::cuEventQuery(self.handle) }),
            code => code,
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.try_enter() == CUresult::CUDA_SUCCESS {
            // SAFETY: made by `event` and dropped once; the driver keeps it alive for work that waits for it.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}

/// Pinned host memory, which the device reads directly.
pub(super) struct Pinned {
    at: *mut u8,
    pub(super) len: usize,
    /// Passes when the device has read the last bytes sent.
    sent: Event,
}

// SAFETY: memory like any other, with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// The bytes; waits until the device has read those sent.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.sent.wait();
        // SAFETY: `len` bytes from `at` are this value's own and were written when they were made; no copy reads them now,
        // and the next one needs this borrow to have ended.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // After an error the device may still read it: then it is not freed.
        if self.sent.try_wait() == CUresult::CUDA_SUCCESS {
            // SAFETY: made by `pinned` and dropped once; no copy reads it now.
            let _ = unsafe { sys::cuMemFreeHost(self.at.cast()) };
        }
    }
}

// SAFETY: handles of the driver may be used by any thread that has the context current, which every call ensures; the maps
// are behind a lock.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver serializes calls on a stream.
unsafe impl Sync for Driver {}

/// The driver's message for an error.
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

fn opened(what: &str, code: CUresult) -> Result<(), Unavailable> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_NO_DEVICE => Err(Unavailable::Absent(format!("{what}: {}", words(code)))),
        code => Err(Unavailable::Unusable(format!("{what}: {}", words(code)))),
    }
}

impl Driver {
    /// Opens the first device, if driver and device exist and are recent enough for the embedded code.
    pub(super) fn open() -> Result<Driver, Unavailable> {
        // SAFETY: loads the library, which only runs its initializers.
        if !unsafe { sys::is_culib_present() } {
            return Err(Unavailable::Absent("no CUDA driver (libcuda) found".into()));
        }
        let (mut handle, mut count, mut context) = (0, 0, std::ptr::null_mut());
        let (mut stream, mut copies) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: each call writes to the local it is given, and comes after those it needs.
        unsafe {
            opened("the CUDA driver does not start", sys::cuInit(0))?;
            opened("no CUDA device", sys::cuDeviceGetCount(&mut count))?;
            if count == 0 {
                return Err(Unavailable::Absent("the CUDA driver has no device".into()));
            }
            opened("no CUDA device", sys::cuDeviceGet(&mut handle, 0))?;
            opened("no context on the CUDA device", sys::cuDevicePrimaryCtxRetain(&mut context, handle))?;
            opened("no context on the CUDA device", sys::cuCtxSetCurrent(context))?;
            opened("no stream on the CUDA device", sys::cuStreamCreate(&mut stream, 1))?;
            opened("no stream on the CUDA device", sys::cuStreamCreate(&mut copies, 1))?;
        }
        let device = describe(handle, count)?;
        if device.version < 12040 || device.capability < [8, 0] {
            let ([major, minor], version) = (device.capability, device.version);
            return Err(Unavailable::Unusable(format!(
                "{}: expected compute capability 8.0 and a driver of CUDA 12.4, found {major}.{minor} and CUDA {}.{}",
                device.name,
                version / 1000,
                version % 1000 / 10
            )));
        }
        Ok(Driver {
            context: PrimaryContext { handle: context, fault: Arc::default() },
            stream,
            copies,
            code: Code::embedded(device.capability),
            loaded: Mutex::default(),
            capture_lock: RwLock::new(()),
            programmatic: AtomicBool::new(device.capability >= PROGRAMMATIC),
            after_waiting: AtomicBool::new(false),
            trace: OnceLock::new(),
            small: Mutex::default(),
            down: Mutex::default(),
            epoch: AtomicU64::new(0),
            launched: AtomicU64::new(0),
            overlapping: AtomicU64::new(0),
            graphs: AtomicU64::new(0),
            device,
        })
    }

    /// Number of weights freed so far. Keys of graphs contain it, because addresses are reused.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Counts a freed weight, so that no graph with its address is replayed.
    pub(super) fn give_up(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes the context current in the calling thread.
    fn current(&self) {
        self.context.enter();
    }

    fn done(&self, what: impl std::fmt::Display, code: CUresult) {
        self.context.done(what, code);
    }

    /// Allows programmatic dependent launches from now on, or not. Returns whether the device has them.
    pub(super) fn allow_programmatic(&self, allowed: bool) -> bool {
        let possible = self.device.capability >= PROGRAMMATIC;
        self.programmatic.store(allowed && possible, Ordering::Relaxed);
        possible
    }

    /// Whether launches are programmatic where they can be.
    pub(super) fn is_programmatic(&self) -> bool {
        self.programmatic.load(Ordering::Relaxed)
    }

    /// Notes work of the compute stream that is no launch: the next launch begins after its end.
    fn note_other_work(&self) {
        self.after_waiting.store(false, Ordering::Relaxed);
    }

    /// Sets the longest time that work on the device may take; more is a failure.
    pub(super) fn limit_waits(&self, limit: Duration) {
        self.context.fault.limit_waits(limit);
    }

    /// Free and total device memory in bytes.
    pub(super) fn memory(&self) -> [u64; 2] {
        self.current();
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes to the two locals.
        self.done("memory", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) });
        [free as u64, total as u64]
    }

    /// Allocates uninitialized bytes. None if the device is full.
    pub(super) fn allocate(&self, bytes: usize) -> Option<Address> {
        self.current();
        let mut address = 0;
        // SAFETY: writes to the local.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => None,
            code => {
                self.done("allocation", code);
                Some(address)
            }
        }
    }

    /// Frees an allocation of [`Driver::allocate`] after all issued work.
    pub(super) fn free(&self, address: Address) {
        if self.context.try_enter() != CUresult::CUDA_SUCCESS {
            return; // the memory of a failed device
        }
        let mut code = CUresult::CUDA_SUCCESS;
        // Polled, because freeing would wait without a limit. A stream that captures must not be queried.
        if let Some(_turn) = self.turn_without_wait() {
            for stream in [self.stream, self.copies] {
                // SAFETY: the stream is alive as long as the process.
                let poll = || self.context.fault.poll(|| unsafe { sys::cuStreamQuery(stream) });
                code = if code == CUresult::CUDA_SUCCESS { poll() } else { code };
            }
        }
        if code == CUresult::CUDA_SUCCESS {
            // SAFETY: the address came from `allocate` and its owner is being dropped.
            code = unsafe { sys::cuMemFree_v2(address) };
        }
        if code != CUresult::CUDA_SUCCESS {
            self.context.fault.record(|| format!("free: {}", words(code))); // the next call unwinds, a drop must not
        }
    }

    /// Copies bytes to the device; the bytes may change after the call.
    pub(super) fn upload(&self, to: Address, bytes: &[u8]) {
        self.current();
        let _turn = self.turn();
        if bytes.is_empty() || self.upload_small(to, bytes) {
            return;
        }
        self.wait_now(); // polled: a copy of pageable memory waits for earlier work without a limit
        self.note_other_work();
        // SAFETY: the bytes are readable, and borrowed until the wait is over.
        self.done("upload", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream)
        });
        self.wait_now();
    }

    /// Uploads through pinned memory without waiting for earlier work. False without pinned memory, or for too many bytes.
    fn upload_small(&self, to: Address, bytes: &[u8]) -> bool {
        if bytes.len() > SMALL {
            return false;
        }
        let mut all = self.small.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = if all.len() < SMALL_IN_FLIGHT { None } else { all.pop_front() };
        let Some(mut piece) = oldest.or_else(|| self.pinned(SMALL)).or_else(|| all.pop_front()) else {
            return false;
        };
        piece.bytes()[..bytes.len()].copy_from_slice(bytes);
        self.send_now(Stream::Work, to, &mut piece, 0..bytes.len());
        all.push_back(piece);
        true
    }

    /// Copies bytes from the device after all earlier work.
    pub(super) fn download(&self, from: Address, bytes: &mut [u8]) {
        self.downloads(&mut [(from, bytes)]);
    }

    /// Performs several downloads with one wait.
    pub(super) fn downloads(&self, all: &mut [(Address, &mut [u8])]) {
        self.current();
        let total: usize = all.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut room = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if room.is_none() && total <= DOWN {
            *room = self.pinned(DOWN);
        }
        let _turn = self.turn();
        self.note_other_work();
        // Without pinned memory, each part is copied with a wait of its own.
        let pinned = room.as_ref().filter(|_| total <= DOWN).map(|room| room.at);
        if pinned.is_none() {
            self.wait_now(); // polled, as in `upload`
        }
        let mut start = 0;
        for (from, bytes) in all.iter_mut().filter(|(_, bytes)| !bytes.is_empty()) {
            // SAFETY: the bytes are writable and borrowed until the wait is over; parts of the room follow each other.
            unsafe {
                let to = pinned.map_or(bytes.as_mut_ptr(), |at| at.add(start)).cast();
                self.done("download", sys::cuMemcpyDtoHAsync_v2(to, *from, bytes.len(), self.stream));
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

    /// Allocates pinned memory. None if there is too little.
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

    /// Creates an event; waiting for it before it is recorded returns at once.
    pub(super) fn event(&self) -> Event {
        self.current();
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes to the local.
        self.done("event", unsafe { sys::cuEventCreate(&mut handle, 2) }); // without timing
        Event { handle, context: self.context.clone() }
    }

    fn handle(&self, stream: Stream) -> sys::CUstream {
        match stream {
            Stream::Work => self.stream,
            Stream::Copies => self.copies,
        }
    }

    /// Records `event` after the work issued to the stream so far.
    pub(super) fn mark(&self, stream: Stream, event: &Event) {
        self.current();
        let _turn = self.turn();
        // SAFETY: event and stream are alive.
        self.done("event", unsafe { sys::cuEventRecord(event.handle, self.handle(stream)) });
    }

    /// Makes later work of the stream wait for `event`.
    pub(super) fn after(&self, stream: Stream, event: &Event) {
        self.current();
        let _turn = self.turn();
        self.note_other_work();
        // SAFETY: event and stream are alive.
        self.done("event", unsafe { sys::cuStreamWaitEvent(self.handle(stream), event.handle, 0) });
    }

    /// Uploads bytes of `from` concurrently with compute.
    pub(super) fn send(&self, to: Address, from: &mut Pinned, bytes: Range<usize>) {
        self.current();
        let _turn = self.turn();
        self.send_now(Stream::Copies, to, from, bytes);
    }

    fn send_now(&self, stream: Stream, to: Address, from: &mut Pinned, bytes: Range<usize>) {
        assert!(bytes.end <= from.len, "{bytes:?} of {} bytes", from.len);
        if !bytes.is_empty() {
            if matches!(stream, Stream::Work) {
                self.note_other_work();
            }
            let stream = self.handle(stream);
            // SAFETY: pinned bytes, unchanged until `sent`, which is recorded here after the copy, has passed.
            unsafe {
                let at = from.at.cast_const().add(bytes.start).cast();
                self.done("upload", sys::cuMemcpyHtoDAsync_v2(to, at, bytes.len(), stream));
                self.done("event", sys::cuEventRecord(from.sent.handle, stream));
            }
        }
    }

    pub(super) fn copy(&self, to: Address, from: Address, bytes: usize) {
        self.current();
        let _turn = self.turn();
        if bytes > 0 {
            self.note_other_work();
            // SAFETY: both are ranges of live allocations, as the callers' buffers are.
            self.done("copy", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) });
        }
    }

    pub(super) fn fill(&self, at: Address, byte: u8, bytes: usize) {
        self.fill_between_launches(at, byte, bytes);
        self.note_other_work();
    }

    /// Fills with NaN for tests. Launches before and after it may count as adjacent, so that the emulator checks them as such;
    /// not in a capture, where a programmatic edge needs two kernels.
    pub(super) fn poison(&self, at: Address, bytes: usize) {
        self.fill_between_launches(at, 0xff, bytes);
        if launch::is_capturing() {
            self.note_other_work();
        }
    }

    fn fill_between_launches(&self, at: Address, byte: u8, bytes: usize) {
        self.current();
        let _turn = self.turn();
        if bytes > 0 {
            // SAFETY: a range of a live allocation, as the caller's buffer is.
            self.done("fill", unsafe { sys::cuMemsetD8Async(at, byte, bytes, self.stream) });
        }
    }

    /// Waits for all issued work.
    pub(super) fn wait(&self) {
        self.current();
        let _turn = self.turn();
        self.wait_now();
    }

    fn wait_now(&self) {
        self.context.fault.wait_for(self.stream, "work on the device");
    }
}

fn describe(handle: sys::CUdevice, devices: i32) -> Result<Device, Unavailable> {
    let (mut name, mut version) = ([0_u8; 128], 0);
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
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
    opened("the device's UUID", unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, handle) })?;
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
        uuid: uuid.bytes.map(|byte| byte as u8),
        devices: devices as usize,
    })
}
