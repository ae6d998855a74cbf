//! The checks of one model: every kernel that it will use runs once, on small inputs in the model's formats and head sizes.
//!
//! A test (`tests/self_check.rs`) compares the kernels launched here with those of the model itself. Next:
//! [`super::ops`].

use super::fused::{
    DenseMlp, Each, FusedDelta, FusedMixture, FusedRouter, HeadMatmul, MixedMatmul, mixture_in_ram,
};
use super::ops::{
    Append, Attend, Conv, EXACT, Embed, Expanded, HALF, MatmulCheck, Norms, Op, Rotate, Rule, compare, judged,
};
use super::residual::{self, AppendNorm, ProductNorm};
use super::rng::TestRng;
use super::{CheckRow, best};
use kernels::backend::{CacheFormat, QuantTensor, Rope, Routing};
use kernels::cuda::Cuda;
use kernels::quant::Format;
use models::gguf::TensorInfo;
use models::gguf::read::Gguf;
use models::hybrid::config::{Config, MixerKind};
use std::collections::{BTreeMap, BTreeSet};

/// The formats of an MLP's matrices: gate, up, down.
type MlpFormats = [Format; 3];

/// The formats and sizes of a model's ops, from which its checks follow.
#[derive(Clone, Debug)]
pub struct KernelUse {
    pub config: Config,
    /// The data type of the KV cache.
    pub cache: CacheFormat,
    /// Whether some experts stay in RAM.
    pub experts_in_ram: bool,
    embed: BTreeSet<Format>,
    matrices: BTreeSet<Format>,
    /// Of the up-projections from the latent, keys and values.
    heads: BTreeSet<[Format; 2]>,
    routers: BTreeSet<Format>,
    mlps: BTreeSet<MlpFormats>,
    experts: BTreeSet<MlpFormats>,
}

/// Columns of matrices: a block of every format.
const COLS: usize = 256;
/// Inputs are the same on every machine.
const SEED: u64 = 1;
/// Rows of the logits whose largest values are selected: more than a block of `sample.cu` takes.
const LOGITS: usize = 4099;
/// Rows that several blocks append to a KV cache.
const APPENDED: usize = 70;

impl KernelUse {
    /// Collects the formats of a model file.
    pub fn of(file: &Gguf, config: Config, cache: CacheFormat, experts_in_ram: bool) -> KernelUse {
        let mut all = KernelUse {
            config,
            cache,
            experts_in_ram,
            embed: BTreeSet::new(),
            matrices: BTreeSet::new(),
            heads: BTreeSet::new(),
            routers: BTreeSet::new(),
            mlps: BTreeSet::new(),
            experts: BTreeSet::new(),
        };
        let is_tied = file.tensor("output.weight").is_none();
        for t in &file.tensors {
            match t.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
                Some((layer, name)) => all.add(file, layer, name, t),
                None if t.name == "token_embd.weight" => {
                    all.embed.insert(t.format);
                    if is_tied {
                        all.matrices.insert(t.format);
                    }
                }
                None if t.name == "output.weight" => drop(all.matrices.insert(t.format)),
                None => {}
            }
        }
        all
    }

    /// Adds the formats of a tensor of a layer, and of those that are used together with it.
    fn add(&mut self, file: &Gguf, layer: &str, name: &str, t: &TensorInfo) {
        let format = |name: &str| file.tensor(&format!("blk.{layer}.{name}")).map(|t| t.format);
        let other = |name: &str| format(name).unwrap_or(t.format);
        let mlp =
            |suffix: &str| ["gate", "up", "down"].map(|part| other(&format!("ffn_{part}{suffix}.weight")));
        match name {
            "ffn_gate_inp.weight" => drop(self.routers.insert(t.format)),
            "ffn_gate_exps.weight" => drop(self.experts.insert(mlp("_exps"))),
            "ffn_gate.weight" => drop(self.mlps.insert(mlp(""))),
            "ffn_gate_shexp.weight" => drop(self.mlps.insert(mlp("_shexp"))),
            "attn_k_b.weight" => drop(self.heads.insert([t.format, other("attn_v_b.weight")])),
            "attn_kv_b.weight" if format("attn_k_b.weight").is_none() => {
                // The keys are transposed when the tensor is split.
                let keys = if t.format.block_len() > 1 { Format::F32 } else { t.format };
                self.heads.insert([keys, t.format]);
            }
            _ if name.starts_with("attn_") || name.starts_with("ssm_") || name.starts_with("nextn.") => {
                let is_matrix = t.shape.iter().filter(|n| **n > 1).count() == 2;
                if is_matrix && !name.contains("conv") {
                    self.matrices.insert(t.format);
                }
            }
            _ => {}
        }
    }

    /// The formats of the stacks of routed experts: gate, up, down.
    pub fn experts(&self) -> impl Iterator<Item = [Format; 3]> {
        self.experts.iter().copied()
    }

    /// The formats of the routers' matrices.
    pub fn routers(&self) -> impl Iterator<Item = Format> {
        self.routers.iter().copied()
    }

    pub fn has(&self, kind: MixerKind) -> bool {
        self.config.count(kind) > 0
    }
}

/// A matrix of a model: its format, rows and columns.
pub type MatrixShape = (Format, [usize; 2]);

/// The matrices of a model that multiply one vector, with the number of each, without those of routed experts.
pub fn matrices(file: &Gguf) -> BTreeMap<MatrixShape, usize> {
    let mut all = BTreeMap::new();
    for t in &file.tensors {
        let name = t.name.as_str();
        let is_multiplied = name.ends_with(".weight")
            && (name == "output.weight" || name.starts_with("blk."))
            && !["conv", "_exps", "norm"].iter().any(|part| name.contains(part));
        let sizes: Vec<usize> = t.shape.iter().filter(|n| **n > 1).map(|n| *n as usize).collect();
        if is_multiplied && let [cols, rows] = sizes[..] {
            *all.entry((t.format, [rows, cols])).or_default() += 1;
        }
    }
    all
}

/// The checks of products at the sizes of the model's matrices, which those of [`checks`] do not have.
pub fn sized(file: &Gguf) -> Vec<Check> {
    let check = |(format, [rows, cols]): MatrixShape| {
        let (tokens, what) = (2, format!("matmul {} {cols} to {rows}", format.name()));
        Check::op(what, EXACT, move |n| {
            let (w, x) = (n.weight(format, [1, rows, cols]), n.levels(tokens * cols));
            MatmulCheck { w, x, tokens, heads: false }
        })
    };
    matrices(file).into_keys().map(check).collect()
}

/// What a check does on the device, with its name.
type CheckRun = Box<dyn Fn(&Cuda, String) -> CheckRow>;

/// One check, which creates its inputs when it runs.
pub struct Check {
    pub what: String,
    run: CheckRun,
}

impl Check {
    pub fn run(&self, cuda: &Cuda) -> CheckRow {
        (self.run)(cuda, self.what.clone())
    }

    /// A check of an op against the reference.
    fn op<O: Op>(what: String, tolerance: f32, op: impl Fn(&mut TestRng) -> O + 'static) -> Check {
        Check::new(what, move |cuda, what| compare(cuda, what, tolerance, &op(&mut TestRng::new(SEED))))
    }

    fn new(what: String, run: impl Fn(&Cuda, String) -> CheckRow + 'static) -> Check {
        Check { what, run: Box::new(run) }
    }
}

/// The checks of a model, those of kernels that others need first.
pub fn checks(u: &KernelUse) -> Vec<Check> {
    let mut all = rows(u);
    all.extend(products(u));
    if u.has(MixerKind::Kda) {
        all.extend(delta(u));
    }
    if u.has(MixerKind::Mla) {
        all.extend(latent_attention(u));
    }
    all.extend(feed_forward(u));
    for n in [1, 256] {
        all.push(Check::new(format!("top {n} of logits"), move |cuda, _| {
            let logits = TestRng::new(SEED).vec(2 * LOGITS);
            best::compare(cuda, "random", LOGITS, &logits, n)
        }));
    }
    all
}

fn rows(u: &KernelUse) -> Vec<Check> {
    let dim = u.config.kda.head_dim;
    let norms = move |n: &mut TestRng| {
        let (rows, cols) = (3, 4 * dim);
        let w = [n.vector(cols, -1.0, 1.0), n.vector(dim, -1.0, 1.0)];
        Norms { rows, cols, dim, x: n.vec(rows * cols), gate: n.vec(rows * cols), w }
    };
    let mut all = vec![Check::op("norms and elementwise ops".into(), EXACT, norms)];
    for format in u.embed.iter().copied() {
        all.push(Check::op(format!("embed {}", format.name()), EXACT, move |n| {
            Embed(n.weight(format, [1, 9, COLS]))
        }));
    }
    all
}

fn products(u: &KernelUse) -> Vec<Check> {
    let mut all = Vec::new();
    for format in u.matrices.iter().copied() {
        for tokens in [1, 3, 65] {
            all.push(Check::op(format!("matmul {}, {tokens} tokens", format.name()), EXACT, move |n| {
                let (w, x) = (n.weight(format, [1, 129, COLS]), n.levels(tokens * COLS));
                MatmulCheck { w, x, tokens, heads: false }
            }));
        }
        for tokens in [1, 3] {
            let what = format!("matmul_add_norm {}, {tokens} tokens", format.name());
            all.push(Check::op(what, EXACT, move |n| ProductNorm::new(n, format, tokens, [96, COLS])));
        }
        all.push(Check::op(format!("matmul_each {}, 1 token", format.name()), EXACT, move |n| {
            let w = [33, 100].map(|rows| n.weight(format, [1, rows, COLS]));
            Each { w, x: [(); 2].map(|()| n.levels(COLS)), tokens: 1 }
        }));
    }
    for (i, first) in u.matrices.iter().copied().enumerate() {
        for second in u.matrices.iter().copied().skip(i + 1) {
            for tokens in [1, 3] {
                let formats = [first, second];
                let what = format!("matmuls {}, {tokens} tokens", formats.map(Format::name).join(" "));
                all.push(Check::op(what, EXACT, move |n| MixedMatmul::new(n, formats, tokens, COLS)));
            }
        }
    }
    for format in u.heads.iter().flatten().copied().collect::<BTreeSet<_>>() {
        for tokens in [1, 3] {
            let what = format!("matmul_heads {}, {tokens} tokens", format.name());
            all.push(Check::op(what, EXACT, move |n| {
                let (w, out) = (n.weight(format, [2, 64, COLS]), n.weight(Format::Q8_0, [1, 9, 128]));
                HeadMatmul { w, out, x: n.levels(tokens * 2 * COLS), tokens }
            }));
        }
        let tokens = 66;
        all.push(Check::op(format!("matmul_heads {}, {tokens} tokens", format.name()), EXACT, move |n| {
            let w = n.weight(format, [2, 64, COLS]);
            let x = (0..tokens * 2).flat_map(|_| [n.levels(COLS), n.vec(64)].concat()).collect();
            MatmulCheck { w, x, tokens, heads: true }
        }));
    }
    all
}

fn delta(u: &KernelUse) -> Vec<Check> {
    let dim = u.config.kda.head_dim;
    let taps = |n: &mut TestRng, channels| QuantTensor {
        rows: channels,
        cols: 4,
        ..n.vector(4 * channels, -1.0, 1.0)
    };
    let conv = move |n: &mut TestRng| {
        let (lens, channels) = (vec![1, 70], 2 * dim);
        let (x, past) = (n.vec(71 * channels), n.vec(3 * channels));
        let decay = [n.vector(2, -16.0, 0.0), n.vector(channels, -40.0, 100.0)];
        Conv { lens, channels, x, past, taps: taps(n, channels), decay }
    };
    let mut all = vec![Check::op("short_conv and kda_decay".into(), EXACT, conv)];
    for sequences in [1, 3] {
        all.push(Check::op(format!("delta_attention, {sequences} sequences"), EXACT, move |n| {
            let (heads, channels) = (2, 2 * dim);
            let cols = [channels, channels, channels, channels, heads, channels];
            FusedDelta {
                lens: vec![1; sequences],
                heads,
                dim,
                x: cols.map(|cols| n.vec(sequences * cols)),
                s: n.vec(channels * dim),
                past: [(); 3].map(|()| n.vec(3 * channels)),
                taps: [(); 3].map(|()| taps(n, channels)),
                vectors: [
                    n.vector(heads, -16.0, 0.0),
                    n.vector(channels, -40.0, 100.0),
                    n.vector(dim, -1.0, 1.0),
                ],
                out: n.weight(if channels % 32 == 0 { Format::Q8_0 } else { Format::F32 }, [1, 8, channels]),
            }
        }));
    }
    all.push(Check::op("delta_rule, 3 and 70 tokens".into(), EXACT, move |n| {
        let (tokens, heads) = (73, 2);
        let [q, k] = [(); 2].map(|()| n.unit_rows(tokens * heads, dim));
        let g = (0..tokens * heads * dim).map(|_| -n.uniform(0.0, 1.0)).collect();
        let (v, beta) = (n.vec(tokens * heads * dim), (0..tokens * heads).map(|_| 0.5).collect());
        Rule { lens: vec![3, 70], heads, dim, x: [q, k, v, g, beta], s: n.vec(heads * dim * dim) }
    }));
    all
}

fn latent_attention(u: &KernelUse) -> Vec<Check> {
    let (m, format, width) = (u.config.mla.clone(), u.cache, u.config.cache_width());
    let (heads, values) = (m.heads, m.latent_dim);
    let tolerance = if format == CacheFormat::F32 { EXACT } else { HALF };
    let mut all = Vec::new();
    // Each kernel alone before it is used with others: rows of one block, rows of several blocks, queries that read a cache at
    // once, and one query that splits it into parts, which are merged.
    for lens in [[1, 1], [APPENDED, 1]] {
        all.push(Check::op(format!("append {} rows {format:?}", lens[0]), EXACT, move |n| Append {
            format,
            width,
            lens,
            rows: n.vec((lens[0] + lens[1]) * width),
        }));
    }
    all.push(Check::op(format!("append_norm {format:?}"), residual::tolerance(format), move |n| {
        AppendNorm { format, width, rows: n.vec(4 * width), norm: n.vector(values, -1.0, 1.0) }
    }));
    for (what, ends) in [("latent attention", vec![1, 34, 100]), ("split latent attention", vec![300, 301])] {
        all.push(Check::op(format!("{what} {format:?}"), tolerance, move |n| {
            let tokens = ends[ends.len() - 1];
            let (rows, scale, ends) = (n.vec(tokens * width), 192_f32.powf(-0.5), ends.clone());
            Attend { format, heads, width, values, scale, ends, rows, q: n.vec(tokens * heads * width) }
        }));
    }
    let rope = Rope { heads: 2, dims: m.pe_dim, base: 1e4 };
    if m.pe_dim > 0 && m.pe_dim % 2 == 0 {
        all.push(Check::op(format!("rotate {format:?}"), EXACT, move |n| {
            let (past, q, kv) = (n.vec(5 * width), n.vec(3 * 2 * width), n.vec(3 * width));
            Rotate { format, width, rope, past, q, kv }
        }));
    }
    for formats in u.heads.iter().copied() {
        let (m, names) = (m.clone(), formats.map(Format::name).join(" "));
        all.push(Check::op(format!("materialized attention {format:?}, {names}"), HALF, move |n| {
            let (heads, latent, past, tokens) = (2, m.latent_dim, 127, 65);
            let [k, v] =
                [(formats[0], [heads, latent, m.nope_dim]), (formats[1], [heads, m.value_dim, latent])]
                    .map(|(format, shape)| n.weight(format, shape));
            let rows = n.vec((past + tokens) * width);
            let q = n.vec(tokens * heads * (m.nope_dim + m.pe_dim)).iter().map(|q| q * 0.5).collect();
            Expanded { format, w: [k, v], past: vec![past], lens: vec![tokens], width, rows, q }
        }));
    }
    all
}

fn routers(u: &KernelUse) -> Vec<Check> {
    let mut all = Vec::new();
    let Routing { top_k, groups, top_groups, .. } = u.config.moe.routing;
    let experts = u.config.moe.experts;
    let how = Routing { top_k, groups, top_groups, normalize: true, scale: 2.446 };
    for format in u.routers.iter().copied() {
        for tokens in [1, 9] {
            let what = format!("matmul_route {}, {tokens} tokens", format.name());
            all.push(Check::op(what, EXACT, move |n| {
                let (router, bias) = (n.weight(format, [1, experts, COLS]), n.vector(experts, -0.1, 0.1));
                FusedRouter { router, bias, x: n.vec(tokens * COLS), tokens, how }
            }));
        }
    }
    all
}

fn feed_forward(u: &KernelUse) -> Vec<Check> {
    let mut all = routers(u);
    let names = |formats: &MlpFormats| formats.map(Format::name).join(" ");
    for formats in u.mlps.iter().copied() {
        for tokens in [1, 3, 20] {
            all.push(Check::new(format!("MLP {}, {tokens} tokens", names(&formats)), move |cuda, what| {
                let n = &mut TestRng::new(SEED);
                let w = formats.map(|format| n.weight(format, [1, COLS, COLS]));
                let op = DenseMlp { w, x: n.levels(tokens * COLS), tokens };
                // An int8 value may round differently at a half.
                judged(what, HALF, &op.expected(), &op.run(cuda))
            }));
        }
    }
    for formats in u.experts.union(&u.mlps).copied() {
        for tokens in [1, 3] {
            let what = format!("mixture_add_norm {}, {tokens} tokens", names(&formats));
            all.push(Check::new(what, move |cuda, what| {
                let shape = [tokens, COLS, COLS];
                residual::feed_forward(cuda, &mut TestRng::new(SEED), what, formats, shape)
            }));
        }
    }
    for formats in u.experts.iter().copied() {
        for tokens in [1, 3, 20] {
            let what = format!("experts {}, {tokens} tokens", names(&formats));
            all.push(Check::new(what, move |cuda, what| {
                let op = mixture(&mut TestRng::new(SEED), formats, tokens);
                judged(what, HALF, &op.expected(), &op.run(cuda))
            }));
        }
    }
    if u.experts_in_ram {
        all.push(Check::new("experts in RAM".into(), |cuda, _| {
            mixture_in_ram(cuda, &mut TestRng::new(SEED))
        }));
    }
    all
}

/// A few experts, and a shared one of the same formats.
fn mixture(n: &mut TestRng, formats: MlpFormats, tokens: usize) -> FusedMixture {
    let (experts, top_k) = (6, 3);
    let mut stack = |count| formats.map(|format| n.weight(format, [count, COLS, COLS]));
    let (routed, shared) = (stack(experts), Some(stack(1)));
    FusedMixture {
        experts: routed,
        shared,
        bias: n.vector(experts, -0.1, 0.1),
        logits: (0..tokens * experts).map(|_| n.uniform(-4.0, 4.0)).collect(),
        x: n.levels(tokens * COLS),
        tokens,
        times: 1,
        how: Routing { top_k, groups: 1, top_groups: 1, normalize: true, scale: 2.446 },
    }
}
