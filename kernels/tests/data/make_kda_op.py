"""Makes kda_op.safetensors: the gated delta rule alone, with inputs in f32 and results rounded from f64 to f32.

usage: make_kda_op.py [--check]     --check computes the values again and compares them with the file

Inputs q, k, v, g, beta [tokens, heads, dim] and S0 [heads, dk, dv], results o and S, by the numpy reference
(tests/reference/kimi_ref.py). Cases: the first KDA layer with experts of two small models, slow decay, decay down to
e^-148 per token (harsh), one token, and equal keys without decay.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[2] / "tests"
sys.path.insert(0, str(TESTS / "reference"))
import gen_tiny  # noqa: E402
from kimi_ref import KimiRef, kda_recurrent  # noqa: E402

GOLDEN = HERE / "kda_op.safetensors"


def f32(values):
    return values.astype(np.float32).astype(np.float64)


def layer(preset):
    """The inputs of layer 1 for the first half of the longest golden prompt."""
    ids = load_file(TESTS / f"data/golden/{preset}.safetensors")["p300.input_ids"].ravel()[:150]
    with tempfile.TemporaryDirectory() as folder:
        gen_tiny.main(folder, preset)
        model = KimiRef(folder)
    rec = {}
    model.forward(ids, None, rec)
    q, k, v, g, beta = (f32(rec[f"model.layers.1.self_attn.{name}"]) for name in ("q", "k", "v", "g", "beta"))
    return q, k, v, g, beta, np.zeros((q.shape[1], q.shape[2], v.shape[2]))


def random(rng, shape, g):
    """Random inputs with unit keys and queries, for the log-decay `g`."""
    tokens, heads, dim = shape
    def unit(a):
        return a / np.sqrt((a * a).sum(-1, keepdims=True) + 1e-6)
    q = f32(unit(rng.standard_normal(shape)) * dim ** -.5)
    k = f32(unit(rng.standard_normal(shape)))
    v = f32(rng.standard_normal(shape))
    beta = f32(1 / (1 + np.exp(-rng.standard_normal((tokens, heads)))))
    return q, k, v, f32(g), beta, f32(rng.standard_normal((heads, dim, dim)))


def cases():
    for preset in ("tiny", "tiny_d128"):
        yield f"{preset}.layer1", layer(preset)
    rng = np.random.default_rng(7)
    for name, tokens, low, high in (("slow", 200, -9, -4), ("harsh", 200, -8, 5), ("one", 1, -8, 2)):
        shape = (tokens, 2, 128)
        yield name, random(rng, shape, -np.exp(rng.uniform(low, high, shape)))
    q, k, v, g, beta, state = random(rng, (130, 1, 128), np.zeros((130, 1, 128)))
    k[:], beta[:] = k[0], 1.0
    yield "same_key", (q, k, v, g, beta, state)


def compute():
    tensors = {}
    for name, (q, k, v, g, beta, state) in cases():
        o, after = np.empty_like(v), np.empty_like(state)
        for h in range(q.shape[1]):
            o[:, h], after[h] = kda_recurrent(q[:, h], k[:, h], v[:, h], g[:, h], beta[:, h], state[h])
        values = dict(q=q, k=k, v=v, g=g, beta=beta, S0=state, o=o, S=after)
        tensors |= {f"{name}.{key}": np.ascontiguousarray(value, np.float32) for key, value in values.items()}
    return tensors


def check(found, expected):
    assert found.keys() == expected.keys(), f"{sorted(found)} in the file, expected {sorted(expected)}"
    for name, value in expected.items():
        # The order of sums in a matrix product is the BLAS library's.
        apart = np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-30)
        assert apart <= 1e-6, f"{name}: {apart:.1e} of the maximum"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check(load_file(GOLDEN), compute())
    else:
        save_file(compute(), GOLDEN)
