"""Runs the same files in kimi and in llama.cpp (the xllamacpp wheel, in this process), in both directions.

usage: interop.py KIMI      KIMI is the binary; exit code 1 and a line if something differs

llama.cpp runs F32, Q8_0 and Q4_K_M files that kimi converts from a small random checkpoint, and the mixes that are named
after a codebook format; kimi runs F16 and Q8_0 files that llama.cpp's Python package writes with its converter's metadata, and files whose blocks of
each codebook format are written by ggml's quantizer. Greedy tokens must be equal for 64 steps. The engines
round activations differently, so the log-probabilities of the likeliest tokens differ slightly: the differences are
printed, and their mean is bounded. Sampling defaults of a checkpoint arrive in llama.cpp's server. The same holds for random
checkpoints of Ling 3.0, whose F32 file also has the tensors and keys of the one that gen_ling.py writes.
"""

import base64
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request

import gguf
import numpy as np
import xllamacpp

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "reference"))
import gen_ling  # noqa: E402
import gen_tiny  # noqa: E402
import tensor_list  # noqa: E402
from kimi_ref import read_safetensors  # noqa: E402

STEPS = 64
PROMPT = [17, 300, 5, 411, 90, 512, 33, 8, 700, 61, 254, 19]
VOCAB = 1024
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = np.arange(256, VOCAB - 256)
EMBED, HEAD = 8.0, 0.16
LIKELY = 5
# Sampling defaults, exact in f32.
DEFAULTS = {"temperature": 0.25, "top_k": 17, "top_p": 0.5, "min_p": 0.125}
# The mean difference of the likeliest tokens' log-probabilities that rounding explains. A single different choice of an
# expert moves some by up to 1.
ALLOWED = {"F32": 0.002, "F16": 0.02, "Q8_0": 0.1, "Q4_K_M": 0.1}
# The type of llama.cpp's KV cache.
CACHE = ["--cache-type", "f16"]
# Formats whose weights are vectors of a codebook, for all matrices whose rows are whole blocks of 256.
CODEBOOKS = ["IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"]
ALLOWED |= {kind: 0.1 for kind in CODEBOOKS}
# Fields of Ling's random checkpoints.
LING = [{}, {"q_lora_rank": 0, "n_group": 1, "topk_group": 1, "expert_limit": 0.5, "shared_limit": 0.25},
        {"num_nextn_predict_layers": 1, "first_k_dense_replace": 2, "layer_group_size": 3}]
WIDE_ROWS = r"(attn_(q|k|v|output)|ffn_(gate|up|down)(_exps|_shexp)?)\.weight"


def make_checkpoint(out):
    """A random checkpoint with a vocabulary of its own: all bytes, pairs of letters, 256 special ids.

    Random weights choose between near-equal logits and amplify rounding; trained ones do neither. So embeddings are
    made strong beside what the layers add, and each pair of letters makes one other likely.
    """
    gen_tiny.main(out, "tiny_d128", 11)
    path = os.path.join(out, "model.safetensors")
    types = {name: dtype for name, _, dtype in tensor_list.tensors(gen_tiny.config("tiny_d128"))}
    weights = read_safetensors(path)
    embed, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embed *= EMBED
    follows = np.random.default_rng(1).permutation(PAIRS)
    head[PAIRS] += HEAD * embed[follows] / EMBED
    gen_tiny.save_safetensors(path, {name: (a, types[name]) for name, a in weights.items()})
    tokens = [bytes([b]) for b in range(256)] + [(a + b).encode() for a in LETTERS for b in LETTERS]
    with open(os.path.join(out, "tiktoken.model"), "wb") as f:
        for rank, token in enumerate(tokens[:VOCAB - 256]):
            f.write(base64.b64encode(token) + b" %d\n" % rank)
    names = {VOCAB - 4: "[BOS]", VOCAB - 3: "[EOS]", VOCAB - 2: "<|im_end|>", VOCAB - 1: "[PAD]"}
    config = {"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
    config["added_tokens_decoder"] = {str(i): {"content": name, "special": True} for i, name in names.items()}
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump(config, f)


def parameters(path):
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 512, 1, 0, False
    return params


def peer(path):
    """llama.cpp's greedy tokens, and for each step the likeliest tokens with their log-probabilities."""
    server = xllamacpp.Server(parameters(path))
    request = {"prompt": PROMPT, "n_predict": STEPS, "n_probs": LIKELY, "temperature": 0, "ignore_eos": True}
    steps = server.handle_completions(request)["choices"][0]["logprobs"]["content"]
    top = [[(t["id"], t["logprob"]) for t in step["top_logprobs"]] for step in steps]
    return [step["id"] for step in steps], np.array(top)


def run(*command):
    """Runs a kimi command; returns its standard output."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def ours(kimi, path):
    how = ["-n", str(STEPS), "--temp", "0", "--print-ids", "--ignore-eos", "-q"]
    return [int(line) for line in run(kimi, "generate", "-m", path, "--ids", joined(PROMPT), *CACHE, *how).split()]


def our_logprobs(kimi, path, tokens, out):
    """The log-probabilities of all tokens at each of the given tokens after the prompt."""
    run(kimi, "logits", "-m", path, "--ids", joined(PROMPT + tokens), *CACHE, "-o", out)
    logits = np.load(out).astype(np.float64)[len(PROMPT) - 1:-1]
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def joined(ids):
    return ",".join(map(str, ids))


def compare(kimi, path, kind, whose):
    tokens, top = peer(path)
    ids, theirs = top[..., 0].astype(int), top[..., 1]
    mine = ours(kimi, path)
    logprobs = np.take_along_axis(our_logprobs(kimi, path, tokens, path + ".npy"), ids, -1)
    # The same weights in F32: the result without rounding of activations.
    exact_path = path + ".f32.gguf"
    run(kimi, "convert", path, "-o", exact_path, "--type", "f32")
    exact = np.take_along_axis(our_logprobs(kimi, exact_path, tokens, path + ".npy"), ids, -1)
    apart = np.abs(logprobs - theirs)
    equal = next((i for i, (a, b) in enumerate(zip(mine, tokens)) if a != b), len(tokens))
    print(f"{kind} written by {whose}: {equal} of {STEPS} greedy tokens equal; log-probabilities of the first token "
          f"within {apart[:, 0].max():.4f}, of the first {LIKELY} within {apart.max():.4f}, mean {apart.mean():.4f} "
          f"(from exact arithmetic: ours {np.abs(logprobs - exact).mean():.4f}, "
          f"llama.cpp's {np.abs(theirs - exact).mean():.4f})")
    return mine == tokens and len(tokens) == STEPS and apart.mean() <= ALLOWED[kind]


def write_theirs(checkpoint, path, kind):
    """Writes a file as llama.cpp's converter does, with its Python package."""
    with open(os.path.join(checkpoint, "config.json")) as f:
        c = json.load(f)
    weights = {name: a.astype(np.float32) for name, a in read_safetensors(f"{checkpoint}/model.safetensors").items()}
    writer = gguf.GGUFWriter(path, "kimi-linear")
    add_metadata(writer, c)
    for name, array in their_tensors(weights, c):
        small = array.ndim < 2 or not name.endswith(".weight") or "_norm." in name
        if small or "conv1d" in name or "ffn_gate_inp." in name:
            writer.add_tensor(name, array)
        elif kind == "F16":
            writer.add_tensor(name, array.astype(np.float16))
        elif kind in CODEBOOKS and re.search(WIDE_ROWS, name):
            writer.add_tensor(name, ggml_quantized(array, kind), raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            quantized = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ggml_quantized(array, kind):
    """The blocks that ggml makes with an importance of 1 for every column."""
    ggml = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, cols = array.reshape(-1, array.shape[-1]).shape
    x, importance = np.ascontiguousarray(array, np.float32), np.ones(cols, np.float32)
    out = np.zeros((*array.shape[:-1], cols // block * size), np.uint8)
    pointer = lambda a: ctypes.c_void_p(a.ctypes.data)
    sizes = [ctypes.c_int64(n) for n in (0, rows, cols)]
    written = ggml.ggml_quantize_chunk(int(kind), pointer(x), pointer(out), *sizes, pointer(importance))
    assert written == out.size, kind.name
    return out


def add_metadata(writer, c):
    la = c["linear_attn_config"]
    full = la["full_attn_layers"]
    latent = c["kv_lora_rank"] + c["qk_rope_head_dim"]
    numbers = {
        "vocab_size": c["vocab_size"], "context_length": c["model_max_length"], "embedding_length": c["hidden_size"],
        "block_count": c["num_hidden_layers"], "feed_forward_length": c["intermediate_size"],
        "leading_dense_block_count": c["first_k_dense_replace"], "attention.head_count": c["num_attention_heads"],
        "attention.key_length": latent, "attention.value_length": c["head_dim"],
        "attention.key_length_mla": c["qk_nope_head_dim"] + c["qk_rope_head_dim"],
        "attention.value_length_mla": c["v_head_dim"], "attention.kv_lora_rank": c["kv_lora_rank"],
        "rope.dimension_count": c["qk_rope_head_dim"], "ssm.conv_kernel": la["short_conv_kernel_size"],
        "kda.head_dim": la["head_dim"], "expert_count": c["num_experts"],
        "expert_used_count": c["num_experts_per_token"], "expert_shared_count": c["num_shared_experts"],
        "expert_feed_forward_length": c["moe_intermediate_size"], "expert_gating_func": 2, "expert_group_used_count": 1,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"kimi-linear.{key}", number)
    writer.add_float32("kimi-linear.attention.layer_norm_rms_epsilon", c["rms_norm_eps"])
    writer.add_float32("kimi-linear.expert_weights_scale", c["routed_scaling_factor"])
    writer.add_float32("kimi-linear.rope.freq_base", c["rope_theta"])
    writer.add_array("kimi-linear.attention.head_count_kv", [int(i + 1 in full) for i in range(c["num_hidden_layers"])])
    pairs = [a + b for a in LETTERS for b in LETTERS][:len(PAIRS)]
    tokens = gpt2_bytes() + pairs + [f"<{i}>" for i in range(VOCAB - 256, VOCAB)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("kimi-k2")
    writer.add_token_list(tokens)
    writer.add_token_types([1 if i < VOCAB - 256 else 3 for i in range(VOCAB)])
    writer.add_token_merges([f"{token[0]} {token[1]}" for token in pairs])
    writer.add_eos_token_id(VOCAB - 3)


def gpt2_bytes():
    """The 256 bytes in GPT-2's spelling: printable ones as they are, the others from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def their_tensors(weights, c):
    """The GGUF names and values of a checkpoint's tensors."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.KIMI_LINEAR, c["num_hidden_layers"])
    experts = {}
    for name, array in weights.items():
        layer = name.split(".")[2] if ".layers." in name else None
        if ".experts." in name:
            _, expert, which, _ = name.rsplit(".", 3)
            experts.setdefault((layer, which), {})[int(expert)] = array
        elif name.endswith("kv_b_proj.weight"):
            heads = array.reshape(c["num_attention_heads"], -1, c["kv_lora_rank"])
            nope = c["qk_nope_head_dim"]
            yield f"blk.{layer}.attn_k_b.weight", np.ascontiguousarray(heads[:, :nope].transpose(0, 2, 1))
            yield f"blk.{layer}.attn_v_b.weight", np.ascontiguousarray(heads[:, nope:])
        elif name.endswith("A_log"):
            yield f"blk.{layer}.ssm_a", -np.exp(array)
        elif name.endswith("dt_bias"):
            yield f"blk.{layer}.ssm_dt.bias", array
        elif name.endswith("e_score_correction_bias"):
            yield f"blk.{layer}.exp_probs_b.bias", array
        else:
            yield names.get_name(name, try_suffixes=(".weight",)), array
    for (layer, which), stack in experts.items():
        role = {"w1": "gate", "w2": "down", "w3": "up"}[which]
        yield f"blk.{layer}.ffn_{role}_exps.weight", np.stack([stack[e] for e in range(len(stack))])


def same_ling(path, theirs):
    """Whether a converted F32 file has the tensors, keys and vocabulary of the file that gen_ling.py writes."""
    ours, theirs = gguf.GGUFReader(path), gguf.GGUFReader(theirs)
    found = {t.name: t for t in ours.tensors}
    wrong = set(found) ^ {t.name for t in theirs.tensors}
    wrong |= {t.name for t in theirs.tensors if t.name in found and (
        list(found[t.name].shape) != list(t.shape) or not np.array_equal(found[t.name].data, t.data))}
    keys = [key for key in theirs.fields if key.startswith(("bailingmoe3.", "tokenizer.ggml.")) and key not in (
        "tokenizer.ggml.token_type", "tokenizer.ggml.add_bos_token")]
    wrong |= {key for key in keys if key not in ours.fields or ours.fields[key].contents() != theirs.fields[key].contents()}
    print(f"Ling: {len(found)} tensors and {len(keys)} keys, different: {sorted(wrong)}")
    return not wrong


def compare_ling(kimi, work):
    for number, fields in enumerate(LING):
        checkpoint = os.path.join(work, f"ling-{number}")
        for out in (checkpoint, checkpoint + ".gguf"):
            gen_ling.main(out, "tiny_d128", 11, {"follow": 1, **fields})
        for kind in ("F32", "Q8_0", "Q4_K_M"):
            path = f"{checkpoint}-{kind}.gguf"
            run(kimi, "convert", checkpoint, "-o", path, "--type", kind)
            yield compare(kimi, path, kind, f"kimi convert from Ling {fields}")
        yield same_ling(f"{checkpoint}-F32.gguf", checkpoint + ".gguf")


def has_sampling_defaults(kimi, checkpoint, path):
    """Whether llama.cpp's server takes the sampling defaults that kimi converts."""
    with open(os.path.join(checkpoint, "generation_config.json"), "w") as f:
        json.dump({**DEFAULTS, "repetition_penalty": 1.5}, f)
    run(kimi, "convert", checkpoint, "-o", path, "--type", "q8_0")
    server = xllamacpp.Server(parameters(path))
    with urllib.request.urlopen(server.listening_address + "/props") as answer:
        found = json.load(answer)["default_generation_settings"]["params"]
    expected = {**DEFAULTS, "repeat_penalty": 1.5}
    print(f"sampling defaults in llama.cpp: { {name: found[name] for name in expected} }")
    return all(found[name] == value for name, value in expected.items())


def main(kimi):
    with tempfile.TemporaryDirectory() as work:
        checkpoint = os.path.join(work, "checkpoint")
        make_checkpoint(checkpoint)
        results = []
        for kind in ("F32", "Q8_0", "Q4_K_M"):
            path = os.path.join(work, f"ours-{kind}.gguf")
            run(kimi, "convert", checkpoint, "-o", path, "--type", kind)
            results.append(compare(kimi, path, kind, "kimi convert"))
        for kind in ("F16", "Q8_0"):
            path = os.path.join(work, f"theirs-{kind}.gguf")
            write_theirs(checkpoint, path, kind)
            results.append(compare(kimi, path, kind, "llama.cpp's package"))
        for kind in CODEBOOKS:
            path = os.path.join(work, f"ours-{kind}.gguf")
            run(kimi, "convert", checkpoint, "-o", path, "--type", kind)
            results.append(compare(kimi, path, kind, "kimi convert"))
            path = os.path.join(work, f"theirs-{kind}.gguf")
            write_theirs(checkpoint, path, kind)
            results.append(compare(kimi, path, kind, "ggml's quantizer"))
        results.extend(compare_ling(kimi, work))
        results.append(has_sampling_defaults(kimi, checkpoint, os.path.join(work, "defaults.gguf")))
        return all(results)


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)
