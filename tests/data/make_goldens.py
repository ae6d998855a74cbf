"""Trims the goldens of the published code to the tensors that tests/golden.rs reads.

usage: make_goldens.py REFERENCE_DIR OUT_DIR

REFERENCE_DIR holds `tiny` and `tiny_d128` with `goldens/goldens.safetensors`: logits and intermediate results of
the published model code (transformers, f32) on random checkpoints, which `tests/reference/gen_tiny.py` makes from their
seed. It keeps all logits, greedy continuations, chosen experts, and the states after the longest prompt.
`check_goldens.py` computes all kept tensors with the numpy reference.
"""
import sys

from safetensors.numpy import load_file, save_file

source, out = sys.argv[1:3]
for preset in ("tiny", "tiny_d128"):
    golden = load_file(f"{source}/{preset}/goldens/goldens.safetensors")
    kept = {}
    for name, value in golden.items():
        prompt, last = name.split(".")[0], name.split(".")[-1]
        n = int(prompt[1:])
        if last == "decode_logits":
            value = value[n:]                       # the positions after the prompt
        wanted = last in ("input_ids", "logits", "decode_ids", "decode_logits", "experts")
        wanted |= last in ("state", "conv_state") and n == 300
        wanted |= last in ("after_attn", "after_mlp", "kda_g", "latent", "k_pe", "expert_weights") and n == 7
        if wanted:
            kept[name] = value
    save_file(kept, f"{out}/{preset}.safetensors")
