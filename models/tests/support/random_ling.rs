//! What a random Ling model has beside the sizes of a random Kimi Linear one.

use super::random::Random;
use models::gguf::{Array, Value};

/// The random hyperparameters that only Ling has.
pub struct LingShape {
    query_rank: usize,
    pub tied: bool,
    /// Whether a block after the layers predicts further tokens.
    pub mtp: bool,
    pub shared_hidden: usize,
    rope_base: f32,
    decay_bound: f32,
    limits: Option<Vec<f32>>,
}

impl LingShape {
    pub fn new(r: &mut Random, layers: usize) -> LingShape {
        let mtp = r.chance(50);
        let blocks = layers + usize::from(mtp);
        LingShape {
            mtp,
            query_rank: r.one_of(&[0, 0, 1, 32, 70, 256]),
            tied: r.chance(20),
            shared_hidden: r.one_of(&[1, 32, 96, 256]),
            rope_base: r.one_of(&[10_000.0, 6e6]),
            decay_bound: r.one_of(&[-5.0, -0.5]),
            limits: r.chance(50).then(|| (0..blocks).map(|_| r.one_of(&[0.0, 0.25, 1.5])).collect()),
        }
    }

    pub fn metadata(&self, set: &mut dyn FnMut(&str, Value)) {
        set("nextn_predict_layers", Value::U32(u32::from(self.mtp)));
        set("attention.q_lora_rank", Value::U32(self.query_rank as u32));
        set("expert_shared_feed_forward_length", Value::U32(self.shared_hidden as u32));
        set("rope.freq_base", Value::F32(self.rope_base));
        set("kda.gate_lower_bound", Value::F32(self.decay_bound));
        if let Some(limits) = &self.limits {
            set("swiglu_clamp_exp", Value::Array(Array::F32(limits.clone())));
            set("swiglu_clamp_shexp", Value::Array(Array::F32(limits.iter().rev().copied().collect())));
        }
    }

    /// The tensors that the block for further tokens has beside those of a layer.
    pub fn mtp_tensors(&self, dim: usize, add: &mut dyn FnMut(&str, &[usize], bool)) {
        add("nextn.eh_proj.weight", &[2 * dim, dim], false);
        for norm in ["nextn.enorm.weight", "nextn.hnorm.weight", "layer_output_norm.weight"] {
            add(norm, &[dim], true);
        }
    }

    /// The tensors of the queries and of the gates.
    pub fn mla_tensors(&self, [dim, width, heads]: [usize; 3], add: &mut dyn FnMut(&str, &[usize], bool)) {
        if self.query_rank > 0 {
            add("attn_q_a.weight", &[dim, self.query_rank], false);
            add("attn_q_a_norm.weight", &[self.query_rank], true);
            add("attn_q_b.weight", &[self.query_rank, width], false);
        } else {
            add("attn_q.weight", &[dim, width], false);
        }
        add("attn_gate.weight", &[dim, heads], false);
    }
}
