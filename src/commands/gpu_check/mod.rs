//! `kimi gpu-check`: tests and benchmarks a GPU. Compares every op and whole models with the reference, measures
//! kernels against the limits of memory and arithmetic, then runs the real model's shape.
//!
//! Each part runs in its own process, because a fault in a kernel ends all work of the process: the table then names
//! the failed part, and the other parts still run. Inputs are random (`--seed` repeats them), and result buffers are
//! filled with NaN before each op. Next: [`crate::kernel_checks`] (the checks of ops), [`models`] and [`bench`].

pub mod bench;
pub mod model_file;
pub mod models;

use crate::kernel_checks::{CheckRow, best, fused, ops, residual};
use anyhow::{Context as _, Result, bail, ensure};
use kernels::backend::Backend;
use kernels::cuda::Cuda;
use model_file::ModelFile;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The command-line arguments of `kimi gpu-check`.
#[derive(Clone, Debug, clap::Args)]
pub struct GpuCheckArgs {
    /// Use small sizes, skip the kernel benchmarks, and repeat the benchmarks of --real once only
    #[arg(long)]
    quick: bool,
    /// Check and benchmark the kernels with the formats and sizes of this model file instead of those of the published models
    #[arg(short, long, value_name = "FILE", conflicts_with = "real")]
    model: Option<PathBuf>,
    /// Run one part only: device, rows, products, delta, attention, experts, fused, models, times; with -m device, model, times
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Seed of the random inputs (default: from the clock)
    #[arg(long)]
    seed: Option<u64>,
    /// Benchmark prefill and decode with this model file; a missing file is created with the real shape and random weights
    #[arg(long, value_name = "FILE")]
    real: Option<PathBuf>,
    /// Context depths in tokens at which to measure prefill and decode
    #[arg(long, value_delimiter = ',', default_value = "0,32768,131072")]
    depth: Vec<usize>,
    /// Context depths in tokens at which to measure decode only
    #[arg(long, value_delimiter = ',', default_value = "1040384")]
    far: Vec<usize>,
    /// Also benchmark decode with this model file, of the real shape but with MLA in every layer; a missing file is created
    #[arg(long, value_name = "FILE", requires = "real")]
    all_mla: Option<PathBuf>,
    /// Also benchmark with GPU memory limited to these sizes, as on smaller cards
    #[arg(long, value_name = "SIZE", value_delimiter = ',', requires = "real")]
    cards: Vec<String>,
    /// Also benchmark decode of --real with each kernel launched after the end of the one before: on cards of compute capability
    /// 9.0 and newer they overlap otherwise
    #[arg(long, requires = "real")]
    serial_launches: bool,
    /// Prefill batch size of the benchmarks in tokens
    #[arg(long, default_value_t = 4096)]
    batch: usize,
    /// Time limit of a part in seconds
    #[arg(long, default_value_t = 150)]
    limit: u64,
}

const PARTS: [&str; 9] =
    ["device", "rows", "products", "delta", "attention", "experts", "fused", "models", "times"];
/// The parts that run with `-m`.
const PARTS_OF_FILE: [&str; 3] = ["device", "model", "times"];

/// Runs all parts, each in its own process, or the selected part in this process.
pub fn run(args: &GpuCheckArgs) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let seed = args.seed.unwrap_or(now);
    if let Some(part) = &args.only {
        return one(part, seed, args);
    }
    let start = Instant::now();
    let mut failed = Vec::new();
    let file =
        args.model.as_ref().map(|file| file.to_str().context("expected a path in UTF-8")).transpose()?;
    let parts: &[&str] = if file.is_some() { &PARTS_OF_FILE } else { &PARTS };
    for part in parts.iter().copied().filter(|p| !args.quick || *p != "times") {
        let seed = seed.to_string();
        let mut own = vec!["gpu-check", "--only", part, "--seed", &seed];
        own.extend(file.into_iter().flat_map(|file| ["--model", file]));
        own.extend(args.quick.then_some("--quick"));
        if let Err(e) = child(&own, args.limit) {
            println!("{part}: FAILED: {e:#}");
            failed.push(part);
        }
        if part == "device" && !failed.is_empty() {
            break;
        }
    }
    if let Some(file) = args.real.as_ref().filter(|_| failed.is_empty()) {
        failed.extend(real(args, file));
    }
    println!("{:.0} s, inputs of --seed {seed}", start.elapsed().as_secs_f64());
    ensure!(failed.is_empty(), "gpu-check: failed: {}", failed.join(", "));
    Ok(())
}

/// Runs this program with other arguments and inherited output.
fn child(arguments: &[&str], limit: u64) -> Result<()> {
    std::io::stdout().flush()?;
    let mut child = Command::new(std::env::current_exe()?).args(arguments).stdin(Stdio::null()).spawn()?;
    let end = Instant::now() + Duration::from_secs(limit);
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{status}");
            return Ok(());
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            bail!("not finished after {limit} s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs one part in this process.
fn one(part: &str, seed: u64, args: &GpuCheckArgs) -> Result<()> {
    let start = Instant::now();
    let file = args.model.as_deref().map(ModelFile::open).transpose()?;
    let cuda = Cuda::detect()?;
    cuda.poison(part != "times");
    let rows = match &file {
        Some(file) => rows_of_file(&cuda, part, file, seed, args.quick)?,
        None => rows_of(&cuda, part, seed, args.quick)?,
    };
    println!("{part}, {:.1} s", start.elapsed().as_secs_f64());
    for row in &rows {
        let mark = match row.passed {
            Some(true) => "passed",
            Some(false) => "FAILED",
            None => "",
        };
        println!("  {:<52} {:>34} {mark}", row.what, row.found);
    }
    let failed = rows.iter().filter(|row| row.passed == Some(false)).count();
    ensure!(failed == 0, "{failed} of {} checks failed", rows.len());
    Ok(())
}

/// Runs one part and returns its rows.
///
/// # Errors
/// There is no such part, or a model cannot be written.
pub fn rows_of(cuda: &Cuda, part: &str, seed: u64, quick: bool) -> Result<Vec<CheckRow>> {
    Ok(match part {
        "device" => device(cuda),
        "rows" => ops::rows(cuda, seed).into_iter().chain(best::rows(cuda, seed)).collect(),
        "products" => ops::products(cuda, seed, quick),
        "delta" => ops::delta(cuda, seed, quick),
        "attention" => ops::attention(cuda, seed, quick),
        "experts" => ops::experts(cuda, seed, quick),
        "fused" => fused::fused(cuda, seed, quick).into_iter().chain(residual::norms(cuda, seed)).collect(),
        "models" => models::models(cuda, quick)?,
        "times" => bench::all(cuda, seed),
        other => bail!("--only: expected one of {}, found {other:?}", PARTS.join(", ")),
    })
}

/// Runs one part with the formats and sizes of a model file.
fn rows_of_file(cuda: &Cuda, part: &str, file: &ModelFile, seed: u64, quick: bool) -> Result<Vec<CheckRow>> {
    Ok(match part {
        "device" => device(cuda),
        "model" => file.checks(cuda),
        "times" => file.times(cuda, seed, quick),
        other => bail!("--only: expected one of {} with -m, found {other:?}", PARTS_OF_FILE.join(", ")),
    })
}

fn device(cuda: &Cuda) -> Vec<CheckRow> {
    let (device, [free, total]) = (cuda.device(), cuda.memory());
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let launches =
        if cuda.has_programmatic_launches() { "yes" } else { "no: expected compute capability 9.0" };
    let row = |what: &str, found: String| CheckRow { what: what.to_owned(), found, passed: None };
    let mut rows = vec![
        row("device", cuda.describe()),
        row("driver, CUDA", format!("{}.{}", device.version / 1000, device.version % 1000 / 10)),
        row("multiprocessors", device.multiprocessors.to_string()),
        row("programmatic dependent launches", launches.into()),
        row("memory free, all", format!("{:.1}, {:.1} GiB", gib(free), gib(total))),
    ];
    let compiled = cuda.compile().into_iter();
    rows.extend(
        compiled.map(|(name, seconds)| {
            row(&format!("compiled by the driver: {name}"), format!("{seconds:.2} s"))
        }),
    );
    rows
}

/// Benchmarks prefill and decode of the real shape with `kimi bench`, and decode of the shape with MLA in every
/// layer. Continues after failures and returns their names.
fn real(args: &GpuCheckArgs, file: &Path) -> Vec<&'static str> {
    let run = |depths, prefill| Run { file, preset: "48b", depths, prefill, card: None, is_serial: false };
    let mut runs = vec![run(&args.depth, true), run(&args.far, false)];
    if args.serial_launches {
        runs.push(Run { is_serial: true, ..run(&args.depth, false) });
    }
    if let Some(other) = &args.all_mla {
        let all_mla = |depths| Run { file: other, preset: "48b-mla", ..run(depths, false) };
        runs.extend([all_mla(&args.depth), all_mla(&args.far)]);
    }
    runs.extend(args.cards.iter().map(|card| Run { card: Some(card), ..run(&[0], true) }));
    let mut failed = Vec::new();
    for run in runs {
        if let Some(card) = run.card {
            println!("GPU memory limited to {card}");
        }
        if run.is_serial {
            println!("without programmatic dependent launches");
        }
        if let Err(e) = bench(args, &run) {
            println!("{}: FAILED: {e:#}", run.file.display());
            failed.push(run.preset);
        }
    }
    failed
}

/// A benchmark of decode, and optionally prefill, at some depths. A missing file is written as a random model of the
/// preset.
#[derive(Clone, Copy)]
struct Run<'a> {
    file: &'a Path,
    preset: &'static str,
    depths: &'a [usize],
    prefill: bool,
    /// The limit of GPU memory to simulate.
    card: Option<&'a str>,
    /// Whether to decode without programmatic dependent launches.
    is_serial: bool,
}

fn bench(args: &GpuCheckArgs, run: &Run<'_>) -> Result<()> {
    let Run { file, preset, depths, prefill, card, is_serial } = *run;
    let path = file.to_str().context("expected a path in UTF-8")?;
    let Some(deepest) = depths.iter().max() else { return Ok(()) };
    if !file.exists() {
        child(&["synth", path, "--preset", preset, "--type", "q4_k_m"], 600)?;
    }
    let text = |n: usize| n.to_string();
    let prefill = if prefill { args.batch } else { 0 };
    let (batch, tokens, context) = (text(args.batch), text(prefill), text(deepest + prefill.max(DECODED)));
    let depths: Vec<String> = depths.iter().copied().map(text).collect();
    let (depths, decoded) = (depths.join(","), text(DECODED));
    let how = ["-p", &tokens, "-n", &decoded, "-d", &depths, "--batch", &batch, "--ctx", &context];
    let own = ["bench", "--device", "cuda", "-m", path, "-r", if args.quick { "1" } else { "3" }];
    let card = card.map(|card| ["--gpu-memory", card]);
    let launches: &[&str] = if is_serial { &["--gpu-serial-launches"] } else { &[] };
    let card = card.as_ref().map_or(&[][..], |card| &card[..]);
    child(&[&own[..], &how, card, launches].concat(), BENCH_SECONDS)
}

/// Number of tokens decoded at each depth.
const DECODED: usize = 32;
/// Time limit of a benchmark; filling the KV cache of a million tokens takes a minute and a half.
const BENCH_SECONDS: u64 = 400;
