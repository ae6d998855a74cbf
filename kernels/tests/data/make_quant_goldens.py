#!/usr/bin/env python3
"""Makes the golden bytes and values of the block formats with ggml.

    npm pack @node-llama-cpp/linux-x64@3.22.1          (or: curl -O the tarball from registry.npmjs.org)
    tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    python3 make_quant_goldens.py package/bins/linux-x64/libggml-base.so quant/

Writes into the folder
    input.f32     ROWS x COLS floats
    <FORMAT>.bin  the blocks of llama-quantize for them, without an importance matrix
    <FORMAT>.f32  the values of ggml's dequantize_row_* for those
                  for the formats in RANDOM: random blocks, and their values by ggml and by the Python package gguf
    hashes.txt    format, FNV-1a of the bytes and of the values for the longer input of `generated`
    importance.f32, weighted/<FORMAT>.bin, weighted/hashes.txt   the same with an importance matrix (WEIGHTED): the inputs
                  are cut into rows of the lengths there, and importance.f32 is the importance of the columns
"""
import ctypes
import pathlib
import re
import sys

import gguf
import numpy as np

# The ggml type ids, from the table of formats.
TABLE = (pathlib.Path(__file__).parents[2] / "src/quant/mod.rs").read_text().split("formats! { $")[1].split("}")[0]
IDS = {name: int(id) for name, id in re.findall(r"(\w+) = (\d+) =>", TABLE)}

COLS = 256
GENERATED = 512  # super-blocks

# name: (block length, block bytes, quantize, dequantize)
FORMATS = {
    "F16": (1, 2, "ggml_fp32_to_fp16_row", "ggml_fp16_to_fp32_row"),
    "BF16": (1, 2, "ggml_fp32_to_bf16_row_ref", "ggml_bf16_to_fp32_row"),
    "Q4_0": (32, 18, "quantize_row_q4_0_ref", "dequantize_row_q4_0"),
    "Q4_1": (32, 20, "quantize_row_q4_1_ref", "dequantize_row_q4_1"),
    "Q5_0": (32, 22, "quantize_row_q5_0_ref", "dequantize_row_q5_0"),
    "Q5_1": (32, 24, "quantize_row_q5_1_ref", "dequantize_row_q5_1"),
    "Q8_0": (32, 34, "quantize_row_q8_0_ref", "dequantize_row_q8_0"),
    "Q2_K": (256, 84, "quantize_row_q2_K_ref", "dequantize_row_q2_K"),
    "Q3_K": (256, 110, "quantize_row_q3_K_ref", "dequantize_row_q3_K"),
    "Q4_K": (256, 144, "quantize_row_q4_K_ref", "dequantize_row_q4_K"),
    "Q5_K": (256, 176, "quantize_row_q5_K_ref", "dequantize_row_q5_K"),
    "Q6_K": (256, 210, "quantize_row_q6_K_ref", "dequantize_row_q6_K"),
    "IQ4_NL": (32, 18, "quantize_iq4_nl", "dequantize_row_iq4_nl"),
    "IQ4_XS": (256, 136, "quantize_row_iq4_xs_ref", "dequantize_row_iq4_xs"),
    "MXFP4": (32, 17, "quantize_row_mxfp4_ref", "dequantize_row_mxfp4"),
}

# Formats whose blocks are random here, because kernels/src/quant/grid_search.rs makes other bytes than ggml's quantizers.
# name: (block bytes, the byte that holds the top of d)
RANDOM = {
    "IQ1_S": (50, 1),
    "IQ1_M": (56, 55),
    "IQ2_XXS": (66, 1),
    "IQ2_XS": (74, 1),
    "IQ2_S": (82, 1),
    "IQ3_XXS": (98, 1),
    "IQ3_S": (110, 1),
}
BLOCKS = 24

# Formats that an importance matrix changes, with the length of a row: not whole multiples of 8 blocks.
WEIGHTED = {name: 320 if FORMATS[name][0] == 32 else 1280
            for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")}


def rows():
    """A row of each kind that a quantizer may treat differently."""
    rng = np.random.default_rng(20261121)
    gauss = lambda scale: rng.standard_normal(COLS) * scale
    i = np.arange(COLS)
    outlier = gauss(0.02)
    outlier[77] = -9.5
    sparse = np.where(i % 19 == 3, gauss(1.0), 0.0)
    blocks = gauss(1.0) * np.repeat(10.0 ** np.arange(-4, 4), 32)
    ties = np.where(i % 2 == 0, 0.75, -0.75) * np.where(i % 7 == 0, 1.0, 0.5)
    return np.stack([
        gauss(0.02), gauss(0.02), gauss(1.0), gauss(300.0), rng.uniform(-1, 1, COLS),
        np.zeros(COLS), np.full(COLS, 0.5), np.full(COLS, -0.37), outlier, gauss(1e-30), gauss(1e-41),
        gauss(12000.0), np.where(i % 2 == 0, 1.0, -1.0), ties, i / 255.0, -i / 64.0, sparse, blocks,
        np.abs(gauss(0.1)) + 1.0, np.round(gauss(3.0)),
    ]).astype(np.float32)


def generated():
    """GENERATED super-blocks, each with its own power of two as scale, exact in every language."""
    state = np.uint64(88172645463325252)
    out = np.empty((GENERATED, 256), np.float32)
    with np.errstate(over="ignore"):
        for block in range(GENERATED):
            for i in range(256):
                state ^= state << np.uint64(13)
                state ^= state >> np.uint64(7)
                state ^= state << np.uint64(17)
                v = sum((int(state) >> s & 0xFFFF) - 0x8000 for s in (0, 16, 32, 48))
                out[block, i] = np.ldexp(np.float32(v), -17 - block % 13)
    return out


def fnv1a(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def through(lib, name, x):
    length, size, quantize, dequantize = FORMATS[name]
    lib.ggml_quantize_init(IDS[name])  # makes the tables of the formats with large codebooks
    stored = np.zeros(x.size // length * size, np.uint8)
    values = np.zeros(x.size, np.float32)
    pointer = lambda a: ctypes.c_void_p(a.ctypes.data)
    if quantize.startswith("quantize_iq"):  # one row, no importance matrix
        sizes = (ctypes.c_int64(1), ctypes.c_int64(x.size), None)
    else:
        sizes = (ctypes.c_int64(x.size),)
    getattr(lib, quantize)(pointer(x), pointer(stored), *sizes)
    getattr(lib, dequantize)(pointer(stored), pointer(values), ctypes.c_int64(x.size))
    return stored.tobytes(), values.tobytes()


def random_blocks(lib, name):
    """Random blocks whose d is finite, and their values, on which ggml and gguf must agree."""
    size, top = RANDOM[name]
    rng = np.random.default_rng(IDS[name])
    blocks = rng.integers(0, 256, (BLOCKS, size), np.uint8)
    blocks[:, top] &= 0xBF  # the top bit of d's exponent
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    theirs = np.zeros(values.size, np.float32)
    pointer = lambda a: ctypes.c_void_p(a.ctypes.data)
    getattr(lib, f"dequantize_row_{name.lower()}")(pointer(blocks), pointer(theirs), ctypes.c_int64(theirs.size))
    assert np.isfinite(values).all() and (theirs.view(np.uint32) == values.ravel().view(np.uint32)).all(), name
    return blocks.tobytes(), values.astype("<f4").tobytes()


def importance():
    """Importance that spans orders of magnitude, with columns that no input reaches."""
    rng = np.random.default_rng(20261201)
    v = np.exp(2.0 * rng.standard_normal(1280))
    v[rng.integers(0, v.size, 40)] = 0.0
    v[1024:1056] = 0.0  # a whole sub-block
    return v.astype(np.float32)


def weighted(lib, name, x, importance):
    """The bytes that ggml makes of whole rows with an importance matrix."""
    length, size, _, _ = FORMATS[name]
    cols = WEIGHTED[name]
    rows = x.size // cols
    stored = np.zeros(rows * cols // length * size, np.uint8)
    pointer = lambda a: ctypes.c_void_p(a.ctypes.data)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    sizes = [ctypes.c_int64(n) for n in (0, rows, cols)]
    written = lib.ggml_quantize_chunk(IDS[name], pointer(x), pointer(stored), *sizes, pointer(importance))
    assert written == stored.size, name
    return stored.tobytes()


def main():
    lib = ctypes.CDLL(sys.argv[1])
    out = pathlib.Path(sys.argv[2])
    x, longer = rows(), generated()
    (out / "input.f32").write_bytes(x.tobytes())
    hashes = []
    for name in FORMATS:
        stored, values = through(lib, name, x)
        (out / f"{name}.bin").write_bytes(stored)
        (out / f"{name}.f32").write_bytes(values)
        stored, values = through(lib, name, longer)
        hashes.append(f"{name} {fnv1a(stored):016x} {fnv1a(values):016x}\n")
    for name in RANDOM:
        stored, values = random_blocks(lib, name)
        (out / f"{name}.bin").write_bytes(stored)
        (out / f"{name}.f32").write_bytes(values)
    (out / "hashes.txt").write_text("".join(hashes))
    columns, hashes = importance(), []
    (out / "importance.f32").write_bytes(columns.tobytes())
    (out / "weighted").mkdir(exist_ok=True)
    for name in WEIGHTED:
        (out / "weighted" / f"{name}.bin").write_bytes(weighted(lib, name, x, columns))
        hashes.append(f"{name} {fnv1a(weighted(lib, name, longer, columns)):016x}\n")
    (out / "weighted/hashes.txt").write_text("".join(hashes))


if __name__ == "__main__":
    main()
