//! Compares every op of the CPU and CUDA backends with the reference, on every instruction set and several numbers of
//! threads: odd, empty and extreme sizes, several sequences in a batch, state included.

mod common;

use common::{Numbers, cpus, error, spans, stored, vector};
use kernels::backend::{
    Backend, CacheFormat, Decay, DeltaProjections, DeltaState, DeltaWeights, GatedMlp, Rope, Routing,
};
use kernels::quant::Format;

/// Rows and columns that fill registers, leave a remainder, or are empty.
const SIZES: [[usize; 2]; 7] = [[0, 8], [1, 1], [1, 2304], [3, 7], [2, 33], [65, 128], [300, 100]];

#[test]
fn elements() {
    for [rows, cols] in SIZES {
        let mut n = Numbers(1);
        let x: Vec<f32> = n.vec(rows * cols).iter().map(|x| x * 120.0).collect();
        let y = n.vec(rows * cols);
        check!(format!("elements [{rows}, {cols}]"), |b| {
            let [x, y] = [&x, &y].map(|v| b.tensor(rows, cols, v));
            let mut sum = b.tensor(rows, cols, &b.read(&x));
            b.add(&mut sum, &y);
            let sigmoid = b.sigmoid(b.tensor(rows, cols, &b.read(&x)));
            let limited = b.silu_mul(b.copy(&x), &y, 0.75);
            vec![b.read(&sum), b.read(&sigmoid), b.read(&limited), b.read(&b.silu_mul(x, &y, f32::INFINITY))]
        });
    }
}

#[test]
fn norms() {
    for ([rows, cols], dim) in SIZES.into_iter().zip([8, 1, 128, 7, 11, 64, 25]) {
        let mut n = Numbers(2);
        let (x, gate) = (n.vec(rows * cols), n.vec(rows * cols));
        let (w, head_w, part_w) = (n.vec(cols), n.vec(dim), n.vec(dim));
        check!(format!("norms [{rows}, {cols}] {dim}"), |b| {
            let [w, head_w, part_w] = [&w, &head_w, &part_w].map(|w| b.weight(vector(w)).unwrap());
            let [x, gate] = [&x, &gate].map(|v| b.tensor(rows, cols, v));
            let mut sum = b.copy(&x);
            let of_sum = b.add_rms_norm(&mut sum, &gate, &w, 1e-5);
            vec![
                b.read(&sum),
                b.read(&of_sum),
                b.read(&b.rms_norm(&x, &w, 1e-5)),
                b.read(&b.rms_norm(&x, &part_w, 1e-5)),
                b.read(&b.gated_rms_norm(&x, &head_w, &gate, 1e-6)),
                b.read(&b.l2_norm(x, dim, 1e-6, 0.3)),
            ]
        });
    }
}

/// On the GPU a norm also leaves its result quantized for the next product: the same quants as from its values.
#[test]
fn bytes_of_norms() {
    let Some(b) = common::emulator::cuda() else { return };
    let (rows, cols) = (3, 256);
    let mut n = Numbers(4);
    let weight = |n: &mut Numbers| b.weight(stored(Format::Q8_0, [1, 64, cols], &n.vec(64 * cols))).unwrap();
    let (product, w, head) = (weight(&mut n), n.vec(cols), n.vec(128));
    let [w, head] = [&w, &head].map(|w| b.weight(vector(w)).unwrap());
    let [mut x, y] = [(); 2].map(|()| b.tensor(rows, cols, &n.vec(rows * cols)));
    let gated = b.gated_rms_norm(&x, &head, &y, 1e-5);
    for h in [b.rms_norm(&x, &w, 1e-5), b.add_rms_norm(&mut x, &y, &w, 1e-5), gated] {
        let anew = b.matmul(&product, &b.tensor(rows, cols, &b.read(&h)));
        assert_eq!(b.read(&b.matmul(&product, &h)), b.read(&anew));
    }
}

#[test]
fn extreme_norms() {
    for scale in [0.0, 1e-20, 1e-6, 1e15] {
        let x: Vec<f32> = Numbers(3).vec(2 * 96).iter().map(|x| x * scale).collect();
        check!(format!("norms of values of {scale:e}"), |b| {
            let w = b.weight(vector(&[1.5; 96])).unwrap();
            let x = b.tensor(2, 96, &x);
            vec![b.read(&b.rms_norm(&x, &w, 1e-5)), b.read(&b.l2_norm(x, 32, 1e-6, 1.0))]
        });
    }
}

#[test]
fn rows_of_tables_and_batches() {
    for format in Format::ALL {
        let table = Numbers(4).weight(format, [1, 9, 256]);
        check!(format!("embed {}", format.name()), |b| {
            let table = b.weight(table.clone()).unwrap();
            let x = b.embed(&table, &[8, 0, 3, 3]);
            let [some, one] = [b.gather(&x, &[3, 1]), b.gather(&x, &[2])];
            let all = b.concat(&[&some, &x, &one]);
            vec![
                b.read(&x),
                b.read(&some),
                b.read(&all),
                b.read(&b.concat(&[&one])),
                b.read(&b.embed(&table, &[])),
            ]
        });
    }
}

#[test]
fn products() {
    for format in Format::ALL {
        for [tokens, rows, blocks] in
            [[1, 1, 1], [1, 300, 3], [2, 64, 1], [3, 129, 2], [70, 65, 1], [0, 5, 1]]
        {
            let cols = if format.block_len() == 1 { blocks * 37 } else { blocks * format.block_len() };
            let mut n = Numbers(5);
            let (w, x) = (n.weight(format, [1, rows, cols]), n.quants(tokens * cols));
            check!(format!("matmul {} [{tokens}, {cols}] x [{rows}]", format.name()), |b| {
                vec![b.read(&b.matmul(&b.weight(w.clone()).unwrap(), &b.tensor(tokens, cols, &x)))]
            });
        }
    }
}

#[test]
fn products_of_several_weights() {
    let mut n = Numbers(6);
    let formats = [Format::F32, Format::Q4_K, Format::Q8_0, Format::BF16, Format::Q4_K];
    let rows = [3, 130, 64, 1, 700];
    let w: [_; 5] = std::array::from_fn(|i| n.weight(formats[i], [1, rows[i], 512]));
    for tokens in [1, 2, 67] {
        let x = n.quants(tokens * 512);
        check!(format!("matmuls of {tokens}"), |b| {
            let w = w.each_ref().map(|w| b.weight(w.clone()).unwrap());
            b.matmuls(w.each_ref(), &b.tensor(tokens, 512, &x)).map(|y| b.read(&y)).to_vec()
        });
    }
}

/// Formats that a GPU multiplies in one launch; the last matrix is smaller than a block.
#[test]
fn products_of_several_formats() {
    use Format::{Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0};
    let mut n = Numbers(8);
    let (formats, rows) = ([Q4_K, Q6_K, Q8_0, Q5_K, Q2_K, Q3_K, Q8_0], [130, 64, 257, 1, 33, 70, 5]);
    let w: [_; 7] = std::array::from_fn(|i| n.weight(formats[i], [1, rows[i], 768]));
    for tokens in [1, 3, 8, 9] {
        let x = n.quants(tokens * 768);
        check!(format!("matmuls of {tokens}"), |b| {
            let w = w.each_ref().map(|w| b.weight(w.clone()).unwrap());
            b.matmuls(w.each_ref(), &b.tensor(tokens, 768, &x)).map(|y| b.read(&y)).to_vec()
        });
    }
}

/// The product of a token is bit-identical in any batch and on any number of threads.
#[test]
fn products_do_not_depend_on_the_batch() {
    for format in Format::ALL {
        let mut n = Numbers(7);
        let (w, x) = (n.weight(format, [1, 131, 512]), n.vec(67 * 512));
        for cpus in cpus().chunks(3) {
            let product = |b: &kernels::cpu::Cpu, rows: usize, x: &[f32]| {
                b.read(&b.matmul(&b.weight(w.clone()).unwrap(), &b.tensor(rows, 512, x)))
            };
            let batch = product(&cpus[0], 67, &x);
            assert!(cpus.iter().all(|b| product(b, 67, &x) == batch), "{}: threads", format.name());
            let alone: Vec<f32> = x.chunks(512).flat_map(|x| product(&cpus[1], 1, x)).collect();
            assert_eq!(alone, batch, "{}: alone or in a batch", format.name());
        }
    }
}

#[test]
fn products_by_head() {
    for (format, [count, rows, cols, rest]) in [
        (Format::F32, [3, 5, 7, 2]),
        (Format::Q8_0, [4, 65, 32, 0]),
        (Format::Q8_0, [2, 16, 64, 64]),
        (Format::Q4_K, [1, 8, 256, 1]),
        (Format::F16, [32, 512, 128, 64]),
    ] {
        for tokens in [0, 1, 3, 66] {
            let mut n = Numbers(8);
            let w = n.weight(format, [count, rows, cols]);
            let head = |n: &mut Numbers| [n.quants(cols), n.vec(rest)].concat();
            let x: Vec<f32> = (0..tokens * count).flat_map(|_| head(&mut n)).collect();
            check!(format!("matmul_heads {} {count} x [{rows}, {cols} + {rest}]", format.name()), |b| {
                let x = b.tensor(tokens, count * (cols + rest), &x);
                vec![b.read(&b.matmul_heads(&b.weight(w.clone()).unwrap(), &x))]
            });
        }
    }
}

#[test]
fn short_convolution() {
    for (channels, taps) in [(1, 4), (7, 4), (64, 4), (100, 2), (16, 1), (5, 3)] {
        for lens in [&[1][..], &[5], &[2, 1, 1], &[0, 3], &[1, 70, 1]] {
            let mut n = Numbers(9);
            let tokens: usize = lens.iter().sum();
            let (x, more, w) =
                (n.vec(tokens * channels), n.vec(lens.len() * channels), n.vec(channels * taps));
            let w = stored(Format::F32, [1, channels, taps], &w);
            let past: Vec<Vec<f32>> = lens.iter().map(|_| n.vec((taps - 1) * channels)).collect();
            check!(format!("short_conv {channels} x {taps} over {lens:?}"), |b| {
                let w = b.weight(w.clone()).unwrap();
                let mut states: Vec<_> = past.iter().map(|s| b.tensor(taps - 1, channels, s)).collect();
                let y = b.short_conv(&mut spans(lens, &mut states), &b.tensor(tokens, channels, &x), &w);
                let one = vec![1; lens.len()];
                let z = b.tensor(lens.len(), channels, &more);
                let z = b.short_conv(&mut spans(&one, &mut states), &z, &w);
                let last: Vec<_> = states.iter().map(|s| b.read(s)).collect();
                b.advance_conv(&mut spans(lens, &mut states), &b.tensor(tokens, channels, &x), &w);
                let advanced = states.iter().map(|s| b.read(s)).collect();
                [vec![b.read(&y), b.read(&z)], last, advanced].concat()
            });
        }
    }
}

/// One launch if each sequence has one token, the composed ops otherwise; 40 sequences are two launches.
#[test]
fn delta_attention() {
    for (heads, dim, taps) in [(2, 128, 4), (3, 24, 4), (1, 7, 1), (4, 32, 2), (2, 64, 1)] {
        for (lens, decay) in [&[1][..], &[1, 1, 1], &[2, 1], &[0, 3], &[1; 40]]
            .into_iter()
            .flat_map(|lens| [(lens, Decay::Softplus), (lens, Decay::Bounded(-5.0))])
        {
            let mut n = Numbers(12);
            let (tokens, channels) = (lens.iter().sum::<usize>(), heads * dim);
            let projections: [Vec<f32>; 5] = std::array::from_fn(|_| n.vec(tokens * channels));
            let beta = n.vec(tokens * heads);
            let weights: [_; 3] = std::array::from_fn(|_| n.vec(channels * taps));
            let weights = weights.map(|w| stored(Format::F32, [1, channels, taps], &w));
            let (a, bias, norm) = (n.vec(heads), n.vec(channels), n.vec(dim));
            let past: Vec<Vec<f32>> = lens.iter().map(|_| n.vec((taps - 1) * channels)).collect();
            let s = n.vec(channels * dim);
            check!(format!("delta_attention {heads} x {dim}, {taps} taps, over {lens:?}, {decay:?}"), |b| {
                let weights = weights.each_ref().map(|w| b.weight(w.clone()).unwrap());
                let [a, dt_bias, norm] = [&a, &bias, &norm].map(|w| b.weight(vector(w)).unwrap());
                let w = DeltaWeights {
                    taps: weights.each_ref(),
                    a: &a,
                    dt_bias: &dt_bias,
                    decay,
                    norm: &norm,
                    head_dim: dim,
                    scale: 0.3,
                    l2_eps: 1e-6,
                    norm_eps: 1e-5,
                };
                let state = |past: &Vec<f32>| DeltaState {
                    s: b.tensor(channels, dim, &s),
                    conv: [0.0, 1.0, 2.0].map(|by| past_of(b, taps, channels, past, by)),
                };
                let mut states: Vec<_> = past.iter().map(state).collect();
                let [q, k, v, f, gate] = projections.each_ref().map(|x| b.tensor(tokens, channels, x));
                let x = DeltaProjections { q, k, v, f, beta: b.tensor(tokens, heads, &beta), gate };
                let y = b.delta_attention(&mut spans(lens, &mut states), x, &w);
                let states = states.iter().flat_map(|s| std::iter::once(&s.s).chain(&s.conv));
                std::iter::once(&y).chain(states).map(|x| b.read(x)).collect::<Vec<_>>()
            });
        }
    }
}

/// The state of one of three convolutions, different for each.
fn past_of<B: Backend>(b: &B, taps: usize, channels: usize, past: &[f32], by: f32) -> B::Tensor {
    b.tensor(taps - 1, channels, &past.iter().map(|x| x + by).collect::<Vec<_>>())
}

/// Gates that saturate, and a head of one column.
#[test]
fn gates_of_heads() {
    for [tokens, heads, dim] in [[1, 1, 1], [3, 4, 32], [2, 5, 7], [70, 16, 128]] {
        let mut n = Numbers(31);
        let (x, gate) =
            (n.vec(tokens * heads * dim), n.vec(tokens * heads).iter().map(|x| x * 60.0).collect::<Vec<_>>());
        check!(format!("gate_heads {tokens} x {heads} x {dim}"), |b| {
            vec![b.read(&b.gate_heads(b.tensor(tokens, heads * dim, &x), &b.tensor(tokens, heads, &gate)))]
        });
    }
}

/// Sequences with and without past, a whole head that rotates, and positions far beyond f32's exact angles.
#[test]
fn rotations() {
    for (heads, nope, dims, latent) in [(1, 0, 2, 1), (3, 5, 6, 32), (16, 128, 64, 512)] {
        for lens in [&[1][..], &[3, 0, 2], &[1; 40]] {
            let mut n = Numbers(32);
            let (tokens, width) = (lens.iter().sum::<usize>(), latent + dims);
            let (q, kv) = (n.vec(tokens * heads * (nope + dims)), n.vec(tokens * width));
            let rope = Rope { heads, dims, base: 6e6 };
            check!(format!("rotate {heads} x {nope} + {dims} over {lens:?}"), |b| {
                let past = |rows: usize| {
                    let mut cache = b.cache(CacheFormat::F16, width);
                    b.append(
                        &mut spans(&[rows], std::slice::from_mut(&mut cache)),
                        &b.tensor(rows, width, &vec![0.0; rows * width]),
                    );
                    cache
                };
                let mut caches: Vec<_> = (0..lens.len()).map(|i| past([0, 7, 2_000][i % 3])).collect();
                let (mut q, mut kv) =
                    (b.tensor(tokens, heads * (nope + dims), &q), b.tensor(tokens, width, &kv));
                b.rotate(&mut spans(lens, &mut caches), &mut q, &mut kv, rope);
                vec![b.read(&q), b.read(&kv)]
            });
        }
    }
}

#[test]
fn decay() {
    for [tokens, heads, dim] in [[1, 1, 1], [3, 4, 32], [2, 5, 7], [70, 2, 128]] {
        let mut n = Numbers(10);
        let f: Vec<f32> = (0..tokens * heads * dim).map(|_| n.uniform(-40.0, 100.0)).collect();
        let a: Vec<f32> = (0..heads).map(|_| -n.uniform(0.0, 16.0)).collect();
        let bias = n.vec(heads * dim);
        check!(format!("kda_decay {tokens} x {heads} x {dim}"), |b| {
            let [a, bias] = [&a, &bias].map(|w| b.weight(vector(w)).unwrap());
            let x = b.tensor(tokens, heads * dim, &f);
            let decays = [Decay::Softplus, Decay::Bounded(-5.0)];
            decays.map(|decay| b.read(&b.kda_decay(b.copy(&x), &a, &bias, decay))).to_vec()
        });
    }
}

#[test]
fn routing() {
    for (experts, top_k, groups, top_groups) in
        [(256, 8, 1, 1), (256, 8, 8, 4), (7, 7, 1, 1), (12, 3, 4, 2), (6, 1, 6, 1), (1, 1, 1, 1)]
    {
        let how = Routing { top_k, groups, top_groups, normalize: top_k > 1, scale: 2.446 };
        let mut n = Numbers(11);
        let logits: Vec<f32> = (0..5 * experts).map(|_| n.uniform(-4.0, 4.0)).collect();
        let bias: Vec<f32> = n.vec(experts).iter().map(|b| b * 0.1).collect();
        check!(format!("route {experts} {how:?}"), |b| {
            let routed = b.route(&b.tensor(5, experts, &logits), &b.weight(vector(&bias)).unwrap(), how);
            let (chosen, weights) = b.routed(&routed);
            vec![chosen.iter().map(|&e| e as f32).collect(), weights]
        });
    }
}

#[test]
fn routing_ties_and_nan() {
    let how = Routing { top_k: 3, groups: 2, top_groups: 1, normalize: true, scale: 1.0 };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for (logits, first) in [
        ([0.0; 6], [0, 1, 2]),
        ([0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [2, 0, 1]),
        ([0.0, 0.0, 0.0, 1.0, 2.0, 1.0], [4, 3, 5]),
        ([nan, nan, nan, 0.0, 0.0, nan], [3, 4, 5]),
        ([nan; 6], [0, 1, 2]),
        ([-inf, -inf, inf, inf, inf, -inf], [3, 4, 5]),
    ] {
        let run = |b: &kernels::cpu::Cpu| {
            let routed = b.route(&b.tensor(1, 6, &logits), &b.weight(vector(&[0.0; 6])).unwrap(), how);
            b.routed(&routed).0
        };
        cpus().iter().for_each(|b| assert_eq!(run(b), first, "{logits:?}"));
        let b = kernels::reference::Reference;
        let routed = b.route(&b.tensor(1, 6, &logits), &vector(&[0.0; 6]), how);
        assert_eq!(b.routed(&routed).0, first, "reference, {logits:?}");
    }
    // With one group the device keeps the scores in registers.
    let Some(cuda) = common::emulator::cuda() else { return };
    let how = Routing { groups: 1, ..how };
    let mut n = Numbers(3);
    let some = [nan, inf, -inf, 0.0, -0.0, 1.0, -1.0, 30.0];
    for experts in [3, 8, 33, 256] {
        let logits: Vec<f32> = (0..4 * experts).map(|_| some[n.below(some.len())]).collect();
        let (bias, how) = (vec![0.0; experts], Routing { top_k: experts.min(32), ..how });
        let reference = kernels::reference::Reference;
        let expected = reference.route(&reference.tensor(4, experts, &logits), &vector(&bias), how);
        let bias = cuda.weight(vector(&bias)).unwrap();
        let got = cuda.route(&cuda.tensor(4, experts, &logits), &bias, how);
        assert_eq!(cuda.routed(&got).0, reference.routed(&expected).0, "{experts} experts of {logits:?}");
    }
}

/// The experts of a layer, in formats that hold the test's activations exactly.
fn expert_weights(
    up: Format,
    down: Format,
    [n, dim, hidden]: [usize; 3],
) -> [kernels::backend::QuantTensor; 3] {
    let mut numbers = Numbers(12);
    let mut weight = |format, shape| numbers.weight(format, shape);
    [weight(up, [n, hidden, dim]), weight(up, [n, hidden, dim]), weight(down, [n, dim, hidden])]
}

fn run_experts<B: Backend>(
    b: &B,
    w: &[kernels::backend::QuantTensor; 3],
    x: &[f32],
    top_k: usize,
) -> Vec<f32> {
    let [gate, up, down] = w.each_ref().map(|w| b.weight(w.clone()).unwrap());
    let (n, dim) = (w[0].count, w[0].cols);
    let tokens = x.len() / dim;
    let logits: Vec<f32> =
        x.chunks(dim).flat_map(|x| (0..n).map(|e| ((x[1] as usize + e * 7) % 11) as f32 * 0.3)).collect();
    let how = Routing { top_k, groups: 1, top_groups: 1, normalize: true, scale: 2.0 };
    let routed = b.route(&b.tensor(tokens, n, &logits), &b.weight(vector(&vec![0.0; n])).unwrap(), how);
    b.read(&b.experts(
        GatedMlp { gate: &gate, up: &up, down: &down, limit: f32::INFINITY },
        &b.tensor(tokens, dim, x),
        &routed,
    ))
}

#[test]
fn experts() {
    for (up, shape, top_k) in [
        (Format::F32, [1, 5, 3], 1),
        (Format::F32, [9, 37, 70], 4),
        (Format::Q8_0, [7, 64, 130], 3),
        (Format::Q4_K, [5, 256, 65], 5),
        (Format::BF16, [4, 130, 9], 2),
    ] {
        let w = expert_weights(up, Format::F16, shape);
        for tokens in [0, 1, 2, 90] {
            let x = Numbers(13).quants(tokens * shape[1]);
            check!(format!("experts {} {shape:?}, {tokens} tokens", up.name()), |b| vec![run_experts(
                b, &w, &x, top_k
            )]);
        }
    }
}

/// The experts' results for a token are bit-identical in any batch and on any number of threads.
#[test]
fn experts_do_not_depend_on_the_batch() {
    for (up, down) in [(Format::Q4_K, Format::Q8_0), (Format::F32, Format::Q4_K), (Format::Q8_0, Format::F32)]
    {
        let w = expert_weights(up, down, [6, 256, 256]);
        let x = Numbers(14).vec(70 * 256).iter().map(|x| x * 9.0 + 9.0).collect::<Vec<f32>>();
        for cpus in cpus().chunks(3) {
            let batch = run_experts(&cpus[0], &w, &x, 3);
            assert!(cpus.iter().all(|b| run_experts(b, &w, &x, 3) == batch), "threads");
            let alone: Vec<f32> = x.chunks(256).flat_map(|x| run_experts(&cpus[1], &w, x, 3)).collect();
            assert_eq!(alone, batch, "alone or in a batch");
        }
    }
}

/// A fused product is the composition of its parts.
#[test]
fn gated_ffn_is_its_parts() {
    let w = expert_weights(Format::F32, Format::F32, [1, 70, 33]);
    let x = Numbers(15).vec(3 * 70);
    check!("gated_ffn", |b| {
        let [gate, up, down] = w.each_ref().map(|w| b.weight(w.clone()).unwrap());
        vec![b.read(&b.gated_ffn(
            GatedMlp { gate: &gate, up: &up, down: &down, limit: f32::INFINITY },
            &b.tensor(3, 70, &x),
        ))]
    });
    let b = &cpus()[1];
    let [gate, up, down] = w.each_ref().map(|w| b.weight(w.clone()).unwrap());
    let x = b.tensor(3, 70, &x);
    let parts = b.matmul(&down, &b.silu_mul(b.matmul(&gate, &x), &b.matmul(&up, &x), f32::INFINITY));
    let fused = b.gated_ffn(GatedMlp { gate: &gate, up: &up, down: &down, limit: f32::INFINITY }, &x);
    assert_eq!(error(&b.read(&fused), &b.read(&parts)), 0.0);
}

/// The kernels of one token that exist once per format: by head, the router of float formats, and the fused feed-forward of
/// block formats, which rounds what is between its products to int8; a value may round differently at a half.
#[test]
fn fused_kernels_of_every_format() {
    let how = Routing { top_k: 3, groups: 1, top_groups: 1, normalize: true, scale: 2.0 };
    for format in Format::ALL {
        let mut n = Numbers(17);
        let (heads, router, bias) =
            (n.weight(format, [2, 33, 256]), n.weight(format, [1, 12, 256]), n.vec(12));
        let x = n.quants(2 * 256);
        check!(format!("one token by head, {}", format.name()), |b| {
            vec![b.read(&b.matmul_heads(&b.weight(heads.clone()).unwrap(), &b.tensor(1, 512, &x)))]
        });
        check!(format!("the router of one token, {}", format.name()), |b| {
            let [router, bias] = [router.clone(), vector(&bias)].map(|w| b.weight(w).unwrap());
            let (chosen, weights) =
                b.routed(&b.matmul_route(&router, &b.tensor(1, 256, &x[..256]), &bias, how));
            vec![chosen.iter().map(|e| *e as f32).collect(), weights]
        });
        let w = expert_weights(format, format, [1, 256, 256]);
        let [gate, up, down] = w.each_ref();
        let reference = &kernels::reference::Reference;
        let row = reference.tensor(1, 256, &x[..256]);
        let inner =
            reference.silu_mul(reference.matmul(gate, &row), &reference.matmul(up, &row), f32::INFINITY);
        let mut inner = reference.read(&inner);
        for block in inner.chunks_mut(32).filter(|_| format.block_len() > 1) {
            let d = block.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
            block.iter_mut().for_each(|x| *x = (*x / d).round_ties_even() * d);
        }
        let expected = reference.read(&reference.matmul(down, &reference.tensor(1, 256, &inner)));
        let Some(b) = common::emulator::cuda() else { continue };
        let [gate, up, down] = w.each_ref().map(|w| b.weight(w.clone()).unwrap());
        let ffn = GatedMlp { gate: &gate, up: &up, down: &down, limit: f32::INFINITY };
        let got = b.read(&b.gated_ffn(ffn, &b.tensor(1, 256, &x[..256])));
        common::close_within(2e-3, &format!("ffn {}", format.name()), &[got], &[expected]);
    }
}

/// Work that is captured for timing gives the same results as uncaptured work, then and afterwards.
#[test]
fn timed_work_on_the_emulator() {
    let Some(b) = common::emulator::cuda() else { return };
    let mut n = Numbers(16);
    let w = b.weight(n.weight(Format::Q4_K, [1, 65, 256])).unwrap();
    let x = b.tensor(9, 256, &n.quants(9 * 256));
    let expected = b.read(&b.matmul(&w, &x));
    let mut sums = b.tensor(9, 65, &[0.0; 9 * 65]);
    let seconds = b.time(3, |_| b.add(&mut sums, &b.matmul(&w, &x)));
    assert!(seconds > 0.0 && seconds.is_finite());
    // Three to warm up, four times three measured.
    let fifteen: Vec<f32> = expected.iter().map(|y| (0..15).fold(0.0, |sum, _| sum + y)).collect();
    assert_eq!(b.read(&sums), fifteen);
    assert_eq!(b.read(&b.matmul(&w, &x)), expected);
}
