//! Compares ops that end in a norm, of the residual stream or of cache rows, with their parts on the same device.
//!
//! Next: [`super::best`].

use super::CheckRow;
use super::fused::gated;
use super::ops::{EXACT, compare, judged, spans};
use super::rng::TestRng;
use kernels::backend::{Backend, CacheFormat, QuantTensor, Residual, Routing};
use kernels::composed;
use kernels::cuda::Cuda;
use kernels::quant::Format;

/// A product that adds to the residual stream.
pub(super) struct ProductNorm {
    pub(super) w: QuantTensor,
    pub(super) norm: QuantTensor,
    pub(super) x: Vec<f32>,
    pub(super) before: Vec<f32>,
    pub(super) tokens: usize,
}

impl ProductNorm {
    pub(super) fn new(n: &mut TestRng, format: Format, tokens: usize, [rows, cols]: [usize; 2]) -> Self {
        let (w, norm) = (n.weight(format, [1, rows, cols]), n.vector(rows, -1.0, 1.0));
        ProductNorm { w, norm, x: n.levels(tokens * cols), before: n.vec(tokens * rows), tokens }
    }
}

impl super::ops::Op for ProductNorm {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let [w, norm] = [&self.w, &self.norm].map(|w| b.weight(w.clone()).expect("enough GPU memory"));
        // Runs twice, because the completion counters have to be reset.
        let run = |_| {
            let mut sum = b.tensor(self.tokens, self.w.rows, &self.before);
            let x = b.tensor(self.tokens, self.w.cols, &self.x);
            let h = b.matmul_add_norm(&w, &x, Residual { x: &mut sum, norm: &norm, eps: 1e-5 });
            [b.read(&sum), b.read(&h)]
        };
        [0, 1].into_iter().flat_map(run).collect()
    }
}

/// The feed-forward parts of a layer, with the norm in their last launch and after it.
pub(super) fn feed_forward(
    cuda: &Cuda,
    n: &mut TestRng,
    what: String,
    formats: [Format; 3],
    [tokens, dim, hidden]: [usize; 3],
) -> CheckRow {
    let (b, experts) = (cuda, 6);
    let mut stack = |count| {
        let shapes = [(0, hidden, dim), (1, hidden, dim), (2, dim, hidden)];
        shapes.map(|(i, rows, cols)| {
            b.weight(n.weight(formats[i], [count, rows, cols])).expect("enough GPU memory")
        })
    };
    let (w, shared) = (stack(experts), stack(1));
    let weight = |w: QuantTensor| b.weight(w).expect("enough GPU memory");
    let (norm, bias) = (weight(n.vector(dim, -1.0, 1.0)), weight(n.vector(experts, -0.1, 0.1)));
    let how = Routing { top_k: 3, groups: 1, top_groups: 1, normalize: true, scale: 2.446 };
    let routed = b.route(&b.tensor(tokens, experts, &n.vec(tokens * experts)), &bias, how);
    let x = b.tensor(tokens, dim, &n.vec(tokens * dim));
    let before = n.vec(tokens * dim);
    let run = |fused: bool| {
        let mut sums = [(); 2].map(|()| b.tensor(tokens, dim, &before));
        let [one, two] = sums.each_mut().map(|x| Residual { x, norm: &norm, eps: 1e-5 });
        let shared_expert = Some(gated(&shared));
        let h = if fused {
            [
                b.mixture_add_norm(gated(&w), shared_expert, &x, &routed, one),
                b.gated_ffn_add_norm(gated(&shared), &x, two),
            ]
        } else {
            [
                composed::mixture_add_norm(b, gated(&w), shared_expert, &x, &routed, one),
                composed::gated_ffn_add_norm(b, gated(&shared), &x, two),
            ]
        };
        h.iter().chain(&sums).map(|x| b.read(x)).collect::<Vec<_>>()
    };
    judged(what, EXACT, &run(false), &run(true))
}

/// Rows that are normalized and appended to KV caches: those of two sequences, twice.
pub(super) struct AppendNorm {
    pub(super) format: CacheFormat,
    pub(super) width: usize,
    pub(super) rows: Vec<f32>,
    pub(super) norm: QuantTensor,
}

impl super::ops::Op for AppendNorm {
    fn run<B: Backend>(&self, b: &B) -> Vec<Vec<f32>> {
        let w = b.weight(self.norm.clone()).expect("enough GPU memory");
        let mut caches = [(); 2].map(|()| b.cache(self.format, self.width));
        for rows in self.rows.chunks(2 * self.width) {
            b.append_norm(&mut spans(&[1, 1], &mut caches), &b.tensor(2, self.width, rows), &w, 1e-5);
        }
        caches.iter().map(|cache| b.cache_read(cache, 0..b.cache_len(cache))).collect()
    }
}

/// The tolerance of values that a cache of a format holds.
pub(super) fn tolerance(format: CacheFormat) -> f32 {
    match format {
        CacheFormat::F32 => EXACT,
        CacheFormat::F16 => 1e-3,
        CacheFormat::Q8_0 => 1e-2,
    }
}

/// Runs the checks of all shapes.
pub fn norms(cuda: &Cuda, seed: u64) -> Vec<CheckRow> {
    let (n, mut all) = (&mut TestRng::new(seed), Vec::new());
    for (format, shape) in [
        (Format::Q4_K, [2304, 4096]),
        (Format::Q8_0, [4096, 64]),
        (Format::F32, [96, 33]),
        (Format::Q6_K, [33, 256]),
    ] {
        for tokens in [1, 7] {
            let what = format!("matmul_add_norm {} {shape:?}, {tokens} tokens", format.name());
            all.push(compare(cuda, what, EXACT, &ProductNorm::new(n, format, tokens, shape)));
        }
    }
    for (formats, shape) in [
        ([Format::Q4_K, Format::Q4_K, Format::Q6_K], [1, 2304, 1024]),
        ([Format::Q4_K, Format::Q4_K, Format::Q4_K], [8, 512, 256]),
        ([Format::Q8_0, Format::Q8_0, Format::F16], [2, 64, 64]),
    ] {
        let what = format!("mixture_add_norm {} {shape:?}", formats.map(Format::name).join(" "));
        all.push(feed_forward(cuda, n, what, formats, shape));
    }
    for format in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0] {
        for (width, normed) in [(576, 512), (1100, 1030), (40, 40)] {
            let (rows, norm) = (n.vec(4 * width), n.vector(normed, -1.0, 1.0));
            let what = format!("append_norm {format:?} {normed} of {width}");
            all.push(compare(cuda, what, tolerance(format), &AppendNorm { format, width, rows, norm }));
        }
    }
    all
}
