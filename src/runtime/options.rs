//! Options for loading a model: the file, the device and the prefix cache. [`LoadOptions::default`] loads the built-in model.

use super::builtin_model;
use crate::io::log::Log;
use crate::prefix_cache::options::StoreOptions;
use anyhow::{Context as _, Result};
use kernels::backend::CacheFormat;
use kernels::cpu::interleave_memory;
use std::path::PathBuf;
use std::time::Duration;

/// Options that select a model and the way it runs.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The model file; `None` for the built-in model.
    pub model: Option<PathBuf>,
    /// Number of threads; `None` for all cores available to the process.
    pub threads: Option<usize>,
    /// Context size in tokens; `None` for the one of the model file.
    pub ctx: Option<u64>,
    /// Prefill batch size in tokens, doubled past 1,024 tokens of a message; `None` for [`DEFAULT_BATCH`],
    /// or a larger one on a GPU that holds all experts.
    pub batch: Option<usize>,
    /// Data type of the KV cache; `None` for the backend's [`default`](kernels::backend::Backend::default_cache_format).
    pub cache_type: Option<CacheFormat>,
    /// Chat template to use instead of the model file's: a file, or `builtin`.
    pub chat_template: Option<PathBuf>,
    /// Locks the model file in RAM.
    pub mlock: bool,
    /// Interleaves memory over all NUMA nodes instead of allocating it on the node that touches it first.
    pub interleave: bool,
    pub device: DeviceOptions,
    pub store: StoreOptions,
    /// Maximum bytes of the states of all sequences on a GPU, set by the placement.
    pub max_state_bytes: Option<u64>,
    /// Whether steps of a reply also compute drafted tokens.
    pub draft: Drafting,
}

/// Default prefill batch in tokens.
pub const DEFAULT_BATCH: usize = 512;

/// Tokens of the longest draft.
pub const MAX_DRAFT: usize = 15;

/// Whether and how many tokens that are likely to follow are drafted in a step of a reply. Replies do not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafting {
    /// As many as the expected gain suggests.
    #[default]
    Auto,
    Off,
    /// This many after every match, at most [`MAX_DRAFT`].
    Tokens(usize),
}

impl Default for LoadOptions {
    /// The built-in model, with a prefix cache in memory.
    fn default() -> Self {
        LoadOptions {
            model: None,
            threads: None,
            ctx: None,
            batch: None,
            cache_type: None,
            chat_template: None,
            mlock: false,
            interleave: false,
            device: DeviceOptions::default(),
            store: StoreOptions::in_memory(),
            max_state_bytes: None,
            draft: Drafting::Auto,
        }
    }
}

impl LoadOptions {
    /// Returns the model's name for messages: its path or the name of the built-in model.
    pub fn name(&self) -> String {
        self.model.as_ref().map_or(builtin_model::NAME.into(), |path| path.display().to_string())
    }

    /// Logs a notice if the built-in model is used, and sets the process's NUMA policy before threads and memory exist.
    pub fn prepare(&self, log: &Log) -> Result<()> {
        if self.model.is_none() {
            log(builtin_model::NOTICE);
        }
        if self.interleave {
            interleave_memory().context("--numa interleave")?;
        }
        Ok(())
    }

    /// Returns these options with a prefix cache in memory only.
    pub fn in_memory(self) -> LoadOptions {
        LoadOptions { store: StoreOptions::in_memory(), ..self }
    }

    /// Returns these options without a prefix cache, for measurements.
    pub fn without_snapshots(self) -> LoadOptions {
        LoadOptions { store: StoreOptions::nothing(), ..self }
    }
}

/// Options that select the device and the use of the GPU.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// The device; `None` for the GPU if there is one that passes its self-check, without a line if there is none.
    pub device: Option<DeviceChoice>,
    /// Maximum bytes of GPU memory to use; `None` for all free memory.
    pub gpu_memory: Option<u64>,
    /// Experts per layer to cache on the GPU if not all fit; `None` for as many as fit.
    pub gpu_expert_cache: Option<usize>,
    /// Layers whose experts stay in RAM.
    pub n_cpu_moe: Option<usize>,
    /// Layers whose experts are on the GPU, the complement of `n_cpu_moe`.
    pub gpu_layers: Option<usize>,
    /// Longest time of a step on the GPU, after which it counts as hung; `None` for the default of a minute.
    pub gpu_timeout: Option<Duration>,
    /// Begin each kernel after the end of the one before, also where they can overlap.
    pub serial_launches: bool,
}

/// The device that runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceChoice {
    /// The CPU of this machine
    Cpu,
    /// The first CUDA device, even if it fails its self-check; an error if it cannot be used
    Cuda,
    /// The first CUDA device if there is one, it passes its self-check and the model fits, else the CPU
    Auto,
}
