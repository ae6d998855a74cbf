//! Compares every op on the device with the reference: odd and real sizes, extreme values, states included.
//!
//! Activations of quantized products are integers that int8 represents exactly, so the results differ only by the order
//! of sums. Next: [`super::fused`].

use super::CheckRow;
use super::rng::TestRng;
use kernels::backend::{
    Backend, CacheFormat, Decay, DeltaRule, GatedMlp, KvUpProjection, QuantTensor, Rope, Routing, Span,
};
use kernels::cuda::{Cuda, UPLOAD_MIN_TOKENS};
use kernels::quant::Format;
use kernels::reference::Reference;

/// The tolerance relative to the largest value for f32 arithmetic.
pub const EXACT: f32 = 2e-5;
/// The tolerance where tensor cores compute in f16.
pub const HALF: f32 = 2e-3;

/// An op with its inputs.
pub trait Op {
    /// Runs the op on a backend and returns its results.
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>>;
}

/// Compares an op on the device with the reference.
pub fn compare(cuda: &Cuda, what: String, tolerance: f32, op: &impl Op) -> CheckRow {
    judged(what, tolerance, &op.run(&Reference), &op.run(cuda))
}

/// Compares results with expected ones.
pub fn judged(what: String, tolerance: f32, expected: &[Vec<f32>], got: &[Vec<f32>]) -> CheckRow {
    let worst = expected.iter().zip(got).map(|(e, g)| difference(g, e)).fold(0.0, worse);
    let passed = expected.len() == got.len() && worst <= tolerance;
    CheckRow { what, found: format!("{worst:.1e}, allowed {tolerance:.0e}"), passed: Some(passed) }
}

fn worse(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// Returns the largest difference relative to the largest expected value; infinite if there is a NaN.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    if got.len() != expected.len() {
        return f32::INFINITY;
    }
    let largest = expected.iter().fold(1e-30_f32, |m, x| m.max(x.abs()));
    let difference =
        got.iter().zip(expected).map(|(g, e)| if g == e { 0.0 } else { (g - e).abs() / largest });
    difference.map(|d| if d.is_nan() { f32::INFINITY } else { d }).fold(0.0, f32::max)
}

pub(super) struct Norms {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) dim: usize,
    pub(super) x: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) w: [QuantTensor; 2],
}

impl Op for Norms {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let [w, head] = self.w.each_ref().map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        let tensor = |v: &[f32]| b.tensor(self.rows, self.cols, v);
        let (x, gate) = (tensor(&self.x), tensor(&self.gate));
        let mut sum = b.copy(&x);
        b.add(&mut sum, &gate);
        let mut again = b.copy(&x);
        let of_sum = b.add_rms_norm(&mut again, &gate, &w, 1e-5);
        vec![
            b.read(&sum),
            b.read(&again),
            b.read(&of_sum),
            b.read(&b.rms_norm(&x, &w, 1e-5)),
            b.read(&b.rms_norm(&x, &head, 1e-5)),
            b.read(&b.gated_rms_norm(&x, &head, &gate, 1e-5)),
            b.read(&b.silu_mul(b.copy(&x), &gate, f32::INFINITY)),
            b.read(&b.silu_mul(b.copy(&x), &gate, 0.5)),
            b.read(&b.gate_heads(b.copy(&x), &b.tensor(self.rows, 1, &vec![0.5; self.rows]))),
            b.read(&b.sigmoid(b.copy(&x))),
            b.read(&b.gather(&x, &[self.rows - 1, 0])),
            b.read(&b.l2_norm(x, self.dim, 1e-6, 0.09)),
        ]
    }
}

pub(super) struct Conv {
    pub(super) lens: Vec<usize>,
    pub(super) channels: usize,
    pub(super) x: Vec<f32>,
    pub(super) past: Vec<f32>,
    pub(super) taps: QuantTensor,
    pub(super) decay: [QuantTensor; 2],
}

impl Op for Conv {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let tokens = self.lens.iter().sum();
        let x = b.tensor(tokens, self.channels, &self.x);
        let mut states: Vec<_> = self.lens.iter().map(|_| b.tensor(3, self.channels, &self.past)).collect();
        let taps = b.weight(self.taps.clone()).expect("enough GPU memory");
        let y = b.short_conv(&mut spans(&self.lens, &mut states), &x, &taps);
        let [a, bias] = self.decay.each_ref().map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        let decays = [Decay::Softplus, Decay::Bounded(-5.0)];
        let mut all = vec![b.read(&y)];
        all.extend(decays.map(|decay| b.read(&b.kda_decay(b.copy(&y), &a, &bias, decay))));
        all.extend(states.iter().map(|s| b.read(s)));
        all
    }
}

/// Returns spans of consecutive rows of a batch, one per state.
pub fn spans<'a, S>(lens: &[usize], states: &'a mut [S]) -> Vec<Span<'a, S>> {
    let mut start = 0;
    let span = |(len, state): (&usize, &'a mut S)| {
        start += len;
        Span { rows: start - len..start, state }
    };
    lens.iter().zip(states).map(span).collect()
}

/// Checks elementwise ops, norms, convolutions and decays.
pub fn rows(cuda: &Cuda, seed: u64) -> Vec<CheckRow> {
    let mut n = TestRng::new(seed);
    let mut all = Vec::new();
    for (rows, cols, dim) in [(1, 1, 1), (3, 7, 7), (1, 2304, 128), (65, 4096, 128), (300, 512, 64)] {
        for scale in [1.0, 1e-12, 1e12] {
            let mut values = || n.vec(rows * cols).iter().map(|x| x * scale).collect::<Vec<_>>();
            let (x, gate) = (values(), values());
            let w = [n.vector(cols, -1.0, 1.0), n.vector(dim, -1.0, 1.0)];
            let op = Norms { rows, cols, dim, x, gate, w };
            all.push(compare(cuda, format!("norms, elements [{rows}, {cols}] of {scale:.0e}"), EXACT, &op));
        }
    }
    for lens in [&[1][..], &[2, 1, 1], &[0, 3, 70, 1], &[300]] {
        let (channels, tokens) = (256, lens.iter().sum::<usize>());
        let (x, past) = (n.vec(tokens * channels), n.vec(3 * channels));
        let taps = QuantTensor { rows: channels, cols: 4, ..n.vector(4 * channels, -1.0, 1.0) };
        let decay = [n.vector(2, -16.0, 0.0), n.vector(channels, -40.0, 100.0)];
        let op = Conv { lens: lens.to_vec(), channels, x, past, taps, decay };
        all.push(compare(cuda, format!("short_conv, kda_decay over {lens:?}"), EXACT, &op));
    }
    all
}

pub(super) struct MatmulCheck {
    pub(super) w: QuantTensor,
    pub(super) x: Vec<f32>,
    pub(super) tokens: usize,
    pub(super) heads: bool,
}

impl Op for MatmulCheck {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let w = b.weight(self.w.clone()).expect("enough GPU memory");
        let x = b.tensor(self.tokens, self.x.len() / self.tokens, &self.x);
        if self.heads { vec![b.read(&b.matmul_heads(&w, &x))] } else { vec![b.read(&b.matmul(&w, &x))] }
    }
}

pub(super) struct Embed(pub(super) QuantTensor);

impl Op for Embed {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        vec![b.read(&b.embed(&b.weight(self.0.clone()).expect("enough GPU memory"), &[8, 0, 3, 3]))]
    }
}

/// Checks products with each format, with few and many vectors, plain and per head.
pub fn products(cuda: &Cuda, seed: u64, quick: bool) -> Vec<CheckRow> {
    let mut n = TestRng::new(seed);
    let mut all = Vec::new();
    for format in Format::ALL {
        let name = format.name();
        let table = n.weight(format, [1, 9, 2304]);
        all.push(compare(cuda, format!("embed {name}"), EXACT, &Embed(table)));
        let shapes: &[[usize; 3]] = if quick {
            &[[1, 33, 256], [9, 65, 512]]
        } else {
            &[[1, 4096, 2304], [3, 129, 512], [8, 64, 1024], [70, 300, 2304], [513, 130, 4096]]
        };
        for &[tokens, rows, cols] in shapes {
            let (w, x) = (n.weight(format, [1, rows, cols]), n.levels(tokens * cols));
            let op = MatmulCheck { w, x, tokens, heads: false };
            all.push(compare(cuda, format!("matmul {name} [{tokens}, {cols}] x [{rows}]"), EXACT, &op));
        }
    }
    let by_head: &[(Format, [usize; 4], usize)] = &[
        (Format::Q8_0, [32, 512, 128, 64], 1),
        (Format::Q8_0, [32, 128, 512, 0], if quick { 1 } else { 70 }),
        (Format::F16, [3, 40, 64, 5], 9),
        (Format::Q4_K, [2, 65, 256, 64], 66),
    ];
    for &(format, [count, rows, cols, rest], tokens) in by_head {
        let w = n.weight(format, [count, rows, cols]);
        let x = (0..tokens * count).flat_map(|_| [n.levels(cols), n.vec(rest)].concat()).collect();
        let op = MatmulCheck { w, x, tokens, heads: true };
        let what = format!("matmul_heads {} {count} x [{rows}, {cols} + {rest}], {tokens}", format.name());
        all.push(compare(cuda, what, EXACT, &op));
    }
    all
}

pub(super) struct Rule {
    pub(super) lens: Vec<usize>,
    pub(super) heads: usize,
    pub(super) dim: usize,
    /// q, k, v, g, beta
    pub(super) x: [Vec<f32>; 5],
    pub(super) s: Vec<f32>,
}

impl Op for Rule {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let (tokens, cols) = (self.lens.iter().sum(), self.heads * self.dim);
        let [q, k, v, g] = [0, 1, 2, 3].map(|i| b.tensor(tokens, cols, &self.x[i]));
        let beta = b.tensor(tokens, self.heads, &self.x[4]);
        let mut states: Vec<_> = self.lens.iter().map(|_| b.tensor(cols, self.dim, &self.s)).collect();
        let x = DeltaRule { q: &q, k: &k, v: &v, g: &g, beta: &beta };
        let o = b.delta_rule(&mut spans(&self.lens, &mut states), x);
        [vec![b.read(&o)], states.iter().map(|s| b.read(s)).collect()].concat()
    }
}

/// Checks the delta rule, with decays from 0 to complete.
pub fn delta(cuda: &Cuda, seed: u64, quick: bool) -> Vec<CheckRow> {
    let mut n = TestRng::new(seed);
    let mut all = Vec::new();
    for decay in [0.0, 0.1, 3.0, 1000.0, f32::INFINITY] {
        let long: &[usize] = if quick { &[70] } else { &[700] };
        for (lens, heads, dim) in [(&[1][..], 32, 128), (&[3, 0, 1, 66], 2, 24), (long, 2, 128)] {
            let tokens: usize = lens.iter().sum();
            let g = (0..tokens * heads * dim)
                .map(|_| if decay == 0.0 { 0.0 } else { -n.uniform(0.0, 1.0).powi(4) * decay });
            let g = g.map(|g: f32| if g.is_nan() { f32::NEG_INFINITY } else { g }).collect();
            let [q, k] = [(); 2].map(|()| n.unit_rows(tokens * heads, dim));
            let v = n.vec(tokens * heads * dim);
            let beta = (0..tokens * heads).map(|_| n.uniform(0.0, 1.0)).collect();
            let op =
                Rule { lens: lens.to_vec(), heads, dim, x: [q, k, v, g, beta], s: n.vec(heads * dim * dim) };
            let what = format!("delta_rule {heads} x {dim} over {lens:?}, decay to {decay}");
            all.push(compare(cuda, what, EXACT, &op));
        }
    }
    all
}

/// Rows appended to a KV cache in two steps: the second follows the length that the first left on the device.
pub(super) struct Append {
    pub(super) format: CacheFormat,
    pub(super) width: usize,
    pub(super) lens: [usize; 2],
    pub(super) rows: Vec<f32>,
}

impl Op for Append {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let mut cache = b.cache(self.format, self.width);
        let (first, second) = self.rows.split_at(self.lens[0] * self.width);
        for (n, rows) in self.lens.into_iter().zip([first, second]) {
            b.append(&mut [Span { rows: 0..n, state: &mut cache }], &b.tensor(n, self.width, rows));
        }
        vec![b.cache_read(&cache, 0..self.lens.iter().sum())]
    }
}

pub(super) struct Attend {
    pub(super) format: CacheFormat,
    pub(super) heads: usize,
    pub(super) width: usize,
    pub(super) values: usize,
    pub(super) scale: f32,
    pub(super) ends: Vec<usize>,
    pub(super) rows: Vec<f32>,
    pub(super) q: Vec<f32>,
}

impl Op for Attend {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let mut cache = b.cache(self.format, self.width);
        let mut all = Vec::new();
        for w in [&[0], &self.ends[..]].concat().windows(2) {
            let (n, from, to) = (w[1] - w[0], w[0], w[1]);
            let part = |x: &[f32], cols: usize| b.tensor(n, cols, &x[from * cols..to * cols]);
            b.append(&mut [Span { rows: 0..n, state: &mut cache }], &part(&self.rows, self.width));
            // Only the last tokens of a long prefix attend, because the reference is slow.
            let some = n.min(3);
            let q = b.gather(&part(&self.q, self.heads * self.width), &(n - some..n).collect::<Vec<_>>());
            let mut spans = [Span { rows: 0..some, state: &mut cache }];
            all.push(b.read(&b.latent_attention(&mut spans, &q, self.values, self.scale)));
        }
        all.push(b.cache_read(&cache, 0..self.ends[0]));
        all
    }
}

/// Checks attention and KV caches in each format, at lengths around those of tiles and segments.
pub fn attention(cuda: &Cuda, seed: u64, quick: bool) -> Vec<CheckRow> {
    let mut n = TestRng::new(seed);
    let mut all = Vec::new();
    let far = if quick { 300 } else { 5000 };
    for format in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0] {
        for (heads, width, values, ends) in [
            (3, 7, 5, vec![1, 5, 40]),
            (4, 48, 32, vec![31, 33, 64, 255, 256, 257, 300]),
            (32, 576, 512, vec![1, 33, 34]),
            (32, 576, 512, vec![far, far + 1]),
        ] {
            let tokens = ends[ends.len() - 1];
            let (rows, q) =
                (n.vec(tokens * width), n.vec(tokens * heads * width).iter().map(|q| q * 3.0).collect());
            let tolerance = if width == 576 && format != CacheFormat::F32 { HALF } else { EXACT };
            let scale = 192_f32.powf(-0.5);
            let what = format!("attention {format:?} {heads} x {width}, to {tokens}");
            let op = Attend { format, heads, width, values, scale, ends, rows, q };
            all.push(compare(cuda, what, tolerance, &op));
        }
    }
    all.extend(rotations(cuda, &mut n, far));
    all.extend(materialized(cuda, &mut n, quick));
    all
}

/// Checks rotary positions after no rows, a few, and `far` rows.
fn rotations(cuda: &Cuda, n: &mut TestRng, far: usize) -> Vec<CheckRow> {
    let mut all = Vec::new();
    for (format, [heads, width, dims], past, tokens) in [
        (CacheFormat::F32, [3, 7, 2], 0, 1),
        (CacheFormat::Q8_0, [4, 48, 16], 5, 40),
        (CacheFormat::F16, [32, 576, 64], far, 3),
    ] {
        for base in [1e4, 6e6] {
            let rope = Rope { heads, dims, base };
            let [rows, q, kv] = [past, tokens * heads, tokens].map(|rows| n.vec(rows * width));
            let what = format!("rotate {format:?} {heads} x {dims} by {base}, {past}+{tokens}");
            all.push(compare(cuda, what, EXACT, &Rotate { format, width, rope, past: rows, q, kv }));
        }
    }
    all
}

pub(super) struct Expanded {
    pub(super) format: CacheFormat,
    /// The projections W_k,h^T and W_v,h.
    pub(super) w: [QuantTensor; 2],
    /// The number of cached rows before each span, and the span's tokens.
    pub(super) past: Vec<usize>,
    pub(super) lens: Vec<usize>,
    pub(super) width: usize,
    pub(super) rows: Vec<f32>,
    pub(super) q: Vec<f32>,
}

impl Op for Expanded {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let tokens = self.lens.iter().sum();
        let mut caches: Vec<_> = self.past.iter().map(|_| b.cache(self.format, self.width)).collect();
        for (cache, &n) in caches.iter_mut().zip(&self.past) {
            let rows = b.tensor(n, self.width, &self.rows[..n * self.width]);
            b.append(&mut [Span { rows: 0..n, state: cache }], &rows);
        }
        let newest = &self.rows[self.rows.len() - tokens * self.width..];
        b.append(&mut spans(&self.lens, &mut caches), &b.tensor(tokens, self.width, newest));
        let [k, v] = self.w.each_ref().map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        let q = b.tensor(tokens, self.q.len() / tokens, &self.q);
        let w = KvUpProjection { k: &k, v: &v, latent: self.w[0].rows };
        vec![b.read(&b.materialized_attention(
            &mut spans(&self.lens, &mut caches),
            &q,
            w,
            192_f32.powf(-0.5),
        ))]
    }
}

/// Rotary positions of queries and cache rows after cached rows.
pub(super) struct Rotate {
    pub(super) format: CacheFormat,
    pub(super) width: usize,
    pub(super) rope: Rope,
    /// Rows cached before, `[past, width]`.
    pub(super) past: Vec<f32>,
    /// Queries `[token, heads * width]` before their rotation.
    pub(super) q: Vec<f32>,
    /// New cache rows `[token, width]` before their rotation.
    pub(super) kv: Vec<f32>,
}

impl Op for Rotate {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let rows = |x: &[f32]| b.tensor(x.len() / self.width, self.width, x);
        let (past, mut kv) = (self.past.len() / self.width, rows(&self.kv));
        let mut cache = b.cache(self.format, self.width);
        b.append(&mut [Span { rows: 0..past, state: &mut cache }], &rows(&self.past));
        let tokens = self.kv.len() / self.width;
        let mut q = b.tensor(tokens, self.q.len() / tokens, &self.q);
        b.rotate(&mut [Span { rows: 0..tokens, state: &mut cache }], &mut q, &mut kv, self.rope);
        vec![b.read(&q), b.read(&kv)]
    }
}

/// Checks materialized attention over several chunks of the KV cache: chunks of 128 rows, and of the default size.
fn materialized(cuda: &Cuda, n: &mut TestRng, quick: bool) -> Vec<CheckRow> {
    let mut all = Vec::new();
    let mut of =
        |format, kinds: [Format; 2], [heads, nope, pe, latent, value]: [usize; 5], spans: &[[usize; 2]]| {
            let width = latent + pe;
            let [past, lens] = [0, 1].map(|i| spans.iter().map(|span| span[i]).collect::<Vec<_>>());
            let (most, tokens) = (past.iter().max().unwrap_or(&0), lens.iter().sum::<usize>());
            let w = [n.weight(kinds[0], [heads, latent, nope]), n.weight(kinds[1], [heads, value, latent])];
            let rows = n.vec((most + tokens) * width);
            let q = n.vec(tokens * heads * (nope + pe)).iter().map(|q| q * 0.5).collect();
            let spans: Vec<String> = spans.iter().map(|[past, own]| format!("{past}+{own}")).collect();
            let (names, spans) = (kinds.map(Format::name).join(" "), spans.join(" "));
            let what = format!("expanded {format:?} {heads} x {nope}, {names}, {spans}");
            all.push(compare(cuda, what, HALF, &Expanded { format, w, past, lens, width, rows, q }));
        };
    use CacheFormat::{F16, F32, Q8_0};
    cuda.set_chunk_rows(128);
    of(F16, [Format::Q8_0, Format::Q4_K], [1, 128, 64, 512, 128], &[[0, 33], [127, 65], [100, 130]]);
    of(Q8_0, [Format::F16, Format::Q6_K], [2, 128, 64, 512, 128], &[[191, 32]]);
    of(F32, [Format::BF16, Format::F32], [3, 40, 8, 50, 24], &[[1, 40], [255, 64]]);
    cuda.set_chunk_rows(usize::MAX);
    of(Q8_0, [Format::MXFP4, Format::Q5_1], [2, 96, 32, 128, 64], &[[300, 129]]);
    if !quick {
        of(F16, [Format::Q8_0, Format::Q8_0], [2, 128, 64, 512, 128], &[[3900, 300], [0, 700]]);
        of(F16, [Format::Q8_0, Format::Q8_0], [32, 128, 64, 512, 128], &[[50, 200]]);
    }
    all
}

struct Experts {
    w: [QuantTensor; 3],
    bias: QuantTensor,
    /// The number of tokens of each step; all steps use the same weights.
    steps: Vec<usize>,
    logits: Vec<f32>,
    x: Vec<f32>,
    how: Routing,
}

impl Op for Experts {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let (n, dim) = (self.w[0].count, self.w[0].cols);
        let [gate, up, down] = self.w.each_ref().map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        let bias = b.weight(self.bias.clone()).expect("enough GPU memory");
        let (mut logits, mut x) = (&self.logits[..], &self.x[..]);
        let step = |tokens: &usize| {
            let own_logits = logits.split_off(..tokens * n).expect("logits of all steps");
            let own_x = x.split_off(..tokens * dim).expect("rows of all steps");
            let routed = b.route(&b.tensor(*tokens, n, own_logits), &bias, self.how);
            let (chosen, weights) = b.routed(&routed);
            let gated = GatedMlp { gate: &gate, up: &up, down: &down, limit: f32::INFINITY };
            let y = b.experts(gated, &b.tensor(*tokens, dim, own_x), &routed);
            [chosen.iter().map(|e| *e as f32).collect(), weights, b.read(&y)]
        };
        self.steps.iter().flat_map(step).collect()
    }
}

/// Checks the router and the experts, with few and many tokens.
pub fn experts(cuda: &Cuda, seed: u64, quick: bool) -> Vec<CheckRow> {
    let mut n = TestRng::new(seed);
    let mut all = Vec::new();
    for up in [Format::Q4_K, Format::Q8_0, Format::Q3_K, Format::BF16] {
        for (experts, top_k, groups, top_groups, tokens) in
            [(256, 8, 1, 1, 1), (64, 8, 8, 4, 5), (24, 3, 1, 1, if quick { 20 } else { 200 })]
        {
            let (dim, hidden) = (256, 96);
            // Intermediate values are no integers, so the format must not be quantized.
            let shapes = [[experts, hidden, dim], [experts, hidden, dim], [experts, dim, hidden]];
            let w = [n.weight(up, shapes[0]), n.weight(up, shapes[1]), n.weight(Format::F16, shapes[2])];
            let how = Routing { top_k, groups, top_groups, normalize: true, scale: 2.446 };
            let logits = (0..tokens * experts).map(|_| n.uniform(-4.0, 4.0)).collect();
            let (bias, x) = (n.vector(experts, -0.1, 0.1), n.levels(tokens * dim));
            let what = format!("experts {} {top_k} of {experts}, {tokens} tokens", up.name());
            all.push(compare(cuda, what, EXACT, &Experts { w, bias, steps: vec![tokens], logits, x, how }));
        }
    }
    all.extend(experts_in_ram(cuda, &mut n));
    all
}

/// Checks experts in RAM: computed by the CPU for few tokens, uploaded for many, and with an expert cache whose slots
/// are replaced from step to step.
fn experts_in_ram(cuda: &Cuda, n: &mut TestRng) -> Vec<CheckRow> {
    let (experts, dim, top_k) = (512, 256, 2);
    // Large enough to stay in RAM; formats of one plane and of three, quantized and float.
    let w = [Format::Q4_K, Format::Q5_1, Format::F16].map(|format| n.weight(format, [experts, dim, dim]));
    let buffer = w.iter().map(|w| w.bytes.len() as u64).max().unwrap_or(0);
    let of = |(slots, steps): (usize, &[usize])| {
        cuda.limit_stacks(0, buffer, slots).expect("enough GPU memory");
        // Some experts get all tokens; otherwise each expert would be a tile of one token.
        let mut logit = |i: usize| match i % 64 {
            0 => n.uniform(4.0, 8.0),
            _ => n.uniform(-4.0, 0.0),
        };
        let tokens: usize = steps.iter().sum();
        let logits = (0..tokens * experts).map(&mut logit).collect();
        let (bias, x) = (n.vector(experts, -0.1, 0.1), n.levels(tokens * dim));
        let how = Routing { top_k, groups: 1, top_groups: 1, normalize: true, scale: 2.446 };
        let op = Experts { w: w.clone(), bias, steps: steps.to_vec(), logits, x, how };
        let hits = || cuda.expert_cache_stats().unwrap_or_default().hits;
        let before = hits();
        let mut row = compare(cuda, format!("experts in RAM, {steps:?} tokens, {slots} slots"), EXACT, &op);
        let hits = hits() - before;
        row.passed = row.passed.map(|right| right && (hits > 0) == (slots > 0));
        row.found = format!("{}, expert cache hits {hits}", row.found);
        row
    };
    let steps: [(usize, &[usize]); 5] = [
        (0, &[3]),
        (0, &[UPLOAD_MIN_TOKENS]),
        (0, &[UPLOAD_MIN_TOKENS + 1]),
        (3, &[2, 1, 1, 2, 1, 1, 1, 1, 12, 5, 1, 1, 9]),
        (5, &[1, UPLOAD_MIN_TOKENS, 3, 20, 1, UPLOAD_MIN_TOKENS + 1, 1, 1, 1, 4]),
    ];
    let rows = steps.map(of).into();
    cuda.limit_stacks(u64::MAX, 0, 0).expect("no memory is needed");
    rows
}
