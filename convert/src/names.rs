//! Maps checkpoint tensors to GGUF tensors, from the hyperparameters alone.
//!
//! A GGUF tensor is a concatenation of [`RowRange`]s: a plain tensor has one, a stack of experts one per expert, and each half
//! of `kv_b_proj` one per head. Next: `ling`, the tensors of that family; `mix`, which chooses the formats.

mod ling;

use crate::config::{CheckpointConfig, Family};

/// A GGUF tensor whose format is not chosen yet.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name in the GGUF file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions as ggml's `ne`, fastest first.
    pub shape: Vec<u64>,
    /// Sources of its rows, in order.
    pub parts: Vec<RowRange>,
}

/// A run of rows of an output tensor, with the source rows it is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct RowRange {
    /// Name of the source tensor in the input.
    pub source: String,
    /// The source tensor's shape, slowest first.
    pub dims: Vec<u64>,
    /// First source row; a row is the last dimension.
    pub first: u64,
    /// Number of source rows, from `first` on.
    pub rows: u64,
    /// Transformation of the values before quantization.
    pub map: Transform,
}

/// The transformation of a part's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// The values are kept as they are.
    Copy,
    /// `exp(x)` in f32: Ling's `A_log` to `ssm_a`.
    Exp,
    /// `-exp(x)` in f32: Kimi's `A_log` to `ssm_a`.
    NegExp,
    /// Source `[rows, cols]` becomes `cols` output rows of `rows` values: `k_b` for absorbed attention.
    Transpose,
}

impl RowRange {
    /// Values of a source row.
    pub fn cols(&self) -> u64 {
        self.dims.last().copied().unwrap_or(1)
    }

    /// Output rows of this part.
    pub fn out_rows(&self) -> u64 {
        if self.map == Transform::Transpose { self.cols() } else { self.rows }
    }
}

/// Sizes of `kv_b_proj`, which holds, per head, the rows [nope of k | v_dim of v].
pub(crate) struct LatentProjection {
    /// Number of attention heads, each with its rows.
    pub heads: u64,
    /// Channels of a head's key that come from the latent.
    pub nope: u64,
    /// Channels of a head's value.
    pub v_dim: u64,
    /// Width of the latent, the columns of the tensor.
    pub kv_lora: u64,
}

impl LatentProjection {
    /// The tensors `attn_k_b`, transposed, and `attn_v_b` of the layer with prefix `layer`, made from the tensor `source`.
    pub fn split(&self, layer: &str, source: &str) -> [TensorSpec; 2] {
        let LatentProjection { heads, nope, v_dim, kv_lora } = *self;
        let part = |head: u64, first: u64, rows: u64, map| RowRange {
            source: source.to_owned(),
            dims: vec![heads * (nope + v_dim), kv_lora],
            first: head * (nope + v_dim) + first,
            rows,
            map,
        };
        let k = (0..heads).map(|h| part(h, 0, nope, Transform::Transpose)).collect();
        let v = (0..heads).map(|h| part(h, nope, v_dim, Transform::Copy)).collect();
        let name = |which: &str| format!("{layer}attn_{which}_b.weight");
        [
            TensorSpec { name: name("k"), shape: vec![nope, kv_lora, heads], parts: k },
            TensorSpec { name: name("v"), shape: vec![kv_lora, v_dim, heads], parts: v },
        ]
    }
}

/// The tensors of the GGUF file, in order.
pub fn tensor_specs(c: &CheckpointConfig) -> Vec<TensorSpec> {
    let mut list = List(Vec::new());
    let (embedding, tied) = match &c.family {
        Family::KimiLinear => ("model.embed_tokens.weight", false),
        Family::Ling(ling) => ("model.word_embeddings.weight", ling.tied),
    };
    list.matrix("token_embd.weight", embedding, c.hidden, c.vocab);
    for (layer, full) in c.full_attention.iter().enumerate() {
        let (out, input) = (format!("blk.{layer}."), format!("model.layers.{layer}."));
        let mut layer_list = LayerSpecs { list: &mut list, c, out, input };
        match &c.family {
            Family::KimiLinear => layer_list.kimi(layer as u64, *full),
            Family::Ling(ling) => layer_list.ling(ling, layer as u64, *full),
        }
    }
    list.whole("output_norm.weight".into(), "model.norm.weight".into(), vec![c.hidden]);
    if !tied {
        list.matrix("output.weight", "lm_head.weight", c.hidden, c.vocab);
    }
    list.0
}

struct List(Vec<TensorSpec>);

impl List {
    /// A whole source tensor, unchanged.
    fn whole(&mut self, name: String, source: String, dims: Vec<u64>) {
        self.mapped(name, source, dims, Transform::Copy);
    }

    fn mapped(&mut self, name: String, source: String, dims: Vec<u64>, map: Transform) {
        let shape = dims.iter().rev().copied().collect();
        let rows = dims[..dims.len() - 1].iter().product();
        self.0.push(TensorSpec { name, shape, parts: vec![RowRange { source, dims, first: 0, rows, map }] });
    }

    fn matrix(&mut self, name: &str, source: &str, cols: u64, rows: u64) {
        self.whole(name.into(), source.into(), vec![rows, cols]);
    }
}

struct LayerSpecs<'a> {
    list: &'a mut List,
    c: &'a CheckpointConfig,
    out: String,
    input: String,
}

impl LayerSpecs<'_> {
    fn vector(&mut self, name: &str, source: &str, length: u64) {
        self.list.whole(format!("{}{name}", self.out), format!("{}{source}", self.input), vec![length]);
    }

    fn matrix(&mut self, name: &str, source: &str, cols: u64, rows: u64) {
        let (name, source) = (format!("{}{name}.weight", self.out), format!("{}{source}.weight", self.input));
        self.list.whole(name, source, vec![rows, cols]);
    }

    fn kimi(&mut self, layer: u64, full: bool) {
        self.vector("attn_norm.weight", "input_layernorm.weight", self.c.hidden);
        if full {
            self.mla()
        } else {
            self.kda()
        }
        self.vector("ffn_norm.weight", "post_attention_layernorm.weight", self.c.hidden);
        if layer < self.c.dense_layers { self.dense() } else { self.moe() }
    }

    /// The projections of q, k and v, of `all` channels, and their short convolutions.
    fn qkv(&mut self, attention: &str, hidden: u64, all: u64) {
        for which in ["q", "k", "v"] {
            self.matrix(&format!("attn_{which}"), &format!("{attention}{which}_proj"), hidden, all);
        }
        for which in ["q", "k", "v"] {
            let name = format!("{}ssm_conv1d_{which}.weight", self.out);
            let source = format!("{}{attention}{which}_conv1d.weight", self.input);
            self.list.whole(name, source, vec![all, 1, self.c.conv]);
            // Four dimensions as llama.cpp's converter writes them; the bytes are the same.
            self.last_shape().push(1);
        }
    }

    fn kda(&mut self) {
        let (hidden, heads, dim) = (self.c.hidden, self.c.kda_heads, self.c.kda_dim);
        let all = heads * dim;
        self.qkv("self_attn.", hidden, all);
        self.matrix("ssm_f_a", "self_attn.f_a_proj", hidden, dim);
        self.matrix("ssm_f_b", "self_attn.f_b_proj", dim, all);
        self.vector("ssm_dt.bias", "self_attn.dt_bias", all);
        let (name, source) = (format!("{}ssm_a", self.out), format!("{}self_attn.A_log", self.input));
        self.list.mapped(name, source, vec![1, 1, heads, 1], Transform::NegExp);
        self.matrix("ssm_beta", "self_attn.b_proj", hidden, heads);
        self.matrix("ssm_g_a", "self_attn.g_a_proj", hidden, dim);
        self.matrix("ssm_g_b", "self_attn.g_b_proj", dim, all);
        self.vector("ssm_norm.weight", "self_attn.o_norm.weight", dim);
        self.matrix("attn_output", "self_attn.o_proj", all, hidden);
    }

    fn mla(&mut self) {
        let c = self.c;
        self.matrix("attn_q", "self_attn.q_proj", c.hidden, c.heads * (c.nope + c.rope));
        self.matrix("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", c.hidden, c.kv_lora + c.rope);
        self.vector("attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight", c.kv_lora);
        let source = format!("{}self_attn.kv_b_proj.weight", self.input);
        let sizes = LatentProjection { heads: c.heads, nope: c.nope, v_dim: c.v_dim, kv_lora: c.kv_lora };
        self.list.0.extend(sizes.split(&self.out, &source));
        self.matrix("attn_output", "self_attn.o_proj", c.heads * c.v_dim, c.hidden);
    }

    fn dense(&mut self) {
        let (hidden, inner) = (self.c.hidden, self.c.intermediate);
        self.matrix("ffn_gate", "mlp.gate_proj", hidden, inner);
        self.matrix("ffn_up", "mlp.up_proj", hidden, inner);
        self.matrix("ffn_down", "mlp.down_proj", inner, hidden);
    }

    fn moe(&mut self) {
        let (c, p) = (self.c, "block_sparse_moe.");
        let (hidden, inner, shared) =
            (c.hidden, c.expert_intermediate, c.expert_intermediate * c.experts_shared);
        self.matrix("ffn_gate_inp", &format!("{p}gate"), hidden, c.experts);
        self.vector("exp_probs_b.bias", &format!("{p}gate.e_score_correction_bias"), c.experts);
        let part = "block_sparse_moe";
        self.experts("ffn_gate_exps", (part, "w1"), hidden, inner);
        self.experts("ffn_up_exps", (part, "w3"), hidden, inner);
        self.experts("ffn_down_exps", (part, "w2"), inner, hidden);
        self.matrix("ffn_gate_shexp", &format!("{p}shared_experts.gate_proj"), hidden, shared);
        self.matrix("ffn_up_shexp", &format!("{p}shared_experts.up_proj"), hidden, shared);
        self.matrix("ffn_down_shexp", &format!("{p}shared_experts.down_proj"), shared, hidden);
    }

    /// A stack of the matrices `which` of all experts in `part` of the layer.
    fn experts(&mut self, name: &str, (part, which): (&str, &str), cols: u64, rows: u64) {
        let part = |expert| RowRange {
            source: format!("{}{part}.experts.{expert}.{which}.weight", self.input),
            dims: vec![rows, cols],
            first: 0,
            rows,
            map: Transform::Copy,
        };
        let parts = (0..self.c.experts).map(part).collect();
        let shape = vec![cols, rows, self.c.experts];
        self.list.0.push(TensorSpec { name: format!("{}{name}.weight", self.out), shape, parts });
    }

    fn last_shape(&mut self) -> &mut Vec<u64> {
        let last = self.list.0.len() - 1;
        &mut self.list.0[last].shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn official() -> Vec<TensorSpec> {
        tensor_specs(&CheckpointConfig::parse("c", crate::config::tests::OFFICIAL.as_bytes()).unwrap())
    }

    #[test]
    fn the_official_model_is_20493_tensors_in_610() {
        let all = official();
        let parts = all.iter().flat_map(|w| &w.parts);
        let sources: BTreeSet<_> = parts.clone().map(|p| &p.source).collect();
        let weights: u64 = parts.map(|p| p.rows * p.cols()).sum();
        assert_eq!((all.len(), sources.len(), weights), (610, 20493, 49_122_681_728));
        assert!(all.iter().all(|w| w.name.len() <= 63));
    }

    #[test]
    fn parts_fill_their_tensor() {
        for w in official() {
            let rows: u64 = w.parts.iter().map(RowRange::out_rows).sum();
            assert_eq!(rows, w.shape[1..].iter().product::<u64>(), "{}", w.name);
        }
    }

    #[test]
    fn shapes_are_the_published_ones() {
        let all = official();
        let shape = |name: &str| all.iter().find(|w| w.name == name).unwrap().shape.clone();
        assert_eq!(shape("blk.3.attn_k_b.weight"), [128, 512, 32]);
        assert_eq!(shape("blk.3.attn_v_b.weight"), [512, 128, 32]);
        assert_eq!(shape("blk.0.ssm_conv1d_q.weight"), [4, 1, 4096, 1]);
        assert_eq!(shape("blk.0.ssm_a"), [1, 32, 1, 1]);
        assert_eq!(shape("blk.1.ffn_down_exps.weight"), [1024, 2304, 256]);
        assert_eq!(shape("blk.26.attn_q.weight"), [2304, 6144]);
        assert_eq!(shape("output.weight"), [2304, 163840]);
    }
}
