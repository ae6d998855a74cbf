//! `kimi imatrix`: computes an importance matrix from a text, in llama.cpp's GGUF form.
//!
//! The text is split into windows of N tokens, each of which starts from an empty state; several are prefilled in one step. A
//! stopped run resumes from its last saved sums. Next: `collector` (observes the inputs), `sums` (adds and saves them),
//! `calibration` (the built-in text), `sensitivity` (measured for conversions to a size).

mod calibration;
mod collector;
mod sensitivity;
mod sums;

use crate::args::{EngineArgs, at_least_one};
use crate::io::output::tell;
use crate::io::progress::TerminalProgress;
use crate::io::prompt::{parse_ids, read_text};
use crate::io::units::{counted, grouped};
use crate::runtime::builtin_model;
use crate::runtime::engine::Engine;
use crate::runtime::options::DeviceChoice;
use anyhow::{Result, anyhow, bail, ensure};
use collector::Observed;
use convert::Imatrix;
use kernels::cpu::Cpu;
use models::hybrid::mla::MlaPath;
use models::hybrid::state::State;
use models::hybrid::{Outputs, Sequence};
use models::visible::{MAX_SHOWN, one_line};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use sums::SavedSums;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Interval of lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The command-line arguments of `kimi imatrix`.
#[derive(Clone, Debug, clap::Args)]
pub struct ImatrixArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// CalibrationText to compute it from (default: a built-in text of prose, code, Chinese and chats)
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Token ids instead of text: 1,2,3 or @FILE
    #[arg(long, value_name = "IDS", conflicts_with = "file")]
    ids: Option<String>,
    /// Read names of special tokens in the text as these tokens
    #[arg(long, requires = "file")]
    parse_special: bool,
    /// Output file
    #[arg(short, long, value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,
    /// Window size in tokens
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512, value_parser = at_least_one())]
    window: usize,
    /// Maximum number of windows
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Also measure how much errors in each tensor change the model's predictions, on this many windows, for `convert --size`;
    /// added to an existing output file
    #[arg(long, value_name = "WINDOWS", default_value_t = 0)]
    sensitivity: usize,
    /// Seconds between saves, from which a stopped run resumes
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    save_interval: u64,
    /// Overwrite an existing output file
    #[arg(long)]
    force: bool,
}

/// The text as token ids, and its name.
struct CalibrationText {
    ids: Vec<u32>,
    name: String,
}

/// Computes the matrix and writes it; with `--sensitivity` completes an existing one.
pub fn run(args: &ImatrixArgs) -> Result<()> {
    let shown = args.output.display();
    ensure!(!args.output.is_dir(), "{shown} is a directory, not a file");
    let exists = args.output.exists() && !args.force;
    ensure!(!exists || args.sensitivity > 0, "{shown} exists; --force replaces it");
    let options = args.engine.options().without_snapshots();
    if options.device.device == Some(DeviceChoice::Cuda) {
        bail!("--device: expected cpu, found cuda: importance matrices are computed on the CPU");
    }
    options.prepare(&(Box::new(tell) as _))?;
    let engine = Engine::load(Observed::new(Cpu::detect(options.threads)), &options, Box::new(tell))?;
    let text = text(args, &engine)?;
    let windows = (text.ids.len() / args.window).min(args.windows.unwrap_or(usize::MAX));
    let found = counted(text.ids.len(), "token");
    ensure!(windows > 0, "{}: expected a window of {} tokens, found {found}", text.name, args.window);
    let ids = &text.ids[..windows * args.window];
    for (i, tokens) in ids.chunks_exact(args.window).enumerate() {
        engine.check(tokens).map_err(|e| anyhow!("{}, window {i}: {e}", text.name))?;
    }
    let mut imatrix = match exists {
        true => Imatrix::open(&args.output)?,
        false => compute(args, &engine, ids, &text.name)?,
    };
    if args.sensitivity > 0 {
        measure(args, &engine, ids, &mut imatrix)?;
    }
    Ok(())
}

/// Computes the sums and writes the matrix.
fn compute(args: &ImatrixArgs, engine: &Engine<Observed<Cpu>>, ids: &[u32], text: &str) -> Result<Imatrix> {
    let start = Instant::now();
    let done = collect(args, engine, ids)?;
    let windows = ids.len() / args.window;
    let imatrix = Imatrix {
        listing: args.output.display().to_string(),
        datasets: vec![text.to_owned()],
        chunk_count: Some(windows as u64),
        chunk_size: Some(args.window as u64),
        entries: engine.backend.sums().entries(),
        sensitivities: BTreeMap::new(),
    };
    imatrix.write(&args.output)?;
    saved(args, engine, ids).remove();
    report(&imatrix, text, (windows - done) * args.window, start.elapsed());
    Ok(imatrix)
}

/// Measures the sensitivities that the matrix lacks, and saves them as it goes.
fn measure(
    args: &ImatrixArgs,
    engine: &Engine<Observed<Cpu>>,
    ids: &[u32],
    imatrix: &mut Imatrix,
) -> Result<()> {
    let start = Instant::now();
    let mut file = builtin_model::open(args.engine.model.as_deref())?;
    let names = sensitivity::names(&file);
    let missing: Vec<&String> = names.iter().filter(|n| !imatrix.sensitivities.contains_key(*n)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Windows at equal distances hold all kinds of text.
    let all: Vec<&[u32]> = ids.chunks_exact(args.window).collect();
    let count = args.sensitivity.min(all.len());
    let windows: Vec<&[u32]> = (0..count).map(|i| all[i * all.len() / count]).collect();
    let cpu = Cpu::detect(args.engine.threads);
    let importance = imatrix.importance().0;
    let mut quantized = builtin_model::open(args.engine.model.as_deref())?;
    let folder = args.output.parent().filter(|folder| !folder.as_os_str().is_empty());
    sensitivity::quantize_all(&mut quantized, &importance, folder.unwrap_or(Path::new(".")))?;
    let (cache, batch) = (engine.cache, engine.batch);
    let mut probe = sensitivity::SensitivityProbe::new(cpu, &file, quantized, cache, batch, windows)?;
    let template = "{bar:30} {percent}% {pos}/{len} tensors eta {eta} {msg}";
    let bar = TerminalProgress::new(names.len() as u64, (names.len() - missing.len()) as u64, template);
    let mut last = Instant::now();
    for (i, name) in missing.iter().enumerate() {
        bar.set_message(one_line(name, MAX_SHOWN));
        imatrix.sensitivities.insert((*name).clone(), probe.measure(&mut file, name, &importance)?);
        bar.inc(1);
        if last.elapsed() >= LINE_INTERVAL.max(Duration::from_secs(args.save_interval)) {
            imatrix.write(&args.output)?;
            last = Instant::now();
            if bar.is_hidden() {
                let left = start.elapsed() / (i as u32 + 1) * (missing.len() - i - 1) as u32;
                tell(&format!("{} of {} tensors, eta {} s", i + 1, missing.len(), left.as_secs()));
            }
        }
    }
    bar.finish();
    imatrix.write(&args.output)?;
    tell(&format!(
        "{}: sensitivities of {} on {} of {} tokens, in {:.1} s",
        args.output.display(),
        counted(missing.len(), "tensor"),
        counted(count, "window"),
        args.window,
        start.elapsed().as_secs_f64(),
    ));
    Ok(())
}

/// Prints a line about the matrix, and one about experts that the text did not reach.
fn report(imatrix: &Imatrix, text: &str, tokens: usize, time: Duration) {
    let rate = tokens as f64 / time.as_secs_f64();
    tell(&format!(
        "{}: {} from {} of {} tokens of {text}, in {:.1} s ({} tok/s)",
        imatrix.listing,
        counted(imatrix.entries.len(), "tensor"),
        counted(imatrix.chunk_count.unwrap_or(0) as usize, "window"),
        imatrix.chunk_size.unwrap_or(0),
        time.as_secs_f64(),
        grouped(rate.round()),
    ));
    let unreached = imatrix.importance().1;
    if unreached.experts > 0 {
        let (experts, of) = (unreached.experts, unreached.of);
        tell(&format!("no token reached {experts} of {of} matrices of experts: a longer text reaches more"));
    }
}

fn text(args: &ImatrixArgs, engine: &Engine<Observed<Cpu>>) -> Result<CalibrationText> {
    if let Some(ids) = &args.ids {
        return Ok(CalibrationText { ids: parse_ids(ids)?, name: "token ids".to_owned() });
    }
    let tokenizer = engine.tokenizer_or_ids()?;
    let Some(path) = &args.file else {
        return Ok(CalibrationText { ids: calibration::ids(engine)?, name: calibration::NAME.to_owned() });
    };
    let (text, name) = (read_text(path)?, path.display().to_string());
    let ids =
        if args.parse_special { tokenizer.encode_with_specials(&text) } else { tokenizer.encode(&text) };
    Ok(CalibrationText { ids, name })
}

/// The file for the sums of an unfinished run with this model, text and options.
fn saved(args: &ImatrixArgs, engine: &Engine<Observed<Cpu>>, ids: &[u32]) -> SavedSums {
    let mut model = Xxh3::new();
    engine.file.headers().for_each(|header| model.update(header));
    let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|about| about.modified()).ok();
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let times: Vec<_> = engine.file.paths().iter().map(|path| modified(path).map(since)).collect();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let stamp = format!(
        "kimi imatrix {}\nmodel {:016x} {} {times:?}\ntext {} {:016x}\nwindow {} batch {} {:?}",
        env!("CARGO_PKG_VERSION"),
        model.digest(),
        engine.file.file_bytes(),
        ids.len(),
        xxh3_64(&bytes),
        args.window,
        engine.batch,
        engine.cache,
    );
    SavedSums::beside(&args.output, stamp)
}

/// Runs all windows that an earlier run has not; returns the number that it had.
fn collect(args: &ImatrixArgs, engine: &Engine<Observed<Cpu>>, ids: &[u32]) -> Result<usize> {
    let saved = saved(args, engine, ids);
    let done = saved.restore(&mut engine.backend.sums()).unwrap_or(0) as usize;
    let total = ids.len() / args.window;
    if done > 0 {
        tell(&format!("resuming after {done} of {}", counted(total, "window")));
    }
    let template = "{bar:30} {percent}% {pos}/{len} windows eta {eta} {msg}";
    let bar = TerminalProgress::new(total as u64, done as u64, template);
    let (mut last_save, mut last_line, start) = (Instant::now(), Instant::now(), Instant::now());
    // Windows of one step; a longer window is prefilled in several steps.
    let together = (engine.batch / args.window).max(1);
    let mut at = done;
    for windows in ids[done * args.window..].chunks(together * args.window) {
        step(engine, windows, args.window);
        if let Some(name) = &engine.backend.sums().not_finite {
            saved.remove();
            let model = args.engine.options().name();
            bail!("{model}: inputs of {name}: expected finite values, found NaN or infinity");
        }
        let count = windows.len() / args.window;
        at += count;
        bar.inc(count as u64);
        let rate = (at - done) as f64 * args.window as f64 / start.elapsed().as_secs_f64();
        bar.set_message(format!("{} tok/s", grouped(rate.round())));
        if bar.is_hidden() && last_line.elapsed() > LINE_INTERVAL {
            tell(&format!("{}% ({at} of {})", at * 100 / total, counted(total, "window")));
            last_line = Instant::now();
        }
        if at < total && last_save.elapsed() >= Duration::from_secs(args.save_interval) {
            saved.save(&engine.backend.sums(), at as u64)?;
            last_save = Instant::now();
        }
    }
    bar.finish();
    Ok(done)
}

/// Prefills windows side by side, each from an empty state.
fn step(engine: &Engine<Observed<Cpu>>, windows: &[u32], window: usize) {
    let (model, backend) = (&engine.model, &*engine.backend);
    let mut states: Vec<State<_>> =
        (0..windows.len() / window).map(|_| model.state(backend, engine.cache)).collect();
    for first in (0..window).step_by(engine.batch) {
        let part = first..window.min(first + engine.batch);
        let sequences = windows.chunks_exact(window).zip(&mut states).map(|(tokens, state)| Sequence {
            tokens: &tokens[part.clone()],
            state,
            outputs: Outputs::All,
            mla_path: MlaPath::Absorbed,
        });
        model.forward(backend, &mut sequences.collect::<Vec<_>>(), &mut ());
    }
}
