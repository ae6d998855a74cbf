//! Wraps the `reference` backend and rounds activations as the CPU backend does: in products with quantized weights, and
//! in the scores over a Q8_0 cache. It shares no arithmetic with the CPU backend.

use kernels::backend::{
    Backend, CacheFormat, Decay, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, Error,
    ExpertCacheStats, GatedMlp, KvUpProjection, Limits, NumericsVersion, QuantTensor, Residual, Rope,
    Routing, Span, StatePart, TopK,
};
use kernels::composed;
use kernels::quant::{Activation, Format};
use kernels::reference::{Cache, Matrix, Reference, Routed};
use std::ops::Range;

/// The backend for models whose latent caches have this format.
pub struct Rounded(pub CacheFormat);

/// Rounds each block to d q_i: d = max |x| / 127, q_i = x_i / d to the nearest integer, ties to even.
fn round(form: Activation, x: &mut [f32]) {
    let block = match form {
        Activation::F32 => return,
        Activation::Q8x32 => 32,
        Activation::Q8x256 => 256,
    };
    assert!(x.len().is_multiple_of(block), "{} values in blocks of {block}", x.len());
    for x in x.chunks_exact_mut(block) {
        let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
        let (d, inverse) = (most / 127.0, 127.0 / most);
        for x in x {
            *x = if inverse.is_finite() { d * (*x * inverse).round_ties_even() } else { 0.0 };
        }
    }
}

/// The number of columns and the values of a matrix with one row or more.
fn values(x: &Matrix) -> (usize, Vec<f32>) {
    (Reference.read(&Reference.gather(x, &[0])).len(), Reference.read(x))
}

/// A matrix with the first `n` of each `width` columns rounded.
fn rounded(form: Activation, x: &Matrix, width: usize, n: usize) -> Matrix {
    let (cols, mut all) = values(x);
    all.chunks_exact_mut(width).for_each(|head| round(form, &mut head[..n]));
    Reference.tensor(all.len() / cols, cols, &all)
}

/// Matrix `m` of a stack.
fn one(w: &QuantTensor, m: usize) -> QuantTensor {
    let bytes = w.bytes.len() / w.count;
    QuantTensor { count: 1, bytes: w.bytes.slice(m * bytes..(m + 1) * bytes), ..w.clone() }
}

impl Backend for Rounded {
    const NUMERICS_VERSION: NumericsVersion = NumericsVersion { family: "rounded reference", revision: 1 };
    const LIMITS: Limits = Limits::NONE;
    type Tensor = Matrix;
    type Weight = QuantTensor;
    type Cache = Cache;
    type Routed = Routed;

    fn default_cache_format(latent: usize, pe: usize) -> CacheFormat {
        Reference::default_cache_format(latent, pe)
    }

    fn matmul(&self, w: &QuantTensor, x: &Matrix) -> Matrix {
        Reference.matmul(w, &rounded(w.format.activation(), x, w.cols, w.cols))
    }

    fn matmul_heads(&self, w: &QuantTensor, x: &Matrix) -> Matrix {
        let width = values(x).0 / w.count;
        Reference.matmul_heads(w, &rounded(w.format.activation(), x, width, w.cols))
    }

    fn append_norm(&self, spans: &mut [Span<'_, Cache>], x: &Matrix, w: &QuantTensor, eps: f32) {
        composed::append_norm(self, spans, x, w, eps);
    }
    fn latent_attention(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Matrix,
        value_dim: usize,
        scale: f32,
    ) -> Matrix {
        let width = spans.first().map_or(1, |span| Reference.cache_row_bytes(span.state) / size_of::<f32>());
        let whole = self.0 == CacheFormat::Q8_0 && width.is_multiple_of(32);
        let form = if whole { Format::Q8_0.activation() } else { Activation::F32 };
        Reference.latent_attention(spans, &rounded(form, q, width, width), value_dim, scale)
    }

    fn experts(&self, w: GatedMlp<'_, QuantTensor>, x: &Matrix, routed: &Routed) -> Matrix {
        let (experts, weights) = self.routed(routed);
        let tokens = self.read(x).len() / w.gate.cols;
        let top_k = experts.len() / tokens;
        let mut y = vec![0.0; tokens * w.down.rows];
        for (i, (e, weight)) in experts.iter().zip(weights).enumerate() {
            let [gate, up, down] = [w.gate, w.up, w.down].map(|w| one(w, *e as usize));
            let own = GatedMlp { gate: &gate, up: &up, down: &down, limit: w.limit };
            let out = self.read(&self.gated_ffn(own, &self.gather(x, &[i / top_k])));
            let y = &mut y[i / top_k * w.down.rows..][..w.down.rows];
            y.iter_mut().zip(out).for_each(|(y, out)| *y += weight * out);
        }
        self.tensor(tokens, w.down.rows, &y)
    }

    // ---- composed of the ops above and below -----------------------------------------------------------

    fn add_rms_norm(&self, x: &mut Matrix, y: &Matrix, w: &QuantTensor, eps: f32) -> Matrix {
        composed::add_rms_norm(self, x, y, w, eps)
    }
    fn matmul_add_norm(&self, w: &QuantTensor, x: &Matrix, to: Residual<'_, Matrix, QuantTensor>) -> Matrix {
        composed::matmul_add_norm(self, w, x, to)
    }
    fn gated_ffn_add_norm(
        &self,
        w: GatedMlp<'_, QuantTensor>,
        x: &Matrix,
        to: Residual<'_, Matrix, QuantTensor>,
    ) -> Matrix {
        composed::gated_ffn_add_norm(self, w, x, to)
    }
    fn mixture_add_norm(
        &self,
        w: GatedMlp<'_, QuantTensor>,
        shared: Option<GatedMlp<'_, QuantTensor>>,
        x: &Matrix,
        routed: &Routed,
        to: Residual<'_, Matrix, QuantTensor>,
    ) -> Matrix {
        composed::mixture_add_norm(self, w, shared, x, routed, to)
    }
    fn matmuls<const N: usize>(&self, w: [&QuantTensor; N], x: &Matrix) -> [Matrix; N] {
        composed::matmuls(self, w, x)
    }
    fn matmul_each<const N: usize>(&self, w: [&QuantTensor; N], x: [&Matrix; N]) -> [Matrix; N] {
        composed::matmul_each(self, w, x)
    }
    fn gated_ffn(&self, w: GatedMlp<'_, QuantTensor>, x: &Matrix) -> Matrix {
        composed::gated_ffn(self, w, x)
    }
    fn delta_attention(
        &self,
        spans: &mut [Span<'_, DeltaState<Matrix>>],
        x: DeltaProjections<Matrix>,
        w: &DeltaWeights<'_, QuantTensor>,
    ) -> Matrix {
        composed::delta_attention(self, spans, x, w)
    }
    fn matmul_route(&self, router: &QuantTensor, x: &Matrix, bias: &QuantTensor, how: Routing) -> Routed {
        composed::matmul_route(self, router, x, bias, how)
    }
    fn mixture(
        &self,
        w: GatedMlp<'_, QuantTensor>,
        shared: Option<GatedMlp<'_, QuantTensor>>,
        x: &Matrix,
        routed: &Routed,
    ) -> Matrix {
        composed::mixture(self, w, shared, x, routed)
    }

    // ---- forwarded to the reference --------------------------------------------------------------------

    fn describe(&self) -> String {
        Self::NUMERICS_VERSION.family.to_owned()
    }
    fn weight(&self, stored: QuantTensor) -> Result<QuantTensor, Error> {
        Reference.weight(stored)
    }
    fn tensor(&self, rows: usize, cols: usize, values: &[f32]) -> Matrix {
        Reference.tensor(rows, cols, values)
    }
    fn read(&self, x: &Matrix) -> Vec<f32> {
        Reference.read(x)
    }
    fn copy(&self, x: &Matrix) -> Matrix {
        Reference.copy(x)
    }
    fn cache(&self, format: CacheFormat, width: usize) -> Cache {
        Reference.cache(format, width)
    }
    fn cache_len(&self, cache: &Cache) -> usize {
        Reference.cache_len(cache)
    }
    fn cache_truncate(&self, cache: &mut Cache, len: usize) {
        Reference.cache_truncate(cache, len);
    }
    fn cache_read(&self, cache: &Cache, range: Range<usize>) -> Vec<f32> {
        Reference.cache_read(cache, range)
    }
    fn cache_row_bytes(&self, cache: &Cache) -> usize {
        Reference.cache_row_bytes(cache)
    }
    fn cache_export(&self, cache: &Cache, range: Range<usize>, out: &mut Vec<u8>) {
        Reference.cache_export(cache, range, out)
    }
    fn cache_import(&self, cache: &mut Cache, rows: &[u8]) {
        Reference.cache_import(cache, rows)
    }
    fn routed(&self, routed: &Routed) -> (Vec<u32>, Vec<f32>) {
        Reference.routed(routed)
    }
    fn read_ahead(&self) {}
    fn expert_cache_stats(&self) -> Option<ExpertCacheStats> {
        None
    }
    fn wait(&self) {}
    fn replay(&self, _: &QuantTensor, _: &[u32], _: &mut [StatePart<'_, Rounded>]) -> Option<Matrix> {
        None
    }
    fn capture(&self, _: &[u32], step: impl FnOnce() -> Matrix) -> Matrix {
        step()
    }
    fn embed(&self, table: &QuantTensor, ids: &[u32]) -> Matrix {
        Reference.embed(table, ids)
    }
    fn gather(&self, x: &Matrix, rows: &[usize]) -> Matrix {
        Reference.gather(x, rows)
    }
    fn concat(&self, parts: &[&Matrix]) -> Matrix {
        Reference.concat(parts)
    }
    fn add(&self, x: &mut Matrix, y: &Matrix) {
        Reference.add(x, y)
    }
    fn sigmoid(&self, x: Matrix) -> Matrix {
        Reference.sigmoid(x)
    }
    fn silu_mul(&self, gate: Matrix, up: &Matrix, limit: f32) -> Matrix {
        Reference.silu_mul(gate, up, limit)
    }
    fn gate_heads(&self, x: Matrix, gate: &Matrix) -> Matrix {
        Reference.gate_heads(x, gate)
    }
    fn rms_norm(&self, x: &Matrix, w: &QuantTensor, eps: f32) -> Matrix {
        Reference.rms_norm(x, w, eps)
    }
    fn l2_norm(&self, x: Matrix, head_dim: usize, eps: f32, scale: f32) -> Matrix {
        Reference.l2_norm(x, head_dim, eps, scale)
    }
    fn gated_rms_norm(&self, x: &Matrix, w: &QuantTensor, gate: &Matrix, eps: f32) -> Matrix {
        Reference.gated_rms_norm(x, w, gate, eps)
    }
    fn short_conv(&self, spans: &mut [Span<'_, Matrix>], x: &Matrix, taps: &QuantTensor) -> Matrix {
        Reference.short_conv(spans, x, taps)
    }
    fn kda_decay(&self, f: Matrix, a: &QuantTensor, dt_bias: &QuantTensor, decay: Decay) -> Matrix {
        Reference.kda_decay(f, a, dt_bias, decay)
    }
    fn rotate(&self, spans: &mut [Span<'_, Cache>], q: &mut Matrix, kv: &mut Matrix, rope: Rope) {
        Reference.rotate(spans, q, kv, rope);
    }
    fn delta_rule(&self, spans: &mut [Span<'_, Matrix>], x: DeltaRule<'_, Matrix>) -> Matrix {
        Reference.delta_rule(spans, x)
    }
    fn advance_conv(&self, spans: &mut [Span<'_, Matrix>], x: &Matrix, taps: &QuantTensor) {
        composed::advance_conv(self, spans, x, taps);
    }
    fn delta_rule_draft(&self, spans: &mut [Span<'_, Matrix>], x: DeltaRule<'_, Matrix>) -> Matrix {
        composed::delta_rule_draft(self, spans, x)
    }
    fn append(&self, spans: &mut [Span<'_, Cache>], x: &Matrix) {
        Reference.append(spans, x)
    }
    fn materialized_attention(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Matrix,
        w: KvUpProjection<'_, QuantTensor>,
        scale: f32,
    ) -> Matrix {
        Reference.materialized_attention(spans, q, w, scale)
    }
    fn route(&self, logits: &Matrix, bias: &QuantTensor, how: Routing) -> Routed {
        Reference.route(logits, bias, how)
    }
    fn top_k(&self, x: &Matrix, n: usize) -> Vec<TopK> {
        Reference.top_k(x, n)
    }
}
