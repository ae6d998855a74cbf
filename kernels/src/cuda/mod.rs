//! The GPU: every op on a CUDA device, with the weights in their stored blocks in its memory.
//!
//! The kernels are in `kernels/cuda/*.cu` and come with the program as PTX that the user's driver compiles. There is no
//! toolkit to build and no driver to start: [`Cuda::detect`] says in a line why it cannot be used. Ops are issued to one
//! stream and wait for nothing until values are read, or weights in RAM are needed. **Not yet run on a GPU**: what is
//! tested is this host code and the kernels' arithmetic on a stand-in device (kernels/cuda/host). It knows no model.
//! Next: `driver`, then `product`.

mod attention;
mod cache;
mod code;
mod delta;
mod driver;
mod expanded;
mod experts;
mod fused;
mod hot;
mod memory;
mod product;
mod rows;
mod sample;
mod span;
mod staging;
mod step;
mod weight;

pub use cache::Cache;
pub use driver::{Device, Unavailable};
pub use expanded::{Heads, expanding_bytes};
pub use memory::Tensor;
pub use rows::Routed;
pub use staging::{MANY, room_and_planes, staging_bytes};
pub use weight::{Weight, device_bytes};

use crate::backend::{
    Backend, Best, CacheFormat, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, Error, Expansion,
    Gated, Limits, Part, Routing, Span, Stored, composed_delta_attention,
};
use crate::cpu::Cpu;
use driver::{Address, Driver, Grid, arg, block};
use hot::{Carrier, Slots};
use memory::{Buffer, Buffers};
use staging::Staging;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;
use step::Steps;

/// The CUDA backend.
pub struct Cuda {
    driver: Arc<Driver>,
    buffers: Buffers,
    /// Bytes that large stacks (experts) may still take of the device, if there is a limit.
    stacks: Mutex<Option<u64>>,
    /// Who computes the experts that stay in RAM, with how many threads, and whether it asks for them ahead.
    host: OnceLock<Cpu>,
    threads: OnceLock<Option<usize>>,
    ahead: AtomicBool,
    /// Where they arrive for steps of many tokens, if they may.
    staging: Mutex<Option<Box<Staging>>>,
    /// Of each stack that stays in RAM, experts that are on the device too.
    slots: AtomicUsize,
    /// Takes them there.
    carrier: Mutex<Carrier>,
    /// Chosen experts of layers in RAM that were met on the device, and all of them.
    uses: [AtomicU64; 2],
    /// Rows whose keys and values are made at once.
    piece: AtomicUsize,
    steps: Mutex<Steps>,
    /// How many blocks of a launch are done, for up to [`product::FEW`] tokens: zeros between launches.
    counts: Buffer,
}

/// Stacks of fewer weights than this are always on the device: the three of a layer have as many.
pub const LARGE: u64 = 16 << 20;

impl Cuda {
    /// The first CUDA device, or why there is none.
    pub fn detect() -> Result<Cuda, Unavailable> {
        let driver = Arc::new(Driver::open()?);
        let buffers = Buffers::new(driver.clone());
        let counts = buffers.upload(&[0_i32; product::FEW]);
        Ok(Cuda {
            driver,
            buffers,
            stacks: Mutex::default(),
            host: OnceLock::new(),
            threads: OnceLock::new(),
            ahead: AtomicBool::new(false),
            staging: Mutex::default(),
            slots: AtomicUsize::new(0),
            carrier: Mutex::default(),
            uses: Default::default(),
            piece: AtomicUsize::new(expanded::PIECE),
            steps: Mutex::default(),
            counts,
        })
    }

    /// Threads of the CPU, where experts are in RAM; to be said before they are.
    pub fn with_threads(self, threads: Option<usize>) -> Cuda {
        let _ = self.threads.set(threads); // new: it has none
        self
    }

    /// What the device is.
    pub fn device(&self) -> &Device {
        &self.driver.device
    }

    /// Free bytes on the device, and all of them.
    pub fn memory(&self) -> [u64; 2] {
        self.driver.memory()
    }

    /// From here on, large stacks of matrices (experts) take this much of the device; when one does not fit, it and all
    /// after it stay in RAM, where the CPU computes them, but for `slots` of each stack, which is on the device for those
    /// that are used most. Where `room` is not 0, stacks of up to so many bytes travel to the device for steps of [`MANY`]
    /// tokens and more; [`staging_bytes`] tells what that takes.
    ///
    /// # Errors
    /// There is no memory to travel to.
    pub fn limit_stacks(&self, bytes: u64, room: u64, slots: usize) -> Result<(), Error> {
        self.slots.store(slots, Ordering::Relaxed);
        *self.stacks.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        *staging = None;
        if room > 0 {
            self.buffers.trim();
            *staging = Some(Box::new(Staging::new(&self.driver, room as usize)?));
        }
        Ok(())
    }

    /// Whether the limit leaves room for a stack that takes so many bytes on the device.
    fn admit(&self, bytes: u64) -> bool {
        let mut left = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = *left else { return true };
        *left = Some(before.saturating_sub(bytes));
        bytes <= before
    }

    fn host(&self) -> &Cpu {
        self.host.get_or_init(|| {
            let cpu = Cpu::detect(*self.threads.get().unwrap_or(&None));
            if self.ahead.load(Ordering::Relaxed) {
                cpu.read_ahead();
            }
            cpu
        })
    }

    /// Copies memory to memory on the device: bytes read and written a second, in GB, the best of five times 1 GiB or
    /// what there is.
    pub fn copy_gb_s(&self) -> f64 {
        let bytes = (self.memory()[0] as usize / 4).min(1 << 30);
        let [from, to] = [(); 2].map(|()| self.buffers.bytes(bytes));
        let pass = || {
            self.wait();
            let start = Instant::now();
            self.driver.copy(to.at, from.at, bytes);
            self.wait();
            2.0 * bytes as f64 / start.elapsed().as_secs_f64() / 1e9
        };
        let best = (0..6).map(|_| pass()).fold(0.0, f64::max);
        drop((from, to));
        self.buffers.trim();
        best
    }

    /// Seconds of one `issue`, from `n` of them recorded and run at once, so that the time of issuing is not in it: the
    /// best of three. `issue` is told which of them it is.
    pub fn time(&self, n: usize, mut issue: impl FnMut(usize)) -> f64 {
        (0..n).for_each(&mut issue); // loads kernels and warms the pool
        let (recorded, _memory) = self.buffers.record(|| (0..n).for_each(&mut issue));
        let run = || {
            self.wait();
            let start = Instant::now();
            self.driver.replay(&recorded);
            self.wait();
            start.elapsed().as_secs_f64() / n as f64
        };
        (0..4).map(|_| run()).fold(f64::INFINITY, f64::min)
    }

    /// Has the driver compile all kernels now, which it does otherwise when they are first used: modules and seconds.
    pub fn compile(&self) -> Vec<(String, f64)> {
        self.driver.compile()
    }

    /// Kernels that were launched op by op or recorded.
    pub fn launched(&self) -> u64 {
        self.driver.launched.load(Ordering::Relaxed)
    }

    /// Decoded steps that were done by replaying recorded launches.
    pub fn replayed(&self) -> u64 {
        self.steps().replayed
    }

    /// Whether results come full of NaN before they are written: slow, for checks.
    pub fn poison(&self, on: bool) {
        self.buffers.poison(on);
    }
}

impl Backend for Cuda {
    const NAME: &'static str = <Cpu as Backend>::NAME;
    const EXPANDS: bool = true;
    const LIMITS: Limits = Limits {
        top_k: rows::EXPERTS,
        groups: rows::EXPERTS,
        experts: rows::EXPERTS,
        taps: rows::TAPS,
        delta_heads: delta::MAX_HEADS,
        delta_keys: delta::DELTA_ROWS,
        latent: attention::PLAIN_VALUES,
        cache_width: attention::MAX_WIDTH,
    };
    type Tensor = Tensor;
    type Weight = Weight;
    type Cache = Cache;
    type Routed = Routed;

    fn describe(&self) -> String {
        let Device { name, capability: [major, minor], .. } = self.device();
        format!("CUDA {name} ({major}.{minor})")
    }

    fn weight(&self, stored: Stored) -> Result<Weight, Error> {
        let weights = (stored.count * stored.rows * stored.cols) as u64;
        if stored.count > 1 && weights >= LARGE && !self.admit(device_bytes(stored.format, weights)) {
            let slots = self.slots.load(Ordering::Relaxed).min(stored.count);
            let slots = (slots > 0).then(|| Slots::new(&self.driver, &stored, slots)).transpose()?;
            return Ok(Weight::on_host(&stored, self.host().weight(stored.clone())?, slots));
        }
        Weight::new(&self.driver, &stored)
    }

    fn wait(&self) {
        self.driver.wait();
    }

    fn read_ahead(&self) {
        self.ahead.store(true, Ordering::Relaxed);
        if let Some(host) = self.host.get() {
            host.read_ahead();
        }
    }

    fn tensor(&self, rows: usize, cols: usize, values: &[f32]) -> Tensor {
        assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] tensor");
        let x = self.buffers.tensor(rows, cols);
        self.driver.upload(x.at(), bytemuck::cast_slice(values));
        x
    }

    fn read(&self, x: &Tensor) -> Vec<f32> {
        let mut values = vec![0.0; x.len()];
        self.driver.download(x.at(), bytemuck::cast_slice_mut(&mut values));
        values
    }

    fn copy(&self, x: &Tensor) -> Tensor {
        let y = self.buffers.tensor(x.rows, x.cols);
        self.driver.copy(y.at(), x.at(), 4 * x.len());
        y
    }

    fn cache(&self, format: CacheFormat, width: usize) -> Cache {
        Cache::new(&self.buffers, format, width)
    }

    fn cache_len(&self, cache: &Cache) -> usize {
        cache.len()
    }

    fn cache_read(&self, cache: &Cache, range: Range<usize>) -> Vec<f32> {
        cache.read(range)
    }

    fn cache_row_bytes(&self, cache: &Cache) -> usize {
        cache.row_bytes()
    }

    fn cache_export(&self, cache: &Cache, range: Range<usize>, out: &mut Vec<u8>) {
        cache.export(range, out);
    }

    fn cache_import(&self, cache: &mut Cache, rows: &[u8]) {
        cache.import(rows);
    }

    fn cache_truncate(&self, cache: &mut Cache, len: usize) {
        cache.truncate(len);
    }

    fn routed(&self, routed: &Routed) -> (Vec<u32>, Vec<f32>) {
        let n = routed.rows * routed.top_k;
        let (mut chosen, mut weights) = (vec![0; n], vec![0.0; n]);
        self.driver.download(routed.chosen.at, bytemuck::cast_slice_mut(&mut chosen));
        self.driver.download(routed.weights.at, bytemuck::cast_slice_mut(&mut weights));
        (chosen, weights)
    }

    /// In steps of less than [`MANY`] tokens.
    fn experts_met(&self) -> Option<[u64; 2]> {
        let [here, all] = [0, 1].map(|i| self.uses[i].load(Ordering::Relaxed));
        (all > 0).then_some([here, all])
    }

    fn replay(&self, weight: &Weight, ids: &[u32], state: &mut [Part<'_, Cuda>]) -> Option<Tensor> {
        self.replay_step(weight, ids, state)
    }

    fn record(&self, ids: &[u32], step: impl FnOnce() -> Tensor) -> Tensor {
        self.record_step(ids, step)
    }

    fn embed(&self, table: &Weight, ids: &[u32]) -> Tensor {
        self.embed_rows(table, ids)
    }

    fn gather(&self, x: &Tensor, rows: &[usize]) -> Tensor {
        self.gather_rows(x, rows)
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        assert_eq!(x.shape(), y.shape(), "shapes of a sum");
        x.bytes.take();
        self.each("add", x.len(), &[arg(x.at()), arg(y.at())]);
    }

    fn sigmoid(&self, mut x: Tensor) -> Tensor {
        x.bytes.take();
        self.each("apply_sigmoid", x.len(), &[arg(x.at())]);
        x
    }

    fn silu_mul(&self, mut gate: Tensor, up: &Tensor) -> Tensor {
        assert_eq!(gate.shape(), up.shape(), "shapes of gate and up");
        gate.bytes.take();
        self.each("silu_mul", gate.len(), &[arg(gate.at()), arg(up.at())]);
        gate
    }

    fn rms_norm(&self, x: &Tensor, w: &Weight, eps: f32) -> Tensor {
        self.norm_rows(x, None, w, eps)
    }

    fn add_rms_norm(&self, x: &mut Tensor, y: &Tensor, w: &Weight, eps: f32) -> Tensor {
        assert_eq!(x.shape(), y.shape(), "shapes of a sum");
        x.bytes.take();
        self.norm_rows(x, Some(y), w, eps)
    }

    fn l2_norm(&self, mut x: Tensor, head_dim: usize, eps: f32, scale: f32) -> Tensor {
        x.bytes.take();
        self.norm_heads(x, head_dim, eps, scale)
    }

    fn gated_rms_norm(&self, x: &Tensor, w: &Weight, gate: &Tensor, eps: f32) -> Tensor {
        self.gated_norm(x, w, gate, eps)
    }

    fn matmul(&self, w: &Weight, x: &Tensor) -> Tensor {
        let [y] = self.products([w], x);
        y
    }

    fn matmuls<const N: usize>(&self, w: [&Weight; N], x: &Tensor) -> [Tensor; N] {
        self.products(w, x)
    }

    fn matmul_each<const N: usize>(&self, w: [&Weight; N], x: [&Tensor; N]) -> [Tensor; N] {
        let each = || std::array::from_fn(|i| self.matmul(w[i], x[i]));
        self.products_each(w, x).unwrap_or_else(each)
    }

    fn matmul_heads(&self, w: &Weight, x: &Tensor) -> Tensor {
        self.by_head(w, x)
    }

    fn gated_ffn(&self, w: Gated<'_, Weight>, x: &Tensor) -> Tensor {
        self.ffn(&w, x)
    }

    fn short_conv(&self, spans: &mut [Span<'_, Tensor>], x: &Tensor, taps: &Weight) -> Tensor {
        self.conv(spans, x, taps)
    }

    fn kda_decay(&self, mut f: Tensor, a: &Weight, dt_bias: &Weight) -> Tensor {
        f.bytes.take();
        self.decay(f, a, dt_bias)
    }

    fn delta_attention(
        &self,
        spans: &mut [Span<'_, DeltaState<Tensor>>],
        x: DeltaProjections<Tensor>,
        w: &DeltaWeights<'_, Weight>,
    ) -> Tensor {
        match self.delta_step(spans, &x, w) {
            Some(y) => y,
            None => composed_delta_attention(self, spans, x, w, |_| {}),
        }
    }

    fn delta_rule(&self, spans: &mut [Span<'_, Tensor>], x: DeltaRule<'_, Tensor>) -> Tensor {
        self.rule(spans, &x)
    }

    fn append(&self, spans: &mut [Span<'_, Cache>], x: &Tensor) {
        self.append_rows(spans, x);
    }

    fn latent_attention(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Tensor,
        value_dim: usize,
        scale: f32,
    ) -> Tensor {
        self.attend(spans, q, value_dim, scale)
    }

    fn expanded_attention(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Tensor,
        w: Expansion<'_, Weight>,
        scale: f32,
    ) -> Tensor {
        self.expanded(spans, q, &w, scale)
    }

    fn route(&self, logits: &Tensor, bias: &Weight, how: Routing) -> Routed {
        self.choose(logits, bias, how)
    }

    fn matmul_route(&self, router: &Weight, x: &Tensor, bias: &Weight, how: Routing) -> Routed {
        let apart = || self.route(&self.matmul(router, x), bias, how);
        self.routed_few(router, x, bias, how).unwrap_or_else(apart)
    }

    fn experts(&self, w: Gated<'_, Weight>, x: &Tensor, routed: &Routed) -> Tensor {
        self.chosen_experts(&w, None, x, routed)
    }

    fn mixture(
        &self,
        w: Gated<'_, Weight>,
        shared: Option<Gated<'_, Weight>>,
        x: &Tensor,
        routed: &Routed,
    ) -> Tensor {
        self.chosen_experts(&w, shared.as_ref(), x, routed)
    }

    fn best(&self, x: &Tensor, n: usize) -> Vec<Best> {
        self.best_of_rows(x, n)
    }
}
