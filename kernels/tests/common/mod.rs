//! Helpers of the op tests: pseudo-random inputs, and one `check` of the backends against the reference.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod emulator;
pub mod skip;

use bytes::Bytes;
use kernels::backend::QuantTensor;
use kernels::cpu::Cpu;
use kernels::quant::Format;
use kernels::simd::SimdLevel;

/// A generator of reproducible pseudo-random numbers.
pub struct Numbers(pub u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51afd7ed558ccd);
        x ^ (x >> 33)
    }

    /// A uniform value in `low..high`.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// `n` uniform values in `-1..1`.
    pub fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.uniform(-1.0, 1.0)).collect()
    }

    /// `n` integers that every activation type represents exactly: each 32 contain a 127.
    pub fn quants(&mut self, n: usize) -> Vec<f32> {
        let quant = |i: usize| if i.is_multiple_of(32) { 127.0 } else { self.below(255) as f32 - 127.0 };
        (0..n).map(quant).collect()
    }

    /// Random rows with Euclidean norm 1.
    pub fn unit_rows(&mut self, rows: usize, cols: usize) -> Vec<f32> {
        let mut x = self.vec(rows * cols);
        for row in x.chunks_mut(cols.max(1)) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt() + 1e-6;
            row.iter_mut().for_each(|x| *x /= norm);
        }
        x
    }

    /// A stack of random matrices in a format.
    pub fn weight(&mut self, format: Format, [count, rows, cols]: [usize; 3]) -> QuantTensor {
        let values = self.vec(count * rows * cols);
        stored(format, [count, rows, cols], &values)
    }
}

/// Values as a weight in a format.
pub fn stored(format: Format, [count, rows, cols]: [usize; 3], values: &[f32]) -> QuantTensor {
    let bytes = format.row_bytes(cols as u64).unwrap() as usize;
    let mut out = vec![0; count * rows * bytes];
    if cols > 0 {
        out.chunks_mut(bytes).zip(values.chunks(cols)).for_each(|(out, x)| format.quantize_row(x, out));
    }
    QuantTensor { name: "".into(), format, count, rows, cols, bytes: Bytes::from(out) }
}

/// A vector as a weight of one row of floats.
pub fn vector(values: &[f32]) -> QuantTensor {
    stored(Format::F32, [1, 1, values.len()], values)
}

/// The CPU backend with every instruction set of this machine, on one thread and on several.
pub fn cpus() -> Vec<Cpu> {
    SimdLevel::available().into_iter().flat_map(|level| [1, 2, 5].map(|n| Cpu::new(n, level))).collect()
}

/// The same, but the slow scalar level on two threads only.
pub fn cpus_with_one_scalar() -> impl Iterator<Item = Cpu> {
    cpus().into_iter().enumerate().filter(|(i, _)| *i == 1 || *i > 2).map(|(_, cpu)| cpu)
}

/// The largest difference, relative to the largest expected value.
pub fn error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len(), "lengths");
    let max = expected.iter().fold(1e-30f32, |max, x| max.max(x.abs()));
    let differ = |(a, b): (&f32, &f32)| if a.to_bits() == b.to_bits() { 0.0 } else { (a - b).abs() / max };
    // A NaN difference must not pass for a small one.
    got.iter().zip(expected).map(differ).fold(0.0, |most, e| if e > most || e.is_nan() { e } else { most })
}

/// Asserts that results agree within 2e-5 of the largest value.
pub fn close(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    close_within(2e-5, what, got, expected);
}

/// Asserts that results agree within a tolerance relative to the largest value.
pub fn close_within(tolerance: f32, what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(got.len(), expected.len(), "{what}: results");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let e = error(got, expected);
        assert!(e <= tolerance, "{what}: result {i} differs by {e:e} of its maximum");
    }
}

/// Compares `$body`, a list of results of backend `$b`, on every CPU and on the CUDA emulator with the reference.
/// `$within` is the tolerance on the emulator, whose tensor cores compute in binary16; `$cpu` that on the CPU, where
/// attention over a Q8_0 cache rounds to int8.
#[macro_export]
macro_rules! check {
    ($what:expr, |$b:ident| $body:expr) => {
        $crate::check!($what, cuda within 2e-5, |$b| $body)
    };
    ($what:expr, cuda within $within:expr, |$b:ident| $body:expr) => {
        $crate::check!($what, cpu within 2e-5, cuda within $within, |$b| $body)
    };
    ($what:expr, cpu within $cpu:expr, cuda within $within:expr, |$b:ident| $body:expr) => {{
        let expected: Vec<Vec<f32>> = {
            let $b = &kernels::reference::Reference;
            $body
        };
        for cpu in $crate::common::cpus_with_one_scalar() {
            let $b = &cpu;
            let got: Vec<Vec<f32>> = $body;
            $crate::common::close_within(
                $cpu,
                &format!("{}: {}", kernels::backend::Backend::describe($b), $what),
                &got,
                &expected,
            );
        }
        if let Some($b) = $crate::common::emulator::cuda() {
            let got: Vec<Vec<f32>> = $body;
            $crate::common::close_within($within, &format!("CUDA emulator: {}", $what), &got, &expected);
        }
    }};
}

/// Spans over consecutive rows of a batch, one per state.
pub fn spans<'a, S>(lens: &[usize], states: &'a mut [S]) -> Vec<kernels::backend::Span<'a, S>> {
    let mut start = 0;
    let span = |(len, state): (&usize, &'a mut S)| {
        start += len;
        kernels::backend::Span { rows: start - len..start, state }
    };
    lens.iter().zip(states).map(span).collect()
}
