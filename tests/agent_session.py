"""Records a five-turn session of Claude Code and replays it on `kimi serve` and on llama.cpp's server (the wheel xllamacpp).

usage: agent_session.py record CLAUDE KIMI FILE      records the bodies of /v1/messages, with the demonstration model
       agent_session.py replay KIMI MODEL FILE       (MODEL with a tokenizer and a chat template; its weights may be random)

Claude Code puts reminders into messages and, with an account of its vendor, a checksum that changes from request to request
into its billing header; the replay adds it. A replayed body asks for --reply tokens without sampling. `prefilled` is the number of prompt tokens that the server did not take from its cache,
`seconds` the time of the whole request. Both servers use the same file, threads and context.
"""
import argparse, http.server, json, os, pathlib, re, shutil, subprocess, sys, tempfile, threading, time, urllib.error, urllib.request

import load

PROMPTS = ["Say hello.", "Read @CONTRIBUTING.md. How is an op added?", "Read @fields.md. Which fields does an endpoint take?",
           "Read @ARCHITECTURE.md and @security.md. What is cached?", "Thank you. Sum it up."]
PROJECT = pathlib.Path(__file__).parent.parent
DOCUMENTS = {path.name: path for path in [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")]}


class Recorder(http.server.BaseHTTPRequestHandler):
    """Forwards requests to `base` and keeps the bodies of /v1/messages."""
    base, bodies = None, []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.split("?")[0] == "/v1/messages":
            self.bodies.append(json.loads(body))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection", "accept-encoding")}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(self.base + self.path, body, headers), timeout=600)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Connection", "close")
            self.end_headers()
            while part := answer.read1(1 << 16):
                self.wfile.write(part)

    def log_message(self, *_):
        pass


def record(args):
    import launch  # needs the official clients
    with tempfile.TemporaryDirectory() as directory:
        server = launch.AgentServer(args.kimi, directory)
        Recorder.base = server.base
        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        work = os.path.join(directory, "work")
        os.mkdir(work)
        for name in re.findall(r"@(\w+\.md)", " ".join(PROMPTS)):
            shutil.copy(DOCUMENTS[name], work)
        env = {"PATH": os.environ["PATH"], "HOME": work, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{proxy.server_port}",
               "ANTHROPIC_API_KEY": "agents", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_TELEMETRY": "1",
               "DISABLE_AUTOUPDATER": "1", "DISABLE_ERROR_REPORTING": "1", "ANTHROPIC_MODEL": "kimi-demo",
               "ANTHROPIC_SMALL_FAST_MODEL": "kimi-demo", "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "48", "IS_SANDBOX": "1"}
        turns = []
        for turn, prompt in enumerate(PROMPTS):
            subprocess.run([args.claude, "-p", *(["--continue"] if turn else []), prompt], env=env, cwd=work, check=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=600)
            turns.append(Recorder.bodies[:])
            Recorder.bodies.clear()
        server.end()
    with open(args.file, "w") as out:
        json.dump(turns, out)
    print(", ".join(f"turn {n}: {len(t)} requests" for n, t in enumerate(turns, 1)))


def start(name, args, cache):
    if name == "llama.cpp":
        return load.llama(args, 1, checkpoints=True)
    return load.Server(args.kimi, "serve", "-m", args.model, "--port", "0", "--ctx", str(args.context), "--threads", str(args.threads),
                       "--cache-dir", cache)


def prefilled(server, body):
    """Sends a body; returns its prompt tokens, the prefilled ones of them, and the seconds it took."""
    text = json.dumps(body).encode()
    request = urllib.request.Request("http://%s:%d/v1/messages" % server.address, text, {"Content-Type": "application/json"})
    start = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=7200) as answer:
            usage = json.load(answer)["usage"]
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.code}: {error.read().decode()}")
    seconds = time.monotonic() - start
    reused = usage.get("cache_read_input_tokens", 0)
    new = usage["input_tokens"] + usage.get("cache_creation_input_tokens", 0)
    return new + reused, new, seconds


def replay(args):
    with open(args.file) as file:
        turns = json.load(file)
    rows = {}
    for name in ["kimi", *([] if args.kimi_only else ["llama.cpp"])]:
        with tempfile.TemporaryDirectory() as cache:
            server = start(name, args, cache)
            rows[name] = []
            for n, bodies in enumerate(turns, 1):
                total = [0, 0, 0.0]
                for body in bodies:
                    body = {**body, "stream": False, "max_tokens": args.reply, "temperature": 0}
                    for field in ("thinking", "context_management", "output_config"):
                        body.pop(field, None)
                    if body["system"][0]["text"].startswith("x-anthropic-billing-header"):
                        body["system"][0]["text"] += f" cch={n * 7919:05x};"
                    total = [a + b for a, b in zip(total, prefilled(server, body))]
                rows[name].append(total)
                print(f"{name:<10} turn {n}  prompt {total[0]:>7,}  prefilled {total[1]:>7,}  {total[2]:>8.2f} s", flush=True)
            server.end()
    for name, turns in rows.items():
        print(f"{name:<10} all     prompt {sum(t[0] for t in turns):>7,}  prefilled {sum(t[1] for t in turns):>7,}  {sum(t[2] for t in turns):>8.2f} s")


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    commands = p.add_subparsers(required=True)
    r = commands.add_parser("record")
    r.set_defaults(run=record)
    r.add_argument("claude"), r.add_argument("kimi"), r.add_argument("file")
    r = commands.add_parser("replay")
    r.set_defaults(run=replay)
    r.add_argument("kimi"), r.add_argument("model"), r.add_argument("file")
    for name, default in [("reply", 16), ("threads", 2), ("context", 65536)]:
        r.add_argument(f"--{name}", type=int, default=default)
    r.add_argument("--kimi-only", action="store_true")
    args = p.parse_args()
    load.CONTEXT = getattr(args, "context", load.CONTEXT)
    args.run(args)


if __name__ == "__main__":
    main()
