"""Compares the float64 reference of Ling 3.0 (ling_ref.py) with llama.cpp, the xllamacpp wheel, on random files.

usage: check_ling.py      exit code 1 and a line if something differs

Log-probabilities of all tokens at 8 positions, after a prompt of 40, from files in F32 with and without q_lora_rank, groups,
clamps, tied head and MTP block. llama.cpp computes in F32 with a KV cache in F32. Routing of the prompts is clear
(logits.margin), so rounding changes no expert. A reply with drafts from the MTP block has the tokens of the reference, and
as many drafts are accepted as the reference predicts right.
"""
import os
import sys
import tempfile

import numpy as np
import xllamacpp

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import gen_ling  # noqa: E402
import logits  # noqa: E402
from ling_ref import LingRef  # noqa: E402

PROMPT, STEPS = 40, 8
DRAFTED = 40
# Relative to the largest log-probability.
ALLOWED = 3e-6
VARIANTS = [("tiny", {}), ("tiny", {"q_lora_rank": 0}), ("tiny", {"n_group": 1, "topk_group": 1}), ("tiny", {"tied": 1}),
            ("tiny", {"expert_limit": 0.5, "shared_limit": 0.25}), ("tiny", {"first_k_dense_replace": 2, "layer_group_size": 3}),
            ("tiny_d128", {"num_nextn_predict_layers": 1})]
MTP = {"num_nextn_predict_layers": 1, "follow": 1}


def server(path, mtp=False):
    p = xllamacpp.CommonParams()
    p.model.path = path
    p.n_ctx, p.n_parallel, p.n_gpu_layers, p.warmup = 512, 1, 0, False
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED      # it computes in F16
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if mtp:
        p.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
        p.speculative.draft.n_max = 1
    return xllamacpp.Server(p)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def steps(peer, ids, vocab):
    """llama.cpp's log-probabilities of all tokens after each of the last STEPS positions of `ids`, before the last."""
    # A reply that ends within a character has no probabilities. The bias applies after they are computed.
    bias = [[token, False] for token in gen_ling.partial_characters()]
    request = {"n_predict": 1, "n_probs": vocab, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "logit_bias": bias}
    out = np.zeros((STEPS, vocab))
    for i in range(STEPS):
        reply = peer.handle_completions(request | {"prompt": ids[:PROMPT + i]})
        for t in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            out[i, t["id"]] = t["logprob"]
    return out


def check(path, preset, extra, seed):
    gen_ling.main(path, preset, seed, extra)
    model = LingRef(path)
    ids, expected = logits.clear_prompt(model, PROMPT + STEPS)
    expected = log_softmax(expected[PROMPT - 1:-1])
    found = steps(server(path), ids, model.vocab)
    seen = found > -80                                    # smaller probabilities have few bits in F32
    worst, scale = np.abs(found - expected)[seen].max(), np.abs(expected).max()
    print(f"{preset} {extra}: differs by {worst:.2e} at most, {worst / scale:.1e} of the largest", flush=True)
    return worst <= ALLOWED * scale


def predicted(model, prompt):
    """The reference's greedy reply to a prompt, and how many of its tokens one draft per step predicts right."""
    state = model.new_state()
    token = int(model.forward(prompt, state)[-1].argmax())
    model.draft(prompt[1:], state, state["hidden"][:-1])
    reply, right = [token], 0
    while len(reply) < DRAFTED:
        draft = int(model.draft([token], state, state["hidden"][-1:])[-1].argmax())
        token = int(model.forward([token], state)[-1].argmax())
        reply.append(token)
        if draft == token and len(reply) < DRAFTED:       # the step that verifies a draft gives one more token
            right += 1
            model.draft([token], state, state["hidden"][-1:])
            token = int(model.forward([token], state)[-1].argmax())
            reply.append(token)
    return reply, right


def check_drafts(path):
    tokens, _ = gen_ling.vocabulary(gen_ling.main(path, "tiny_d128", 3, MTP))
    model = LingRef(path)
    prompt, _ = logits.clear_prompt(model, PROMPT)
    reply, right = predicted(model, prompt)
    request = {"prompt": prompt, "n_predict": DRAFTED, "temperature": 0, "ignore_eos": True}
    found = server(path, mtp=True).handle_completions(request)
    text, accepted = found["choices"][0]["text"], found["timings"]["draft_n_accepted"]
    print(f"MTP: {accepted} drafts accepted in {DRAFTED} tokens, {right} right by the reference", flush=True)
    return text == "".join(tokens[t] for t in reply[:DRAFTED]) and 0 < accepted == right < found["timings"]["draft_n"]


def main():
    with tempfile.TemporaryDirectory() as folder:
        good = [check_drafts(os.path.join(folder, "mtp.gguf"))]
        good += [check(os.path.join(folder, f"{i}.gguf"), preset, extra, 7 + i) for i, (preset, extra) in enumerate(VARIANTS)]
    if not all(good):
        sys.exit("the reference and llama.cpp differ")


if __name__ == "__main__":
    main()
