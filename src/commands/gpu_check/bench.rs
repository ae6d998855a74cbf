//! Measures kernels at the real model's shape and compares them with the limits of memory and arithmetic.
//!
//! The memory bandwidth is that of a large copy on the same device; arithmetic is given as achieved throughput. Weights
//! are several times the size of the L2 cache, so that they are read from memory. Launches are captured in a graph.

use crate::kernel_checks::CheckRow;
use crate::kernel_checks::rng::TestRng;
use kernels::backend::{
    Backend, CacheFormat, Decay, DeltaProjections, DeltaRule, DeltaState, DeltaWeights, GatedMlp,
    KvUpProjection, QuantTensor, Routing, Span,
};
use kernels::cuda::{Cache, Cuda, Routed, UPLOAD_MIN_TOKENS, Weight, buffer_and_planes};
use kernels::quant::Format;
use std::time::Instant;

/// The number of copies of a weight, used in turn.
const COPIES: usize = 16;

/// The bytes and operations that a kernel needs at least.
struct Floor {
    bytes: f64,
    operations: f64,
}

fn row(what: &str, seconds: f64, floor: Floor, memory: f64) -> CheckRow {
    let (gb, tflop) = (floor.bytes / seconds / 1e9, floor.operations / seconds / 1e12);
    let share = 100.0 * gb / memory;
    let found = format!("{:.1} us {gb:.0} GB/s {share:.0}% {tflop:.1} Top/s", seconds * 1e6);
    CheckRow { what: what.to_owned(), found, passed: None }
}

fn bytes(w: &QuantTensor) -> f64 {
    w.bytes.len() as f64
}

/// Measures the kernels of decode, then those of prefill.
pub fn all(cuda: &Cuda, seed: u64) -> Vec<CheckRow> {
    let mut n = TestRng::new(seed);
    let memory = cuda.copy_gb_s();
    let rate =
        CheckRow { what: "copy, read and written".into(), found: format!("{memory:.0} GB/s"), passed: None };
    let mut rows = vec![rate];
    rows.extend(launches(cuda, &mut n));
    for (format, shape) in [
        (Format::Q4_K, [1, 4096, 2304]),
        (Format::Q6_K, [1, 4096, 2304]),
        (Format::Q8_0, [1, 4096, 2304]),
        (Format::Q6_K, [1, 163_840, 2304]),
    ] {
        rows.push(product(cuda, &mut n, (format, shape), 1, memory));
    }
    rows.push(low_ranks(cuda, &mut n, memory));
    rows.push(delta_attention(cuda, &mut n, DELTA, memory));
    rows.push(router(cuda, &mut n, Format::F32, &SHAPE, memory));
    rows.push(mixture(cuda, &mut n, &SHAPE, memory));
    for (format, depth) in
        [(CacheFormat::F16, 32_768), (CacheFormat::Q8_0, 32_768), (CacheFormat::F16, 262_144)]
    {
        rows.push(attention(cuda, &mut n, &LATENT.at(format, depth), 1, memory));
    }
    rows.extend(logits(cuda, &mut n));
    for tokens in [8, 64, 512, 4096] {
        rows.push(product(cuda, &mut n, (Format::Q4_K, [1, 4096, 2304]), tokens, memory));
    }
    rows.push(product(cuda, &mut n, (Format::Q6_K, [1, 4096, 2304]), 4096, memory));
    for tokens in [512, 4096] {
        rows.push(experts(cuda, &mut n, &SHAPE, tokens, memory));
    }
    // Sequential up to 63 tokens, chunked from 64 on; the longest uses 6.5 GB.
    for tokens in
        [63, 64, 1024, 8192, 65_536].into_iter().filter(|n| *n < 65_536 || cuda.memory()[0] > 10 << 30)
    {
        rows.push(delta(cuda, &mut n, DELTA, tokens, memory));
    }
    rows.push(attention(cuda, &mut n, &LATENT.at(CacheFormat::F16, 32_768), 256, memory));
    for depth in [4096, 32_768] {
        rows.push(materialized(cuda, &mut n, depth, memory));
    }
    rows.extend(experts_in_ram(cuda, &mut n));
    rows
}

/// Kernels in the chain of [`launches`]: about those of a decoded token.
const CHAIN: usize = 200;

/// The time of a small kernel in a chain of dependent ones, where they may overlap and where they may not: their difference is
/// what programmatic dependent launches save of a launch.
fn launches(cuda: &Cuda, n: &mut TestRng) -> Vec<CheckRow> {
    let mut x = Some(cuda.tensor(1, SHAPE.dim, &n.vec(SHAPE.dim)));
    let mut time = |what: &str, allowed: bool| {
        let possible = cuda.allow_programmatic_launches(allowed);
        let seconds = cuda.time(CHAIN, |_| x = x.take().map(|x| cuda.sigmoid(x)));
        let found = format!("{:.2} us", seconds * 1e6);
        (possible || !allowed).then(|| CheckRow { what: what.to_owned(), found, passed: None })
    };
    let serial = time("a small kernel after the end of the one before", false);
    let overlapping = time("a small kernel, launched programmatically", true);
    serial.into_iter().chain(overlapping).collect()
}

pub(super) fn product(
    cuda: &Cuda,
    n: &mut TestRng,
    (format, shape): (Format, [usize; 3]),
    tokens: usize,
    memory: f64,
) -> CheckRow {
    let stored = n.weight(format, shape);
    let [_, out, cols] = shape;
    let copies = if out > 100_000 || tokens > 64 { 2 } else { COPIES };
    let w: Vec<_> = (0..copies).map(|_| cuda.weight(stored.clone()).expect("enough GPU memory")).collect();
    let x = cuda.tensor(tokens, cols, &n.vec(tokens * cols));
    let seconds = cuda.time(copies, |i| drop(cuda.matmul(&w[i], &x)));
    let floor = Floor {
        bytes: bytes(&stored) + 4.0 * (tokens * (out + cols)) as f64,
        operations: 2.0 * (tokens * out * cols) as f64,
    };
    row(&format!("matmul {} {cols} to {out}, {tokens} tokens", format.name()), seconds, floor, memory)
}

/// The formats (gate, up, down) and sizes of the experts of a layer.
#[derive(Clone, Copy)]
pub(super) struct MixtureShape {
    pub(super) formats: [Format; 3],
    pub(super) experts: usize,
    pub(super) dim: usize,
    pub(super) hidden: usize,
    pub(super) routing: Routing,
}

/// Those of the real model.
const SHAPE: MixtureShape = MixtureShape {
    formats: [Format::Q4_K; 3],
    experts: 256,
    dim: 2304,
    hidden: 1024,
    routing: Routing { top_k: 8, groups: 1, top_groups: 1, normalize: true, scale: 2.446 },
};

impl MixtureShape {
    /// Stacks of `count` random matrices each.
    fn stored(&self, n: &mut TestRng, count: usize) -> [QuantTensor; 3] {
        let MixtureShape { formats: [gate, up, down], dim, hidden, .. } = *self;
        [(gate, [hidden, dim]), (up, [hidden, dim]), (down, [dim, hidden])]
            .map(|(format, [r, c])| n.weight(format, [count, r, c]))
    }

    fn name(&self) -> String {
        let [gate, up, down] = self.formats.map(Format::name);
        let formats = if gate == up && up == down { gate.into() } else { format!("{gate} {up} {down}") };
        format!("{formats} {} of {}", self.routing.top_k, self.experts)
    }
}

/// The experts of a layer.
struct Mixture {
    shape: MixtureShape,
    weights: [Weight; 3],
    bias: Weight,
    /// Of them all, as they are stored.
    bytes: f64,
}

impl Mixture {
    fn new(cuda: &Cuda, n: &mut TestRng, shape: &MixtureShape) -> Mixture {
        let stored = shape.stored(n, shape.experts);
        let weights = stored.each_ref().map(|w| cuda.weight(w.clone()).expect("enough GPU memory"));
        let bias = cuda.weight(n.vector(shape.experts, 0.0, 0.0)).expect("enough GPU memory");
        Mixture { shape: *shape, weights, bias, bytes: stored.iter().map(bytes).sum() }
    }

    fn route(&self, cuda: &Cuda, n: &mut TestRng, tokens: usize) -> Routed {
        let MixtureShape { experts, routing, .. } = self.shape;
        cuda.route(&cuda.tensor(tokens, experts, &n.vec(tokens * experts)), &self.bias, routing)
    }

    fn gated(&self) -> GatedMlp<'_, Weight> {
        let [gate, up, down] = &self.weights;
        GatedMlp { gate, up, down, limit: f32::INFINITY }
    }

    fn floor(&self, tokens: usize) -> Floor {
        let MixtureShape { experts, dim, hidden, routing, .. } = self.shape;
        let used = (tokens * routing.top_k).min(experts) as f64 / experts as f64;
        let operations = 6.0 * (tokens * routing.top_k * dim * hidden) as f64;
        Floor { bytes: used * self.bytes, operations }
    }
}

pub(super) fn router(
    cuda: &Cuda,
    n: &mut TestRng,
    format: Format,
    shape: &MixtureShape,
    memory: f64,
) -> CheckRow {
    let MixtureShape { experts, dim, routing, .. } = *shape;
    let stored = n.weight(format, [1, experts, dim]);
    let w: Vec<_> = (0..COPIES).map(|_| cuda.weight(stored.clone()).expect("enough GPU memory")).collect();
    let bias = cuda.weight(n.vector(experts, 0.0, 0.0)).expect("enough GPU memory");
    let x = cuda.tensor(1, dim, &n.vec(dim));
    let seconds = cuda.time(COPIES, |i| drop(cuda.matmul_route(&w[i], &x, &bias, routing)));
    let floor = Floor { bytes: bytes(&stored), operations: 2.0 * (experts * dim) as f64 };
    row(&format!("matmul_route {} {dim} to {experts}, 1 token", format.name()), seconds, floor, memory)
}

/// Other experts in each turn: those of one token are met again and would be near.
pub(super) fn mixture(cuda: &Cuda, n: &mut TestRng, shape: &MixtureShape, memory: f64) -> CheckRow {
    let mixture = Mixture::new(cuda, n, shape);
    let shared = shape.stored(n, 1).map(|w| cuda.weight(w).expect("enough GPU memory"));
    let x = cuda.tensor(1, shape.dim, &n.vec(shape.dim));
    let routed: Vec<_> = (0..COPIES).map(|_| mixture.route(cuda, n, 1)).collect();
    let seconds = cuda.time(COPIES, |i| {
        let [gate, up, down] = &shared;
        drop(cuda.mixture(
            mixture.gated(),
            Some(GatedMlp { gate, up, down, limit: f32::INFINITY }),
            &x,
            &routed[i],
        ));
    });
    let Floor { bytes: chosen, operations } = mixture.floor(1);
    let each = 1.0 + 1.0 / shape.routing.top_k as f64;
    let floor = Floor { bytes: chosen * each, operations: operations * each };
    row(&format!("mixture {} and shared, 1 token", shape.name()), seconds, floor, memory)
}

pub(super) fn experts(
    cuda: &Cuda,
    n: &mut TestRng,
    shape: &MixtureShape,
    tokens: usize,
    memory: f64,
) -> CheckRow {
    let mixture = Mixture::new(cuda, n, shape);
    let repeats = if tokens == 1 { COPIES } else { 2 };
    let routed: Vec<_> = (0..repeats).map(|_| mixture.route(cuda, n, tokens)).collect();
    let x = cuda.tensor(tokens, shape.dim, &n.vec(tokens * shape.dim));
    let seconds = cuda.time(repeats, |i| drop(cuda.experts(mixture.gated(), &x, &routed[i])));
    row(&format!("experts {}, {tokens} tokens", shape.name()), seconds, mixture.floor(tokens), memory)
}

/// Experts in RAM: computed by the CPU, and brought over the bus. Where the two take equally long, [`UPLOAD_MIN_TOKENS`] should be.
fn experts_in_ram(cuda: &Cuda, n: &mut TestRng) -> Vec<CheckRow> {
    let [buffer, _] = buffer_and_planes(Format::Q4_K, (SHAPE.experts * SHAPE.dim * SHAPE.hidden) as u64);
    cuda.limit_stacks(0, buffer, 0).expect("enough GPU memory");
    let mixture = Mixture::new(cuda, n, &SHAPE);
    let mut measure = |tokens: usize, how: &str| {
        let (routed, x) = (mixture.route(cuda, n, tokens), n.vec(tokens * SHAPE.dim));
        let x = cuda.tensor(tokens, SHAPE.dim, &x);
        let run = || {
            cuda.wait();
            let start = Instant::now();
            drop(cuda.experts(mixture.gated(), &x, &routed));
            cuda.wait();
            start.elapsed().as_secs_f64()
        };
        let seconds = (0..4).map(|_| run()).fold(f64::INFINITY, f64::min);
        let Floor { bytes, operations } = mixture.floor(tokens);
        let (gb, tflop) = (bytes / seconds / 1e9, operations / seconds / 1e12);
        let found = format!("{:.1} us {gb:.1} GB/s {tflop:.1} Top/s", seconds * 1e6);
        CheckRow { what: format!("experts Q4_K in RAM, {tokens} tokens, {how}"), found, passed: None }
    };
    let rows = vec![
        measure(1, "on the CPU"),
        measure(UPLOAD_MIN_TOKENS - 1, "on the CPU"),
        measure(UPLOAD_MIN_TOKENS, "uploaded"),
        measure(8 * UPLOAD_MIN_TOKENS, "uploaded"),
    ];
    cuda.limit_stacks(u64::MAX, 0, 0).expect("no memory is needed");
    rows
}

/// Measures the transfer of logits to the host: the full row, or its top-k.
fn logits(cuda: &Cuda, n: &mut TestRng) -> Vec<CheckRow> {
    let x = cuda.tensor(1, 163_840, &n.vec(163_840));
    let measure = |what: &str, bring: &dyn Fn()| {
        let run = |_| {
            let start = Instant::now();
            bring();
            start.elapsed().as_secs_f64()
        };
        let seconds = (0..20).map(run).fold(f64::INFINITY, f64::min);
        let found = format!("{:.1} us", seconds * 1e6);
        CheckRow { what: format!("logits [1, 163840], {what}"), found, passed: None }
    };
    vec![
        measure("full row", &|| drop(cuda.read(&x))),
        measure("top 256", &|| drop(cuda.top_k(&x, 256))),
        measure("top 1", &|| drop(cuda.top_k(&x, 1))),
    ]
}

/// Heads of the delta rule, and channels of each, of the real model.
const DELTA: [usize; 2] = [32, 128];

pub(super) fn delta(
    cuda: &Cuda,
    n: &mut TestRng,
    [heads, dim]: [usize; 2],
    tokens: usize,
    memory: f64,
) -> CheckRow {
    let cols = heads * dim;
    let unit = n.unit_rows(tokens * heads, dim);
    let decay: Vec<f32> = (0..tokens * cols).map(|_| -n.uniform(0.0, 0.1)).collect();
    let [q, k, v, g] = [&unit, &unit, &unit, &decay].map(|x| cuda.tensor(tokens, cols, x));
    let beta = cuda.tensor(tokens, heads, &vec![0.5; tokens * heads]);
    let copies = if tokens == 1 { COPIES } else { 1 };
    let mut states: Vec<_> = (0..copies).map(|_| cuda.tensor(cols, dim, &vec![0.1; cols * dim])).collect();
    let seconds = cuda.time(copies, |i| {
        let x = DeltaRule { q: &q, k: &k, v: &v, g: &g, beta: &beta };
        drop(cuda.delta_rule(&mut [Span { rows: 0..tokens, state: &mut states[i] }], x));
    });
    let floor = Floor {
        bytes: 8.0 * (cols * dim) as f64 + 20.0 * (tokens * cols) as f64,
        operations: 7.0 * (tokens * cols * dim) as f64,
    };
    row(&format!("delta_rule {heads} x {dim} x {dim}, {tokens} tokens"), seconds, floor, memory)
}

/// The two low-rank products of a KDA layer for decay and gate.
fn low_ranks(cuda: &Cuda, n: &mut TestRng, memory: f64) -> CheckRow {
    let stored = n.weight(Format::Q8_0, [1, 4096, 128]);
    let w: Vec<_> =
        (0..2 * COPIES).map(|_| cuda.weight(stored.clone()).expect("enough GPU memory")).collect();
    let x = cuda.tensor(1, 128, &n.vec(128));
    let each = |i: usize| drop(cuda.matmul_each([&w[2 * i], &w[2 * i + 1]], [&x, &x]));
    let seconds = cuda.time(COPIES, each);
    let floor = Floor { bytes: 2.0 * bytes(&stored), operations: 4.0 * (4096 * 128) as f64 };
    row("matmul_each Q8_0 128 to 4096, twice, 1 token", seconds, floor, memory)
}

pub(super) fn delta_attention(
    cuda: &Cuda,
    n: &mut TestRng,
    [heads, dim]: [usize; 2],
    memory: f64,
) -> CheckRow {
    let cols = heads * dim;
    let mut weight = |rows, cols| {
        let one = n.vector(rows * cols, -1.0, 0.0);
        cuda.weight(QuantTensor { rows, cols, ..one }).expect("enough GPU memory")
    };
    let taps = [(); 3].map(|()| weight(cols, 4));
    let [a, dt_bias, norm] = [heads, cols, dim].map(|cols| weight(1, cols));
    let (taps, head_dim) = (taps.each_ref(), dim);
    let (a, dt_bias, norm) = (&a, &dt_bias, &norm);
    let w = DeltaWeights {
        taps,
        a,
        dt_bias,
        decay: Decay::Softplus,
        norm,
        head_dim,
        scale: 0.09,
        l2_eps: 1e-6,
        norm_eps: 1e-5,
    };
    let zeros = |rows: usize, cols: usize| cuda.tensor(rows, cols, &vec![0.0; rows * cols]);
    let state = |_| DeltaState { s: zeros(cols, dim), conv: [(); 3].map(|()| zeros(3, cols)) };
    let mut states: Vec<_> = (0..COPIES).map(state).collect();
    let projections = || DeltaProjections {
        q: zeros(1, cols),
        k: zeros(1, cols),
        v: zeros(1, cols),
        f: zeros(1, cols),
        beta: zeros(1, heads),
        gate: zeros(1, cols),
    };
    // Two sets of inputs are made before capture, because a captured graph copies nothing from the host.
    let mut inputs: Vec<_> = (0..2 * COPIES).map(|_| projections()).collect();
    let seconds = cuda.time(COPIES, |i| {
        let x = inputs.pop().expect("inputs of both");
        drop(cuda.delta_attention(&mut [Span { rows: 0..1, state: &mut states[i] }], x, &w));
    });
    let moved = 2 * cols * dim + 2 * 9 * cols + 3 * 4 * cols + 8 * cols;
    let floor = Floor { bytes: 4.0 * moved as f64, operations: 7.0 * (cols * dim) as f64 };
    row(&format!("delta_attention {heads} x {dim} x {dim}, 1 token"), seconds, floor, memory)
}

/// Returns a KV cache with `depth` random rows.
fn filled(cuda: &Cuda, n: &mut TestRng, format: CacheFormat, [depth, width]: [usize; 2]) -> Cache {
    let part = 4096.min(depth);
    let mut cache = cuda.cache(format, width);
    let rows = cuda.tensor(part, width, &n.vec(part * width));
    for _ in 0..depth / part {
        cuda.append(&mut [Span { rows: 0..part, state: &mut cache }], &rows);
    }
    cache
}

/// Measures materialized attention of the last 4,096 of `depth` tokens, including the materialization of keys and
/// values.
fn materialized(cuda: &Cuda, n: &mut TestRng, depth: usize, memory: f64) -> CheckRow {
    let (tokens, heads, latent, [nope, pe, value]) = (4096, 32, 512, [128, 64, 128]);
    let mut cache = filled(cuda, n, CacheFormat::F16, [depth, latent + pe]);
    let mut weight = |shape| cuda.weight(n.weight(Format::Q8_0, shape)).expect("enough GPU memory");
    let (k, v) = (weight([heads, latent, nope]), weight([heads, value, latent]));
    let q = cuda.tensor(tokens, heads * (nope + pe), &n.vec(tokens * heads * (nope + pe)));
    let seconds = cuda.time(1, |_| {
        let mut span = [Span { rows: 0..tokens, state: &mut cache }];
        drop(cuda.materialized_attention(&mut span, &q, KvUpProjection { k: &k, v: &v, latent }, 0.07));
    });
    let read = depth * cuda.cache_row_bytes(&cache) + 4 * tokens * heads * (nope + pe + value);
    let attended = ((nope + pe + value) * tokens) as f64 * (depth - tokens / 2) as f64;
    let made = (latent * (nope + value) * depth) as f64;
    let floor = Floor { bytes: read as f64, operations: 2.0 * heads as f64 * (attended + made) };
    row(&format!("materialized F16 32 heads at {depth}, {tokens} tokens"), seconds, floor, memory)
}

/// Attention over a cache of latents at a depth.
#[derive(Clone, Copy)]
pub(super) struct LatentCase {
    pub(super) heads: usize,
    pub(super) width: usize,
    pub(super) values: usize,
    pub(super) format: CacheFormat,
    pub(super) depth: usize,
}

/// That of the real model.
const LATENT: LatentCase =
    LatentCase { heads: 32, width: 576, values: 512, format: CacheFormat::F16, depth: 0 };

impl LatentCase {
    pub(super) fn at(self, format: CacheFormat, depth: usize) -> LatentCase {
        LatentCase { format, depth, ..self }
    }
}

pub(super) fn attention(
    cuda: &Cuda,
    n: &mut TestRng,
    case: &LatentCase,
    tokens: usize,
    memory: f64,
) -> CheckRow {
    let LatentCase { heads, width, values, format, depth } = *case;
    let mut cache = filled(cuda, n, format, [depth, width]);
    let q = cuda.tensor(tokens, heads * width, &n.vec(tokens * heads * width));
    let seconds = cuda.time(2, |_| {
        drop(cuda.latent_attention(&mut [Span { rows: 0..tokens, state: &mut cache }], &q, values, 0.07));
    });
    let floor = Floor {
        bytes: (depth * cuda.cache_row_bytes(&cache)) as f64,
        operations: 2.0 * (tokens * heads * (width + values)) as f64 * (depth - tokens / 2) as f64,
    };
    row(&format!("attention {format:?} {heads} heads at {depth}, {tokens} tokens"), seconds, floor, memory)
}
