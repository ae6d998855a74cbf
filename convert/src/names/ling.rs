//! Maps the tensors of a Ling 3.0 checkpoint.
//!
//! Both kinds of attention have a `g_proj`: the output gate of every channel in KDA, of every head in MLA. The blocks after
//! the decoder layers, for multi-token prediction, are MLA layers with four tensors more.

use super::{LatentProjection, LayerSpecs, Transform};
use crate::config::LingConfig;

impl LayerSpecs<'_> {
    pub(super) fn ling(&mut self, ling: &LingConfig, layer: u64, full: bool) {
        let c = self.c;
        self.vector("attn_norm.weight", "input_layernorm.weight", c.hidden);
        if full {
            self.ling_mla(ling)
        } else {
            self.ling_kda()
        }
        self.vector("ffn_norm.weight", "post_attention_layernorm.weight", c.hidden);
        if layer < c.dense_layers {
            self.dense()
        } else {
            self.ling_moe(ling)
        }
        if layer >= c.layers() - ling.mtp_blocks {
            self.matrix("nextn.eh_proj", "eh_proj", 2 * c.hidden, c.hidden);
            self.vector("nextn.enorm.weight", "enorm.weight", c.hidden);
            self.vector("nextn.hnorm.weight", "hnorm.weight", c.hidden);
            self.vector("layer_output_norm.weight", "final_layernorm.weight", c.hidden);
        }
    }

    fn ling_kda(&mut self) {
        let (hidden, heads, dim) = (self.c.hidden, self.c.kda_heads, self.c.kda_dim);
        let all = heads * dim;
        self.qkv("attention.", hidden, all);
        self.matrix("ssm_f_a", "attention.f_proj", hidden, all);
        self.vector("ssm_dt.bias", "attention.dt_bias", all);
        let (name, source) = (format!("{}ssm_a", self.out), format!("{}attention.A_log", self.input));
        self.list.mapped(name, source, vec![heads, 1], Transform::Exp);
        self.matrix("ssm_beta", "attention.b_proj", hidden, heads);
        self.matrix("ssm_g_a", "attention.g_proj", hidden, all);
        self.vector("ssm_norm.weight", "attention.o_norm.weight", dim);
        self.matrix("attn_output", "attention.o_proj", all, hidden);
    }

    fn ling_mla(&mut self, ling: &LingConfig) {
        let c = self.c;
        let queries = c.heads * (c.nope + c.rope);
        match ling.q_lora {
            Some(rank) => {
                self.matrix("attn_q_a", "attention.q_a_proj", c.hidden, rank);
                self.vector("attn_q_a_norm.weight", "attention.q_a_layernorm.weight", rank);
                self.matrix("attn_q_b", "attention.q_b_proj", rank, queries);
            }
            None => self.matrix("attn_q", "attention.q_proj", c.hidden, queries),
        }
        self.matrix("attn_kv_a_mqa", "attention.kv_a_proj_with_mqa", c.hidden, c.kv_lora + c.rope);
        self.vector("attn_kv_a_norm.weight", "attention.kv_a_layernorm.weight", c.kv_lora);
        let source = format!("{}attention.kv_b_proj.weight", self.input);
        let sizes = LatentProjection { heads: c.heads, nope: c.nope, v_dim: c.v_dim, kv_lora: c.kv_lora };
        self.list.0.extend(sizes.split(&self.out, &source));
        self.matrix("attn_gate", "attention.g_proj", c.hidden, c.heads);
        self.matrix("attn_output", "attention.dense", c.heads * c.v_dim, c.hidden);
    }

    fn ling_moe(&mut self, ling: &LingConfig) {
        let c = self.c;
        let (hidden, inner, shared) = (c.hidden, c.expert_intermediate, ling.shared_intermediate);
        self.matrix("ffn_gate_inp", "mlp.gate", hidden, c.experts);
        self.vector("exp_probs_b.bias", "mlp.gate.expert_bias", c.experts);
        for (which, cols, rows) in [("gate", hidden, inner), ("up", hidden, inner), ("down", inner, hidden)] {
            self.experts(&format!("ffn_{which}_exps"), ("mlp", &format!("{which}_proj")), cols, rows);
        }
        for (which, cols, rows) in
            [("gate", hidden, shared), ("up", hidden, shared), ("down", shared, hidden)]
        {
            self.matrix(
                &format!("ffn_{which}_shexp"),
                &format!("mlp.shared_experts.{which}_proj"),
                cols,
                rows,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::config::ling::tests::parsed;
    use serde_json::json;

    fn specs(fields: serde_json::Value) -> Vec<TensorSpec> {
        tensor_specs(&parsed(&fields).unwrap())
    }

    #[test]
    fn tiny_has_the_published_number_of_weights() {
        let all = specs(json!({}));
        let weights: u64 = all.iter().flat_map(|w| &w.parts).map(|p| p.rows * p.cols()).sum();
        assert_eq!(weights, 7_893_392_800);
        for w in &all {
            let rows: u64 = w.parts.iter().map(RowRange::out_rows).sum();
            assert_eq!(rows, w.shape[1..].iter().product::<u64>(), "{}", w.name);
        }
        let find = |name: &str| all.iter().find(|w| w.name == name).unwrap();
        assert_eq!(find("blk.0.ssm_a").shape, [1, 16]);
        assert_eq!(find("blk.0.ssm_a").parts[0].map, Transform::Exp);
        assert_eq!(find("blk.0.ssm_f_a.weight").shape, [1536, 2048]);
        assert_eq!(find("blk.0.ssm_conv1d_q.weight").shape, [4, 1, 2048, 1]);
        assert_eq!(find("blk.3.attn_q_b.weight").shape, [256, 3072]);
        assert_eq!(find("blk.3.attn_gate.weight").shape, [1536, 16]);
        assert_eq!(find("blk.3.attn_k_b.weight").shape, [128, 512, 16]);
        assert_eq!(find("blk.1.ffn_down_exps.weight").shape, [512, 1536, 128]);
        assert_eq!(find("output.weight").shape, [1536, 157_184]);
    }

    #[test]
    fn variants_have_other_tensors() {
        let all =
            specs(json!({"q_lora_rank": null, "tie_word_embeddings": true, "num_nextn_predict_layers": 1}));
        let source = |name: &str| all.iter().find(|w| w.name == name).map(|w| w.parts[0].source.as_str());
        assert_eq!(source("output.weight"), None);
        assert_eq!(source("blk.3.attn_q_a.weight"), None);
        assert_eq!(source("blk.3.attn_q.weight"), Some("model.layers.3.attention.q_proj.weight"));
        assert_eq!(source("blk.24.nextn.eh_proj.weight"), Some("model.layers.24.eh_proj.weight"));
        let norm = "model.layers.24.final_layernorm.weight";
        assert_eq!(source("blk.24.layer_output_norm.weight"), Some(norm));
        assert_eq!(source("blk.23.nextn.enorm.weight"), None);
        assert_eq!(source("blk.24.attn_gate.weight"), Some("model.layers.24.attention.g_proj.weight"));
    }
}
