//! Implements every op as plain loops in the paper's notation: the oracle for tests of the other backends.
//!
//! Weights are dequantized on use, sums run in f64 on one thread. It is never optimized and shares no arithmetic with
//! the other backends except the block formats. Next: `cpu`.

mod math;

use crate::backend::{
    Backend, CacheFormat, Decay, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, Error,
    ExpertCacheStats, GatedMlp, KvUpProjection, Limits, NumericsVersion, QuantTensor, Residual, Rope,
    Routing, Span, StatePart, TopK,
};
use crate::composed;
use math::{delta_rule_step, dot, limited, rotate, sigmoid, silu, softplus};
use std::ops::Range;

/// The oracle backend, which has no state of its own: tensors and weights hold everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// f32 `[rows, cols]` on the heap.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

/// Cache rows, rounded to the cache's format.
#[derive(Clone, Debug)]
pub struct Cache {
    format: CacheFormat,
    width: usize,
    values: Vec<f32>,
}

/// Chosen experts and weights, `[rows * top_k]` each, best first.
#[derive(Clone, Debug)]
pub struct Routed {
    top_k: usize,
    experts: Vec<u32>,
    weights: Vec<f32>,
}

impl Matrix {
    fn zeros(rows: usize, cols: usize) -> Matrix {
        Matrix { rows, cols, values: vec![0.0; rows * cols] }
    }

    fn row(&self, r: usize) -> &[f32] {
        &self.values[r * self.cols..][..self.cols]
    }

    fn row_mut(&mut self, r: usize) -> &mut [f32] {
        &mut self.values[r * self.cols..][..self.cols]
    }

    fn map(mut self, f: impl Fn(f64) -> f64) -> Matrix {
        self.values.iter_mut().for_each(|v| *v = f(*v as f64) as f32);
        self
    }
}

/// Row `r` of matrix `m` of a stack, as f32.
fn weight_row(w: &QuantTensor, m: usize, r: usize) -> Vec<f32> {
    assert!(m < w.count && r < w.rows, "row {r} of matrix {m} in a weight of {} x {} rows", w.count, w.rows);
    let bytes = w.format.row_bytes(w.cols as u64).expect("whole blocks") as usize;
    let mut out = vec![0.0; w.cols];
    w.format.dequantize_row(&w.bytes[(m * w.rows + r) * bytes..][..bytes], &mut out);
    out
}

/// W_down (SiLU(W_gate x) * W_up x) of matrix `e` of each stack.
fn ffn(w: &GatedMlp<'_, QuantTensor>, e: usize, x: &[f32]) -> Vec<f64> {
    let hidden: Vec<f32> = (0..w.gate.rows)
        .map(|i| limited(dot(&weight_row(w.gate, e, i), x), dot(&weight_row(w.up, e, i), x), w.limit) as f32)
        .collect();
    (0..w.down.rows).map(|i| dot(&weight_row(w.down, e, i), &hidden)).collect()
}

/// A row rounded to the cache's format.
fn rounded(format: CacheFormat, row: &[f32]) -> Vec<f32> {
    match format {
        CacheFormat::F32 => row.to_vec(),
        CacheFormat::F16 => row.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect(),
        CacheFormat::Q8_0 => row.chunks(32).flat_map(rounded_q8_0).collect(),
    }
}

/// d = max|x| / 127 as f16, q = round(x / d).
fn rounded_q8_0(block: &[f32]) -> Vec<f32> {
    let d = block.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let stored = half::f16::from_f32(d).to_f32();
    block.iter().map(|x| (x * inverse).round() * stored).collect()
}

/// The experts that stay eligible when only the best groups do.
fn eligible(biased: &[f32], how: &Routing) -> Vec<usize> {
    let size = biased.len() / how.groups;
    let two_best = |group: usize| {
        let mut scores = biased[group * size..][..size].to_vec();
        scores.sort_by(|a, b| rank(*b).total_cmp(&rank(*a)));
        scores.iter().take(2).map(|&s| rank(s)).sum::<f32>()
    };
    let mut groups: Vec<usize> = (0..how.groups).collect();
    groups.sort_by(|&a, &b| two_best(b).total_cmp(&two_best(a))); // stable: the lowest index first among equals
    let mut experts: Vec<usize> =
        groups[..how.top_groups].iter().flat_map(|group| group * size..(group + 1) * size).collect();
    experts.sort();
    experts
}

/// NaN ranks below all numbers, and -0 equals 0.
fn rank(score: f32) -> f32 {
    if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 }
}

impl Backend for Reference {
    const NUMERICS_VERSION: NumericsVersion = NumericsVersion { family: "reference", revision: 1 };
    const LIMITS: Limits = Limits::NONE;
    type Tensor = Matrix;
    type Weight = QuantTensor;
    type Cache = Cache;
    type Routed = Routed;

    fn default_cache_format(_: usize, _: usize) -> CacheFormat {
        CacheFormat::F16
    }

    fn describe(&self) -> String {
        "reference loops, 1 thread".to_string()
    }

    fn weight(&self, stored: QuantTensor) -> Result<QuantTensor, Error> {
        let row = stored.format.row_bytes(stored.cols as u64).expect("rows of whole blocks") as usize;
        assert_eq!(stored.bytes.len(), stored.count * stored.rows * row, "bytes of a weight");
        Ok(stored)
    }

    fn tensor(&self, rows: usize, cols: usize, values: &[f32]) -> Matrix {
        assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] tensor");
        Matrix { rows, cols, values: values.to_vec() }
    }

    fn read(&self, x: &Matrix) -> Vec<f32> {
        x.values.clone()
    }

    fn copy(&self, x: &Matrix) -> Matrix {
        x.clone()
    }

    fn cache(&self, format: CacheFormat, width: usize) -> Cache {
        Cache { format, width, values: Vec::new() }
    }

    fn cache_len(&self, cache: &Cache) -> usize {
        cache.values.len() / cache.width
    }

    fn cache_read(&self, cache: &Cache, range: Range<usize>) -> Vec<f32> {
        cache.values[range.start * cache.width..range.end * cache.width].to_vec()
    }

    fn cache_row_bytes(&self, cache: &Cache) -> usize {
        cache.width * size_of::<f32>()
    }

    fn cache_export(&self, cache: &Cache, range: Range<usize>, out: &mut Vec<u8>) {
        let rows = &cache.values[range.start * cache.width..range.end * cache.width];
        out.extend(rows.iter().flat_map(|x| x.to_le_bytes()));
    }

    fn cache_import(&self, cache: &mut Cache, rows: &[u8]) {
        let (values, rest) = rows.as_chunks();
        assert!(rest.is_empty() && values.len().is_multiple_of(cache.width), "{} bytes of rows", rows.len());
        cache.values.extend(values.iter().map(|x| f32::from_le_bytes(*x)));
    }

    fn cache_truncate(&self, cache: &mut Cache, len: usize) {
        assert!(len <= self.cache_len(cache), "{len} rows of a cache of {}", self.cache_len(cache));
        cache.values.truncate(len * cache.width);
    }

    fn routed(&self, routed: &Routed) -> (Vec<u32>, Vec<f32>) {
        (routed.experts.clone(), routed.weights.clone())
    }

    fn read_ahead(&self) {}

    fn expert_cache_stats(&self) -> Option<ExpertCacheStats> {
        None
    }

    fn wait(&self) {}

    fn replay(&self, _: &QuantTensor, _: &[u32], _: &mut [StatePart<'_, Reference>]) -> Option<Matrix> {
        None
    }

    fn capture(&self, _: &[u32], step: impl FnOnce() -> Matrix) -> Matrix {
        step()
    }

    fn embed(&self, table: &QuantTensor, ids: &[u32]) -> Matrix {
        let values = ids.iter().flat_map(|&id| weight_row(table, 0, id as usize)).collect();
        Matrix { rows: ids.len(), cols: table.cols, values }
    }

    fn gather(&self, x: &Matrix, rows: &[usize]) -> Matrix {
        let values = rows.iter().flat_map(|&r| x.row(r).to_vec()).collect();
        Matrix { rows: rows.len(), cols: x.cols, values }
    }

    fn concat(&self, parts: &[&Matrix]) -> Matrix {
        let cols = parts.first().map_or(0, |x| x.cols);
        assert!(parts.iter().all(|x| x.cols == cols), "widths of tensors to concatenate");
        let values: Vec<f32> = parts.iter().flat_map(|x| &x.values).copied().collect();
        Matrix { rows: parts.iter().map(|x| x.rows).sum(), cols, values }
    }

    fn add(&self, x: &mut Matrix, y: &Matrix) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "shapes of a sum");
        x.values.iter_mut().zip(&y.values).for_each(|(x, y)| *x += y);
    }

    fn sigmoid(&self, x: Matrix) -> Matrix {
        x.map(sigmoid)
    }

    fn silu_mul(&self, gate: Matrix, up: &Matrix, limit: f32) -> Matrix {
        assert_eq!((gate.rows, gate.cols), (up.rows, up.cols), "shapes of gate and up");
        let mut y = gate;
        let both = y.values.iter_mut().zip(&up.values);
        both.for_each(|(g, u)| *g = limited(*g as f64, *u as f64, limit) as f32);
        y
    }

    fn gate_heads(&self, x: Matrix, gate: &Matrix) -> Matrix {
        assert!(x.rows == gate.rows && x.cols.is_multiple_of(gate.cols), "shapes of heads and their gates");
        let dim = x.cols / gate.cols;
        let mut y = x;
        let heads = y.values.chunks_exact_mut(dim).zip(&gate.values);
        heads.for_each(|(y, g)| y.iter_mut().for_each(|y| *y = (*y as f64 * sigmoid(*g as f64)) as f32));
        y
    }

    fn rms_norm(&self, x: &Matrix, w: &QuantTensor, eps: f32) -> Matrix {
        let w = weight_row(w, 0, 0);
        assert!(w.len() <= x.cols, "a norm over {} of {} columns", w.len(), x.cols);
        let mut y = x.clone();
        for t in 0..x.rows {
            rms_norm(&mut y.row_mut(t)[..w.len()], &w, eps);
        }
        y
    }

    fn add_rms_norm(&self, x: &mut Matrix, y: &Matrix, w: &QuantTensor, eps: f32) -> Matrix {
        composed::add_rms_norm(self, x, y, w, eps)
    }

    fn l2_norm(&self, x: Matrix, head_dim: usize, eps: f32, scale: f32) -> Matrix {
        assert_eq!(x.cols % head_dim, 0, "{} columns in heads of {head_dim}", x.cols);
        let mut y = x;
        for head in y.values.chunks_exact_mut(head_dim) {
            let root = (dot(head, head) + eps as f64).sqrt();
            head.iter_mut().for_each(|x| *x = (*x as f64 / root * scale as f64) as f32);
        }
        y
    }

    fn gated_rms_norm(&self, x: &Matrix, w: &QuantTensor, gate: &Matrix, eps: f32) -> Matrix {
        let w = weight_row(w, 0, 0);
        assert_eq!((x.rows, x.cols), (gate.rows, gate.cols), "shapes of x and its gate");
        assert_eq!(x.cols % w.len(), 0, "{} columns in heads of {}", x.cols, w.len());
        let mut y = x.clone();
        y.values.chunks_exact_mut(w.len()).for_each(|head| rms_norm(head, &w, eps));
        y.values.iter_mut().zip(&gate.values).for_each(|(y, g)| *y = (*y as f64 * sigmoid(*g as f64)) as f32);
        y
    }

    fn matmul(&self, w: &QuantTensor, x: &Matrix) -> Matrix {
        assert_eq!((w.count, w.cols), (1, x.cols), "a product: matrices, columns");
        let mut y = Matrix::zeros(x.rows, w.rows);
        for o in 0..w.rows {
            let row = weight_row(w, 0, o);
            for t in 0..x.rows {
                y.row_mut(t)[o] = dot(&row, x.row(t)) as f32;
            }
        }
        y
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

    fn matmul_heads(&self, w: &QuantTensor, x: &Matrix) -> Matrix {
        assert_eq!(x.cols % w.count, 0, "{} columns in {} heads", x.cols, w.count);
        let width = x.cols / w.count;
        assert!(w.cols <= width, "heads of {width} columns, matrices of {}", w.cols);
        let mut values = Vec::new();
        for head in x.values.chunks_exact(width).enumerate().map(|(i, head)| (i % w.count, head)) {
            let (h, x) = head;
            values.extend((0..w.rows).map(|o| dot(&weight_row(w, h, o), &x[..w.cols]) as f32));
            values.extend_from_slice(&x[w.cols..]);
        }
        Matrix { rows: x.rows, cols: w.count * (w.rows + width - w.cols), values }
    }

    fn gated_ffn(&self, w: GatedMlp<'_, QuantTensor>, x: &Matrix) -> Matrix {
        composed::gated_ffn(self, w, x)
    }

    fn short_conv(&self, spans: &mut [Span<'_, Matrix>], x: &Matrix, taps: &QuantTensor) -> Matrix {
        let n = taps.cols;
        assert_eq!((taps.count, taps.rows), (1, x.cols), "taps: matrices, channels");
        let mut y = Matrix::zeros(x.rows, x.cols);
        for span in spans {
            assert_eq!((span.state.rows, span.state.cols), (n - 1, x.cols), "shape of a convolution's state");
            let mut inputs = span.state.values.clone();
            span.rows.clone().for_each(|t| inputs.extend_from_slice(x.row(t)));
            for (i, t) in span.rows.clone().enumerate() {
                for c in 0..x.cols {
                    let window: Vec<f32> = (0..n).map(|j| inputs[(i + j) * x.cols + c]).collect();
                    y.row_mut(t)[c] = silu(dot(&weight_row(taps, 0, c), &window)) as f32;
                }
            }
            span.state.values = inputs.split_off(span.rows.len() * x.cols);
        }
        y
    }

    fn kda_decay(&self, f: Matrix, a: &QuantTensor, dt_bias: &QuantTensor, decay: Decay) -> Matrix {
        let (a, bias) = (weight_row(a, 0, 0), weight_row(dt_bias, 0, 0));
        assert_eq!((f.cols, f.cols % a.len()), (bias.len(), 0), "channels, and channels in heads");
        let dim = f.cols / a.len();
        let mut g = f;
        for (i, f) in g.values.iter_mut().enumerate() {
            let c = i % bias.len();
            let (a, biased) = (a[c / dim] as f64, *f as f64 + bias[c] as f64);
            *f = match decay {
                Decay::Softplus => a * softplus(biased),
                Decay::Bounded(bound) => bound as f64 * sigmoid(a * biased),
            } as f32;
        }
        g
    }

    fn delta_rule(&self, spans: &mut [Span<'_, Matrix>], x: DeltaRule<'_, Matrix>) -> Matrix {
        let heads = x.beta.cols;
        let (dk, dv) = (x.q.cols / heads, x.v.cols / heads);
        assert_eq!(
            (x.q.cols, x.k.cols, x.g.cols),
            (heads * dk, heads * dk, heads * dk),
            "columns of q, k, g"
        );
        assert_eq!(x.v.cols, heads * dv, "columns of v");
        let mut o = Matrix::zeros(x.v.rows, x.v.cols);
        for span in spans {
            assert_eq!((span.state.rows, span.state.cols), (heads * dk, dv), "shape of S");
            for (t, h) in span.rows.clone().flat_map(|t| (0..heads).map(move |h| (t, h))) {
                let [q, k, g] = [x.q, x.k, x.g].map(|m| &m.row(t)[h * dk..][..dk]);
                let s = &mut span.state.values[h * dk * dv..][..dk * dv];
                let v = &x.v.row(t)[h * dv..][..dv];
                let out = delta_rule_step(s, q, k, v, g, x.beta.row(t)[h]);
                o.row_mut(t)[h * dv..][..dv].copy_from_slice(&out);
            }
        }
        o
    }

    fn advance_conv(&self, spans: &mut [Span<'_, Matrix>], x: &Matrix, taps: &QuantTensor) {
        composed::advance_conv(self, spans, x, taps);
    }

    fn delta_rule_draft(&self, spans: &mut [Span<'_, Matrix>], x: DeltaRule<'_, Matrix>) -> Matrix {
        composed::delta_rule_draft(self, spans, x)
    }

    fn delta_attention(
        &self,
        spans: &mut [Span<'_, DeltaState<Matrix>>],
        x: DeltaProjections<Matrix>,
        w: &DeltaWeights<'_, QuantTensor>,
    ) -> Matrix {
        composed::delta_attention(self, spans, x, w)
    }

    fn rotate(&self, spans: &mut [Span<'_, Cache>], q: &mut Matrix, kv: &mut Matrix, rope: Rope) {
        for span in spans {
            for (i, t) in span.rows.clone().enumerate() {
                let position = (self.cache_len(span.state) + i) as f64;
                let width = q.cols / rope.heads;
                q.row_mut(t).chunks_exact_mut(width).for_each(|head| rotate(head, position, rope));
                rotate(kv.row_mut(t), position, rope);
            }
        }
    }

    fn append(&self, spans: &mut [Span<'_, Cache>], x: &Matrix) {
        for span in spans {
            assert_eq!(span.state.width, x.cols, "width of a cache and of its new rows");
            for t in span.rows.clone() {
                let row = rounded(span.state.format, x.row(t));
                span.state.values.extend(row);
            }
        }
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
        let width = spans.first().map_or(1, |span| span.state.width);
        let heads = q.cols / width;
        assert_eq!(q.cols, heads * width, "{} columns in heads of {width}", q.cols);
        let mut o = Matrix::zeros(q.rows, heads * value_dim);
        for span in spans {
            assert_eq!(span.state.width, width, "width of the caches of one batch");
            let before = self.cache_len(span.state) - span.rows.len();
            for (i, t) in span.rows.clone().enumerate() {
                let seen = &span.state.values[..(before + i + 1) * width];
                for h in 0..heads {
                    let q = &q.row(t)[h * width..][..width];
                    attend(seen, q, scale as f64, &mut o.row_mut(t)[h * value_dim..][..value_dim]);
                }
            }
        }
        o
    }

    fn materialized_attention(
        &self,
        spans: &mut [Span<'_, Cache>],
        q: &Matrix,
        w: KvUpProjection<'_, QuantTensor>,
        scale: f32,
    ) -> Matrix {
        let (heads, nope, dim) = (w.k.count, w.k.cols, w.v.rows);
        let width = q.cols / heads;
        let mut o = Matrix::zeros(q.rows, heads * dim);
        for span in spans {
            let cache = &span.state;
            let before = self.cache_len(cache) - span.rows.len();
            for h in 0..heads {
                // Per cache row [c | pe] the head's [W_v c | W_k^T c | pe]: values first.
                let k: Vec<Vec<f32>> = (0..w.latent).map(|l| weight_row(w.k, h, l)).collect();
                let v: Vec<Vec<f32>> = (0..dim).map(|i| weight_row(w.v, h, i)).collect();
                let mut rows = Vec::new();
                for row in cache.values.chunks_exact(cache.width) {
                    let (c, pe) = row.split_at(w.latent);
                    rows.extend(v.iter().map(|v| dot(v, c) as f32));
                    let key = |j: usize| k.iter().zip(c).map(|(k, c)| k[j] as f64 * *c as f64).sum::<f64>();
                    rows.extend((0..nope).map(|j| key(j) as f32));
                    rows.extend_from_slice(pe);
                }
                for (i, t) in span.rows.clone().enumerate() {
                    let seen = &rows[..(before + i + 1) * (dim + width)];
                    // Zeros at the value columns, which do not contribute to scores.
                    let q = [&vec![0.0; dim], &q.row(t)[h * width..][..width]].concat();
                    attend(seen, &q, scale as f64, &mut o.row_mut(t)[h * dim..][..dim]);
                }
            }
        }
        o
    }

    fn route(&self, logits: &Matrix, bias: &QuantTensor, how: Routing) -> Routed {
        let bias = weight_row(bias, 0, 0);
        assert_eq!(logits.cols, bias.len(), "experts: logits and bias");
        assert_eq!(bias.len() % how.groups, 0, "{} experts in {} groups", bias.len(), how.groups);
        assert!(how.top_groups <= how.groups, "{} of {} groups", how.top_groups, how.groups);
        let mut routed = Routed { top_k: how.top_k, experts: Vec::new(), weights: Vec::new() };
        for t in 0..logits.rows {
            let s: Vec<f32> = logits.row(t).iter().map(|&x| sigmoid(x as f64) as f32).collect();
            let biased: Vec<f32> = s.iter().zip(&bias).map(|(s, b)| s + b).collect();
            let mut chosen = eligible(&biased, &how);
            chosen.sort_by(|&a, &b| rank(biased[b]).total_cmp(&rank(biased[a]))); // stable
            assert!(how.top_k <= chosen.len(), "{} of {} eligible experts", how.top_k, chosen.len());
            chosen.truncate(how.top_k);
            let sum: f64 = chosen.iter().map(|&e| s[e] as f64).sum();
            let factor = how.scale as f64 / if how.normalize { sum + 1e-20 } else { 1.0 };
            routed.weights.extend(chosen.iter().map(|&e| (s[e] as f64 * factor) as f32));
            routed.experts.extend(chosen.iter().map(|&e| e as u32));
        }
        routed
    }

    fn matmul_route(&self, router: &QuantTensor, x: &Matrix, bias: &QuantTensor, how: Routing) -> Routed {
        composed::matmul_route(self, router, x, bias, how)
    }

    fn experts(&self, w: GatedMlp<'_, QuantTensor>, x: &Matrix, routed: &Routed) -> Matrix {
        assert_eq!(routed.experts.len(), x.rows * routed.top_k, "routed tokens");
        let mut y = Matrix::zeros(x.rows, w.down.rows);
        for t in 0..x.rows {
            let mut sum = vec![0.0f64; w.down.rows];
            for slot in t * routed.top_k..(t + 1) * routed.top_k {
                let out = ffn(&w, routed.experts[slot] as usize, x.row(t));
                sum.iter_mut().zip(out).for_each(|(y, o)| *y += routed.weights[slot] as f64 * o);
            }
            y.row_mut(t).iter_mut().zip(sum).for_each(|(y, s)| *y = s as f32);
        }
        y
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

    fn top_k(&self, x: &Matrix, n: usize) -> Vec<TopK> {
        (0..x.rows).map(|r| top_k(x.row(r), n)).collect()
    }
}

/// Selects the `n` largest values of one row by a full sort, as [`Backend::top_k`] defines them.
pub fn top_k(row: &[f32], n: usize) -> TopK {
    let mut top: Vec<(f32, u32)> =
        row.iter().zip(0..).filter(|(v, _)| !v.is_nan()).map(|(v, c)| (*v + 0.0, c)).collect();
    top.sort_by(|a, b| b.0.total_cmp(&a.0)); // stable: the lowest column stays first
    let most = top.first().map_or(0.0, |(v, _)| f64::from(*v));
    let sum: f64 = top.iter().map(|(v, _)| (f64::from(*v) - most).exp()).sum();
    let complete = top.len() < n || row.len() <= n;
    top.truncate(n);
    TopK { top, complete, sum_exp: sum as f32 }
}

/// x <- x / sqrt(mean(x^2) + eps) * w
fn rms_norm(x: &mut [f32], w: &[f32], eps: f32) {
    let root = (dot(x, x) / x.len() as f64 + eps as f64).sqrt();
    x.iter_mut().zip(w).for_each(|(x, w)| *x = (*x as f64 / root * *w as f64) as f32);
}

/// o = sum_s softmax_s(scale * q . c_s) c_s[..o.len()] over all rows of `cache`.
fn attend(cache: &[f32], q: &[f32], scale: f64, o: &mut [f32]) {
    let scores: Vec<f64> = cache.chunks_exact(q.len()).map(|c| scale * dot(q, c)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = p.iter().sum();
    for (j, o) in o.iter_mut().enumerate() {
        let weighted: f64 = cache.chunks_exact(q.len()).zip(&p).map(|(c, p)| p * c[j] as f64).sum();
        *o = (weighted / sum) as f32;
    }
}
