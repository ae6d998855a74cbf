//! `kimi perplexity`: measures the perplexity of a text, and the KL divergence from a saved baseline.
//!
//! The definition is that of llama.cpp: the text is split into windows of N tokens, each starts from an empty state,
//! and the second half of each window is scored. KL divergence is D(baseline || model), averaged over the scored
//! positions.

use crate::args::EngineArgs;
use crate::io::output::{Output, partial_path};
use crate::io::prompt::PromptArgs;
use crate::io::units::counted;
use crate::runtime::handle::EngineHandle;
use anyhow::{Context as _, Result, bail};
use half::f16;
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

/// The command-line arguments of `kimi perplexity`.
#[derive(Clone, Debug, clap::Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    text: PromptArgs,
    /// Window size in tokens
    #[arg(short, long, default_value_t = 512)]
    window: usize,
    /// Maximum number of windows
    #[arg(long)]
    windows: Option<usize>,
    /// Save the log-probabilities as a baseline (16 bits each, vocabulary x scored tokens)
    #[arg(long, value_name = "FILE")]
    save_baseline: Option<PathBuf>,
    /// Compare with a baseline of another model on the same text
    #[arg(long, value_name = "FILE", conflicts_with = "save_baseline")]
    baseline: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The scores of all scored positions.
#[derive(Default)]
struct Scores {
    nll: Vec<f64>,
    base_nll: Vec<f64>,
    kl: Vec<f64>,
    same_top: usize,
}

const MAGIC: &[u8; 8] = b"KIMIKLD1";

/// Scores the text and prints the perplexity, and the KL divergence if there is a baseline.
pub fn run(args: &PerplexityArgs) -> Result<()> {
    let engine = EngineHandle::open(&args.engine.options().without_snapshots())?;
    let ids = engine.raw_ids(&args.text.read()?)?;
    let (window, half) = (args.window, args.window / 2);
    let windows = (ids.len() / window.max(1)).min(args.windows.unwrap_or(usize::MAX));
    if half == 0 || windows == 0 {
        bail!(
            "the text has {}, fewer than one window of {window} (--window, at least 2)",
            counted(ids.len(), "token")
        );
    }
    let ids = &ids[..windows * window];
    for (i, tokens) in ids.chunks_exact(window).enumerate() {
        engine.check(tokens).with_context(|| format!("window {i}"))?;
    }
    let mut save = args
        .save_baseline
        .as_deref()
        .map(|p| Saved::create(p, engine.config.vocab, window, ids))
        .transpose()?;
    let mut base =
        args.baseline.as_deref().map(|p| Saved::open(p, engine.config.vocab, window, ids)).transpose()?;
    let mut scores = Scores::default();
    for (i, tokens) in ids.chunks_exact(window).enumerate() {
        let rows = window_log_probs(&engine, tokens, half)?;
        for (log_probs, next) in rows.iter().zip(&tokens[half + 1..]) {
            if let Some(save) = &mut save {
                save.write(log_probs)?;
            }
            let against = base.as_mut().map(|b| b.read(log_probs.len())).transpose()?;
            scores.add(log_probs, *next as usize, against.as_deref());
        }
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{}/{windows} windows, perplexity {:.4}", i + 1, scores.perplexity().0);
        }
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    if let Some(save) = save {
        save.finish()?;
    }
    scores.print(args.json)
}

/// Returns the perplexity of a text and its standard error over at most `windows` windows.
pub fn of(engine: &EngineHandle, ids: &[u32], window: usize, windows: usize) -> Result<(f64, f64)> {
    let mut scores = Scores::default();
    for tokens in ids.chunks_exact(window).take(windows) {
        let rows = window_log_probs(engine, tokens, window / 2)?;
        rows.iter()
            .zip(&tokens[window / 2 + 1..])
            .for_each(|(row, next)| scores.add(row, *next as usize, None));
    }
    if scores.nll.is_empty() {
        bail!("the text has {}, fewer than one window of {window}", counted(ids.len(), "token"));
    }
    Ok(scores.perplexity())
}

/// Returns the log-probabilities after tokens `half..window-1` of one window, from an empty state.
fn window_log_probs(engine: &EngineHandle, tokens: &[u32], half: usize) -> Result<Vec<Vec<f32>>> {
    let mut logits = Vec::new();
    engine.logits_from(&tokens[..tokens.len() - 1], half, &mut |rows| {
        logits.push(rows);
        Ok(())
    })?;
    let rows: Vec<&[f32]> = logits.iter().flat_map(|l| l.chunks_exact(engine.config.vocab)).collect();
    Ok(rows.into_par_iter().map(log_softmax).collect())
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let norm = f64::from(max) + sum.ln();
    logits.iter().map(|l| (f64::from(*l) - norm) as f32).collect()
}

impl Scores {
    fn add(&mut self, log_probs: &[f32], next: usize, base: Option<&[f32]>) {
        self.nll.push(-f64::from(log_probs[next]));
        let Some(base) = base else { return };
        self.base_nll.push(-f64::from(base[next]));
        let term = |(p, q): (&f32, &f32)| f64::from(*p).exp() * (f64::from(*p) - f64::from(*q));
        self.kl.push(base.iter().zip(log_probs).map(term).sum::<f64>().max(0.0));
        self.same_top += usize::from(
            crate::generation::sample::argmax(base) == crate::generation::sample::argmax(log_probs),
        );
    }

    /// Returns exp of the mean negative log-likelihood, and its standard error.
    fn perplexity(&self) -> (f64, f64) {
        let (mean, error) = mean_and_error(&self.nll);
        (mean.exp(), mean.exp() * error)
    }

    fn print(mut self, json: bool) -> Result<()> {
        let (ppl, error) = self.perplexity();
        let n = self.nll.len();
        let (kl, kl_error) = mean_and_error(&self.kl);
        self.kl.sort_by(f64::total_cmp);
        let base = mean_and_error(&self.base_nll).0.exp();
        let p99 = self.kl.get(n * 99 / 100).copied().unwrap_or(0.0);
        let max = self.kl.last().copied().unwrap_or(0.0);
        let same = self.same_top as f64 / n as f64;
        let mut report = serde_json::json!({"tokens": n, "perplexity": ppl, "perplexity_error": error});
        if !self.kl.is_empty() {
            report["baseline_perplexity"] = base.into();
            report["kl_mean"] = kl.into();
            report["kl_error"] = kl_error.into();
            report["kl_p99"] = p99.into();
            report["kl_max"] = max.into();
            report["same_top"] = same.into();
        }
        let mut out = Output::lock();
        if json {
            return Ok(writeln!(out, "{report}")?);
        }
        writeln!(out, "perplexity    {ppl:.4} ± {error:.4}  ({n} tokens scored)")?;
        if !self.kl.is_empty() {
            writeln!(out, "baseline      {base:.4}  (ratio {:.5})", ppl / base)?;
            writeln!(out, "KL divergence {kl:.6} ± {kl_error:.6}, 99 % {p99:.5}, max {max:.5}")?;
            writeln!(out, "same top      {:.2} %", same * 100.0)?;
        }
        Ok(())
    }
}

fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

/// Removes an unfinished baseline file on drop; after the rename the file does not exist.
struct PartialFile(PathBuf);

impl Drop for PartialFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A baseline file: magic, vocabulary, window, token count (u64 each), the ids (u32), then f16 log-probabilities.
struct Saved<F> {
    file: F,
    path: PathBuf,
    partial: Option<PartialFile>,
}

fn saved_header(vocab: usize, window: usize, ids: &[u32]) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    [vocab, window, ids.len()].iter().for_each(|n| header.extend((*n as u64).to_le_bytes()));
    ids.iter().for_each(|id| header.extend(id.to_le_bytes()));
    header
}

impl Saved<BufWriter<File>> {
    fn create(path: &Path, vocab: usize, window: usize, ids: &[u32]) -> Result<Self> {
        let partial = partial_path(path);
        let mut file = BufWriter::new(File::create(&partial).with_context(|| partial.display().to_string())?);
        let partial = PartialFile(partial);
        file.write_all(&saved_header(vocab, window, ids))?;
        Ok(Saved { file, path: path.to_owned(), partial: Some(partial) })
    }

    fn write(&mut self, log_probs: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = log_probs.iter().flat_map(|p| f16::from_f32(*p).to_le_bytes()).collect();
        self.file.write_all(&bytes).with_context(|| self.path.display().to_string())
    }

    fn finish(self) -> Result<()> {
        self.file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        if let Some(PartialFile(partial)) = &self.partial {
            std::fs::rename(partial, &self.path)?;
        }
        Ok(())
    }
}

impl Saved<BufReader<File>> {
    fn open(path: &Path, vocab: usize, window: usize, ids: &[u32]) -> Result<Self> {
        let place = path.display();
        let mut file = BufReader::new(File::open(path).with_context(|| place.to_string())?);
        let expected = saved_header(vocab, window, ids);
        let mut found = vec![0; expected.len()];
        file.read_exact(&mut found).with_context(|| format!("{place}: header"))?;
        if found[..8] != *MAGIC {
            bail!("{place}: expected a baseline of kimi perplexity, found {:02x?}", &found[..8]);
        }
        if found != expected {
            bail!("{place}: expected a baseline of the same text, window and vocabulary, found another");
        }
        Ok(Saved { file, path: path.to_owned(), partial: None })
    }

    fn read(&mut self, vocab: usize) -> Result<Vec<f32>> {
        let mut bytes = vec![0; vocab * 2];
        self.file.read_exact(&mut bytes).with_context(|| format!("{}: truncated", self.path.display()))?;
        let (pairs, _) = bytes.as_chunks::<2>();
        Ok(pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_divergence_is_zero_for_the_same_model_only() {
        let p = log_softmax(&[1.0, 2.0, 3.0]);
        let q = log_softmax(&[3.0, 2.0, 1.0]);
        let mut scores = Scores::default();
        scores.add(&p, 2, Some(&p));
        assert_eq!((scores.kl[0], scores.same_top), (0.0, 1));
        scores.add(&q, 2, Some(&p));
        // D(p||q) = sum p (log p - log q) with p = softmax(1,2,3): (p_2 - p_0) * 2
        let expected = 2.0 * f64::from(p[2].exp() - p[0].exp());
        assert!((scores.kl[1] - expected).abs() < 1e-6, "{} {expected}", scores.kl[1]);
        assert_eq!(scores.same_top, 1);
    }

    #[test]
    fn perplexity_of_a_uniform_distribution_is_the_vocabulary_size() {
        let mut scores = Scores::default();
        (0..10).for_each(|_| scores.add(&log_softmax(&[0.5; 64]), 3, None));
        assert!((scores.perplexity().0 - 64.0).abs() < 1e-4);
    }
}
