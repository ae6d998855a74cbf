//! A backend for `kimi imatrix`: wraps another backend and sums the squared inputs of every weight that is multiplied.
//!
//! Fused ops are split into plain ones, whose inputs are visible; experts are computed one by one. Attention is always absorbed,
//! as in llama.cpp, so that `attn_k_b` has the queries of its head as inputs, and `attn_v_b` the attended latents. Next: `sums`.

use super::sums::{Sums, column_squares};
use kernels::backend::{
    Backend, CacheFormat, Decay, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, Error,
    ExpertCacheStats, GatedMlp, KvUpProjection, Limits, NumericsVersion, QuantTensor, Residual, Rope,
    Routing, Span, StatePart, TopK,
};
use kernels::composed;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The weight whose product is not computed: only its inputs are needed, and the logits are not.
const OUTPUT: &str = "output.weight";

/// A backend that observes the inputs of the weights of `B`.
pub struct Observed<B> {
    inner: B,
    sums: Mutex<Sums>,
    /// Tokens of the current step.
    tokens: AtomicUsize,
}

/// A weight, with the number of its sums if its inputs are observed.
pub struct Weight<W> {
    whole: W,
    /// Each matrix of a stack of experts.
    experts: Vec<W>,
    sums: Option<usize>,
    is_output: bool,
    matrices: usize,
    cols: usize,
}

impl<B: Backend<Tensor: AsRef<[f32]>>> Observed<B> {
    pub fn new(inner: B) -> Self {
        Observed { inner, sums: Mutex::default(), tokens: AtomicUsize::new(0) }
    }

    /// Locks the sums for the caller.
    pub fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the input of weights that are multiplied with the same rows.
    fn observe(&self, weights: &[&Weight<B::Weight>], x: &B::Tensor) {
        let mut numbers: Vec<usize> = weights.iter().filter_map(|w| w.sums).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let (Some(first), false) = (weights.first(), numbers.is_empty()) else { return };
        let values = x.as_ref();
        let squares = column_squares(values, first.cols);
        let mut sums = self.sums();
        numbers.iter().for_each(|n| sums.add(*n, None, values.len() / first.cols, &squares));
    }

    /// Adds the inputs of each head of a stack: the first columns of the head's part of a row.
    fn observe_heads(&self, w: &Weight<B::Weight>, x: &B::Tensor) {
        let Some(number) = w.sums else { return };
        let (values, tokens) = (x.as_ref(), self.tokens.load(Ordering::Relaxed));
        let width = values.len() / tokens.max(1);
        let squares = column_squares(values, width);
        let heads = squares.chunks_exact(width / w.matrices).flat_map(|head| &head[..w.cols]);
        self.sums().add(number, None, tokens, &heads.copied().collect::<Vec<_>>());
    }

    /// Adds the inputs of one expert of stacks.
    fn observe_expert(&self, weights: &[&Weight<B::Weight>], expert: usize, x: &B::Tensor) {
        let values = x.as_ref();
        let cols = weights[0].cols;
        let squares = column_squares(values, cols);
        let mut sums = self.sums();
        for number in weights.iter().filter_map(|w| w.sums) {
            sums.add(number, Some(expert), values.len() / cols, &squares);
        }
    }
}

/// Whether a weight of the model's file is multiplied with activations.
fn is_multiplied(name: &str) -> bool {
    name == OUTPUT
        || name.starts_with("blk.")
            && name.ends_with(".weight")
            && !name.ends_with("_norm.weight")
            && !name.contains(".ssm_conv1d")
}

fn whole<'a, W>(w: &GatedMlp<'a, Weight<W>>) -> [&'a Weight<W>; 3] {
    [w.gate, w.up, w.down]
}

impl<B: Backend<Tensor: AsRef<[f32]>>> Backend for Observed<B> {
    const NUMERICS_VERSION: NumericsVersion = B::NUMERICS_VERSION;
    const LIMITS: Limits = B::LIMITS;
    type Tensor = B::Tensor;
    type Weight = Weight<B::Weight>;
    type Cache = B::Cache;
    type Routed = B::Routed;

    /// Exact, because the inputs of `attn_v_b` and of all later weights depend on the cache.
    fn default_cache_format(_: usize, _: usize) -> CacheFormat {
        CacheFormat::F32
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn read_ahead(&self) {
        self.inner.read_ahead();
    }
    fn wait(&self) {
        self.inner.wait();
    }
    fn weight(&self, stored: QuantTensor) -> Result<Self::Weight, Error> {
        let (name, matrices, cols) = (stored.name.clone(), stored.count, stored.cols);
        let is_stack = name.contains("_exps.");
        let counts = if is_stack { matrices } else { 1 };
        let sums = is_multiplied(&name).then(|| self.sums().register(&name, cols, matrices, counts));
        let bytes = stored.bytes.len() / matrices.max(1);
        let one = |e: usize| QuantTensor {
            count: 1,
            bytes: stored.bytes.slice(e * bytes..(e + 1) * bytes),
            ..stored.clone()
        };
        let stack = if is_stack { 0..matrices } else { 0..0 };
        let experts = stack.map(|e| self.inner.weight(one(e))).collect::<Result<_, _>>()?;
        let is_output = *name == *OUTPUT;
        Ok(Weight { whole: self.inner.weight(stored)?, experts, sums, is_output, matrices, cols })
    }
    fn tensor(&self, rows: usize, cols: usize, values: &[f32]) -> B::Tensor {
        self.inner.tensor(rows, cols, values)
    }
    fn read(&self, x: &B::Tensor) -> Vec<f32> {
        self.inner.read(x)
    }
    fn copy(&self, x: &B::Tensor) -> B::Tensor {
        self.inner.copy(x)
    }
    fn cache(&self, format: CacheFormat, width: usize) -> B::Cache {
        self.inner.cache(format, width)
    }
    fn cache_len(&self, cache: &B::Cache) -> usize {
        self.inner.cache_len(cache)
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
    fn cache_truncate(&self, cache: &mut B::Cache, len: usize) {
        self.inner.cache_truncate(cache, len);
    }
    fn routed(&self, routed: &B::Routed) -> (Vec<u32>, Vec<f32>) {
        self.inner.routed(routed)
    }
    fn expert_cache_stats(&self) -> Option<ExpertCacheStats> {
        self.inner.expert_cache_stats()
    }
    fn replay(&self, _: &Self::Weight, _: &[u32], _: &mut [StatePart<'_, Self>]) -> Option<B::Tensor> {
        None
    }
    fn capture(&self, _: &[u32], step: impl FnOnce() -> B::Tensor) -> B::Tensor {
        step()
    }
    fn embed(&self, table: &Self::Weight, ids: &[u32]) -> B::Tensor {
        self.tokens.store(ids.len(), Ordering::Relaxed);
        self.inner.embed(&table.whole, ids)
    }
    fn gather(&self, x: &B::Tensor, rows: &[usize]) -> B::Tensor {
        self.inner.gather(x, rows)
    }
    fn concat(&self, parts: &[&B::Tensor]) -> B::Tensor {
        self.inner.concat(parts)
    }
    fn add(&self, x: &mut B::Tensor, y: &B::Tensor) {
        self.inner.add(x, y);
    }
    fn sigmoid(&self, x: B::Tensor) -> B::Tensor {
        self.inner.sigmoid(x)
    }
    fn silu_mul(&self, gate: B::Tensor, up: &B::Tensor, limit: f32) -> B::Tensor {
        self.inner.silu_mul(gate, up, limit)
    }
    fn gate_heads(&self, x: B::Tensor, gate: &B::Tensor) -> B::Tensor {
        self.inner.gate_heads(x, gate)
    }
    fn rms_norm(&self, x: &B::Tensor, w: &Self::Weight, eps: f32) -> B::Tensor {
        self.inner.rms_norm(x, &w.whole, eps)
    }
    fn add_rms_norm(&self, x: &mut B::Tensor, y: &B::Tensor, w: &Self::Weight, eps: f32) -> B::Tensor {
        self.inner.add_rms_norm(x, y, &w.whole, eps)
    }
    fn l2_norm(&self, x: B::Tensor, head_dim: usize, eps: f32, scale: f32) -> B::Tensor {
        self.inner.l2_norm(x, head_dim, eps, scale)
    }
    fn gated_rms_norm(&self, x: &B::Tensor, w: &Self::Weight, gate: &B::Tensor, eps: f32) -> B::Tensor {
        self.inner.gated_rms_norm(x, &w.whole, gate, eps)
    }
    fn matmul(&self, w: &Self::Weight, x: &B::Tensor) -> B::Tensor {
        self.observe(&[w], x);
        if w.is_output { self.inner.tensor(0, 0, &[]) } else { self.inner.matmul(&w.whole, x) }
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
        self.observe(&w, x);
        self.inner.matmuls(w.map(|w| &w.whole), x)
    }
    fn matmul_each<const N: usize>(&self, w: [&Self::Weight; N], x: [&B::Tensor; N]) -> [B::Tensor; N] {
        w.iter().zip(x).for_each(|(w, x)| self.observe(&[w], x));
        self.inner.matmul_each(w.map(|w| &w.whole), x)
    }
    fn matmul_heads(&self, w: &Self::Weight, x: &B::Tensor) -> B::Tensor {
        self.observe_heads(w, x);
        self.inner.matmul_heads(&w.whole, x)
    }
    fn gated_ffn(&self, w: GatedMlp<'_, Self::Weight>, x: &B::Tensor) -> B::Tensor {
        composed::gated_ffn(self, w, x)
    }
    fn short_conv(&self, spans: &mut [Span<'_, B::Tensor>], x: &B::Tensor, taps: &Self::Weight) -> B::Tensor {
        self.inner.short_conv(spans, x, &taps.whole)
    }
    fn advance_conv(&self, spans: &mut [Span<'_, B::Tensor>], x: &B::Tensor, taps: &Self::Weight) {
        self.inner.advance_conv(spans, x, &taps.whole);
    }
    fn kda_decay(&self, f: B::Tensor, a: &Self::Weight, dt_bias: &Self::Weight, decay: Decay) -> B::Tensor {
        self.inner.kda_decay(f, &a.whole, &dt_bias.whole, decay)
    }
    fn delta_rule(&self, spans: &mut [Span<'_, B::Tensor>], x: DeltaRule<'_, B::Tensor>) -> B::Tensor {
        self.inner.delta_rule(spans, x)
    }
    fn delta_rule_draft(&self, spans: &mut [Span<'_, B::Tensor>], x: DeltaRule<'_, B::Tensor>) -> B::Tensor {
        self.inner.delta_rule_draft(spans, x)
    }
    fn delta_attention(
        &self,
        spans: &mut [Span<'_, DeltaState<B::Tensor>>],
        x: DeltaProjections<B::Tensor>,
        w: &DeltaWeights<'_, Self::Weight>,
    ) -> B::Tensor {
        let w = DeltaWeights {
            taps: w.taps.map(|taps| &taps.whole),
            a: &w.a.whole,
            dt_bias: &w.dt_bias.whole,
            decay: w.decay,
            norm: &w.norm.whole,
            head_dim: w.head_dim,
            scale: w.scale,
            l2_eps: w.l2_eps,
            norm_eps: w.norm_eps,
        };
        self.inner.delta_attention(spans, x, &w)
    }
    fn rotate(&self, spans: &mut [Span<'_, B::Cache>], q: &mut B::Tensor, kv: &mut B::Tensor, rope: Rope) {
        self.inner.rotate(spans, q, kv, rope);
    }
    fn append(&self, spans: &mut [Span<'_, B::Cache>], x: &B::Tensor) {
        self.inner.append(spans, x);
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
        self.inner.latent_attention(spans, q, value_dim, scale)
    }
    fn materialized_attention(
        &self,
        spans: &mut [Span<'_, B::Cache>],
        q: &B::Tensor,
        w: KvUpProjection<'_, Self::Weight>,
        scale: f32,
    ) -> B::Tensor {
        composed::absorbed_attention(self, spans, q, w, scale)
    }
    fn top_k(&self, x: &B::Tensor, n: usize) -> Vec<TopK> {
        self.inner.top_k(x, n)
    }
    fn route(&self, logits: &B::Tensor, bias: &Self::Weight, how: Routing) -> B::Routed {
        self.inner.route(logits, &bias.whole, how)
    }
    fn matmul_route(
        &self,
        router: &Self::Weight,
        x: &B::Tensor,
        bias: &Self::Weight,
        how: Routing,
    ) -> B::Routed {
        self.observe(&[router], x);
        self.inner.matmul_route(&router.whole, x, &bias.whole, how)
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
        let (chosen, weights) = self.inner.routed(routed);
        let tokens = self.tokens.load(Ordering::Relaxed);
        let top_k = (chosen.len() / tokens.max(1)).max(1);
        let [gate, up, down] = whole(&w);
        let dim = gate.cols;
        let mut pairs = vec![Vec::new(); gate.experts.len()];
        chosen.iter().enumerate().for_each(|(pair, expert)| pairs[*expert as usize].push(pair));
        let mut y = vec![0.0f32; tokens * dim];
        for (e, pairs) in pairs.iter().enumerate().filter(|(_, pairs)| !pairs.is_empty()) {
            let rows: Vec<usize> = pairs.iter().map(|pair| pair / top_k).collect();
            let x = self.inner.gather(x, &rows);
            self.observe_expert(&[gate, up], e, &x);
            let [g, u] = self.inner.matmuls([&gate.experts[e], &up.experts[e]], &x);
            let hidden = self.inner.silu_mul(g, &u, w.limit);
            self.observe_expert(&[down], e, &hidden);
            let out = self.inner.matmul(&down.experts[e], &hidden);
            for ((row, pair), out) in rows.iter().zip(pairs).zip(out.as_ref().chunks_exact(dim)) {
                let y = &mut y[row * dim..][..dim];
                y.iter_mut().zip(out).for_each(|(y, out)| *y += weights[*pair] * out);
            }
        }
        self.inner.tensor(tokens, dim, &y)
    }
}
