"""Compares the throughput of kimi and llama.cpp on the same file, in turn in one run: medians in tokens per second.

usage: versus.py KIMI PEER MODEL [--before KIMI] [--prefill 512,2048] [--decode 32] [--depth 0,8192] [--rounds 5]
                 [--threads 2] [--batch 512] [--peer="--repack 0"]

PEER is tests/peer, built for this machine (see its Cargo.toml), or `none`. `--before` adds an earlier build of kimi, measured
in turn with the other two. Both fill their caches up to a depth without prefill of its tokens, kimi with arbitrary rows and
llama.cpp with repeated ones, because the time of a step depends only on their number. `--peer` passes llama.cpp's settings: try
them all and keep its fastest. Each `kimi bench` measures the memory bandwidth; a share is relative to its own process.
"""
import argparse, json, statistics, subprocess


class Kimi:
    def __init__(self, program, args):
        self.program, self.args, self.memory, self.share = program, args, [], []

    def rate(self, kind, count, depth):
        a = self.args
        work = ["-p", str(count), "-n", "0"] if kind == "prefill" else ["-p", "0", "-n", str(count)]
        command = [self.program, "bench", "-m", a.model, "-t", str(a.threads), "-r", "1", "-d", str(depth), "-b", str(a.batch), "--json"]
        report = json.loads(subprocess.run(command + work, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout)
        case = report["cases"][0]
        self.memory.append(report["memory_read_gb_s"])
        self.share.append(100 * (case["share"] or 0))
        return case["tokens_per_s"]


class Peer:
    def __init__(self, args, depth):
        command = [args.peer_program, args.model, "--threads", str(args.threads), "--depth", str(depth), *args.peer.split()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True, bufsize=1)
        self.read_in = self.process.stdout.readline().split()[1]

    def rate(self, kind, count):
        self.process.stdin.write(f"{kind} {count}\n")
        return float(self.process.stdout.readline())


def numbers(text):
    return [int(n) for n in text.split(",") if n]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("kimi")
    p.add_argument("peer_program")
    p.add_argument("model")
    p.add_argument("--before", metavar="KIMI")
    p.add_argument("--prefill", type=numbers, default=[512])
    p.add_argument("--decode", type=int, default=32)
    p.add_argument("--depth", type=numbers, default=[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--peer", default="--repack 0")
    a = p.parse_args()
    for depth in a.depth:
        peer = None if a.peer_program == "none" else Peer(a, depth)
        if peer:
            print(f"depth {depth}: llama.cpp read it in {peer.read_in} s", flush=True)
        for kind, count in [("prefill", n) for n in a.prefill] + [("decode", a.decode)] * (a.decode > 0):
            compare(a, peer, kind, count, depth)
        if peer:
            peer.process.kill()


def compare(args, peer, kind, count, depth):
    """Measures one case of all programs in turn and prints the medians of kimi beside each of the others."""
    kimi = Kimi(args.kimi, args)
    rates = {"kimi": lambda: kimi.rate(kind, count, depth)}
    if args.before:
        before = Kimi(args.before, args)
        rates["before"] = lambda: before.rate(kind, count, depth)
    if peer:
        peer.rate(kind, count)                            # warms up, as the first round of each kimi bench does
        rates["llama.cpp"] = lambda: peer.rate(kind, count)
    measured = {name: [] for name in rates}
    for _ in range(args.rounds):
        for name, rate in rates.items():
            measured[name].append(rate())
    share = statistics.median(kimi.share)
    line = f"{kind} {count} at {depth}: " + ", ".join(
        f"{name} {statistics.median(all_):.1f} ({min(all_):.1f} to {max(all_):.1f})" for name, all_ in measured.items())
    ours = statistics.median(measured["kimi"])
    line += "".join(f"; {ours / statistics.median(all_):.3f} times {name}" for name, all_ in measured.items() if name != "kimi")
    if share:
        line += f"; {share:.0f} % of {statistics.median(kimi.memory):.1f} GB/s"
    print(line, flush=True)


if __name__ == "__main__":
    main()
