"""Structure-aware mutation of GGUF files, run through `inspect`, `generate` and `convert`."""
import os, struct

import model, observe

SIZE = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
CODE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
NUMBERS = [0, 1, 2, 3, 7, 31, 33, 64, 255, 256, 4096, 65535, 65536, 1 << 24, (1 << 24) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
           1 << 32, (1 << 53) + 1, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1]
FLOATS = [0.0, -0.0, -1.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan")]
NAMES = [b"", b"\xff\xfe", b"\x1b]0;x\x07", b"a\nb", b"\xe2\x80\xaeabc", b"\xc2\x9b31m", b"x" * 65, b"x" * 100_000, b"../../etc/passwd",
         b"blk.999999999999999999999.attn_q.weight", b"blk.-1.attn_q.weight", b"blk..weight", b"\0", b"general.alignment"]


def string(text):
    return struct.pack("<Q", len(text)) + text


class File:
    """A parsed GGUF file: metadata as [key, type, encoded value], tensors as [name, dims, type, offset], data."""

    def __init__(self, blob):
        self.magic, self.version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", blob)
        self.blob, self.at = blob, 24
        self.keys = [self.key() for _ in range(n_keys)]
        self.tensors = [self.tensor() for _ in range(n_tensors)]
        start = -(-self.at // 32) * 32
        self.data, self.pad = bytearray(blob[start:]), 32
        self.n_keys = self.n_tensors = self.cut = self.dims = None
        del self.blob

    def take(self, code):
        value, = struct.unpack_from("<" + code, self.blob, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self):
        length = self.take("Q")
        self.at += length
        return self.blob[self.at - length:self.at]

    def key(self):
        key, kind, start = self.text(), self.take("I"), self.at
        self.skip(kind)
        return [key, kind, self.blob[start:self.at]]

    def skip(self, kind):
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            inner, count = self.take("I"), self.take("Q")
            for _ in range(count if inner in (STRING, ARRAY) else 0):
                self.skip(inner)
            self.at += count * SIZE.get(inner, 0)
        else:
            self.at += SIZE[kind]

    def tensor(self):
        name, n = self.text(), self.take("I")
        return [name, [self.take("Q") for _ in range(n)], self.take("I"), self.take("Q")]

    def copy(self):
        other = object.__new__(File)
        other.__dict__.update(self.__dict__)
        other.keys = [list(key) for key in self.keys]
        other.tensors = [[name, list(dims), kind, at] for name, dims, kind, at in self.tensors]
        other.data = bytearray(self.data)
        return other

    def find(self, name):
        return next((key for key in self.keys if key[0] == name), None)

    def bytes(self):
        out = [struct.pack("<4sIQQ", self.magic, self.version & 0xFFFFFFFF, self.n_tensors if self.n_tensors is not None else len(self.tensors),
                           self.n_keys if self.n_keys is not None else len(self.keys))]
        out += [string(key) + struct.pack("<I", kind & 0xFFFFFFFF) + value for key, kind, value in self.keys]
        for i, (name, dims, kind, at) in enumerate(self.tensors):
            count = self.dims[1] if self.dims and self.dims[0] == i else len(dims)
            out.append(string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, at))
        head = b"".join(out)
        return head + b"\0" * (-len(head) % self.pad) + bytes(self.data)


def number(draw, kind):
    if kind in (6, 12):
        return struct.pack("<" + CODE[kind], draw.choice(FLOATS if kind == 6 else FLOATS + [1e308]))
    value = draw.choice(NUMBERS) if draw.random() < 0.8 else draw.getrandbits(64)
    if draw.random() < 0.2:
        value = -value
    return (value & ((1 << 64) - 1)).to_bytes(8, "little")[:SIZE[kind]]


def random_value(draw, depth=0):
    """A random metadata type with an encoded value."""
    kind = draw.choice([*SIZE, STRING, ARRAY])
    if kind == STRING:
        return kind, string(draw.choice(NAMES))
    if kind != ARRAY:
        return kind, number(draw, kind)
    if depth == 0 and draw.random() < 0.2:
        deep = draw.choice([2, 64, 1000, 100_000])
        return kind, struct.pack("<IQ", ARRAY, 1) * deep + struct.pack("<IQ", draw.choice([0, 99]), 0)
    count, (inner, value) = draw.choice([0, 1, 2, 3]), random_value(draw, 1)
    return kind, struct.pack("<IQ", inner, count) + value * count


# Mutations: each changes a file in one way.
def change_number(file, draw):
    """Changes a value, most often a hyperparameter, in its own type or another integer type."""
    key = draw.choice([k for k in file.keys if k[1] not in (STRING, ARRAY)] or file.keys)
    if draw.random() < 0.2:
        key[1] = draw.choice(list(SIZE))
    if key[1] in SIZE:
        key[2] = number(draw, key[1])


def nudge_number(file, draw):
    keys = [k for k in file.keys if k[1] in (4, 5, 10, 11)]
    if keys:
        key = draw.choice(keys)
        value = int.from_bytes(key[2], "little")
        value = draw.choice([value + 1, value - 1, value * 2, value // 2, value + 32])
        key[2] = (value & ((1 << 64) - 1)).to_bytes(8, "little")[:SIZE[key[1]]]


def change_value(file, draw):
    draw.choice(file.keys)[1:] = random_value(draw)


def change_type(file, draw):
    draw.choice(file.keys)[1] = draw.choice([*range(14), 255, 0xFFFFFFFF])


def change_array(file, draw):
    """Changes length, element type or elements of a list: layers' kinds, tokens, merges."""
    key = draw.choice([k for k in file.keys if k[1] == ARRAY] or file.keys)
    if key[1] != ARRAY or len(key[2]) < 12:  # an earlier change may have cut it
        return
    inner, count = struct.unpack_from("<IQ", key[2])
    body = bytearray(key[2][12:])
    way = draw.randrange(5)
    if way == 0:
        count = draw.choice(NUMBERS + [count + 1, max(count, 1) - 1])
    elif way == 1:
        inner = draw.choice([*range(14), 99])
    elif way == 2 and inner in SIZE and count:
        at = draw.randrange(count) * SIZE[inner]
        body[at:at + SIZE[inner]] = number(draw, inner)
    elif way == 3 and body:
        flip(body, draw, draw.randrange(1, 8))
    else:
        keep = draw.randrange(count + 1) if count else 0
        if inner in SIZE:
            count, body = keep, body[:keep * SIZE[inner]]
        else:
            inner, count = STRING, draw.choice([1, 3, 400])
            body = b"".join(string(draw.choice(NAMES[:7]) + b"%d" % i) for i in range(count))
    key[2] = struct.pack("<IQ", inner, count) + bytes(body)


def change_tokens(file, draw):
    """Duplicates, empties, extends or damages tokens of the vocabulary."""
    key = file.find(b"tokenizer.ggml.tokens")
    if not key or key[1] != ARRAY:
        return
    tokens = [b"%c" % (65 + i % 26) * (1 + i % 9) for i in range(draw.choice([1, 319, 320, 321, 5000]))]
    for _ in range(draw.randrange(4)):
        tokens[draw.randrange(len(tokens))] = draw.choice(NAMES)
    key[2] = struct.pack("<IQ", STRING, len(tokens)) + b"".join(map(string, tokens))


def change_merges(file, draw):
    pieces = [b"", b" ", b"a", b"a b", b"a  b", b"\xff \xff", b"a b c", b"\xc4\xa0 t"]
    count = draw.choice([1, 10, 3000])
    value = struct.pack("<IQ", STRING, count) + b"".join(string(draw.choice(pieces)) for _ in range(count))
    key = file.find(b"tokenizer.ggml.merges")
    if key:
        key[1:] = [ARRAY, value]
    else:
        file.keys.append([b"tokenizer.ggml.merges", ARRAY, value])


def change_keys(file, draw):
    at = draw.randrange(len(file.keys))
    way = draw.randrange(5)
    if way == 0:
        del file.keys[at]
    elif way == 1:
        file.keys.insert(draw.randrange(len(file.keys)), list(file.keys[at]))
    elif way == 2:
        file.keys[at][0] = draw.choice(NAMES)
    elif way == 3:
        draw.shuffle(file.keys)
    else:
        file.keys += [[b"extra.%d" % i, *random_value(draw)] for i in range(draw.choice([1, 10, 1000]))]


def change_alignment(file, draw):
    value = draw.choice([0, 1, 2, 3, 8, 16, 33, 64, 4096, 1 << 30, 1 << 31, (1 << 32) - 1])
    file.keys.append([b"general.alignment", 4, struct.pack("<I", value)])
    if draw.random() < 0.5 and 0 < value <= 4096:
        file.pad = value


def change_split(file, draw):
    count = draw.choice([0, 1, 2, 65535])
    for key, value in [(b"split.no", draw.choice([0, 1])), (b"split.count", count), (b"split.tensors.count", draw.choice([0, len(file.tensors)]))]:
        file.keys.append([key, 2, struct.pack("<H", value)])


def change_dims(file, draw):
    tensor = draw.choice(file.tensors)
    dims, way = tensor[1], draw.randrange(7)
    if way == 0 and dims:
        dims[draw.randrange(len(dims))] = draw.choice(NUMBERS)
    elif way == 1 and dims:
        at = draw.randrange(len(dims))
        dims[at] = max(dims[at] + draw.choice([-1, 1, 32, -32]), 0)
    elif way == 2:
        draw.shuffle(dims)
    elif way == 3:
        dims.insert(draw.randrange(len(dims) + 1), draw.choice([1, 1, 0, 2]))
    elif way == 4 and len(dims) > 1:
        dims[:2] = [dims[0] * dims[1]]
    elif way == 5 and dims:
        dims.pop()
    else:
        tensor[1] = [draw.choice(NUMBERS) for _ in range(draw.choice([0, 1, 4, 5]))]


def change_tensor_type(file, draw):
    draw.choice(file.tensors)[2] = draw.choice([*range(42), 99, 0xFFFFFFFF])


def change_offset(file, draw):
    tensor = draw.choice(file.tensors)
    near = [tensor[3] + 32, max(tensor[3] - 32, 0), tensor[3] + 1, len(file.data), len(file.data) - 1]
    tensor[3] = draw.choice(NUMBERS + near) & ((1 << 64) - 1)


def change_tensors(file, draw):
    at, way = draw.randrange(len(file.tensors)), draw.randrange(6)
    if way == 0:
        del file.tensors[at]
    elif way == 1:
        file.tensors.insert(at, list(file.tensors[at]))
    elif way == 2:
        file.tensors[at][0] = draw.choice(NAMES)
    elif way == 3:
        other = draw.randrange(len(file.tensors))
        a, b = file.tensors[at], file.tensors[other]
        a[0], b[0] = b[0], a[0]
    elif way == 4:
        draw.shuffle(file.tensors)
    else:
        file.tensors += [[b"extra.%d" % i, [0], 0, 0] for i in range(draw.choice([1, 100, 3000]))]


def lie(file, draw):
    """Changes the counts, the version or the magic."""
    way = draw.randrange(5)
    if way == 0:
        file.n_keys = draw.choice(NUMBERS + [len(file.keys) + 1, len(file.keys) - 1])
    elif way == 1:
        file.n_tensors = draw.choice(NUMBERS + [len(file.tensors) + 1, len(file.tensors) - 1])
    elif way == 2:
        file.dims = draw.randrange(len(file.tensors)), draw.choice([0, 1, 3, 4, 5, 64, (1 << 32) - 1])
    elif way == 3:
        file.version = draw.choice([0, 1, 2, 4, 1 << 24, (1 << 32) - 1])
    else:
        file.magic = draw.choice([b"FUGG", b"GGML", b"\0\0\0\0", b"PK\3\4"])


def change_data(file, draw):
    """Makes weights NaN, infinite, huge, or noise."""
    for _ in range(draw.choice([1, 4, 50])):
        at = draw.randrange(len(file.data))
        file.data[at:at + 4] = draw.choice([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\x7e\0\x7e", b"\xff\x7b\xff\x7b", b"\xff" * 4, draw.randbytes(4)])
    if draw.random() < 0.2:
        file.data[:] = draw.choice([b"\0", b"\xff", b"\x7e", b"\x7c"]) * len(file.data)


def flip(blob, draw, count):
    for _ in range(count):
        blob[draw.randrange(len(blob))] ^= 1 << draw.randrange(8)


MUTATIONS = [change_number] * 4 + [nudge_number] * 3 + [change_dims] * 3 + [change_value, change_type, change_array, change_array, change_tokens,
             change_merges, change_keys, change_keys, change_alignment, change_split, change_tensor_type, change_tensor_type, change_offset,
             change_tensors, change_tensors, lie, change_data, change_data]


def mutate(sound, draw):
    """The bytes of a damaged copy."""
    file = sound.copy()
    for _ in range(draw.choice([0, 1, 1, 1, 1, 2, 2, 3])):
        if file.keys and file.tensors:
            draw.choice(MUTATIONS)(file, draw)
    blob = file.bytes()
    way = draw.random()
    if way < 0.06:
        return blob[:draw.randrange(len(blob) + 1)]
    if way < 0.10:
        return blob[:-draw.randrange(1, 4096)]
    if way < 0.12:
        return blob + draw.randbytes(draw.randrange(1, 5000))
    if way < 0.25:
        blob = bytearray(blob)
        flip(blob, draw, draw.choice([1, 1, 2, 8, 64])) if draw.random() < 0.5 else flip_head(blob, draw)
    return bytes(blob)


def flip_head(blob, draw):
    head = min(len(blob), 12_000)
    for _ in range(draw.choice([1, 2, 4])):
        at = draw.randrange(head)
        blob[at:at + 8] = draw.choice([blob[at:at + 8][::-1], draw.choice(NUMBERS).to_bytes(8, "little"), b""])


def split(sound, draw):
    """Splits the file into two parts with half of the tensors each."""
    parts, cut = {}, draw.randrange(len(sound.tensors) + 1)
    for no, tensors in enumerate([sound.tensors[:cut], sound.tensors[cut:]]):
        part, data = sound.copy(), bytearray()
        part.tensors = []
        for name, dims, kind, at in tensors:
            end = min([t[3] for t in sound.tensors if t[3] > at] + [len(sound.data)])
            part.tensors.append([name, list(dims), kind, len(data)])
            data += sound.data[at:end]
        part.data = data or bytearray(32)
        part.keys = (part.keys if no == 0 else []) + [[key, 2, struct.pack("<H", n)] for key, n in
                                                      [(b"split.no", no), (b"split.count", 2), (b"split.tensors.count", len(sound.tensors))]]
        parts[f"m-{no + 1:05}-of-00002.gguf"] = part
    return parts


class Gguf:
    """Runs one command on mutated files."""

    def __init__(self, kimi, base, _):
        self.kimi, self.sound = kimi, []
        for path in model.build(kimi, base).values():
            with open(path, "rb") as file:
                self.sound.append(File(file.read()))

    def case(self, draw, directory):
        sound = draw.choice(self.sound)
        parts = {"m.gguf": sound} if draw.random() < 0.92 else split(sound, draw)
        damaged = draw.choice(list(parts))
        for name, part in parts.items():
            with open(os.path.join(directory, name), "wb") as file:
                file.write(mutate(part, draw) if name == damaged else part.bytes())
        return self.judge(draw, directory, draw.choice(list(parts)))


class Inspect(Gguf):
    def judge(self, draw, directory, name):
        command = [self.kimi, "inspect", name] + draw.choice([[], [], ["--json"], ["--tensors"], ["--context", "4096"]])
        done = observe.run(command, directory)
        return command, done, done.fault() or raw_output(done)


class Generate(Gguf):
    def judge(self, draw, directory, name):
        prompt = draw.choice([["--ids", "1,2,3"], ["--ids", "0,319"], ["Hi"], ["--raw", "Hi"], ["--system", "S", "Hi"]])
        command = [self.kimi, "generate", "-m", name, "-n", "3", "--no-cache", "--threads", "1", "--temp", "0", "--quiet", *prompt]
        done = observe.run(command, directory)
        fault = done.fault()
        if not fault and done.code == 0 and draw.random() < 0.3:
            fault = self.otherwise(command, directory, done.stdout)
        return command, done, fault

    def otherwise(self, command, directory, expected):
        """Output is the same token by token and on two threads."""
        at = command.index("--threads")
        done = observe.run(command[:at] + ["--threads", "2", "--batch", "1"] + command[at + 2:], directory)
        return done.fault(codes=(0,)) or (None if done.stdout == expected else "another reply token by token")


class Requantize(Gguf):
    def judge(self, draw, directory, name):
        command = [self.kimi, "convert", name, "--type", draw.choice(["q8_0", "f16", "q4_0"]), "-o", "out.gguf", "--threads", "1"]
        done = observe.run(command, directory)
        return command, done, done.fault() or partial(directory, done)


def raw_output(done):
    text = done.stdout.decode(errors="replace")
    found = observe.RAW.search(text)
    return f"raw U+{ord(found[0]):04X} on standard output" if found else None


def partial(directory, done):
    """A conversion writes a complete file or none."""
    path = os.path.join(directory, "out.gguf")
    if done.code == 0 and not os.path.exists(path):
        return "exit code 0 without the output"
    if done.code and os.path.exists(path):
        return "a refusal that left a file under the final name"
    return None
