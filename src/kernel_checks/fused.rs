//! Compares the fused kernels of decode with the separate ops of the reference.
//!
//! Next: [`super::residual`].

use super::CheckRow;
use super::ops::{EXACT, HALF, Op, compare, judged, spans};
use super::rng::TestRng;
use kernels::backend::{
    Backend, Decay, DeltaProjections, DeltaState, DeltaWeights, ExpertCacheStats, GatedMlp, QuantTensor,
    Routing,
};
use kernels::cuda::Cuda;
use kernels::quant::Format;
use kernels::reference::Reference;

pub(super) struct FusedDelta {
    pub(super) lens: Vec<usize>,
    pub(super) heads: usize,
    pub(super) dim: usize,
    /// q, k, v, f, beta, gate
    pub(super) x: [Vec<f32>; 6],
    pub(super) s: Vec<f32>,
    pub(super) past: [Vec<f32>; 3],
    pub(super) taps: [QuantTensor; 3],
    /// The vectors a, dt_bias and norm.
    pub(super) vectors: [QuantTensor; 3],
    /// The weight multiplied by the result, whose int8 form is fused into the op or computed from the result.
    pub(super) out: QuantTensor,
}

impl Op for FusedDelta {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let (tokens, channels) = (self.lens.iter().sum(), self.heads * self.dim);
        let [q, k, v, f, gate] = [0, 1, 2, 3, 5].map(|i| b.tensor(tokens, channels, &self.x[i]));
        let x = DeltaProjections { q, k, v, f, beta: b.tensor(tokens, self.heads, &self.x[4]), gate };
        let weight = |w: &QuantTensor| b.weight(w.clone()).expect("enough GPU memory");
        let taps = self.taps.each_ref().map(weight);
        let [a, dt_bias, norm] = self.vectors.each_ref().map(weight);
        let (taps, head_dim) = (taps.each_ref(), self.dim);
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
        let state = |_: &usize| DeltaState {
            s: b.tensor(channels, self.dim, &self.s),
            conv: self.past.each_ref().map(|past| b.tensor(3, channels, past)),
        };
        let mut states: Vec<_> = self.lens.iter().map(state).collect();
        let y = b.delta_attention(&mut spans(&self.lens, &mut states), x, &w);
        let difference = difference(b, &weight(&self.out), &y);
        let states = states.iter().flat_map(|state| std::iter::once(&state.s).chain(&state.conv));
        std::iter::once(&y).chain(states).map(|x| b.read(x)).chain([difference]).collect()
    }
}

/// Returns the difference between a product with the int8 form fused into the op and one with the int8 form computed
/// from `y`: exactly 0.
fn difference<B: Backend>(b: &B, w: &B::Weight, y: &B::Tensor) -> Vec<f32> {
    let [with, made] = [y, &b.copy(y)].map(|y| b.read(&b.matmul(w, y)));
    with.iter().zip(&made).map(|(a, b)| a - b).collect()
}

fn delta(cuda: &Cuda, n: &mut TestRng) -> Vec<CheckRow> {
    let mut all = Vec::new();
    for (lens, heads, dim) in
        [(&[1][..], 32, 128), (&[1, 1, 1], 3, 64), (&[1; 40], 2, 32), (&[2, 0, 1], 2, 64), (&[1, 1], 3, 24)]
    {
        let (channels, tokens) = (heads * dim, lens.iter().sum::<usize>());
        let cols = [channels, channels, channels, channels, heads, channels];
        let op = FusedDelta {
            lens: lens.to_vec(),
            heads,
            dim,
            x: cols.map(|cols| n.vec(tokens * cols)),
            s: n.vec(channels * dim),
            past: [(); 3].map(|()| n.vec(3 * channels)),
            taps: [(); 3].map(|()| QuantTensor {
                rows: channels,
                cols: 4,
                ..n.vector(4 * channels, -1.0, 1.0)
            }),
            vectors: [
                n.vector(heads, -16.0, 0.0),
                n.vector(channels, -40.0, 100.0),
                n.vector(dim, -1.0, 1.0),
            ],
            out: n.weight(if channels % 32 == 0 { Format::Q8_0 } else { Format::F32 }, [1, 8, channels]),
        };
        all.push(compare(
            cuda,
            format!("delta_attention {heads} x {dim}, {tokens} tokens of {} sequences", lens.len()),
            EXACT,
            &op,
        ));
    }
    all
}

pub(super) struct Each {
    pub(super) w: [QuantTensor; 2],
    pub(super) x: [Vec<f32>; 2],
    pub(super) tokens: usize,
}

impl Op for Each {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let w = self.w.each_ref().map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        let x = self.x.each_ref().map(|x| b.tensor(self.tokens, x.len() / self.tokens, x));
        b.matmul_each(w.each_ref(), x.each_ref()).iter().map(|y| b.read(y)).collect()
    }
}

fn each(cuda: &Cuda, n: &mut TestRng) -> Vec<CheckRow> {
    let mut all = Vec::new();
    let of32 = [Format::Q5_0, Format::Q8_0, Format::IQ4_NL, Format::MXFP4, Format::Q4_1, Format::Q5_1];
    for format in [&of32[..], &[Format::Q4_K, Format::F32, Format::F16]].concat() {
        for (tokens, rows, cols) in [(1, [4096, 4096], 128), (8, [33, 100], 256), (9, [33, 1], 256)] {
            if cols % format.block_len() != 0 {
                continue;
            }
            let w = rows.map(|rows| n.weight(format, [1, rows, cols]));
            let op = Each { w, x: [(); 2].map(|()| n.levels(tokens * cols)), tokens };
            let what = format!("matmul_each {} [{tokens}, {cols}] x {rows:?}", format.name());
            all.push(compare(cuda, what, EXACT, &op));
        }
    }
    all
}

/// Products of one input with matrices of different formats.
pub(super) struct MixedMatmul {
    pub(super) w: [QuantTensor; 3],
    pub(super) x: Vec<f32>,
    pub(super) tokens: usize,
}

impl MixedMatmul {
    /// Few and many rows of each format, the last one of the first's.
    pub(super) fn new(
        n: &mut TestRng,
        [first, second]: [Format; 2],
        tokens: usize,
        cols: usize,
    ) -> MixedMatmul {
        let w = [(first, 129), (second, 33), (first, 2)].map(|(f, rows)| n.weight(f, [1, rows, cols]));
        MixedMatmul { w, x: n.levels(tokens * cols), tokens }
    }
}

impl Op for MixedMatmul {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let w = self.w.each_ref().map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        let x = b.tensor(self.tokens, self.x.len() / self.tokens, &self.x);
        b.matmuls(w.each_ref(), &x).iter().map(|y| b.read(y)).collect()
    }
}

fn mixed(cuda: &Cuda, n: &mut TestRng) -> Vec<CheckRow> {
    let mut all = Vec::new();
    for formats in [[Format::Q4_K, Format::Q8_0], [Format::Q6_K, Format::Q5_K], [Format::Q2_K, Format::Q3_K]]
    {
        for tokens in [1, 8] {
            let what = format!("matmuls {}, {tokens} tokens", formats.map(Format::name).join(" "));
            all.push(compare(cuda, what, EXACT, &MixedMatmul::new(n, formats, tokens, 2304)));
        }
    }
    all
}

pub(super) struct HeadMatmul {
    pub(super) w: QuantTensor,
    pub(super) out: QuantTensor,
    pub(super) x: Vec<f32>,
    pub(super) tokens: usize,
}

impl Op for HeadMatmul {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let [w, out] = [&self.w, &self.out].map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        let y = b.matmul_heads(&w, &b.tensor(self.tokens, self.x.len() / self.tokens, &self.x));
        vec![b.read(&y), difference(b, &out, &y)]
    }
}

fn heads(cuda: &Cuda, n: &mut TestRng) -> Vec<CheckRow> {
    let mut all = Vec::new();
    for (format, [count, rows, cols], tokens) in [
        (Format::Q8_0, [32, 128, 512], 1),
        (Format::F16, [3, 64, 40], 8),
        (Format::Q4_K, [2, 96, 256], 3),
        (Format::Q5_0, [4, 40, 64], 2),
    ] {
        let (w, out) = (n.weight(format, [count, rows, cols]), n.weight(Format::Q8_0, [1, 9, count * rows]));
        let op = HeadMatmul { w, out, x: n.levels(tokens * count * cols), tokens };
        let what = format!("matmul_heads {} {count} x [{rows}, {cols}], {tokens} tokens", format.name());
        all.push(compare(cuda, what, EXACT, &op));
    }
    all
}

pub(super) struct FusedRouter {
    pub(super) router: QuantTensor,
    pub(super) bias: QuantTensor,
    pub(super) x: Vec<f32>,
    pub(super) tokens: usize,
    pub(super) how: Routing,
}

impl Op for FusedRouter {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let [router, bias] =
            [&self.router, &self.bias].map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        // Runs twice, because the completion counters have to be reset.
        let run = |_| {
            let x = b.tensor(self.tokens, self.router.cols, &self.x);
            let (chosen, weights) = b.routed(&b.matmul_route(&router, &x, &bias, self.how));
            [chosen.iter().map(|e| *e as f32).collect(), weights]
        };
        [0, 1].into_iter().flat_map(run).collect()
    }
}

fn router(cuda: &Cuda, n: &mut TestRng) -> Vec<CheckRow> {
    let mut all = Vec::new();
    for (format, tokens, experts, cols, groups) in [
        (Format::F32, 1, 256, 2304, 1),
        (Format::F32, 8, 64, 516, 8),
        (Format::BF16, 3, 24, 64, 1),
        (Format::F16, 2, 5, 4, 1),
        (Format::F32, 2, 5, 7, 1),
    ] {
        let how = Routing {
            top_k: experts.min(8) / 2,
            groups,
            top_groups: groups.div_ceil(2),
            normalize: true,
            scale: 2.446,
        };
        let (router, bias) = (n.weight(format, [1, experts, cols]), n.vector(experts, -0.1, 0.1));
        let op = FusedRouter { router, bias, x: n.vec(tokens * cols), tokens, how };
        let what = format!("matmul_route {} [{tokens}, {cols}] x {experts}", format.name());
        all.push(compare(cuda, what, EXACT, &op));
    }
    all
}

pub(super) struct FusedMixture {
    pub(super) experts: [QuantTensor; 3],
    pub(super) shared: Option<[QuantTensor; 3]>,
    pub(super) bias: QuantTensor,
    pub(super) logits: Vec<f32>,
    pub(super) x: Vec<f32>,
    pub(super) tokens: usize,
    pub(super) times: usize,
    pub(super) how: Routing,
}

impl Op for FusedMixture {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let weights =
            |w: &[QuantTensor; 3]| w.each_ref().map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        let (experts, shared) = (weights(&self.experts), self.shared.as_ref().map(weights));
        let bias = b.weight(self.bias.clone()).expect("enough GPU memory");
        let routed = b.route(&b.tensor(self.tokens, self.bias.cols, &self.logits), &bias, self.how);
        let x = b.tensor(self.tokens, self.experts[0].cols, &self.x);
        let once = |_| b.read(&b.mixture(gated(&experts), shared.as_ref().map(gated), &x, &routed));
        let mut all: Vec<_> = (0..self.times).map(once).collect();
        all.extend(shared.map(|shared| b.read(&b.gated_ffn(gated(&shared), &x))));
        all
    }
}

pub(super) fn gated<W>([gate, up, down]: &[W; 3]) -> GatedMlp<'_, W> {
    GatedMlp { gate, up, down, limit: f32::INFINITY }
}

/// A gated MLP of one matrix each.
pub(super) struct DenseMlp {
    pub(super) w: [QuantTensor; 3],
    pub(super) x: Vec<f32>,
    pub(super) tokens: usize,
}

impl DenseMlp {
    /// The expected result if the activations between gate and down are int8 with a scale per 32.
    pub(super) fn expected(&self) -> Vec<Vec<f32>> {
        vec![self.x.chunks(self.w[0].cols).flat_map(|x| ffn(&self.w, 0, x)).collect()]
    }
}

impl Op for DenseMlp {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let w = self.w.each_ref().map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        vec![b.read(&b.gated_ffn(gated(&w), &b.tensor(self.tokens, self.w[0].cols, &self.x)))]
    }
}

impl FusedMixture {
    /// The expected result if the activations between gate and down are int8 with a scale per 32.
    pub(super) fn expected(&self) -> Vec<Vec<f32>> {
        let (b, dim, top_k) = (&Reference, self.experts[0].cols, self.how.top_k);
        let routed = b.route(&b.tensor(self.tokens, self.bias.cols, &self.logits), &self.bias, self.how);
        let (chosen, weights) = b.routed(&routed);
        let mut all = vec![Vec::new(), Vec::new()];
        for (t, x) in self.x.chunks(dim).enumerate() {
            let shared = self.shared.as_ref().map(|w| ffn(w, 0, x));
            let mut sum = shared.clone().unwrap_or_else(|| vec![0.0; dim]);
            for slot in t * top_k..(t + 1) * top_k {
                let one = ffn(&self.experts, chosen[slot] as usize, x);
                sum.iter_mut().zip(one).for_each(|(sum, y)| *sum += weights[slot] * y);
            }
            all[0].extend(sum);
            all[1].extend(shared.unwrap_or_default());
        }
        let shared = all.pop().filter(|_| self.shared.is_some());
        all.resize(self.times, all[0].clone());
        all.extend(shared);
        all
    }
}

/// Computes expert `e` of a stack for one row.
pub(super) fn ffn(w: &[QuantTensor; 3], e: usize, x: &[f32]) -> Vec<f32> {
    let b = &Reference;
    let product = |w: &QuantTensor, x: &[f32]| {
        let bytes = w.bytes.len() / w.count;
        let one = QuantTensor { count: 1, bytes: w.bytes.slice(e * bytes..(e + 1) * bytes), ..w.clone() };
        b.matmul(&one, &b.tensor(1, x.len(), x))
    };
    let mut inner = b.read(&b.silu_mul(product(&w[0], x), &product(&w[1], x), f32::INFINITY));
    if w[2].format.block_len() > 1 {
        for part in inner.chunks_mut(32) {
            let d = part.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 127.0;
            part.iter_mut().filter(|_| d > 0.0).for_each(|x| *x = (*x / d).round_ties_even() * d);
        }
    }
    b.read(&product(&w[2], &inner))
}

fn mixtures(cuda: &Cuda, n: &mut TestRng, quick: bool) -> Vec<CheckRow> {
    let mut all = Vec::new();
    let formats = [
        (Format::Q4_K, Format::Q6_K),
        (Format::Q8_0, Format::Q8_0),
        (Format::Q3_K, Format::Q5_K),
        (Format::Q2_K, Format::IQ4_XS),
        (Format::IQ2_S, Format::IQ3_S),
        (Format::Q5_1, Format::F16),
        (Format::F16, Format::F16),
    ];
    for (up, down) in formats {
        for (tokens, experts, top_k, [dim, hidden], shared) in [
            (1, 16, 8, if quick { [256, 512] } else { [2304, 1024] }, Some(1)),
            (5, 8, 3, [256, 256], Some(2)),
            (2, 4, 1, [256, 256], None),
            (1, 4, 2, [256, 96], Some(1)), // some threads of a row have no unit
        ] {
            if hidden % down.block_len() != 0 {
                continue;
            }
            let stack = |n: &mut TestRng, count, hidden| {
                [(up, hidden, dim), (up, hidden, dim), (down, dim, hidden)]
                    .map(|(format, rows, cols)| n.weight(format, [count, rows, cols]))
            };
            let how = Routing { top_k, groups: 1, top_groups: 1, normalize: true, scale: 2.446 };
            let op = FusedMixture {
                experts: stack(n, experts, hidden),
                // A shared expert of the experts' width is fused with them; another width is separate.
                shared: shared.map(|times| stack(n, 1, times * hidden)),
                bias: n.vector(experts, -0.1, 0.1),
                logits: (0..tokens * experts).map(|_| n.uniform(-4.0, 4.0)).collect(),
                x: n.levels(tokens * dim),
                tokens,
                times: 1,
                how,
            };
            let what = format!(
                "mixture {}, {} {top_k} of {experts}, shared {shared:?}, {tokens} tokens",
                up.name(),
                down.name()
            );
            // An int8 value may round differently at a half.
            let tolerance = if down == Format::F16 { EXACT } else { HALF };
            all.push(judged(what, tolerance, &op.expected(), &op.run(cuda)));
        }
    }
    all
}

/// Checks experts in RAM with an expert cache: some of a token's experts are on the GPU, others on the CPU.
pub(super) fn mixture_in_ram(cuda: &Cuda, n: &mut TestRng) -> CheckRow {
    let (dim, tokens, experts, top_k) = (256, 3, 512, 4);
    cuda.limit_stacks(0, 0, 5).expect("no memory is needed");
    let stack = |n: &mut TestRng, count| [(); 3].map(|()| n.weight(Format::Q8_0, [count, dim, dim]));
    let op = FusedMixture {
        experts: stack(n, experts),
        shared: Some(stack(n, 1)),
        bias: n.vector(experts, -0.1, 0.1),
        logits: (0..tokens * experts).map(|_| n.uniform(-4.0, 4.0)).collect(),
        x: n.levels(tokens * dim),
        tokens,
        times: 6,
        how: Routing { top_k, groups: 1, top_groups: 1, normalize: true, scale: 2.446 },
    };
    let stats = || cuda.expert_cache_stats().unwrap_or_default();
    let before = stats();
    let got = op.run(cuda);
    let ExpertCacheStats { hits, lookups } = stats() - before;
    cuda.limit_stacks(u64::MAX, 0, 0).expect("no memory is needed");
    let mut row = judged("mixture in RAM, 5 slots".into(), HALF, &op.expected(), &got);
    row.passed = row.passed.map(|right| right && 0 < hits && hits < lookups);
    row.found = format!("{}, expert cache hits {hits} of {lookups}", row.found);
    row
}

/// Runs all checks of fused kernels.
pub fn fused(cuda: &Cuda, seed: u64, quick: bool) -> Vec<CheckRow> {
    let mut n = TestRng::new(seed);
    let mut all = delta(cuda, &mut n);
    all.extend([each(cuda, &mut n), mixed(cuda, &mut n), heads(cuda, &mut n)].into_iter().flatten());
    all.extend(router(cuda, &mut n));
    all.extend(mixtures(cuda, &mut n, quick));
    all.push(mixture_in_ram(cuda, &mut n));
    all
}
