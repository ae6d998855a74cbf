"""Runs `kimi convert` on mutated checkpoints: config.json, safetensors headers and data, indices, tokenizer files, templates."""
import json, os, struct

import gguf, model, observe

VALUES = [None, True, False, 0, 1, -1, 2, 3, 7, 31, 33, 255, 1 << 16, (1 << 16) + 1, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 32, 1 << 53, 1 << 63,
          (1 << 64) - 1, 1 << 64, 10 ** 40, 0.5, 1e-5, 1e308, -1e308, "", "x", "\x1b[31m", "\u202e", "2", [], {}, [[]], [None], [1, 1], [0], {"a": []}, "x" * 100_000]
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I8", "U8", "BOOL", "F4", "XX", ""]
RAW_TEXTS = [b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000, b"\0" * 1000, b'{"a":1,"a":2}', b"1e999999", b'"\\ud800"']


def change_json(value, draw, depth=0):
    """A copy of a JSON value with one random change."""
    if isinstance(value, dict) and value and depth < 6 and draw.random() < 0.9:
        key, way = draw.choice(list(value)), draw.random()
        if way < 0.08:
            return {k: v for k, v in value.items() if k != key}
        if way < 0.14:
            return {**value, draw.choice(["", "extra", "\x1b]0;x\x07", "x" * 5000, "../a"]): draw.choice(VALUES)}
        return {**value, key: change_json(value[key], draw, depth + 1)}
    if isinstance(value, list) and value and depth < 6 and draw.random() < 0.8:
        at, way = draw.randrange(len(value)), draw.random()
        if way < 0.15:
            return value[:at] + value[at + 1:]
        if way < 0.3:
            return value[:at] + [value[at]] * draw.choice([2, 3, 5000]) + value[at + 1:]
        return value[:at] + [change_json(value[at], draw, depth + 1)] + value[at + 1:]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and draw.random() < 0.5:
        return draw.choice([value + 1, value - 1, value * 2, -value, value // 2, value + 32, float(value), str(value)])
    return draw.choice(VALUES)


def json_file(name):
    def change(files, draw):
        if name in files and draw.random() < 0.08:
            files[name] = draw.choice(RAW_TEXTS)
        elif name in files:
            try:
                value = json.loads(files[name])
            except (ValueError, RecursionError):
                return
            for _ in range(draw.choice([1, 1, 2, 3])):
                value = change_json(value, draw)
            files[name] = json.dumps(value).encode()
    return change


def shard_name(files, draw):
    names = [name for name in files if name.endswith(".safetensors")]
    return draw.choice(names) if names else None


def sound(entry):
    """Whether the file is still unchanged."""
    return isinstance(entry, dict) and isinstance(entry.get("shape"), list) and isinstance(entry.get("data_offsets"), list) and len(entry["data_offsets"]) == 2 \
        and all(type(n) is int for n in entry["data_offsets"])


def header(files, draw):
    """A header with another dtype, shape, offset, name or length."""
    name = shard_name(files, draw)
    blob = files.get(name, b"")
    if len(blob) < 8:
        return
    length, = struct.unpack_from("<Q", blob)
    if length > len(blob) - 8:
        return
    try:
        head, body = json.loads(blob[8:8 + length]), blob[8 + length:]
    except (ValueError, RecursionError):
        return
    way, entries = draw.randrange(9), [k for k in head if k != "__metadata__"] if isinstance(head, dict) else []
    if not entries:
        return
    entry = head[draw.choice(entries)]
    if way == 0 and sound(entry):
        entry["dtype"] = draw.choice(DTYPES)
    elif way == 1 and sound(entry):
        entry["shape"] = draw.choice([[], [0], [1 << 62, 4], [1 << 64], [-1], entry["shape"][::-1], entry["shape"] + [1], [1] + entry["shape"]])
    elif way == 2 and sound(entry):
        at = draw.randrange(2)
        entry["data_offsets"][at] = draw.choice([0, 1, entry["data_offsets"][at] + 2, len(body), 1 << 63, (1 << 64) - 1, -1])
    elif way == 3:
        del head[draw.choice(entries)]
    elif way == 4:
        head[draw.choice(["extra", "\x1b[31m", "lm_head.weight_scale_inv", "x" * 100_000])] = entry
    elif way == 5:
        head = change_json(head, draw)
    elif way == 6 and sound(entry) and sound(other := head[draw.choice(entries)]):
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    text = json.dumps(head).encode()
    if way == 7:
        text = draw.choice(RAW_TEXTS)
    size = len(text) if way != 8 else draw.choice(gguf.NUMBERS)
    files[name] = struct.pack("<Q", size) + text + body


def data(files, draw):
    """Writes NaN, infinities and noise into the weights, or removes or appends bytes."""
    name = shard_name(files, draw)
    if not name:
        return
    blob, way = bytearray(files[name]), draw.randrange(4)
    if way == 0:
        blob = blob[:draw.randrange(len(blob) + 1)]
    elif way == 1:
        blob += draw.randbytes(draw.randrange(1, 100))
    else:
        for _ in range(draw.choice([1, 10, 500]) if len(blob) > 30_000 else 0):
            at = draw.randrange(24_000, len(blob) - 4)
            blob[at:at + 2] = draw.choice([b"\xc0\x7f", b"\x80\x7f", b"\x80\xff", b"\x7f\x7f", draw.randbytes(2)])
    files[name] = bytes(blob)


def tokenizer(files, draw):
    if "tiktoken.model" not in files:
        return
    lines = files["tiktoken.model"].split(b"\n")
    for _ in range(draw.choice([1, 1, 3])):
        at = draw.randrange(len(lines))
        lines[at] = draw.choice([b"", b"YQ== 0", b"YQ==", b"= 1", b"YQ== -1", b"YQ== 99999999999999999999", b"\xff\xff 5", lines[at] + b" 7", b"YQ== 3 4",
                                 b"AAAA" * 50_000 + b" 9", b"\x1b[31m 4"])
    files["tiktoken.model"] = b"\n".join(lines * draw.choice([1, 1, 1, 2]))


def template(files, draw):
    files["chat_template.jinja"] = draw.choice([b"{{ messages }}", b"", b"{%", b"\xff", b"{{ '" + b"x" * 2_000_000 + b"' }}", b"{{" + b"(" * 50_000,
                                                b"{% if 1 %}" * 20_000, b"{{ " + b"-" * 50_000 + b"1 }}"])


def tokenizer_json(files, draw):
    """A vocabulary in the other format, valid or damaged."""
    letters = {("%c" % b if 33 <= b < 127 else chr(256 + b)): b for b in range(256)}
    value = {"model": {"type": "BPE", "vocab": letters, "merges": draw.choice([[], ["a b"], [["a", "b"]], ["a"], [1], ["a b"] * 5000])},
             "added_tokens": [{"id": id, "content": name, "special": True} for id, name in model.SPECIALS.items()],
             "pre_tokenizer": draw.choice([None, {"type": "ByteLevel"}, {"type": "Split", "pattern": {"Regex": "(a+)+$"}}, [], "x"])}
    for _ in range(draw.choice([0, 1, 2])):
        value = change_json(value, draw)
    files["tokenizer.json"] = json.dumps(value).encode()
    files.pop("tiktoken.model", None)


def index(files, draw):
    """Splits the checkpoint into shards with an index, which may be wrong."""
    blob = files.pop("model.safetensors", None)
    if blob is None:
        return
    length, = struct.unpack_from("<Q", blob.ljust(8))
    try:
        head, body = json.loads(blob[8:8 + length]), blob[8 + length:]
        names = [n for n, t in head.items() if n != "__metadata__" and isinstance(t["data_offsets"][1], int)]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        files["model.safetensors"] = blob
        return
    weight_map = {}
    for part in range(2):
        tensors = {n: (head[n]["dtype"], head[n]["shape"], body[slice(*head[n]["data_offsets"])]) for n in names[part::2]}
        shard = f"model-{part + 1:05}-of-00002.safetensors"
        files[shard] = model.safetensors(tensors)
        weight_map.update(dict.fromkeys(tensors, shard))
    value = {"metadata": {}, "weight_map": weight_map}
    way = draw.randrange(6)
    if way == 0:
        del files[shard]
    elif way == 1 and names:
        weight_map[draw.choice(names)] = draw.choice(["../x.safetensors", "/dev/zero", "", "x", "/etc/passwd", shard, "config.json"])
    elif way == 2:
        value = change_json(value, draw)
    elif way == 3 and names:
        value["weight_map"].pop(draw.choice(names))
    files["model.safetensors.index.json"] = json.dumps(value).encode()


def special_files(files, draw):
    name = draw.choice(list(files))
    files[name] = draw.choice(["fifo", "directory", "loop", "zero", "nothing", "sparse"])


CHANGES = [json_file("config.json")] * 5 + [header] * 4 + [data] * 2 + [tokenizer, tokenizer, json_file("tokenizer_config.json"), json_file("generation_config.json"),
           template, tokenizer_json, index, index]


def place(path, content):
    """Writes a file, or the link, pipe or directory that replaces it."""
    if isinstance(content, bytes):
        with open(path, "wb") as file:
            file.write(content)
    elif content == "fifo":
        os.mkfifo(path)
    elif content == "directory":
        os.mkdir(path)
    elif content == "loop":
        os.symlink(os.path.basename(path), path)
    elif content == "zero":
        os.symlink("/dev/zero", path)
    elif content == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)


class Checkpoints:
    def __init__(self, kimi, base, _):
        self.kimi, self.sound = kimi, model.checkpoint(2)

    def case(self, draw, directory):
        files = dict(self.sound)
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            draw.choice(CHANGES)(files, draw)
        if draw.random() < 0.05:
            special_files(files, draw)
        os.mkdir(os.path.join(directory, "checkpoint"))
        for name, content in files.items():
            place(os.path.join(directory, "checkpoint", name), content)
        kind = draw.choice(["q8_0", "f16", "q4_0", "bf16", "q4_k_m"])
        command = [self.kimi, "convert", "checkpoint", "--type", kind, "-o", "out.gguf", "--threads", "1"]
        done = observe.run(command, directory)
        fault = done.fault() or gguf.partial(directory, done)
        if not fault and done.code == 0:
            fault = self.runs(directory)
        return command, done, fault

    def runs(self, directory):
        """The converted file runs on token ids, whatever its template and vocabulary are."""
        command = [self.kimi, "generate", "-m", "out.gguf", "--ids", "1,2", "-n", "1", "--no-cache", "--threads", "1", "--quiet"]
        done = observe.run(command, directory)
        # Weights may be NaN, and a context may be shorter than this prompt.
        refused = any(text in done.error_text for text in ("logits at position", "context: expected at most"))
        fault = done.fault(codes=(0, 1) if refused else (0,))
        return f"converted, but then: {fault}: {done.error_text[:300].strip()}" if fault else None
