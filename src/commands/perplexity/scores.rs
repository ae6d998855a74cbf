//! Collects the scores of all positions and computes the figures: those that llama.cpp's `--kl-divergence` prints.

use super::row::{Divergence, Row};
use crate::generation::sample::argmax;
use crate::io::output::Output;
use anyhow::Result;
use serde::Serialize;
use std::io::Write;

/// The scores of all scored positions.
#[derive(Default)]
pub struct Scores {
    pub nll: Vec<f64>,
    compared: Vec<Compared>,
}

/// The comparison of one position with a baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// Negative log-likelihood of the next token in the baseline.
    base_nll: f64,
    divergence: Divergence,
    same_top: bool,
    /// Probability of the next token in the model minus that in the baseline.
    delta_p: f64,
}

impl Compared {
    /// Compares a row of log-probabilities with the stored one; `next` is the token that follows.
    pub fn new(log_probs: &[f32], next: u32, base: &Row) -> Compared {
        let stored = f64::from(base.exact(next).unwrap_or(f32::NAN));
        Compared {
            base_nll: -stored,
            divergence: base.divergence(log_probs),
            same_top: base.best() == argmax(log_probs),
            delta_p: f64::from(log_probs[next as usize]).exp() - stored.exp(),
        }
    }
}

/// The figures of a text.
#[derive(Debug, PartialEq, Serialize)]
pub struct Figures {
    tokens: usize,
    perplexity: f64,
    perplexity_error: f64,
    #[serde(flatten)]
    against: Option<Against>,
}

/// The figures of the comparison with a baseline; errors are standard errors of the mean.
#[derive(Debug, PartialEq, Serialize)]
struct Against {
    /// Name of the model of the baseline.
    baseline: String,
    baseline_perplexity: f64,
    /// Mean of ln(perplexity / baseline perplexity).
    ln_ratio: f64,
    ln_ratio_error: f64,
    kl_mean: f64,
    kl_error: f64,
    kl_median: f64,
    kl_p90: f64,
    kl_p95: f64,
    kl_p99: f64,
    kl_p999: f64,
    kl_max: f64,
    /// The most that the compact baseline can have changed `kl_mean`.
    kl_mean_bound: f64,
    same_top: f64,
    same_top_error: f64,
    delta_p_mean: f64,
    delta_p_mean_error: f64,
    delta_p_rms: f64,
    delta_p_rms_error: f64,
}

impl Scores {
    /// Adds a position: its log-probabilities, the next token, and the comparison with a baseline.
    pub fn add(&mut self, log_probs: &[f32], next: u32, compared: Option<Compared>) {
        self.nll.push(-f64::from(log_probs[next as usize]));
        self.compared.extend(compared);
    }

    /// Returns exp of the mean negative log-likelihood, and its standard error.
    pub fn perplexity(&self) -> (f64, f64) {
        let (mean, error) = mean_and_error(&self.nll);
        (mean.exp(), mean.exp() * error)
    }

    /// Computes the figures; `baseline` is the name of the baseline's model, if there is one.
    pub fn figures(&self, baseline: Option<&str>) -> Figures {
        let (perplexity, perplexity_error) = self.perplexity();
        let against = baseline.map(|name| self.against(name));
        Figures { tokens: self.nll.len(), perplexity, perplexity_error, against }
    }

    /// The KL divergence of each position; empty without a baseline.
    pub fn divergences(&self) -> Vec<f64> {
        self.compared.iter().map(|c| c.divergence.kl).collect()
    }

    fn against(&self, baseline: &str) -> Against {
        let of = |f: fn(&Compared) -> f64| -> Vec<f64> { self.compared.iter().map(f).collect() };
        let base_nll = of(|c| c.base_nll);
        let (ln_ratio, ln_ratio_error) =
            mean_and_error(&self.nll.iter().zip(&base_nll).map(|(a, b)| a - b).collect::<Vec<_>>());
        let mut kl = of(|c| c.divergence.kl);
        let (kl_mean, kl_error) = mean_and_error(&kl);
        kl.sort_by(f64::total_cmp);
        let (same_top, same_top_error) = mean_and_error(&of(|c| f64::from(u8::from(c.same_top))));
        let (delta_p_mean, delta_p_mean_error) = mean_and_error(&of(|c| c.delta_p));
        let (square, square_error) = mean_and_error(&of(|c| c.delta_p * c.delta_p));
        let rms = square.sqrt();
        Against {
            baseline: baseline.to_owned(),
            baseline_perplexity: mean_and_error(&base_nll).0.exp(),
            ln_ratio,
            ln_ratio_error,
            kl_mean,
            kl_error,
            kl_median: quantile(&kl, 0.5),
            kl_p90: quantile(&kl, 0.9),
            kl_p95: quantile(&kl, 0.95),
            kl_p99: quantile(&kl, 0.99),
            kl_p999: quantile(&kl, 0.999),
            kl_max: quantile(&kl, 1.0),
            kl_mean_bound: mean_and_error(&of(|c| c.divergence.bound)).0,
            same_top,
            same_top_error,
            delta_p_mean,
            delta_p_mean_error,
            delta_p_rms: rms,
            // d sqrt(x) = dx / (2 sqrt(x))
            delta_p_rms_error: if rms > 0.0 { square_error / (2.0 * rms) } else { 0.0 },
        }
    }
}

impl Figures {
    /// Prints one JSON object, or a few lines.
    pub fn print(&self, json: bool) -> Result<()> {
        let mut out = Output::lock();
        if json {
            return Ok(writeln!(out, "{}", serde_json::to_string(self)?)?);
        }
        let Figures { tokens, perplexity, perplexity_error, against } = self;
        writeln!(out, "perplexity     {perplexity:.4} ± {perplexity_error:.4}  ({tokens} tokens scored)")?;
        let Some(a) = against else { return Ok(()) };
        let base = a.baseline_perplexity;
        let (ratio, ratio_error) = (a.ln_ratio.exp(), a.ln_ratio.exp() * a.ln_ratio_error);
        writeln!(out, "baseline       {base:.4}  ({})", models::visible::one_line(&a.baseline, 256))?;
        writeln!(out, "ratio          {ratio:.5} ± {ratio_error:.5}")?;
        writeln!(out, "KL divergence  {:.6} ± {:.6}  mean", a.kl_mean, a.kl_error)?;
        let quantiles = [
            ("median", a.kl_median),
            ("90 %", a.kl_p90),
            ("95 %", a.kl_p95),
            ("99 %", a.kl_p99),
            ("99.9 %", a.kl_p999),
        ];
        for (name, value) in quantiles.into_iter().chain([("maximum", a.kl_max)]) {
            writeln!(out, "               {value:.6}  {name}")?;
        }
        writeln!(out, "same top       {:.3} ± {:.3} %", a.same_top * 100.0, a.same_top_error * 100.0)?;
        let [mean, mean_error] = [a.delta_p_mean * 100.0, a.delta_p_mean_error * 100.0];
        writeln!(out, "Δp             {mean:.3} ± {mean_error:.3} %  mean")?;
        let [rms, rms_error] = [a.delta_p_rms * 100.0, a.delta_p_rms_error * 100.0];
        writeln!(out, "               {rms:.3} ± {rms_error:.3} %  RMS")?;
        let bound = a.kl_mean_bound;
        Ok(writeln!(
            out,
            "The baseline's compact form changes the mean KL divergence by at most {bound:.6}."
        )?)
    }
}

/// The mean and its standard error.
pub fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

/// The quantile of sorted values, interpolated between neighbors.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction * sorted.len().saturating_sub(1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * at.fract(),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::super::log_softmax;
    use super::*;

    fn compared(p: &[f32], q: &[f32], next: u32) -> Compared {
        Compared::new(q, next, &Row::new(p, next))
    }

    #[test]
    fn kl_divergence_is_zero_for_the_same_model_only() {
        let p = log_softmax(&[1.0, 2.0, 3.0]);
        let q = log_softmax(&[3.0, 2.0, 1.0]);
        let same = compared(&p, &p, 2);
        assert_eq!((same.divergence.kl, same.same_top, same.delta_p), (0.0, true, 0.0));
        let other = compared(&p, &q, 2);
        // D(p||q) = sum p (log p - log q) with p = softmax(1,2,3): (p_2 - p_0) * 2
        let expected = 2.0 * f64::from(p[2].exp() - p[0].exp());
        assert!((other.divergence.kl - expected).abs() < 1e-6, "{other:?} {expected}");
        assert!(!other.same_top && (other.delta_p - f64::from(q[2].exp() - p[2].exp())).abs() < 1e-7);
    }

    #[test]
    fn perplexity_of_a_uniform_distribution_is_the_vocabulary_size() {
        let mut scores = Scores::default();
        (0..10).for_each(|_| scores.add(&log_softmax(&[0.5; 64]), 3, None));
        assert!((scores.perplexity().0 - 64.0).abs() < 1e-4);
        let json = serde_json::to_value(scores.figures(None)).unwrap();
        assert_eq!((json["tokens"].as_u64(), json.get("kl_mean")), (Some(10), None));
    }

    #[test]
    fn figures_are_those_of_the_definitions() {
        let mut scores = Scores::default();
        for (i, kl) in [0.0, 1.0, 2.0, 3.0, 4.0].into_iter().enumerate() {
            let divergence = Divergence { kl, bound: 0.5 };
            let (base_nll, delta_p) = (1.0, if i < 4 { 0.1 } else { -0.2 });
            scores.nll.push(1.5);
            scores.compared.push(Compared { base_nll, divergence, same_top: i < 4, delta_p });
        }
        let json = serde_json::to_value(scores.figures(Some("b"))).unwrap();
        let close = |key: &str, value: f64| {
            let found = json[key].as_f64().unwrap();
            assert!((found - value).abs() < 1e-12, "{key}: {found} {value}");
        };
        close("perplexity", 1.5f64.exp());
        close("baseline_perplexity", 1f64.exp());
        close("ln_ratio", 0.5);
        close("kl_mean", 2.0);
        close("kl_error", (2.5f64 / 5.0).sqrt());
        close("kl_median", 2.0);
        close("kl_p90", 3.6);
        close("kl_p95", 3.8);
        close("kl_max", 4.0);
        close("kl_mean_bound", 0.5);
        close("same_top", 0.8);
        close("same_top_error", (0.2f64 / 5.0).sqrt());
        close("delta_p_mean", 0.04);
        close("delta_p_rms", 0.016f64.sqrt());
        close("delta_p_rms_error", (0.00018f64 / 5.0).sqrt() / (2.0 * 0.016f64.sqrt()));
        assert_eq!(json["baseline"], "b");
    }
}
