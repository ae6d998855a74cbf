//! Compares ops that add to the residual stream, and norms of cache rows, with the reference and with their parts.

mod common;

use common::{Numbers, close, spans, vector};
use kernels::backend::{Backend, CacheFormat, GatedMlp, QuantTensor, Residual, Routing};
use kernels::composed;
use kernels::quant::Format;

#[test]
fn products_and_norms() {
    for (format, [rows, cols]) in [
        (Format::Q4_K, [288, 512]),
        (Format::Q8_0, [2336, 96]), // a thread takes more than five fours of a row
        (Format::F32, [64, 33]),
        (Format::Q6_K, [33, 256]), // rows that are not whole blocks
    ] {
        for tokens in [1, 3, 8, 9] {
            let mut n = Numbers(20);
            let (w, x, before) = (
                n.weight(format, [1, rows, cols]),
                n.quants(tokens * cols),
                n.vec(tokens * rows).iter().map(|x| x * 100.0).collect::<Vec<_>>(),
            );
            let norm = n.vec(rows);
            check!(format!("matmul_add_norm {} [{tokens}, {cols}] x [{rows}]", format.name()), |b| {
                let [w, norm] = [&w, &vector(&norm)].map(|w| b.weight(w.clone()).unwrap());
                let mut sum = b.tensor(tokens, rows, &before);
                let to = Residual { x: &mut sum, norm: &norm, eps: 1e-5 };
                let h = b.matmul_add_norm(&w, &b.tensor(tokens, cols, &x), to);
                vec![b.read(&sum), b.read(&h)]
            });
        }
    }
}

/// A GPU leaves the norm quantized for the next product: the same quants as from its values, zeros and large values included.
#[test]
fn quants_of_norms() {
    let Some(b) = common::emulator::cuda() else { return };
    let (tokens, dim) = (5, 256);
    let mut n = Numbers(21);
    let weight = |n: &mut Numbers| b.weight(n.weight(Format::Q8_0, [1, dim, dim])).unwrap();
    let (w, next, norm) = (weight(&mut n), weight(&mut n), b.weight(vector(&n.vec(dim))).unwrap());
    for scale in [0.0, 1e-30, 1.0, 1e15] {
        let x: Vec<f32> = n.vec(tokens * dim).iter().map(|x| x * scale).collect();
        let mut sum = b.tensor(tokens, dim, &vec![0.0; tokens * dim]);
        let to = Residual { x: &mut sum, norm: &norm, eps: 1e-5 };
        let h = b.matmul_add_norm(&w, &b.tensor(tokens, dim, &x), to);
        let anew = b.matmul(&next, &b.tensor(tokens, dim, &b.read(&h)));
        assert_eq!(b.read(&b.matmul(&next, &h)), b.read(&anew), "{scale:e}");
        // The quants of the residual stream are not those of before.
        let anew = b.matmul(&next, &b.tensor(tokens, dim, &b.read(&sum)));
        assert_eq!(b.read(&b.matmul(&next, &sum)), b.read(&anew), "{scale:e}");
    }
}

fn gated<W>([gate, up, down]: &[W; 3]) -> GatedMlp<'_, W> {
    GatedMlp { gate, up, down, limit: f32::INFINITY }
}

/// Feed-forward parts with a norm agree with their parts on every backend.
#[test]
fn feed_forward_and_norms() {
    fn run<B: Backend>(
        b: &B,
        w: &[QuantTensor; 3],
        shared: &[QuantTensor; 3],
        tokens: usize,
        fused: bool,
    ) -> Vec<Vec<f32>> {
        let mut n = Numbers(22);
        let dim = w[0].cols;
        let [w, shared] = [w, shared].map(|w| w.each_ref().map(|w| b.weight(w.clone()).unwrap()));
        let [norm, bias] = [n.vec(dim), n.vec(6)].map(|w| b.weight(vector(&w)).unwrap());
        let how = Routing { top_k: 3, groups: 1, top_groups: 1, normalize: true, scale: 2.0 };
        let routed = b.route(&b.tensor(tokens, 6, &n.vec(tokens * 6)), &bias, how);
        let x = b.tensor(tokens, dim, &n.vec(tokens * dim));
        let mut sums = [(); 3].map(|()| b.tensor(tokens, dim, &n.vec(tokens * dim)));
        let [one, two, three] = sums.each_mut().map(|x| Residual { x, norm: &norm, eps: 1e-5 });
        let (experts, dense) = (|| gated(&w), || gated(&shared));
        let all = if fused {
            [
                b.mixture_add_norm(experts(), Some(dense()), &x, &routed, one),
                b.mixture_add_norm(experts(), None, &x, &routed, two),
                b.gated_ffn_add_norm(dense(), &x, three),
            ]
        } else {
            [
                composed::mixture_add_norm(b, experts(), Some(dense()), &x, &routed, one),
                composed::mixture_add_norm(b, experts(), None, &x, &routed, two),
                composed::gated_ffn_add_norm(b, dense(), &x, three),
            ]
        };
        all.iter().chain(&sums).map(|x| b.read(x)).collect()
    }
    let mut n = Numbers(23);
    for (up, down, [dim, hidden, wide]) in [
        (Format::Q4_K, Format::Q6_K, [256, 256, 256]),
        (Format::Q8_0, Format::Q8_0, [96, 64, 128]), // a shared expert of another width
        (Format::F16, Format::F32, [40, 24, 24]),
    ] {
        let mut stack = |count, hidden| {
            [(up, hidden, dim), (up, hidden, dim), (down, dim, hidden)]
                .map(|(format, rows, cols)| n.weight(format, [count, rows, cols]))
        };
        let (w, shared) = (stack(6, hidden), stack(1, wide));
        for tokens in [1, 3, 8, 20] {
            let what = format!("{} {} {dim}, {tokens} tokens", up.name(), down.name());
            let cpu = kernels::cpu::Cpu::detect(Some(2));
            close(&what, &run(&cpu, &w, &shared, tokens, true), &run(&cpu, &w, &shared, tokens, false));
            let Some(cuda) = common::emulator::cuda() else { continue };
            close(&what, &run(cuda, &w, &shared, tokens, true), &run(cuda, &w, &shared, tokens, false));
        }
    }
}

#[test]
fn norms_of_cache_rows() {
    for (format, tolerance) in [(CacheFormat::F32, 2e-5), (CacheFormat::F16, 1e-3), (CacheFormat::Q8_0, 1e-2)]
    {
        for (width, normed) in [(576, 512), (40, 40), (1100, 1030)] {
            for lens in [&[1][..], &[1, 1, 1], &[3, 1]] {
                let mut n = Numbers(24);
                let tokens: usize = lens.iter().sum();
                let (x, w) = (n.vec(2 * tokens * width), n.vec(normed));
                check!(
                    format!("append_norm {format:?} {normed} of {width}, {lens:?}"),
                    cpu within tolerance,
                    cuda within tolerance,
                    |b| {
                        let w = b.weight(vector(&w)).unwrap();
                        let mut caches: Vec<_> = lens.iter().map(|_| b.cache(format, width)).collect();
                        for x in x.chunks(tokens * width) {
                            let x = b.tensor(tokens, width, x);
                            b.append_norm(&mut spans(lens, &mut caches), &x, &w, 1e-5);
                        }
                        let rows = caches.iter().map(|cache| b.cache_read(cache, 0..b.cache_len(cache)));
                        rows.collect::<Vec<_>>()
                    }
                );
            }
        }
    }
}
