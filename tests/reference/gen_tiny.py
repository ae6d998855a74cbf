"""Makes a small random checkpoint in the official Kimi-Linear layout (names, dtypes, config fields). Needs only numpy.

tests/common/random_checkpoint.rs writes the same files.

usage: gen_tiny.py OUT PRESET [seed] [FIELD=VALUE ...]     e.g. gen_tiny.py out tiny_d128 5 num_experts=24 kda_heads=3"""
import json, os, struct, sys
import numpy as np
HERE = os.path.dirname(os.path.abspath(__file__)); sys.path.insert(0, HERE)
from tensor_list import tensors
PRESETS = {
 # odd sizes on purpose: hidden not a power of two, KDA heads != MLA heads, dk 32
 "tiny": dict(hidden_size=192, num_attention_heads=6, num_key_value_heads=6, vocab_size=1536, intermediate_size=320,
   moe_intermediate_size=96, num_experts=16, num_experts_per_token=4, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
   kda_heads=4, kda_dim=32),
 # real per-head geometry (dk 128, kv_lora 512, nope 128, rope 64, v 128), all row lengths multiples of 256 where the real ones are
 "tiny_d128": dict(hidden_size=256, num_attention_heads=2, num_key_value_heads=2, vocab_size=1024, intermediate_size=512,
   moe_intermediate_size=256, num_experts=16, num_experts_per_token=8, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
   kda_heads=2, kda_dim=128),
}
def save_safetensors(path, tensors):
    """tensors: name -> (array f32, "BF16" or "F32"). BF16 rounds to nearest even."""
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name in sorted(tensors):
        a, dt = tensors[name]; a = np.ascontiguousarray(a, np.float32)
        if dt == "BF16":
            u = a.view(np.uint32); a16 = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16); b = a16.tobytes()
        else: b = a.tobytes()
        header[name] = {"dtype": dt, "shape": list(a.shape), "data_offsets": [at, at + len(b)]}; blobs.append(b); at += len(b)
    h = json.dumps(header, separators=(",", ":")).encode(); h += b" " * (-len(h) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(h))); f.write(h); [f.write(b) for b in blobs]
def config(preset, extra={}):
    c = json.load(open(os.path.join(HERE, "official/config.json")))
    p = dict(PRESETS[preset], **extra); kh, kd = p.pop("kda_heads"), p.pop("kda_dim")
    n = p.setdefault("num_hidden_layers", 8); full = [i for i in range(1, n + 1) if i % 4 == 0 or i == n]      # as published: every fourth, and the last
    c.update(p); c["head_dim"] = c["hidden_size"] // c["num_attention_heads"]
    c["linear_attn_config"] = {"full_attn_layers": full, "head_dim": kd, "kda_layers": [i for i in range(1, n + 1) if i not in full], "num_heads": kh, "short_conv_kernel_size": 4}
    c["model_max_length"] = extra.get("model_max_length", 4096)
    v = c["vocab_size"]
    if v != 163840: c["bos_token_id"], c["eos_token_id"], c["pad_token_id"] = v - 4, v - 3, v - 1      # 163840: the real vocabulary and its ids
    return c
def main(out, preset, seed=20260, extra={}):
    os.makedirs(out, exist_ok=True); c = config(preset, extra); r = np.random.default_rng(seed); sd = {}
    for name, shape, dt in tensors(c):
        n = name.rsplit(".self_attn.")[-1] if ".self_attn." in name else name
        if name.endswith("A_log"): x = np.log(r.uniform(1, 16, shape))                      # official init
        elif name.endswith("dt_bias"): x = r.uniform(-7.0, 1.0, shape)                      # some channels remember ~1000s of tokens, some forget at once
        elif name.endswith("e_score_correction_bias"): x = r.normal(0, 0.15, shape)         # big enough to change the choice
        elif "norm" in name: x = 1 + r.normal(0, 0.15, shape)
        elif "conv1d" in name: x = r.normal(0, 0.5, shape)
        elif name.endswith("embed_tokens.weight"): x = r.normal(0, 1.0, shape)
        elif name.endswith("lm_head.weight"): x = r.normal(0, 2.5 / shape[1] ** 0.5, shape)
        elif name.endswith("gate.weight"): x = r.normal(0, 1.5 / shape[1] ** 0.5, shape)
        elif name.endswith("b_proj.weight") and "kv_b" not in name and "f_b" not in name and "g_b" not in name: x = r.normal(0, 1.5 / shape[1] ** 0.5, shape)
        elif "f_b_proj" in name: x = r.normal(0, 1.5 / shape[1] ** 0.5, shape)
        else: x = r.normal(0, 1.2 / shape[-1] ** 0.5, shape)
        sd[name] = (np.asarray(x, np.float32).reshape(shape), dt)
    save_safetensors(f"{out}/model.safetensors", sd)
    json.dump(c, open(f"{out}/config.json", "w"), indent=2)
    print(preset, "tensors", len(sd), "params", sum(a.size for a, _ in sd.values()), "MB", os.path.getsize(f"{out}/model.safetensors") / 1e6)
if __name__ == "__main__":
    words = sys.argv[3:]; seed = int(words.pop(0)) if words and "=" not in words[0] else 20260
    main(sys.argv[1], sys.argv[2], seed, {k: int(v) for k, v in (w.split("=") for w in words)})
