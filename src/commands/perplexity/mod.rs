//! `kimi perplexity`: measures the perplexity of a text, and the KL divergence from a saved baseline.
//!
//! The definition is that of llama.cpp: the text is split into windows of N tokens, each starts from an empty state,
//! and the second half of each window is scored. KL divergence is D(baseline || model), averaged over the scored
//! positions. Next: `scores` (the figures), `breakdown` (by position and window), `baseline` (the file)
//! and `row` (a position in it).

mod baseline;
mod breakdown;
mod row;
mod scores;

use crate::args::EngineArgs;
use crate::commands::plot::PlotFile;
use crate::commands::plot::bars::BarStyle;
use crate::io::output::{Output, tell};
use crate::io::progress::CountBar;
use crate::io::prompt::PromptArgs;
use crate::io::units::counted;
use crate::runtime::builtin_model;
use crate::runtime::handle::EngineHandle;
use anyhow::{Context as _, Result, bail};
use baseline::{BaselineReader, BaselineText, BaselineWriter};
use breakdown::Breakdown;
use rayon::prelude::*;
use row::Row;
use scores::{Compared, Scores};
use std::io::Write;
use std::path::PathBuf;

/// The command-line arguments of `kimi perplexity`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Compare a quantized model with the model that it was made from, on the same text:
  kimi perplexity -m model-f16.gguf -f wiki.test.raw --save-baseline f16.kld
  kimi perplexity -m model-q4_k_m.gguf -f wiki.test.raw --baseline f16.kld")]
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
    /// Save the log-probabilities as a baseline (a byte per scored token and token of the vocabulary)
    #[arg(long, value_name = "FILE")]
    save_baseline: Option<PathBuf>,
    /// Compare with a baseline of another model on the same text
    #[arg(long, value_name = "FILE", conflicts_with = "save_baseline")]
    baseline: Option<PathBuf>,
    /// Print one JSON object with all figures, and neither notices nor progress
    #[arg(long)]
    json: bool,
    /// Draw the perplexity, or the KL divergence from the baseline, by position and by window as a picture (SVG)
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// Scores the text and prints the perplexity, and the figures of the comparison if there is a baseline.
pub fn run(args: &PerplexityArgs) -> Result<()> {
    let quiet = args.json;
    let log = Box::new(move |line: &str| {
        if !quiet {
            tell(line)
        }
    });
    let plot = args.plot.as_deref().map(PlotFile::create).transpose()?;
    let engine = EngineHandle::load(&args.engine.options().without_snapshots(), log)?;
    let (window, half) = (args.window, args.window / 2);
    let ids = &window_ids(args, &engine)?[..];
    let windows = ids.len() / window;
    let text = BaselineText { model: model_name(args), vocab: engine.config.vocab, window, ids };
    let mut save = args.save_baseline.as_deref().map(|p| BaselineWriter::create(p, &text)).transpose()?;
    let mut base = args.baseline.as_deref().map(|p| BaselineReader::open(p, &text)).transpose()?;
    let mut scores = Scores::default();
    let bar = (!quiet).then(|| CountBar::start(windows as u64, "window"));
    for tokens in ids.chunks_exact(window) {
        let rows = window_log_probs(&engine, tokens, half)?;
        let next = &tokens[half + 1..];
        if let Some(save) = &mut save {
            let stored: Vec<Row> =
                rows.par_iter().zip(next).map(|(row, next)| Row::new(row, *next)).collect();
            stored.iter().try_for_each(|row| save.write(row))?;
        }
        let stored = match &mut base {
            Some(base) => rows.iter().map(|_| base.read().map(Some)).collect::<Result<Vec<_>>>()?,
            None => vec![None; rows.len()],
        };
        let compare = |((row, next), base): ((&Vec<f32>, &u32), &Option<Row>)| {
            base.as_ref().map(|base| Compared::new(row, *next, base))
        };
        let compared: Vec<_> = rows.par_iter().zip(next).zip(&stored).map(compare).collect();
        for ((row, next), compared) in rows.iter().zip(next).zip(compared) {
            scores.add(row, *next, compared);
        }
        if let Some(bar) = &bar {
            bar.inc(&format!("perplexity {:.4}", scores.perplexity().0));
        }
    }
    if let Some(bar) = bar {
        bar.finish();
    }
    if let Some(save) = save {
        save.finish()?;
    }
    let baseline = base.as_ref().map(|base| &*base.model);
    scores.figures(baseline).print(args.json)?;
    let breakdown = Breakdown { scores: &scores, window, windows };
    if !args.json {
        let mut out = Output::lock();
        breakdown.lines(BarStyle::detect()).iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    plot.map_or(Ok(()), |file| file.write(&breakdown.picture(&model_name(args), baseline)))
}

/// The tokens of all windows.
fn window_ids(args: &PerplexityArgs, engine: &EngineHandle) -> Result<Vec<u32>> {
    let mut ids = engine.raw_ids(&args.text.read()?)?;
    let window = args.window;
    let windows = (ids.len() / window.max(1)).min(args.windows.unwrap_or(usize::MAX));
    if window < 2 || windows == 0 {
        bail!(
            "the text has {}, fewer than one window of {window} (--window, at least 2)",
            counted(ids.len(), "token")
        );
    }
    ids.truncate(windows * window);
    for (i, tokens) in ids.chunks_exact(window).enumerate() {
        engine.check(tokens).with_context(|| format!("window {i}"))?;
    }
    Ok(ids)
}

/// The name of the model's file without its directory.
fn model_name(args: &PerplexityArgs) -> String {
    let name = args.engine.model.as_deref().and_then(|path| path.file_name());
    name.map_or(builtin_model::NAME.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Returns the perplexity of a text and its standard error over at most `windows` windows.
pub fn of(engine: &EngineHandle, ids: &[u32], window: usize, windows: usize) -> Result<(f64, f64)> {
    let mut scores = Scores::default();
    for tokens in ids.chunks_exact(window).take(windows) {
        let rows = window_log_probs(engine, tokens, window / 2)?;
        rows.iter().zip(&tokens[window / 2 + 1..]).for_each(|(row, next)| scores.add(row, *next, None));
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

/// Normalizes a row of logits to log-probabilities.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let norm = f64::from(max) + sum.ln();
    logits.iter().map(|l| (f64::from(*l) - norm) as f32).collect()
}
