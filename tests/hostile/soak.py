"""Soak test: latency of well-behaved clients while others abuse the server, then leaks of memory and descriptors.

usage: soak.py KIMI [--seconds 600] [--seed 17] [--untimed] [--out DIR]

500 well-behaved clients with nine API keys send requests with pauses between them, first alone, then beside abusive clients
with a tenth key: 1,000 half-open connections, 1,000 aborted requests, 100 streams that are never read, and one hostile request
for every ten well-behaved ones. Every well-behaved request must be answered, their p99 latency may at most double, and memory
and descriptors must return to what they were. `--untimed` prints p99 without a limit, for machines with other work. A second
server, limited to 64 descriptors, must still answer while it is flooded with connections.
"""
import argparse, heapq, json, multiprocessing, os, random, resource, select, signal, socket, struct, sys, tempfile, time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import grammars, requests, server

CLIENTS, HALF_OPEN, ABORTS, SILENT = 500, 1000, 1000, 100
KEYS, ABUSIVE_KEY = [f"good-{i}" for i in range(9)], "abusive"
THINK_SECONDS = 10  # at most, between an answer and the next request
WORDS = "harbour winter letter table keeper museum garden engine silver morning captain island".split()
GROWTH_MIB = 64  # what the allocator may keep of the worst moment


class Over(Exception):
    """The server is gone."""


class Loop:
    """Sockets that wait for their turn and things to do at a time, in one thread."""

    def __init__(self):
        self.epoll, self.waiting, self.due, self.count = select.epoll(), {}, [], 0

    def at(self, moment, action):
        self.count += 1
        heapq.heappush(self.due, (moment, self.count, action))

    def add(self, connection):
        self.waiting[connection.socket.fileno()] = connection
        self.epoll.register(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def want(self, connection, events):
        self.epoll.modify(connection.socket, events)

    def drop(self, connection):
        if self.waiting.pop(connection.socket.fileno(), None):
            self.epoll.unregister(connection.socket)
        connection.socket.close()

    def run(self, end):
        while (now := time.monotonic()) < end:
            while self.due and self.due[0][0] <= now:
                heapq.heappop(self.due)[2]()
            until = min(end, self.due[0][0] if self.due else end)
            for fd, events in self.epoll.poll(max(0, until - time.monotonic()), 512):
                if connection := self.waiting.get(fd):
                    connection.ready(events)


class Connection:
    """A connection that sends what it is given and gives on what it gets."""

    def __init__(self, loop, address, buffer=None):
        self.loop, self.out, self.got = loop, b"", b""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect_ex(address)
        loop.add(self)

    def send(self, data):
        self.out += data
        self.loop.want(self, select.EPOLLIN | select.EPOLLOUT)

    def ready(self, events):
        try:
            if events & select.EPOLLOUT:
                if self.out:
                    self.out = self.out[self.socket.send(self.out):]
                if not self.out:
                    self.loop.want(self, self.listens())
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                part = self.socket.recv(1 << 16)
                self.got = (self.got + part)[-(1 << 20):]
                self.arrived() if part else self.ended()
        except BlockingIOError:
            pass
        except OSError:
            self.ended()

    def listens(self):
        return select.EPOLLIN

    def arrived(self):
        pass

    def ended(self):
        self.loop.drop(self)


class Good(Connection):
    """A client's connection: kept for its next request, until the server closes it."""

    def __init__(self, crowd, name, start, question):
        super().__init__(crowd.loop, crowd.address)
        self.crowd, self.name = crowd, name
        self.ask(start, question)

    def ask(self, start, question):
        self.start, self.question = start, question
        self.send(question)

    def arrived(self):
        head, split, rest = self.got.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
        if split and length is not None and len(rest) >= length:
            self.crowd.answered(self, server.status(head), rest)
            self.got, self.start = b"", None

    def ended(self):
        super().ended()
        self.crowd.closed(self)


class Crowd:
    """The good clients, and what they saw."""

    def __init__(self, loop, address, clients, seed):
        self.loop, self.address, self.draw, self.seen, self.bad, self.retried = loop, address, random.Random(seed), [], [], 0
        self.asking, self.clients = False, [None] * clients

    def request(self, name=0):
        words, key = " ".join(self.draw.choices(WORDS, k=40)), KEYS[name % len(KEYS)]
        body = {"messages": [{"role": "user", "content": words}], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        return server.post("/v1/chat/completions", body, more=f"Authorization: Bearer {key}\r\n").replace(b"Connection: close", b"Connection: keep-alive")

    def think(self, name):
        if self.asking:
            self.loop.at(time.monotonic() + self.draw.uniform(0, THINK_SECONDS), lambda: self.ask(name))

    def ask(self, name):
        client = self.clients[name]
        if client is None:
            self.clients[name] = Good(self, name, time.monotonic(), self.request(name))
        else:
            client.ask(time.monotonic(), self.request(name))

    def answered(self, client, code, text):
        self.seen.append(time.monotonic() - client.start)
        if code != 200:
            self.bad.append(f"{code} {text[:100]!r}")
        self.think(client.name)

    def closed(self, client):
        """As HTTP's own clients do: what has no answer is asked once more on a new connection; its time continues."""
        if client.start is None:
            self.clients[client.name] = None
        else:
            self.retried += 1
            self.loop.at(time.monotonic() + 0.05, lambda: self.once_more(client))

    def once_more(self, client):
        self.clients[client.name] = Good(self, client.name, client.start, client.question)

    def begin(self):
        self.asking = True
        for name in range(len(self.clients)):
            self.think(name)

    def end(self, seconds):
        """No further requests; when those under way are answered, all connections are closed; how many were not."""
        self.asking = False
        end = time.monotonic() + seconds
        while any(c and c.start is not None for c in self.clients) and time.monotonic() < end:
            self.loop.run(time.monotonic() + 0.2)
        left = sum(1 for c in self.clients if c and c.start is not None)
        self.loop.due.clear()
        for client in filter(None, self.clients):
            self.loop.drop(client)
        self.clients = [None] * len(self.clients)
        return left

    def take(self):
        seen, bad, retried = sorted(self.seen), self.bad, self.retried
        self.seen, self.bad, self.retried = [], [], 0
        open_now = [time.monotonic() - c.start for c in self.clients if c and c.start is not None]
        return seen, bad, retried, max(open_now, default=0)


class AbusiveConnection(Connection):
    """Sends data and stays open until the server closes it or its time is over; `follow` then opens the next one."""

    def __init__(self, clients, data, seconds, follow=None, reads=True, reset=False):
        super().__init__(clients.loop, clients.address, None if reads else 2048)
        self.reads, self.over = reads, False
        self.follow, self.reset = follow, reset
        self.send(data)
        clients.loop.at(time.monotonic() + seconds, self.leave)

    def listens(self):
        return select.EPOLLIN if self.reads else 0

    def leave(self):
        if not self.over and self.reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if not self.over:
            self.ended()

    def ended(self):
        self.over = True
        super().ended()
        if self.follow:
            self.follow()


class AbusiveClients:
    """All abusive clients. They run in their own process at the lowest priority, so that the server gets the cores."""

    def __init__(self, address, seconds, rate, seed, hostile=True, half_open=HALF_OPEN):
        self.loop, self.address, self.draw = Loop(), address, random.Random(seed)
        now = time.monotonic()
        for i in range(half_open):
            self.loop.at(now + 5 * i / half_open, self.half_open)
        if hostile:
            for i in range(SILENT):
                self.loop.at(now + seconds * 0.5 * i / SILENT, self.silent)
            for i in range(ABORTS):
                self.loop.at(now + seconds * i / ABORTS, self.abort)
            for i in range(int(seconds * rate / 10)):
                self.loop.at(now + i * 10 / rate, self.harm)
        self.loop.run(now + seconds)

    def half_open(self):
        start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n"
        data = self.draw.choice([b"", b"G", start, start + b"X: y", start + b"\r\n{", start + b"Authorization: Bearer %s\r\n\r\n{" % ABUSIVE_KEY.encode()])
        self.open_abusive(data, 3600, follow=lambda: self.loop.at(time.monotonic() + 0.2, self.half_open))

    def open_abusive(self, *what, follow=None, **how):
        try:
            AbusiveConnection(self, *what, follow=follow, **how)
        except OSError:  # no descriptor or port left for now
            self.loop.at(time.monotonic() + 1, follow or (lambda: None))

    def request(self, **more):
        body = {"messages": [{"role": "user", "content": " ".join(self.draw.choices(WORDS, k=60))}], "max_tokens": 30, "stream": True, "ignore_eos": True, **more}
        return server.post("/v1/chat/completions", body, more=f"Authorization: Bearer {ABUSIVE_KEY}\r\n")

    def silent(self):
        """Never reads: with a small window and much to say, the server's writes block."""
        data = self.request(max_tokens=1000, logprobs=True, top_logprobs=20)
        self.open_abusive(data, 120, follow=lambda: self.loop.at(time.monotonic() + 1, self.silent), reads=False)

    def abort(self):
        self.open_abusive(self.request(), self.draw.uniform(0, 0.3), reset=self.draw.random() < 0.5)

    def harm(self):
        if self.draw.random() < 0.5:
            body, _ = grammars.request(self.draw)
            data = server.post("/v1/chat/completions", body, more=f"Authorization: Bearer {ABUSIVE_KEY}\r\n")
        else:
            data = self.draw.choice(requests.MAKERS)(self.draw).replace(b"\r\nHost:", b"\r\nAuthorization: Bearer %s\r\nHost:" % ABUSIVE_KEY.encode(), 1)
        self.open_abusive(data, 20)


def start_abusive_clients(*args, **kwargs):
    """Starts the process of the abusive clients."""
    def go():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.nice(19)
        AbusiveClients(*args, **kwargs)
    process = multiprocessing.Process(target=go, daemon=True)
    process.start()
    return process


def quantile(times, share):
    return times[min(len(times) - 1, int(share * len(times)))] * 1e3 if times else float("nan")


def row(name, seen, bad, retried, longest):
    print(f"{name:<8} {len(seen):>6} answered  p50 {quantile(seen, 0.5):>7.1f} ms  p99 {quantile(seen, 0.99):>7.1f} ms  longest {quantile(seen, 1):>7.1f} ms  "
          f"{len(bad)} refused  {retried} retried  {longest:.1f} s for the longest open one", flush=True)


def start(kimi, out, name, *options, preexec=None):
    keys = [word for key in [*KEYS, ABUSIVE_KEY] for word in ("--api-key", key)]
    return server.Server(kimi, None, os.path.join(out, name), *keys, "--ctx", "2048", "--threads", "2", *options, preexec=preexec)


def soak(kimi, out, seconds, seed, timed):
    """Runs the soak test; returns the faults."""
    # The warm-up fills the prefix cache, so that it does not grow later.
    under = start(kimi, out, "soak.log", "--queue", "1024", "--cache-ram", "32M")
    loop, faults = Loop(), []
    crowd = Crowd(loop, under.address, CLIENTS, seed)

    def measure(name, seconds):
        loop.run(time.monotonic() + seconds)
        found = crowd.take()
        row(name, *found)
        if under.process.poll() is not None:
            raise Over(f"{name}: {under.fault()}")
        return found
    # The warm-up has the full concurrency, so that buffers have their final size.
    crowd.begin()
    warm = start_abusive_clients(under.address, 12, 20, seed + 1)
    measure("warm-up", 14)
    warm.join()
    crowd.end(30)
    before = settle(under, (0, 0), 5)
    crowd.take()
    crowd.begin()
    loop.run(time.monotonic() + THINK_SECONDS / 2)
    crowd.take()
    alone = measure("alone", max(15, seconds / 5))
    rate = len(alone[0]) / max(15, seconds / 5)
    abusive, watch = start_abusive_clients(under.address, seconds, max(rate, 1), seed), server.Watch(under)
    loop.run(time.monotonic() + 5)
    crowd.take()
    attacked = measure("under load", seconds - 6)
    abusive.join()
    left = crowd.end(60)
    print(f"{rate:.1f} good requests a second alone; memory at most {watch.most >> 20} MiB over the start", flush=True)
    if found := watch.stop() or under.fault():
        return faults + [found]
    for name, (seen, bad, _, _) in [("alone", alone), ("under load", attacked)]:
        faults += [f"{name}: {len(bad)} good requests refused, the first with {bad[0]}"] if bad else []
    faults += [f"{left} good requests without an answer after 60 s"] if left else []
    factor = quantile(attacked[0], 0.99) / quantile(alone[0], 0.99)
    if timed and not factor <= 2:
        faults.append(f"the good requests' p99 is {factor:.1f} times what it is alone")
    after = settle(under, before, 30)
    print(f"memory {before[0]} MiB before, {after[0]} after; descriptors {before[1]} before, {after[1]} after; p99 {factor:.2f} times", flush=True)
    if after[0] > before[0] + GROWTH_MIB:
        faults.append(f"memory grew from {before[0]} to {after[0]} MiB")
    if after[1] > before[1] + 2:
        faults.append(f"descriptors grew from {before[1]} to {after[1]}")
    if (code := under.end()) != 0:
        faults.append(f"SIGTERM ended the server with {code}")
    return faults


def settle(under, before, seconds):
    """Waits until the server has noticed closed connections; returns its memory and descriptors."""
    end = time.monotonic() + seconds
    while (under.descriptors() > before[1] + 2 or under.resident() >> 20 > before[0]) and time.monotonic() < end:
        time.sleep(0.25)
    return under.resident() >> 20, under.descriptors()


def few_descriptors(kimi, out, seconds, seed):
    """Floods a server that may open 64 descriptors with half-open connections; returns the faults."""
    under = start(kimi, out, "soak-64.log", preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    abusive, faults, times = start_abusive_clients(under.address, seconds, 1, seed, hostile=False), [], []
    crowd = Crowd(Loop(), under.address, 0, seed)
    end, good = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for data in (server.get("/health"), crowd.request().replace(b"keep-alive", b"close")):
            begin = time.monotonic()
            try:
                code = server.status(server.exchange(under.address, data, 10))
            except OSError as e:
                code = e
            times.append(time.monotonic() - begin)
            good += code == 200
            if code not in (200, 503):
                faults.append(f"64 descriptors: {data[:30]!r}: {code}")
        time.sleep(0.1)
    abusive.terminate(), abusive.join()
    times.sort()
    print(f"64 descriptors, {HALF_OPEN} connections half open: {good} of {len(times)} answered with 200, p99 {quantile(times, 0.99):.0f} ms, longest {quantile(times, 1):.0f} ms", flush=True)
    if good < 0.99 * len(times):
        faults.append(f"64 descriptors: {len(times) - good} of {len(times)} good requests failed")
    faults += [f"64 descriptors: {fault}"] if (fault := under.fault()) else []
    under.end()
    return faults[:5]


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi"), p.add_argument("--seconds", type=int, default=600)
    p.add_argument("--seed", type=int, default=17), p.add_argument("--untimed", action="store_true"), p.add_argument("--out")
    args = p.parse_args()
    kimi, out = os.path.abspath(args.kimi), args.out or tempfile.mkdtemp(prefix="kimi-soak-")
    os.makedirs(out, exist_ok=True)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < 4096:
        print(f"note: {hard} descriptors for this process; of the {HALF_OPEN + CLIENTS + SILENT} connections some will fail here")
    faults = few_descriptors(kimi, out, max(10, args.seconds // 20), args.seed)
    try:
        faults += soak(kimi, out, args.seconds, args.seed, not args.untimed)
    except Over as e:
        faults.append(str(e))
    for fault in faults:
        print(f"FAILURE soak: {fault} (logs in {out})")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
