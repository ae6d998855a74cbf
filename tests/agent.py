"""Measures prefix caching in an agent's conversation: several turns with tools over a long text, on `kimi serve` and on
llama.cpp's server (the wheel xllamacpp) in turn. Prints the prefilled and the new tokens of each turn.

usage: agent.py KIMI MODEL [--words 30000] [--turns 5]      (MODEL with a tokenizer; its weights may be random)

As any client does, it sends the messages of all earlier turns, including the model's tool calls as received. The new
tokens of a turn are those after the last turn's reply; `kimi` must prefill no more than them. If a model makes no tool calls
and the server does not enforce them, its replies are text, and the tool's result is sent as a user message.
"""
import argparse, json, os, random, sys, time, urllib.error, urllib.request

import load

TOOL = {"type": "function", "function": {"name": "search", "description": "Finds pages", "parameters": {
    "type": "object", "required": ["query", "page"], "additionalProperties": False, "properties": {
        "query": {"type": "string", "pattern": "^[a-z]{4,9} [a-z]{4,9} [a-z]{4,9}$"}, "page": {"enum": [1, 2, 3]}}}}}


def ask(server, messages, seed):
    body = {"messages": messages, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "seed": seed,
            "temperature": 0.7, "max_tokens": 100}
    request = urllib.request.Request("http://%s:%d/v1/chat/completions" % server.address, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    start = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=3600) as answer:
            answer = json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(error.read().decode())
    return answer, time.monotonic() - start


def converse(name, server, args):
    draw = random.Random(1)
    text = " ".join(draw.choices(load.WORDS, k=args.words))
    messages = [{"role": "system", "content": "Answer from this text.\n\n" + text}, {"role": "user", "content": "Where is the winter letter?"}]
    known = 0
    for turn in range(1, args.turns + 1):
        answer, seconds = ask(server, messages, turn)
        usage, timings, message = answer["usage"], answer["timings"], answer["choices"][0]["message"]
        new, read = usage["prompt_tokens"] - known, timings["prompt_n"]
        per_token = timings["predicted_ms"] / max(1, usage["completion_tokens"])
        print(f"{name:<10} {turn:>4} {usage['prompt_tokens']:>8} {new:>7} {read:>7} {timings['prompt_ms'] / 1e3:>9.3f} {seconds:>8.3f} "
              f"{usage['completion_tokens']:>6} {per_token:>9.2f}", flush=True)
        if name == "kimi":
            assert read == new, f"turn {turn} read {read} tokens, {new} are new"
        known = usage["prompt_tokens"] + usage["completion_tokens"]
        messages.append({key: message[key] for key in ("role", "content", "tool_calls") if message.get(key)})
        found = f"Page {turn}: " + " ".join(draw.choices(load.WORDS, k=60))
        calls = message.get("tool_calls")
        messages.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": found} if calls else
                        {"role": "user", "content": found})


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi"), p.add_argument("model")
    for name, default in [("words", 30_000), ("turns", 5), ("threads", 2)]:
        p.add_argument(f"--{name}", type=int, default=default)
    args = p.parse_args()
    args.kimi, args.model = map(os.path.abspath, [args.kimi, args.model])
    load.CONTEXT = args.words + args.words // 8 + 4096
    print(f"{'server':<10} {'turn':>4} {'prompt':>8} {'new':>7} {'read':>7} {'reading s':>9} {'turn s':>8} {'reply':>6} {'ms/token':>9}")
    for name, start in [("kimi", load.kimi), ("llama.cpp", lambda args, slots: load.llama(args, slots, checkpoints=True))]:
        server = start(args, 1)
        converse(name, server, args)
        server.end()


if __name__ == "__main__":
    main()
