#!/usr/bin/env python3
"""Records the format that llama.cpp gives each tensor in each of its mixes, for models with Kimi Linear's tensors.

    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    python3 tests/data/make_mixes.py package/bins/linux-x64 tests/data/mixes.json

The models have 27 layers and rows of 256 or 288 weights; each matrix has two rows. mixes.json has, for 8 and 16 experts,
with and without an importance matrix, and for each mix, the formats of each role in the order of layers, as `COUNT FORMAT` runs.
A mix that llama.cpp refuses without an importance matrix is absent there.
"""
import ctypes
import json
import os
import pathlib
import re
import sys
import tempfile

import gguf
import numpy as np

LAYERS = 27
FULL_ATTENTION = [3, 7, 11, 15, 19, 23, 26]
TABLE = (pathlib.Path(__file__).parents[2] / "convert/src/mix.rs").read_text()
MIXES = {name: int(number) for name, number in re.findall(r'name: "(\w+)", file_type: (\d+), base', TABLE)}
FLOATS = {"F32", "F16", "BF16"}


class Params(ctypes.Structure):
    """llama_model_quantize_params."""
    _fields_ = [("threads", ctypes.c_int32), ("ftype", ctypes.c_int), ("output", ctypes.c_int), ("embedding", ctypes.c_int),
                ("flags", ctypes.c_bool * 8), ("imatrix", ctypes.c_void_p), ("others", ctypes.c_void_p * 3)]


class Importance(ctypes.Structure):
    """llama_model_imatrix_data."""
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


def tensors(experts, cols):
    """Names and shapes, slowest dimension first."""
    yield "token_embd.weight", (2, cols)
    yield "output_norm.weight", (cols,)
    yield "output.weight", (2, cols)
    for i in range(LAYERS):
        matrices = ["attn_q", "attn_output"]
        if i in FULL_ATTENTION:
            matrices += ["attn_kv_a_mqa"]
            yield f"blk.{i}.attn_k_b.weight", (2, 2, cols)
            yield f"blk.{i}.attn_v_b.weight", (2, 2, cols)
        else:
            matrices += ["attn_k", "attn_v", "ssm_f_a", "ssm_f_b", "ssm_g_a", "ssm_g_b", "ssm_beta"]
        matrices += ["ffn_gate", "ffn_up", "ffn_down"] if i == 0 else [f"ffn_{m}_shexp" for m in ("gate", "up", "down")]
        for name in matrices:
            yield f"blk.{i}.{name}.weight", (2, cols)
        if i > 0:
            yield f"blk.{i}.ffn_gate_inp.weight", (experts, cols)
            for m in ("gate", "up", "down"):
                yield f"blk.{i}.ffn_{m}_exps.weight", (experts, 2, cols)


def write_model(path, experts, cols):
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "kimi-linear")
    numbers = {
        "vocab_size": 2, "context_length": 4096, "embedding_length": cols, "block_count": LAYERS, "feed_forward_length": cols,
        "leading_dense_block_count": 1, "attention.head_count": 2, "attention.key_length": 192,
        "attention.value_length": 128, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
        "attention.kv_lora_rank": 128, "rope.dimension_count": 64, "ssm.conv_kernel": 4, "kda.head_dim": 128,
        "expert_count": experts, "expert_used_count": 2, "expert_shared_count": 1, "expert_feed_forward_length": cols,
        "expert_gating_func": 2,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"kimi-linear.{key}", number)
    writer.add_float32("kimi-linear.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("kimi-linear.attention.head_count_kv", [int(i in FULL_ATTENTION) for i in range(LAYERS)])
    for name, shape in tensors(experts, cols):
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(lib, source, mix, model, weighted):
    """The name and format of each tensor, or None where llama.cpp refuses."""
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.threads = MIXES[mix], 2
    experts, cols = model
    ones = np.ones(experts * cols, np.float32)
    size = lambda shape: cols * (shape[0] if len(shape) == 3 else 1)
    entries = [Importance(name.encode(), ones.ctypes.data, size(shape)) for name, shape in tensors(experts, cols)]
    array = (Importance * (len(entries) + 1))(*entries)
    if weighted:
        params.imatrix = ctypes.addressof(array)
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.gguf")
        if lib.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)) != 0:
            return None
        return {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}


def runs(formats):
    """Per role, the formats in the order of layers, as runs."""
    by_role = {}
    for name, _ in tensors(8, 256):
        role = re.sub(r"^blk\.\d+\.", "", name)
        by_role.setdefault(role, []).append(formats[name])
    out = {}
    for role, sequence in by_role.items():
        cut = [[sequence[0], 0]]
        for name in sequence:
            if name != cut[-1][0]:
                cut.append([name, 0])
            cut[-1][1] += 1
        out[role.removesuffix(".weight")] = ", ".join(f"{count} {name}" for name, count in cut)
    return out


def main():
    folder, out = sys.argv[1:]
    for name in ("libggml-base.so", "libggml.v0.5.0.so", "libllama.v0.5.0.so"):
        lib = ctypes.CDLL(os.path.join(folder, name), mode=ctypes.RTLD_GLOBAL)
    lib.llama_model_quantize_default_params.restype = Params
    lib.llama_model_quantize.restype = ctypes.c_uint32
    found = []
    with tempfile.TemporaryDirectory() as work:
        for experts, cols in ((8, 256), (16, 256), (16, 288)):
            source = os.path.join(work, f"{experts}-{cols}.gguf")
            write_model(source, experts, cols)
            for weighted in (False, True):
                case = {}
                for mix in MIXES:
                    formats = None if mix in FLOATS else quantized(lib, source, mix, (experts, cols), weighted)
                    if formats:
                        case[mix] = runs(formats)
                found.append({"experts": experts, "cols": cols, "importance": weighted, "mixes": case})
    with open(out, "w") as f:
        json.dump({"full_attention": FULL_ATTENTION, "cases": found}, f, indent=0, sort_keys=True)
        f.write("\n")


main()
