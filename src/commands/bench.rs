//! `kimi bench`: prefill and decode throughput at given depths, and the memory read bandwidth of the machine.
//!
//! Depth is simulated by filling the KV cache with random rows, because the time of a step depends on their number
//! only. Each repetition runs all cases, so that a slow phase of the machine affects all of them. With `--draft N`, a third
//! case decodes in steps of a token and a draft of N that is accepted. Next: `replay` (the expert cache without a card),
//! `expert_trace` (its input).

mod cache_policies;
mod expert_trace;
mod replay;
mod synthetic_trace;

use crate::args::EngineArgs;
use crate::commands::inspect::file_type;
use crate::commands::plot::{Axis, Panel, Picture, PlotFile, Point, Series};
use crate::commands::profiler::{self, Profiled};
use crate::generation::event::expert_cache_line;
use crate::generation::sample::argmax;
use crate::io::host_memory;
use crate::io::log::Log;
use crate::io::output::{Output, tell};
use crate::io::prompt::read_text;
use crate::io::units::{counted, format_size, parse_size};
use crate::runtime::attention_path::MATERIALIZE_AFTER;
use crate::runtime::engine::Engine;
use crate::runtime::handle::EngineHandle;
use crate::runtime::logits::Logits;
use crate::runtime::options::Drafting;
use anyhow::{Result, ensure};
use expert_trace::{ExpertTrace, TraceFile, TraceProbe};
use kernels::backend::{Backend, CacheFormat, ExpertCacheStats, Span};
use kernels::cpu::Cpu;
use kernels::cuda::Cuda;
use models::gguf::TensorInfo;
use models::hybrid::config::MixerKind;
use models::hybrid::mla::MlaPath;
use models::hybrid::state::{LayerState, State};
use models::hybrid::{Outputs, Sequence};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;
use replay::TraceSource;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Warm-up tokens before a decode is timed: a GPU runs the first token op by op and captures a graph for the second.
const UNTIMED: usize = 3;

/// The command-line arguments of `kimi bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Number of tokens to prefill (0: none)
    #[arg(short, long, default_value_t = 512)]
    prefill: usize,
    /// Number of tokens to decode (0: none)
    #[arg(short = 'n', long, default_value_t = 32)]
    decode: usize,
    /// Numbers of tokens already in the context, one case each
    #[arg(short, long, value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Number of repetitions; the median is printed
    #[arg(short, long, default_value_t = 5)]
    reps: usize,
    /// Profile one prefill and one decode at each depth instead: time, share and bytes of each op (CPU)
    #[arg(long, conflicts_with = "json")]
    profile: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Draw the rates by depth as a picture (SVG)
    #[arg(long, value_name = "FILE.svg", conflicts_with = "profile")]
    plot: Option<PathBuf>,
    /// Text whose first tokens are prefilled and whose next ones are decoded (default: random tokens)
    #[arg(short, long, value_name = "TEXT")]
    file: Option<PathBuf>,
    /// Write the experts that each token selects in each layer; recorded in the warm-up, so that the rates stay exact
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    trace_experts: Option<PathBuf>,
    /// Print the hit rates of the GPU expert cache on a trace instead, without a GPU: a file of --trace-experts, or a synthetic
    /// trace of -p and -n tokens
    #[arg(long, value_name = "FILE|skewed|uniform", value_parser = TraceSource::parse,
        conflicts_with_all = ["profile", "plot", "file", "trace_experts"])]
    replay_experts: Option<TraceSource>,
    /// Free memory of the GPUs for --replay-experts
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = parse_size, default_value = "8G,12G,16G,24G")]
    cards: Vec<u64>,
}

/// The results of all cases.
#[derive(Debug, Serialize)]
struct BenchReport {
    model: String,
    backend: String,
    weights_bytes: u64,
    memory_read_gb_s: f64,
    /// Peak resident memory, including pages of the mapped file.
    peak_resident_bytes: Option<u64>,
    /// Bytes read from disk during the measurement; not 0 if the file does not fit in memory.
    disk_read_bytes: Option<u64>,
    /// Hits and lookups of the GPU expert cache in decode.
    expert_cache_hits: Option<u64>,
    expert_cache_lookups: Option<u64>,
    cases: Vec<Case>,
}

/// A prefill, a decode or a drafted decode at one depth.
#[derive(Debug, Serialize)]
struct Case {
    test: &'static str,
    tokens: usize,
    depth: usize,
    /// Drafted tokens in each step, all of which are accepted.
    draft: usize,
    tokens_per_s: f64,
    min: f64,
    max: f64,
    /// Decode only: bytes of weights, state and KV cache per token, times tokens per second.
    gb_s: Option<f64>,
    /// Decode only: `gb_s` as a fraction of the memory bandwidth.
    share: Option<f64>,
    #[serde(skip)]
    rates: Vec<f64>,
}

/// Runs the benchmark and prints the results.
pub fn run(args: &BenchArgs) -> Result<()> {
    if args.profile {
        return profile(args);
    }
    if let Some(source) = &args.replay_experts {
        return replay::run(args, source);
    }
    let files = BenchFiles {
        plot: args.plot.as_deref().map(PlotFile::create).transpose()?,
        trace: args.trace_experts.as_deref().map(TraceFile::create).transpose()?,
    };
    let (options, log): (_, Log) = (args.engine.options().without_snapshots(), Box::new(tell));
    match EngineHandle::load(&options, log)? {
        EngineHandle::Cpu(engine) => run_on(&engine, args, &files),
        EngineHandle::Cuda(engine) => run_on(&engine, args, &files),
    }
}

/// Files to write beside the results.
struct BenchFiles {
    plot: Option<PlotFile>,
    trace: Option<TraceFile>,
}

fn run_on<B: Memory>(engine: &Engine<B>, args: &BenchArgs, files: &BenchFiles) -> Result<()> {
    let mut cases = cases(args);
    check(engine, &cases)?;
    let text = text_tokens(engine, args)?;
    let moe = &engine.model.config.moe;
    let (experts, selected) = (moe.experts, moe.routing.top_k);
    ensure!(
        files.trace.is_none() || experts > 0,
        "--trace-experts: expected a model with experts, found none"
    );
    let mut trace = ExpertTrace { experts, selected, ..ExpertTrace::default() };
    let memory = engine.backend.read_gb_s();
    let read_before = host_memory::read_from_disk();
    for rep in 0..=args.reps.max(1) {
        for case in &mut cases {
            progress(&format!("rep {rep}/{}: {} at {}", args.reps.max(1), case.test, case.depth));
            // The first repetition warms up caches and page tables; the experts are recorded in it.
            let trace = files.trace.as_ref().filter(|_| rep == 0).map(|_| &mut trace);
            let rate = measure(engine, case, &text, trace);
            if rep > 0 {
                case.rates.push(rate);
            }
        }
    }
    progress("");
    files.trace.as_ref().map_or(Ok(()), |file| file.write(&trace))?;
    for case in &mut cases {
        case.rates.sort_by(f64::total_cmp);
        (case.min, case.max) = (case.rates[0], case.rates[case.rates.len() - 1]);
        case.tokens_per_s = case.rates[case.rates.len() / 2];
        if case.test == "decode" {
            let gb_s = bytes_per_token(engine, case.depth) as f64 * case.tokens_per_s / 1e9;
            (case.gb_s, case.share) = (Some(gb_s), Some(gb_s / memory));
        }
    }
    let expert_cache = engine.backend.expert_cache_stats();
    let report = BenchReport {
        model: args.engine.options().name(),
        backend: engine.backend.describe(),
        weights_bytes: engine.file.tensors.iter().map(|t| t.bytes).sum(),
        memory_read_gb_s: memory,
        peak_resident_bytes: host_memory::peak_resident(),
        disk_read_bytes: host_memory::read_from_disk().zip(read_before).map(|(now, before)| now - before),
        expert_cache_hits: expert_cache.map(|stats| stats.hits),
        expert_cache_lookups: expert_cache.map(|stats| stats.lookups),
        cases,
    };
    print(&report, args.json)?;
    files.plot.as_ref().map_or(Ok(()), |file| {
        file.write(&report.picture(file_type(&engine.file.metadata), args.reps.max(1)))
    })
}

impl BenchReport {
    /// The rates by depth: a panel per test, medians with the range of all repetitions.
    fn picture(&self, file_type: Option<&str>, reps: usize) -> Picture {
        let panel = |test: &&str| {
            let cases = || self.cases.iter().filter(|case| case.test == *test);
            let point =
                |c: &Case| Point { x: c.depth as f64, y: c.tokens_per_s, range: Some([c.min, c.max]) };
            let mut points: Vec<Point> = cases().map(point).collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            let head = cases().next().map_or(String::new(), |case| match case.draft {
                0 => format!("{} of {}, tok/s", capitalized(test), counted(case.tokens, "token")),
                n => format!("Decode with accepted drafts of {n}, tok/s"),
            });
            let axis = Axis::Numbers("depth: tokens already in the context".into());
            Panel { head, axis, series: vec![Series { name: String::new(), points }], top: None }
        };
        let model =
            Path::new(&self.model).file_name().map_or(self.model.clone().into(), |n| n.to_string_lossy());
        let size = format_size(self.weights_bytes);
        Picture {
            title: format!("Tokens per second by depth: {model}"),
            subtitle: [file_type, Some(&size), Some(&self.backend)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(", "),
            panels: ["prefill", "decode", "draft"]
                .iter()
                .map(panel)
                .filter(|p| !p.series[0].points.is_empty())
                .collect(),
            notes: vec![format!(
                "kimi bench {}: median of {}, error bars from minimum to maximum; higher is better. Memory read {:.1} GB/s.",
                env!("CARGO_PKG_VERSION"),
                counted(reps, "repetition"),
                self.memory_read_gb_s
            )],
        }
    }
}

/// A word with a capital first letter.
fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

/// Shows the progress on a terminal.
fn progress(line: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{line}");
    }
}

fn check<B: Backend>(engine: &Engine<B>, cases: &[Case]) -> Result<()> {
    for case in cases {
        let (limit, end) = (engine.context, case.depth.saturating_add(case.tokens));
        ensure!(end as u64 <= limit, "context: expected at most {limit} tokens, found {end}: raise --ctx");
    }
    Ok(())
}

/// The tokens of `--file` that are prefilled, and those after them that are decoded; none without it.
fn text_tokens<B: Backend>(engine: &Engine<B>, args: &BenchArgs) -> Result<[Vec<u32>; 2]> {
    let Some(path) = &args.file else { return Ok(Default::default()) };
    let mut prefilled = engine.tokenizer()?.encode(&read_text(path)?);
    let (found, expected) = (prefilled.len(), args.prefill.saturating_add(args.decode));
    let name = path.display();
    ensure!(found >= expected, "{name}: expected {expected} tokens to prefill and decode, found {found}");
    let mut decoded = prefilled.split_off(args.prefill);
    decoded.truncate(args.decode);
    Ok([prefilled, decoded])
}

/// Profiles one repetition of each case after a warm-up.
fn profile(args: &BenchArgs) -> Result<()> {
    let how = args.engine.options().without_snapshots();
    let log: Log = Box::new(tell);
    how.prepare(&log)?;
    let engine = Engine::load(Profiled::new(Cpu::detect(how.threads)), &how, log)?;
    let cases = cases(args);
    check(&engine, &cases)?;
    let (memory, mut out) = (engine.backend.inner().read_gb_s(), Output::lock());
    writeln!(
        out,
        "{}; {}; memory read {memory:.1} GB/s",
        args.engine.options().name(),
        engine.backend.describe()
    )?;
    let text = text_tokens(&engine, args)?;
    for case in &cases {
        measure(&engine, case, &text, None);
        engine.backend.take();
        let rate = measure(&engine, case, &text, None);
        writeln!(out, "\n{} of {} tokens at depth {}: {rate:.1} tok/s", case.test, case.tokens, case.depth)?;
        profiler::print(&mut out, &engine.backend.take(), case.tokens)?;
    }
    Ok(())
}

fn cases(args: &BenchArgs) -> Vec<Case> {
    let case = |test, tokens, depth, draft| Case {
        test,
        tokens,
        depth,
        draft,
        tokens_per_s: 0.0,
        min: 0.0,
        max: 0.0,
        gb_s: None,
        share: None,
        rates: Vec::new(),
    };
    let draft = if let Drafting::Tokens(n) = args.engine.draft { n } else { 0 };
    let of = |&d: &usize| {
        let drafted = if draft > 0 { args.decode } else { 0 };
        let (prefill, decode) = (case("prefill", args.prefill, d, 0), case("decode", args.decode, d, 0));
        [prefill, decode, case("draft", drafted, d, draft)]
    };
    args.depth.iter().flat_map(of).filter(|c| c.tokens > 0).collect()
}

fn print(report: &BenchReport, json: bool) -> Result<()> {
    let mut out = Output::lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(report)?)?;
        return Ok(());
    }
    writeln!(out, "{}  {:.2} GiB", report.model, report.weights_bytes as f64 / (1u64 << 30) as f64)?;
    write!(out, "{}; memory read {:.1} GB/s", report.backend, report.memory_read_gb_s)?;
    if let Some(bytes) = report.peak_resident_bytes {
        write!(out, "; peak memory {}", format_size(bytes))?;
    }
    if let Some((hits, lookups)) = report.expert_cache_hits.zip(report.expert_cache_lookups) {
        write!(out, "; {}", expert_cache_line(ExpertCacheStats { hits, lookups }))?;
    }
    match report.disk_read_bytes {
        Some(bytes) if bytes > 0 => writeln!(out, "; {} read from disk", format_size(bytes))?,
        _ => writeln!(out)?,
    }
    writeln!(
        out,
        "{:<8} {:>7} {:>8} {:>9} {:>18} {:>7} {:>6}",
        "test", "tokens", "depth", "tok/s", "min-max", "GB/s", "% peak"
    )?;
    for c in &report.cases {
        let range = format!("{:.2}-{:.2}", c.min, c.max);
        write!(out, "{:<8} {:>7} {:>8} {:>9.2} {range:>18}", c.test, c.tokens, c.depth, c.tokens_per_s)?;
        match (c.gb_s, c.share) {
            (Some(gb_s), Some(share)) => writeln!(out, " {gb_s:>7.2} {:>5.0}%", share * 100.0)?,
            _ => writeln!(out)?,
        }
    }
    Ok(())
}

/// Returns the tokens per second of one repetition, and records the experts of its steps in `trace`. Without `text` the tokens
/// are random.
fn measure<B: Backend>(
    engine: &Engine<B>,
    case: &Case,
    text: &[Vec<u32>; 2],
    mut trace: Option<&mut ExpertTrace>,
) -> f64 {
    let mut rng = Pcg64Mcg::new(42);
    // A reply is decoded token by token; the prompt is prefilled as one long message.
    let decodes = case.test != "prefill";
    let before = if decodes { UNTIMED } else { 0 };
    let mut state = at_depth(engine, case.depth.saturating_sub(before), &mut rng);
    let vocab = engine.model.config.vocab as u32;
    let text = &text[usize::from(decodes)];
    let tokens: Vec<u32> = if text.is_empty() {
        (0..case.tokens).map(|_| rng.next_u32() % vocab).collect()
    } else {
        text.clone()
    };
    let step = |tokens: &[u32], state: &mut State<B>, path, trace: Option<&mut ExpertTrace>| {
        let drafts = decodes && tokens.len() > 1;
        let (outputs, rows) = if drafts { (Outputs::Draft, tokens.len()) } else { (Outputs::Last, 1) };
        let mut batch = [Sequence { tokens, state: &mut *state, outputs, mla_path: path }];
        let logits = match trace {
            Some(trace) => engine.model.forward(
                &engine.backend,
                &mut batch,
                &mut TraceProbe::new(&*engine.backend, trace),
            ),
            None => engine.model.forward(&engine.backend, &mut batch, &mut ()),
        };
        let scores = logits.map(|logits| Logits::new(engine, logits, rows));
        // Greedy sampling is part of the measurement, but the tokens of the next step are fixed.
        for row in scores.iter().flat_map(Logits::rows) {
            let best = row.top_k(1).map(|best| best.top.first().map_or(0, |(_, token)| *token));
            std::hint::black_box(best.unwrap_or_else(|| argmax(row.values())));
        }
        if drafts {
            engine.model.accept(&engine.backend, state, tokens.len());
        }
    };
    (0..before).for_each(|_| step(&tokens[..1], &mut state, MlaPath::Absorbed, None));
    let start = Instant::now();
    let mut left = &tokens[..];
    while !left.is_empty() {
        let long = !decodes && state.position >= MATERIALIZE_AFTER as u64;
        let path = if long { MlaPath::Materialized } else { MlaPath::Absorbed };
        let short =
            (MATERIALIZE_AFTER as u64).saturating_sub(state.position).try_into().unwrap_or(usize::MAX);
        let most = match path {
            _ if decodes => 1 + case.draft,
            MlaPath::Absorbed => engine.max_step_tokens(path).min(short),
            MlaPath::Materialized => engine.max_step_tokens(path),
        };
        let (tokens, rest) = left.split_at(most.min(left.len()));
        left = rest;
        step(tokens, &mut state, path, trace.as_deref_mut());
    }
    case.tokens as f64 / start.elapsed().as_secs_f64()
}

fn at_depth<B: Backend>(engine: &Engine<B>, depth: usize, rng: &mut Pcg64Mcg) -> State<B> {
    let (b, width) = (&engine.backend, engine.model.config.cache_width());
    let mut state = engine.model.state(b, engine.cache);
    for layer in &mut state.layers {
        let LayerState::Mla(cache) = layer else { continue };
        for start in (0..depth).step_by(1024) {
            let rows = (depth - start).min(1024);
            let values: Vec<f32> =
                (0..rows * width).map(|_| (rng.next_u32() as f32 / u32::MAX as f32) * 2.0 - 1.0).collect();
            b.append(&mut [Span { rows: 0..rows, state: &mut *cache }], &b.tensor(rows, width, &values));
        }
    }
    state.position = depth as u64;
    state
}

/// The bytes that a decoded token reads, plus the KDA state that it writes.
pub fn bytes_per_token<B: Backend>(engine: &Engine<B>, depth: usize) -> u64 {
    let c = &engine.model.config;
    let used = |t: &TensorInfo| match t.name.as_str() {
        "token_embd.weight" => t.bytes / c.vocab as u64,
        name if name.contains("_exps.") => t.bytes * c.moe.routing.top_k as u64 / c.moe.experts as u64,
        _ => t.bytes,
    };
    let weights: u64 = engine.file.tensors.iter().map(used).sum();
    let state = 2 * 4 * c.kda.heads * c.kda.head_dim * c.kda.head_dim * c.count(MixerKind::Kda);
    let row = match engine.cache {
        CacheFormat::F32 => 4 * c.cache_width(),
        CacheFormat::F16 => 2 * c.cache_width(),
        CacheFormat::Q8_0 => c.cache_width().div_ceil(32) * 34,
    };
    weights + state as u64 + (row * depth * c.count(MixerKind::Mla)) as u64
}

/// A backend that can measure its memory bandwidth.
trait Memory: Backend {
    /// Measures the memory read bandwidth in GB/s.
    fn read_gb_s(&self) -> f64;
}

impl Memory for Cpu {
    fn read_gb_s(&self) -> f64 {
        memory_read_gb_s(self.pool().threads())
    }
}

impl Memory for Cuda {
    fn read_gb_s(&self) -> f64 {
        self.copy_gb_s()
    }
}

/// Measures the memory read bandwidth of all threads: the best of five passes over 1 GiB.
fn memory_read_gb_s(threads: usize) -> f64 {
    const WORDS: usize = 1 << 27;
    let memory: Vec<u64> = (0..WORDS as u64).collect();
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|s| {
            for part in memory.chunks(WORDS.div_ceil(threads)) {
                s.spawn(|| std::hint::black_box(part.iter().fold(0u64, |a, x| a.wrapping_add(*x))));
            }
        });
        WORDS as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}
