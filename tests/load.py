"""Load test: `kimi serve` and llama.cpp's server (the wheel xllamacpp) on the same file, in turn in the same run.

usage: load.py KIMI MODEL [--clients 1,4,16,64] [--rounds 5] [--prompt WORDS] [--reply TOKENS] [--threads 2]
       load.py KIMI MODEL --abuse

Each client sends a new prompt, reads the stream to its end and sends the next. Both servers have a slot per client, the same
number of threads, the same context per slot, greedy sampling and replies of the same length. A row is the median of the
rounds: output throughput of all clients in tokens per second, and the time to the first token. With `--abuse` clients
disconnect and send malformed requests, after which the server must serve and take memory as before.
"""
import argparse, json, os, random, re, selectors, signal, socket, statistics, subprocess, sys, time, urllib.request

CONTEXT = 1024
WORDS = "the of a to in is on by it or be at as an we us if my do no he up so am me go harbour letter winter table".split()
FIRST = re.compile(rb'"content":"[^"]')

PEER = """
import sys, time, xllamacpp
model, slots, context, threads, checkpoints = sys.argv[1], *map(int, sys.argv[2:])
p = xllamacpp.CommonParams()
p.model.path, p.n_parallel, p.n_ctx, p.n_gpu_layers = model, slots, slots * context, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
if not checkpoints:
    p.cache_ram_mib = p.n_ctx_checkpoints = 0
p.verbosity = 0
server = xllamacpp.Server(p)
print("address=" + server.listening_address.removeprefix("http://"), "ready", file=sys.stderr, flush=True)
time.sleep(1e6)
"""


class Server:
    """A server process and its address."""

    def __init__(self, *command):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        for line in self.process.stderr:
            if found := re.search(rb"address=([\d.]+):(\d+)", line):
                self.address = found[1].decode(), int(found[2])
            if b"ready" in line:
                break
        else:
            sys.exit(f"{command[0]} did not start")
        # Nothing reads the rest of its log, which must not block it.
        self.rest = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def ok(self):
        with urllib.request.urlopen("http://%s:%d/health" % self.address, timeout=60) as answer:
            return answer.status == 200

    def resident(self, field="VmRSS"):
        """MiB resident now, or at most so far with VmHWM."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(rf"{field}:\s+(\d+)", status.read())[1]) / 1024

    def end(self, seconds=10):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.rest.wait()


def kimi(args, slots, *more):
    how = ["--ctx", str(CONTEXT), "--threads", str(args.threads), "--parallel", str(slots), "--temp", "0"]
    return Server(args.kimi, "serve", "-m", args.model, "--port", "0", "--no-cache", "--queue", "100000", *how, *more)


def llama(args, slots, checkpoints=False):
    """Without `checkpoints`: no prompt repeats, so copies of states would only cost time."""
    return Server(sys.executable, "-c", PEER, args.model, *map(str, [slots, CONTEXT, args.threads, int(checkpoints)]))


def request(args, draw):
    body = {"messages": [{"role": "user", "content": " ".join(draw.choices(WORDS, k=args.prompt))}], "stream": True,
            "max_tokens": args.reply, "ignore_eos": True, "temperature": 0, "stream_options": {"include_usage": True}}
    return post(json.dumps(body).encode())


def post(body, path="/v1/chat/completions", kind="application/json"):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


class Client:
    """One request on its own connection."""

    def __init__(self, address, text):
        self.socket = socket.create_connection(address)
        self.start, self.first, self.got = time.monotonic(), None, b""
        self.socket.sendall(text)

    def read(self):
        """Reads what has arrived; returns whether more is expected."""
        part = self.socket.recv(1 << 16)
        self.got += part
        if self.first is None and FIRST.search(self.got):
            self.first = time.monotonic() - self.start
        return bool(part)

    def tokens(self):
        found = re.findall(rb'"completion_tokens":(\d+)', self.got)
        assert found and b"[DONE]" in self.got and self.first, self.got[-500:]
        return int(found[-1])


def load(server, args, clients, draw):
    """Runs `clients` clients, each with one request after another; returns tokens per second and the times to first token."""
    left, tokens, times = max(clients * 2, 12), 0, []
    with selectors.DefaultSelector() as open_now:
        def ask():
            client = Client(server.address, request(args, draw))
            open_now.register(client.socket, selectors.EVENT_READ, client)
        start = time.monotonic()
        for _ in range(clients):
            ask()
        left -= clients
        while open_now.get_map():
            for key, _ in open_now.select():
                client = key.data
                if client.read():
                    continue
                open_now.unregister(client.socket)
                client.socket.close()
                tokens += client.tokens()
                times.append(client.first)
                if left > 0:
                    left -= 1
                    ask()
        return tokens / (time.monotonic() - start), times


def percentile(times, share):
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] * 1e3


def compare(args):
    clients = [int(n) for n in args.clients.split(",")]
    servers = {"kimi": kimi(args, max(clients)), "llama.cpp": llama(args, max(clients))}
    draw = random.Random(1)
    rows = {(n, name): [] for n in clients for name in servers}
    for server in servers.values():
        load(server, args, min(4, max(clients)), draw)
    for _ in range(args.rounds):
        for n in clients:
            for name, server in servers.items():
                rate, times = load(server, args, n, draw)
                rows[n, name].append((rate, percentile(times, 0.5), percentile(times, 0.99)))
    print(f"{args.prompt} words in, {args.reply} tokens out, {args.threads} threads, medians of {args.rounds} rounds")
    print(f"{'clients':>7}  {'server':<10} {'tokens/s':>9} {'first p50 ms':>13} {'p99 ms':>8}  ratio")
    for n in clients:
        medians = {name: [statistics.median(c) for c in zip(*rows[n, name])] for name in servers}
        for name, (rate, p50, p99) in medians.items():
            ratio = f"{rate / medians['llama.cpp'][0]:.2f}" if name == "kimi" else ""
            print(f"{n:>7}  {name:<10} {rate:>9.0f} {p50:>13.1f} {p99:>8.1f}  {ratio}")
    for server in servers.values():
        server.end()


def malformed(draw):
    """A malformed or invalid request."""
    whole = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    noise = bytes(draw.randrange(256) for _ in range(draw.randrange(300)))
    key = draw.choice(["messages", "max_tokens", "temperature", "stop", "n", "tools", "response_format", "logit_bias", "stream"])
    wrong = json.dumps({**whole, key: draw.choice([[], {}, -1, "x", 1e99, [[]], [None], {"a": []}, True])}).encode()
    return draw.choice([
        lambda: noise,
        lambda: post(noise),
        lambda: post(json.dumps(whole).encode()[:draw.randrange(60)]),
        lambda: post(wrong, draw.choice(["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"])),
        lambda: post(b"[" * draw.randrange(1, 5000)),
        lambda: post(json.dumps(whole).encode(), kind="text/plain"),
        lambda: post(json.dumps(whole).encode(), path="/" + "x" * draw.randrange(1, 9000)),
        lambda: b"GET / HTTP/1.1\r\n" + b"A: " + noise.hex().encode() + b"\r\n\r\n",
        lambda: b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{",
    ])()


def leave(server, text, draw, moment):
    """Sends a request, may read a little, and disconnects."""
    with socket.create_connection(server.address) as s:
        s.settimeout(moment)
        try:
            s.sendall(text[:draw.randrange(len(text) + 1)] if draw.random() < 0.2 else text)
            for _ in range(draw.randrange(4)):
                s.recv(1 << 12)
        except OSError:
            pass


def abuse(args):
    server = kimi(args, 8, "--cache-ram", "0")
    draw = random.Random(1)

    def round(aborts, wrongs):
        for _ in range(aborts):
            leave(server, request(args, draw), draw, 0.02)
        for _ in range(wrongs):
            leave(server, malformed(draw), draw, 0.05)
        return load(server, args, 8, draw)[0]
    round(400, 3000)  # as much at once as there will be
    before = server.resident()
    start = time.monotonic()
    rate = round(1000, 10_000)
    took = time.monotonic() - start
    assert server.ok() and server.process.poll() is None, "it serves no more"
    after = server.resident()
    print(f"1,000 clients that left and 10,000 malformed requests in {took:.0f} s: {before:.1f} MiB before, {after:.1f} after; "
          f"then {rate:.0f} tokens/s for 8 clients")
    server.end()
    assert after < before + 8, "memory has grown"


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi"), p.add_argument("model")
    p.add_argument("--clients", default="1,4,16,64")
    for name, default in [("rounds", 5), ("prompt", 200), ("reply", 64), ("threads", 2)]:
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--abuse", action="store_true")
    args = p.parse_args()
    args.kimi, args.model = map(os.path.abspath, [args.kimi, args.model])
    (abuse if args.abuse else compare)(args)


if __name__ == "__main__":
    main()
