//! Estimates the remaining time of a prefill. A token costs the matmuls with the weights and the attention to all
//! tokens before it.
//!
//! seconds = c (1 + growth * depth), summed over the tokens. `growth` follows from the model's shape and changes with the
//! attention path ([`crate::runtime::attention_path`]); `c` is measured from the first batch on.

use crate::runtime::attention_path::MATERIALIZE_AFTER;
use models::gguf::TensorInfo;
use models::hybrid::config::{Config, MixerKind};
use std::time::Duration;

/// Time of an operation in attention relative to one in a matmul. Measured with the five-layer file: 361 tok/s at depth 0
/// and 244 tok/s at depths around 9,200, a growth of 6.0e-5 per row, where counting operations gives 2.8e-5.
const ATTENTION_COST: f64 = 2.1;

/// The measured time and work of a prefill so far.
#[derive(Clone)]
pub struct PrefillEta {
    growth: f64,
    /// The growth for tokens from [`MATERIALIZE_AFTER`] on.
    long_growth: f64,
    work: f64,
    time: Duration,
}

impl PrefillEta {
    /// Estimates for a model that materializes keys and values for `step` tokens at a time, or not at all.
    pub fn new(c: &Config, tensors: &[TensorInfo], step: Option<usize>) -> PrefillEta {
        let active = |t: &TensorInfo| {
            let weights = t.shape.iter().product::<u64>() as f64;
            match t.name.as_str() {
                "token_embd.weight" | "output.weight" => 0.0,
                name if name.contains("_exps.") => {
                    weights * c.moe.routing.top_k as f64 / c.moe.experts as f64
                }
                _ => weights,
            }
        };
        let weights: f64 = tensors.iter().map(active).sum();
        let m = &c.mla;
        let heads = (c.count(MixerKind::Mla) * m.heads) as f64;
        let growth = |row: f64| ATTENTION_COST * heads * row / weights.max(1.0);
        let absorbed = growth((c.cache_width() + m.latent_dim) as f64);
        let long_growth = step.map_or(absorbed, |step| {
            let materialize = (m.latent_dim * (m.nope_dim + m.value_dim)) as f64 / step.max(1) as f64;
            growth((m.nope_dim + m.pe_dim + m.value_dim) as f64 + materialize)
        });
        PrefillEta { growth: absorbed, long_growth, work: 0.0, time: Duration::ZERO }
    }

    /// Records the time that tokens `from..to` took.
    pub fn record(&mut self, from: usize, to: usize, time: Duration) {
        self.work += self.work_of(from, to);
        self.time += time;
    }

    /// Estimates the time for tokens `from..to`; None before the first record.
    pub fn estimate(&self, from: usize, to: usize) -> Option<Duration> {
        let c = self.time.as_secs_f64() / self.work;
        Duration::try_from_secs_f64(c * self.work_of(from, to)).ok()
    }

    fn work_of(&self, from: usize, to: usize) -> f64 {
        let work = |from: usize, to: usize, growth: f64| {
            let (from, to) = (from as f64, to as f64);
            (to - from) * (1.0 + growth * (from + to) / 2.0)
        };
        let long = to.clamp(from, from.max(MATERIALIZE_AFTER));
        work(from, long, self.growth) + work(long, to, self.long_growth)
    }
}

/// Formats a duration in its largest unit: `40 s`, `12 min`, `3.5 h`.
pub fn duration(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
impl PrefillEta {
    /// Estimates with the same growth at all depths.
    pub fn with_growth(growth: f64) -> PrefillEta {
        PrefillEta { growth, long_growth: growth, work: 0.0, time: Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_from_the_recorded_times() {
        let mut eta = PrefillEta::with_growth(1e-4);
        assert_eq!(eta.estimate(0, 10), None);
        eta.record(0, 1000, Duration::from_millis(1050)); // 1 ms per token at depth 0
        let seconds = |from, to| eta.estimate(from, to).unwrap().as_secs_f64();
        assert!((seconds(0, 1000) - 1.05).abs() < 1e-6);
        assert!((seconds(10_000, 11_000) - 2.05).abs() < 1e-6, "twice as slow at 10,000");
        assert!((seconds(0, 100_000) - 600.0).abs() < 1e-6);
        eta.long_growth = 0.0;
        assert!((eta.estimate(0, 10_024).unwrap().as_secs_f64() - (9.0 + 1.024 * 1.0512)).abs() < 1e-6);
    }

    #[test]
    fn durations_are_formatted() {
        let formatted = |s| duration(Duration::from_secs_f64(s));
        assert_eq!(
            [0.4, 89.0, 90.0, 720.0, 12_600.0].map(formatted),
            ["0 s", "89 s", "2 min", "12 min", "3.5 h"]
        );
    }
}
