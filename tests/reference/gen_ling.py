"""Makes a small random Ling 3.0 model: a checkpoint in the published layout, or the GGUF file (F32) that llama.cpp reads.

usage: gen_ling.py OUT PRESET [seed] [FIELD=VALUE ...]     e.g. gen_ling.py out.gguf tiny_d128 5 q_lora_rank=0 n_group=1

OUT ending in .gguf is written as GGUF with a byte-level vocabulary; else it is a folder for config.json, tokenizer.json and
model.safetensors. Fields are those of config.json; q_lora_rank=0 means none, expert_limit and shared_limit set the
clamps of SwiGLU in all layers with experts, tied=1 leaves out the output head. Random weights choose between near-equal logits;
follow=1 makes one token likely after each pair of letters, for the trunk and for the MTP block.
"""
import json
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from gen_tiny import save_safetensors  # noqa: E402

ARCH = "bailingmoe3"
PRESETS = {
    # Odd sizes: hidden is no power of two, KDA heads of 32 channels; two layers past the last whole group are MLA.
    "tiny": dict(hidden_size=192, num_attention_heads=6, head_dim=32, vocab_size=1536, intermediate_size=320, num_hidden_layers=10,
                 moe_intermediate_size=96, num_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, q_lora_rank=48,
                 kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32),
    # Heads as large as the real ones, rows of whole blocks of 256.
    "tiny_d128": dict(hidden_size=256, num_attention_heads=2, head_dim=128, vocab_size=1024, intermediate_size=512, num_hidden_layers=8,
                      moe_intermediate_size=256, num_experts=16, num_experts_per_tok=8, n_group=8, topk_group=4, q_lora_rank=256,
                      kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
}
COMMON = dict(architectures=["BailingMoeV3ForCausalLM"], model_type="bailing_hybrid", layer_group_size=4, short_conv_kernel_size=4,
              no_kda_lora=True, kda_safe_gate=True, kda_lower_bound=-5, rope_theta=6000000, partial_rotary_factor=0.5,
              gated_attention_proj_granularity_type="head_wise", first_k_dense_replace=1, num_shared_experts=1,
              score_function="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5, rms_norm_eps=1e-6,
              max_position_embeddings=4096, num_nextn_predict_layers=0, expert_swiglu_limit_list=None,
              share_expert_swiglu_limit_list=None, tie_word_embeddings=False, hidden_act="silu", dtype="bfloat16")
SPECIALS = ["<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|role_end|>"]
STRONG, FOLLOWED, DRAFTED = 8.0, 0.16, 0.5
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def config(preset, extra={}):
    extra = dict(extra)
    expert, shared, tied = (extra.pop(name, 0) for name in ("expert_limit", "shared_limit", "tied"))
    extra.pop("follow", 0)
    c = COMMON | PRESETS[preset] | extra
    layers, dense = c["num_hidden_layers"] + c["num_nextn_predict_layers"], c["first_k_dense_replace"]
    limits = lambda value: [0.0] * dense + [float(value)] * (layers - dense) if value else None
    c["expert_swiglu_limit_list"], c["share_expert_swiglu_limit_list"] = limits(expert), limits(shared)
    c["moe_shared_expert_intermediate_size"] = extra.get("moe_shared_expert_intermediate_size", c["moe_intermediate_size"])
    c["num_key_value_heads"], c["q_lora_rank"], c["tie_word_embeddings"] = c["num_attention_heads"], c["q_lora_rank"] or None, bool(tied)
    c["pad_token_id"], c["eos_token_id"] = c["vocab_size"] - 4, c["vocab_size"] - 1
    return c


def is_mla(c, i):
    """Every layer_group_size-th layer, the layers after the last whole group, and the MTP block."""
    n, group = c["num_hidden_layers"], c["layer_group_size"]
    return (i + 1) % group == 0 or i >= n // group * group


def tensors(c):
    """Name and shape of every tensor of the checkpoint."""
    hidden, heads, width = c["hidden_size"], c["num_attention_heads"], c["num_attention_heads"] * c["head_dim"]
    nope, pe, vd, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
    out = [("model.word_embeddings.weight", (c["vocab_size"], hidden))]
    mlp = lambda p, size: [(f"{p}{n}_proj.weight", (hidden, size) if n == "down" else (size, hidden)) for n in ("gate", "up", "down")]
    for i in range(c["num_hidden_layers"] + c["num_nextn_predict_layers"]):
        p = f"model.layers.{i}."
        a = p + "attention."
        if is_mla(c, i):
            if c["q_lora_rank"]:
                out += [(a + "q_a_proj.weight", (c["q_lora_rank"], hidden)), (a + "q_a_layernorm.weight", (c["q_lora_rank"],)),
                        (a + "q_b_proj.weight", (heads * (nope + pe), c["q_lora_rank"]))]
            else:
                out += [(a + "q_proj.weight", (heads * (nope + pe), hidden))]
            out += [(a + "kv_a_proj_with_mqa.weight", (rank + pe, hidden)), (a + "kv_a_layernorm.weight", (rank,)),
                    (a + "kv_b_proj.weight", (heads * (nope + vd), rank)), (a + "g_proj.weight", (heads, hidden)),
                    (a + "dense.weight", (hidden, heads * vd))]
        else:
            out += [(f"{a}{n}_proj.weight", (width, hidden)) for n in "qkvfg"] + [(a + "b_proj.weight", (heads, hidden))]
            out += [(f"{a}{n}_conv1d.weight", (width, 1, c["short_conv_kernel_size"])) for n in "qkv"]
            out += [(a + "A_log", (heads,)), (a + "dt_bias", (width,)), (a + "o_norm.weight", (c["head_dim"],)), (a + "o_proj.weight", (hidden, width))]
        if i < c["first_k_dense_replace"]:
            out += mlp(p + "mlp.", c["intermediate_size"])
        else:
            out += [(p + "mlp.gate.weight", (c["num_experts"], hidden)), (p + "mlp.gate.expert_bias", (c["num_experts"],))]
            for e in range(c["num_experts"]):
                out += mlp(f"{p}mlp.experts.{e}.", c["moe_intermediate_size"])
            out += mlp(p + "mlp.shared_experts.", c["moe_shared_expert_intermediate_size"] * c["num_shared_experts"])
        out += [(p + "input_layernorm.weight", (hidden,)), (p + "post_attention_layernorm.weight", (hidden,))]
        if i >= c["num_hidden_layers"]:
            out += [(p + "eh_proj.weight", (hidden, 2 * hidden))] + [(f"{p}{n}.weight", (hidden,)) for n in ("enorm", "hnorm", "final_layernorm")]
    return out + [("model.norm.weight", (hidden,))] + ([] if c["tie_word_embeddings"] else [("lm_head.weight", (c["vocab_size"], hidden))])


def weights(c, seed, follow=False):
    """Random tensors of the checkpoint by name, f32. Matrices of a checkpoint are bf16, so their values are rounded to it."""
    r, out = np.random.default_rng(seed), {}
    for name, shape in tensors(c):
        if name.endswith("A_log"): x = np.log(r.uniform(1, 4, shape))
        elif name.endswith("dt_bias"): x = r.uniform(-3.0, 0.5, shape)           # some channels remember long, some forget at once
        elif name.endswith("expert_bias"): x = r.normal(0, 0.15, shape)          # large enough to change the choice
        elif "norm" in name: x = 1 + r.normal(0, 0.15, shape)
        elif "conv1d" in name: x = r.normal(0, 0.5, shape)
        elif name.endswith("word_embeddings.weight"): x = r.normal(0, 1.0, shape)
        elif name.endswith("lm_head.weight"): x = r.normal(0, 2.5 / shape[1] ** 0.5, shape)
        elif name.endswith(("mlp.gate.weight", "b_proj.weight", "f_proj.weight")) and "_b_proj" not in name: x = r.normal(0, 1.5 / shape[1] ** 0.5, shape)
        else: x = r.normal(0, 1.2 / shape[-1] ** 0.5, shape)
        out[name] = np.asarray(x, np.float32).reshape(shape)
    if follow:
        make_followed(c, out)
    return {name: x if is_f32(name) else to_bf16(x) for name, x in out.items()}


def make_followed(c, w):
    """Makes embeddings strong beside what layers add, and each pair of letters likely after one other pair."""
    pairs = np.arange(256, min(256 + len(LETTERS) ** 2, c["vocab_size"] - len(SPECIALS)))
    follows = np.random.default_rng(1).permutation(pairs)
    embed = w["model.word_embeddings.weight"]
    w["lm_head.weight"][pairs] += FOLLOWED * embed[follows]
    embed *= STRONG
    for name in w:
        if name.endswith("eh_proj.weight"):
            w[name][:, :c["hidden_size"]] += DRAFTED * np.eye(c["hidden_size"], dtype=np.float32)


def to_bf16(x):
    """Values rounded to bf16, to nearest even."""
    u = x.view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def is_f32(name):
    return name.endswith(("A_log", "dt_bias", "expert_bias", "mlp.gate.weight"))


def byte_letters():
    """GPT-2's letter for each byte: printable bytes stand for themselves, others for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def partial_characters():
    """Ids of the tokens that are a part of a character's UTF-8."""
    return list(range(128, 256))


def vocabulary(c):
    """Tokens, merges and special ids of a byte-level vocabulary: all bytes, pairs of letters, unused ids, special tokens."""
    pairs = [(a, b) for a in LETTERS for b in LETTERS]
    size = c["vocab_size"] - len(SPECIALS)
    tokens = (byte_letters() + [a + b for a, b in pairs])[:size]
    merges = [f"{a} {b}" for a, b in pairs[:size - 256]]
    tokens += [f"<|unused_{i}|>" for i in range(size - len(tokens))]
    return tokens + SPECIALS, merges


def tokenizer_json(c):
    tokens, merges = vocabulary(c)
    special = [{"id": i, "content": t, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
               for i, t in enumerate(tokens) if t in SPECIALS]
    pattern = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "post_processor": None,
            "decoder": level, "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                                        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                                        "vocab": {t: i for i, t in enumerate(tokens) if t not in SPECIALS}, "merges": merges}}


def gguf_tensors(c, w):
    """The tensors of the GGUF file by name, from those of the checkpoint."""
    heads, nope, vd = c["num_attention_heads"], c["qk_nope_head_dim"], c["v_head_dim"]
    out = {"token_embd.weight": w["model.word_embeddings.weight"], "output_norm.weight": w["model.norm.weight"]}
    if "lm_head.weight" in w:
        out["output.weight"] = w["lm_head.weight"]
    same = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "nextn.eh_proj": "eh_proj", "nextn.enorm": "enorm",
            "nextn.hnorm": "hnorm", "layer_output_norm": "final_layernorm", "attn_q": "attention.q_proj", "attn_k": "attention.k_proj",
            "attn_v": "attention.v_proj", "ssm_f_a": "attention.f_proj", "ssm_beta": "attention.b_proj", "ssm_norm": "attention.o_norm",
            "attn_q_a": "attention.q_a_proj", "attn_q_a_norm": "attention.q_a_layernorm", "attn_q_b": "attention.q_b_proj",
            "attn_kv_a_mqa": "attention.kv_a_proj_with_mqa", "attn_kv_a_norm": "attention.kv_a_layernorm", "ffn_gate_inp": "mlp.gate"}
    for n in ("gate", "up", "down"):
        same |= {f"ffn_{n}": f"mlp.{n}_proj", f"ffn_{n}_shexp": f"mlp.shared_experts.{n}_proj"}
    for i in range(c["num_hidden_layers"] + c["num_nextn_predict_layers"]):
        p, q = f"blk.{i}.", f"model.layers.{i}."
        out |= {f"{p}{ours}.weight": w[f"{q}{theirs}.weight"] for ours, theirs in same.items() if f"{q}{theirs}.weight" in w}
        a = q + "attention."
        if is_mla(c, i):
            kv_b = w[a + "kv_b_proj.weight"].reshape(heads, nope + vd, -1)
            out |= {p + "attn_k_b.weight": kv_b[:, :nope].transpose(0, 2, 1), p + "attn_v_b.weight": kv_b[:, nope:],
                    p + "attn_gate.weight": w[a + "g_proj.weight"], p + "attn_output.weight": w[a + "dense.weight"]}
        else:
            out |= {f"{p}ssm_conv1d_{n}.weight": w[f"{a}{n}_conv1d.weight"][None] for n in "qkv"}
            out |= {p + "ssm_a": np.exp(w[a + "A_log"].astype(np.float64))[:, None], p + "ssm_dt.bias": w[a + "dt_bias"],
                    p + "ssm_g_a.weight": w[a + "g_proj.weight"], p + "attn_output.weight": w[a + "o_proj.weight"]}
        if i >= c["first_k_dense_replace"]:
            out[p + "exp_probs_b.bias"] = w[q + "mlp.gate.expert_bias"]
            for n in ("gate", "up", "down"):
                out[f"{p}ffn_{n}_exps.weight"] = np.stack([w[f"{q}mlp.experts.{e}.{n}_proj.weight"] for e in range(c["num_experts"])])
    return out


def write_gguf(path, c, w):
    import gguf
    out = gguf.GGUFWriter(path, ARCH)
    blocks = c["num_hidden_layers"] + c["num_nextn_predict_layers"]
    out.add_name("random ling")
    for key, value in {
        "context_length": c["max_position_embeddings"], "embedding_length": c["hidden_size"], "block_count": blocks,
        "feed_forward_length": c["intermediate_size"], "attention.head_count": c["num_attention_heads"], "vocab_size": c["vocab_size"],
        "attention.key_length": c["kv_lora_rank"] + c["qk_rope_head_dim"], "attention.value_length": c["kv_lora_rank"],
        "attention.key_length_mla": c["qk_nope_head_dim"] + c["qk_rope_head_dim"], "attention.value_length_mla": c["v_head_dim"],
        "attention.kv_lora_rank": c["kv_lora_rank"], "rope.dimension_count": c["qk_rope_head_dim"],
        "ssm.conv_kernel": c["short_conv_kernel_size"], "kda.head_dim": c["head_dim"], "expert_count": c["num_experts"],
        "expert_used_count": c["num_experts_per_tok"], "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_shared_feed_forward_length": c["moe_shared_expert_intermediate_size"] * c["num_shared_experts"],
        "expert_shared_count": c["num_shared_experts"], "leading_dense_block_count": c["first_k_dense_replace"],
        "expert_gating_func": 2, "expert_group_used_count": c["topk_group"],
    }.items():
        out.add_uint32(f"{ARCH}.{key}", value)
    if c["q_lora_rank"]:
        out.add_uint32(f"{ARCH}.attention.q_lora_rank", c["q_lora_rank"])
    if c["n_group"] > 1:
        out.add_uint32(f"{ARCH}.expert_group_count", c["n_group"])
    if c["num_nextn_predict_layers"]:
        out.add_uint32(f"{ARCH}.nextn_predict_layers", c["num_nextn_predict_layers"])
    out.add_array(f"{ARCH}.attention.head_count_kv", [int(is_mla(c, i)) for i in range(blocks)])
    out.add_float32(f"{ARCH}.attention.layer_norm_rms_epsilon", c["rms_norm_eps"])
    out.add_float32(f"{ARCH}.rope.freq_base", c["rope_theta"])
    out.add_float32(f"{ARCH}.expert_weights_scale", c["routed_scaling_factor"])
    out.add_float32(f"{ARCH}.kda.gate_lower_bound", c["kda_lower_bound"])
    out.add_bool(f"{ARCH}.kda.safe_gate", True)
    out.add_bool(f"{ARCH}.expert_weights_norm", c["norm_topk_prob"])
    for key, limits in (("exp", c["expert_swiglu_limit_list"]), ("shexp", c["share_expert_swiglu_limit_list"])):
        if limits:
            out.add_array(f"{ARCH}.swiglu_clamp_{key}", limits)
    tokens, merges = vocabulary(c)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("bailingmoe2")
    out.add_token_list(tokens)
    out.add_token_types([3 if t in SPECIALS else 5 if t.startswith("<|unused_") else 1 for t in tokens])
    out.add_token_merges(merges)
    out.add_eos_token_id(c["eos_token_id"])
    out.add_pad_token_id(c["pad_token_id"])
    out.add_bos_token_id(c["vocab_size"] - 5)
    out.add_add_bos_token(False)
    for name, a in gguf_tensors(c, w).items():
        out.add_tensor(name, np.ascontiguousarray(a, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def write_checkpoint(folder, c, w):
    os.makedirs(folder, exist_ok=True)
    save_safetensors(f"{folder}/model.safetensors", {name: (a, "F32" if is_f32(name) else "BF16") for name, a in w.items()})
    for name, value in (("config.json", c), ("tokenizer.json", tokenizer_json(c))):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(value, f, indent=1, ensure_ascii=False)
    tokens, _ = vocabulary(c)
    settings = {"bos_token": SPECIALS[0], "eos_token": SPECIALS[-1], "pad_token": SPECIALS[1], "tokenizer_class": "PreTrainedTokenizerFast",
                "added_tokens_decoder": {str(i): {"content": t, "special": True} for i, t in enumerate(tokens) if t in SPECIALS}}
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump(settings, f, indent=1)


def main(out, preset, seed=20260, extra={}):
    c = config(preset, extra)
    w = weights(c, seed, extra.get("follow", 0))
    (write_gguf if out.endswith(".gguf") else write_checkpoint)(out, c, w)
    return c


if __name__ == "__main__":
    words = sys.argv[3:]
    seed = int(words.pop(0)) if words and "=" not in words[0] else 20260
    main(sys.argv[1], sys.argv[2], seed, {k: float(v) if "." in v else int(v) for k, v in (w.split("=") for w in words)})
