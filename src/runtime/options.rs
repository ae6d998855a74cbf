//! Command-line options for loading a model: the file, the device and the prefix cache.

use super::builtin_model;
use crate::io::log::Log;
use crate::io::units::parse_size;
use crate::prefix_cache::key::PromptLayout;
use crate::prefix_cache::options::StoreOptions;
use clap::builder::RangedU64ValueParser;
use kernels::backend::CacheFormat;
use std::path::PathBuf;

/// Options that select a model and the way it runs.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineArgs {
    /// Model file (GGUF, architecture kimi-linear; default: the built-in demonstration model)
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Number of threads (default: all cores available to this process)
    #[arg(short, long, value_name = "N", value_parser = threads())]
    pub threads: Option<usize>,
    /// Context size in tokens (default: from the model file)
    #[arg(short, long, value_name = "TOKENS")]
    pub ctx: Option<u64>,
    /// Prefill batch size in tokens (doubled past 1,024 tokens of a message); larger is faster and uses more memory
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512, value_parser = at_least_one())]
    pub batch: usize,
    /// Data type of the KV cache
    #[arg(long, value_enum, default_value_t = CacheType::F16)]
    pub cache_type: CacheType,
    /// Chat template to use instead of the model file's: a file, or `builtin`
    #[arg(long, visible_alias = "chat-template-file", value_name = "FILE|builtin")]
    pub chat_template: Option<PathBuf>,
    /// Lock the model file in RAM
    #[arg(long)]
    pub mlock: bool,
    /// The device options
    #[command(flatten)]
    pub device: DeviceArgs,
    /// The prefix cache options
    #[command(flatten)]
    pub store: StoreOptions,
    /// Maximum bytes of the states of all sequences on a GPU, set by the placement
    #[arg(skip)]
    pub state_room: Option<u64>,
}

/// Parses a number of threads. The maximum is above any machine; beyond the system's limit starting a thread aborts
/// the process.
pub fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1024)
}

/// Parses a number of at least 1.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// The data type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheType {
    /// Exact, 4 bytes per value
    F32,
    /// Half precision, 2 bytes per value
    F16,
    /// 34 bytes per 32 values
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
    /// Returns the model's name for messages: its path or the name of the built-in model.
    pub fn name(&self) -> String {
        self.model.as_ref().map_or(builtin_model::NAME.into(), |path| path.display().to_string())
    }

    /// Logs a notice if the built-in model is used.
    pub fn announce(&self, log: &Log) {
        if self.model.is_none() {
            log(builtin_model::NOTICE);
        }
    }

    /// Returns these options with another prompt layout.
    pub fn with_layout(&self, layout: PromptLayout) -> EngineArgs {
        EngineArgs { store: StoreOptions { layout, ..self.store.clone() }, ..self.clone() }
    }

    /// Returns these options with a prefix cache in memory only.
    pub fn in_memory(&self) -> EngineArgs {
        EngineArgs { store: StoreOptions::in_memory(), ..self.clone() }
    }

    /// Returns these options without a prefix cache, for measurements.
    pub fn without_snapshots(&self) -> EngineArgs {
        EngineArgs { store: StoreOptions::nothing(), ..self.clone() }
    }
}

/// Options that select the device and the use of the GPU.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DeviceArgs {
    /// Device to run on (default: cpu)
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// Maximum GPU memory to use (default: all free memory)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub gpu_memory: Option<u64>,
    /// Number of experts per layer to cache on the GPU, most used first, if not all fit (default: as many as fit)
    #[arg(long, alias = "hot-experts", value_name = "EXPERTS")]
    pub gpu_expert_cache: Option<usize>,
    /// Number of layers whose experts stay in RAM; the experts of the other layers are on the GPU
    #[arg(long, alias = "cpu-experts", value_name = "LAYERS", conflicts_with = "gpu_expert_cache")]
    pub n_cpu_moe: Option<usize>,
    /// Number of layers whose experts are on the GPU, the complement of --n-cpu-moe
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "LAYERS", conflicts_with_all = ["n_cpu_moe", "gpu_expert_cache"])]
    pub gpu_layers: Option<usize>,
}

/// The device that runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// The CPU of this machine
    #[default]
    Cpu,
    /// The first CUDA device; fails if it cannot be used
    Cuda,
    /// The first CUDA device if there is one and the model fits, else the CPU
    Auto,
}
