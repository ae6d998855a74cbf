//! Command-line options for loading a model, which commands and front ends share. They convert to the plain options of
//! [`crate::runtime::options`] and [`crate::prefix_cache::options`].

use crate::io::units::parse_size;
use crate::prefix_cache::options::StoreOptions;
use crate::prefix_cache::state_dtype::StateType;
use crate::runtime::options::{DeviceChoice, DeviceOptions, Drafting, LoadOptions, MAX_DRAFT};
use clap::builder::RangedU64ValueParser;
use kernels::backend::CacheFormat;
use std::path::PathBuf;
use std::time::Duration;

/// Options that select a model and the way it runs, for [`LoadOptions`].
#[derive(Clone, Debug, clap::Args)]
pub struct EngineArgs {
    /// Model file (GGUF) or its name on Hugging Face, USER/REPO[:TYPE] (default: the built-in demonstration model)
    #[arg(short, long, value_name = "FILE|NAME")]
    pub model: Option<PathBuf>,
    /// Download the model that -m names without asking if it is not cached
    #[arg(long)]
    pub yes: bool,
    /// Number of threads (default: all cores available to this process)
    #[arg(short, long, value_name = "N", value_parser = threads())]
    pub threads: Option<usize>,
    /// Maximum tokens of a sequence, prompt and reply; not divided among parallel requests (default: from the model file)
    #[arg(short, long, value_name = "TOKENS")]
    pub ctx: Option<u64>,
    /// Prompt tokens processed per step; larger is faster and uses more memory (default: 512, or 2048 on a GPU that holds all
    /// experts)
    #[arg(short, long, value_name = "TOKENS", value_parser = at_least_one())]
    pub batch: Option<usize>,
    /// Data type of the KV cache (default: q8_0 on the CPU, f16 on a GPU or if a row is no whole blocks of 32 values)
    #[arg(long, visible_alias = "kv-type", value_enum)]
    pub cache_type: Option<CacheType>,
    /// Draft tokens from context and grammar: faster copied or structured text, the same replies; auto, off or N tokens (1 to 15)
    #[arg(long, value_name = "auto|off|N", default_value = "auto", value_parser = drafting)]
    pub draft: Drafting,
    /// Chat template to use instead of the model file's: a file, or `builtin`
    #[arg(long, visible_alias = "chat-template-file", value_name = "FILE|builtin")]
    pub chat_template: Option<PathBuf>,
    /// Lock the model file in RAM
    #[arg(long)]
    pub mlock: bool,
    /// NUMA nodes on which memory lies
    #[arg(long, value_enum, default_value = "local")]
    pub numa: NumaPolicy,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub store: StoreArgs,
}

impl EngineArgs {
    pub fn options(&self) -> LoadOptions {
        LoadOptions {
            model: self.model.clone(),
            threads: self.threads,
            ctx: self.ctx,
            batch: self.batch,
            cache_type: self.cache_type.map(Into::into),
            chat_template: self.chat_template.clone(),
            mlock: self.mlock,
            interleave: self.numa == NumaPolicy::Interleave,
            device: self.device.options(),
            store: self.store.options(),
            max_state_bytes: None,
            draft: self.draft,
        }
    }
}

/// Parses the value of `--draft`.
fn drafting(value: &str) -> Result<Drafting, String> {
    match value {
        "auto" => Ok(Drafting::Auto),
        "off" | "0" => Ok(Drafting::Off),
        _ => match value.parse() {
            Ok(n) if (1..=MAX_DRAFT).contains(&n) => Ok(Drafting::Tokens(n)),
            _ => Err(format!("expected auto, off or 1 to {MAX_DRAFT} tokens")),
        },
    }
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

/// Where memory lies on a machine with several NUMA nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NumaPolicy {
    /// The node of the thread that touches a page first
    Local,
    /// All nodes in turn, for threads on several nodes; weights that the page cache holds already stay where they are
    Interleave,
}

/// The data type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheType {
    /// Exact, 4 bytes per value
    F32,
    /// Half precision, 2 bytes per value
    F16,
    /// 34 bytes per 32 values; on the CPU the fastest at depth
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

/// Options that select the device and the use of the GPU, for [`DeviceOptions`].
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Device to run on (default: auto)
    #[arg(long, value_enum)]
    pub device: Option<DeviceChoice>,
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
    /// Seconds of a step on the GPU after which it counts as hung (default: 60)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub gpu_timeout: Option<u64>,
    /// Begin each GPU kernel after the end of the one before, also on cards where they can overlap: for measurements
    #[arg(long, hide = true)]
    pub gpu_serial_launches: bool,
}

impl DeviceArgs {
    fn options(&self) -> DeviceOptions {
        let DeviceArgs { device, gpu_memory, gpu_expert_cache, n_cpu_moe, gpu_layers, .. } = *self;
        let (gpu_timeout, serial_launches) =
            (self.gpu_timeout.map(Duration::from_secs), self.gpu_serial_launches);
        DeviceOptions {
            device,
            gpu_memory,
            gpu_expert_cache,
            n_cpu_moe,
            gpu_layers,
            gpu_timeout,
            serial_launches,
        }
    }
}

/// Options of the prefix cache, for [`StoreOptions`].
#[derive(Clone, Debug, clap::Args)]
pub struct StoreArgs {
    /// Memory for cached prefixes (default: a quarter of the free memory; 0: none)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub cache_ram: Option<u64>,
    /// Directory for cached prefixes (default: kimi in $XDG_CACHE_HOME or ~/.cache)
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Disk space for cached prefixes (default: 20G), at most half of the free space
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub cache_size: Option<u64>,
    /// Data type of the recurrent states in the prefix cache on disk
    #[arg(long, value_enum, default_value_t = StateType::F32)]
    pub cache_state: StateType,
    /// Keep the prefix cache in memory only (--cache-ram 0 turns that off too)
    #[arg(long, conflicts_with_all = ["cache_dir", "cache_size"])]
    pub no_cache: bool,
}

impl StoreArgs {
    fn options(&self) -> StoreOptions {
        StoreOptions {
            cache_ram: self.cache_ram,
            cache_dir: self.cache_dir.clone(),
            cache_size: self.cache_size,
            cache_state: self.cache_state,
            no_cache: self.no_cache,
            ..StoreOptions::default()
        }
    }
}
