//! Selects the backend: `--device cpu`, `cuda` or `auto`, the default.
//!
//! All code between a backend and [`super::handle`] is generic over it. A GPU is checked at its first start with a model. Next:
//! [`super::self_check`], [`super::placement`] (plans GPU memory), [`super::engine`].

use super::options::{DeviceChoice, LoadOptions};
use super::placement::{ExpertPlacement, LoadParams, Placement};
use super::self_check::{self, DeviceVerdict};
use crate::io::host_memory;
use crate::io::log::Log;
use anyhow::{Context as _, Result, anyhow, bail};
use kernels::backend::CacheFormat;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, DeviceFailure, Unavailable};
use models::gguf;
use models::hybrid::config::Config;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

pub enum Chosen {
    Cpu(Cpu),
    /// A CUDA device, and the arguments adjusted to its memory.
    Cuda(Box<Cuda>, Box<LoadOptions>),
}

/// Selects the backend. Logs the placement on the GPU, or the reason for using the CPU, in one line; without `--device` a
/// machine without a GPU is no reason to mention.
///
/// # Errors
/// `--device cuda` is given and the GPU cannot be used.
pub fn choose(args: &LoadOptions, log: &Log) -> Result<Chosen> {
    let choice = args.device.device;
    let found = match choice {
        Some(DeviceChoice::Cpu) => return Ok(cpu(args)),
        _ => catch_failure(|| cuda(args, log)),
    };
    match found {
        Ok(chosen) => Ok(chosen),
        Err(e) if choice == Some(DeviceChoice::Cuda) => Err(e).context("--device cuda"),
        Err(e) => {
            let is_absent = e.downcast_ref().is_some_and(Unavailable::is_absent);
            if choice.is_some() || !is_absent {
                log(&format!("computing on the CPU: {e:#}"));
            }
            Ok(cpu(args))
        }
    }
}

/// Runs `run`, whose error is a [`DeviceFailure`] if the GPU fails.
pub fn catch_failure<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| match panic.downcast::<DeviceFailure>() {
        Ok(failure) => Err((*failure).into()),
        Err(panic) => resume_unwind(panic),
    })
}

/// Whether the CPU may load a model that failed to load on the GPU: not with `--device cuda`, and not for an error of the file.
pub fn may_use_cpu_after(error: &anyhow::Error, options: &LoadOptions) -> bool {
    let is_full = matches!(error.downcast_ref::<gguf::Error>(), Some(gguf::Error::Device { .. }));
    (is_full || error.is::<DeviceFailure>()) && options.device.device != Some(DeviceChoice::Cuda)
}

fn cpu(args: &LoadOptions) -> Chosen {
    Chosen::Cpu(Cpu::detect(args.threads))
}

/// Batch size from which uploading experts no longer dominates prefill.
const LARGE_STEP: usize = 2048;

/// Opens the CUDA device and plans its memory for the model.
fn cuda(args: &LoadOptions, log: &Log) -> Result<Chosen> {
    let cuda = Cuda::detect()?.with_threads(args.threads);
    let [free, _] = cuda.memory();
    let free = args.device.gpu_memory.map_or(free, |most| most.min(free));
    let plan = plan(args, free)?;
    if plan.shortfall > 0 {
        let (name, shortfall) = (&cuda.device().name, plan.shortfall.div_ceil(1 << 20));
        bail!(
            "{name}: needs {shortfall} MiB more GPU memory: {plan}; use a smaller --ctx or --batch, or --cache-type q8_0"
        );
    }
    self_check(&cuda, args, plan.ram > 0, log)?;
    if let Some(limit) = args.device.gpu_timeout {
        cuda.limit_waits(limit);
    }
    if args.device.serial_launches {
        cuda.allow_programmatic_launches(false);
    }
    if cuda.device().devices > 1 {
        let (all, name) = (cuda.device().devices, &cuda.device().name);
        log(&format!(
            "1 of {all} GPUs is used ({name}): a model is not split; CUDA_VISIBLE_DEVICES selects another"
        ));
    }
    log(&plan.to_string());
    let batch = plan.requirements.batch as usize;
    if plan.staging > 0 && batch < LARGE_STEP {
        log(&format!(
            "experts in RAM are uploaded to the GPU once every {batch} tokens of a prompt; --batch {LARGE_STEP} prefills long prompts faster"
        ));
    }
    let [staging_bytes, _] =
        plan.requirements.staging_stacks.filter(|_| plan.staging > 0).unwrap_or_default();
    cuda.limit_stacks(plan.layer_bytes, staging_bytes, plan.slots)?;
    // The context is limited to the plan. Snapshots in memory are on the device and get half of the memory that is
    // left.
    let spare = free.saturating_sub(plan.gpu) / 2;
    let mut args = Box::new(args.clone());
    args.ctx = args.ctx.or(Some(plan.requirements.context));
    args.batch = Some(batch);
    let snapshots = args.store.cache_ram.unwrap_or(spare).min(spare);
    if let Some(requested) = args.store.cache_ram.filter(|requested| *requested > spare) {
        let [requested, spare] = [requested, spare].map(|bytes| bytes >> 20);
        log(&format!(
            "--cache-ram: snapshots are on the GPU, which has {spare} MiB for them instead of {requested} MiB"
        ));
    }
    args.store.cache_ram = Some(snapshots);
    // All concurrent sequences share the memory planned for one sequence and the rest.
    args.max_state_bytes =
        Some(free.saturating_sub(plan.gpu) - snapshots + plan.requirements.state + plan.requirements.cache);
    Ok(Chosen::Cuda(Box::new(cuda), args))
}

/// Checks the device for the model, unless it has been.
///
/// # Errors
/// It failed and was not requested by `--device cuda`.
fn self_check(cuda: &Cuda, args: &LoadOptions, experts_in_ram: bool, log: &Log) -> Result<()> {
    let failure = match self_check::verdict(cuda, args, experts_in_ram) {
        Ok(DeviceVerdict::Passed) => return Ok(()),
        Ok(DeviceVerdict::Failed(why)) => anyhow!(why),
        Err(e) => e,
    };
    if args.device.device != Some(DeviceChoice::Cuda) {
        return Err(failure);
    }
    log(&format!("warning: {failure:#}; --device cuda uses the GPU nevertheless"));
    Ok(())
}

/// Plans the placement for `free` bytes of GPU memory.
///
/// # Errors
/// The model file does not open or has another architecture.
pub fn plan(args: &LoadOptions, free: u64) -> Result<Placement> {
    let file = super::builtin_model::open(args.model.as_deref())?;
    let config = Config::from_gguf(&file)?;
    let cache = args.cache_type.unwrap_or(CacheFormat::F16);
    let params = LoadParams { context: args.ctx, cache, batch: args.batch.map(|tokens| tokens as u64) };
    let memory = host_memory::available(Path::new("/"));
    let device = &args.device;
    let cached = ExpertPlacement::Cached(device.gpu_expert_cache.unwrap_or(usize::MAX));
    let in_ram = device.n_cpu_moe.map(ExpertPlacement::LayersInRam);
    let policy = in_ram.or(device.gpu_layers.map(ExpertPlacement::LayersOnGpu)).unwrap_or(cached);
    Ok(Placement::of(&file, &config, &params, free, memory, policy))
}
