//! Fills random tensors at memory speed: a pool of a few thousand runs of 256 weights is drawn and quantized once per
//! format and distribution, and tensors are random sequences of these runs. Rows of fewer than four runs would often be
//! equal, and so would be their logits, so short rows are drawn weight by weight.
//!
//! The bytes depend on the seed, the tensor's index and the position in it, not on threads.

use kernels::quant::Format;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;
use rayon::prelude::*;
use std::collections::HashMap;
use std::f64::consts::TAU;

/// Weights per run: whole blocks of every format.
const RUN: usize = 256;
/// Maximum runs of a pool: a million weights; a row of 2,304 weights has 9 runs.
const MAX_RUNS: usize = 4096;
/// Minimum weights of a row made of a pool's runs, which has 4096^4 different rows.
const POOLED: u64 = 4 * RUN as u64;
/// The number of runs per task.
const TASK_RUNS: usize = 2048;

/// The distribution of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    Normal {
        mean: f64,
        std: f64,
    },
    /// Uniform from low to high.
    Uniform {
        low: f64,
        high: f64,
    },
}

impl Spread {
    /// Returns the approximate distribution of a trained tensor with this GGUF name: activations stay of order one at
    /// any depth, KDA memory lasts from one to thousands of tokens, and routing reaches every expert.
    pub fn of(name: &str, shape: &[u64]) -> Spread {
        let role =
            name.rsplit_once("blk.").map_or(name, |(_, rest)| rest.split_once('.').map_or(rest, |r| r.1));
        let inputs = if role == "attn_k_b.weight" { shape[1] } else { shape[0] };
        let gain = |gain: f64| Spread::Normal { mean: 0.0, std: gain / (inputs as f64).sqrt() };
        match role {
            // Ling's has two dimensions and the other sign.
            "ssm_a" if shape.len() == 2 => Spread::Uniform { low: 1.0, high: 4.0 },
            "ssm_a" => Spread::Uniform { low: -16.0, high: -1.0 },
            "ssm_dt.bias" => Spread::Uniform { low: -7.0, high: 1.0 },
            "exp_probs_b.bias" => Spread::Normal { mean: 0.0, std: 0.15 },
            "token_embd.weight" => Spread::Normal { mean: 0.0, std: 1.0 },
            "output.weight" => gain(2.5),
            "ffn_gate_inp.weight" | "ssm_beta.weight" | "ssm_f_b.weight" => gain(1.5),
            _ if role.ends_with("norm.weight") => Spread::Normal { mean: 1.0, std: 0.15 },
            _ if role.starts_with("ssm_conv1d") => Spread::Normal { mean: 0.0, std: 0.5 },
            _ => gain(1.2),
        }
    }

    fn draw(self, rng: &mut Pcg64Mcg, values: &mut [f32]) {
        let mut unit = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        for pair in values.chunks_mut(2) {
            let (a, b) = (unit(), unit());
            let two = match self {
                Spread::Uniform { low, high } => [a, b].map(|u| low + (high - low) * u),
                Spread::Normal { mean, std } => {
                    // Box-Muller transform: two uniform numbers give two independent Gaussian ones.
                    let r = std * (-2.0 * (1.0 - a).ln()).sqrt();
                    let (sin, cos) = (TAU * b).sin_cos();
                    [mean + r * cos, mean + r * sin]
                }
            };
            pair.iter_mut().zip(two).for_each(|(value, x)| *value = x as f32);
        }
    }

    fn key(self) -> [u64; 3] {
        match self {
            Spread::Normal { mean, std } => [0, mean.to_bits(), std.to_bits()],
            Spread::Uniform { low, high } => [1, low.to_bits(), high.to_bits()],
        }
    }
}

/// The format and distribution of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct FillKind {
    pub format: Format,
    pub spread: Spread,
    pub cols: u64,
}

impl FillKind {
    fn run_bytes(&self) -> usize {
        self.format.row_bytes(RUN as u64).expect("a run is whole blocks") as usize
    }

    /// Draws values and quantizes them until `out` is full.
    fn draw(&self, rng: &mut Pcg64Mcg, out: &mut [u8]) {
        let (mut values, mut run) = ([0.0; RUN], vec![0; self.run_bytes()]);
        for out in out.chunks_mut(run.len()) {
            self.spread.draw(rng, &mut values);
            self.format.quantize_row(&values, &mut run);
            out.copy_from_slice(&run[..out.len()]);
        }
    }
}

/// A pool of quantized runs from which tensors are built.
struct BytePool {
    bytes: Vec<u8>,
    run_bytes: usize,
}

impl BytePool {
    fn new(kind: FillKind, runs: usize, seed: u64) -> BytePool {
        let run_bytes = kind.run_bytes();
        let mut bytes = vec![0; runs * run_bytes];
        let tasks = bytes.par_chunks_mut(run_bytes).enumerate();
        tasks.for_each(|(i, out)| kind.draw(&mut generator([seed, POOLS, i as u64]), out));
        BytePool { bytes, run_bytes }
    }

    /// Fills `out` with random runs of the pool.
    fn copy(&self, rng: &mut Pcg64Mcg, out: &mut [u8]) {
        let n_runs = (self.bytes.len() / self.run_bytes) as u64;
        for out in out.chunks_mut(self.run_bytes) {
            // The upper half of a product with a 32-bit random number is uniform below n_runs.
            let run = (((rng.next_u64() >> 32) * n_runs) >> 32) as usize * self.run_bytes;
            out.copy_from_slice(&self.bytes[run..run + out.len()]);
        }
    }
}

/// The first stream number of pools; smaller ones are those of tensors.
const POOLS: u64 = u64::MAX;

/// Returns the random generator of one position.
fn generator(place: [u64; 3]) -> Pcg64Mcg {
    let mix = |h: u64, x: u64| {
        // splitmix64's finaliser
        let h = (h ^ x).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^ (h >> 31)
    };
    let low = place.into_iter().fold(1, mix);
    let high = mix(low, 2);
    Pcg64Mcg::new(u128::from(high) << 64 | u128::from(low))
}

/// Fills tensors and caches the pools.
pub struct Filler {
    seed: u64,
    runs: usize,
    pools: HashMap<(Format, [u64; 3]), BytePool>,
}

impl Filler {
    /// Creates a filler for a file whose largest tensor has `most` weights.
    pub fn new(seed: u64, most: u64) -> Filler {
        let runs = most.div_ceil(RUN as u64).clamp(1, MAX_RUNS as u64) as usize;
        Filler { seed, runs, pools: HashMap::new() }
    }

    /// Passes the `bytes` bytes of tensor `index` to `take` in order, piece by piece, until it fails.
    pub fn fill<E>(
        &mut self,
        index: usize,
        kind: FillKind,
        bytes: u64,
        mut take: impl FnMut(Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (seed, runs) = (self.seed, self.runs);
        let pool = (kind.cols >= POOLED).then(|| {
            let key = (kind.format, kind.spread.key());
            &*self.pools.entry(key).or_insert_with(|| BytePool::new(kind, runs, seed))
        });
        let task_bytes = TASK_RUNS * kind.run_bytes();
        let piece_bytes = PIECE_TASKS * task_bytes;
        for at in (0..bytes).step_by(piece_bytes) {
            let mut piece = vec![0; piece_bytes.min((bytes - at) as usize)];
            let first = at / task_bytes as u64;
            piece.par_chunks_mut(task_bytes).enumerate().for_each(|(i, out)| {
                let mut rng = generator([seed, index as u64, first + i as u64]);
                match pool {
                    Some(pool) => pool.copy(&mut rng, out),
                    None => kind.draw(&mut rng, out),
                }
            });
            take(piece)?;
        }
        Ok(())
    }
}

/// The number of tasks per piece, about 20 MB of four-bit weights.
const PIECE_TASKS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(seed: u64, index: usize, kind: FillKind) -> Vec<u8> {
        let mut all = Vec::new();
        let bytes = kind.format.row_bytes(1 << 20).unwrap();
        let take = |piece: Vec<u8>| -> Result<(), ()> {
            all.extend(piece);
            Ok(())
        };
        Filler::new(seed, 1 << 18).fill(index, kind, bytes, take).unwrap();
        all
    }

    /// Returns mean and standard deviation of a tensor of a million weights.
    fn check(kind: FillKind, mean: f64, std: f64) {
        let mut values = vec![0.0; 1 << 20];
        kind.format.dequantize_row(&filled(7, 0, kind), &mut values);
        let n = values.len() as f64;
        let found_mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let variance = values.iter().map(|x| (f64::from(*x) - found_mean).powi(2)).sum::<f64>() / n;
        let found_std = variance.sqrt();
        assert!((found_mean - mean).abs() < 0.01 * std, "{kind:?}: mean {found_mean}");
        assert!((found_std / std - 1.0).abs() < 0.1, "{kind:?}: std {found_std}");
    }

    const NORMAL: Spread = Spread::Normal { mean: 0.0, std: 0.025 };

    #[test]
    fn every_format_has_the_wanted_spread() {
        for format in Format::ALL {
            // Values of a least-squares quantizer with relative error D have the variance 1 - D; D is 0.2 at 1.56 bits.
            let kept: f64 = if format == Format::IQ1_S { 1.0 - 0.2 } else { 1.0 };
            check(FillKind { format, spread: NORMAL, cols: 2304 }, 0.0, 0.025 * kept.sqrt());
        }
        check(FillKind { format: Format::Q8_0, spread: NORMAL, cols: 128 }, 0.0, 0.025);
        let f32s = |spread| FillKind { format: Format::F32, spread, cols: 128 };
        check(f32s(Spread::Normal { mean: 1.0, std: 0.15 }), 1.0, 0.15);
        check(f32s(Spread::Uniform { low: -7.0, high: 1.0 }), -3.0, 8.0 / 12f64.sqrt());
    }

    #[test]
    fn bytes_depend_on_seed_and_tensor_only() {
        for cols in [128, 2304] {
            let of =
                |seed, index| filled(seed, index, FillKind { format: Format::Q4_K, spread: NORMAL, cols });
            let first = of(1, 1);
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert!(first == one.install(|| of(1, 1)));
            assert!(first != of(1, 2) && first != of(2, 1));
        }
    }

    #[test]
    fn no_two_rows_are_equal() {
        for cols in [256, 1024] {
            let bytes = filled(1, 0, FillKind { format: Format::Q2_K, spread: NORMAL, cols });
            let rows = bytes.chunks(Format::Q2_K.row_bytes(cols).unwrap() as usize);
            let distinct: std::collections::HashSet<_> = rows.clone().collect();
            assert_eq!(distinct.len(), rows.len(), "of {cols} weights");
        }
    }

    #[test]
    fn spreads_by_name() {
        let std = |name: &str, shape: &[u64]| match Spread::of(name, shape) {
            Spread::Normal { std, .. } => std,
            Spread::Uniform { low, high } => high - low,
        };
        assert_eq!(std("blk.3.attn_k_b.weight", &[100, 400, 2]), 1.2 / 20.0);
        assert_eq!(std("blk.3.attn_v_b.weight", &[400, 100, 2]), 1.2 / 20.0);
        assert_eq!(std("blk.1.ffn_gate_inp.weight", &[400, 16]), 1.5 / 20.0);
        assert_eq!(std("output.weight", &[400, 16]), 2.5 / 20.0);
        assert_eq!(std("output_norm.weight", &[400]), 0.15);
        assert_eq!(std("blk.0.ssm_a", &[1, 4, 1, 1]), 15.0);
    }
}
