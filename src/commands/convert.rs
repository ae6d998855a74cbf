//! `kimi convert`: the arguments, the progress bar, and the output of a conversion or a dry run.

use crate::args::threads;
use crate::io::output::{Output, tell};
use crate::io::progress;
use crate::io::units::{counted, format_size, parse_size};
use crate::runtime::chat_template;
use anyhow::Result;
use convert::allocate::{Allocation, Goal, allocate};
use convert::imatrix::Unreached;
use convert::job::default_output;
use convert::mix::quantizable;
use convert::{Imatrix, Importance, Mix, Options, Override, Progress, Summary};
use kernels::quant::Format;
use models::gguf::read::Gguf;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The command-line arguments of `kimi convert`.
#[derive(Clone, Debug, clap::Args)]
#[command(override_usage = "kimi convert [OPTIONS] <INPUT>\n       kimi convert --type help")]
pub struct ConvertArgs {
    /// Checkpoint directory (config.json, *.safetensors, tokenizer files) or GGUF file
    // Required unless `--type help` is given.
    #[arg(required = false, default_value_if("kind", "help", "."))]
    input: PathBuf,
    /// Output file (default: NAME-TYPE.gguf in the current directory)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Quantization type: q4_k_m, q8_0, bf16, ... (`--type help` lists all)
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k_m", value_parser = kind)]
    kind: TypeArg,
    /// Quantization type of tensors whose name matches; may be repeated, the last match wins
    #[arg(long, value_name = "REGEX=TYPE", value_parser = Override::parse)]
    tensor_type: Vec<Override>,
    /// Importance matrix of the model, from `kimi imatrix` or llama.cpp (GGUF or .dat): errors in columns with large inputs
    /// count more
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Size of the file: chooses a type for each tensor so that the expected KL divergence is least (20G, 9500M)
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "kind")]
    size: Option<u64>,
    /// Bits per weight instead of a size (3.3)
    #[arg(long, value_name = "BITS", conflicts_with_all = ["kind", "size"])]
    bits: Option<f64>,
    /// Search for better scales of Q2_K to Q6_K and Q4_0 to Q5_1 than llama.cpp does: smaller errors in two to three times the
    /// time; --size and --bits always do
    #[arg(long)]
    refine: bool,
    /// List all tensors and the final size without reading weights or writing the output
    #[arg(long)]
    dry_run: bool,
    /// Overwrite an existing output file
    #[arg(short, long)]
    force: bool,
    /// Number of threads (default: all cores)
    #[arg(short, long, value_name = "N", value_parser = threads())]
    threads: Option<usize>,
}

/// The value of `--type`: a mix of formats, or `help`.
#[derive(Clone, Copy, Debug)]
enum TypeArg {
    Mix(Mix),
    Help,
}

fn kind(text: &str) -> convert::Result<TypeArg> {
    if text == "help" { Ok(TypeArg::Help) } else { Mix::from_name(text).map(TypeArg::Mix) }
}

/// Converts, or prints a dry run.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let mut out = Output::lock();
    let TypeArg::Mix(mix) = args.kind else {
        return Ok(Mix::all().try_for_each(|mix| writeln!(out, "{}", mix.name()))?);
    };
    let ImatrixInput { importance, sensitivities, note } =
        args.imatrix.as_deref().map(read_matrix).transpose()?.unwrap_or_default();
    let mut options = Options {
        input: args.input.clone(),
        output: args.output.clone(),
        mix,
        overrides: args.tensor_type.clone(),
        importance,
        refine: args.refine || args.size.is_some() || args.bits.is_some(),
        force: args.force,
        threads: args.threads,
    };
    if let Some((goal, label)) = goal(args) {
        allocate_formats(&mut options, goal, &label, &sensitivities)?;
    }
    if args.dry_run {
        print_tensors(&convert::dry_run(&options, &mut Warnings)?, &mut out)?;
    } else {
        convert_with_bar(&options)?;
    }
    note.iter().for_each(|line| tell(line));
    Ok(())
}

/// The size that `--size` or `--bits` gives, and its name in the output's name.
fn goal(args: &ConvertArgs) -> Option<(Goal, String)> {
    let size = args.size.map(|bytes| (Goal::Bytes(bytes), format_size(bytes).replace(' ', "")));
    size.or(args.bits.map(|bits| (Goal::Bits(bits), format!("{bits}bits"))))
}

/// Chooses the formats for a size, and prints them in total.
fn allocate_formats(
    options: &mut Options,
    goal: Goal,
    label: &str,
    sensitivities: &BTreeMap<String, f32>,
) -> Result<()> {
    let mut bar = Bar::default();
    let Allocation { formats, mix, bytes, divergence, unmeasured } =
        allocate(options, goal, sensitivities, &mut bar)?;
    bar.finish();
    if options.importance.is_none() {
        tell("no importance matrix: all columns count the same (--imatrix, from kimi imatrix)");
    }
    if unmeasured > 0 {
        tell(&format!(
            "{} without a measured sensitivity (kimi imatrix --sensitivity 8): relative errors count the same in all of them, and the \
             expected KL divergence is not in nats",
            counted(unmeasured, "tensor"),
        ));
    }
    options.output.get_or_insert_with(|| default_output(&options.input, label));
    options.mix = mix;
    options.overrides.splice(0..0, formats);
    let mut totals: BTreeMap<Format, (usize, u64)> = BTreeMap::new();
    let summary = convert::dry_run(options, &mut ())?;
    for t in summary.tensors.iter().filter(|t| quantizable(&t.name, &t.shape)) {
        let total = totals.entry(t.format).or_default();
        *total = (total.0 + 1, total.1 + t.bytes);
    }
    for (format, (tensors, bytes)) in totals {
        tell(&format!(
            "  {:<8} {:>12} {:>12}",
            format.name(),
            counted(tensors, "tensor"),
            format_size(bytes)
        ));
    }
    tell(&format!("{}, expected KL divergence {divergence:.4}", format_size(bytes)));
    Ok(())
}

/// An importance matrix, as `--imatrix` names it.
#[derive(Default)]
struct ImatrixInput {
    importance: Option<Importance>,
    sensitivities: BTreeMap<String, f32>,
    /// A line about experts for which it has no data.
    note: Option<String>,
}

fn read_matrix(path: &Path) -> Result<ImatrixInput> {
    let imatrix = Imatrix::open(path)?;
    let (importance, Unreached { experts, of, stacks }) = imatrix.importance();
    let none = match stacks {
        0 => String::new(),
        n => format!(", and all columns count the same in {}", counted(n, "stack") + " without any"),
    };
    let note = (experts > 0).then(|| {
        one_line(&format!(
            "{}: no token reached {experts} of {of} experts; they have the mean of the other experts of their stack{none}",
            path.display()
        ))
    });
    Ok(ImatrixInput { importance: Some(importance), sensitivities: imatrix.sensitivities, note })
}

/// Converts with a progress bar and prints the result in one line.
pub fn convert_with_bar(options: &Options) -> Result<()> {
    let start = Instant::now();
    let mut bar = Bar::default();
    let summary = convert::convert(options, &mut bar)?;
    bar.finish();
    let (seconds, bytes) = (start.elapsed().as_secs_f64(), summary.source_bytes as f64);
    tell(&format!(
        "{}: {} tensors, {:.2} GiB from {:.2} GiB in {seconds:.1} s ({:.0} MB/s)",
        one_line(&summary.output.display().to_string()),
        summary.tensors.len(),
        summary.bytes as f64 / GIB,
        bytes / GIB,
        bytes / seconds / 1e6,
    ));
    if let Some(warning) = chat_template::warning(&Gguf::open(&summary.output)?) {
        tell(&format!("warning: {}: {warning}", summary.output.display()));
    }
    Ok(())
}

/// Escapes control characters of a line that contains a path.
fn one_line(text: &str) -> String {
    models::visible::one_line(text, 8192)
}

const GIB: f64 = (1u64 << 30) as f64;

fn print_tensors(summary: &Summary, out: &mut impl Write) -> Result<()> {
    for row in &summary.tensors {
        let shape = format!("{:?}", row.shape);
        let name = one_line(&row.name);
        writeln!(out, "{name:<36} {:<7} {shape:<22} {:>14}", row.format.name(), row.bytes)?;
    }
    let weights: u64 = summary.tensors.iter().map(|t| t.shape.iter().product::<u64>()).sum();
    writeln!(
        out,
        "{} source tensors -> {} tensors, {weights} parameters, {} bytes ({:.2} GiB, {:.2} bits per weight)",
        summary.source_tensors,
        summary.tensors.len(),
        summary.bytes,
        summary.bytes as f64 / GIB,
        summary.bytes as f64 * 8.0 / weights as f64,
    )?;
    Ok(())
}

/// A progress sink that prints only warnings.
struct Warnings;

impl Progress for Warnings {
    fn warn(&mut self, message: &str) {
        tell(&format!("warning: {}", one_line(message)));
    }
}

/// A progress bar with rate and time left on a terminal, otherwise a line every ten seconds.
#[derive(Default)]
struct Bar {
    bar: Option<progress::TerminalProgress>,
    total: u64,
    last_line: Option<Instant>,
}

impl Bar {
    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

impl Progress for Bar {
    fn start(&mut self, total: u64, done: u64) {
        if done > 0 {
            tell(&format!("resuming after {:.2} of {:.2} GiB", done as f64 / GIB, total as f64 / GIB));
        }
        let template = "{bar:30} {percent}% {bytes}/{total_bytes} {bytes_per_sec} eta {eta} {msg}";
        self.total = total;
        self.bar = Some(progress::TerminalProgress::new(total, done, template));
        self.last_line = Some(Instant::now());
    }

    fn tensor(&mut self, name: &str, format: Format) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{} {}", one_line(name), format.name()));
        }
    }

    fn advance(&mut self, bytes: u64) {
        let Some(bar) = &self.bar else { return };
        bar.inc(bytes);
        let due = self.last_line.is_some_and(|t| t.elapsed() > Duration::from_secs(10));
        if bar.is_hidden() && due {
            let (done, total) = (bar.position(), self.total);
            tell(&format!(
                "{}% ({:.2} of {:.2} GiB)",
                done * 100 / total.max(1),
                done as f64 / GIB,
                total as f64 / GIB
            ));
            self.last_line = Some(Instant::now());
        }
    }

    fn warn(&mut self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell(&format!("warning: {}", one_line(message)))),
            None => tell(&format!("warning: {}", one_line(message))),
        }
    }
}
