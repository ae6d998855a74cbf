//! Attention over a Q8_0 cache by int8 products: against the same rounding in f64, against the reference, and with the same
//! bits for any batch.

mod common;

use common::{Numbers, cpus, error, stored};
use kernels::backend::{Backend, CacheFormat, KvUpProjection, QuantTensor, Span};
use kernels::cpu::Cpu;
use kernels::quant::Format;
use kernels::reference::Reference;

/// Rows of a part, and of a group whose weights share a unit.
const PART: usize = 256;
const GROUP: usize = 32;

/// Absorbed queries and cache rows.
struct Inputs {
    tokens: usize,
    heads: usize,
    width: usize,
    value_dim: usize,
    scale: f32,
    rows: Vec<f32>,
    q: Vec<f32>,
}

impl Inputs {
    fn new(tokens: usize, heads: usize, width: usize, value_dim: usize) -> Inputs {
        let mut n = Numbers(11);
        let rows = n.vec(tokens * width);
        // Multiples of 1/32 whose largest is 127/32 in each block: quantization to int8 is exact.
        let level = |(i, q): (usize, &f32)| {
            if i % 32 == 5 { 127.0 } else { (q * 96.0).round().clamp(-127.0, 127.0) }
        };
        let q = n.vec(tokens * heads * width).iter().enumerate().map(|q| level(q) / 32.0).collect();
        Inputs { tokens, heads, width, value_dim, scale: (2.0 * width as f32).powf(-0.5), rows, q }
    }

    /// Appends and attends in steps that end at `ends`.
    fn attend<B: Backend>(&self, b: &B, ends: &[usize]) -> Vec<f32> {
        let mut cache = b.cache(CacheFormat::Q8_0, self.width);
        let mut first = 0;
        let mut out = Vec::new();
        for &end in ends {
            let rows = |x: &[f32], cols: usize| b.tensor(end - first, cols, &x[first * cols..end * cols]);
            b.append(&mut [Span { rows: 0..end - first, state: &mut cache }], &rows(&self.rows, self.width));
            let q = rows(&self.q, self.heads * self.width);
            let mut spans = [Span { rows: 0..end - first, state: &mut cache }];
            out.extend(b.read(&b.latent_attention(&mut spans, &q, self.value_dim, self.scale)));
            first = end;
        }
        out
    }

    /// The results with weights rounded as documented, in f64.
    fn rounded(&self) -> Vec<f32> {
        let mut bytes = vec![0; self.width / 32 * 34 * self.tokens];
        Format::Q8_0.quantize_row(&self.rows, &mut bytes);
        let mut c = vec![0.0; self.rows.len()];
        Format::Q8_0.dequantize_row(&bytes, &mut c);
        let d: Vec<f64> =
            bytes.chunks(34).map(|block| half::f16::from_le_bytes([block[0], block[1]]).to_f64()).collect();
        let mut out = Vec::new();
        for (i, q) in self.q.chunks(self.width).enumerate() {
            out.extend(self.one(q, i / self.heads + 1, &c, &d));
        }
        out
    }

    fn one(&self, q: &[f32], seen: usize, c: &[f32], d: &[f64]) -> Vec<f32> {
        let (width, blocks) = (self.width, self.width / 32);
        let score = |j: usize| {
            let row = &c[j * width..][..width];
            q.iter().zip(row).map(|(q, c)| *q as f64 * *c as f64).sum::<f64>() * self.scale as f64
        };
        let scores: Vec<f64> = (0..seen).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let mut o = vec![0.0; self.value_dim];
        for (g, group) in weights.chunks(GROUP).enumerate() {
            let largest = group.iter().copied().fold(0.0, f64::max);
            for (column, o) in o.iter_mut().enumerate() {
                let scale = |j: usize| d[(g * GROUP + j) * blocks + column / 32];
                let unit = largest / 254.0 * (0..group.len()).map(scale).fold(0.0, f64::max);
                for (j, w) in group.iter().enumerate() {
                    let value = c[(g * GROUP + j) * width + column] as f64;
                    let rounded = (w * scale(j) / unit).round_ties_even() * unit / scale(j);
                    *o += value * if group.len() == GROUP { rounded } else { *w };
                }
            }
        }
        let sum: f64 = weights.iter().sum();
        o.iter().map(|o| (o / sum) as f32).collect()
    }
}

fn rms(got: &[f32], expected: &[f32]) -> f64 {
    let most = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs() as f64));
    let squares: f64 = got.iter().zip(expected).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    (squares / got.len() as f64).sqrt() / most
}

/// A weight at a tie may round to the other side in f32, which moves a value by a unit; all else agrees to f32.
#[test]
fn weights_are_rounded_as_documented() {
    for (tokens, heads, width, value_dim) in
        [(70, 1, 32, 32), (PART + 77, 3, 96, 64), (2 * PART, 2, 64, 64), (66, 20, 576, 512)]
    {
        let x = Inputs::new(tokens, heads, width, value_dim);
        let [expected, exact] = [x.rounded(), x.attend(&Reference, &[tokens])];
        assert!(rms(&expected, &exact) > 1e-4, "the rounding is visible");
        for cpu in cpus() {
            let got = x.attend(&cpu, &[tokens]);
            let (mean, most) = (rms(&got, &expected), error(&got, &expected));
            assert!(mean < 3e-5 && most < 4e-3, "{}, {width}: {mean:e}, at most {most:e}", cpu.describe());
            // Half a unit of 1 / 254 per row in 32 rows, with random signs.
            let (mean, most) = (rms(&got, &exact), error(&got, &exact));
            assert!(mean < 2e-3 && most < 0.012, "{}, {width}: {mean:e}, at most {most:e}", cpu.describe());
        }
    }
}

/// The same bits wherever a batch is cut and on any number of threads.
#[test]
fn results_do_not_depend_on_the_batch() {
    let x = Inputs::new(590, 3, 96, 64);
    for cpus in cpus().chunks(3) {
        let whole = x.attend(&cpus[0], &[590]);
        for b in cpus {
            for ends in [&[590][..], &[1, 2, 33, 290, 512, 513, 589, 590]] {
                assert_eq!(error(&x.attend(b, ends), &whole), 0.0, "{} cut at {ends:?}", b.describe());
            }
        }
    }
}

/// A NaN query makes its own results NaN. (A NaN in a row is lost when Q8_0 stores it.)
#[test]
fn nan_stays_nan() {
    let mut x = Inputs::new(300, 2, 64, 32);
    x.q[(100 * 2 + 1) * 64 + 3] = f32::NAN;
    for cpu in cpus() {
        for (i, o) in x.attend(&cpu, &[300]).chunks(32).enumerate() {
            assert!(o.iter().all(|o| o.is_nan() == (i == 201)), "{}: query {i}", cpu.describe());
        }
    }
}

/// Materialized keys and values: a step of a head's tokens over cached rows.
struct Materialized {
    heads: usize,
    sizes: [usize; 4],
    q: Vec<f32>,
    rows: Vec<f32>,
    k: QuantTensor,
    v: QuantTensor,
}

impl Materialized {
    fn new(tokens: usize, heads: usize, sizes: [usize; 4], format: Format) -> Materialized {
        let ([nope, pe, latent, dim], mut n) = (sizes, Numbers(12));
        let (rows, q) = (n.vec(tokens * (latent + pe)), n.vec(tokens * heads * (nope + pe)));
        let mut weight = |shape: [usize; 3]| stored(format, shape, &n.vec(shape.iter().product()));
        let (k, v) = (weight([heads, latent, nope]), weight([heads, dim, latent]));
        Materialized { heads, sizes, q, rows, k, v }
    }

    fn attend<B: Backend>(&self, b: &B, ends: &[usize]) -> Vec<f32> {
        let [nope, pe, latent, _] = self.sizes;
        let (k, v) = (b.weight(self.k.clone()).unwrap(), b.weight(self.v.clone()).unwrap());
        let mut cache = b.cache(CacheFormat::Q8_0, latent + pe);
        let step = |w: &[usize]| {
            let rows = |x: &[f32], cols: usize| b.tensor(w[1] - w[0], cols, &x[w[0] * cols..w[1] * cols]);
            let mut span = [Span { rows: 0..w[1] - w[0], state: &mut cache }];
            b.append(&mut span, &rows(&self.rows, latent + pe));
            let w_kv = KvUpProjection { k: &k, v: &v, latent };
            let scale = ((nope + pe) as f32).powf(-0.5);
            b.read(&b.materialized_attention(
                &mut span,
                &rows(&self.q, self.heads * (nope + pe)),
                w_kv,
                scale,
            ))
        };
        [&[0], ends].concat().windows(2).flat_map(step).collect()
    }
}

/// Queries, keys, values, projections and weights are rounded to int8: about 1 % of the largest result.
#[test]
fn materialized_results_are_close() {
    for (tokens, heads, sizes) in [(300, 2, [32, 32, 64, 32]), (150, 2, [128, 64, 512, 128])] {
        for format in [Format::F32, Format::Q8_0, Format::Q4_0] {
            let x = Materialized::new(tokens, heads, sizes, format);
            let exact = x.attend(&Reference, &[tokens]);
            let mut seen: Option<Vec<f32>> = None;
            for cpu in cpus() {
                let got = x.attend(&cpu, &[tokens]);
                let (mean, most) = (rms(&got, &exact), error(&got, &exact));
                assert!(
                    mean < 4e-3 && most < 0.03,
                    "{} {sizes:?}: {mean:e}, at most {most:e}",
                    cpu.describe()
                );
                // The instruction sets differ by rounding of f32 only.
                let first = seen.get_or_insert_with(|| got.clone());
                assert!(rms(&got, first) < 1e-4, "{} {sizes:?}: {:e}", cpu.describe(), rms(&got, first));
            }
        }
    }
}

#[test]
fn materialized_results_do_not_depend_on_the_batch() {
    let x = Materialized::new(590, 2, [32, 32, 64, 32], Format::Q8_0);
    for cpus in cpus().chunks(3) {
        let whole = x.attend(&cpus[0], &[590]);
        for b in cpus {
            for ends in [&[590][..], &[1, 2, 33, 290, 512, 513, 589, 590]] {
                let got: Vec<f32> = x.attend::<Cpu>(b, ends);
                assert_eq!(error(&got, &whole), 0.0, "{} cut at {ends:?}", b.describe());
            }
        }
    }
}
