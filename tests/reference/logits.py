"""Logits of the float64 reference on a random prompt of a checkpoint.

usage: logits.py CHECKPOINT TOKENS OUT     prints the prompt's ids; writes the logits as raw float64, [token, vocab]

Routing of the prompt is clear: no chosen expert (or group) is within 1e-4 of a rejected one, where float32 arithmetic
could choose the other.
"""
import sys

import numpy as np

from kimi_ref import KimiRef


def margin(model, rec):
    """The smallest distance between a chosen and a rejected expert or group."""
    c, smallest = model.c, np.inf
    for name, score in rec.items():
        if not name.endswith(".score"):
            continue
        score = score + model.w[name.removesuffix("score") + "gate.e_score_correction_bias"]
        if c["num_expert_group"] > 1:
            groups = score.reshape(len(score), c["num_expert_group"], -1)
            value = np.sort(groups, -1)[..., -2:].sum(-1)
            order = np.sort(value, -1)[:, ::-1]
            if c["topk_group"] < c["num_expert_group"]:
                smallest = min(smallest, (order[:, c["topk_group"] - 1] - order[:, c["topk_group"]]).min())
            keep = value >= order[:, c["topk_group"] - 1:c["topk_group"]]
            score = np.where(np.repeat(keep, groups.shape[-1], -1), score, -np.inf)
        order = np.sort(score, -1)[:, ::-1]
        k = c["num_experts_per_token"]
        if k < order.shape[1]:
            smallest = min(smallest, (order[:, k - 1] - order[:, k]).min())
    return smallest


def random_prompt(folder, tokens):
    """The ids of a prompt with clear routing, and its logits."""
    model = KimiRef(folder)
    for seed in range(50):
        ids = np.random.default_rng(seed).integers(0, model.c["vocab_size"], tokens)
        rec = {}
        logits = model.forward(ids, rec=rec)
        if margin(model, rec) >= 1e-4:
            return ids, logits
    sys.exit(f"{folder}: no prompt of {tokens} tokens with clear routing in 50")


if __name__ == "__main__":
    ids, logits = random_prompt(sys.argv[1], int(sys.argv[2]))
    logits.astype("<f8").tofile(sys.argv[3])
    print(*ids, sep=",")
