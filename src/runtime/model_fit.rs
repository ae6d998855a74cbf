//! Estimates whether a model fits the memory of this machine from the size of its files, before it is downloaded.
//!
//! Weights are most of the memory. The rest is that of the published 48B model with [`CONTEXT`] tokens, or, for a file that is
//! there, that of [`MemoryEstimate`].

use super::attention_path::MATERIALIZED_BATCH_FACTOR;
use super::memory_estimate::MemoryEstimate;
use super::options::DEFAULT_BATCH;
use crate::io::host_memory;
use crate::io::units::format_size;
use kernels::cuda::Cuda;
use models::gguf::read::Gguf;
use models::hybrid::config::Config;
use models::hybrid::kv_split::split_bytes;
use std::path::Path;

/// The context that must fit beside the weights, in tokens.
pub const CONTEXT: u64 = 32_768;
/// Memory of the published 48B model beside its weights: state, KV cache of [`CONTEXT`] tokens, and workspace.
const BESIDE_WEIGHTS: u64 = 540 << 20;

/// The memory of this machine that is free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FreeMemory {
    /// None if the system does not report it.
    pub ram: Option<u64>,
    /// None without a usable GPU.
    pub gpu: Option<u64>,
}

/// The memory in which a model fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Ram,
    /// On the GPU, or there with its experts in RAM.
    Gpu,
    No,
    Unknown,
}

impl FreeMemory {
    pub fn detect() -> FreeMemory {
        let gpu = Cuda::detect().ok().map(|cuda| cuda.memory()[0]);
        FreeMemory { ram: host_memory::available(Path::new("/")), gpu }
    }

    /// Whether a model that needs `bytes` fits.
    pub fn fit(&self, bytes: u64) -> Fit {
        let on_gpu = self.gpu.is_some_and(|gpu| bytes <= gpu.saturating_add(self.ram.unwrap_or(0)));
        match self.ram {
            Some(ram) if bytes <= ram => Fit::Ram,
            _ if on_gpu => Fit::Gpu,
            Some(_) => Fit::No,
            None => Fit::Unknown,
        }
    }

    /// Describes the memory, for messages: `61.20 GiB of free RAM`.
    pub fn describe(&self) -> String {
        let ram =
            self.ram.map_or("unknown RAM".to_owned(), |ram| format!("{} of free RAM", format_size(ram)));
        match self.gpu {
            Some(gpu) => format!("{ram} and {} on the GPU", format_size(gpu)),
            None => ram,
        }
    }
}

/// Bytes that a model of the published shape needs, by the size of its files.
pub fn needed(file_bytes: u64) -> u64 {
    file_bytes.saturating_add(BESIDE_WEIGHTS)
}

/// Bytes that a model file needs; None if it is no model that this program runs.
pub fn needed_by_file(file: &Gguf) -> Option<u64> {
    let config = Config::from_gguf(file).ok()?;
    let estimate = MemoryEstimate::of(&config, (DEFAULT_BATCH * MATERIALIZED_BATCH_FACTOR) as u64);
    let context = CONTEXT.min(config.context);
    let weights = file.file_bytes().saturating_add(split_bytes(file, &config));
    Some(estimate.total(estimate.f16_bytes_per_token, context).saturating_add(weights))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::synth::Preset;

    #[test]
    fn the_published_model_fits_its_estimate() {
        let config = Config::from_gguf(&Preset::Real.metadata_only()).unwrap();
        let estimate = MemoryEstimate::of(&config, (DEFAULT_BATCH * MATERIALIZED_BATCH_FACTOR) as u64);
        let beside = estimate.total(estimate.f16_bytes_per_token, CONTEXT);
        assert!((BESIDE_WEIGHTS - (40 << 20)..=BESIDE_WEIGHTS).contains(&beside), "{}", beside >> 20);
    }

    #[test]
    fn ram_comes_before_the_gpu() {
        let machine = FreeMemory { ram: Some(10), gpu: Some(5) };
        assert_eq!([10, 15, 16].map(|bytes| machine.fit(bytes)), [Fit::Ram, Fit::Gpu, Fit::No]);
        assert_eq!(FreeMemory { ram: None, gpu: None }.fit(1), Fit::Unknown);
        assert_eq!(FreeMemory { ram: Some(9), gpu: None }.fit(10), Fit::No);
    }
}
