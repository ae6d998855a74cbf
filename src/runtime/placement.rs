//! What of a model goes where: all that is not a routed expert on the GPU, and all experts, if they fit beside it. Else of
//! each layer as many experts as fit, those used most; the rest in RAM, where the CPU computes them for few tokens; for many
//! they travel to the GPU, if it has room for that.
//!
//! Planned from sizes alone, before anything is loaded, so that out of memory is foreseen and not met. It knows no
//! backend. Next: `device`, which asks for a plan.

use crate::runtime::attention_path::{MATERIALIZE_AFTER, MATERIALIZED_BATCH_FACTOR};
use crate::runtime::memory_estimate::MemoryEstimate;
use kernels::backend::CacheFormat;
use kernels::cuda::{
    Heads, LARGE_STACK_WEIGHTS, UPLOAD_MIN_TOKENS, device_bytes, expanding_bytes, room_and_planes,
    staging_bytes,
};
use models::gguf::read::Gguf;
use models::kimi_linear::config::{Config, MixerKind};
use std::fmt;

/// What the driver keeps for itself: its context, the compiled kernels, fragmentation.
const RESERVE: u64 = 512 << 20;
/// Of the room for experts, what is left to snapshots where not all fit: an eighth, and at most this.
const KEPT: u64 = 1 << 30;
/// Tokens of context that are planned for where none are asked for.
const USUAL_CONTEXT: u64 = 131_072;

/// What a model takes, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Requirements {
    /// All weights but routed experts.
    pub base: u64,
    /// The routed experts of each layer that has them.
    pub experts: Vec<u64>,
    /// ExpertPlacement of a layer.
    pub of_layer: u64,
    /// [`room_and_planes`] of the largest stacks: where experts in RAM arrive, if a step has tokens enough for that.
    pub arriving: Option<[u64; 2]>,
    /// What a sequence has whatever its length.
    pub state: u64,
    /// Tokens of context that are planned for.
    pub context: u64,
    /// Their latent cache.
    pub cache: u64,
    /// Activations of a batch: an estimate.
    pub workspace: u64,
}

/// What is asked for beside the model.
#[derive(Clone, Copy, Debug)]
pub struct LoadParams {
    /// Tokens of context, if a number was asked for.
    pub context: Option<u64>,
    /// How latent rows are kept.
    pub cache: CacheFormat,
    /// Tokens of a prompt processed together.
    pub batch: u64,
}

/// Which experts are to be on the GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ExpertPlacement {
    /// All, or as many of each layer as fit, but not more than so many.
    Cached(usize),
    /// Those of whole layers, the first ones, as many as fit, but for so many layers.
    LayersInRam(usize),
}

/// A plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// What it is of.
    pub requirements: Requirements,
    /// Layers whose experts are all on the GPU: the first ones.
    pub gpu_layers: usize,
    /// Bytes of their experts.
    pub whole: u64,
    /// ExpertPlacement of each other layer that are on the GPU: those used most.
    pub slots: usize,
    /// Bytes of these.
    pub hot: u64,
    /// Bytes of the room in which the others arrive; 0 where there are none, or no room.
    pub staging: u64,
    /// Bytes on the GPU in all.
    pub gpu: u64,
    /// Bytes of experts that are in RAM alone.
    pub ram: u64,
    /// Of these, bytes that the RAM has no room for: they are read from disk again and again.
    pub disk: u64,
    /// Bytes the GPU has too little for what has to be on it; 0 where the plan can be run.
    pub shortfall: u64,
}

impl Requirements {
    /// Of a file, with the context and the batch asked for.
    pub fn of(file: &Gguf, c: &Config, params: &LoadParams) -> Requirements {
        let context = params.context.unwrap_or(USUAL_CONTEXT).min(c.context);
        let (arriving, experts) = (None, Vec::new());
        let of_layer = c.moe.experts as u64;
        let mut requirements =
            Requirements { base: 0, experts, of_layer, arriving, state: 0, context, cache: 0, workspace: 0 };
        let mut layers = std::collections::BTreeMap::<u64, u64>::new();
        let mut arriving = [0_u64; 2];
        for t in &file.tensors {
            let bytes = device_bytes(t.format, t.shape.iter().product());
            let layer = t.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
            let large = t.shape.iter().product::<u64>() >= LARGE_STACK_WEIGHTS;
            match layer.filter(|_| large && t.name.contains("_exps.")) {
                Some(layer) => {
                    *layers.entry(layer).or_default() += bytes;
                    let stack = room_and_planes(t.format, t.shape.iter().product());
                    arriving = [0, 1].map(|i| arriving[i].max(stack[i]));
                }
                None => requirements.base += bytes,
            }
        }
        requirements.experts = layers.into_values().collect();
        requirements.arriving = (params.batch >= UPLOAD_MIN_TOKENS as u64).then_some(arriving);
        let need = MemoryEstimate::of(c, params.batch);
        requirements.state = need.kda_state_bytes.saturating_add(need.conv_bytes);
        let row = c.cache_width() as u64;
        let row = match params.cache {
            CacheFormat::F32 => 4 * row,
            CacheFormat::F16 => 2 * row,
            CacheFormat::Q8_0 => row.div_ceil(32) * 34,
        };
        let rows = (c.count(MixerKind::Mla) as u64).saturating_mul(row.next_multiple_of(16));
        requirements.cache = rows.saturating_mul(context);
        requirements.workspace = workspace(c, params.batch, context);
        requirements
    }

    /// All but experts.
    fn without_experts(&self) -> u64 {
        let parts = [self.base, self.state, self.cache, self.workspace, RESERVE];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// ExpertPlacement of each layer that fit so many bytes, at most `most`, and what they take.
    fn slots_within(&self, room: u64, most: usize) -> (usize, u64) {
        let each = self.experts.iter().map(|bytes| bytes.div_ceil(self.of_layer.max(1)));
        let each = each.fold(0, u64::saturating_add).max(1);
        // Planes of three stacks a layer begin at multiples of 256 bytes.
        let aligned = self.experts.len() as u64 * 3 * 3 * 256;
        let slots = (room.saturating_sub(aligned) / each).min(self.of_layer).min(most as u64);
        (slots as usize, if slots > 0 { slots * each + aligned } else { 0 })
    }
}

/// Activations of a step, the longest that the context lets be: far inside a long text steps are longer, and keys and values
/// are made.
fn workspace(c: &Config, batch: u64, context: u64) -> u64 {
    let far = context.saturating_sub(MATERIALIZE_AFTER as u64);
    let step = batch.max(batch.saturating_mul(MATERIALIZED_BATCH_FACTOR as u64).min(far));
    let m = &c.mla;
    let (count, nope, pe) = (m.heads, m.nope_dim, m.pe_dim);
    let heads = Heads { count, nope, pe, latent: m.latent_dim, value_dim: m.value_dim };
    let expands = far > 0 && c.count(MixerKind::Mla) > 0;
    let made = if expands { expanding_bytes(&heads, context, step) } else { 0 };
    // Activations are on the device as floats and as bytes; buffers are up to a quarter larger than what is in them.
    MemoryEstimate::of(c, step)
        .workspace_bytes
        .saturating_mul(2)
        .saturating_add(made)
        .saturating_add(made / 4)
}

impl Placement {
    /// The plan for `gpu` free bytes there, and `memory` in RAM if that is known.
    pub fn plan(
        requirements: Requirements,
        gpu: u64,
        memory: Option<u64>,
        wanted: ExpertPlacement,
    ) -> Placement {
        let (base, all) = (requirements.without_experts(), requirements.experts.len());
        let room = gpu.saturating_sub(base);
        let arriving = requirements.arriving.map(staging_bytes).filter(|bytes| *bytes <= room);
        let within = |most: usize, room: u64| layers_within(&requirements.experts[..most], room);
        let (mut staging, mut slots, mut hot) = (0, 0, 0);
        let (gpu_layers, whole) = match wanted {
            ExpertPlacement::LayersInRam(others) => {
                // A number that was asked for comes before the room in which the others arrive.
                let most = all - others.min(all);
                let asked = within(most, room);
                let beside = |bytes: &u64| asked.0 < all && within(most, room - bytes) == asked;
                staging = arriving.filter(beside).unwrap_or(0);
                asked
            }
            ExpertPlacement::Cached(_) if within(all, room).0 == all => within(all, room),
            ExpertPlacement::Cached(most) => {
                staging = arriving.unwrap_or(0);
                let rest = room - staging;
                (slots, hot) = requirements.slots_within(rest - (rest / 8).min(KEPT), most);
                (0, 0)
            }
        };
        let ram =
            requirements.experts.iter().copied().fold(0, u64::saturating_add).saturating_sub(whole + hot);
        let disk = memory.map_or(0, |memory| ram.saturating_sub(memory));
        let gpu_bytes = [base, whole, hot, staging].into_iter().fold(0, u64::saturating_add);
        let shortfall = base.saturating_sub(gpu);
        Placement {
            gpu_layers,
            whole,
            slots,
            hot,
            staging,
            gpu: gpu_bytes,
            ram,
            disk,
            shortfall,
            requirements,
        }
    }
}

/// The first layers that fit so many bytes, and what they take.
fn layers_within(experts: &[u64], room: u64) -> (usize, u64) {
    let sums = experts.iter().scan(0, |sum: &mut u64, bytes| {
        *sum = sum.saturating_add(*bytes);
        Some(*sum)
    });
    let fitting = sums.take_while(|sum| *sum <= room).enumerate().last();
    fitting.map_or((0, 0), |(last, bytes)| (last + 1, bytes))
}

/// `GPU 21.3 of ... GiB`: one line for people.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let Requirements { base, experts, of_layer, state, context, cache, workspace, .. } =
            &self.requirements;
        write!(f, "{:.2} GiB on the GPU: {:.2} of weights", gib(self.gpu), gib(*base))?;
        let (on_gpu, layers) = (gib(self.whole + self.hot), experts.len());
        match self.slots {
            _ if layers == 0 => {}
            0 => write!(f, ", {on_gpu:.2} of experts of {} of {layers} layers", self.gpu_layers)?,
            slots => {
                write!(f, ", {on_gpu:.2} of the {slots} most used of {of_layer} experts of {layers} layers")?
            }
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
            write!(
                f,
                ", which has no room for {:.2} of them: they are read from disk again and again",
                gib(self.disk)
            )?;
        }
        if self.staging > 0 {
            write!(
                f,
                "; {:.2} GiB of the GPU is where these arrive for {UPLOAD_MIN_TOKENS} tokens and more",
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

    /// The tensors of the real model in one format for experts and one for the rest: 26 layers of 256 experts.
    fn requirements(experts: Format, params: &LoadParams) -> Requirements {
        let file = Preset::Real.metadata_only();
        let mut d = Requirements::of(&file, &Config::from_gguf(&file).unwrap(), params);
        d.experts = vec![3 * device_bytes(experts, 256 * 1024 * 2304); 26];
        d.arriving = d.arriving.and(Some(room_and_planes(experts, 256 * 1024 * 2304)));
        d.base = device_bytes(Format::Q6_K, 3_800_000_000 / 256 * 256);
        d
    }

    fn params(context: u64, cache: CacheFormat) -> LoadParams {
        LoadParams { context: Some(context), cache, batch: 512 }
    }

    /// Over cards, memories, contexts, caches and formats: what is planned fits, one expert a layer more would not, nothing is
    /// lost, and what no memory has room for is said.
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
                        let arrive = staging_bytes(d.arriving.unwrap());
                        let p = Placement::plan(d, gpu, Some(memory), ExpertPlacement::Cached(usize::MAX));
                        assert_eq!(p.shortfall, base.saturating_sub(gpu));
                        assert_eq!(p.whole + p.hot + p.ram, 26 * each);
                        assert_eq!(p.gpu, base + p.whole + p.hot + p.staging);
                        assert_eq!(p.gpu_layers, if base + 26 * each <= gpu { 26 } else { 0 }, "{p}");
                        assert_eq!(p.staging > 0, p.gpu_layers < 26 && base + arrive <= gpu, "{p}");
                        assert!(p.shortfall > 0 || p.gpu <= gpu);
                        let a_slot = 26 * each.div_ceil(256);
                        let kept = (gpu.saturating_sub(base + p.staging) / 8).min(KEPT);
                        assert!(p.gpu_layers == 26 || p.gpu + a_slot + 26 * 9 * 256 + kept > gpu, "{p}");
                        assert!(p.slots == 0 || p.gpu + kept <= gpu, "{p}");
                        assert!(p.hot >= p.slots as u64 * a_slot && p.slots < 256, "{p}");
                        assert_eq!(p.disk, p.ram.saturating_sub(memory));
                        assert_eq!(p.to_string().contains("from disk"), p.ram > memory, "{p}");
                        seen.insert((p.gpu_layers, p.slots));
                    }
                }
            }
        }
        assert!(seen.contains(&(0, 0)) && seen.contains(&(26, 0)) && seen.len() > 20, "{seen:?}");
    }

    /// What is counted for slots is what they take on the device.
    #[test]
    fn slots_take_what_was_counted() {
        let d = requirements(Format::Q6_K, &params(4096, CacheFormat::F16));
        for room in [0, 1 << 20, 3 << 30, 9 << 30] {
            let (slots, bytes) = d.slots_within(room, usize::MAX);
            let taken = 26 * 3 * device_bytes(Format::Q6_K, slots as u64 * 1024 * 2304);
            assert!(
                taken <= bytes && bytes <= room && bytes - taken <= 26 * 9 * 256,
                "{slots} slots: {taken} {bytes}"
            );
        }
        assert_eq!(d.slots_within(64 << 30, usize::MAX).0, 256);
        assert_eq!(d.slots_within(64 << 30, 7).0, 7);
    }

    /// Steps far inside a long text are twice as long and make keys and values; a short context has none.
    #[test]
    fn the_workspace_of_long_texts_is_foreseen() {
        let file = Preset::Real.metadata_only();
        let c = Config::from_gguf(&file).unwrap();
        let of_step = |tokens| 2 * MemoryEstimate::of(&c, tokens).workspace_bytes;
        assert_eq!(workspace(&c, 512, 1024), of_step(512));
        let made = workspace(&c, 512, 1 << 20) - of_step(1024);
        assert!((100 << 20..128 << 20).contains(&made), "{made}");
        assert!(workspace(&c, 512, 1600) < workspace(&c, 512, 4096));
        assert_eq!(workspace(&c, u64::MAX, u64::MAX), u64::MAX);
    }

    /// Each with each, in GiB.
    fn cards_and_memories() -> impl Iterator<Item = (u64, u64)> {
        let memories = [4, 8, 16, 32, 64, 128];
        [2, 6, 8, 12, 16, 24, 48, 80, 141]
            .into_iter()
            .flat_map(move |gpu| memories.map(|memory| (gpu, memory)))
    }

    #[test]
    fn what_the_real_model_takes() {
        let d = requirements(Format::Q4_K, &params(1 << 20, CacheFormat::F16));
        assert_eq!((d.state, d.cache), (41_943_040 + 2_949_120, 8_064 << 20));
        assert_eq!(requirements(Format::Q4_K, &params(1000, CacheFormat::Q8_0)).cache, 1000 * 7 * 624);
        let all = Placement::plan(d.clone(), 141 << 30, None, ExpertPlacement::Cached(usize::MAX));
        assert_eq!((all.gpu_layers, all.ram, all.shortfall), (26, 0, 0));
        assert!(all.to_string().contains("of experts of 26 of 26 layers"), "{all}");
        let asked = Placement::plan(d.clone(), 141 << 30, None, ExpertPlacement::LayersInRam(20));
        assert_eq!((asked.gpu_layers, asked.ram), (6, 20 * d.experts[0]));
        assert!(asked.to_string().ends_with("of the GPU is where these arrive for 256 tokens and more"));
        let stack = device_bytes(Format::Q4_K, 256 * 1024 * 2304);
        assert_eq!((all.staging, asked.staging), (0, 2 * stack)); // blocks of one plane: two rooms are all
        // A number that was asked for comes first.
        let tight = d.without_experts() + 6 * d.experts[0] + stack;
        let [asked, free] = [ExpertPlacement::LayersInRam(20), ExpertPlacement::Cached(200)]
            .map(|wanted| Placement::plan(d.clone(), tight, None, wanted));
        assert_eq!(
            [(asked.gpu_layers, asked.staging), (free.gpu_layers, free.staging)],
            [(6, 0), (0, 2 * stack)]
        );
        assert_eq!(free.slots, 48); // an eighth of 17 stacks is left to snapshots
        assert!(free.to_string().contains("of the 48 most used of 256 experts of 26 layers"), "{free}");
        assert_eq!(Placement::plan(d.clone(), tight, None, ExpertPlacement::Cached(7)).slots, 7);
        let few = requirements(Format::Q4_K, &LoadParams { batch: 255, ..params(4096, CacheFormat::F16) });
        assert_eq!(Placement::plan(few, 24 << 30, None, ExpertPlacement::Cached(256)).staging, 0);
        assert_eq!(Placement::plan(d, 141 << 30, None, ExpertPlacement::LayersInRam(999)).gpu_layers, 0);
    }
}
