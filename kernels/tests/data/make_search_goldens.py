#!/usr/bin/env python3
"""Records the errors of ggml's quantizers for the grid formats (IQ1, IQ2, IQ3), which kernels/src/quant/grid_search.rs must
not exceed.

    python3 make_search_goldens.py package/bins/linux-x64/libggml-base.so ../../../models/demo/kimi-demo.gguf quant/search/

(make_quant_goldens.py says where the library is from.) Writes into the folder
    <KIND>.f16       rows of COLS weights: Gaussian, Laplace, Gaussian with outliers, and weights of the demonstration model
    importance.f32   importance of the columns
    ggml.txt         format, kind, error with importance, error without: sums of (importance times) squared error, relative to
                     those of the weights. Without importance it is the smaller error of ggml's two ways: no matrix, where
                     ggml allows that, and a matrix of ones.
"""
import ctypes
import pathlib
import sys

import gguf
import numpy as np

from make_quant_goldens import IDS, RANDOM

COLS, ROWS = 1024, 8


def kinds(model):
    rng = np.random.default_rng(20261202)
    shape = (ROWS, COLS)
    outliers = rng.standard_normal(shape) * 0.02
    outliers[rng.random(shape) < 0.004] *= 20.0
    tensors = {t.name: t for t in gguf.GGUFReader(model).tensors}
    names = ["blk.0.attn_q", "blk.0.ffn_down", "blk.1.ffn_up_exps", "blk.2.ffn_down_exps", "blk.2.attn_output", "blk.3.ffn_gate_exps"]
    rows = []
    for name in names:
        t = tensors[f"{name}.weight"]
        values = gguf.quants.dequantize(t.data, t.tensor_type).reshape(-1)
        rows.append(values[8 * COLS:11 * COLS])
    return {
        "gaussian": rng.standard_normal(shape) * 0.02,
        "laplace": rng.laplace(size=shape) * 0.02,
        "outliers": outliers,
        "demo": np.concatenate(rows).reshape(-1, COLS),
    }


def importance():
    return np.exp(1.2 * np.random.default_rng(20261203).standard_normal(COLS)).astype(np.float32)


def values(lib, name, x, weights):
    """The values of ggml's blocks for whole rows."""
    size, _ = RANDOM[name]
    kind = IDS[name]
    stored = np.zeros(x.size // 256 * size, np.uint8)
    out = np.zeros(x.shape, np.float32)
    pointer = lambda a: ctypes.c_void_p(a.ctypes.data if a is not None else 0)
    sizes = [ctypes.c_int64(n) for n in (0, x.size // COLS, COLS)]
    lib.ggml_quantize_chunk(kind, pointer(x), pointer(stored), *sizes, pointer(weights))
    getattr(lib, f"dequantize_row_{name.lower()}")(pointer(stored), pointer(out), ctypes.c_int64(x.size))
    return out


def main():
    lib = ctypes.CDLL(sys.argv[1])
    out = pathlib.Path(sys.argv[3])
    out.mkdir(exist_ok=True)
    weights, ones, lines = importance(), np.ones(COLS, np.float32), []
    (out / "importance.f32").write_bytes(weights.tobytes())
    for kind, x in kinds(sys.argv[2]).items():
        half = x.astype(np.float16)
        (out / f"{kind}.f16").write_bytes(half.tobytes())
        x = np.ascontiguousarray(half.astype(np.float32))
        error = lambda w, y: float((w * (x.astype(np.float64) - y) ** 2).sum() / (w * x.astype(np.float64) ** 2).sum())
        for name in RANDOM:
            plain = [ones] if name in ("IQ1_S", "IQ2_XXS", "IQ2_XS") else [ones, None]
            without = min(error(1.0, values(lib, name, x, w)) for w in plain)
            lines.append(f"{name} {kind} {error(weights, values(lib, name, x, weights)):.6f} {without:.6f}\n")
    (out / "ggml.txt").write_text("".join(lines))


main()
