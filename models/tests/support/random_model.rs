//! Random small models of odd shapes, many of them broken. Each must be refused with a one-line error, or run with logits that
//! agree with the `reference` backend's. A seed gives the same model on every machine.
//!
//! Rounded activations may flip a sign, and with it the logits: the norm of one channel is a sign, and a KDA head's output for
//! a first token is beta (k . q) v, of which the norm leaves the sign of k . q. Logits that differ from the reference's for
//! that reason agree with those of [`Rounded`], which rounds the same activations. In F32 a sum that nearly cancels before such a
//! norm does the same: there the reference's logits themselves change as much with the last bit of the weights.

#[path = "../../../kernels/tests/common/random.rs"]
mod random;
#[path = "random_ling.rs"]
mod random_ling;
mod rounded;

use bytes::Bytes;
use kernels::backend::{Backend, CacheFormat};
use kernels::quant::Format;
use kernels::reference::Reference;
use models::gguf::read::Gguf;
use models::gguf::write::Layout;
use models::gguf::{Array, Metadata, Value};
use models::hybrid::mla::MlaPath;
use models::hybrid::state::State;
use models::hybrid::{Model, Outputs, Sequence};
use random::Random;
use random_ling::LingShape;
use rounded::Rounded;

/// The largest relative error (RMS of the difference over RMS of the logits) with F32 weights and cache: rounding.
const EXACT: f64 = 2e-5;
/// Units in the last place of the weights that the rounding of sums amounts to, at most, where F32 logits exceed [`EXACT`].
const ROUNDINGS: f64 = 8.0;
/// The same with activations or cache rows rounded to 16 or 8 bits, through up to three layers. A misread shape gives 1.4:
/// uncorrelated logits.
const ROUNDED: f64 = 0.2;
/// The largest relative error against [`Rounded`], for models that exceed that limit: sums in another order move single
/// quants by one, which gives up to 0.015 in 1200 models.
const SAME_ROUNDING: f64 = 0.05;
/// The longest error line: path, place, expected and found, of 200 bytes each, and the words between them.
const MAX_LINE: usize = 800;

impl Random {
    fn within(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A draw from about the standard normal distribution.
    fn normal(&mut self) -> f32 {
        let unit = |n: u64| (n >> 40) as f32 / (1 << 24) as f32;
        let sum: f32 = (0..6).map(|_| unit(self.next())).sum();
        (sum - 3.0) * 2f32.sqrt()
    }

    /// A width: 1, odd, or whole blocks of the formats.
    fn width(&mut self, most: usize) -> usize {
        let n = match self.below(10) {
            0 => 1,
            1..5 => self.one_of(&[32, 64, 96, 128, 160]),
            5 => 256,
            _ => self.within(2, 70),
        };
        n.min(most)
    }
}

/// The random hyperparameters of a model.
struct ModelShape {
    dim: usize,
    vocab: usize,
    mla: Vec<bool>,
    heads: usize,
    kda_heads: usize,
    head_dim: usize,
    taps: usize,
    latent: usize,
    pe: usize,
    nope: usize,
    value: usize,
    dense_layers: usize,
    dense_hidden: usize,
    experts: usize,
    groups: usize,
    top_groups: usize,
    top_k: usize,
    hidden: usize,
    shared: usize,
    /// What only Ling has; None for Kimi Linear.
    ling: Option<LingShape>,
}

impl ModelShape {
    fn new(r: &mut Random) -> ModelShape {
        let n_layers = r.within(1, 3);
        let many = r.chance(8);
        let experts = if many { r.one_of(&[257, 288, 320, 512, 1024, 1100]) } else { r.within(1, 20) };
        let wide = if many { 32 } else { 256 };
        let groups = r.one_of(&[1, 1, 1, 2, 3, 4, experts]);
        let groups = if experts % groups == 0 { groups } else { 1 };
        let top_groups = r.within(1, groups);
        let top_k = r.within(1, experts / groups * top_groups).min(if r.chance(95) { 8 } else { usize::MAX });
        ModelShape {
            dim: r.width(wide),
            vocab: r.within(1, 90),
            mla: (0..n_layers).map(|_| r.chance(50)).collect(),
            heads: r.within(1, 5),
            kda_heads: r.within(1, 5),
            head_dim: r.width(160),
            taps: if r.chance(90) { r.within(1, 6) } else { r.within(7, 20) },
            latent: if r.chance(5) { r.one_of(&[512, 544]) } else { r.width(256) },
            pe: if r.chance(15) { 0 } else { r.width(64) },
            nope: r.width(128),
            value: r.width(128),
            dense_layers: r.within(0, n_layers),
            dense_hidden: r.width(256),
            experts,
            groups,
            top_groups,
            top_k,
            hidden: r.width(wide),
            shared: r.within(0, 2),
            ling: None,
        }
    }

    /// A shape of the architecture `bailingmoe3`.
    fn ling(r: &mut Random) -> ModelShape {
        let shape = ModelShape::new(r);
        let ling = LingShape::new(r, shape.mla.len());
        let pe = if r.chance(95) { shape.pe / 2 * 2 } else { shape.pe };
        ModelShape { kda_heads: shape.heads, pe, shared: 1, ling: Some(ling), ..shape }
    }

    fn predicts(&self) -> bool {
        self.ling.as_ref().is_some_and(|ling| ling.mtp)
    }

    /// Whether each layer, and the block after them, is MLA.
    fn blocks(&self) -> Vec<bool> {
        [&self.mla[..], if self.predicts() { &[true] } else { &[] }].concat()
    }

    fn metadata(&self, r: &mut Random) -> Metadata {
        let kinds = self.blocks().into_iter().map(i32::from).collect();
        let architecture = if self.ling.is_some() { "bailingmoe3" } else { "kimi-linear" };
        let mut all = vec![
            ("general.architecture".into(), Value::String(architecture.into())),
            ("tokenizer.ggml.model".into(), Value::String("none".into())),
        ];
        let mut set = |key: &str, value| all.push((format!("{architecture}.{key}"), value));
        set("attention.head_count_kv", Value::Array(Array::I32(kinds)));
        set("attention.layer_norm_rms_epsilon", Value::F32(r.one_of(&[1e-6, 1e-5, 1e-3])));
        set("expert_weights_scale", Value::F32(r.one_of(&[1.0, 2.446])));
        set("expert_weights_norm", Value::Bool(r.chance(70)));
        for (key, n) in [
            ("block_count", self.blocks().len()),
            ("context_length", 4096),
            ("vocab_size", self.vocab),
            ("embedding_length", self.dim),
            ("attention.head_count", self.heads),
            ("kda.head_count", self.kda_heads),
            ("kda.head_dim", self.head_dim),
            ("ssm.conv_kernel", self.taps),
            ("attention.kv_lora_rank", self.latent),
            ("rope.dimension_count", self.pe),
            ("attention.key_length", self.latent + self.pe),
            ("attention.key_length_mla", self.nope + self.pe),
            ("attention.value_length_mla", self.value),
            ("leading_dense_block_count", self.dense_layers),
            ("feed_forward_length", self.dense_hidden),
            ("expert_count", self.experts),
            ("expert_group_count", self.groups),
            ("expert_group_used_count", self.top_groups),
            ("expert_used_count", self.top_k),
            ("expert_feed_forward_length", self.hidden),
            ("expert_shared_count", self.shared),
            ("expert_gating_func", 2),
        ] {
            set(key, Value::U32(n as u32));
        }
        if let Some(ling) = &self.ling {
            ling.metadata(&mut set);
        }
        Metadata(all)
    }

    /// Name and shape of every tensor, and whether it must be F32.
    fn tensors(&self) -> Vec<(String, Vec<usize>, bool)> {
        let mut all = vec![
            ("token_embd.weight".to_owned(), vec![self.dim, self.vocab], false),
            ("output_norm.weight".to_owned(), vec![self.dim], true),
            ("output.weight".to_owned(), vec![self.dim, self.vocab], false),
        ];
        if self.ling.as_ref().is_some_and(|ling| ling.tied) {
            all.pop();
        }
        for (layer, mla) in self.blocks().into_iter().enumerate() {
            let mut add = |name: &str, shape: &[usize], f32| {
                all.push((format!("blk.{layer}.{name}"), shape.to_vec(), f32));
            };
            add("attn_norm.weight", &[self.dim], true);
            add("ffn_norm.weight", &[self.dim], true);
            if mla {
                self.mla_tensors(&mut add)
            } else {
                self.kda_tensors(&mut add)
            }
            if let Some(ling) = self.ling.as_ref().filter(|_| layer == self.mla.len()) {
                ling.mtp_tensors(self.dim, &mut add);
            }
            if layer < self.dense_layers {
                self.mlp(
                    ["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"],
                    self.dense_hidden,
                    &mut add,
                );
                continue;
            }
            add("ffn_gate_inp.weight", &[self.dim, self.experts], false);
            add("exp_probs_b.bias", &[self.experts], true);
            for (name, [cols, rows]) in [
                ("ffn_gate_exps.weight", [self.dim, self.hidden]),
                ("ffn_up_exps.weight", [self.dim, self.hidden]),
                ("ffn_down_exps.weight", [self.hidden, self.dim]),
            ] {
                add(name, &[cols, rows, self.experts], false);
            }
            if self.shared > 0 {
                let names = ["ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"];
                let hidden = self.ling.as_ref().map_or(self.shared * self.hidden, |ling| ling.shared_hidden);
                self.mlp(names, hidden, &mut add);
            }
        }
        all
    }

    fn mlp(&self, [gate, up, down]: [&str; 3], hidden: usize, add: &mut dyn FnMut(&str, &[usize], bool)) {
        add(gate, &[self.dim, hidden], false);
        add(up, &[self.dim, hidden], false);
        add(down, &[hidden, self.dim], false);
    }

    fn mla_tensors(&self, add: &mut dyn FnMut(&str, &[usize], bool)) {
        let width = self.heads * (self.nope + self.pe);
        match &self.ling {
            Some(ling) => ling.mla_tensors([self.dim, width, self.heads], add),
            None => add("attn_q.weight", &[self.dim, width], false),
        }
        add("attn_kv_a_mqa.weight", &[self.dim, self.latent + self.pe], false);
        add("attn_kv_a_norm.weight", &[self.latent], true);
        add("attn_k_b.weight", &[self.nope, self.latent, self.heads], false);
        add("attn_v_b.weight", &[self.latent, self.value, self.heads], false);
        add("attn_output.weight", &[self.heads * self.value, self.dim], false);
    }

    fn kda_tensors(&self, add: &mut dyn FnMut(&str, &[usize], bool)) {
        let (dim, d, width) = (self.dim, self.head_dim, self.kda_heads * self.head_dim);
        for name in ["q", "k", "v"] {
            add(&format!("attn_{name}.weight"), &[dim, width], false);
            add(&format!("ssm_conv1d_{name}.weight"), &[self.taps, 1, width, 1], true);
        }
        let full = self.ling.is_some();
        for (a, b) in [("ssm_f_a.weight", "ssm_f_b.weight"), ("ssm_g_a.weight", "ssm_g_b.weight")] {
            add(a, &[dim, if full { width } else { d }], false);
            if !full {
                add(b, &[d, width], false);
            }
        }
        add("ssm_a", &[1, self.kda_heads, 1, 1], true);
        add("ssm_dt.bias", &[width], true);
        add("ssm_beta.weight", &[dim, self.kda_heads], false);
        add("ssm_norm.weight", &[d], true);
        add("attn_output.weight", &[width, dim], false);
    }
}

/// How the matrices of a model are stored.
#[derive(Clone, Copy, PartialEq)]
enum Stored {
    F32,
    Floats,
    Any,
}

impl Stored {
    fn format(self, r: &mut Random, cols: usize, must_be_f32: bool) -> Format {
        let formats = match self {
            _ if must_be_f32 => return Format::F32,
            Stored::F32 => &[Format::F32][..],
            Stored::Floats => &[Format::F32, Format::F16, Format::BF16],
            Stored::Any => &Format::ALL,
        };
        let fitting: Vec<Format> =
            formats.iter().copied().filter(|f| cols.is_multiple_of(f.block_len())).collect();
        let blocks: Vec<Format> = fitting.iter().copied().filter(|f| f.block_len() > 1).collect();
        if blocks.is_empty() || r.chance(20) { r.one_of(&fitting) } else { r.one_of(&blocks) }
    }
}

/// A model in memory and how to run it.
pub struct RandomModel {
    pub file: Gguf,
    /// The same file, to change its weights.
    bytes: Bytes,
    /// Weights and cache are F32, so that the backends differ by rounding alone.
    exact: bool,
    pub cache: CacheFormat,
    prompt: usize,
    materialized: bool,
    /// Some values are NaN or infinite: the model must run, but its logits are not compared.
    broken_values: bool,
}

/// The outcome of one random model.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelOutcome {
    /// It was refused with this error line.
    Refused(String),
    /// It ran with this relative error.
    Agreed(f64),
    /// It ran with this relative error, which is too large, but explained by the rounding of activations or of weights.
    RoundedApart(f64),
    /// It ran, and its logits cannot be compared.
    Ran,
}

impl RandomModel {
    /// A random model of the architecture `kimi-linear`.
    pub fn new(seed: u64) -> RandomModel {
        RandomModel::of(seed, ModelShape::new)
    }

    /// A random model of the architecture `bailingmoe3`.
    pub fn ling(seed: u64) -> RandomModel {
        RandomModel::of(seed, ModelShape::ling)
    }

    fn of(seed: u64, shape: fn(&mut Random) -> ModelShape) -> RandomModel {
        let r = &mut Random::new(seed);
        let sizes = shape(r);
        let stored = r.one_of(&[Stored::F32, Stored::Floats, Stored::Any, Stored::Any]);
        let mut metadata = sizes.metadata(r);
        let mut tensors = sizes.tensors();
        if r.chance(15) {
            break_metadata(r, &mut metadata);
        }
        if r.chance(15) {
            break_tensors(r, &mut tensors);
        }
        let mut described = Vec::new();
        for (name, mut shape, f32) in tensors {
            if r.chance(25) {
                move_ones(r, &mut shape);
            }
            let must_be_f32 = f32 && !r.chance(1);
            let format = stored.format(r, shape[0], must_be_f32);
            described.push((name, format, shape.iter().map(|n| *n as u64).collect::<Vec<_>>()));
        }
        let layout = Layout::new(metadata, described).expect("shapes that can be written");
        let broken_values = r.chance(4);
        let decays = if sizes.ling.is_some() { 1.0 } else { -1.0 };
        let bytes = filled(r, &layout, broken_values, decays);
        let cache = r.one_of(&[CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0]);
        let prompt = if r.chance(15) { r.within(60, 140) } else { r.within(1, 12) };
        let exact = stored == Stored::F32 && cache == CacheFormat::F32;
        let bytes = Bytes::from(bytes);
        RandomModel {
            file: Gguf::from_bytes(format!("random-{seed}.gguf"), bytes.clone()).expect("a sound file"),
            bytes,
            exact,
            cache,
            prompt,
            materialized: r.chance(50),
            broken_values,
        }
    }

    /// Loads and runs the model on `b` and on the reference.
    ///
    /// # Panics
    /// Neither holds.
    pub fn check<B: Backend>(&self, b: &B) -> ModelOutcome {
        let model = match Model::load(b, &self.file) {
            Ok(model) => model,
            Err(e) => {
                let line = e.to_string();
                assert!(!line.contains('\n') && line.len() <= MAX_LINE, "one short line: {line:?}");
                assert!(line.contains(": expected ") && line.contains(", found "), "what and where: {line}");
                return ModelOutcome::Refused(line);
            }
        };
        let found = self.logits(b, &model);
        let Ok(model) = Model::load(&Reference, &self.file) else { panic!("the reference refuses it") };
        let expected = self.logits(&Reference, &model);
        assert_eq!(found.len(), expected.len(), "logits");
        if self.broken_values {
            return ModelOutcome::Ran;
        }
        assert!(
            model.not_finite.is_empty() && found.iter().all(|x| x.is_finite()),
            "values that are not finite"
        );
        let error = relative_error(&found, &expected);
        let most = if self.exact { EXACT } else { ROUNDED };
        if error <= most {
            return ModelOutcome::Agreed(error);
        }
        if self.exact {
            let conditioned = ROUNDINGS * relative_error(&self.nearby_logits(), &expected);
            assert!(error <= conditioned, "relative error {error:.3e}, at most {most} or {conditioned:.3e}");
            return ModelOutcome::RoundedApart(error);
        }
        let b = Rounded(self.cache);
        let Ok(model) = Model::load(&b, &self.file) else { panic!("the rounded reference refuses it") };
        let same = relative_error(&found, &self.logits(&b, &model));
        assert!(
            same <= SAME_ROUNDING,
            "relative error {error:.3e}, at most {most}; {same:.3e} with the same rounding, at most {SAME_ROUNDING}"
        );
        ModelOutcome::RoundedApart(error)
    }

    /// The reference's logits with the last bit of every F32 weight flipped.
    fn nearby_logits(&self) -> Vec<f32> {
        let mut file = Gguf::from_bytes("nearby.gguf", self.bytes.clone()).expect("a sound file");
        for tensor in self.file.tensors.iter().filter(|t| t.format == Format::F32) {
            let bytes = self.file.bytes(tensor);
            let weights = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b));
            let flipped: Vec<u8> = weights.flat_map(|bits| (bits ^ 1).to_le_bytes()).collect();
            file.replace(&tensor.name, Format::F32, flipped.into()).expect("the same size");
        }
        let Ok(model) = Model::load(&Reference, &file) else { panic!("the reference refuses it") };
        self.logits(&Reference, &model)
    }

    /// Logits of each token of a prompt and of three decoded ones, and of two predictions after the prompt and at the end.
    fn logits<B: Backend>(&self, b: &B, model: &Model<B>) -> Vec<f32> {
        let mut state = model.state(b, self.cache);
        let vocab = model.config.vocab as u32;
        let ids: Vec<u32> = (0..self.prompt as u32 + 3).map(|i| (i * 7 + 3) % vocab).collect();
        let (prompt, decoded) = ids.split_at(self.prompt);
        let mut all = Vec::new();
        let form = if self.materialized { MlaPath::Materialized } else { MlaPath::Absorbed };
        let mut run = |state: &mut State<B>, tokens: &[u32], outputs, form| {
            let mut batch = [Sequence { tokens, state, outputs, mla_path: form }];
            all.extend(b.read(&model.forward(b, &mut batch, &mut ()).expect("logits were requested")));
        };
        model.follow(b, &mut state, self.cache);
        run(&mut state, prompt, Outputs::All, form);
        let mut predicted = predictions(b, model, &mut state, &ids[self.prompt..self.prompt + 2]);
        for token in decoded {
            run(&mut state, &[*token], Outputs::Last, MlaPath::Absorbed);
        }
        predicted.extend(predictions(b, model, &mut state, &ids[..2]));
        all.extend(predicted);
        all
    }
}

/// Logits of the tokens after each of `tokens`, which are taken as the next ones; none from a model that does not predict.
pub fn predictions<B: Backend>(b: &B, model: &Model<B>, state: &mut State<B>, tokens: &[u32]) -> Vec<f32> {
    let (mut all, mut rest) = (Vec::new(), tokens[1..].iter().copied());
    model.predict_with(b, state, tokens[0], |logits| {
        all.extend(b.read(logits));
        rest.next()
    });
    all
}

/// RMS of the difference over RMS of the expected values.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let sum: f64 = expected.iter().map(|x| square(f64::from(*x))).sum();
    let apart = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b)));
    (apart.sum::<f64>() / sum).sqrt()
}

/// Gives a metadata entry a meaningless or another value, or removes it.
fn break_metadata(r: &mut Random, metadata: &mut Metadata) {
    for _ in 0..r.within(1, 2) {
        let at = r.within(2, metadata.0.len() - 1);
        let near = metadata.0[at].1.as_u64().unwrap_or(0) as u32;
        metadata.0[at].1 = match r.below(12) {
            0 => Value::U32(0),
            1 => Value::U32(near + 1),
            2 => Value::U32(near.saturating_sub(1)),
            3 => Value::U32(r.one_of(&[255, 256, 257, 65_535, 1 << 24, (1 << 24) + 1, u32::MAX])),
            4 => Value::U64(r.one_of(&[1 << 32, 1 << 63, u64::MAX])),
            5 => Value::I32(-1),
            6 => Value::F32(r.one_of(&[0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40])),
            7 => Value::String("x\u{1b}[2J\u{202e}".repeat(r.one_of(&[1, 20_000]))),
            8 => Value::Array(Array::I32((0..r.below(5)).map(|_| r.below(3) as i32 - 1).collect())),
            9 => Value::Array(Array::U32((0..r.below(5)).map(|_| r.below(70) as u32).collect())),
            10 => Value::U8(near as u8),
            _ => {
                metadata.0.remove(at);
                continue;
            }
        };
    }
}

/// Removes or renames a tensor, or changes its shape.
fn break_tensors(r: &mut Random, tensors: &mut Vec<(String, Vec<usize>, bool)>) {
    let at = r.below(tensors.len());
    let shape = &mut tensors[at].1;
    let dim = r.below(shape.len());
    match r.below(6) {
        0 => drop(tensors.remove(at)),
        1 => tensors[at].0.push('x'),
        2 => shape[dim] += 1,
        3 => shape[dim] = shape[dim].saturating_sub(1).max(1),
        4 => shape.reverse(),
        _ => *shape = vec![shape.iter().product()],
    }
}

/// The same shape with its extents of 1 elsewhere or omitted, as files differ in that.
fn move_ones(r: &mut Random, shape: &mut Vec<usize>) {
    shape.retain(|n| *n != 1);
    if shape.is_empty() || r.chance(30) && shape.len() < 4 {
        let at = r.below(shape.len() + 1);
        shape.insert(at, 1);
    }
}

/// The file's bytes with random weights; `decays` as in [`value`].
fn filled(r: &mut Random, layout: &Layout, broken_values: bool, decays: f32) -> Vec<u8> {
    let mut bytes = layout.header().to_vec();
    let start = bytes.len() as u64;
    let broken = broken_values.then(|| r.below(layout.tensors().len()));
    for (i, tensor) in layout.tensors().iter().enumerate() {
        bytes.resize((start + tensor.offset) as usize, 0);
        let cols = tensor.shape[0] as usize;
        // The matrices of keys are summed over the latent, their second extent, which keeps scores of order one.
        let keys = tensor.name.ends_with("attn_k_b.weight");
        let inputs = if keys { tensor.shape.iter().copied().max().unwrap_or(1) as usize } else { cols };
        let mut row = vec![0.0; cols];
        let mut stored = vec![0; tensor.format.row_bytes(cols as u64).expect("whole blocks") as usize];
        for _ in 0..tensor.shape[1..].iter().product::<u64>() {
            row.iter_mut().for_each(|x| *x = value(r, &tensor.name, inputs, decays));
            tensor.format.quantize_row(&row, &mut stored);
            if broken == Some(i) && r.chance(20) {
                stored.iter_mut().for_each(|b| *b = r.one_of(&[0x7f, 0xff, 0x80, 0x7c]));
            }
            bytes.extend(&stored);
        }
    }
    bytes.resize(layout.total_bytes() as usize, 0);
    bytes
}

/// A value that a trained model could have: activations stay of order one, and the biases decide the choice of experts, so
/// that rounding cannot. `decays` is the sign of the constants of the decay.
fn value(r: &mut Random, name: &str, inputs: usize, decays: f32) -> f32 {
    let role = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, role)| role);
    match role {
        "ssm_a" => decays * (1.0 + 4.0 * r.normal().abs()),
        "ssm_dt.bias" => -2.0 + r.normal(),
        "exp_probs_b.bias" => 100.0 * r.normal(),
        "token_embd.weight" => r.normal(),
        _ if role.ends_with("norm.weight") => 1.0 + 0.15 * r.normal(),
        _ if role.starts_with("ssm_conv1d") => 0.5 * r.normal(),
        _ => 1.2 * r.normal() / (inputs as f32).sqrt(),
    }
}
