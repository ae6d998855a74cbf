"""Records the request bodies of a client for tests/serve/bodies.rs: a proxy in front of `kimi serve`, until standard input ends.

usage: record.py UPSTREAM CLIENT DIRECTORY      prints the address for the client; UPSTREAM is http://HOST:PORT

Bodies that differ in their fields, or in the kinds of their messages and tools, are written as DIRECTORY/CLIENT-N.json. Texts are
shortened, tools beyond three of a kind are left out, and paths, ids and names of the machine are replaced. No field is.
"""
import json, re, sys, threading, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LONGEST = 80
KINDS = 3
PRIVATE = [
    (re.compile(r"/(?:root|home|tmp|work|var|opt)(?:/[^\s\"'`<>,;:)\]}]*)?"), "/home/user"),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "00000000-0000-4000-8000-000000000000"),
    (re.compile(r"\b[0-9a-f]{32,64}\b"), "0" * 32),
    (re.compile(r"\b20\d\d-\d\d-\d\d\b"), "2026-12-01"),
    (re.compile(r"(?<=OS Version: ).*|(?<=Kernel: ).*"), "Linux"),
]


def text_of(text):
    for pattern, to in PRIVATE:
        text = pattern.sub(to, text)
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def kind(item):
    """What distinguishes an item of a list: its type, role and fields."""
    if not isinstance(item, dict):
        return type(item).__name__
    return (item.get("type"), item.get("role"), *sorted(item))


def trimmed(value, key=None):
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, list):
        seen, kept = {}, []
        for item in value:
            seen[kind(item)] = seen.get(kind(item), 0) + 1
            if key != "tools" or seen[kind(item)] <= KINDS:
                kept.append(trimmed(item))
        return kept
    if isinstance(value, dict):
        # Arguments are JSON text, which must stay whole.
        return {k: v if k == "arguments" else trimmed(v, k) for k, v in value.items()}
    return value


def shape(body):
    items = [sorted({str(kind(item)) for item in v}) for v in body.values() if isinstance(v, list)]
    return json.dumps([sorted(body), items])


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shapes, lock = set(), threading.Lock()

    def log_message(self, *_):
        pass

    def forward(self):
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.command == "POST" and data:
            self.record(json.loads(data))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length", "accept-encoding")}
        request = urllib.request.Request(UPSTREAM + self.path, data or None, headers, method=self.command)
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers.get("content-type", "text/plain"))
        self.send_header("connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            while piece := answer.read1():
                self.wfile.write(piece)
                self.wfile.flush()
        self.close_connection = True

    do_GET = do_POST = do_HEAD = do_DELETE = forward

    def record(self, body):
        path = self.path.split("?")[0]
        with self.lock:
            if (path, shape(body)) in self.shapes:
                return
            self.shapes.add((path, shape(body)))
            record = {"client": self.headers.get("user-agent", CLIENT), "path": path, "body": trimmed(body)}
            (DIRECTORY / f"{CLIENT}-{len(self.shapes)}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


UPSTREAM, CLIENT, DIRECTORY = sys.argv[1], sys.argv[2], Path(sys.argv[3])
server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
