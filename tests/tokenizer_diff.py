#!/usr/bin/env python3
"""Compares the tokenizer with PyPI's tiktoken on mixed text: ids must be equal, and both are timed.

    cargo build --release -p models --example tokenize
    python3 tests/tokenizer_diff.py [--mb 20] [--seed 1] [--rounds 5]

A seed gives the same texts in the same version of Python: sources of the standard library, and generated CJK, emoji, control
characters, broken UTF-8, every script, Han symbols after spaces, long runs, and strings of the characters that the split
pattern distinguishes. Both tokenizers encode all texts once per round, in turn; the medians are printed. Exits with 1 at
the first text with different ids. Needs tiktoken.
"""

import argparse
import base64
import pathlib
import random
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import unicodedata

import tiktoken

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATTERN = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])
ASSIGNED = [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
SPACES = [chr(c) for c in ASSIGNED if chr(c).isspace()]
HAN_SYMBOLS = [chr(c) for c in [*range(0x2E80, 0x2FD6), 0x3005, 0x3007, *range(0x3021, 0x302E), 0x3038, 0x16FF0]]
EMOJI = ["😀", "👩‍💻", "👍🏽", "🇫🇷", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣", "👨‍👩‍👧‍👦", "🤷🏿‍♂️"]
# At least one character of each class of the pattern, including contractions with the long s and the Kelvin sign.
CLASSES = [*" \t\n\r\v'!1sSſKtTrRvVeEmMlLdD", "Aa", "ǅ", "ʰ", "あ", "한", "中", "々", "〇", "⾟", "\u0301", "\u302a",
           "\U00016ff0", "٣", "½", "\u00a0", "\u3000", "\u0085", "\u2028", "\u200b", "\ufeff", "\x00", "😀", "\ue000"]


def pick(rng, alphabet, count):
    return "".join(rng.choices(alphabet, k=count))


def han(rng):
    words = [pick(rng, [chr(c) for c in range(0x4E00, 0x5200)], rng.randint(1, 12)) for _ in range(300)]
    return "".join(word + rng.choice("，。、；！ \n的了是") for word in words)


def kana_hangul(rng):
    kana = [chr(c) for c in range(0x3041, 0x30FF)]
    hangul = [chr(c) for c in range(0xAC00, 0xD7A4)]
    return "".join(pick(rng, rng.choice([kana, hangul]), rng.randint(1, 6)) + rng.choice(" 、。\n") for _ in range(400))


def scripts(rng):
    out = []
    for _ in range(20):
        at = rng.randrange(len(ASSIGNED))
        block = [chr(c) for c in ASSIGNED[at : at + 96]]
        out += [pick(rng, block, rng.randint(1, 9)) + rng.choice([" ", "", "\n", "-"]) for _ in range(30)]
    return "".join(out)


def broken(rng):
    data = bytearray((rng.choice([han, scripts, classes])(rng)).encode()[:3000])
    for _ in range(rng.randint(1, 60)):
        at = rng.randrange(len(data))
        rng.choice([lambda: data.__setitem__(at, rng.randrange(256)), lambda: data.insert(at, rng.randrange(128, 256)),
                    lambda: data.__delitem__(at)])()
    return bytes(data)


def runs(rng):
    units = [" ", "\n", "\t", "a", "A", "=", "中", "\u0301", "0", " \n", "\r\n", "é", "ab", "\u3000", "⾟", "'s"]
    return "".join(rng.choice(units) * rng.choice([1, 2, 5, 30, 200, 1000]) for _ in range(12))


def classes(rng):
    return pick(rng, CLASSES, 1500)


KINDS = {
    "han": han,
    "kana and hangul": kana_hangul,
    "every script": scripts,
    "random unicode": lambda rng: "".join(chr(rng.choice(ASSIGNED)) for _ in range(1200)),
    "han symbols": lambda rng: "".join(rng.choice(SPACES + [""]) + rng.choice(HAN_SYMBOLS) for _ in range(700)),
    "emoji": lambda rng: "".join(rng.choice(EMOJI) + rng.choice(["", " ", "ok", "!\n"]) for _ in range(300)),
    "control": lambda rng: pick(rng, [chr(c) for c in [*range(32), *range(127, 160)]] + list("ab 1."), 2000),
    "broken UTF-8": broken,
    "random bytes": lambda rng: rng.randbytes(2000),
    "long runs": runs,
    "pattern classes": classes,
}


def corpus(size, seed):
    """Texts as (kind, bytes): half source files, half generated, each kind with the same number of bytes."""
    rng = random.Random(seed)
    texts, left = [], size // 2
    files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    rng.shuffle(files)
    for file in files:
        data = file.read_bytes()[: max(left, 0)]
        texts += [("source", data[at : at + 20000]) for at in range(0, len(data), 20000)]
        left -= len(data)
        if left <= 0:
            break
    share = (size - sum(len(data) for _, data in texts)) // len(KINDS) + 1
    for kind, make in KINDS.items():
        left = share
        while left > 0:
            text = make(rng)
            data = text if isinstance(text, bytes) else text.encode()
            texts.append((kind, data))
            left -= len(data)
    rng.shuffle(texts)
    return texts


def read_ids(path):
    data, at = path.read_bytes(), 0
    while at < len(data):
        (count,) = struct.unpack_from("<I", data, at)
        yield list(struct.unpack_from(f"<{count}I", data, at + 4))
        at += 4 + 4 * count


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--mb", type=float, default=20)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--tokenize", default=ROOT / "target/release/examples/tokenize")
    options = options.parse_args()
    texts = corpus(int(options.mb * 1e6), options.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        ranks, framed, out = folder / "ranks", folder / "texts", folder / "ids"
        framed.write_bytes(b"".join(struct.pack("<I", len(data)) + data for _, data in texts))
        subprocess.run([options.tokenize, "ranks", ranks], check=True)
        lines = (line.split() for line in ranks.read_text().splitlines())
        table = {base64.b64decode(token): int(rank) for token, rank in lines}
        theirs = tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=table, special_tokens={})
        strings = [data.decode("utf-8", "replace") for _, data in texts]
        ours = subprocess.Popen([options.tokenize, "encode", framed, out], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True)
        our_seconds, their_seconds = [], []
        for _ in range(options.rounds):
            print("go", file=ours.stdin, flush=True)
            our_seconds.append(float(ours.stdout.readline()))
            start = time.perf_counter()
            expected = [theirs.encode_ordinary(text) for text in strings]
            their_seconds.append(time.perf_counter() - start)
        ours.stdin.close()
        if ours.wait() != 0:
            sys.exit("the tokenize example failed")
        found = list(read_ids(out))
    size = sum(len(data) for _, data in texts) / 1e6
    differ = [(kind, data, a, b) for (kind, data), a, b in zip(texts, expected, found, strict=True) if a != b]
    for kind, data, a, b in differ[:3]:
        at = next((i for i, pair in enumerate(zip(a, b)) if pair[0] != pair[1]), min(len(a), len(b)))
        print(f"{kind}: from token {at}: tiktoken {theirs.decode(a[at:at + 5])!r}, ours {theirs.decode(b[at:at + 5])!r}")
        print(f"  in {data[:200]!r}...")
    rates = [size / statistics.median(seconds) for seconds in (our_seconds, their_seconds)]
    print(f"{size:.1f} MB in {len(texts)} texts of {1 + len(KINDS)} kinds, {sum(map(len, expected))} tokens: "
          f"{len(differ)} texts differ")
    print(f"median of {options.rounds} in turn: ours {rates[0]:.1f} MB/s, tiktoken {tiktoken.__version__} {rates[1]:.1f} MB/s")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
