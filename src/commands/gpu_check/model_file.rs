//! Checks and measures the formats and sizes of a model file, for `gpu-check -m FILE`. Weights are random: only the header of the
//! file is read.
//!
//! The checks are those of the self-check ([`crate::kernel_checks::model`]), and products at the sizes of the file. Next:
//! [`super::bench`].

use super::bench::{self, LatentCase, MixtureShape};
use crate::kernel_checks::CheckRow;
use crate::kernel_checks::model::{self, KernelUse};
use crate::kernel_checks::rng::TestRng;
use anyhow::Result;
use kernels::backend::CacheFormat;
use kernels::cuda::Cuda;
use models::gguf::read::Gguf;
use models::hybrid::config::{Config, MixerKind};
use std::path::Path;

/// A model file and what its kernels depend on.
pub struct ModelFile {
    file: Gguf,
    kernels: KernelUse,
}

impl ModelFile {
    /// Opens the file.
    ///
    /// # Errors
    /// The file does not open or has another architecture.
    pub fn open(path: &Path) -> Result<ModelFile> {
        let file = Gguf::open(path)?;
        let config = Config::from_gguf(&file)?;
        let kernels = KernelUse::of(&file, config, CacheFormat::F16, false);
        Ok(ModelFile { file, kernels })
    }

    /// Compares every kernel that the model uses with the reference.
    pub fn checks(&self, cuda: &Cuda) -> Vec<CheckRow> {
        let all = model::checks(&self.kernels).into_iter().chain(model::sized(&self.file));
        all.map(|check| check.run(cuda)).collect()
    }

    /// Measures the model's kernels for one token and for a batch; `quick` with small batches and depths.
    pub fn times(&self, cuda: &Cuda, seed: u64, quick: bool) -> Vec<CheckRow> {
        let n = &mut TestRng::new(seed);
        let (memory, c) = (cuda.copy_gb_s(), &self.kernels.config);
        let (batch, depth) = if quick { (9, 64) } else { (512, 32_768) };
        let mut rows = Vec::new();
        for ((format, [out, cols]), tensors) in model::matrices(&self.file) {
            for tokens in [1, batch] {
                let mut row = bench::product(cuda, n, (format, [1, out, cols]), tokens, memory);
                row.what.push_str(&format!(" ({tensors} tensors)"));
                rows.push(row);
            }
        }
        if self.kernels.has(MixerKind::Kda) {
            let sizes = [c.kda.heads, c.kda.head_dim];
            rows.push(bench::delta_attention(cuda, n, sizes, memory));
            rows.push(bench::delta(cuda, n, sizes, batch, memory));
        }
        if self.kernels.has(MixerKind::Mla) {
            let (heads, width, values) = (c.mla.heads, c.cache_width(), c.mla.latent_dim);
            for format in [CacheFormat::F16, CacheFormat::Q8_0].into_iter().filter(|f| fits(*f, width)) {
                let case = LatentCase { heads, width, values, format, depth };
                rows.push(bench::attention(cuda, n, &case, 1, memory));
            }
        }
        for formats in self.kernels.experts() {
            let (experts, hidden, routing) = (c.moe.experts, c.moe.hidden, c.moe.routing);
            let shape = MixtureShape { formats, experts, dim: c.dim, hidden, routing };
            rows.extend(self.kernels.routers().map(|format| bench::router(cuda, n, format, &shape, memory)));
            rows.push(bench::mixture(cuda, n, &shape, memory));
            rows.push(bench::experts(cuda, n, &shape, batch, memory));
        }
        rows
    }
}

/// Whether rows of this width can have the format: whole blocks of Q8_0.
fn fits(format: CacheFormat, width: usize) -> bool {
    format != CacheFormat::Q8_0 || width.is_multiple_of(32)
}
