"""Measures prefix caching of a long file, on `kimi serve` and then on llama.cpp's server (the wheel xllamacpp) with the same
model: a first question, a second one in the same process, a third one after a restart. llama.cpp saves and restores its slot.

usage: reread.py KIMI MODEL [--words 120000] [--reply 8] [--batch N] [--kimi-only]
       (MODEL with a tokenizer; its weights may be random; --batch is passed to `kimi serve`)

`new` is the number of tokens after the file, `read` the number of prefilled tokens, `first s` the time from the question to
the first token. `kimi` must prefill no more than the new tokens. The times of a restart are from the start of the process
until it is ready (llama.cpp: with its slot restored) and until the first token. The last line of a server has the most memory
that its first process had resident, and the bytes in its directory.
"""
import argparse, json, os, pathlib, random, re, tempfile, time, urllib.request

import load

QUESTIONS = ["Where is the winter letter?", "Who has the harbour table?", "When did we go in?"]


def post(server, path, body):
    request = urllib.request.Request("http://%s:%d" % server.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=7200) as answer:
        return json.load(answer)


def ask(server, args, text, question):
    """Sends a question; returns the reply's timings and the time to its first token."""
    messages = [{"role": "system", "content": text}, {"role": "user", "content": question}]
    body = {"messages": messages, "stream": True, "max_tokens": args.reply, "ignore_eos": True, "temperature": 0}
    client = load.Client(server.address, load.post(json.dumps(body).encode()))
    while client.read():
        pass
    client.socket.close()
    found = re.findall(rb'data: (\{.*"timings":.*\})', client.got)
    assert found and client.first, client.got[-500:]
    return json.loads(found[-1])["timings"], client.first


def new_tokens(server, question):
    tail = f"<|im_user|>user<|im_middle|>{question}<|im_end|><|im_assistant|>assistant<|im_middle|>"
    return len(post(server, "/tokenize", {"content": tail, "parse_special": True})["tokens"])


def row(name, step, new, timings, first, *more):
    read, total = timings["prompt_n"], timings["prompt_n"] + timings["cache_n"]
    print(f"{name:<10} {step:<14} {total:>7} {new or '':>5} {read:>7} {first:>8.3f}  {timings['prompt_ms'] / 1e3:>9.3f}", *more, flush=True)
    return read


def size(directory):
    return sum(entry.stat().st_size for entry in pathlib.Path(directory).rglob("*") if entry.is_file())


def measure(name, start, args, text, save, restore, directory):
    server = start()
    counts = [new_tokens(server, q) for q in QUESTIONS] if name == "kimi" else [None] * 3
    timings, first = ask(server, args, text, QUESTIONS[0])
    row(name, "first", None, timings, first)
    reads = []
    for _ in range(3):
        timings, first = ask(server, args, text, QUESTIONS[1])
        reads.append(row(name, "second", counts[1] if not reads else 0, timings, first))
    save(server)
    memory, begin = server.resident("VmHWM"), time.monotonic()
    server.end(seconds=600)
    ended = time.monotonic()
    server = start()
    restore(server)
    ready = time.monotonic() - ended
    timings, first = ask(server, args, text, QUESTIONS[2])
    whole = time.monotonic() - ended
    reads.append(row(name, "after restart", counts[2], timings, first, f"  ended in {ended - begin:.2f} s, ready {ready:.2f} s after, answered {whole:.2f} s after"))
    server.end()
    print(f"{name:<10} {memory / 1024:.2f} GiB resident, {size(directory) / 2**30:.2f} GiB on disk", flush=True)
    if name == "kimi":
        assert reads == [counts[1], 0, 0, counts[2]], (reads, counts)


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi"), p.add_argument("model")
    for name, default in [("words", 120_000), ("reply", 8), ("threads", 2), ("batch", None)]:
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--kimi-only", action="store_true")
    args = p.parse_args()
    args.kimi, args.model = map(os.path.abspath, [args.kimi, args.model])
    load.CONTEXT = args.words + args.words // 4 + 1024
    batch = ["--batch", str(args.batch)] if args.batch else []
    text = " ".join(random.Random(1).choices(load.WORDS, k=args.words))
    print(f"{'server':<10} {'question':<14} {'tokens':>7} {'new':>5} {'read':>7} {'first s':>8}  {'reading s':>9}")
    with tempfile.TemporaryDirectory() as directory:
        start = lambda: load.Server(args.kimi, "serve", "-m", args.model, "--port", "0", "--ctx", str(load.CONTEXT), "--threads",
                                    str(args.threads), *batch, "--cache-dir", directory + "/kimi")
        measure("kimi", start, args, text, lambda server: None, lambda server: None, directory + "/kimi")
        if args.kimi_only:
            return
        os.mkdir(slots := directory + "/llama.cpp")
        load.PEER = load.PEER.replace("p.verbosity = 0", f"p.verbosity = 0\np.slot_save_path = {slots + '/'!r}")
        slot = lambda action: lambda server: post(server, f"/slots/0?action={action}", {"filename": "slot"})
        measure("llama.cpp", lambda: load.llama(args, 1, checkpoints=True), args, text, slot("save"), slot("restore"), slots)


if __name__ == "__main__":
    main()
