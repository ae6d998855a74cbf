"""Compares the goldens of the published code with the float64 reference in tests/reference/kimi_ref.py.

usage: check_goldens.py

Recomputes golden/tiny.safetensors and golden/tiny_d128.safetensors from their seed: logits of each prompt and of its
greedy continuation, chosen experts and their weights, decays, latents, hidden states, and KDA states.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))
import gen_tiny  # noqa: E402
from kimi_ref import KimiRef  # noqa: E402

# The published code computes in float32.
TOLERANCE = 2e-5


def recompute(model, name, ids):
    """The value of a golden tensor, from the forward pass of its prompt."""
    prompt, *layer, what = name.split(".")
    n = int(prompt[1:])
    key = (n, what.startswith("decode"))
    if key not in model.runs:
        rec, state = {}, model.new_state()
        model.runs[key] = model.forward(ids, state, rec), rec, state
    logits, rec, state = model.runs[key]
    if not layer:
        return logits[n:] if what == "decode_logits" else logits
    index = int(layer[1])
    part = next(p for p in rec if p.startswith(f"model.layers.{index}.")).split(f".{index}.")[0] + f".{index}."
    attention, experts = part + "self_attn.", part + "block_sparse_moe."
    return {
        "experts": lambda: np.sort(rec[experts + "chosen"], -1),
        "expert_weights": lambda: np.take_along_axis(
            rec[experts + "weight"], np.argsort(rec[experts + "chosen"], -1), -1),
        "state": lambda: state[index]["S"],
        "conv_state": lambda: np.concatenate([state[index]["conv"][n].T for n in "qkv"]),
        "after_attn": lambda: rec[part + "after_attn"],
        "after_mlp": lambda: rec[part + "after_mlp"],
        "kda_g": lambda: rec[attention + "g"],
        "latent": lambda: rec[attention + "latent"],
        "k_pe": lambda: rec[attention + "k_pe"],
    }[what]()


def main():
    for preset in ("tiny", "tiny_d128"):
        golden = load_file(HERE / f"golden/{preset}.safetensors")
        with tempfile.TemporaryDirectory() as folder:
            gen_tiny.main(folder, preset)
            model = KimiRef(folder)
        model.runs, worst = {}, 0
        for name, value in sorted(golden.items()):
            if name.endswith("_ids"):
                continue
            n = name.split(".")[0]
            ids = golden[f"{n}.decode_ids" if "decode" in name else f"{n}.input_ids"].ravel()
            found = recompute(model, name, ids).reshape(-1)
            value = value.reshape(-1).astype(np.float64)
            assert found.shape == value.shape, f"{preset} {name}: {found.shape} values, expected {value.shape}"
            apart = np.abs(found - value).max() / np.abs(value).max()
            worst = max(worst, apart)
            assert apart <= TOLERANCE, f"{preset} {name}: {apart:.1e} of the maximum"
        print(f"{preset}: {len(golden)} tensors, at most {worst:.1e} of the maximum apart")


if __name__ == "__main__":
    main()
