//! A profiling backend for `kimi bench --profile`: wraps another backend and records time, bytes and calls of every op.
//!
//! Ops are eager, so the time of a call is the time of its work. Fused ops are split into plain ones, so that the table
//! lists each part. Next: `bench`.

use kernels::backend::{
    Backend, CacheFormat, Decay, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, Error,
    ExpertCacheStats, GatedMlp, KvUpProjection, Limits, NumericsVersion, QuantTensor, Residual, Rope,
    Routing, Span, StatePart, TopK,
};
use kernels::composed;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A backend that records the ops of `B`.
pub struct Profiled<B> {
    inner: B,
    ops: Mutex<BTreeMap<String, OpStats>>,
}

/// The totals of one op.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpStats {
    pub calls: u64,
    pub time: Duration,
    /// Bytes of weights, state and KV cache read.
    pub bytes: u64,
}

/// A weight with its size and shape for the table.
pub struct Weight<W> {
    inner: W,
    /// Bytes of one matrix of the stack.
    matrix_bytes: u64,
    count: usize,
    shape: String,
}

impl<W> Weight<W> {
    fn bytes(&self) -> u64 {
        self.matrix_bytes * self.count as u64
    }
}

impl<B: Backend> Profiled<B> {
    pub fn new(inner: B) -> Self {
        Profiled { inner, ops: Mutex::default() }
    }

    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// Returns the totals since the last call, the longest first.
    pub fn take(&self) -> Vec<(String, OpStats)> {
        let ops = std::mem::take(&mut *self.ops.lock().unwrap_or_else(PoisonError::into_inner));
        let mut ops: Vec<_> = ops.into_iter().collect();
        ops.sort_by_key(|(_, op)| std::cmp::Reverse(op.time));
        ops
    }

    fn time<T>(&self, name: impl FnOnce() -> String, bytes: u64, op: impl FnOnce(&B) -> T) -> T {
        let start = Instant::now();
        let out = op(&self.inner);
        let time = start.elapsed();
        let mut ops = self.ops.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = ops.entry(name()).or_default();
        entry.calls += 1;
        entry.time += time;
        entry.bytes += bytes;
        out
    }

    fn plain<T>(&self, name: &str, op: impl FnOnce(&B) -> T) -> T {
        self.time(|| name.to_owned(), 0, op)
    }
}

/// Prints a table of the totals per token.
pub fn print(out: &mut impl Write, ops: &[(String, OpStats)], tokens: usize) -> io::Result<()> {
    let total: f64 = ops.iter().map(|(_, op)| op.time.as_secs_f64()).sum();
    writeln!(out, "{:<44} {:>7} {:>10} {:>6} {:>8}", "op", "calls", "us/token", "share", "GB/s")?;
    for (name, op) in ops {
        let time = op.time.as_secs_f64();
        let (each, share) = (time * 1e6 / tokens as f64, time / total * 100.0);
        write!(out, "{name:<44} {:>7} {each:>10.1} {share:>5.1}%", op.calls)?;
        match op.bytes {
            0 => writeln!(out)?,
            bytes => writeln!(out, " {:>8.2}", bytes as f64 / time / 1e9)?,
        }
    }
    Ok(())
}

fn inner<'a, W>(w: &GatedMlp<'a, Weight<W>>) -> GatedMlp<'a, W> {
    GatedMlp { gate: &w.gate.inner, up: &w.up.inner, down: &w.down.inner, limit: w.limit }
}

impl<B: Backend> Backend for Profiled<B> {
    const NUMERICS_VERSION: NumericsVersion = B::NUMERICS_VERSION;
    const LIMITS: Limits = B::LIMITS;
    type Tensor = B::Tensor;
    type Weight = Weight<B::Weight>;
    type Cache = B::Cache;
    type Routed = B::Routed;

    fn default_cache_format(latent: usize, pe: usize) -> CacheFormat {
        B::default_cache_format(latent, pe)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn read_ahead(&self) {
        self.inner.read_ahead();
    }
    fn wait(&self) {
        self.plain("wait", |b| b.wait());
    }
    fn weight(&self, stored: QuantTensor) -> Result<Self::Weight, Error> {
        let shape = format!("{} x {} {}", stored.rows, stored.cols, stored.format.name());
        let (count, matrix_bytes) = (stored.count, stored.bytes.len() as u64 / stored.count.max(1) as u64);
        Ok(Weight { inner: self.inner.weight(stored)?, matrix_bytes, count, shape })
    }
    fn tensor(&self, rows: usize, cols: usize, values: &[f32]) -> B::Tensor {
        self.inner.tensor(rows, cols, values)
    }
    fn read(&self, x: &B::Tensor) -> Vec<f32> {
        self.plain("read", |b| b.read(x))
    }
    fn copy(&self, x: &B::Tensor) -> B::Tensor {
        self.plain("copy", |b| b.copy(x))
    }
    fn cache(&self, format: CacheFormat, width: usize) -> B::Cache {
        self.inner.cache(format, width)
    }
    fn cache_len(&self, cache: &B::Cache) -> usize {
        self.inner.cache_len(cache)
    }
    fn cache_truncate(&self, cache: &mut B::Cache, len: usize) {
        self.inner.cache_truncate(cache, len);
    }
    fn cache_read(&self, cache: &B::Cache, range: Range<usize>) -> Vec<f32> {
        self.inner.cache_read(cache, range)
    }
    fn cache_row_bytes(&self, cache: &B::Cache) -> usize {
        self.inner.cache_row_bytes(cache)
    }
    fn cache_export(&self, cache: &B::Cache, range: Range<usize>, out: &mut Vec<u8>) {
        self.inner.cache_export(cache, range, out);
    }
    fn cache_import(&self, cache: &mut B::Cache, rows: &[u8]) {
        self.inner.cache_import(cache, rows);
    }
    fn routed(&self, routed: &B::Routed) -> (Vec<u32>, Vec<f32>) {
        self.inner.routed(routed)
    }
    fn expert_cache_stats(&self) -> Option<ExpertCacheStats> {
        self.inner.expert_cache_stats()
    }
    // A replayed graph would be one call; without capture every op is recorded.
    fn replay(&self, _: &Self::Weight, _: &[u32], _: &mut [StatePart<'_, Self>]) -> Option<B::Tensor> {
        None
    }
    fn capture(&self, _: &[u32], step: impl FnOnce() -> B::Tensor) -> B::Tensor {
        step()
    }
    fn embed(&self, table: &Self::Weight, ids: &[u32]) -> B::Tensor {
        self.plain("embed", |b| b.embed(&table.inner, ids))
    }
    fn gather(&self, x: &B::Tensor, rows: &[usize]) -> B::Tensor {
        self.plain("gather", |b| b.gather(x, rows))
    }
    fn concat(&self, parts: &[&B::Tensor]) -> B::Tensor {
        self.plain("concat", |b| b.concat(parts))
    }
    fn add(&self, x: &mut B::Tensor, y: &B::Tensor) {
        self.plain("add", |b| b.add(x, y));
    }
    fn sigmoid(&self, x: B::Tensor) -> B::Tensor {
        self.plain("sigmoid", |b| b.sigmoid(x))
    }
    fn silu_mul(&self, gate: B::Tensor, up: &B::Tensor, limit: f32) -> B::Tensor {
        self.plain("silu_mul", |b| b.silu_mul(gate, up, limit))
    }
    fn gate_heads(&self, x: B::Tensor, gate: &B::Tensor) -> B::Tensor {
        self.plain("gate_heads", |b| b.gate_heads(x, gate))
    }
    fn rms_norm(&self, x: &B::Tensor, w: &Self::Weight, eps: f32) -> B::Tensor {
        self.plain("rms_norm", |b| b.rms_norm(x, &w.inner, eps))
    }
    fn add_rms_norm(&self, x: &mut B::Tensor, y: &B::Tensor, w: &Self::Weight, eps: f32) -> B::Tensor {
        composed::add_rms_norm(self, x, y, w, eps)
    }
    fn l2_norm(&self, x: B::Tensor, head_dim: usize, eps: f32, scale: f32) -> B::Tensor {
        self.plain("l2_norm", |b| b.l2_norm(x, head_dim, eps, scale))
    }
    fn gated_rms_norm(&self, x: &B::Tensor, w: &Self::Weight, gate: &B::Tensor, eps: f32) -> B::Tensor {
        self.plain("gated_rms_norm", |b| b.gated_rms_norm(x, &w.inner, gate, eps))
    }
    fn matmul(&self, w: &Self::Weight, x: &B::Tensor) -> B::Tensor {
        self.time(|| format!("matmul {}", w.shape), w.bytes(), |b| b.matmul(&w.inner, x))
    }
    fn matmul_add_norm(
        &self,
        w: &Self::Weight,
        x: &B::Tensor,
        to: Residual<'_, B::Tensor, Self::Weight>,
    ) -> B::Tensor {
        composed::matmul_add_norm(self, w, x, to)
    }
    fn gated_ffn_add_norm(
        &self,
        w: GatedMlp<'_, Self::Weight>,
        x: &B::Tensor,
        to: Residual<'_, B::Tensor, Self::Weight>,
    ) -> B::Tensor {
        composed::gated_ffn_add_norm(self, w, x, to)
    }
    fn mixture_add_norm(
        &self,
        w: GatedMlp<'_, Self::Weight>,
        shared: Option<GatedMlp<'_, Self::Weight>>,
        x: &B::Tensor,
        routed: &B::Routed,
        to: Residual<'_, B::Tensor, Self::Weight>,
    ) -> B::Tensor {
        composed::mixture_add_norm(self, w, shared, x, routed, to)
    }
    fn matmuls<const N: usize>(&self, w: [&Self::Weight; N], x: &B::Tensor) -> [B::Tensor; N] {
        let name = || format!("matmul {N} together: {}, ...", w[0].shape);
        self.time(name, w.iter().map(|w| w.bytes()).sum(), |b| b.matmuls(w.map(|w| &w.inner), x))
    }
    fn matmul_each<const N: usize>(&self, w: [&Self::Weight; N], x: [&B::Tensor; N]) -> [B::Tensor; N] {
        composed::matmul_each(self, w, x)
    }
    fn matmul_heads(&self, w: &Self::Weight, x: &B::Tensor) -> B::Tensor {
        let name = || format!("matmul_heads {} heads {}", w.count, w.shape);
        self.time(name, w.bytes(), |b| b.matmul_heads(&w.inner, x))
    }
    fn gated_ffn(&self, w: GatedMlp<'_, Self::Weight>, x: &B::Tensor) -> B::Tensor {
        composed::gated_ffn(self, w, x)
    }
    fn short_conv(&self, spans: &mut [Span<'_, B::Tensor>], x: &B::Tensor, taps: &Self::Weight) -> B::Tensor {
        self.plain("short_conv", |b| b.short_conv(spans, x, &taps.inner))
    }
    fn kda_decay(&self, f: B::Tensor, a: &Self::Weight, dt_bias: &Self::Weight, decay: Decay) -> B::Tensor {
        self.plain("kda_decay", |b| b.kda_decay(f, &a.inner, &dt_bias.inner, decay))
    }
    fn delta_rule(&self, spans: &mut [Span<'_, B::Tensor>], x: DeltaRule<'_, B::Tensor>) -> B::Tensor {
        self.plain("delta_rule", |b| b.delta_rule(spans, x))
    }
    fn advance_conv(&self, spans: &mut [Span<'_, B::Tensor>], x: &B::Tensor, taps: &Self::Weight) {
        self.plain("advance_conv", |b| b.advance_conv(spans, x, &taps.inner));
    }
    fn delta_rule_draft(&self, spans: &mut [Span<'_, B::Tensor>], x: DeltaRule<'_, B::Tensor>) -> B::Tensor {
        self.plain("delta_rule_draft", |b| b.delta_rule_draft(spans, x))
    }
    fn delta_attention(
        &self,
        spans: &mut [Span<'_, DeltaState<B::Tensor>>],
        x: DeltaProjections<B::Tensor>,
        w: &DeltaWeights<'_, Self::Weight>,
    ) -> B::Tensor {
        composed::delta_attention(self, spans, x, w)
    }
    fn rotate(&self, spans: &mut [Span<'_, B::Cache>], q: &mut B::Tensor, kv: &mut B::Tensor, rope: Rope) {
        self.plain("rotate", |b| b.rotate(spans, q, kv, rope));
    }
    fn append(&self, spans: &mut [Span<'_, B::Cache>], x: &B::Tensor) {
        self.plain("append", |b| b.append(spans, x));
    }
    fn append_norm(&self, spans: &mut [Span<'_, B::Cache>], x: &B::Tensor, w: &Self::Weight, eps: f32) {
        composed::append_norm(self, spans, x, w, eps);
    }
    fn latent_attention(
        &self,
        spans: &mut [Span<'_, B::Cache>],
        q: &B::Tensor,
        value_dim: usize,
        scale: f32,
    ) -> B::Tensor {
        let rows =
            |b: &B| spans.iter().map(|s| b.cache_len(s.state) * b.cache_row_bytes(s.state)).sum::<usize>();
        let bytes = rows(&self.inner) as u64;
        self.time(|| "latent_attention".into(), bytes, |b| b.latent_attention(spans, q, value_dim, scale))
    }
    fn materialized_attention(
        &self,
        spans: &mut [Span<'_, B::Cache>],
        q: &B::Tensor,
        w: KvUpProjection<'_, Self::Weight>,
        scale: f32,
    ) -> B::Tensor {
        let rows =
            |b: &B| spans.iter().map(|s| b.cache_len(s.state) * b.cache_row_bytes(s.state)).sum::<usize>();
        let bytes = rows(&self.inner) as u64 + w.k.bytes() + w.v.bytes();
        let w = KvUpProjection { k: &w.k.inner, v: &w.v.inner, latent: w.latent };
        self.time(|| "materialized_attention".into(), bytes, |b| b.materialized_attention(spans, q, w, scale))
    }
    fn top_k(&self, x: &B::Tensor, n: usize) -> Vec<TopK> {
        self.plain("top_k", |b| b.top_k(x, n))
    }
    fn route(&self, logits: &B::Tensor, bias: &Self::Weight, how: Routing) -> B::Routed {
        self.plain("route", |b| b.route(logits, &bias.inner, how))
    }
    fn matmul_route(
        &self,
        router: &Self::Weight,
        x: &B::Tensor,
        bias: &Self::Weight,
        how: Routing,
    ) -> B::Routed {
        composed::matmul_route(self, router, x, bias, how)
    }
    fn mixture(
        &self,
        w: GatedMlp<'_, Self::Weight>,
        shared: Option<GatedMlp<'_, Self::Weight>>,
        x: &B::Tensor,
        routed: &B::Routed,
    ) -> B::Tensor {
        composed::mixture(self, w, shared, x, routed)
    }
    fn experts(&self, w: GatedMlp<'_, Self::Weight>, x: &B::Tensor, routed: &B::Routed) -> B::Tensor {
        let (mut chosen, _) = self.inner.routed(routed);
        chosen.sort_unstable();
        chosen.dedup();
        let bytes = w.gate.matrix_bytes + w.up.matrix_bytes + w.down.matrix_bytes;
        let name = || format!("experts {}", w.gate.shape);
        self.time(name, bytes * chosen.len() as u64, |b| b.experts(inner(&w), x, routed))
    }
}
