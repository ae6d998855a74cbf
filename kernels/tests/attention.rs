//! Attention over the latent cache against the reference, in every cache format; caches that are cloned,
//! truncated and continued; results that do not depend on how a prompt was cut. `int8_attention` tests Q8_0 closely.

mod common;

use common::{Numbers, cpus, emulator::cuda, error, spans, stored};
use kernels::backend::{Backend, CacheFormat, KvUpProjection, QuantTensor, Span};
use kernels::cpu::Cpu;
use kernels::quant::Format;
use kernels::reference::Reference;

const FORMATS: [CacheFormat; 3] = [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0];

/// Random queries and cache rows of a head count and a width.
struct AttentionInputs {
    heads: usize,
    width: usize,
    value_dim: usize,
    scale: f32,
    rows: Vec<f32>,
    q: Vec<f32>,
}

impl AttentionInputs {
    fn new(tokens: usize, heads: usize, width: usize, value_dim: usize) -> AttentionInputs {
        let mut n = Numbers(1);
        let rows = n.vec(tokens * width);
        // Multiples of 1/32 with a 127/32 in each block of 32, which Q8_0 represents exactly.
        let level =
            |(i, q): (usize, &f32)| if i % 32 == 5 { 127.0 } else { (q * 96.0).round().clamp(-127.0, 127.0) };
        let q = n.vec(tokens * heads * width).iter().enumerate().map(|q| level(q) / 32.0).collect();
        // Shapes with the published values use the published scale, which keeps scores within a few units.
        let scale = if value_dim == 512 { 192_f32.powf(-0.5) } else { 0.3 };
        AttentionInputs { heads, width, value_dim, scale, rows, q }
    }

    /// Appends the rows of tokens `from..to`.
    fn append<B: Backend>(&self, b: &B, cache: &mut B::Cache, from: usize, to: usize) {
        let rows = b.tensor(to - from, self.width, &self.rows[from * self.width..to * self.width]);
        b.append(&mut [Span { rows: 0..to - from, state: cache }], &rows);
    }

    /// Appends tokens `from..to` and attends with them.
    fn attend<B: Backend>(&self, b: &B, cache: &mut B::Cache, from: usize, to: usize) -> Vec<f32> {
        self.append(b, cache, from, to);
        let cols = self.heads * self.width;
        let q = b.tensor(to - from, cols, &self.q[from * cols..to * cols]);
        let mut spans = [Span { rows: 0..to - from, state: cache }];
        b.read(&b.latent_attention(&mut spans, &q, self.value_dim, self.scale))
    }
}

#[test]
fn one_sequence() {
    for (heads, width, value_dim, cuts) in [
        (1, 1, 1, &[1, 2, 5][..]),
        (3, 7, 5, &[4, 4, 40]),
        (4, 48, 32, &[31, 32, 33, 64, 255, 256, 257, 300]),
        (32, 576, 512, &[33, 34]),
        (64, 544, 512, &[33, 34]),
        (2, 40, 40, &[600, 601, 602]),
        (5, 96, 70, &[1, 40, 70]),
    ] {
        let x = AttentionInputs::new(*cuts.last().unwrap(), heads, width, value_dim);
        for format in FORMATS {
            let within = if value_dim == 512 && format != CacheFormat::F32 { 2e-3 } else { 2e-5 };
            let int8 = format == CacheFormat::Q8_0 && [width, value_dim].iter().all(|n| n % 32 == 0);
            let cpu = if int8 { 0.012 } else { 2e-5 };
            check!(format!("{format:?} {heads} heads, {width} -> {value_dim}"), cpu within cpu, cuda within within, |b| {
                let mut cache = b.cache(format, width);
                let ends = [&[0], cuts].concat();
                let o = ends.windows(2).flat_map(|w| x.attend(b, &mut cache, w[0], w[1])).collect();
                assert_eq!(b.cache_len(&cache), *cuts.last().unwrap());
                vec![o, b.cache_read(&cache, 0..ends[1]), b.cache_read(&cache, ends[1]..b.cache_len(&cache))]
            });
        }
    }
}

/// Attention over a Q8_0 cache quantizes the queries. Rounding moves a value by up to 9 / 254, so a score over 96 values by
/// 0.06 on average, and its weight by as much.
#[test]
fn queries_as_levels() {
    let mut x = AttentionInputs::new(290, 8, 96, 64);
    x.q = Numbers(3).vec(x.q.len()).iter().map(|q| q * 3.0).collect();
    let exact = x.attend(&Reference, &mut Reference.cache(CacheFormat::Q8_0, 96), 0, 290);
    for cpu in cpus() {
        let got = x.attend(&cpu, &mut cpu.cache(CacheFormat::Q8_0, 96), 0, 290);
        let moved = error(&got, &exact);
        assert!((1e-4..0.06).contains(&moved), "{}: {moved:e} of the maximum", cpu.describe());
    }
}

/// Materialized keys and values, from matrices in several formats. The GPU rounds the queries to 8 bits instead.
#[test]
fn materialized() {
    for (heads, [nope, pe, latent, dim], ends) in [
        (1, [1, 0, 1, 1], &[0, 3, 4][..]),
        (3, [5, 2, 7, 9], &[0, 70, 71]),
        (2, [32, 16, 64, 32], &[0, 255, 257, 330, 600]),
    ] {
        let tokens = *ends.last().unwrap();
        let x = AttentionInputs::new(tokens, heads, latent + pe, latent);
        let mut n = Numbers(2);
        let q: Vec<f32> = n.vec(tokens * heads * (nope + pe)).iter().map(|q| q * 3.0).collect();
        for (cache_format, format) in FORMATS.into_iter().zip([Format::F32, Format::F16, Format::Q8_0]) {
            let format = if nope % 32 == 0 { format } else { Format::F32 };
            let mut weight = |shape: [usize; 3]| stored(format, shape, &n.vec(shape.iter().product()));
            let (k, v) = (weight([heads, latent, nope]), weight([heads, dim, latent]));
            check!(format!("{cache_format:?}, {heads} heads, matrices in {format:?}"), cuda within 0.05, |b| {
                let (k, v) = (b.weight(k.clone()).unwrap(), b.weight(v.clone()).unwrap());
                let mut cache = b.cache(cache_format, latent + pe);
                ends.windows(2)
                    .map(|w| {
                        let rows = |x: &[f32], cols: usize| {
                            b.tensor(w[1] - w[0], cols, &x[w[0] * cols..w[1] * cols])
                        };
                        let mut span = [Span { rows: 0..w[1] - w[0], state: &mut cache }];
                        b.append(&mut span, &rows(&x.rows, latent + pe));
                        let w = KvUpProjection { k: &k, v: &v, latent };
                        let q = rows(&q, heads * (nope + pe));
                        b.read(&b.materialized_attention(&mut span, &q, w, 0.3))
                    })
                    .collect()
            });
        }
    }
}

/// Keys and values materialized on tensor cores: the published widths and narrower ones, spans around the tile size beside
/// shorter spans, and a cache in several chunks.
#[test]
fn materialized_in_chunks() {
    if let Some(cuda) = cuda() {
        cuda.set_chunk_rows(128);
    }
    let (past, lens) = ([127, 0, 200, 64, 3], [130, 33, 0, 65, 1]);
    for (heads, [nope, pe, latent, dim], formats) in [
        (2, [128, 64, 512, 128], [CacheFormat::F16, CacheFormat::Q8_0]),
        (3, [40, 8, 50, 24], [CacheFormat::F32, CacheFormat::F16]),
    ] {
        let (mut n, width) = (Numbers(5), latent + pe);
        let (rows, q) = (n.vec(300 * width), n.vec(230 * heads * (nope + pe)));
        for cache_format in formats {
            let format = match cache_format {
                CacheFormat::Q8_0 => Format::Q8_0,
                CacheFormat::F16 => Format::BF16,
                CacheFormat::F32 => Format::F32,
            };
            let mut weight = |shape: [usize; 3]| stored(format, shape, &n.vec(shape.iter().product()));
            let (k, v) = (weight([heads, latent, nope]), weight([heads, dim, latent]));
            let cpu = if cache_format == CacheFormat::Q8_0 { 0.03 } else { 2e-5 };
            let what = format!("{cache_format:?} in pieces, {heads} heads of {nope}");
            check!(what, cpu within cpu, cuda within 2e-3, |b| {
                let (k, v) = (b.weight(k.clone()).unwrap(), b.weight(v.clone()).unwrap());
                let mut caches: Vec<_> = past.iter().map(|_| b.cache(cache_format, width)).collect();
                for (cache, n) in caches.iter_mut().zip(past) {
                    let before = b.tensor(n, width, &rows[..n * width]);
                    b.append(&mut [Span { rows: 0..n, state: cache }], &before);
                }
                b.append(&mut spans(&lens, &mut caches), &b.tensor(230, width, &rows[..230 * width]));
                let q = b.tensor(230, heads * (nope + pe), &q);
                let w = KvUpProjection { k: &k, v: &v, latent };
                let o = b.read(&b.materialized_attention(&mut spans(&lens, &mut caches), &q, w, 0.07));
                assert!(o[229 * heads * dim..].iter().all(|o| *o == 0.0), "rows of no span");
                // The queries of a short span beside full tiles are quantized.
                let exact = if format == Format::Q8_0 { 228 } else { 230 };
                vec![o[..exact * heads * dim].to_vec()]
            });
        }
    }
}

/// Queries beyond binary16 saturate; NaN stays NaN.
#[test]
fn materialized_extremes() {
    let (heads, [nope, pe, latent, dim], tokens) = (2, [32, 16, 64, 32], 140);
    let mut n = Numbers(6);
    let mut weight = |shape: [usize; 3]| stored(Format::F16, shape, &n.vec(shape.iter().product()));
    let (k, v) = (weight([heads, latent, nope]), weight([heads, dim, latent]));
    let mut rows = vec![0.0; tokens * (latent + pe)];
    rows[40 * (latent + pe)..][..latent + pe].fill(2.0);
    fn run<B: Backend>(b: &B, [k, v]: [&QuantTensor; 2], rows: &[f32], q: &[f32]) -> Vec<f32> {
        let (tokens, width, latent) = (140, rows.len() / 140, v.cols);
        let (k, v) = (b.weight(k.clone()).unwrap(), b.weight(v.clone()).unwrap());
        let mut cache = b.cache(CacheFormat::F16, width);
        let mut span = [Span { rows: 0..tokens, state: &mut cache }];
        b.append(&mut span, &b.tensor(tokens, width, rows));
        let w = KvUpProjection { k: &k, v: &v, latent };
        b.read(&b.materialized_attention(&mut span, &b.tensor(tokens, q.len() / tokens, q), w, 0.2))
    }
    let Some(cuda) = cuda() else { return };
    for size in [1e-30, 1e6, -1e6, 1e30, f32::MIN] {
        let q = vec![size; tokens * heads * (nope + pe)];
        let [got, expected] = [run(cuda, [&k, &v], &rows, &q), run(&Reference, [&k, &v], &rows, &q)];
        let apart = error(&got, &expected);
        assert!(apart <= 2e-3, "queries of {size:e}: {apart:e} of the maximum");
    }
    let mut q = vec![1.0; tokens * heads * (nope + pe)];
    q[(100 * heads + 1) * (nope + pe)] = f32::NAN;
    for (i, values) in run(cuda, [&k, &v], &rows, &q).chunks(dim).enumerate() {
        assert!(values.iter().all(|o| o.is_nan() == (i == 100 * heads + 1)), "token {}", i / heads);
    }
}

#[test]
fn several_sequences() {
    let (lens, past) = ([1, 40, 0, 1, 3], [300, 0, 7, 31, 255]);
    let x = AttentionInputs::new(300, 4, 64, 48);
    for format in FORMATS {
        check!(format!("several sequences, {format:?}"), |b| {
            let mut caches: Vec<_> = past.iter().map(|_| b.cache(format, 64)).collect();
            for (cache, n) in caches.iter_mut().zip(past) {
                b.append(&mut [Span { rows: 0..n, state: cache }], &b.tensor(300, 64, &x.rows));
            }
            b.append(&mut spans(&lens, &mut caches), &b.tensor(45, 64, &x.rows[..45 * 64]));
            let q = b.tensor(45, 4 * 64, &x.q[..45 * 4 * 64]);
            vec![b.read(&b.latent_attention(&mut spans(&lens, &mut caches), &q, 48, 0.2))]
        });
    }
}

/// Appends to a cache do not change the rows of its clone.
#[test]
fn clones_are_independent() {
    let x = AttentionInputs::new(600, 2, 33, 32);
    for format in FORMATS {
        check!(format!("clones, {format:?}"), |b| {
            let mut first = b.cache(format, 33);
            x.append(b, &mut first, 0, 300);
            let mut second = first.clone();
            let a = x.attend(b, &mut second, 300, 600);
            let c = x.attend(b, &mut first, 300, 301);
            let mut third = first.clone();
            let d = x.attend(b, &mut third, 301, 310);
            vec![a, c, d, b.cache_read(&second, 250..600), b.cache_read(&first, 250..301)]
        });
    }
}

/// Truncation drops the last rows, also at and across the bounds of segments, and leaves clones alone.
#[test]
fn truncated_caches_are_those_of_fewer_rows() {
    let x = AttentionInputs::new(600, 2, 33, 32);
    for (format, len) in FORMATS.into_iter().flat_map(|f| [1, 255, 256, 512].map(|n| (f, n))) {
        check!(format!("truncated to {len}, {format:?}"), |b| {
            let mut cache = b.cache(format, 33);
            x.append(b, &mut cache, 0, 513);
            x.attend(b, &mut cache, 513, 530);
            let whole = cache.clone();
            b.cache_truncate(&mut cache, len);
            assert_eq!(b.cache_len(&cache), len);
            let mut expected = b.cache(format, 33);
            x.append(b, &mut expected, 0, len);
            // Other rows than the dropped ones follow.
            let again = [&mut cache, &mut expected].map(|cache| {
                b.append(
                    &mut [Span { rows: 0..40, state: &mut *cache }],
                    &b.tensor(40, 33, &x.rows[..40 * 33]),
                );
                [x.attend(b, cache, 560, 600), b.cache_read(cache, 0..len + 80)].concat()
            });
            assert!(again[0] == again[1], "{}", b.describe());
            let [again, _] = again;
            vec![again, b.cache_read(&whole, 0..530)]
        });
    }
}

/// Rows exported as bytes and imported in other pieces are bit-identical, and so are the results after them.
#[test]
fn exported_rows_come_back_exactly() {
    fn carried<B: Backend>(b: &B, format: CacheFormat, pieces: &[usize]) {
        let x = AttentionInputs::new(600, 2, 33, 32);
        let mut cache = b.cache(format, 33);
        x.append(b, &mut cache, 0, 520);
        let export = |cache: &B::Cache, from: usize, to: usize| {
            let mut bytes = Vec::new();
            b.cache_export(cache, from..to, &mut bytes);
            assert_eq!(bytes.len(), (to - from) * b.cache_row_bytes(cache));
            bytes
        };
        let mut back = b.cache(format, 33);
        pieces.windows(2).for_each(|w| b.cache_import(&mut back, &export(&cache, w[0], w[1])));
        assert_eq!(b.cache_len(&back), 520);
        assert!(export(&back, 0, 520) == export(&cache, 0, 520), "{format:?} in {pieces:?}");
        let shared = back.clone();
        let bits = |o: Vec<f32>| o.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let expected = bits(x.attend(b, &mut cache, 520, 600));
        assert_eq!(bits(x.attend(b, &mut back, 520, 600)), expected);
        assert!(export(&shared, 0, 520) == export(&cache, 0, 520), "a clone is not written to");
    }
    for format in FORMATS {
        for pieces in [&[0, 520][..], &[0, 1, 255, 256, 257, 300, 300, 512, 520]] {
            carried(&Reference, format, pieces);
            cpus().iter().for_each(|b| carried(b, format, pieces));
        }
        if let Some(cuda) = cuda() {
            carried(cuda, format, &[0, 1, 255, 256, 257, 300, 300, 512, 520]);
        }
    }
}

#[test]
fn copies_are_equal_to_the_bit_and_apart() {
    let values = [-0.0, f32::NAN, 1e-45, f32::MIN, 3.5, f32::INFINITY];
    fn check<B: Backend>(b: &B, values: &[f32]) {
        let mut x = b.tensor(2, 3, values);
        let copy = b.copy(&x);
        b.add(&mut x, &b.tensor(2, 3, &[1.0; 6]));
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&b.read(&copy)), bits(values));
        assert_eq!(b.read(&x)[4], 4.5);
    }
    check(&Reference, &values);
    cpus().iter().for_each(|b| check(b, &values));
    if let Some(cuda) = cuda() {
        check(cuda, &values);
    }
}

/// Results are bit-identical wherever the batch is cut and on any number of threads.
#[test]
fn results_do_not_depend_on_the_batch() {
    let x = AttentionInputs::new(700, 4, 64, 64);
    for cpus in cpus().chunks(3) {
        let run = |b: &Cpu, ends: &[usize]| -> Vec<f32> {
            let mut cache = b.cache(CacheFormat::F16, 64);
            ends.windows(2).flat_map(|w| x.attend(b, &mut cache, w[0], w[1])).collect()
        };
        let whole = run(&cpus[0], &[0, 700]);
        for b in cpus {
            for ends in [&[0, 700][..], &[0, 1, 2, 33, 290, 512, 513, 699, 700]] {
                assert_eq!(error(&run(b, ends), &whole), 0.0, "{} cut at {ends:?}", b.describe());
            }
        }
    }
}

/// Several sequences, one without tokens, and rows that belong to no sequence.
#[test]
fn materialized_sequences() {
    let (heads, [nope, pe, latent, dim], lens) = (3, [32, 8, 32, 16], [2, 0, 70]);
    let mut n = Numbers(4);
    let (rows, q) = (n.vec(80 * (latent + pe)), n.vec(80 * heads * (nope + pe)));
    let mut weight = |shape: [usize; 3]| stored(Format::F32, shape, &n.vec(shape.iter().product()));
    let (k, v) = (weight([heads, latent, nope]), weight([heads, dim, latent]));
    check!("materialized sequences", cuda within 0.05, |b| {
        let (k, v) = (b.weight(k.clone()).unwrap(), b.weight(v.clone()).unwrap());
        let mut caches: Vec<_> = lens.iter().map(|_| b.cache(CacheFormat::F32, latent + pe)).collect();
        b.append(&mut spans(&lens, &mut caches), &b.tensor(80, latent + pe, &rows));
        let q = b.tensor(80, heads * (nope + pe), &q);
        let w_kv = KvUpProjection { k: &k, v: &v, latent };
        let o = b.read(&b.materialized_attention(&mut spans(&lens, &mut caches), &q, w_kv, 0.3));
        assert!(o[72 * heads * dim..].iter().all(|o| *o == 0.0), "rows of no span");
        vec![o]
    });
}

/// The same for materialized keys and values: any chunk size, and more threads than heads.
#[test]
fn materialized_results_do_not_depend_on_the_batch() {
    let (heads, [nope, pe, latent, dim]) = (2, [32, 16, 64, 32]);
    let x = AttentionInputs::new(700, heads, latent + pe, latent);
    let mut n = Numbers(3);
    let q = n.vec(700 * heads * (nope + pe));
    let mut weight = |shape: [usize; 3]| stored(Format::Q8_0, shape, &n.vec(shape.iter().product()));
    let (k, v) = (weight([heads, latent, nope]), weight([heads, dim, latent]));
    for cpus in cpus().chunks(3) {
        let run = |b: &Cpu, ends: &[usize]| -> Vec<f32> {
            let mut cache = b.cache(CacheFormat::F16, latent + pe);
            let (k, v) = (b.weight(k.clone()).unwrap(), b.weight(v.clone()).unwrap());
            let step = |w: &[usize]| {
                let rows = |x: &[f32], cols: usize| b.tensor(w[1] - w[0], cols, &x[w[0] * cols..w[1] * cols]);
                let mut span = [Span { rows: 0..w[1] - w[0], state: &mut cache }];
                b.append(&mut span, &rows(&x.rows, latent + pe));
                let w_kv = KvUpProjection { k: &k, v: &v, latent };
                b.read(&b.materialized_attention(&mut span, &rows(&q, heads * (nope + pe)), w_kv, 0.3))
            };
            ends.windows(2).flat_map(step).collect()
        };
        let whole = run(&cpus[0], &[0, 700]);
        for b in cpus {
            for ends in [&[0, 700][..], &[0, 1, 2, 33, 290, 512, 513, 699, 700]] {
                assert_eq!(error(&run(b, ends), &whole), 0.0, "{} cut at {ends:?}", b.describe());
            }
        }
    }
}

/// Equal, nearly equal and distant scores, and one row that dominates all others.
#[test]
fn extreme_scores() {
    for (size, only) in [(0.0, false), (1e-3, false), (30.0, false), (1e6, true), (-1e6, true)] {
        let mut x = AttentionInputs::new(270, 2, 32, 16);
        x.q.iter_mut().for_each(|q| *q = *q * size + if only { size * 9.0 } else { 0.0 });
        if only {
            // Scores of 0 and of about ten million.
            x.rows.chunks_mut(32).enumerate().for_each(|(i, row)| row.fill(if i == 40 { 2.0 } else { 0.0 }));
        }
        check!(format!("queries of {size}"), |b| {
            let mut cache = b.cache(CacheFormat::F32, 32);
            let o = x.attend(b, &mut cache, 0, 269);
            assert!(o.iter().all(|o| o.is_finite()));
            vec![o, x.attend(b, &mut cache, 269, 270)]
        });
    }
}
