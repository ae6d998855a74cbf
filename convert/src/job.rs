//! Prepares a conversion: opens the input, checks the plan and builds the metadata.
//!
//! It reads configs, headers and tokenizer files, but no weights, and writes nothing. Next: `run`.

use crate::checkpoint;
use crate::config::CheckpointConfig;
use crate::error::{Error, Result};
use crate::importance::Importance;
use crate::metadata::{metadata, set_mix};
use crate::mix::Mix;
use crate::mix_rules::MixRules;
use crate::names::tensor_specs;
use crate::plan::{Override, Planned, check, plan};
use crate::progress::Progress;
use crate::source::Source;
use crate::{requantize, sampling, vocabulary};
use kernels::quant::Format;
use models::gguf::Metadata;
use models::hybrid::config::Config;
use std::path::{Path, PathBuf};

/// Options of a conversion, as the caller chose them.
#[derive(Clone, Debug)]
pub struct Options {
    /// A checkpoint directory or a GGUF file.
    pub input: PathBuf,
    /// The output file; by default `NAME-MIX.gguf` in the current directory.
    pub output: Option<PathBuf>,
    /// The mix that chooses each tensor's format.
    pub mix: Mix,
    /// Exceptions to the mix; the last match wins.
    pub overrides: Vec<Override>,
    /// The importance of columns for the quantizers; none means that all are equal.
    pub importance: Option<Importance>,
    /// Refine the scales after ggml's search, where the format allows it; see `Format::quantize_row_refined`.
    pub refine: bool,
    /// Replace an existing output, which is otherwise an error.
    pub force: bool,
    /// Quantization threads; all cores by default.
    pub threads: Option<usize>,
}

/// A conversion ready to start.
pub struct Job {
    /// Files of the input and the tensors that they hold.
    pub source: Source,
    /// Tensors of the output in file order, with format and sources.
    pub plan: Vec<Planned>,
    /// Key-value pairs of the output's header.
    pub metadata: Metadata,
    /// `[rows, columns]` that share one FP8 scale.
    pub fp8_block: [u64; 2],
    /// Path of the finished file.
    pub output: PathBuf,
    /// Number of input tensors, all of which the plan uses.
    pub source_tensors: usize,
    /// Their size in bytes; 0 if only an index is present.
    pub source_bytes: u64,
}

impl Job {
    /// Opens and checks the input. With `headers` false, shards may be missing; see `checkpoint`.
    ///
    /// # Errors
    /// Everything that would make the conversion fail and can be detected without reading weights.
    pub fn new(options: &Options, headers: bool, progress: &mut dyn Progress) -> Result<Job> {
        let input = &options.input;
        let about = std::fs::metadata(input).map_err(Error::io(input))?;
        let name = model_name(input);
        let output = options.output.clone();
        let output = output.unwrap_or_else(|| default_output(input, options.mix.name()));
        let mut fp8_block = [128, 128];
        let (source, plan, mut metadata) = if about.is_dir() {
            let path = input.join("config.json");
            if !path.exists() {
                let input = models::visible::one_line(&input.display().to_string(), 4096);
                return Err(Error::Option(format!("{input} is not a checkpoint: it has no config.json")));
            }
            let config =
                CheckpointConfig::parse(&path.display().to_string(), &checkpoint::read_text(&path)?)?;
            let source = checkpoint::open(input, headers)?;
            let specs = tensor_specs(&config);
            let rules = MixRules::new(options.mix, &specs, config.layers(), options.importance.is_some());
            let plan = plan(specs, &rules, &options.overrides)?;
            let mut metadata = metadata(&config, &name, options.mix);
            sampling::add(&mut metadata, input)?;
            vocabulary::add(&mut metadata, input, &config, progress)?;
            if config.kda_heads != config.heads {
                progress.warn("KDA and attention heads differ in number: llama.cpp cannot load such a file");
            }
            fp8_block = config.fp8_block;
            (source, plan, metadata)
        } else {
            let (source, specs, mut metadata) = requantize::open(input, progress)?;
            let layers = requantize::layers(input, &metadata)?;
            set_mix(&mut metadata, options.mix);
            let rules = MixRules::new(options.mix, &specs, layers, options.importance.is_some());
            (source, plan(specs, &rules, &options.overrides)?, metadata)
        };
        // A file that would not load is not written; the message is the loader's.
        let named = if about.is_dir() { input.join("config.json") } else { input.clone() };
        Config::from_metadata(&named.display().to_string(), &metadata)?;
        let source_tensors = check(&plan, &source)?;
        if let Some(importance) = &options.importance {
            importance.check(&plan)?;
            importance.set_keys(&mut metadata);
        }
        warn_without_importance(&plan, options.importance.as_ref(), progress);
        let source_bytes = plan.iter().flat_map(|t| &t.parts).map(|part| {
            let coding = &source.tensors[&part.source].coding;
            coding.row_bytes(part.cols()).map_or(0, |row| row * part.rows)
        });
        let source_bytes = source_bytes.sum();
        Ok(Job { source, plan, metadata, fp8_block, output, source_tensors, source_bytes })
    }
}

/// Warns of tensors for which `llama-quantize` requires an importance matrix, where there is none for them.
fn warn_without_importance(plan: &[Planned], importance: Option<&Importance>, progress: &mut dyn Progress) {
    use Format::{IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_XXS};
    let coarse = [IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS];
    let known = |t: &Planned| importance.is_some_and(|i| i.tensors.contains_key(&t.name));
    let count = plan.iter().filter(|t| coarse.contains(&t.format) && !known(t)).count();
    if count > 0 {
        progress.warn(&format!(
            "{count} tensors of at most 3.1 bits per weight have no importance matrix, which costs quality; \
             `kimi imatrix` makes one"
        ));
    }
}

/// An output tensor as `--dry-run` lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputTensor {
    /// Name in the GGUF file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Block format in the GGUF file.
    pub format: Format,
    /// Dimensions as ggml's `ne`, fastest first.
    pub shape: Vec<u64>,
    /// Size in the output in bytes, without padding.
    pub bytes: u64,
}

impl From<&Planned> for OutputTensor {
    fn from(t: &Planned) -> OutputTensor {
        OutputTensor { name: t.name.clone(), format: t.format, shape: t.shape.clone(), bytes: t.bytes }
    }
}

/// The output file of an input for a mix or size: `NAME-LABEL.gguf` in the current directory.
pub fn default_output(input: &Path, label: &str) -> PathBuf {
    format!("{}-{label}.gguf", model_name(input)).into()
}

/// The name of a directory or file without its parent and extension.
fn model_name(input: &Path) -> String {
    let full = input.canonicalize().unwrap_or_else(|_| input.to_owned());
    let name = if full.is_dir() { full.file_name() } else { full.file_stem() };
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}
