"""The demonstration model's tokenizer: tiktoken ranks, then 256 special ids in the published tokenizer's layout."""
import pathlib
import tiktoken
from tiktoken.load import load_tiktoken_bpe

# As published; && needs a regex engine with set operations, such as tiktoken's.
PATTERN = "|".join([
    r"""[\p{Han}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+"""])
END, USER, ASSISTANT, SYSTEM, MIDDLE = 2, 3, 4, 10, 17    # after the last rank


class Tokenizer:
    def __init__(self, path):
        ranks = load_tiktoken_bpe(str(pathlib.Path(path)))
        self.base = len(ranks)
        self.ranks = tiktoken.Encoding("kimi-demo", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})

    def encode(self, text):
        return self.ranks.encode_ordinary(text)

    def decode(self, ids):
        return self.ranks.decode([i for i in ids if i < self.base])

    def opening(self, role):
        """The ids that start a turn."""
        mark = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}[role]
        return [self.base + mark] + self.encode(role) + [self.base + MIDDLE]

    def chat(self, turns):
        """Ids of a conversation, and the kind of each: 0 given, 1 text to model, 2 an answer."""
        ids, kinds = [], []
        for role, said in turns:
            opening, body = self.opening(role), self.encode(said) + [self.base + END]
            ids += opening + body
            kinds += [0] * len(opening) + [2 if role == "assistant" else 1] * len(body)
        return ids, kinds

    def plain(self, text):
        ids = self.encode(text)
        return ids, [1] * len(ids)
