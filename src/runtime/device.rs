//! Where a model computes: `--device cpu`, `cuda` or `auto`.
//!
//! Everything above a backend is generic over it; [`super::on_device!`] is the one
//! place where a command meets both. The default is the CPU until the CUDA backend has run on a GPU. Next: `engine`.

use super::options::{Device, EngineArgs};
use super::placement::{ExpertPlacement, LoadParams, Placement, Requirements};
use crate::io::host_memory;
use crate::io::log::Log;
use anyhow::{Context as _, Result, bail};
use kernels::cpu::Cpu;
use kernels::cuda::Cuda;
use models::kimi_linear::config::Config;
use std::path::Path;

/// A backend that was asked for.
pub enum Chosen {
    /// The processor.
    Cpu(Cpu),
    /// A CUDA device, and what of the arguments fits it.
    Cuda(Box<Cuda>, Box<EngineArgs>),
}

/// The backend that the arguments ask for. Why it is not the GPU, or what goes there, is told to `log` in a line.
///
/// # Errors
/// A GPU was asked for and cannot be used.
pub fn choose(args: &EngineArgs, log: &Log) -> Result<Chosen> {
    let cpu = || Ok(Chosen::Cpu(Cpu::detect(args.threads)));
    match args.device.device {
        Device::Cpu => cpu(),
        Device::Cuda => cuda(args, log).context("--device cuda"),
        Device::Auto => match cuda(args, log) {
            Ok(chosen) => Ok(chosen),
            Err(e) => {
                log(&format!("computing on the CPU: {e:#}"));
                cpu()
            }
        },
    }
}

/// Tokens a step from which experts that travel are no longer what a prompt waits for.
const LARGE_STEP: usize = 2048;

/// The device, with room planned for the model.
fn cuda(args: &EngineArgs, log: &Log) -> Result<Chosen> {
    let cuda = Cuda::detect()?.with_threads(args.threads);
    let [free, _] = cuda.memory();
    let free = args.device.gpu_memory.map_or(free, |most| most.min(free));
    let plan = plan(args, free)?;
    if plan.shortfall > 0 {
        let (name, shortfall) = (&cuda.device().name, plan.shortfall.div_ceil(1 << 20));
        bail!(
            "{name}: {shortfall} MiB too little: {plan}; less --ctx, less --batch or --cache-type q8_0 need less"
        );
    }
    log(&plan.to_string());
    if plan.staging > 0 && args.batch < LARGE_STEP {
        log(&format!(
            "experts in RAM travel to the GPU once every {} tokens of a prompt; --batch {LARGE_STEP} reads long ones faster",
            args.batch
        ));
    }
    let [room, _] = plan.requirements.arriving.filter(|_| plan.staging > 0).unwrap_or_default();
    cuda.limit_stacks(plan.whole, room, plan.slots)?;
    // Contexts end where the plan does, and snapshots in memory are on the device: they get half of what is left.
    let spare = free.saturating_sub(plan.gpu) / 2;
    let mut args = Box::new(args.clone());
    args.ctx = args.ctx.or(Some(plan.requirements.context));
    let snapshots = args.store.cache_ram.unwrap_or(spare).min(spare);
    if let Some(asked) = args.store.cache_ram.filter(|asked| *asked > spare) {
        let [asked, spare] = [asked, spare].map(|bytes| bytes >> 20);
        log(&format!("--cache-ram: snapshots are on the GPU, which has {spare} MiB for them, not {asked}"));
    }
    args.store.cache_ram = Some(snapshots);
    // What is planned for one sequence, and what is left, is for all that are served at once.
    args.state_room =
        Some(free.saturating_sub(plan.gpu) - snapshots + plan.requirements.state + plan.requirements.cache);
    Ok(Chosen::Cuda(Box::new(cuda), args))
}

/// What goes where with so many free bytes on a GPU.
///
/// # Errors
/// The model's file does not open or is of another architecture.
pub fn plan(args: &EngineArgs, free: u64) -> Result<Placement> {
    let file = super::builtin_model::open(args.model.as_deref())?;
    let config = Config::from_gguf(&file)?;
    let params = LoadParams { context: args.ctx, cache: args.cache_type.into(), batch: args.batch as u64 };
    let memory = host_memory::available(Path::new("/"));
    let (requirements, device) = (Requirements::of(&file, &config, &params), &args.device);
    let others = device.gpu_layers.map(|layers| requirements.experts.len().saturating_sub(layers));
    let hot = ExpertPlacement::Cached(device.gpu_expert_cache.unwrap_or(usize::MAX));
    let wanted = device.n_cpu_moe.or(others).map_or(hot, ExpertPlacement::LayersInRam);
    Ok(Placement::plan(requirements, free, memory, wanted))
}
