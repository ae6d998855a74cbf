//! `kimi inspect`: shows the contents of a GGUF file, its memory requirements, and whether they are met.
//!
//! Metadata and tensors are shown for any architecture and any tensor type, memory only for files that run. Next: `verdict`
//! (whether a file runs here), [`crate::runtime::memory_estimate`] (the arithmetic), `values` (non-finite weights), `text`
//! (the output),
//! `memory_bar` (the memory of this machine).

mod imatrix;
mod memory_bar;
mod text;
mod values;
mod verdict;

use crate::io::host_memory;
use crate::io::output::Output;
use crate::io::units::{counted, grouped, parse_size};
use crate::runtime::attention_path::MATERIALIZED_BATCH_FACTOR;
use crate::runtime::builtin_model;
use crate::runtime::chat_template;
use crate::runtime::memory_estimate::MemoryEstimate;
use crate::runtime::options::DEFAULT_BATCH;
use crate::runtime::placement::{ExpertPlacement, LoadParams, Placement};
use crate::runtime::sampling_options::SamplingOptions;
use crate::runtime::template_worker;
use anyhow::{Result, bail};
use clap::value_parser;
use kernels::backend::CacheFormat;
use memory_bar::DeviceMemory;
use models::architecture::ARCHITECTURES;
use models::gguf::file_type::file_type_name;
use models::gguf::read::Gguf;
use models::gguf::unread::UnreadTensor;
use models::gguf::{Metadata, TensorInfo};
use models::hybrid::config::{Config, MixerKind};
use models::hybrid::kv_split::split_bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use verdict::Verdict;

/// The command-line arguments of `kimi inspect`.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// Model file, any part of a split one, or a name on Hugging Face (default: the built-in demonstration model)
    #[arg(value_name = "FILE|NAME")]
    pub file: Option<PathBuf>,
    /// Model file or name, as in the other commands
    #[arg(short, long, value_name = "FILE|NAME", conflicts_with = "file")]
    pub model: Option<PathBuf>,
    /// Download the named model without asking if it is not cached
    #[arg(long)]
    pub yes: bool,
    /// Context sizes in tokens for the memory estimate (default: 4096, 131072, the model's)
    #[arg(short, long, visible_alias = "ctx", value_name = "TOKENS", value_delimiter = ',')]
    context: Vec<u64>,
    /// Prefill batch size in tokens (default: 512, or 2048 on a GPU that holds all experts)
    #[arg(short, long, value_name = "TOKENS", value_parser = value_parser!(u64).range(1..))]
    batch: Option<u64>,
    /// Memory that the model has to fit with the first --context (default: 131072 tokens): shows the size for `convert --size`
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    fits: Option<u64>,
    /// List all tensors
    #[arg(short, long)]
    tensors: bool,
    /// Check all weights for NaN and infinite values; fails if there are any
    #[arg(long)]
    check: bool,
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
}

/// Prints the report to standard output.
pub fn run(args: &InspectArgs) -> Result<()> {
    let file = match args.file.as_deref().or(args.model.as_deref()) {
        Some(path) => Gguf::open_any(path)?,
        None => builtin_model::open(None)?,
    };
    let mut out = BufWriter::new(Output::lock());
    if file.metadata.str("general.type") == Some("imatrix") {
        imatrix::print(args, &file.paths()[0], &mut out)?;
        return Ok(out.flush()?);
    }
    let mut report = InspectReport::new(args, &file, host_memory::available(Path::new("/")));
    if let Some(model) = &mut report.model {
        model.devices = memory_bar::devices(args, &file, model);
    }
    if args.json {
        writeln!(out, "{}", text::visible_json(&serde_json::to_string_pretty(&report)?))?;
    } else {
        text::print(&report, &file.metadata, &mut out)?;
    }
    out.flush()?;
    match report.not_finite.as_deref() {
        Some([first, others @ ..]) => {
            let others = match others.len() {
                0 => String::new(),
                n => format!(" (and {})", counted(n, "other tensor")),
            };
            bail!("{}: {first}{others}", file.paths()[0].display())
        }
        _ => Ok(()),
    }
}

/// The report about a model file.
#[derive(Debug, Serialize)]
struct InspectReport {
    files: Vec<PathBuf>,
    file_bytes: u64,
    architecture: Option<String>,
    /// The mix of formats that the file says it is, by llama.cpp's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    mix: Option<&'static str>,
    parameters: u64,
    bits_per_weight: f64,
    verdict: Verdict,
    metadata: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_template: Option<TemplateReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampling: Option<SamplingReport>,
    n_tensors: usize,
    formats: Vec<FormatTotals>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorRow>>,
    model: Option<ModelReport>,
    /// The reason why `model` is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_model: Option<String>,
    /// With `--check`, one line per tensor with non-finite values.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_finite: Option<Vec<String>>,
}

/// The chat template of a file, rendered once to test it.
#[derive(Debug, Serialize)]
struct TemplateReport {
    bytes: usize,
    /// The limits of a rendering.
    limits: String,
    /// The reason why the template is unusable.
    fault: Option<String>,
}

impl TemplateReport {
    fn new(file: &Gguf) -> Option<TemplateReport> {
        let bytes = chat_template::source(file)?.len();
        Some(TemplateReport { bytes, limits: template_worker::limits(), fault: chat_template::warning(file) })
    }
}

/// The sampling defaults of a file that has some.
#[derive(Debug, Serialize)]
struct SamplingReport {
    /// The parameters by the names of their options, as in `temp 0.6, top-p 0.95`.
    defaults: String,
    /// Values that are ignored, a line each.
    faults: Vec<String>,
}

impl SamplingReport {
    fn new(file: &Gguf) -> Option<SamplingReport> {
        let (options, faults) = SamplingOptions::from_metadata(&file.metadata);
        let defaults = options.line();
        (!defaults.is_empty() || !faults.is_empty()).then_some(SamplingReport { defaults, faults })
    }
}

/// The totals of the tensors of one format.
#[derive(Debug, Serialize)]
struct FormatTotals {
    format: String,
    tensors: u64,
    weights: u64,
    /// None for types of unknown block size.
    bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    format: String,
    shape: Vec<u64>,
    /// None for types of unknown block size.
    bytes: Option<u64>,
}

/// The memory requirements of a model.
#[derive(Debug, Serialize)]
struct ModelReport {
    shape: Vec<String>,
    weights_bytes: u64,
    /// Weights that are transposed at load; 0 but for older files.
    #[serde(skip_serializing_if = "is_zero")]
    split_bytes: u64,
    batch: u64,
    need: MemoryEstimate,
    contexts: Vec<Context>,
    /// With `--fits`, the size of a file that leaves room for the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<FittingSize>,
    available_bytes: Option<u64>,
    /// What the model takes of the memory of this machine at one context size.
    devices: Vec<DeviceMemory>,
    /// The placement on some common GPUs, one line each.
    on_gpu: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The total memory at one context size.
#[derive(Debug, Serialize)]
struct Context {
    tokens: u64,
    f16: MemoryCase,
    q8_0: MemoryCase,
}

/// The largest file whose weights fit a memory beside state, KV cache and workspace.
#[derive(Debug, Serialize)]
struct FittingSize {
    memory_bytes: u64,
    context: u64,
    /// With a KV cache in F16; 0 if nothing is left for weights.
    f16_size: u64,
    /// With a KV cache in Q8_0.
    q8_0_size: u64,
}

#[derive(Debug, Serialize)]
struct MemoryCase {
    cache_bytes: u64,
    total_bytes: u64,
    /// `None` if the available memory is unknown.
    fits: Option<bool>,
}

impl TensorRow {
    fn weights(&self) -> u64 {
        self.shape.iter().fold(1, |n: u64, d| n.saturating_mul(*d))
    }
}

impl InspectReport {
    fn new(args: &InspectArgs, file: &Gguf, available: Option<u64>) -> InspectReport {
        let rows: Vec<_> =
            file.tensors.iter().map(TensorRow::from).chain(file.unread.iter().map(TensorRow::from)).collect();
        let bytes =
            rows.iter().try_fold(0, |sum: u64, t| sum.checked_add(t.bytes?)).unwrap_or(file.file_bytes());
        let parameters = rows.iter().map(TensorRow::weights).fold(0, u64::saturating_add);
        let model = model(args, file, bytes, available);
        let verdict = Verdict::new(file, parameters, model.as_ref().map_err(String::as_str));
        let (model, no_model) = match model {
            Ok(model) => (Some(model), None),
            Err(why) => (None, Some(why)),
        };
        InspectReport {
            files: file.paths().to_vec(),
            file_bytes: file.file_bytes(),
            architecture: file.metadata.str("general.architecture").map(str::to_owned),
            mix: file_type(&file.metadata),
            parameters,
            bits_per_weight: if parameters == 0 { 0.0 } else { bytes as f64 * 8.0 / parameters as f64 },
            verdict,
            metadata: json(&file.metadata),
            chat_template: TemplateReport::new(file),
            sampling: SamplingReport::new(file),
            n_tensors: rows.len(),
            formats: totals(&rows),
            tensors: args.tensors.then_some(rows),
            model,
            no_model,
            not_finite: args.check.then(|| values::not_finite(file)),
        }
    }
}

impl From<&TensorInfo> for TensorRow {
    fn from(t: &TensorInfo) -> TensorRow {
        let (name, format) = (t.name.clone(), t.format.name().to_owned());
        TensorRow { name, format, shape: t.shape.clone(), bytes: Some(t.bytes) }
    }
}

impl From<&UnreadTensor> for TensorRow {
    fn from(t: &UnreadTensor) -> TensorRow {
        TensorRow { name: t.name.clone(), format: t.type_name(), shape: t.shape.clone(), bytes: t.bytes() }
    }
}

/// The mix of formats that a file says it is, by llama.cpp's name.
pub fn file_type(metadata: &Metadata) -> Option<&'static str> {
    let number = metadata.get("general.file_type")?.as_u64()?;
    file_type_name(u32::try_from(number).ok()?)
}

fn totals(tensors: &[TensorRow]) -> Vec<FormatTotals> {
    let mut by_format: BTreeMap<&str, FormatTotals> = BTreeMap::new();
    for t in tensors {
        let format = t.format.clone();
        let none = FormatTotals { format, tensors: 0, weights: 0, bytes: Some(0) };
        let sum = by_format.entry(&t.format).or_insert(none);
        sum.tensors += 1;
        sum.weights = sum.weights.saturating_add(t.weights());
        sum.bytes = sum.bytes.and_then(|sum| sum.checked_add(t.bytes?));
    }
    let mut all: Vec<_> = by_format.into_values().collect();
    all.sort_by_key(|sum| std::cmp::Reverse(sum.bytes));
    all
}

/// Converts metadata to JSON, with long arrays as type and length.
fn json(metadata: &Metadata) -> serde_json::Map<String, serde_json::Value> {
    metadata.0.iter().map(|(key, value)| (key.clone(), text::to_json(value))).collect()
}

/// Computes the memory report of a supported model, or the reason why there is none.
fn model(
    args: &InspectArgs,
    file: &Gguf,
    weights: u64,
    available: Option<u64>,
) -> Result<ModelReport, String> {
    match file.metadata.str("general.architecture") {
        Some(name) if ARCHITECTURES.contains(&name) => {}
        other => return Err(format!("unsupported architecture: {}", other.unwrap_or("none"))),
    }
    let c = Config::from_gguf(file).map_err(|e| e.to_string())?;
    let batch = args.batch.unwrap_or(DEFAULT_BATCH as u64);
    let need = MemoryEstimate::of(&c, batch.min(MAX_BATCH) * MATERIALIZED_BATCH_FACTOR as u64);
    let split_bytes = split_bytes(file, &c);
    let case = |per_token: u64, tokens: u64| {
        let total_bytes = need.total(per_token, tokens).saturating_add(weights).saturating_add(split_bytes);
        let cache_bytes = per_token.saturating_mul(tokens);
        MemoryCase { cache_bytes, total_bytes, fits: available.map(|available| total_bytes <= available) }
    };
    let context = |tokens: &u64| Context {
        tokens: *tokens,
        f16: case(need.f16_bytes_per_token, *tokens),
        q8_0: case(need.q8_0_bytes_per_token, *tokens),
    };
    let usual = [4096, 131_072].into_iter().filter(|n| *n < c.context).chain([c.context]);
    let tokens = if args.context.is_empty() { usual.collect() } else { args.context.clone() };
    let contexts = tokens.iter().map(context).collect();
    let fits = args.fits.map(|memory_bytes| {
        let context = args.context.first().copied().unwrap_or(131_072).min(c.context);
        // The header (vocabulary, metadata) is in the file, but not in memory.
        let header = file.file_bytes().saturating_sub(weights);
        let size = |per_token| match memory_bytes.saturating_sub(need.total(per_token, context)) {
            0 => 0,
            left => left.saturating_add(header),
        };
        let (f16_size, q8_0_size) = (size(need.f16_bytes_per_token), size(need.q8_0_bytes_per_token));
        FittingSize { memory_bytes, context, f16_size, q8_0_size }
    });
    Ok(ModelReport {
        shape: shape(&c),
        weights_bytes: weights,
        split_bytes,
        batch,
        need,
        contexts,
        fits,
        available_bytes: available,
        devices: Vec::new(),
        on_gpu: CARDS.map(|gib| on_gpu(file, &c, args, [gib << 30, available.unwrap_or(u64::MAX)])).to_vec(),
    })
}

/// Memory sizes of common GPUs, in GiB.
const CARDS: [u64; 5] = [8, 12, 16, 24, 80];

/// Plans the placement for these sizes of free GPU memory and RAM at the first given context size.
fn on_gpu(file: &Gguf, c: &Config, args: &InspectArgs, [gpu, memory]: [u64; 2]) -> String {
    let context = args.context.first().copied();
    let plan = args.plan(file, c, context, gpu, Some(memory));
    let gib = gpu >> 30;
    match plan.shortfall {
        0 => format!("{gib} GiB: {plan}"),
        _ => format!("{gib} GiB: does not fit: {plan}"),
    }
}

impl InspectArgs {
    /// The placement that `--device cuda` plans for these sizes of free GPU memory and RAM.
    fn plan(
        &self,
        file: &Gguf,
        c: &Config,
        context: Option<u64>,
        gpu: u64,
        memory: Option<u64>,
    ) -> Placement {
        let batch = self.batch.map(|tokens| tokens.min(MAX_BATCH));
        let params = LoadParams { context, cache: CacheFormat::F16, batch };
        Placement::of(file, c, &params, gpu, memory, ExpertPlacement::Cached(usize::MAX))
    }
}

/// An upper bound of the batch size, above that of any machine.
const MAX_BATCH: u64 = 1 << 20;

fn shape(c: &Config) -> Vec<String> {
    let (m, kda, mla) = (&c.moe, &c.kda, &c.mla);
    let (n_kda, n_mla) = (c.count(MixerKind::Kda), c.count(MixerKind::Mla));
    let mut lines = vec![
        format!("{} layers of {}, vocabulary {}", c.layers.len(), c.dim, grouped(c.vocab as u64)),
        format!("{n_kda} KDA: {} heads of {}", kda.heads, kda.head_dim),
        format!("{n_mla} MLA: {} heads, latent {} + {}", mla.heads, mla.latent_dim, mla.pe_dim),
        format!("{} dense, hidden {}", c.dense_layers, c.dense_hidden),
        format!(
            "{} of experts: {} of {}, hidden {}, and a shared one, hidden {}",
            c.layers.len().saturating_sub(c.dense_layers),
            m.routing.top_k,
            m.experts,
            m.hidden,
            m.shared_hidden
        ),
    ];
    if c.mtp {
        lines.push("1 block that predicts further tokens (nextn), for drafts".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::synth::Preset;
    use kernels::quant::Format;

    fn args() -> InspectArgs {
        InspectArgs {
            file: None,
            model: None,
            yes: false,
            context: vec![],
            batch: None,
            fits: None,
            tensors: true,
            check: false,
            json: false,
        }
    }

    fn printed(file: &Gguf, args: &InspectArgs, available: u64) -> String {
        let mut out = Vec::new();
        text::print(&InspectReport::new(args, file, Some(available)), &file.metadata, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn memory_of_the_real_model() {
        let text = printed(&Preset::Real.metadata_only(), &args(), 1 << 30);
        for line in [
            "  20 KDA: 32 heads of 128",
            "  26 of experts: 8 of 256, hidden 1024, and a shared one, hidden 1024",
            "  KDA state of a sequence, any length           40.0 MiB",
            "        4,096    31.5 MiB   290.9 MiB fits    16.7 MiB   276.2 MiB fits",
            "    1,048,576    7.88 GiB    8.13 GiB no      4.18 GiB    4.44 GiB no",
            "  1.00 GiB are available; weights that do not fit are read from disk repeatedly",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n--- in\n{text}");
        }
        let two = InspectArgs { context: vec![7, 1000], ..args() };
        let report = InspectReport::new(&two, &Preset::Real.metadata_only(), None);
        let contexts = report.model.unwrap().contexts;
        assert_eq!(
            contexts.iter().map(|c| (c.tokens, c.f16.fits)).collect::<Vec<_>>(),
            [(7, None), (1000, None)]
        );
        assert_eq!(contexts[1].q8_0.cache_bytes, 4_284_000);
    }

    #[test]
    fn the_size_that_fits_leaves_room_for_the_rest() {
        let file = Preset::Real.metadata_only();
        let fits = |memory: u64, context| {
            let args = InspectArgs { fits: Some(memory), context, ..args() };
            InspectReport::new(&args, &file, None).model.unwrap().fits.unwrap()
        };
        let need = MemoryEstimate::of(
            &Config::from_gguf(&file).unwrap(),
            (DEFAULT_BATCH * MATERIALIZED_BATCH_FACTOR) as u64,
        );
        let found = fits(24 << 30, vec![131_072]);
        // The file has a header only.
        assert_eq!(found.f16_size + need.total(8_064, 131_072), (24 << 30) + file.file_bytes());
        assert_eq!(found.q8_0_size - found.f16_size, (8_064 - 4_284) * 131_072);
        assert_eq!(fits(24 << 30, vec![]).f16_size, found.f16_size);
        assert_eq!(fits(1 << 30, vec![1 << 20]).f16_size, 0);
        let args = InspectArgs { fits: Some(24 << 30), ..args() };
        let text = printed(&file, &args, 1 << 40);
        let line = "  fits 24.00 GiB with 131,072 tokens: convert --size ";
        assert!(text.lines().any(|l| l.starts_with(line)), "{line}\n--- in\n{text}");
    }

    #[test]
    fn unsupported_architectures_and_hostile_names_are_shown() {
        use models::gguf::Value;
        use models::gguf::write::Layout;
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", Value::String("a\u{1b}[2J".into()));
        metadata.set("long", Value::String("x".repeat(1000)));
        metadata.set("general.file_type", Value::U32(29));
        let tensor = ("t\n".to_owned(), Format::Q8_0, vec![64, 2]);
        let layout = Layout::new(metadata, vec![tensor]).unwrap();
        let mut bytes = layout.header().to_vec();
        bytes.resize(layout.total_bytes() as usize, 0);
        let file = Gguf::from_bytes("x.gguf", bytes.into()).unwrap();
        let text = printed(&file, &args(), 0);
        assert!(!text.contains('\u{1b}'), "{text}");
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                r"a\u{1b}[2J, IQ2_M, 1.3 KiB, 128 parameters, 8.50 bits per weight",
                r"does not run: the architecture is a\u{1b}[2J, and kimi runs kimi-linear and bailingmoe3 alone; llama.cpp runs most others",
                "",
                "metadata (3)",
                r"  general.architecture  a\u{1b}[2J",
                &format!("  long                  {}…", "x".repeat(100)),
                "  general.file_type     29",
                "",
                r"  t\n  Q8_0    [64, 2]                    136 B",
                "",
                "tensors (1)                       weights       bytes    bits",
                "  Q8_0                1               128       136 B    8.50",
            ]
        );
        let json = serde_json::to_value(InspectReport::new(&args(), &file, None)).unwrap();
        assert_eq!(json["formats"][0]["weights"], 128);
        assert_eq!(json["tensors"][0]["shape"], serde_json::json!([64, 2]));
    }

    #[test]
    fn json_contains_no_terminal_control_characters() {
        let value = serde_json::json!({ "a\u{9b}": "\u{202e}\u{1b}\n\u{7f}", "ü": "日本" });
        let json = text::visible_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(json.contains(r"a\u009b") && json.contains(r"\u202e\u001b\n\u007f"), "{json}");
        assert!(json.chars().all(|c| c == '\n' || !models::visible::is_control(c)), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
    }
}
