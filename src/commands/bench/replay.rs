//! `kimi bench --replay-experts`: the hit rates that policies of the expert cache reach on a trace, on cards of given memory.
//!
//! The slots of a card are those that the placement plans for the model: weights, state, context and workspace take their share
//! first. No GPU is needed, and of the model file only the header is read. Next: `expert_trace`, `synthetic_trace`,
//! `cache_policies`.

use super::BenchArgs;
use super::cache_policies::{CacheCounts, CachePolicy, LayerStep};
use super::expert_trace::ExpertTrace;
use super::synthetic_trace::{SyntheticRouting, TraceShape, generate};
use crate::io::output::Output;
use crate::io::units::{format_size, grouped};
use crate::runtime::builtin_model;
use crate::runtime::device;
use crate::runtime::options::DEFAULT_BATCH;
use crate::runtime::placement::Placement;
use anyhow::{Result, bail, ensure};
use kernels::cuda::UPLOAD_MIN_TOKENS;
use models::hybrid::config::Config;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Seed of all synthetic traces.
const SEED: u64 = 42;

/// The trace that is replayed.
#[derive(Clone, Debug, PartialEq)]
pub enum TraceSource {
    File(PathBuf),
    Synthetic(SyntheticRouting),
}

impl TraceSource {
    /// Parses the value of `--replay-experts`.
    pub fn parse(value: &str) -> Result<TraceSource, std::convert::Infallible> {
        Ok(match value {
            "skewed" => TraceSource::Synthetic(SyntheticRouting::Skewed),
            "uniform" => TraceSource::Synthetic(SyntheticRouting::Uniform),
            path => TraceSource::File(path.into()),
        })
    }

    fn name(&self) -> String {
        match self {
            TraceSource::File(path) => path.display().to_string(),
            TraceSource::Synthetic(SyntheticRouting::Skewed) => "skewed".to_owned(),
            TraceSource::Synthetic(SyntheticRouting::Uniform) => "uniform".to_owned(),
        }
    }
}

/// The results of all cards.
#[derive(Debug, Serialize)]
struct ReplayReport {
    model: String,
    trace: String,
    layers: usize,
    experts: usize,
    selected: usize,
    tokens: usize,
    cards: Vec<CardReport>,
}

/// The results on one card.
#[derive(Debug, Serialize)]
struct CardReport {
    memory_bytes: u64,
    /// Experts per layer in the cache.
    slots: usize,
    /// First layers whose experts are all on the card.
    gpu_layers: usize,
    /// Memory that the card lacks for the rest of the model.
    missing_bytes: u64,
    /// Tokens whose experts were looked up.
    tokens: usize,
    /// Empty where all experts fit, or the model does not.
    policies: Vec<PolicyReport>,
}

/// The counts of one policy in all layers.
#[derive(Debug, Serialize)]
struct PolicyReport {
    policy: &'static str,
    #[serde(flatten)]
    counts: CacheCounts,
}

/// Replays the trace and prints the results.
///
/// # Errors
/// The model or the trace cannot be read, or the trace is of a model with other layers or experts.
pub fn run(args: &BenchArgs, source: &TraceSource) -> Result<()> {
    let options = args.engine.options();
    let config = Config::from_gguf(&builtin_model::open(options.model.as_deref())?)?;
    let trace = match source {
        TraceSource::File(path) => {
            let trace = ExpertTrace::read(path)?;
            check(&source.name(), &trace, &shape_of(&config, Vec::new()))?;
            trace
        }
        TraceSource::Synthetic(routing) => {
            let batch = args.engine.batch.unwrap_or(DEFAULT_BATCH);
            let prompt = (0..args.prefill).step_by(batch).map(|start| batch.min(args.prefill - start));
            let steps = prompt.chain(std::iter::repeat_n(1, args.decode)).collect();
            generate(*routing, shape_of(&config, steps), SEED)
        }
    };
    let mut cards = Vec::new();
    for memory in &args.cards {
        cards.push(card(&trace, *memory, &device::plan(&options, *memory)?));
    }
    let ExpertTrace { experts, selected, layers, steps } = &trace;
    let report = ReplayReport {
        model: options.name(),
        trace: source.name(),
        layers: layers.len(),
        experts: *experts,
        selected: *selected,
        tokens: steps.iter().map(|step| trace.tokens(step)).sum(),
        cards,
    };
    let mut out = Output::lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    print(&report, &mut out)
}

/// The layers and experts of a model, with the steps of a trace.
fn shape_of(config: &Config, steps: Vec<usize>) -> TraceShape {
    let layers = config.dense_layers.min(config.layers.len())..config.layers.len();
    let (experts, selected) = (config.moe.experts, config.moe.routing.top_k);
    TraceShape { experts, selected, layers: layers.collect(), steps }
}

/// Checks that a trace is of a model of this shape.
fn check(name: &str, trace: &ExpertTrace, model: &TraceShape) -> Result<()> {
    let counts = |experts: usize, selected: usize| format!("{selected} of {experts} experts");
    let (expected, found) = (counts(model.experts, model.selected), counts(trace.experts, trace.selected));
    ensure!(expected == found, "{name}: expected {expected}, as in the model, found {found}");
    let shown = |layers: &[usize]| match layers {
        [first, .., last] => format!("{} layers from {first} to {last}", layers.len()),
        layers => format!("layers {layers:?}"),
    };
    let (expected, found) = (shown(&model.layers), shown(&trace.layers));
    ensure!(model.layers == trace.layers, "{name}: expected {expected}, as in the model, found {found}");
    if model.layers.is_empty() {
        bail!("{name}: expected a model with experts, found none");
    }
    Ok(())
}

/// Replays a trace with the slots of one card.
fn card(trace: &ExpertTrace, memory_bytes: u64, plan: &Placement) -> CardReport {
    let is_staged = |tokens: usize| plan.staging > 0 && tokens >= UPLOAD_MIN_TOKENS;
    let counted = trace.steps.iter().map(|step| trace.tokens(step)).filter(|tokens| !is_staged(*tokens));
    let is_cached = plan.shortfall == 0 && plan.ram > 0;
    let policies = CachePolicy::ALL.into_iter().filter(|_| is_cached);
    let replay = |policy: CachePolicy| {
        let mut counts = CacheCounts::default();
        for layer in 0..trace.layers.len() {
            let step = |step| {
                let tokens = trace.tokens(step);
                LayerStep { chosen: &step.0[layer], tokens, is_staged: is_staged(tokens) }
            };
            let steps: Vec<LayerStep<'_>> = trace.steps.iter().map(step).collect();
            counts += if layer < plan.gpu_layers {
                CacheCounts::all_hits(&steps)
            } else {
                policy.replay(trace.experts, plan.slots, &steps)
            };
        }
        PolicyReport { policy: policy.name(), counts }
    };
    CardReport {
        memory_bytes,
        slots: plan.slots,
        gpu_layers: plan.gpu_layers,
        missing_bytes: plan.shortfall,
        tokens: counted.sum(),
        policies: policies.map(replay).collect(),
    }
}

fn print(report: &ReplayReport, out: &mut impl Write) -> Result<()> {
    let ReplayReport { model, trace, layers, experts, selected, tokens, cards } = report;
    let tokens = grouped(tokens);
    writeln!(out, "{model}; {trace}: {tokens} tokens, {selected} of {experts} experts in {layers} layers")?;
    write!(out, "{:<10} {:>5} {:>8}", "GPU memory", "slots", "tokens")?;
    CachePolicy::ALL.iter().try_for_each(|policy| write!(out, " {:>15}", policy.name()))?;
    writeln!(out)?;
    for card in cards {
        write!(out, "{:<10} ", format_size(card.memory_bytes))?;
        if card.policies.is_empty() {
            match card.missing_bytes {
                0 => writeln!(out, "all experts are on the GPU")?,
                bytes => writeln!(out, "short by {}", format_size(bytes))?,
            }
            continue;
        }
        write!(out, "{:>5} {:>8}", card.slots, grouped(card.tokens))?;
        for PolicyReport { counts, .. } in &card.policies {
            let per_token = counts.uploads as f64 / card.tokens.max(1) as f64;
            write!(
                out,
                " {:>7.1}% {per_token:>6.2}",
                100.0 * counts.hits as f64 / counts.lookups.max(1) as f64
            )?;
        }
        writeln!(out)?;
    }
    writeln!(
        out,
        "hits in % of lookups, and experts uploaded per token; steps of {UPLOAD_MIN_TOKENS} tokens and more have no lookups"
    )?;
    Ok(())
}
