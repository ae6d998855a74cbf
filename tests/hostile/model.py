"""Makes tiny models to attack: a checkpoint of a few tens of KB in the official layout with a byte vocabulary, converted by `kimi`."""
import base64, json, os, random, struct, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
REFERENCE = os.path.join(HERE, "..", "reference")
sys.path.insert(0, REFERENCE)
from tensor_list import tensors

VOCAB = 320
SPECIALS = {256: "[BOS]", 257: "[EOS]", 258: "<|im_end|>", 259: "<|im_user|>", 260: "<|im_assistant|>", 261: "<|im_system|>",
            262: "<|im_middle|>", 263: "[EOT]", 264: "<|tool_calls_section_begin|>", 265: "<|tool_calls_section_end|>",
            266: "<|tool_call_begin|>", 267: "<|tool_call_argument_begin|>", 268: "<|tool_call_end|>", 318: "[UNK]", 319: "[PAD]"}
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=VOCAB, intermediate_size=64,
             moe_intermediate_size=32, num_experts=4, num_experts_per_token=2, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=16,
             v_head_dim=32, head_dim=16, model_max_length=4096, bos_token_id=256, eos_token_id=257, pad_token_id=319)
KDA = dict(full_attn_layers=[2], kda_layers=[1], num_heads=2, head_dim=32, short_conv_kernel_size=4)


def config():
    with open(os.path.join(REFERENCE, "official", "config.json")) as file:
        return {**json.load(file), **SIZES, "linear_attn_config": dict(KDA)}


def bf16(values):
    return b"".join(struct.pack("<f", x)[2:] for x in values)


def f32(values):
    return struct.pack(f"<{len(values)}f", *values)


def weights(c, seed):
    """Dtype, shape and bytes by tensor name."""
    draw, out = random.Random(seed), {}
    for name, shape, dtype in tensors(c):
        count = 1
        for n in shape:
            count *= n
        if name.endswith("A_log"):
            values = [draw.uniform(0, 2.7) for _ in range(count)]
        elif "norm" in name:
            values = [draw.gauss(1, 0.1) for _ in range(count)]
        else:
            scale = 1.0 if "embed" in name or "bias" in name else 2.0 / shape[-1] ** 0.5
            values = [draw.gauss(0, scale) for _ in range(count)]
        out[name] = (dtype, list(shape), f32(values) if dtype == "F32" else bf16(values))
    return out


def safetensors(tensors):
    """The bytes of a safetensors file."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def tokenizer_files():
    ranks = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))
    added = {str(id): {"content": name, "special": True} for id, name in SPECIALS.items()}
    names = dict(bos_token="[BOS]", eos_token="[EOS]", pad_token="[PAD]", unk_token="[UNK]")
    return {"tiktoken.model": ranks, "tokenizer_config.json": json.dumps({"added_tokens_decoder": added, **names}).encode(),
            "generation_config.json": json.dumps({"eos_token_id": 258}).encode()}


def checkpoint(seed=1):
    """The files of a valid checkpoint, by name."""
    c = config()
    return {"config.json": json.dumps(c).encode(), "model.safetensors": safetensors(weights(c, seed)), **tokenizer_files()}


def write(directory, files):
    os.makedirs(directory, exist_ok=True)
    for name, data in files.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(data)


def build(kimi, directory, kinds=("q8_0", "f16", "q4_0", "bf16"), seed=1):
    """The paths of valid GGUF files by kind, made once per directory."""
    source, made = os.path.join(directory, f"checkpoint-{seed}"), {}
    for kind in kinds:
        made[kind] = os.path.join(directory, f"sound-{seed}-{kind}.gguf")
        if os.path.exists(made[kind]):
            continue
        if not os.path.exists(source):
            write(source, checkpoint(seed))
        command = [kimi, "convert", source, "--type", kind, "-o", made[kind]]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr.decode(errors='replace')}")
    return made
