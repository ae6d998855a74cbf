"""A `kimi serve` to attack, and raw connections to it."""
import json, os, re, socket, subprocess, threading, time

import observe


class Server:
    """A server process on a free port; what it logs is in a file."""

    def __init__(self, kimi, model, log, *options, preexec=None):
        self.log = log
        command = [kimi, "serve", "--port", "0", *(() if "--threads" in options else ("--threads", "1")), *options] + (["-m", model] if model else [])
        if not any(o in options for o in ("--cache-dir", "--no-cache")):
            command.append("--no-cache")
        with open(log, "wb") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, preexec_fn=preexec)
        self.pid, self.address = self.process.pid, self.wait_for_address()
        end = time.monotonic() + 30
        while self.health() != 200:
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"the server did not start: {self.logged()}")
            time.sleep(0.02)
        self.start = self.resident()

    def wait_for_address(self):
        for _ in range(3000):
            if found := re.search(r"address=([\d.]+):(\d+)", self.logged()):
                return found[1], int(found[2])
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError(f"the server did not start: {self.logged()}")

    def logged(self):
        with open(self.log, "rb") as file:
            return file.read().decode(errors="replace")

    def resident(self):
        return observe.resident(self.pid)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def health(self, seconds=10):
        try:
            return status(exchange(self.address, get("/health"), seconds))
        except OSError:
            return None

    def fault(self):
        """What is wrong with it now, or None."""
        answers = self.health() == 200
        try:
            code = self.process.wait(0 if answers else 1)
            return f"the server ended with {code}: {self.logged()[-200:]}"
        except subprocess.TimeoutExpired:
            pass
        if "panicked at" in (logged := self.logged()):
            return f"a panic in the log: {logged[logged.index('panicked at'):][:300]}"
        if found := observe.RAW.search(logged):
            return f"raw U+{ord(found[0]):04X} in the log"
        if (size := self.resident() - self.start) > observe.SPARE_BYTES:
            return f"{size >> 20} MiB more than at the start"
        if not answers:
            return "no answer to GET /health within 10 s"
        return None

    def end(self, kill=False):
        if self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Watch:
    """Ends a server that uses too much memory before the machine swaps; runs on a thread during the attack."""

    def __init__(self, server):
        self.server, self.found, self.most, self.over = server, None, 0, threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self):
        while not self.over.wait(0.05):
            size = self.server.resident() - self.server.start
            self.most = max(self.most, size)
            if size > observe.SPARE_BYTES:
                self.found = f"{size >> 20} MiB more than at the start and growing"
                self.server.process.kill()
                return

    def stop(self):
        self.over.set()
        self.thread.join()
        return self.found


def get(path, host="localhost"):
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def post(path, body, kind="application/json", host="localhost", more=""):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def exchange(address, data, seconds=10, most=1 << 24, patience=None):
    """Sends bytes and reads until the connection ends; TimeoutError where that takes longer.

    With `patience` the request may be incomplete: after so many seconds of silence the sending side is closed.
    """
    end, got, size = time.monotonic() + seconds, [], 0
    with socket.create_connection(address, timeout=seconds) as connection:
        try:
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent: the answer may be there
        while size <= most:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(min(left, patience or left))
            try:
                part = connection.recv(1 << 16)
            except ConnectionResetError:
                break
            except TimeoutError:
                if patience is None:
                    raise
                patience = None
                connection.shutdown(socket.SHUT_WR)
                continue
            if not part:
                break
            got.append(part)
            size += len(part)
    return b"".join(got)


def status(answer):
    found = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    return int(found[1]) if found else None


def body(answer):
    """The body of an answer with a length or in chunks."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        length = re.search(rb"content-length: (\d+)", head.lower())
        return rest[:int(length[1])] if length else rest
    out = b""
    while found := re.match(rb"([0-9a-fA-F]+)\r\n", rest):
        size = int(found[1], 16)
        if size == 0:
            break
        out, rest = out + rest[found.end():found.end() + size], rest[found.end() + size + 2:]
    return out
