//! Random inputs of the checks, reproducible by seed.

use bytes::Bytes;
use kernels::backend::QuantTensor;
use kernels::quant::Format;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;

/// A reproducible generator of random values.
pub struct TestRng(Pcg64Mcg);

impl TestRng {
    pub fn new(seed: u64) -> TestRng {
        TestRng(Pcg64Mcg::new(seed.into()))
    }

    /// Returns a uniform value in low..high.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Returns `n` uniform values in -1..1.
    pub fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.uniform(-1.0, 1.0)).collect()
    }

    /// Returns `n` integers that int8 activations represent exactly: each block of 32 contains a 127.
    pub fn levels(&mut self, n: usize) -> Vec<f32> {
        let level = |i: usize| if i.is_multiple_of(32) { 127.0 } else { self.uniform(-127.0, 128.0).floor() };
        (0..n).map(level).collect()
    }

    /// Returns rows of Euclidean norm 1.
    pub fn unit_rows(&mut self, rows: usize, cols: usize) -> Vec<f32> {
        let mut x = self.vec(rows * cols);
        for row in x.chunks_mut(cols.max(1)) {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt() + 1e-6;
            row.iter_mut().for_each(|x| *x /= norm);
        }
        x
    }

    /// Returns a stack of random matrices in a format.
    pub fn weight(&mut self, format: Format, [count, rows, cols]: [usize; 3]) -> QuantTensor {
        // Repeats a few random rows, because quantizing is slower than the checks.
        let kinds = (count * rows).min(61);
        let bytes = format.row_bytes(cols as u64).expect("whole blocks") as usize;
        let mut own = vec![0; kinds * bytes];
        for out in own.chunks_mut(bytes.max(1)) {
            format.quantize_row(&self.vec(cols), out);
        }
        let all =
            (0..count * rows).flat_map(|r| &own[r % kinds * bytes..][..bytes]).copied().collect::<Vec<u8>>();
        QuantTensor { name: "".into(), format, count, rows, cols, bytes: Bytes::from(all) }
    }

    /// Returns a random vector as a weight of one f32 row.
    pub fn vector(&mut self, n: usize, low: f32, high: f32) -> QuantTensor {
        let bytes: Vec<u8> = (0..n).flat_map(|_| self.uniform(low, high).to_le_bytes()).collect();
        let name = "".into();
        QuantTensor { name, format: Format::F32, count: 1, rows: 1, cols: n, bytes: Bytes::from(bytes) }
    }
}
