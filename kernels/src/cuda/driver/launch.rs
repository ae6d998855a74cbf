//! Launches kernels by name, loads them on first use, and captures launches in graphs.

use super::super::ptx::KernelEntry;
use super::{Driver, PrimaryContext};
use bytemuck::Pod;
use cudarc::driver::sys::{self, CUresult};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, RwLockReadGuard};
use std::time::Instant;

/// Shared memory of a block available without opt-in, in bytes.
const SHARED_WITHOUT_OPT_IN: usize = 48 << 10;
/// Bytes of the driver's JIT error log.
const LOG: usize = 4096;

/// One argument of a kernel: its bytes.
#[derive(Clone, Copy)]
pub(in crate::cuda) enum Argument<'a> {
    /// A scalar and its size in bytes.
    Value([u8; 8], usize),
    /// A structure passed by value, as its bytes.
    Block(&'a [u8]),
}

/// Makes an argument from a scalar of at most 8 bytes.
pub(in crate::cuda) fn arg<T: Pod>(value: T) -> Argument<'static> {
    let (mut bytes, own) = ([0; 8], bytemuck::bytes_of(&value));
    bytes[..own.len()].copy_from_slice(own);
    Argument::Value(bytes, own.len())
}

/// Makes an argument from a structure that has the layout of the kernel's.
pub(in crate::cuda) fn block<T: Pod>(value: &T) -> Argument<'_> {
    Argument::Block(bytemuck::bytes_of(value))
}

impl Argument<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Argument::Value(bytes, len) => &bytes[..*len],
            Argument::Block(bytes) => bytes,
        }
    }
}

/// Launch dimensions: the grid in blocks, the block in threads along x.
#[derive(Clone, Copy, Debug)]
pub(in crate::cuda) struct Grid {
    pub blocks: [usize; 3],
    pub threads: usize,
    /// Dynamic shared memory per block in bytes.
    pub shared: usize,
}

/// What happens next on the device, for [`Driver::trace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchEvent<'a> {
    /// The driver compiles a module of this name.
    Module(&'a str),
    /// A kernel of this name is launched or captured.
    Kernel(&'a str),
}

/// What receives the events of a device.
pub(super) type LaunchTrace = Box<dyn Fn(LaunchEvent<'_>) + Send + Sync>;

/// An executable graph from a capture, destroyed on drop.
pub(in crate::cuda) struct GraphExec {
    handle: sys::CUgraphExec,
    context: PrimaryContext,
}

// SAFETY: a handle of the driver, used under its lock by any thread that has the context current.
unsafe impl Send for GraphExec {}
// SAFETY: as above; running it does not change it.
unsafe impl Sync for GraphExec {}

impl Drop for GraphExec {
    fn drop(&mut self) {
        if self.context.try_enter() == CUresult::CUDA_SUCCESS {
            // SAFETY: made by `capture` and dropped once; the driver keeps it alive for work in flight.
            let _ = unsafe { sys::cuGraphExecDestroy(self.handle) };
        }
    }
}

#[derive(Default)]
pub(super) struct LoadedModules {
    modules: HashMap<usize, Module>,
    functions: HashMap<(&'static str, &'static str), Function>,
}

struct Module(sys::CUmodule);

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    entry: usize,
    /// Shared memory in bytes that a launch may take: [`SHARED_WITHOUT_OPT_IN`], or what was opted in to.
    shared: usize,
}

thread_local! {
    /// True while this thread captures.
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread captures a graph now.
pub(super) fn is_capturing() -> bool {
    CAPTURING.get()
}

/// A capture of the compute stream. A drop before its end discards the graph, so that a panic leaves a usable stream.
struct Capturing<'a>(&'a Driver);

impl Capturing<'_> {
    fn begin(driver: &Driver) -> Capturing<'_> {
        driver.current();
        driver.begin_capture();
        Capturing(driver)
    }

    fn end(self) -> sys::CUgraph {
        let (code, graph) = self.stop();
        self.0.done("capture", code);
        graph
    }

    fn stop(&self) -> (CUresult, sys::CUgraph) {
        CAPTURING.set(false);
        self.0.note_other_work();
        let mut graph = std::ptr::null_mut();
        if self.0.context.fault.failure().is_some() {
            return (CUresult::CUDA_ERROR_UNKNOWN, graph);
        }
        // SAFETY: ends the capture begun above; the local is written.
        (unsafe { sys::cuStreamEndCapture(self.0.stream, &mut graph) }, graph)
    }
}

impl Drop for Capturing<'_> {
    fn drop(&mut self) {
        if CAPTURING.get()
            && let (CUresult::CUDA_SUCCESS, graph) = self.stop()
        {
            // SAFETY: a graph that nothing else refers to.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
    }
}

impl Driver {
    /// Waits until no other thread captures, and blocks captures.
    pub(in crate::cuda) fn turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let ours = CAPTURING.get();
        (!ours).then(|| self.capture_lock.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Blocks captures unless one runs or another thread waits for its own.
    pub(super) fn turn_without_wait(&self) -> Option<RwLockReadGuard<'_, ()>> {
        if CAPTURING.get() { None } else { self.capture_lock.try_read().ok() }
    }

    /// Launches the kernel `name`, or `name_format` for one of a format. Argument sizes are checked against the compiled code.
    pub(in crate::cuda) fn launch(&self, name: [&'static str; 2], grid: Grid, arguments: &[Argument<'_>]) {
        self.current();
        self.launched.fetch_add(1, Ordering::Relaxed);
        let _turn = self.turn();
        let function = self.function(name, grid.shared);
        let entry = self.code.entry(function.entry);
        let sizes = arguments.iter().map(|a| a.bytes().len());
        assert!(
            sizes.eq(entry.sizes.iter().copied()),
            "arguments of {}: {:?} bytes",
            entry.name,
            entry.sizes
        );
        let mut pointers = [std::ptr::null_mut(); 12];
        for (pointer, argument) in pointers.iter_mut().zip(arguments) {
            *pointer = argument.bytes().as_ptr().cast_mut().cast::<c_void>();
        }
        if let Some(trace) = self.trace.get() {
            trace(LaunchEvent::Kernel(&entry.name));
        }
        let is_programmatic = entry.waits && self.is_programmatic();
        let overlaps = self.after_waiting.swap(is_programmatic, Ordering::Relaxed) && is_programmatic;
        self.overlapping.fetch_add(overlaps.into(), Ordering::Relaxed);
        // SAFETY: each argument is as long as the kernel's parameter and is copied by the call; addresses in them are
        // of buffers that outlive the work, since memory is only reused by work issued later on the same stream, or by
        // copies that wait for it. A kernel that begins before those before it end waits for them.
        let code = unsafe { self.issue(function.handle, grid, &mut pointers, overlaps) };
        if code != CUresult::CUDA_SUCCESS {
            self.done(format_args!("{} {grid:?}", entry.name), code);
        }
        if self.trace.get().is_some() && !CAPTURING.get() {
            self.context.fault.wait_for(self.stream, &entry.name);
        }
    }

    /// Issues a launch to the compute stream. An overlapping one may begin once all blocks of the launch before it have called
    /// `launch_dependents`; in a capture this becomes a programmatic edge, which only two kernels can have.
    ///
    /// # Safety
    /// The pointers are to arguments of the kernel's types. A kernel of an overlapping launch waits for those before it, and so
    /// does the last work of the stream, a kernel.
    unsafe fn issue(
        &self,
        function: sys::CUfunction,
        grid: Grid,
        pointers: &mut [*mut c_void],
        overlaps: bool,
    ) -> CUresult {
        let [x, y, z] = grid.blocks.map(|n| u32::try_from(n).expect("blocks in 32 bits"));
        let (threads, shared) = (grid.threads as u32, grid.shared as u32);
        let (pointers, extra) = (pointers.as_mut_ptr(), std::ptr::null_mut());
        if !overlaps {
            // SAFETY: the pointers are to arguments of the kernel's types, by the contract of this function.
            return unsafe {
                sys::cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, self.stream, pointers, extra)
            };
        }
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: 1,
        };
        // SAFETY: as above; the call copies the configuration and its attribute.
        unsafe { sys::cuLaunchKernelEx(&config, function, pointers, extra) }
    }

    /// Passes modules and kernels to `trace` before they are loaded and launched. Each launch is then waited for, so that
    /// errors name their kernel. Later calls have no effect.
    pub(in crate::cuda) fn trace(&self, trace: LaunchTrace) {
        let _ = self.trace.set(trace);
    }

    fn begin_capture(&self) {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is ours and captures nothing yet.
        self.done("capture", unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) });
        self.note_other_work();
        CAPTURING.set(true);
    }

    /// Captures the launches of `issue` in a graph without running them. Host copies are not allowed.
    pub(in crate::cuda) fn capture(&self, issue: impl FnOnce()) -> GraphExec {
        let _alone = self.capture_lock.write().unwrap_or_else(PoisonError::into_inner);
        let capturing = Capturing::begin(self);
        issue();
        self.instantiate(capturing.end())
    }

    /// Splits the capture of this thread: returns the graph of its launches so far; later ones are in another graph.
    pub(in crate::cuda) fn split_capture(&self) -> GraphExec {
        let graph = self.instantiate(Capturing(self).end());
        self.begin_capture();
        graph
    }

    fn instantiate(&self, graph: sys::CUgraph) -> GraphExec {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the local is written; the graph may be destroyed once it is instantiated.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut handle, graph, 0);
            self.done("capture", sys::cuGraphDestroy(graph));
            made
        };
        self.done("capture", made);
        GraphExec { handle, context: self.context.clone() }
    }

    /// Launches a graph on the compute stream and returns without waiting for it.
    pub(in crate::cuda) fn replay(&self, graph: &GraphExec) {
        self.current();
        self.graphs.fetch_add(1, Ordering::Relaxed);
        let _turn = self.turn();
        self.note_other_work();
        // SAFETY: the graph is alive, and its owner keeps its buffers alive.
        self.done("replay", unsafe { sys::cuGraphLaunch(graph.handle, self.stream) });
    }

    /// A kernel's function for a launch with `shared` bytes of shared memory; loads its module on first use.
    fn function(&self, name: [&'static str; 2], shared: usize) -> Function {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let LoadedModules { modules, functions } = &mut *loaded;
        let function = functions.entry((name[0], name[1])).or_insert_with(|| self.look_up(modules, name));
        if shared > function.shared {
            use sys::CUfunction_attribute_enum as Attribute;
            let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let carveout = Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // SAFETY: a function of a loaded module.
            unsafe {
                self.done("shared memory", sys::cuFuncSetAttribute(function.handle, most, shared as i32));
                // As much of L1 as possible, so that several blocks fit a multiprocessor.
                self.done("shared memory", sys::cuFuncSetAttribute(function.handle, carveout, 100));
            }
            function.shared = shared;
        }
        *function
    }

    fn look_up(&self, modules: &mut HashMap<usize, Module>, name: [&'static str; 2]) -> Function {
        let full = if name[1].is_empty() { name[0].to_owned() } else { format!("{}_{}", name[0], name[1]) };
        let entry = self.code.find(&full);
        let KernelEntry { module, .. } = *self.code.entry(entry);
        let module = &modules.entry(module).or_insert_with(|| Module(self.load(module))).0;
        let (mut handle, full) = (std::ptr::null_mut(), CString::new(full).expect("a kernel's name"));
        // SAFETY: the module is loaded, the name ends with a zero, the local is written.
        self.done("kernel", unsafe { sys::cuModuleGetFunction(&mut handle, *module, full.as_ptr()) });
        Function { handle, entry, shared: SHARED_WITHOUT_OPT_IN }
    }

    /// Compiles modules not used yet and looks up every kernel; returns module names and seconds.
    pub(in crate::cuda) fn compile(&self) -> Vec<(String, f64)> {
        self.current();
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = |module: usize| {
            let start = Instant::now();
            let handle = loaded.modules.entry(module).or_insert_with(|| Module(self.load(module))).0;
            for entry in self.code.entries_of(module) {
                let (mut function, name) = (std::ptr::null_mut(), CString::new(&*entry.name));
                let name = name.expect("a kernel's name");
                // SAFETY: the module is loaded, the name ends with a zero, the local is written.
                self.done(&entry.name, unsafe {
                    sys::cuModuleGetFunction(&mut function, handle, name.as_ptr())
                });
            }
            (self.code.name(module).to_owned(), start.elapsed().as_secs_f64())
        };
        (0..self.code.modules()).map(compiled).collect()
    }

    fn load(&self, module: usize) -> sys::CUmodule {
        use sys::CUjit_option_enum::{CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
        let mut handle = std::ptr::null_mut();
        let mut log = [0_u8; LOG];
        let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG - 1)];
        let (text, count) = (self.code.text(module), options.len() as u32);
        if let Some(trace) = self.trace.get() {
            trace(LaunchEvent::Module(self.code.name(module)));
        }
        // SAFETY: the text ends with a zero; the call writes the local and at most all but the last byte of the log, whose
        // address and length are passed.
        let code = unsafe {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            sys::cuModuleLoadDataEx(&mut handle, text.as_ptr().cast(), count, options, values)
        };
        if code != CUresult::CUDA_SUCCESS {
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            let log: Vec<&str> = log.split_whitespace().collect();
            let what = format!("compilation of {} by the driver: {}", self.code.name(module), log.join(" "));
            self.done(what, code);
        }
        handle
    }
}
