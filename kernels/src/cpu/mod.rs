//! Implements [`Backend`] on the CPU: SIMD selected at run time, work split over a thread pool.
//!
//! Weights stay in the mapped file in their stored format. This file dispatches the ops of [`Backend`]; it knows no
//! model. Next: `matmul` (most of a token's time), `kda`, `attention`, then `crate::simd`.

mod attention;
mod autovec;
mod cache;
mod elementwise;
mod experts;
mod f32_gemm;
mod kda;
mod madvise;
mod materialized;
mod matmul;
mod memory;
mod numa;
mod pool;
mod rope;
mod route;
mod top_k;

pub use cache::Cache;
pub use experts::NO_EXPERT;
pub use memory::Tensor;
pub use numa::interleave_memory;
pub use pool::ThreadPool;
pub use route::Routed;

use crate::backend::{
    Backend, CacheFormat, Decay, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, Error,
    ExpertCacheStats, GatedMlp, KvUpProjection, Limits, NumericsVersion, QuantTensor, Residual, Rope,
    Routing, Span, StatePart, TopK,
};
use crate::composed;
use crate::quant::Format;
use crate::simd::SimdLevel;
use kda::Advance;
use memory::{Buffer, BufferPool};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs all ops on the CPU; owns the thread pool, the buffer pool and the detected SIMD level.
pub struct Cpu {
    pool: ThreadPool,
    buffers: BufferPool,
    level: SimdLevel,
    /// True if the model may exceed memory, so that weights are prefetched from disk.
    ahead: AtomicBool,
}

/// A weight in the mapped file.
pub struct Weight {
    stored: QuantTensor,
    row_bytes: usize,
}

impl std::ops::Deref for Weight {
    type Target = QuantTensor;

    fn deref(&self) -> &QuantTensor {
        &self.stored
    }
}

impl Weight {
    /// The bytes of a range of rows of matrix `m`.
    fn matrix_rows(&self, m: usize, rows: Range<usize>) -> &[u8] {
        assert!(
            m < self.count && rows.end <= self.rows,
            "rows {rows:?} of matrix {m}: {} x {}",
            self.count,
            self.rows
        );
        let first = m * self.rows;
        &self.bytes[(first + rows.start) * self.row_bytes..(first + rows.end) * self.row_bytes]
    }
}

/// A small weight as f32: a view of an F32 weight, else a dequantized copy.
enum Floats<'a> {
    View(&'a [f32]),
    Copy(Buffer, usize),
}

impl std::ops::Deref for Floats<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Floats::View(x) => x,
            Floats::Copy(buffer, len) => &buffer.floats_ref()[..*len],
        }
    }
}

impl Cpu {
    /// A backend with `threads` threads, the caller's included, at a SIMD level.
    pub fn new(threads: usize, level: SimdLevel) -> Cpu {
        Cpu {
            pool: ThreadPool::new(threads),
            buffers: BufferPool::default(),
            level,
            ahead: AtomicBool::new(false),
        }
    }

    /// A backend with `threads` threads (default: all cores) at the fastest SIMD level.
    pub fn detect(threads: Option<usize>) -> Cpu {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Cpu::new(threads.unwrap_or_else(cores).max(1), SimdLevel::detect())
    }

    /// The thread pool, for other work of the caller.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// The first matrix of a weight as f32.
    fn floats<'a>(&self, w: &'a Weight) -> Floats<'a> {
        let (bytes, len) = (w.matrix_rows(0, 0..w.rows), w.rows * w.cols);
        match bytemuck::try_cast_slice(bytes) {
            Ok(view) if w.format == Format::F32 && cfg!(target_endian = "little") => Floats::View(view),
            _ => {
                let mut buffer = self.buffers.floats(len);
                w.format.dequantize_row(bytes, &mut buffer.floats_mut()[..len]);
                Floats::Copy(buffer, len)
            }
        }
    }

    /// A result tensor for the rows of spans; rows outside every span are zero.
    fn spanned<S>(&self, rows: usize, cols: usize, spans: &[Span<'_, S>]) -> Tensor {
        let mut y = self.buffers.tensor(rows, cols);
        let covered: usize = spans.iter().map(|span| span.rows.len()).sum();
        assert!(
            covered <= rows && spans.iter().all(|span| span.rows.end <= rows),
            "spans of a batch of {rows}"
        );
        if covered < rows {
            y.values_mut().fill(0.0);
        }
        y
    }
}

impl Backend for Cpu {
    const NUMERICS_VERSION: NumericsVersion = NumericsVersion { family: "simd", revision: 3 };
    const LIMITS: Limits = Limits { top_k: route::MAX_GROUPS, groups: route::MAX_GROUPS, ..Limits::NONE };
    type Tensor = Tensor;
    type Weight = Weight;
    type Cache = Cache;
    type Routed = Routed;

    fn default_cache_format(latent: usize, pe: usize) -> CacheFormat {
        if attention::is_int8(latent, pe) { CacheFormat::Q8_0 } else { CacheFormat::F16 }
    }

    fn describe(&self) -> String {
        let threads = self.pool.threads();
        format!("CPU {}, {threads} thread{}", self.level.name(), if threads == 1 { "" } else { "s" })
    }

    fn weight(&self, stored: QuantTensor) -> Result<Weight, Error> {
        let row_bytes = stored.format.row_bytes(stored.cols as u64).expect("rows of whole blocks") as usize;
        assert_eq!(stored.bytes.len(), stored.count * stored.rows * row_bytes, "bytes of a weight");
        Ok(Weight { stored, row_bytes })
    }

    fn tensor(&self, rows: usize, cols: usize, values: &[f32]) -> Tensor {
        assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] tensor");
        let mut x = self.buffers.tensor(rows, cols);
        x.values_mut().copy_from_slice(values);
        x
    }

    fn read(&self, x: &Tensor) -> Vec<f32> {
        x.values().to_vec()
    }

    fn copy(&self, x: &Tensor) -> Tensor {
        self.tensor(x.rows, x.cols, x.values())
    }

    fn cache(&self, format: CacheFormat, width: usize) -> Cache {
        Cache::new(format, width)
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
        (routed.experts().to_vec(), routed.weights().to_vec())
    }

    fn read_ahead(&self) {
        self.ahead.store(true, Ordering::Relaxed);
    }

    fn expert_cache_stats(&self) -> Option<ExpertCacheStats> {
        None
    }

    fn wait(&self) {}

    fn replay(&self, _: &Weight, _: &[u32], _: &mut [StatePart<'_, Cpu>]) -> Option<Tensor> {
        None
    }

    fn capture(&self, _: &[u32], step: impl FnOnce() -> Tensor) -> Tensor {
        step()
    }

    fn embed(&self, table: &Weight, ids: &[u32]) -> Tensor {
        matmul::embed(self, table, ids)
    }

    fn gather(&self, x: &Tensor, rows: &[usize]) -> Tensor {
        let mut y = self.buffers.tensor(rows.len(), x.cols);
        for (y, r) in y.values_mut().chunks_exact_mut(x.cols.max(1)).zip(rows) {
            y.copy_from_slice(x.row(*r));
        }
        y
    }

    fn concat(&self, parts: &[&Tensor]) -> Tensor {
        let cols = parts.first().map_or(0, |x| x.cols);
        let mut y = self.buffers.tensor(parts.iter().map(|x| x.rows).sum(), cols);
        let mut to = y.values_mut();
        for x in parts {
            assert_eq!(x.cols, cols, "widths of tensors to concatenate");
            let (own, rest) = to.split_at_mut(x.values().len());
            own.copy_from_slice(x.values());
            to = rest;
        }
        y
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        elementwise::add(self, x, y);
    }

    fn sigmoid(&self, x: Tensor) -> Tensor {
        elementwise::apply_sigmoid(self, x)
    }

    fn silu_mul(&self, gate: Tensor, up: &Tensor, limit: f32) -> Tensor {
        elementwise::silu_mul(self, gate, up, limit)
    }

    fn gate_heads(&self, x: Tensor, gate: &Tensor) -> Tensor {
        elementwise::gate_heads(self, x, gate)
    }

    fn rms_norm(&self, x: &Tensor, w: &Weight, eps: f32) -> Tensor {
        elementwise::rms_norm_rows(self, x, w, eps)
    }

    fn add_rms_norm(&self, x: &mut Tensor, y: &Tensor, w: &Weight, eps: f32) -> Tensor {
        composed::add_rms_norm(self, x, y, w, eps)
    }

    fn l2_norm(&self, x: Tensor, head_dim: usize, eps: f32, scale: f32) -> Tensor {
        elementwise::l2_norm(self, x, head_dim, eps, scale)
    }

    fn gated_rms_norm(&self, x: &Tensor, w: &Weight, gate: &Tensor, eps: f32) -> Tensor {
        elementwise::gated_rms_norm(self, x, w, gate, eps)
    }

    fn matmul(&self, w: &Weight, x: &Tensor) -> Tensor {
        let [y] = matmul::matmuls(self, [w], x);
        y
    }

    fn matmul_add_norm(&self, w: &Weight, x: &Tensor, to: Residual<'_, Tensor, Weight>) -> Tensor {
        composed::matmul_add_norm(self, w, x, to)
    }
    fn gated_ffn_add_norm(
        &self,
        w: GatedMlp<'_, Weight>,
        x: &Tensor,
        to: Residual<'_, Tensor, Weight>,
    ) -> Tensor {
        composed::gated_ffn_add_norm(self, w, x, to)
    }
    fn mixture_add_norm(
        &self,
        w: GatedMlp<'_, Weight>,
        shared: Option<GatedMlp<'_, Weight>>,
        x: &Tensor,
        routed: &Routed,
        to: Residual<'_, Tensor, Weight>,
    ) -> Tensor {
        composed::mixture_add_norm(self, w, shared, x, routed, to)
    }
    fn matmuls<const N: usize>(&self, w: [&Weight; N], x: &Tensor) -> [Tensor; N] {
        matmul::matmuls(self, w, x)
    }

    fn matmul_each<const N: usize>(&self, w: [&Weight; N], x: [&Tensor; N]) -> [Tensor; N] {
        composed::matmul_each(self, w, x)
    }

    fn matmul_heads(&self, w: &Weight, x: &Tensor) -> Tensor {
        matmul::matmul_heads(self, w, x)
    }

    fn gated_ffn(&self, w: GatedMlp<'_, Weight>, x: &Tensor) -> Tensor {
        composed::gated_ffn(self, w, x)
    }

    fn short_conv(&self, spans: &mut [Span<'_, Tensor>], x: &Tensor, taps: &Weight) -> Tensor {
        elementwise::short_conv(self, spans, x, taps)
    }

    fn kda_decay(&self, f: Tensor, a: &Weight, dt_bias: &Weight, decay: Decay) -> Tensor {
        elementwise::kda_decay(self, f, a, dt_bias, decay)
    }

    fn delta_rule(&self, spans: &mut [Span<'_, Tensor>], x: DeltaRule<'_, Tensor>) -> Tensor {
        kda::delta_rule(self, spans, &x, Advance::All)
    }

    fn advance_conv(&self, spans: &mut [Span<'_, Tensor>], x: &Tensor, taps: &Weight) {
        elementwise::advance_conv(spans, x, taps);
    }

    fn delta_rule_draft(&self, spans: &mut [Span<'_, Tensor>], x: DeltaRule<'_, Tensor>) -> Tensor {
        kda::delta_rule(self, spans, &x, Advance::First)
    }

    fn delta_attention(
        &self,
        spans: &mut [Span<'_, DeltaState<Tensor>>],
        x: DeltaProjections<Tensor>,
        w: &DeltaWeights<'_, Weight>,
    ) -> Tensor {
        composed::delta_attention(self, spans, x, w)
    }

    fn rotate(&self, spans: &mut [Span<'_, Cache>], q: &mut Tensor, kv: &mut Tensor, rope: Rope) {
        rope::rotate(self, spans, q, kv, rope);
    }

    fn append(&self, spans: &mut [Span<'_, Cache>], x: &Tensor) {
        attention::append(self, spans, x);
    }

    fn append_norm(&self, spans: &mut [Span<'_, Cache>], x: &Tensor, w: &Weight, eps: f32) {
        composed::append_norm(self, spans, x, w, eps);
    }
    fn latent_attention(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Tensor,
        value_dim: usize,
        scale: f32,
    ) -> Tensor {
        attention::latent_attention(self, spans, q, value_dim, scale)
    }

    fn materialized_attention(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Tensor,
        w: KvUpProjection<'_, Weight>,
        scale: f32,
    ) -> Tensor {
        materialized::materialized_attention(self, spans, q, &w, scale)
    }

    fn route(&self, logits: &Tensor, bias: &Weight, how: Routing) -> Routed {
        route::route(self, logits, bias, how)
    }

    fn matmul_route(&self, router: &Weight, x: &Tensor, bias: &Weight, how: Routing) -> Routed {
        composed::matmul_route(self, router, x, bias, how)
    }

    fn experts(&self, w: GatedMlp<'_, Weight>, x: &Tensor, routed: &Routed) -> Tensor {
        experts::experts(self, w, x, routed)
    }

    fn mixture(
        &self,
        w: GatedMlp<'_, Weight>,
        shared: Option<GatedMlp<'_, Weight>>,
        x: &Tensor,
        routed: &Routed,
    ) -> Tensor {
        composed::mixture(self, w, shared, x, routed)
    }

    fn top_k(&self, x: &Tensor, n: usize) -> Vec<TopK> {
        top_k::top_k(self, x, n)
    }
}
