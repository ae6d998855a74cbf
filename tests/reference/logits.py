"""Logits of the float64 reference on a random prompt.

usage: logits.py MODEL TOKENS OUT [PREDICTED]    prints the prompt's ids; writes the logits as raw float64, [token, vocab]

PREDICTED receives the logits of Ling's MTP block after the prompt and a next token, which is printed as a further id, and
after the token that these logits make most likely, [2, vocab].

MODEL is a checkpoint of Kimi Linear, or a GGUF file of Ling 3.0.

Routing of the prompt is clear: no chosen expert (or group) is within 1e-4 of a rejected one, where float32 arithmetic
could choose the other.
"""
import sys

import numpy as np

from kimi_ref import KimiRef


def routing(model):
    """The number of groups, of groups and experts chosen, and the bias of each layer's scores by the name of the record."""
    if isinstance(model, KimiRef):
        c = model.c
        bias = lambda name: model.w[name.removesuffix("score") + "gate.e_score_correction_bias"]
        return c["num_expert_group"], c["topk_group"], c["num_experts_per_token"], bias
    return model.groups, model.kept, model.top_k, lambda name: model.w[name.removesuffix("score") + "exp_probs_b.bias"]


def margin(model, rec):
    """The smallest distance between a chosen and a rejected expert or group."""
    count, kept, k, bias = routing(model)
    smallest = np.inf
    for name, score in rec.items():
        if not name.endswith(".score"):
            continue
        score = score + bias(name)
        if count > 1:
            groups = score.reshape(len(score), count, -1)
            value = np.sort(groups, -1)[..., -2:].sum(-1)
            order = np.sort(value, -1)[:, ::-1]
            if kept < count:
                smallest = min(smallest, (order[:, kept - 1] - order[:, kept]).min())
            keep = value >= order[:, kept - 1:kept]
            score = np.where(np.repeat(keep, groups.shape[-1], -1), score, -np.inf)
        order = np.sort(score, -1)[:, ::-1]
        if k < order.shape[1]:
            smallest = min(smallest, (order[:, k - 1] - order[:, k]).min())
    return smallest


def clear_prompt(model, tokens, predicted=False):
    """The ids of a prompt with clear routing, and its logits; with `predicted` a next token too, and `predictions` after it."""
    for seed in range(50):
        ids = np.random.default_rng(seed).integers(0, model.vocab, tokens + predicted).tolist()
        state, records = model.new_state(), [{}, {}]
        found = [model.forward(ids[:tokens], state, records[0])]
        if predicted:
            found.append(predictions(model, ids[1:], state, records))
        if min(margin(model, rec) for rec in records) >= 1e-4:
            return ids, *found
    sys.exit(f"no prompt of {tokens} tokens with clear routing in 50")


def predictions(model, ids, state, records):
    """Logits of the MTP block after `ids`, the tokens from the second on, and after the token that these make most likely."""
    first = model.draft(ids, state, rec=records[0])[-1]
    return np.array([first, model.draft([int(first.argmax())], state, state["draft_hidden"][-1:], records[1])[-1]])


def load(path):
    """The reference of a checkpoint of Kimi Linear, or of a GGUF file of Ling 3.0."""
    if path.endswith(".gguf"):
        from ling_ref import LingRef                      # needs the package gguf
        return LingRef(path)
    return KimiRef(path)


if __name__ == "__main__":
    ids, logits, *predictions = clear_prompt(load(sys.argv[1]), int(sys.argv[2]), len(sys.argv) > 4)
    for path, values in zip(sys.argv[3:], [logits, *predictions]):
        values.astype("<f8").tofile(path)
    print(*ids, sep=",")
