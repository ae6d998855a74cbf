"""Checks the runtime's replies against the PyTorch model: every token of a greedy reply must be the most likely one after the
tokens before it.

    kimi eval -m f32.gguf --cache-type f32 --lengths 1024 --questions 200 --save answers.jsonl
    python check.py CHECKPOINT answers.jsonl
"""
import json, pathlib, sys
import torch
from safetensors.torch import load_file
from model import Kimi, load_config
from tokens import END, Tokenizer


@torch.no_grad()
def main():
    folder, answers = pathlib.Path(sys.argv[1]), [json.loads(line) for line in open(sys.argv[2])]
    model = Kimi(load_config(folder / "config.json")).eval()
    model.load_exported(load_file(str(folder / "model.safetensors")))
    end = Tokenizer(folder / "tiktoken.model").base + END
    same = 0
    for n, answer in enumerate(answers):
        reply = answer["reply_ids"] + [end] * (len(answer["reply_ids"]) < answer["limit"])
        ids = torch.tensor([answer["prompt"] + reply])
        logits = model.lm_head(model(ids[:, :-1])[0, len(answer["prompt"]) - 1:])
        if logits.argmax(-1).tolist() == reply:
            same += 1
            continue
        at = next(i for i, token in enumerate(reply) if logits[i].argmax() != token)
        lead = (logits[at].max() - logits[at, reply[at]]).item()
        print(f"question {n}: {answer['question']!r}: token {at} of the reply is not the most likely one, by {lead:.2e}")
    print(f"{same} of {len(answers)} replies the same")
    sys.exit(same != len(answers))


if __name__ == "__main__":
    main()
