"""Runs commands on damaged prefix-cache directories: the answer must be the one without a cache."""
import os, random, shutil

import model, observe

SECRET = "The keeper of the harbour is Mara. "


def damage_bytes(files, draw, directory):
    path = os.path.join(directory, draw.choice(files))
    with open(path, "r+b") as file:
        blob = bytearray(file.read())
        for _ in range(draw.choice([1, 1, 2, 8]) if blob else 0):
            # Half of the changes are in the header, which holds lengths and names.
            at = draw.randrange(min(len(blob), 120) if draw.random() < 0.5 else len(blob))
            if draw.random() < 0.5:
                blob[at] ^= 1 << draw.randrange(8)
            else:
                blob[at:at + 8] = draw.choice([b"\0" * 8, b"\xff" * 8, draw.randbytes(8), (len(blob) + 1).to_bytes(8, "little"), (1 << 62).to_bytes(8, "little")])
        file.seek(0)
        file.truncate()
        file.write(blob)


def cut(files, draw, directory):
    path = os.path.join(directory, draw.choice(files))
    size = os.path.getsize(path)
    os.truncate(path, draw.choice([0, size // 2, max(size - 1, 0), draw.randrange(size + 1), size + 1, size + 4096, 1 << 40]))


def swap(files, draw, directory):
    """Copies the content of one file to the name of another."""
    a, b = (os.path.join(directory, draw.choice(files)) for _ in range(2))
    if draw.random() < 0.5:
        shutil.copy(a, a + ".swap")
        shutil.copy(b, a) if a != b else None
        os.replace(a + ".swap", b)
    elif a != b:
        shutil.copy(a, b)


def rename(files, draw, directory):
    name = draw.choice(files)
    stem, _, ending = name.rpartition(".")
    digit = lambda text: text and text[:-1] + draw.choice("0123456789abcdef")
    other = draw.choice([digit(stem) + "." + ending, stem + draw.choice([".state", ".rows", ".first", ".tmp"]), "f" * 32 + ".state", "0" * 32 + "-" + "0" * 32 + ".first",
                         "zz." + ending, "-" + name, "f" * 33 + ".state", stem.upper() + "." + ending, ".state", "+1.state", stem + "-" + stem + "." + ending])
    os.replace(os.path.join(directory, name), os.path.join(directory, other))


def remove(files, draw, directory):
    for name in draw.sample(files, draw.randrange(1, len(files) + 1)):
        os.remove(os.path.join(directory, name))


def special(files, draw, directory):
    """Replaces a file by something that is not a regular file."""
    path = os.path.join(directory, draw.choice(files))
    os.remove(path)
    draw.choice([lambda: os.mkfifo(path), lambda: os.mkdir(path), lambda: os.symlink("/dev/zero", path), lambda: os.symlink(path, path), lambda: os.symlink("/etc/passwd", path)])()


def lock(files, draw, directory):
    path = os.path.join(directory, "lock")
    # A second damage to the same directory replaces the first one's.
    if os.path.isdir(path) and not os.path.islink(path):
        os.rmdir(path)
    elif os.path.lexists(path):
        os.remove(path)
    draw.choice([lambda: os.mkfifo(path), lambda: os.mkdir(path), lambda: os.symlink("/nowhere/x", path), lambda: open(path, "wb").close(), lambda: os.symlink("/dev/full", path)])()


def foreign(files, draw, directory):
    """Adds many other files, or files with unusual names."""
    for i in range(draw.choice([1, 10, 1000])):
        name = draw.choice([f"{draw.getrandbits(128):032x}.state", f"{draw.getrandbits(128):032x}-{draw.getrandbits(128):032x}.rows", f"x{i}", f"{i}.tmp", "\x1b[31m", "\u202e.state"])
        with open(os.path.join(directory, name), "wb") as file:
            file.write(draw.choice([b"", b"KIMISNP1", draw.randbytes(200)]))


DAMAGES = [damage_bytes] * 6 + [cut] * 3 + [swap] * 3 + [rename] * 3 + [remove, special, lock, foreign]


class PrefixCache:
    def __init__(self, kimi, base, scratch):
        self.kimi, self.base = kimi, base
        self.models = [model.build(kimi, base, kinds=["q8_0"], seed=seed)["q8_0"] for seed in (1, 3)]
        self.models.append(one_row_apart(self.models[0], os.path.join(scratch, "row.gguf")))
        draw = random.Random(5)
        self.prompt = SECRET * 12 + "".join(chr(draw.randrange(32, 127)) for _ in range(200))
        self.further = [self.prompt, self.prompt + " Who is it?", self.prompt[:450], self.prompt[:300] + "x" * 300]
        self.answers = [[self.ask(m, text, None, scratch).stdout for text in self.further] for m in self.models]
        self.sound = []
        for i, m in enumerate(self.models):
            self.sound.append(os.path.join(scratch, f"sound-{i}"))
            for text in self.further[:2]:
                self.ask(m, text, self.sound[-1], scratch)
            assert os.listdir(self.sound[-1]), "a run keeps its state on disk"

    def command(self, path, text, cache):
        kept = ["--cache-dir", cache] if cache else ["--no-cache"]
        return [self.kimi, "generate", "-m", path, "--raw", text, "-n", "6", "--temp", "0", "--threads", "1", "--print-ids", "--ignore-eos", *kept]

    def ask(self, path, text, cache, cwd):
        return observe.run(self.command(path, text, cache), cwd)

    def case(self, draw, directory):
        cache, which = os.path.join(directory, "cache"), draw.choice([0, 0, 0, 1])
        source = which if draw.random() < 0.9 else draw.randrange(3)
        shutil.copytree(self.sound[source], cache)
        hit = draw.randrange(len(self.further))
        if source == which:
            for _ in range(draw.choice([1, 1, 2, 3])):
                files = [f for f in os.listdir(cache) if f != "lock" and ordinary(os.path.join(cache, f))]
                if files:
                    draw.choice(DAMAGES)(files, draw, cache)
        # Once with the damaged cache, once with the cache that this run left.
        for turn in range(2 if draw.random() < 0.3 else 1):
            command = self.command(self.models[which], self.further[hit], cache)
            done = observe.run(command, directory)
            fault = done.fault(codes=(0,))
            if not fault and done.stdout != self.answers[which][hit]:
                fault = f"another answer than without the cache (of model {source}, run with {which})"
            if fault:
                break
        return command, done, fault


def ordinary(path):
    return os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < 1 << 24


def one_row_apart(path, target):
    """A copy of a model in which the embedding of one letter differs."""
    import gguf
    with open(path, "rb") as file:
        changed = gguf.File(file.read())
    _, dims, _, at = next(t for t in changed.tensors if t[0] == b"token_embd.weight")
    row = dims[0] // 32 * 34
    start = at + ord("e") * row
    changed.data[start + 2:start + row] = bytes(b ^ 0x55 for b in changed.data[start + 2:start + row])
    with open(target, "wb") as file:
        file.write(changed.bytes())
    return target
