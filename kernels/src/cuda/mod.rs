//! Implements [`Backend`] on a CUDA device; weights keep their stored blocks in device memory.
//!
//! The kernels are in `kernels/cuda/*.cu` and are embedded as PTX, which the user's driver compiles. A build needs no
//! toolkit and a start needs no driver: [`Cuda::detect`] returns an error that says why the device is unusable. Ops are
//! issued to one stream and block only when values are read or weights in RAM are needed. **Not yet run on a GPU**: tests
//! cover this host code and the kernels' arithmetic on the emulator (kernels/cuda/host). Next: `driver`, then `matmul`.

mod attention;
mod cache;
mod delta;
mod driver;
mod elementwise;
mod expert_cache;
mod expert_policy;
mod experts;
mod fused;
mod graph;
mod materialized;
mod matmul;
mod memory;
mod mixed;
mod norm;
mod planes;
mod ptx;
mod residual;
mod route;
mod sample;
mod span;
mod staging;
mod weight;

pub use cache::Cache;
pub use driver::{Device, DeviceFailure, LaunchEvent, Unavailable};
pub use expert_policy::{DecayedLfu, distinct_misses};
pub use materialized::{Heads, materialized_bytes};
pub use memory::Tensor;
pub use planes::device_bytes;
pub use ptx::archive_id;
pub use route::Routed;
pub use staging::{UPLOAD_MIN_TOKENS, buffer_and_planes, staging_bytes};
pub use weight::Weight;

use crate::backend::{
    Backend, CacheFormat, Decay, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, Error,
    ExpertCacheStats, GatedMlp, KvUpProjection, Limits, NumericsVersion, QuantTensor, Residual, Rope,
    Routing, Span, StatePart, TopK,
};
use crate::composed;
use crate::cpu::Cpu;
use driver::{Driver, Grid, arg, block};
use expert_cache::{Slots, Uploader};
use graph::GraphCache;
use memory::{DeviceBuffer, DevicePool};
use staging::Staging;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Runs all ops on one CUDA device, except experts that stay in RAM for the CPU.
pub struct Cuda {
    driver: Arc<Driver>,
    buffers: DevicePool,
    /// Remaining device bytes for large stacks (experts), if limited.
    stacks: Mutex<Option<u64>>,
    /// The CPU backend for experts in RAM, its threads, and whether it prefetches them from disk.
    host: OnceLock<Cpu>,
    threads: OnceLock<Option<usize>>,
    ahead: AtomicBool,
    /// Upload buffers for steps of many tokens, if enabled.
    staging: Mutex<Option<Box<Staging>>>,
    /// Expert cache slots per stack in RAM.
    slots: AtomicUsize,
    /// Uploads experts to the slots.
    uploader: Mutex<Uploader>,
    /// Hits and lookups of the expert cache.
    uses: [AtomicU64; 2],
    /// Rows per chunk of materialized attention.
    chunk_rows: AtomicUsize,
    steps: Mutex<GraphCache>,
    /// Counters of finished blocks, for up to [`matmul::GEMV_MAX_TOKENS`] tokens; zero between launches.
    counts: DeviceBuffer,
}

/// Stacks with fewer weights than this always reside on the device.
pub const LARGE_STACK_WEIGHTS: u64 = 16 << 20;

impl Cuda {
    /// Opens the first CUDA device; the error says why there is none.
    pub fn detect() -> Result<Cuda, Unavailable> {
        let driver = Arc::new(Driver::open()?);
        let buffers = DevicePool::new(driver.clone());
        let counts = buffers.upload(&[0_i32; matmul::GEMV_MAX_TOKENS]);
        Ok(Cuda {
            driver,
            buffers,
            stacks: Mutex::default(),
            host: OnceLock::new(),
            threads: OnceLock::new(),
            ahead: AtomicBool::new(false),
            staging: Mutex::default(),
            slots: AtomicUsize::new(0),
            uploader: Mutex::default(),
            uses: Default::default(),
            chunk_rows: AtomicUsize::new(materialized::CHUNK_ROWS),
            steps: Mutex::default(),
            counts,
        })
    }

    /// Sets the CPU threads for experts in RAM; must precede the first such weight.
    pub fn with_threads(self, threads: Option<usize>) -> Cuda {
        let _ = self.threads.set(threads); // unset in a new backend
        self
    }

    /// Name, compute capability and limits of the device.
    pub fn device(&self) -> &Device {
        &self.driver.device
    }

    /// Free and total device memory in bytes.
    pub fn memory(&self) -> [u64; 2] {
        self.driver.memory()
    }

    /// Limits the device memory of large stacks (experts) loaded from now on. The first stack that does not fit and all
    /// later ones stay in RAM, where the CPU computes them; `slots` experts per stack are cached on the device. With a
    /// nonzero `room`, stacks of at most `room` bytes are uploaded for steps of [`UPLOAD_MIN_TOKENS`] tokens and more;
    /// [`staging_bytes`] gives the memory that takes.
    ///
    /// # Errors
    /// The upload buffers do not fit.
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

    /// Reserves device bytes for a stack; false if the limit is exceeded.
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

    /// Measures device copy bandwidth: GB read and written per second, best of five runs over at most 1 GiB,
    /// or of those that start within a second.
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
        let start = Instant::now();
        let within = |_: &usize| start.elapsed() < Duration::from_secs(1);
        let best = (0..6).take_while(within).map(|_| pass()).fold(0.0, f64::max);
        drop((from, to));
        self.buffers.trim();
        best
    }

    /// Seconds per `issue`, from `n` of them captured in one graph to exclude launch time; best of three. `issue` receives
    /// its index.
    pub fn time(&self, n: usize, mut issue: impl FnMut(usize)) -> f64 {
        (0..n).for_each(&mut issue); // loads kernels and warms the pool
        let (graph, _memory) = self.buffers.capture(|| (0..n).for_each(&mut issue));
        let run = || {
            self.wait();
            let start = Instant::now();
            self.driver.replay(&graph);
            self.wait();
            start.elapsed().as_secs_f64() / n as f64
        };
        (0..4).map(|_| run()).fold(f64::INFINITY, f64::min)
    }

    /// Compiles all kernels now instead of on first use; returns modules and seconds.
    pub fn compile(&self) -> Vec<(String, f64)> {
        self.driver.compile()
    }

    /// Passes modules and kernels to `on` before they are compiled and launched, each launch after the end of the one before:
    /// for checks of a device.
    pub fn trace(&self, on: impl Fn(LaunchEvent<'_>) + Send + Sync + 'static) {
        self.driver.trace(Box::new(on));
    }

    /// Allows programmatic dependent launches from now on, or not: a kernel begins before the one before it has ended, and waits
    /// for it itself. Results are the same. Returns whether the device has them (compute capability 9.0).
    pub fn allow_programmatic_launches(&self, allowed: bool) -> bool {
        self.driver.allow_programmatic(allowed)
    }

    /// Whether launches are programmatic: by default where the device has them.
    pub fn has_programmatic_launches(&self) -> bool {
        self.driver.is_programmatic()
    }

    /// Sets the longest time that issued work may take (default: 60 s). Beyond it, and after an error of the driver or of a
    /// kernel, every op unwinds with a [`DeviceFailure`].
    pub fn limit_waits(&self, limit: Duration) {
        self.driver.limit_waits(limit);
    }

    /// Number of kernel launches, direct or captured.
    pub fn launched(&self) -> u64 {
        self.driver.launched.load(Ordering::Relaxed)
    }

    /// Number of these launches that may begin before the kernel before them has ended.
    pub fn overlapping_launches(&self) -> u64 {
        self.driver.overlapping.load(Ordering::Relaxed)
    }

    /// Number of graph launches: one per replayed step, and one more per layer with experts in RAM.
    pub fn graph_launches(&self) -> u64 {
        self.driver.graphs.load(Ordering::Relaxed)
    }

    /// Number of decode steps run by graph replay.
    pub fn replayed(&self) -> u64 {
        self.steps().replayed
    }

    /// Fills buffers with NaN before use: slow, for tests.
    pub fn poison(&self, on: bool) {
        self.buffers.poison(on);
    }
}

impl Backend for Cuda {
    const NUMERICS_VERSION: NumericsVersion = Cpu::NUMERICS_VERSION;
    const LIMITS: Limits = Limits {
        top_k: route::EXPERTS,
        groups: route::EXPERTS,
        experts: route::EXPERTS,
        taps: elementwise::TAPS,
        delta_heads: delta::MAX_HEADS,
        delta_keys: delta::DELTA_ROWS,
        latent: attention::PLAIN_VALUES,
        cache_width: attention::MAX_WIDTH,
    };
    type Tensor = Tensor;
    type Weight = Weight;
    type Cache = Cache;
    type Routed = Routed;

    fn default_cache_format(_: usize, _: usize) -> CacheFormat {
        CacheFormat::F16
    }

    fn describe(&self) -> String {
        let Device { name, capability: [major, minor], .. } = self.device();
        format!("CUDA {name} ({major}.{minor})")
    }

    fn weight(&self, stored: QuantTensor) -> Result<Weight, Error> {
        let weights = (stored.count * stored.rows * stored.cols) as u64;
        if stored.count > 1
            && weights >= LARGE_STACK_WEIGHTS
            && !self.admit(device_bytes(stored.format, weights))
        {
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

    /// Counts steps of fewer than [`UPLOAD_MIN_TOKENS`] tokens.
    fn expert_cache_stats(&self) -> Option<ExpertCacheStats> {
        let [hits, lookups] = self.uses.each_ref().map(|n| n.load(Ordering::Relaxed));
        (lookups > 0).then_some(ExpertCacheStats { hits, lookups })
    }

    fn replay(&self, weight: &Weight, ids: &[u32], state: &mut [StatePart<'_, Cuda>]) -> Option<Tensor> {
        self.replay_step(weight, ids, state)
    }

    fn capture(&self, ids: &[u32], step: impl FnOnce() -> Tensor) -> Tensor {
        self.capture_step(ids, step)
    }

    fn embed(&self, table: &Weight, ids: &[u32]) -> Tensor {
        self.embed_rows(table, ids)
    }

    fn gather(&self, x: &Tensor, rows: &[usize]) -> Tensor {
        self.gather_rows(x, rows)
    }

    fn concat(&self, parts: &[&Tensor]) -> Tensor {
        let cols = parts.first().map_or(0, |x| x.cols);
        let y = self.buffers.tensor(parts.iter().map(|x| x.rows).sum(), cols);
        let mut to = y.at();
        for x in parts {
            assert_eq!(x.cols, cols, "widths of tensors to concatenate");
            self.driver.copy(to, x.at(), 4 * x.len());
            to += 4 * x.len() as u64;
        }
        y
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

    fn silu_mul(&self, mut gate: Tensor, up: &Tensor, limit: f32) -> Tensor {
        gate.bytes.take();
        self.limited_silu_mul(&gate, up, limit);
        gate
    }

    fn gate_heads(&self, mut x: Tensor, gate: &Tensor) -> Tensor {
        x.bytes.take();
        self.gate_each_head(x, gate)
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
        self.products_each(w, x).unwrap_or_else(|| composed::matmul_each(self, w, x))
    }

    fn matmul_heads(&self, w: &Weight, x: &Tensor) -> Tensor {
        self.by_head(w, x)
    }

    fn gated_ffn(&self, w: GatedMlp<'_, Weight>, x: &Tensor) -> Tensor {
        self.ffn(&w, x)
    }

    fn matmul_add_norm(&self, w: &Weight, x: &Tensor, to: Residual<'_, Tensor, Weight>) -> Tensor {
        self.product_to_residual(w, x, to)
    }

    fn gated_ffn_add_norm(
        &self,
        w: GatedMlp<'_, Weight>,
        x: &Tensor,
        to: Residual<'_, Tensor, Weight>,
    ) -> Tensor {
        self.ffn_to_residual(&w, x, to)
    }

    fn short_conv(&self, spans: &mut [Span<'_, Tensor>], x: &Tensor, taps: &Weight) -> Tensor {
        self.conv(spans, x, taps)
    }

    fn kda_decay(&self, mut f: Tensor, a: &Weight, dt_bias: &Weight, decay: Decay) -> Tensor {
        f.bytes.take();
        self.decay(f, a, dt_bias, decay)
    }

    fn delta_attention(
        &self,
        spans: &mut [Span<'_, DeltaState<Tensor>>],
        x: DeltaProjections<Tensor>,
        w: &DeltaWeights<'_, Weight>,
    ) -> Tensor {
        match self.delta_step(spans, &x, w) {
            Some(y) => y,
            None => composed::delta_attention(self, spans, x, w),
        }
    }

    fn delta_rule(&self, spans: &mut [Span<'_, Tensor>], x: DeltaRule<'_, Tensor>) -> Tensor {
        self.rule(spans, &x)
    }

    fn advance_conv(&self, spans: &mut [Span<'_, Tensor>], x: &Tensor, taps: &Weight) {
        composed::advance_conv(self, spans, x, taps);
    }

    fn delta_rule_draft(&self, spans: &mut [Span<'_, Tensor>], x: DeltaRule<'_, Tensor>) -> Tensor {
        composed::delta_rule_draft(self, spans, x)
    }

    fn rotate(&self, spans: &mut [Span<'_, Cache>], q: &mut Tensor, kv: &mut Tensor, rope: Rope) {
        q.bytes.take();
        kv.bytes.take();
        self.rotate_rows(spans, q, kv, rope);
    }

    fn append(&self, spans: &mut [Span<'_, Cache>], x: &Tensor) {
        self.append_rows(spans, x);
    }

    fn append_norm(&self, spans: &mut [Span<'_, Cache>], x: &Tensor, w: &Weight, eps: f32) {
        if !self.append_normalized(spans, x, w, eps) {
            composed::append_norm(self, spans, x, w, eps);
        }
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

    fn materialized_attention(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Tensor,
        w: KvUpProjection<'_, Weight>,
        scale: f32,
    ) -> Tensor {
        self.attend_materialized(spans, q, &w, scale)
    }

    fn route(&self, logits: &Tensor, bias: &Weight, how: Routing) -> Routed {
        self.choose(logits, bias, how)
    }

    fn matmul_route(&self, router: &Weight, x: &Tensor, bias: &Weight, how: Routing) -> Routed {
        self.fused_route(router, x, bias, how)
            .unwrap_or_else(|| composed::matmul_route(self, router, x, bias, how))
    }

    fn experts(&self, w: GatedMlp<'_, Weight>, x: &Tensor, routed: &Routed) -> Tensor {
        self.chosen_experts(&w, None, x, routed)
    }

    fn mixture(
        &self,
        w: GatedMlp<'_, Weight>,
        shared: Option<GatedMlp<'_, Weight>>,
        x: &Tensor,
        routed: &Routed,
    ) -> Tensor {
        self.chosen_experts(&w, shared.as_ref(), x, routed)
    }

    fn mixture_add_norm(
        &self,
        w: GatedMlp<'_, Weight>,
        shared: Option<GatedMlp<'_, Weight>>,
        x: &Tensor,
        routed: &Routed,
        to: Residual<'_, Tensor, Weight>,
    ) -> Tensor {
        self.mixture_to_residual(&w, shared.as_ref(), x, routed, to)
    }

    fn top_k(&self, x: &Tensor, n: usize) -> Vec<TopK> {
        self.top_k_rows(x, n)
    }
}
