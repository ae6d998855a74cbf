//! Measures the CPU ops at the shapes of Kimi Linear 48B: `cargo bench -p kernels --bench ops [FILTER]`.
//!
//! Each op is checked before it is timed; times are medians of 5. Weights of decode exceed the caches, so that their GB/s
//! compare with the line `memory read`.

#[path = "../tests/common/mod.rs"]
mod common;

use bytes::Bytes;
use common::{Numbers, error, stored, vector};
use kernels::backend::{
    Backend, CacheFormat, DeltaRule, GatedMlp, KvUpProjection, QuantTensor, Routing, Span,
};
use kernels::cpu::Cpu;
use kernels::quant::Format;
use kernels::reference::Reference;
use std::time::Instant;

/// Seconds of one call, the median of 5 runs of `calls` calls.
fn seconds(calls: usize, mut call: impl FnMut(usize)) -> f64 {
    let run = |_| {
        let begun = Instant::now();
        (0..calls).for_each(&mut call);
        begun.elapsed().as_secs_f64() / calls as f64
    };
    let mut runs: Vec<f64> = (0..5).map(run).collect();
    runs.sort_by(f64::total_cmp);
    runs[2]
}

/// Prints a line: time, then rate.
fn line(what: &str, seconds: f64, amount: f64, unit: &str) {
    println!("{what:<44} {:>10.1} us {:>8.1} G{unit}/s", seconds * 1e6, amount / seconds / 1e9);
}

/// A weight of one random row, repeated: the values do not affect the speed.
fn repeated(format: Format, [count, rows, cols]: [usize; 3]) -> QuantTensor {
    let row = Numbers(1).weight(format, [1, 1, cols]);
    let bytes = Bytes::from(row.bytes.repeat(count * rows));
    QuantTensor { name: "".into(), format, count, rows, cols, bytes }
}

fn memory(cpu: &Cpu) {
    let words = vec![1u64; 1 << 27]; // 1 GiB
    let read = || {
        let sum = std::sync::atomic::AtomicU64::new(0);
        cpu.pool().parallel_for(words.len() >> 15, |i| {
            let sums = words[i << 15..][..1 << 15].chunks_exact(8).fold([0u64; 8], |mut sums, eight| {
                sums.iter_mut().zip(eight).for_each(|(s, x)| *s = s.wrapping_add(*x));
                sums
            });
            sum.fetch_add(sums.iter().sum(), std::sync::atomic::Ordering::Relaxed);
        });
        sum.into_inner()
    };
    assert_eq!(read(), 1 << 27);
    line("memory read", seconds(2, |_| _ = read()), (1u64 << 30) as f64, "B");
}

fn regions(cpu: &Cpu) {
    let time = seconds(20_000, |_| cpu.pool().parallel_for(8, |i| _ = std::hint::black_box(i)));
    println!("{:<44} {:>10.2} us", "a parallel region of 8 chunks", time * 1e6);
}

fn products(cpu: &Cpu, format: Format) {
    let (rows, cols, copies) = (4096, 2304, 12);
    let w = repeated(format, [1, rows, cols]);
    let bytes = w.bytes.len();
    // Separate copies that together exceed the caches.
    let own = |w: &QuantTensor| QuantTensor { bytes: Bytes::from(w.bytes.to_vec()), ..w.clone() };
    let weights: Vec<_> = (0..copies).map(|_| cpu.weight(own(&w)).unwrap()).collect();
    let x = Numbers(2).quants(128 * cols);
    let (one, batch) = (cpu.tensor(1, cols, &x[..cols]), cpu.tensor(128, cols, &x));
    let few = QuantTensor { rows: 1, bytes: w.bytes.slice(..bytes / rows), ..w.clone() };
    let expected = Reference.read(&Reference.matmul(&few, &Reference.tensor(128, cols, &x)));
    let got = cpu.read(&cpu.matmul(&weights[0], &batch));
    assert!(
        error(&got.iter().step_by(rows).copied().collect::<Vec<_>>(), &expected) < 2e-5,
        "{}",
        format.name()
    );
    assert_eq!(cpu.read(&cpu.matmul(&weights[1], &one)), got[..rows]);
    let time = seconds(2 * copies, |i| drop(cpu.matmul(&weights[i % copies], &one)));
    line(&format!("matmul 2304 -> 4096 {}, 1 token", format.name()), time, bytes as f64, "B");
    let time = seconds(2, |i| drop(cpu.matmul(&weights[i], &batch)));
    line(
        &format!("matmul 2304 -> 4096 {}, 128 tokens", format.name()),
        time,
        (2 * 128 * rows * cols) as f64,
        "FLOP",
    );
}

fn experts(cpu: &Cpu, format: Format) {
    let (n, dim, hidden, top_k, batch) = (256, 2304, 1024, 8, 512);
    let [up, down] = [[n, hidden, dim], [n, dim, hidden]].map(|shape| repeated(format, shape));
    let bytes = (2 * up.bytes.len() + down.bytes.len()) / n * top_k;
    let [gate, up, down] = [up.clone(), up, down].map(|w| cpu.weight(w).unwrap());
    let w = || GatedMlp { gate: &gate, up: &up, down: &down, limit: f32::INFINITY };
    let x = cpu.tensor(batch, dim, &Numbers(3).vec(batch * dim));
    let bias = cpu.weight(vector(&vec![0.0; n])).unwrap();
    let how = Routing { top_k, groups: 1, top_groups: 1, normalize: true, scale: 2.446 };
    let logits = Numbers(4).vec(batch * n);
    let routed = cpu.route(&cpu.tensor(batch, n, &logits), &bias, how);
    let ones: Vec<_> =
        logits.chunks(n).take(64).map(|row| cpu.route(&cpu.tensor(1, n, row), &bias, how)).collect();
    let xs: Vec<_> = (0..64).map(|t| cpu.gather(&x, &[t])).collect();
    let whole = cpu.read(&cpu.experts(w(), &x, &routed));
    assert_eq!(cpu.read(&cpu.experts(w(), &xs[5], &ones[5])), whole[5 * dim..6 * dim]);
    let time = seconds(64, |t| drop(cpu.experts(w(), &xs[t], &ones[t])));
    line(&format!("experts 8 of 256 {}, 1 token", format.name()), time, bytes as f64, "B");
    let time = seconds(1, |_| drop(cpu.experts(w(), &x, &routed)));
    let flops = (2 * 3 * batch * top_k * dim * hidden) as f64;
    line(&format!("experts 8 of 256 {}, {batch} tokens", format.name()), time, flops, "FLOP");
}

fn delta_rule(cpu: &Cpu) {
    let (heads, d) = (32, 128);
    for tokens in [1, 8, 16, 32, 64, 256, 2048] {
        let mut n = Numbers(5);
        let [q, k] = [0; 2].map(|_| cpu.tensor(tokens, heads * d, &n.unit_rows(tokens * heads, d)));
        let v = cpu.tensor(tokens, heads * d, &n.vec(tokens * heads * d));
        let g: Vec<f32> = n.vec(tokens * heads * d).iter().map(|g| -g.abs()).collect();
        let g = cpu.tensor(tokens, heads * d, &g);
        let beta = cpu.tensor(tokens, heads, &vec![0.5; tokens * heads]);
        let x = || DeltaRule { q: &q, k: &k, v: &v, g: &g, beta: &beta };
        let run = |s: &mut _| cpu.delta_rule(&mut [Span { rows: 0..tokens, state: s }], x());
        let s = n.vec(heads * d * d);
        let mut states: Vec<_> = (0..20).map(|_| cpu.tensor(heads * d, d, &s)).collect();
        // The states of 20 layers in turn, as a decoded token uses them.
        let time = seconds(20, |i| drop(run(&mut states[i])));
        let flops = (tokens * heads * 7 * d * d) as f64;
        line(&format!("delta rule 32 x 128, {tokens} tokens"), time, flops, "FLOP");
    }
}

/// A token and a draft of 7: verifying all, advancing past accepted tokens, and what a copy of the state costs.
fn drafts(cpu: &Cpu) {
    let (heads, d, tokens) = (32, 128, 8);
    let mut n = Numbers(15);
    let [q, k] = [0; 2].map(|_| cpu.tensor(tokens, heads * d, &n.unit_rows(tokens * heads, d)));
    let v = cpu.tensor(tokens, heads * d, &n.vec(tokens * heads * d));
    let g = cpu.tensor(tokens, heads * d, &vec![-0.1; tokens * heads * d]);
    let beta = cpu.tensor(tokens, heads, &vec![0.5; tokens * heads]);
    let x = || DeltaRule { q: &q, k: &k, v: &v, g: &g, beta: &beta };
    let s = n.vec(heads * d * d);
    // The states of 20 layers in turn, and their bytes.
    let mut states: Vec<_> = (0..20).map(|_| cpu.tensor(heads * d, d, &s)).collect();
    let bytes = (4 * heads * d * d) as f64;
    let rule = |rows: std::ops::Range<usize>, s: &mut _| {
        drop(cpu.delta_rule(&mut [Span { rows, state: s }], x()));
    };
    let time = seconds(20, |i| rule(0..1, &mut states[i]));
    line("delta rule, 1 token: state once", time, 2.0 * bytes, "B");
    let draft = |s: &mut _| drop(cpu.delta_rule_draft(&mut [Span { rows: 0..8, state: s }], x()));
    let time = seconds(20, |i| draft(&mut states[i]));
    line("draft of 7: state once", time, 2.0 * bytes, "B");
    for accepted in [1, 7] {
        let time = seconds(20, |i| rule(1..1 + accepted, &mut states[i]));
        line(&format!("accepting {accepted} of them: state once more"), time, 2.0 * bytes, "B");
    }
    let time = seconds(20, |i| rule(0..8, &mut states[i]));
    line("delta rule, 8 tokens: state once", time, 2.0 * bytes, "B");
    let mut copies: Vec<_> = states.iter().map(|s| cpu.copy(s)).collect();
    let time = seconds(20, |i| copies[i] = cpu.copy(&states[i]));
    line("copy of the state", time, 2.0 * bytes, "B");
}

fn attention(cpu: &Cpu) {
    let (heads, width, value_dim, depth) = (32, 576, 512, 8192);
    let rows = Numbers(6).vec(depth * width);
    let all = cpu.tensor(depth, width, &rows);
    for format in [CacheFormat::F16, CacheFormat::Q8_0] {
        let mut cache = cpu.cache(format, width);
        cpu.append(&mut [Span { rows: 0..depth, state: &mut cache }], &all);
        for tokens in [1, 64] {
            let q = Numbers(7).vec(tokens * heads * width);
            let q = cpu.tensor(tokens, heads * width, &q);
            let run = |cache: &mut _| {
                cpu.latent_attention(&mut [Span { rows: 0..tokens, state: cache }], &q, value_dim, 0.07)
            };
            let got = cpu.read(&run(&mut cache));
            let last = cpu.gather(&q, &[tokens - 1]);
            let mut one = [Span { rows: 0..1, state: &mut cache }];
            let last = cpu.read(&cpu.latent_attention(&mut one, &last, value_dim, 0.07));
            assert!(error(&last, &got[(tokens - 1) * heads * value_dim..]) < 2e-5);
            let time = seconds(2, |_| drop(run(&mut cache)));
            let flops = (2 * tokens * heads * (width + value_dim) * depth) as f64;
            line(&format!("attention over 8192 rows {format:?}, {tokens} tokens"), time, flops, "FLOP");
        }
    }
}

/// A batch of a long prompt: materialized against absorbed attention.
fn materialized(cpu: &Cpu) {
    let (heads, [nope, pe, latent, dim], depth) = (32, [128, 64, 512, 128], 8192);
    let mut cache = cpu.cache(CacheFormat::Q8_0, latent + pe);
    let rows = cpu.tensor(depth, latent + pe, &Numbers(12).vec(depth * (latent + pe)));
    cpu.append(&mut [Span { rows: 0..depth, state: &mut cache }], &rows);
    let weight = |shape: [usize; 3]| {
        let values: Vec<f32> = Numbers(13).vec(shape.iter().product()).iter().map(|w| w * 0.04).collect();
        cpu.weight(stored(Format::Q8_0, shape, &values)).unwrap()
    };
    let (k, v) = (weight([heads, latent, nope]), weight([heads, dim, latent]));
    for tokens in [128, 512, 1024] {
        let q = cpu.tensor(tokens, heads * (nope + pe), &Numbers(14).vec(tokens * heads * (nope + pe)));
        let w = || KvUpProjection { k: &k, v: &v, latent };
        let absorbed = |cache: &mut _| {
            let q = cpu.matmul_heads(&k, &q);
            let mut span = [Span { rows: 0..tokens, state: cache }];
            cpu.matmul_heads(&v, &cpu.latent_attention(&mut span, &q, latent, 0.07))
        };
        let materialized = |cache: &mut _| {
            cpu.materialized_attention(&mut [Span { rows: 0..tokens, state: cache }], &q, w(), 0.07)
        };
        let [a, b] = [cpu.read(&absorbed(&mut cache)), cpu.read(&materialized(&mut cache))];
        assert!(error(&a, &b) < 0.05, "{}", error(&a, &b)); // the absorbed path rounds the queries to 8 bits
        let time = seconds(1, |_| drop(absorbed(&mut cache)));
        let flops = (2 * tokens * heads * (2 * latent + pe) * depth) as f64;
        line(&format!("absorbed attention, {tokens} tokens"), time, flops, "FLOP");
        let time = seconds(1, |_| drop(materialized(&mut cache)));
        let flops = 2 * heads * depth * (tokens * (nope + pe + dim) + latent * (nope + dim));
        line(&format!("materialized attention, {tokens} tokens"), time, flops as f64, "FLOP");
    }
}

fn rows(cpu: &Cpu) {
    let w = cpu.weight(vector(&Numbers(8).vec(2304))).unwrap();
    let taps = cpu.weight(stored(Format::F32, [1, 4096, 4], &Numbers(9).vec(4 * 4096))).unwrap();
    for tokens in [1, 256] {
        let x = cpu.tensor(tokens, 2304, &Numbers(10).vec(tokens * 2304));
        let y = cpu.tensor(tokens, 4096, &Numbers(11).vec(tokens * 4096));
        let mut state = cpu.tensor(3, 4096, &[0.0; 3 * 4096]);
        assert!(cpu.read(&cpu.rms_norm(&x, &w, 1e-5)).iter().all(|y| y.is_finite()));
        let time = seconds(200, |_| drop(cpu.rms_norm(&x, &w, 1e-5)));
        line(&format!("rms_norm 2304, {tokens} tokens"), time, (tokens * 2304 * 8) as f64, "B");
        let time = seconds(200, |_| {
            drop(cpu.short_conv(&mut [Span { rows: 0..tokens, state: &mut state }], &y, &taps));
        });
        line(&format!("short_conv 4096 x 4, {tokens} tokens"), time, (tokens * 4096 * 8) as f64, "B");
    }
}

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let cpu = Cpu::detect(None);
    println!("{}", cpu.describe());
    let wanted = |what: &str| what.contains(&filter);
    let formats = [Format::F32, Format::BF16, Format::Q8_0, Format::Q4_K];
    let all: [(&str, &dyn Fn()); 9] = [
        ("memory", &|| memory(&cpu)),
        ("regions", &|| regions(&cpu)),
        ("rows", &|| rows(&cpu)),
        ("matmul", &|| formats.iter().for_each(|format| products(&cpu, *format))),
        ("experts", &|| [Format::Q8_0, Format::Q4_K].iter().for_each(|format| experts(&cpu, *format))),
        ("delta_rule", &|| delta_rule(&cpu)),
        ("drafts", &|| drafts(&cpu)),
        ("attention", &|| attention(&cpu)),
        ("materialized", &|| materialized(&cpu)),
    ];
    all.iter().filter(|(what, _)| wanted(what)).for_each(|(_, bench)| bench());
}
