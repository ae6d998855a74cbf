//! Implements the forward pass of a hybrid decoder, layer by layer: KDA layers, whose state has constant size, and MLA
//! layers, whose KV cache grows, each followed by an MLP or a mixture of experts.
//!
//! x += Mixer(RMSNorm(x));  x += FFN(RMSNorm(x));  logits = W_out RMSNorm(x)
//!
//! The mixers are those of an architecture ([`crate::kimi_linear`], [`crate::ling`]) and have the parts in common that
//! [`kda`] and [`mla`] hold. This file holds no arithmetic and no file parsing. Next: [`ffn`], [`kda`], [`mla`], whose ops
//! [`kernels::backend`] defines; then [`mtp`] and [`draft`], and [`config`] and [`weights`] (loading).

pub mod config;
pub mod draft;
pub mod ffn;
pub mod kda;
pub(crate) mod keys;
pub mod kv_split;
pub mod mla;
pub mod mtp;
pub mod state;
pub mod weights;

use crate::gguf::{self, read::Gguf};
use config::{Config, MixerKind};
use ffn::{Ffn, Mlp, Moe};
use kda::{KdaMixer, KdaSpans};
use kernels::backend::{Backend, CacheFormat, Residual, Span, StatePart};
use mla::{MlaMixer, MlaPath, MlaSpans};
use mtp::Mtp;
use state::{LayerState, State};
use std::cell::RefCell;
use std::ops::Range;
use weights::{Loader, NotFinite};

/// Vocabulary of a model of one layer ([`Model::load_layer`]), in tokens.
pub const LAYER_VOCAB: usize = 64;

/// A model with its weights on the backend `B`.
pub struct Model<B: Backend> {
    /// Hyperparameters that the shapes of the weights were checked against.
    pub config: Config,
    embed: B::Weight,
    layers: Vec<Layer<B>>,
    norm: B::Weight,
    output: B::Weight,
    mtp: Option<Mtp<B>>,
    /// Small tensors (norms, decays, biases, taps) that hold NaN or infinities: the model runs, but its output is invalid.
    pub not_finite: Vec<NotFinite>,
}

struct Layer<B: Backend> {
    mixer_norm: B::Weight,
    mixer: Mixer<B>,
    ffn_norm: B::Weight,
    ffn: Ffn<B>,
}

/// The token mixer of a layer.
pub enum Mixer<B: Backend> {
    /// Kimi Delta Attention, whose state has constant size.
    Kda(Box<dyn KdaMixer<B>>),
    /// Multi-head latent attention, whose KV cache grows.
    Mla(Box<dyn MlaMixer<B>>),
}

/// One sequence's part of a batch.
pub struct Sequence<'a, B: Backend> {
    /// The next tokens, all below the vocabulary size.
    pub tokens: &'a [u32],
    /// The state before these tokens; [`Model::forward`] advances it past them.
    pub state: &'a mut State<B>,
    /// The tokens whose logits are returned.
    pub outputs: Outputs,
    /// How attention of these tokens is computed.
    pub mla_path: MlaPath,
}

/// The tokens of a sequence whose logits are returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// No token: only the state advances.
    None,
    /// The last token, as decode needs it.
    Last,
    /// Every token, as perplexity needs it.
    All,
    /// Every token, of which those after the first are a draft. The state does not advance before [`Model::accept`], and
    /// the attention path is absorbed.
    Draft,
}

/// Receives intermediate results, for tests and statistics. `()` is inactive.
pub trait Probe<B: Backend> {
    /// Receives a tensor of a layer: `kda_g`, `latent` (normalized latent and k_pe), `after_attn`, `after_mlp`.
    fn tensor(&mut self, _layer: usize, _name: &'static str, _x: &B::Tensor) {}
    /// Receives the experts chosen in a layer.
    fn routed(&mut self, _layer: usize, _routed: &B::Routed) {}
    /// Called after each layer, before [`Probe::is_abandoned`].
    fn layer_done(&mut self) {}
    /// Returns whether to abort after the current layer: there are then no logits, and the states are invalid.
    fn is_abandoned(&self) -> bool {
        false
    }
    /// Returns whether intermediate results are needed: ops are then neither fused nor replayed.
    fn is_active(&self) -> bool {
        true
    }
}

impl<B: Backend> Probe<B> for () {
    fn is_active(&self) -> bool {
        false
    }
}

impl<B: Backend> Model<B> {
    /// Loads the weights of a file with the hyperparameters `c`, the mixers that `mixer` loads by kind, and the tensor
    /// `output` as W_out. With `only`, the model consists of this layer and has [`LAYER_VOCAB`] tokens.
    ///
    /// # Errors
    /// Sizes above the backend's limits, or a tensor whose shape or format differs from what the metadata implies.
    pub(crate) fn load_with(
        b: &B,
        file: &Gguf,
        c: &Config,
        output: &str,
        only: Option<usize>,
        mixer: impl Fn(&Loader<'_, B>, MixerKind) -> Result<Mixer<B>, gguf::Error>,
    ) -> Result<Self, gguf::Error> {
        c.check(&file.paths().first().map(|p| p.display().to_string()).unwrap_or_default(), &B::LIMITS)?;
        let not_finite = RefCell::default();
        let from = |layer| Loader { backend: b, file, layer, not_finite: &not_finite };
        let top = from(None);
        let wanted = only.map_or(0..c.layers.len(), |layer| layer..layer + 1);
        let layers = wanted.map(|i| Layer::load(&from(Some(i)), c, i, c.layers[i], &mixer));
        let layers = layers.collect::<Result<_, _>>()?;
        let mtp = match only {
            None => Mtp::load(&from(Some(c.layers.len())), c, &mixer)?,
            Some(_) => None,
        };
        let vocab = only.map_or(c.vocab, |_| c.vocab.min(LAYER_VOCAB));
        let embed = top.first_rows("token_embd.weight", [c.dim, c.vocab], vocab)?;
        let norm = top.vector("output_norm.weight", c.dim)?;
        let output = top.first_rows(output, [c.dim, c.vocab], vocab)?;
        let mut config = Config { mtp: mtp.is_some(), vocab, ..c.clone() };
        if let Some(layer) = only {
            config.layers = vec![c.layers[layer]];
            config.ffn_limits = vec![c.ffn_limits[layer]];
            config.dense_layers = usize::from(layer < c.dense_layers);
        }
        Ok(Model { embed, layers, norm, output, mtp, not_finite: not_finite.into_inner(), config })
    }

    /// The state of an empty sequence; `cache` is the format of its KV cache.
    pub fn state(&self, b: &B, cache: CacheFormat) -> State<B> {
        State::new(b, &self.config, cache)
    }

    /// Advances every sequence of the batch by its tokens. Returns the requested logits, sequence by sequence,
    /// `[outputs, vocab]`; None if none are requested.
    pub fn forward(
        &self,
        b: &B,
        batch: &mut [Sequence<'_, B>],
        probe: &mut dyn Probe<B>,
    ) -> Option<B::Tensor> {
        let decodes = |s: &Sequence<'_, B>| {
            s.tokens.len() == 1 && s.outputs == Outputs::Last && s.state.followed.is_none()
        };
        if probe.is_active() || batch.is_empty() || !batch.iter().all(decodes) {
            return self.layer_by_layer(b, batch, probe);
        }
        let ids: Vec<u32> = batch.iter().map(|s| s.tokens[0]).collect();
        if let Some(logits) = b.replay(&self.embed, &ids, &mut parts_of(batch)) {
            batch.iter_mut().for_each(|s| s.state.position += 1);
            return Some(logits);
        }
        // The step runs without the probe: a capture must not be interrupted.
        Some(b.capture(&ids, || self.layer_by_layer(b, batch, &mut ()).expect("logits were requested")))
    }

    fn layer_by_layer(
        &self,
        b: &B,
        batch: &mut [Sequence<'_, B>],
        probe: &mut dyn Probe<B>,
    ) -> Option<B::Tensor> {
        let eps = self.config.norm_eps;
        let rows = rows_of(batch);
        let ids: Vec<u32> = batch.iter().flat_map(|s| s.tokens).copied().collect();
        draft::open(batch, &rows);
        let mut x = b.embed(&self.embed, &ids); // [token, dim]
        let mut h = b.rms_norm(&x, &self.layers[0].mixer_norm, eps);
        for (i, layer) in self.layers.iter().enumerate() {
            let to = Residual { x: &mut x, norm: &layer.ffn_norm, eps };
            h = match &layer.mixer {
                Mixer::Kda(kda) => {
                    let mut spans = kda_spans(batch, &rows, i);
                    let (projected, probe) = (kda.project(b, &h), &mut LayerProbe(probe, i));
                    let (h, draft) = kda.recurrence().forward(b, projected, &mut spans, probe, to);
                    if let Some(draft) = draft {
                        draft::keep(batch, draft);
                    }
                    h
                }
                Mixer::Mla(mla) => {
                    mla.forward(b, &h, &mut mla_spans(batch, &rows, i), &mut LayerProbe(probe, i), to)
                }
            };
            probe.tensor(i, "after_attn", &x);
            let norm = self.layers.get(i + 1).map_or(&self.norm, |next| &next.mixer_norm);
            h = layer.ffn.forward(b, &h, &mut LayerProbe(probe, i), Residual { x: &mut x, norm, eps });
            probe.tensor(i, "after_mlp", &x);
            probe.layer_done();
            if probe.is_abandoned() {
                return None;
            }
        }
        for s in batch.iter_mut().filter(|s| s.outputs != Outputs::Draft) {
            s.state.position += s.tokens.len() as u64;
        }
        mtp::keep(b, batch, &rows, &x);
        let wanted = outputs_of(batch, &rows);
        (!wanted.is_empty()).then(|| {
            let rows = rows.last().map_or(0, |rows| rows.end);
            if wanted.len() < rows {
                h = b.gather(&h, &wanted);
            }
            b.matmul(&self.output, &h)
        })
    }
}

impl<B: Backend> Layer<B> {
    fn load(
        from: &Loader<'_, B>,
        c: &Config,
        layer: usize,
        kind: MixerKind,
        mixer: impl Fn(&Loader<'_, B>, MixerKind) -> Result<Mixer<B>, gguf::Error>,
    ) -> Result<Self, gguf::Error> {
        Ok(Layer {
            mixer_norm: from.vector("attn_norm.weight", c.dim)?,
            mixer: mixer(from, kind)?,
            ffn_norm: from.vector("ffn_norm.weight", c.dim)?,
            ffn: if layer < c.dense_layers.min(c.layers.len()) {
                Ffn::Dense(Mlp::load(from, "ffn", "", [c.dim, c.dense_hidden], c.ffn_limits[layer].dense)?)
            } else {
                Ffn::Moe(Moe::load(from, c, c.ffn_limits[layer])?)
            },
        })
    }
}

/// A probe for one layer.
pub struct LayerProbe<'a, B: Backend>(&'a mut dyn Probe<B>, usize);

impl<B: Backend> LayerProbe<'_, B> {
    pub(crate) fn tensor(&mut self, name: &'static str, x: &B::Tensor) {
        self.0.tensor(self.1, name, x);
    }

    fn routed(&mut self, routed: &B::Routed) {
        self.0.routed(self.1, routed);
    }

    fn is_active(&self) -> bool {
        self.0.is_active()
    }
}

/// All parts of the states, sequence by sequence.
fn parts_of<'a, B: Backend>(batch: &'a mut [Sequence<'_, B>]) -> Vec<StatePart<'a, B>> {
    let layers = batch.iter_mut().flat_map(|s| &mut s.state.layers);
    let mut parts = Vec::new();
    for layer in layers {
        match layer {
            LayerState::Kda(kda) => {
                parts.extend([&kda.s].into_iter().chain(&kda.conv).map(StatePart::Tensor))
            }
            LayerState::Mla(cache) => parts.push(StatePart::Cache(cache)),
        }
    }
    parts
}

/// The rows of each sequence in the batch.
fn rows_of<B: Backend>(batch: &[Sequence<'_, B>]) -> Vec<Range<usize>> {
    let mut end = 0;
    let next = |s: &Sequence<'_, B>| {
        let start = end;
        end += s.tokens.len();
        start..end
    };
    batch.iter().map(next).collect()
}

fn outputs_of<B: Backend>(batch: &[Sequence<'_, B>], rows: &[Range<usize>]) -> Vec<usize> {
    let mut wanted = Vec::new();
    for (s, rows) in batch.iter().zip(rows) {
        match s.outputs {
            Outputs::None => {}
            Outputs::Last => wanted.extend(rows.clone().last()),
            Outputs::All | Outputs::Draft => wanted.extend(rows.clone()),
        }
    }
    wanted
}

fn kda_spans<'a, B: Backend>(
    batch: &'a mut [Sequence<'_, B>],
    rows: &[Range<usize>],
    layer: usize,
) -> KdaSpans<'a, B> {
    let mut spans = KdaSpans { whole: Vec::new(), drafts: Vec::new() };
    for (s, rows) in batch.iter_mut().zip(rows) {
        let LayerState::Kda(state) = &mut s.state.layers[layer] else {
            panic!("layer {layer} of the state is MLA, of the model KDA")
        };
        let kind = if s.outputs == Outputs::Draft { &mut spans.drafts } else { &mut spans.whole };
        kind.push(Span { rows: rows.clone(), state });
    }
    spans
}

fn mla_spans<'a, B: Backend>(
    batch: &'a mut [Sequence<'_, B>],
    rows: &[Range<usize>],
    layer: usize,
) -> MlaSpans<'a, B> {
    let mut spans = MlaSpans { absorbed: Vec::new(), materialized: Vec::new() };
    for (s, rows) in batch.iter_mut().zip(rows) {
        let LayerState::Mla(state) = &mut s.state.layers[layer] else {
            panic!("layer {layer} of the state is KDA, of the model MLA")
        };
        let path = match s.mla_path {
            MlaPath::Materialized => &mut spans.materialized,
            MlaPath::Absorbed => &mut spans.absorbed,
        };
        path.push(Span { rows: rows.clone(), state });
    }
    spans
}
