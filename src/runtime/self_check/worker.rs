//! The process of a self-check: runs the checks on the first GPU and writes a line before each step, so that the parent knows
//! the kernel at which this process crashed or hangs. Next: [`crate::kernel_checks::model`].

use crate::kernel_checks::model::{KernelUse, checks};
use crate::runtime::{builtin_model, device};
use anyhow::{Context as _, Result};
use kernels::backend::{Backend, CacheFormat};
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, DeviceFailure, LaunchEvent};
use models::gguf::read::Gguf;
use models::hybrid::config::Config;
use models::hybrid::mla::MlaPath;
use models::hybrid::{Model, Outputs, Sequence};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

/// What the worker checks. Positional, so that neither environment nor configuration file sets it.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// Data type of the KV cache.
    cache: String,
    /// Whether some experts stay in RAM.
    #[arg(action = clap::ArgAction::Set)]
    experts_in_ram: bool,
    /// Model file; the built-in model without it.
    model: Option<PathBuf>,
}

impl WorkerArgs {
    pub fn new(cache: CacheFormat, experts_in_ram: bool, model: Option<PathBuf>) -> WorkerArgs {
        WorkerArgs { cache: format!("{cache:?}"), experts_in_ram, model }
    }

    /// The arguments after the command.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let own = [self.cache.clone().into(), self.experts_in_ram.to_string().into()];
        own.into_iter().chain(self.model.clone().map(OsString::from)).collect()
    }

    fn cache(&self) -> Result<CacheFormat> {
        let all = [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0];
        all.into_iter().find(|format| format!("{format:?}") == self.cache).context("the type of the KV cache")
    }
}

/// A line of the worker's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerLine {
    /// The driver compiles a module.
    Module(String),
    /// A kernel of this name is launched.
    Kernel(String),
    /// A check begins; the one before has passed.
    Check(String),
    /// The check's results differ: by how much.
    Wrong(String),
    /// The driver or a kernel reported an error.
    Error(String),
    /// The device cannot be checked now.
    Unavailable(String),
    /// All checks of the device passed.
    Passed,
}

/// The word before the text of a line.
const PASSED: &str = "passed";

impl WorkerLine {
    pub fn parse(line: &str) -> Option<WorkerLine> {
        let (kind, text) = line.split_once(' ').unwrap_or((line, ""));
        let text = text.to_owned();
        Some(match kind {
            "module" => WorkerLine::Module(text),
            "kernel" => WorkerLine::Kernel(text),
            "check" => WorkerLine::Check(text),
            "wrong" => WorkerLine::Wrong(text),
            "error" => WorkerLine::Error(text),
            "unavailable" => WorkerLine::Unavailable(text),
            PASSED => WorkerLine::Passed,
            _ => return None,
        })
    }

    /// Writes the line, before a kernel may end this process.
    fn write(&self) {
        let (kind, text) = match self {
            WorkerLine::Module(text) => ("module", &text[..]),
            WorkerLine::Kernel(text) => ("kernel", &text[..]),
            WorkerLine::Check(text) => ("check", &text[..]),
            WorkerLine::Wrong(text) => ("wrong", &text[..]),
            WorkerLine::Error(text) => ("error", &text[..]),
            WorkerLine::Unavailable(text) => ("unavailable", &text[..]),
            WorkerLine::Passed => (PASSED, ""),
        };
        let text: Vec<&str> = text.split_whitespace().collect();
        let mut out = std::io::stdout().lock();
        // The parent has ended: there is no use for a verdict.
        if writeln!(out, "{kind} {}", text.join(" ")).and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }

    /// The line for an error or a panic.
    fn of_error(message: &str) -> WorkerLine {
        // Another process may use the memory now.
        match message.contains("out of memory") {
            true => WorkerLine::Unavailable(message.to_owned()),
            false => WorkerLine::Error(message.to_owned()),
        }
    }
}

/// Runs all checks up to the first that fails, and writes the result.
pub fn run(args: &WorkerArgs) -> Result<()> {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        WorkerLine::of_error(text.or_else(|| payload.downcast_ref().copied()).unwrap_or("a panic")).write();
        std::process::exit(1);
    }));
    if let Err(e) = device::catch_failure(|| check(args)) {
        match e.downcast_ref::<DeviceFailure>() {
            Some(failure) => WorkerLine::of_error(&failure.0).write(),
            None => WorkerLine::Unavailable(format!("{e:#}")).write(), // the model file
        }
    }
    Ok(())
}

fn check(args: &WorkerArgs) -> Result<()> {
    let cuda = match Cuda::detect() {
        Ok(cuda) => cuda,
        Err(e) => {
            WorkerLine::Unavailable(e.to_string()).write();
            return Ok(());
        }
    };
    cuda.poison(true);
    cuda.trace(|event| match event {
        LaunchEvent::Module(name) => WorkerLine::Module(name.to_owned()).write(),
        LaunchEvent::Kernel(name) => WorkerLine::Kernel(name.to_owned()).write(),
    });
    let cache = args.cache()?;
    let file = builtin_model::open(args.model.as_deref())?;
    for check in checks(&KernelUse::of(&file, Config::from_gguf(&file)?, cache, args.experts_in_ram)) {
        WorkerLine::Check(check.what.clone()).write();
        let row = check.run(&cuda);
        if row.passed == Some(false) {
            WorkerLine::Wrong(row.found).write();
            return Ok(());
        }
    }
    WorkerLine::Check("a decoded token of the model's first layer".into()).write();
    let difference = layer_difference(&cuda, &file, cache)?;
    match difference <= LAYER_TOLERANCE {
        true => WorkerLine::Passed.write(),
        false => WorkerLine::Wrong(format!("{difference:.1e}, allowed {LAYER_TOLERANCE:.0e}")).write(),
    }
    Ok(())
}

/// Allowed distance of logits, relative to their length: both devices round activations to 8 bits, in blocks of their own.
const LAYER_TOLERANCE: f64 = 5e-2;
/// Largest bytes of experts that are uploaded for the layer.
const LAYER_EXPERT_BYTES: u64 = 256 << 20;

/// Returns the distance between the logits of the model's first layer on the device and on the CPU.
fn layer_difference(cuda: &Cuda, file: &Gguf, cache: CacheFormat) -> Result<f64> {
    cuda.limit_stacks(LAYER_EXPERT_BYTES, 0, 0)?;
    let (found, expected) =
        (layer_logits(cuda, file, cache)?, layer_logits(&Cpu::detect(None), file, cache)?);
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(&expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let length: f64 = expected.iter().map(|x| square(f64::from(*x))).sum();
    let distance = (difference / length.max(f64::MIN_POSITIVE)).sqrt();
    Ok(if found.len() == expected.len() && !distance.is_nan() { distance } else { f64::INFINITY })
}

/// Returns the logits after three decoded tokens, which a device runs op by op, captures and replays.
fn layer_logits<B: Backend>(b: &B, file: &Gguf, cache: CacheFormat) -> Result<Vec<f32>> {
    let model = Model::load_layer(b, file, 0)?;
    let (mut state, mut logits) = (model.state(b, cache), Vec::new());
    for i in 1..=3 {
        let tokens = [i % model.config.vocab as u32];
        let (outputs, mla_path) = (Outputs::Last, MlaPath::Absorbed);
        let mut batch = [Sequence { tokens: &tokens, state: &mut state, outputs, mla_path }];
        logits = model.forward(b, &mut batch, &mut ()).map(|logits| b.read(&logits)).unwrap_or_default();
    }
    Ok(logits)
}
