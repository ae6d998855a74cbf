//! Options of loading a model: the file, the device and the prefix cache, as the command line has them.

use super::builtin_model;
use crate::io::log::Log;
use crate::io::units::parse_size;
use crate::prefix_cache::key::PromptLayout;
use crate::prefix_cache::options::StoreOptions;
use clap::builder::RangedU64ValueParser;
use kernels::backend::CacheFormat;
use std::path::PathBuf;

/// Which model to load, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineArgs {
    /// The model file (GGUF, architecture kimi-linear; default: a small demonstration model in the program)
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Threads that compute (default: all cores this process may use)
    #[arg(short, long, value_name = "N", value_parser = threads())]
    pub threads: Option<usize>,
    /// Tokens of context at most (default: what the model was made for)
    #[arg(short, long, value_name = "TOKENS")]
    pub ctx: Option<u64>,
    /// Tokens of a prompt processed together, twice as many far inside a long text; more is faster and takes more memory
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512, value_parser = at_least_one())]
    pub batch: usize,
    /// How the latent cache is kept
    #[arg(long, value_enum, default_value_t = CacheType::F16)]
    pub cache_type: CacheType,
    /// Chat template to use instead of the model file's: a file, or `builtin`
    #[arg(long, visible_alias = "chat-template-file", value_name = "FILE|builtin")]
    pub chat_template: Option<PathBuf>,
    /// Read the whole model file now and keep it in memory
    #[arg(long)]
    pub mlock: bool,
    /// Where it computes
    #[command(flatten)]
    pub device: DeviceArgs,
    /// What is kept of what was read
    #[command(flatten)]
    pub store: StoreOptions,
    /// Bytes that the states of all sequences may take together, where they are not in RAM: the device's plan says so
    #[arg(skip)]
    pub state_room: Option<u64>,
}

/// A number of threads. The most is far above any machine; beyond the system's limit a thread's start aborts the process.
pub fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1024)
}

/// A number of things of which none would be nothing to do.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// How the latent cache is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheType {
    /// Exact, 4 bytes a value
    F32,
    /// 2 bytes a value
    F16,
    /// 34 bytes for 32 values
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<CacheType> for CacheFormat {
    fn from(t: CacheType) -> Self {
        match t {
            CacheType::F32 => CacheFormat::F32,
            CacheType::F16 => CacheFormat::F16,
            CacheType::Q8_0 => CacheFormat::Q8_0,
        }
    }
}

impl Default for EngineArgs {
    /// The built-in model on the CPU, with a prefix cache in memory.
    fn default() -> Self {
        EngineArgs {
            model: None,
            threads: None,
            ctx: None,
            batch: 512,
            cache_type: CacheType::F16,
            chat_template: None,
            mlock: false,
            device: DeviceArgs::default(),
            store: StoreOptions::in_memory(),
            state_room: None,
        }
    }
}

impl EngineArgs {
    /// The model's name for messages: its path, or what the built-in one is called.
    pub fn name(&self) -> String {
        self.model.as_ref().map_or(builtin_model::NAME.into(), |path| path.display().to_string())
    }

    /// Says so where the model is the built-in one.
    pub fn announce(&self, log: &Log) {
        if self.model.is_none() {
            log(builtin_model::NOTICE);
        }
    }

    /// The same for another layout.
    pub fn with_layout(&self, layout: PromptLayout) -> EngineArgs {
        EngineArgs { store: StoreOptions { layout, ..self.store.clone() }, ..self.clone() }
    }

    /// The same, keeping what is read in memory only.
    pub fn in_memory(&self) -> EngineArgs {
        EngineArgs { store: StoreOptions::in_memory(), ..self.clone() }
    }

    /// The same, keeping nothing of what is read: for measurements.
    pub fn without_snapshots(&self) -> EngineArgs {
        EngineArgs { store: StoreOptions::nothing(), ..self.clone() }
    }
}

/// Where to compute, and what of the GPU may be used.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DeviceArgs {
    /// Where to compute (default: cpu, until the CUDA backend has run on a GPU)
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// Memory of the GPU to use at most (default: what is free)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub gpu_memory: Option<u64>,
    /// Experts of each layer that the GPU keeps where not all fit: those used most (default: as many as fit)
    #[arg(long, alias = "hot-experts", value_name = "EXPERTS")]
    pub gpu_expert_cache: Option<usize>,
    /// Layers whose experts all stay in RAM; those of the others are on the GPU whole
    #[arg(long, alias = "cpu-experts", value_name = "LAYERS", conflicts_with = "gpu_expert_cache")]
    pub n_cpu_moe: Option<usize>,
    /// Layers whose experts are on the GPU whole, the complement of --n-cpu-moe
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "LAYERS", conflicts_with_all = ["n_cpu_moe", "gpu_expert_cache"])]
    pub gpu_layers: Option<usize>,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// This machine's processor
    #[default]
    Cpu,
    /// The first CUDA device, or an error that says why not
    Cuda,
    /// The first CUDA device where there is one and the model fits it, else the processor
    Auto,
}
