//! Plans the placement of a model on GPU and RAM. All weights but routed experts are on the GPU, and all experts if
//! they fit. Otherwise the GPU caches the most used experts of each layer, and the rest stay in RAM: the CPU computes
//! them for small batches, and they are uploaded to a staging buffer for large batches.
//!
//! The plan uses sizes only and is made before loading, so that the model never runs out of GPU memory later. It does
//! not depend on a backend.

use crate::runtime::attention_path::{MATERIALIZE_AFTER, MATERIALIZED_BATCH_FACTOR};
use crate::runtime::memory_estimate::MemoryEstimate;
use crate::runtime::options::DEFAULT_BATCH;
use kernels::backend::CacheFormat;
use kernels::cuda::{
    Heads, LARGE_STACK_WEIGHTS, UPLOAD_MIN_TOKENS, buffer_and_planes, device_bytes, materialized_bytes,
    staging_bytes,
};
use models::gguf::read::Gguf;
use models::hybrid::config::{Config, MixerKind};
use models::hybrid::kv_split::split_bytes;
use std::fmt;

/// GPU memory reserved for the driver: its context, compiled kernels, fragmentation.
const RESERVE: u64 = 512 << 20;
/// Memory left for snapshots beside a larger default batch, and at most if not all experts fit: then at most an eighth of the
/// memory for experts.
const KEPT: u64 = 1 << 30;
/// The planned context in tokens if none is given.
const USUAL_CONTEXT: u64 = 131_072;

/// The memory requirements of a model, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Requirements {
    /// All weights but routed experts.
    pub base: u64,
    /// The routed experts of each MoE layer.
    pub experts: Vec<u64>,
    /// The number of experts per layer.
    pub experts_per_layer: u64,
    /// [`buffer_and_planes`] of the largest stacks, for the staging buffer; `None` if batches are too small for
    /// uploads.
    pub staging_stacks: Option<[u64; 2]>,
    /// The state of a sequence, independent of its length.
    pub state: u64,
    /// The planned context, in tokens.
    pub context: u64,
    /// The KV cache of the planned context.
    pub cache: u64,
    /// The planned prefill batch in tokens.
    pub batch: u64,
    /// Estimated activations of a batch.
    pub workspace: u64,
}

/// The load options that affect memory.
#[derive(Clone, Copy, Debug)]
pub struct LoadParams {
    /// The context in tokens, if given.
    pub context: Option<u64>,
    /// The data type of the KV cache.
    pub cache: CacheFormat,
    /// Prefill batch size in tokens, if given.
    pub batch: Option<u64>,
}

/// Default prefill batch on a GPU that holds all experts: of the published model, 64 tokens select each expert on average, a
/// whole tile of its GEMM.
const GPU_BATCH: u64 = 2048;

/// Selects the experts to place on the GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ExpertPlacement {
    /// All experts, or a cache of as many per layer as fit, up to this number.
    Cached(usize),
    /// All experts of the first layers, as many as fit, except for this number of layers.
    LayersInRam(usize),
    /// All experts of this number of first layers, or as many as fit.
    LayersOnGpu(usize),
}

/// The placement of a model's weights and caches.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    pub requirements: Requirements,
    /// The number of first layers whose experts are all on the GPU.
    pub gpu_layers: usize,
    /// Bytes of the experts of those layers.
    pub layer_bytes: u64,
    /// The number of experts per layer in the GPU expert cache.
    pub slots: usize,
    /// Bytes of the GPU expert cache.
    pub cache_bytes: u64,
    /// Bytes of the staging buffer for uploads; 0 if none is needed or it does not fit.
    pub staging: u64,
    /// Total bytes on the GPU.
    pub gpu: u64,
    /// Bytes of the experts that are only in RAM.
    pub ram: u64,
    /// Bytes of those experts that do not fit in RAM and are read from disk repeatedly.
    pub disk: u64,
    /// Bytes missing on the GPU; 0 if the plan can run.
    pub shortfall: u64,
}

impl Requirements {
    /// Computes the requirements of a model file for the given context and batch.
    fn of(file: &Gguf, c: &Config, params: &LoadParams) -> Requirements {
        let context = params.context.unwrap_or(USUAL_CONTEXT).min(c.context);
        let (staging_stacks, experts) = (None, Vec::new());
        let experts_per_layer = c.moe.experts as u64;
        let batch = params.batch.unwrap_or(DEFAULT_BATCH as u64);
        let mut requirements = Requirements {
            base: 0,
            experts,
            experts_per_layer,
            staging_stacks,
            state: 0,
            context,
            cache: 0,
            batch,
            workspace: 0,
        };
        let mut layers = std::collections::BTreeMap::<u64, u64>::new();
        let mut staging_stacks = [0_u64; 2];
        for t in &file.tensors {
            let bytes = device_bytes(t.format, t.shape.iter().product());
            let layer = t.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
            let large = t.shape.iter().product::<u64>() >= LARGE_STACK_WEIGHTS;
            match layer.filter(|_| large && t.name.contains("_exps.")) {
                Some(layer) => {
                    *layers.entry(layer).or_default() += bytes;
                    let stack = buffer_and_planes(t.format, t.shape.iter().product());
                    staging_stacks = [0, 1].map(|i| staging_stacks[i].max(stack[i]));
                }
                None => requirements.base += bytes,
            }
        }
        requirements.base = requirements.base.saturating_add(split_bytes(file, c));
        requirements.experts = layers.into_values().collect();
        requirements.staging_stacks = (batch >= UPLOAD_MIN_TOKENS as u64).then_some(staging_stacks);
        let need = MemoryEstimate::of(c, batch);
        requirements.state = need.kda_state_bytes.saturating_add(need.conv_bytes);
        let row = c.cache_width() as u64;
        let row = match params.cache {
            CacheFormat::F32 => 4 * row,
            CacheFormat::F16 => 2 * row,
            CacheFormat::Q8_0 => row.div_ceil(32) * 34,
        };
        let rows = (c.caches() as u64).saturating_mul(row.next_multiple_of(16));
        requirements.cache = rows.saturating_mul(context);
        requirements.workspace = workspace(c, batch, context);
        requirements
    }

    /// The requirements without the experts.
    fn without_experts(&self) -> u64 {
        let parts = [self.base, self.state, self.cache, self.workspace, RESERVE];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Returns the number of experts per layer that fit in `budget` bytes, at most `most`, and their bytes.
    fn slots_within(&self, budget: u64, most: usize) -> (usize, u64) {
        let each = self.experts.iter().map(|bytes| bytes.div_ceil(self.experts_per_layer.max(1)));
        let each = each.fold(0, u64::saturating_add).max(1);
        // The planes of the three stacks of a layer are aligned to 256 bytes.
        let aligned = self.experts.len() as u64 * 3 * 3 * 256;
        let slots = (budget.saturating_sub(aligned) / each).min(self.experts_per_layer).min(most as u64);
        (slots as usize, if slots > 0 { slots * each + aligned } else { 0 })
    }
}

/// Activations of the largest batch that the context allows, including materialized keys and values.
fn workspace(c: &Config, batch: u64, context: u64) -> u64 {
    let far = context.saturating_sub(MATERIALIZE_AFTER as u64);
    let step = batch.max(batch.saturating_mul(MATERIALIZED_BATCH_FACTOR as u64).min(far));
    let m = &c.mla;
    let (count, nope, pe) = (m.heads, m.nope_dim, m.pe_dim);
    let heads = Heads { count, nope, pe, latent: m.latent_dim, value_dim: m.value_dim };
    let expands = far > 0 && c.count(MixerKind::Mla) > 0;
    let made = if expands { materialized_bytes(&heads, context, step) } else { 0 };
    // Activations are stored as floats and as bytes; buffers are up to a quarter larger than their contents.
    MemoryEstimate::of(c, step)
        .workspace_bytes
        .saturating_mul(2)
        .saturating_add(made)
        .saturating_add(made / 4)
}

impl Placement {
    /// Plans a model file for `gpu` free bytes of GPU memory, and `memory` bytes of RAM if known. Unless a batch is given,
    /// it is [`GPU_BATCH`] if all experts fit beside its workspace and leave room for snapshots, else [`DEFAULT_BATCH`].
    pub fn of(
        file: &Gguf,
        c: &Config,
        params: &LoadParams,
        gpu: u64,
        memory: Option<u64>,
        policy: ExpertPlacement,
    ) -> Placement {
        let plan = |batch: Option<u64>| {
            let requirements = Requirements::of(file, c, &LoadParams { batch, ..*params });
            Placement::plan(requirements, gpu, memory, policy)
        };
        let large = params.batch.is_none().then(|| plan(Some(GPU_BATCH)));
        let fits = |plan: &Placement| plan.ram == 0 && plan.gpu.saturating_add(KEPT) <= gpu;
        large.filter(fits).unwrap_or_else(|| plan(params.batch))
    }

    /// Plans for `gpu` free bytes of GPU memory, and `memory` bytes of RAM if known.
    fn plan(requirements: Requirements, gpu: u64, memory: Option<u64>, policy: ExpertPlacement) -> Placement {
        let (base, all) = (requirements.without_experts(), requirements.experts.len());
        let budget = gpu.saturating_sub(base);
        let staging_stacks = requirements.staging_stacks.map(staging_bytes).filter(|bytes| *bytes <= budget);
        let within = |most: usize, budget: u64| layers_within(&requirements.experts[..most], budget);
        // A given number of layers has priority over the staging buffer.
        let first_layers = |most: usize| {
            let requested = within(most, budget);
            let beside = |bytes: &u64| requested.0 < all && within(most, budget - bytes) == requested;
            (requested, staging_stacks.filter(beside).unwrap_or(0))
        };
        let (mut slots, mut cache_bytes) = (0, 0);
        let ((gpu_layers, layer_bytes), staging) = match policy {
            ExpertPlacement::LayersInRam(others) => first_layers(all - others.min(all)),
            ExpertPlacement::LayersOnGpu(most) => first_layers(most.min(all)),
            ExpertPlacement::Cached(_) if within(all, budget).0 == all => (within(all, budget), 0),
            ExpertPlacement::Cached(most) => {
                let staging = staging_stacks.unwrap_or(0);
                let rest = budget - staging;
                (slots, cache_bytes) = requirements.slots_within(rest - (rest / 8).min(KEPT), most);
                ((0, 0), staging)
            }
        };
        let ram = requirements
            .experts
            .iter()
            .copied()
            .fold(0, u64::saturating_add)
            .saturating_sub(layer_bytes + cache_bytes);
        let disk = memory.map_or(0, |memory| ram.saturating_sub(memory));
        let gpu_bytes = [base, layer_bytes, cache_bytes, staging].into_iter().fold(0, u64::saturating_add);
        let shortfall = base.saturating_sub(gpu);
        Placement {
            gpu_layers,
            layer_bytes,
            slots,
            cache_bytes,
            staging,
            gpu: gpu_bytes,
            ram,
            disk,
            shortfall,
            requirements,
        }
    }
}

/// Returns the number of first layers whose experts fit in `budget` bytes, and their bytes.
fn layers_within(experts: &[u64], budget: u64) -> (usize, u64) {
    let sums = experts.iter().scan(0, |sum: &mut u64, bytes| {
        *sum = sum.saturating_add(*bytes);
        Some(*sum)
    });
    let fitting = sums.take_while(|sum| *sum <= budget).enumerate().last();
    fitting.map_or((0, 0), |(last, bytes)| (last + 1, bytes))
}

/// Formats the plan as one line for users.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let Requirements { base, experts, experts_per_layer, state, context, cache, workspace, .. } =
            &self.requirements;
        write!(f, "{:.2} GiB on the GPU: {:.2} of weights", gib(self.gpu), gib(*base))?;
        let (on_gpu, layers) = (gib(self.layer_bytes + self.cache_bytes), experts.len());
        match self.slots {
            _ if layers == 0 => {}
            0 => write!(f, ", {on_gpu:.2} of experts of {} of {layers} layers", self.gpu_layers)?,
            slots => write!(
                f,
                ", {on_gpu:.2} of the {slots} most used of {experts_per_layer} experts of {layers} layers"
            )?,
        }
        write!(
            f,
            ", {:.2} of state and {context} tokens, {:.2} of workspace",
            gib(state.saturating_add(*cache)),
            gib(workspace.saturating_add(RESERVE)),
        )?;
        if self.ram > 0 {
            write!(f, "; {:.2} GiB of experts in RAM", gib(self.ram))?;
        }
        if self.disk > 0 {
            write!(f, ", of which {:.2} do not fit and are read from disk repeatedly", gib(self.disk))?;
        }
        if self.staging > 0 {
            write!(
                f,
                "; {:.2} GiB of staging buffer for batches of {UPLOAD_MIN_TOKENS} tokens and more",
                gib(self.staging)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::synth::Preset;
    use kernels::quant::Format;
    use models::gguf::TensorInfo;

    /// The requirements of the real model (26 layers of 256 experts) with this format for experts and Q6_K for the
    /// rest.
    fn requirements(experts: Format, params: &LoadParams) -> Requirements {
        let file = Preset::Real.metadata_only();
        let mut d = Requirements::of(&file, &Config::from_gguf(&file).unwrap(), params);
        d.experts = vec![3 * device_bytes(experts, 256 * 1024 * 2304); 26];
        d.staging_stacks = d.staging_stacks.and(Some(buffer_and_planes(experts, 256 * 1024 * 2304)));
        d.base = device_bytes(Format::Q6_K, 3_800_000_000 / 256 * 256);
        d
    }

    fn params(context: u64, cache: CacheFormat) -> LoadParams {
        LoadParams { context: Some(context), cache, batch: Some(512) }
    }

    /// Over GPU and RAM sizes, contexts and formats: the plan fits, one more expert per layer would not, every byte
    /// is placed, and the bytes read from disk are reported.
    #[test]
    fn every_plan_fits_and_wastes_no_expert() {
        let mut seen = std::collections::BTreeSet::new();
        for experts in [Format::Q2_K, Format::Q4_K, Format::Q8_0] {
            for context in [4096, 131_072, 1 << 20] {
                for cache in [CacheFormat::F16, CacheFormat::Q8_0] {
                    for (gib, memory) in cards_and_memories() {
                        let (gpu, memory) = (gib << 30, memory << 30);
                        let d = requirements(experts, &params(context, cache));
                        let (base, each) = (d.without_experts(), d.experts[0]);
                        let arrive = staging_bytes(d.staging_stacks.unwrap());
                        let p = Placement::plan(d, gpu, Some(memory), ExpertPlacement::Cached(usize::MAX));
                        assert_eq!(p.shortfall, base.saturating_sub(gpu));
                        assert_eq!(p.layer_bytes + p.cache_bytes + p.ram, 26 * each);
                        assert_eq!(p.gpu, base + p.layer_bytes + p.cache_bytes + p.staging);
                        assert_eq!(p.gpu_layers, if base + 26 * each <= gpu { 26 } else { 0 }, "{p}");
                        assert_eq!(p.staging > 0, p.gpu_layers < 26 && base + arrive <= gpu, "{p}");
                        assert!(p.shortfall > 0 || p.gpu <= gpu);
                        let a_slot = 26 * each.div_ceil(256);
                        let kept = (gpu.saturating_sub(base + p.staging) / 8).min(KEPT);
                        assert!(p.gpu_layers == 26 || p.gpu + a_slot + 26 * 9 * 256 + kept > gpu, "{p}");
                        assert!(p.slots == 0 || p.gpu + kept <= gpu, "{p}");
                        assert!(p.cache_bytes >= p.slots as u64 * a_slot && p.slots < 256, "{p}");
                        assert_eq!(p.disk, p.ram.saturating_sub(memory));
                        assert_eq!(p.to_string().contains("from disk"), p.ram > memory, "{p}");
                        seen.insert((p.gpu_layers, p.slots));
                    }
                }
            }
        }
        assert!(seen.contains(&(0, 0)) && seen.contains(&(26, 0)) && seen.len() > 20, "{seen:?}");
    }

    /// The planned bytes of the expert cache equal its allocation on the device.
    #[test]
    fn the_expert_cache_takes_the_planned_bytes() {
        let d = requirements(Format::Q6_K, &params(4096, CacheFormat::F16));
        for budget in [0, 1 << 20, 3 << 30, 9 << 30] {
            let (slots, bytes) = d.slots_within(budget, usize::MAX);
            let taken = 26 * 3 * device_bytes(Format::Q6_K, slots as u64 * 1024 * 2304);
            assert!(
                taken <= bytes && bytes <= budget && bytes - taken <= 26 * 9 * 256,
                "{slots} slots: {taken} {bytes}"
            );
        }
        assert_eq!(d.slots_within(64 << 30, usize::MAX).0, 256);
        assert_eq!(d.slots_within(64 << 30, 7).0, 7);
    }

    /// Materialized attention doubles the batch and needs keys and values; a short context needs none.
    #[test]
    fn the_workspace_includes_materialized_attention() {
        let file = Preset::Real.metadata_only();
        let c = Config::from_gguf(&file).unwrap();
        let of_step = |tokens| 2 * MemoryEstimate::of(&c, tokens).workspace_bytes;
        assert_eq!(workspace(&c, 512, 1024), of_step(512));
        let made = workspace(&c, 512, 1 << 20) - of_step(1024);
        assert!((100 << 20..128 << 20).contains(&made), "{made}");
        assert!(workspace(&c, 512, 1600) < workspace(&c, 512, 4096));
        assert_eq!(workspace(&c, u64::MAX, u64::MAX), u64::MAX);
    }

    /// A batch that is not given is large where all experts fit beside it.
    #[test]
    fn the_default_batch_depends_on_the_gpu() {
        let mut file = Preset::Real.metadata_only();
        let (name, shape) = ("blk.1.ffn_up_exps.weight".to_owned(), vec![2304, 1024, 256]);
        file.tensors.push(TensorInfo { name, format: Format::Q4_K, shape, bytes: 0, offset: 0, file: 0 });
        let c = Config::from_gguf(&file).unwrap();
        let whole = |batch| {
            let params = LoadParams { batch: Some(batch), ..params(4096, CacheFormat::F16) };
            let requirements = Requirements::of(&file, &c, &params);
            requirements.without_experts() + requirements.experts.iter().sum::<u64>()
        };
        let (need, smaller) = (whole(2048) + KEPT, whole(512));
        let plan = |gpu, batch| {
            let params = LoadParams { batch, ..params(4096, CacheFormat::F16) };
            Placement::of(&file, &c, &params, gpu, None, ExpertPlacement::Cached(usize::MAX))
        };
        let found = |gpu, batch| (plan(gpu, batch).requirements.batch, plan(gpu, batch).ram > 0);
        assert_eq!([found(need, None), found(need - 1, None)], [(2048, false), (512, false)]);
        assert_eq!([found(smaller - 1, None), found(need, Some(100))], [(512, true), (100, false)]);
    }

    /// All combinations of GPU and RAM sizes, in GiB.
    fn cards_and_memories() -> impl Iterator<Item = (u64, u64)> {
        let memories = [4, 8, 16, 32, 64, 128];
        [2, 6, 8, 12, 16, 24, 48, 80, 141]
            .into_iter()
            .flat_map(move |gpu| memories.map(|memory| (gpu, memory)))
    }

    #[test]
    fn placements_of_the_real_model() {
        let d = requirements(Format::Q4_K, &params(1 << 20, CacheFormat::F16));
        assert_eq!((d.state, d.cache), (41_943_040 + 2_949_120, 8_064 << 20));
        assert_eq!(requirements(Format::Q4_K, &params(1000, CacheFormat::Q8_0)).cache, 1000 * 7 * 624);
        let all = Placement::plan(d.clone(), 141 << 30, None, ExpertPlacement::Cached(usize::MAX));
        assert_eq!((all.gpu_layers, all.ram, all.shortfall), (26, 0, 0));
        assert!(all.to_string().contains("of experts of 26 of 26 layers"), "{all}");
        let requested = Placement::plan(d.clone(), 141 << 30, None, ExpertPlacement::LayersInRam(20));
        assert_eq!((requested.gpu_layers, requested.ram), (6, 20 * d.experts[0]));
        assert!(requested.to_string().ends_with("of staging buffer for batches of 256 tokens and more"));
        let stack = device_bytes(Format::Q4_K, 256 * 1024 * 2304);
        assert_eq!((all.staging, requested.staging), (0, 2 * stack)); // blocks of one plane: the staging buffer is two stacks
        // A given number of layers has priority.
        let tight = d.without_experts() + 6 * d.experts[0] + stack;
        let [requested, free] = [ExpertPlacement::LayersInRam(20), ExpertPlacement::Cached(200)]
            .map(|policy| Placement::plan(d.clone(), tight, None, policy));
        assert_eq!(
            [(requested.gpu_layers, requested.staging), (free.gpu_layers, free.staging)],
            [(6, 0), (0, 2 * stack)]
        );
        assert_eq!(free.slots, 48); // an eighth of 17 stacks is left for snapshots
        assert!(free.to_string().contains("of the 48 most used of 256 experts of 26 layers"), "{free}");
        assert_eq!(Placement::plan(d.clone(), tight, None, ExpertPlacement::Cached(7)).slots, 7);
        let few =
            requirements(Format::Q4_K, &LoadParams { batch: Some(255), ..params(4096, CacheFormat::F16) });
        assert_eq!(Placement::plan(few, 24 << 30, None, ExpertPlacement::Cached(256)).staging, 0);
        assert_eq!(Placement::plan(d, 141 << 30, None, ExpertPlacement::LayersInRam(999)).gpu_layers, 0);
    }
}
