//! What is to be done, from the options: the input opened, the plan checked, the metadata ready.
//!
//! It reads configs, headers and tokenizer files, no weights, and writes nothing. Next: `run`.

use crate::checkpoint;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::metadata::{metadata, set_mix};
use crate::mix::Mix;
use crate::names::tensor_specs;
use crate::plan::{Override, Planned, check, plan};
use crate::progress::Progress;
use crate::source::Source;
use crate::{requantise, vocabulary};
use kernels::quant::Format;
use models::gguf::Metadata;
use models::kimi_linear::config::Config as Loadable;
use std::path::{Path, PathBuf};

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// A checkpoint directory or a GGUF file.
    pub input: PathBuf,
    /// The file to write; `NAME-MIX.gguf` in the current directory if none is given.
    pub output: Option<PathBuf>,
    /// Formats by tensor.
    pub mix: Mix,
    /// Exceptions from the mix; the last that matches wins.
    pub overrides: Vec<Override>,
    /// Replace an existing output.
    pub force: bool,
    /// Threads that quantise; all cores if none are given.
    pub threads: Option<usize>,
}

/// A conversion ready to start.
pub struct Job {
    /// The input's tensors.
    pub source: Source,
    /// The output's.
    pub plan: Vec<Planned>,
    /// The output's metadata.
    pub metadata: Metadata,
    /// `[rows, columns]` that share an FP8 scale.
    pub fp8_block: [u64; 2],
    /// The final name.
    pub output: PathBuf,
    /// Input tensors that the plan uses: all of them.
    pub source_tensors: usize,
    /// Bytes of them; 0 where only an index is there.
    pub source_bytes: u64,
}

impl Job {
    /// Opens and checks everything. With `headers` false, missing shards are no error: see `checkpoint`.
    ///
    /// # Errors
    /// Whatever would make the conversion fail, as far as it shows without reading weights.
    pub fn new(options: &Options, headers: bool, progress: &mut dyn Progress) -> Result<Job> {
        let input = &options.input;
        let about = std::fs::metadata(input).map_err(Error::io(input))?;
        let name = model_name(input);
        let output = options.output.clone();
        let output = output.unwrap_or_else(|| format!("{name}-{}.gguf", options.mix.name()).into());
        let mut fp8_block = [128, 128];
        let (source, plan, metadata) = if about.is_dir() {
            let path = input.join("config.json");
            let config = Config::parse(&path.display().to_string(), &checkpoint::read_text(&path)?)?;
            let source = checkpoint::open(input, headers)?;
            let plan = plan(tensor_specs(&config), config.layers(), options.mix, &options.overrides)?;
            let mut metadata = metadata(&config, &name, options.mix);
            vocabulary::add(&mut metadata, input, &config, progress)?;
            if config.kda_heads != config.heads {
                progress.warn("KDA and attention heads differ in number: llama.cpp cannot load such a file");
            }
            fp8_block = config.fp8_block;
            (source, plan, metadata)
        } else {
            let (source, specs, mut metadata) = requantise::open(input, progress)?;
            let layers = requantise::layers(input, &metadata)?;
            set_mix(&mut metadata, options.mix);
            (source, plan(specs, layers, options.mix, &options.overrides)?, metadata)
        };
        // What would not load is not written: in the loader's own words.
        let named = if about.is_dir() { input.join("config.json") } else { input.clone() };
        Loadable::from_metadata(&named.display().to_string(), &metadata)?;
        let source_tensors = check(&plan, &source)?;
        let source_bytes = plan.iter().flat_map(|t| &t.parts).map(|part| {
            let coding = &source.tensors[&part.source].coding;
            coding.row_bytes(part.cols()).map_or(0, |row| row * part.rows)
        });
        let source_bytes = source_bytes.sum();
        Ok(Job { source, plan, metadata, fp8_block, output, source_tensors, source_bytes })
    }
}

/// An output tensor as `--dry-run` lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// GGUF's name.
    pub name: String,
    /// How it is stored.
    pub format: Format,
    /// ggml's `ne`, fastest first.
    pub shape: Vec<u64>,
    /// Bytes.
    pub bytes: u64,
}

impl From<&Planned> for Row {
    fn from(t: &Planned) -> Row {
        Row { name: t.name.clone(), format: t.format, shape: t.shape.clone(), bytes: t.bytes }
    }
}

/// What a directory or file is called, without its place and extension.
fn model_name(input: &Path) -> String {
    let full = input.canonicalize().unwrap_or_else(|_| input.to_owned());
    let name = if full.is_dir() { full.file_name() } else { full.file_stem() };
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}
