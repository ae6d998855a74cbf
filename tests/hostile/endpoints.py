"""Runs `kimi chat --url` and `kimi ask --url` against hostile servers: endless responses, broken framing, redirects, raw escapes."""
import gzip, json, os, socket, threading, time

import observe

ENDLESS = 3 << 30  # bytes at most of an answer without end; the client is to stop long before


def event(text, more=""):
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + more.encode() + b"\n\n"


def whole(text, kind="application/json"):
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
SIGNS = ["\x1b]0;owned\x07", "\x1b[2J", "\u202eabc", "\x9b31m", "\x00", "\r", "\x7f", "<|im_end|>", "\u2066"]


def answers(draw, port):
    """The start of a response, and the bytes that are repeated after it without end (or none)."""
    sign = draw.choice(SIGNS)
    n = draw.choice([100, 10_000, 3_000_000])
    line = b"x" * (1 << 16)
    return draw.choice([
        lambda: (STREAM + event("Yes.") + DONE, b""), lambda: (STREAM + event(sign) * 3 + DONE, b""), lambda: (STREAM + b"data: ", line), lambda: (STREAM, event("word ")), lambda: (STREAM, b": ping\n\n"), lambda: (STREAM, b"\n"),
        lambda: (STREAM + event("x" * n) + DONE, b""), lambda: (CHUNKS + b"ffffffffffffffff\r\n", line), lambda: (CHUNKS + b"%x\r\n" % (1 << 40) + b"data: ", line), lambda: (CHUNKS + b"fffffffffffffffff\r\n" + line, b""), lambda: (CHUNKS + b"5;" + b"x" * n, line),
        lambda: (CHUNKS, b"1\r\n\n\r\n"), lambda: (b"HTTP/1.1 200 OK\r\nA: ", line), lambda: (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), lambda: (b"HTTP/1.1 100 Continue\r\n\r\n" * min(n, 3000) + STREAM + DONE, b""), lambda: (b"", b"HTTP/1.1 100 Continue\r\n\r\n"), lambda: (draw.randbytes(n), b""), lambda: (b"", line),
        lambda: (f"HTTP/1.1 302 Found\r\nLocation: {draw.choice([f'http://127.0.0.1:{port}/again', 'file:///etc/passwd', 'http://127.0.0.1:1/', 'gopher://x', '//evil.example/', chr(27) + '[31m', 'x' * 9000])}\r\nContent-Length: 0\r\n\r\n".encode(), b""),
        lambda: (f"HTTP/1.1 {draw.choice([400, 401, 404, 429, 500, 503])} {sign.strip() or 'x'}\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n".encode() + (sign.encode() * n)[:n], b""), lambda: (b"HTTP/1.1 500 X\r\nConnection: close\r\n\r\n", line),
        lambda: (b"HTTP/1.1 500 X\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n" + json.dumps({"error": {"message": sign * draw.choice([1, 30_000])}}).encode(), b""),
        lambda: (STREAM + b"data: " + b"[" * n + b"\n\n", b""), lambda: (STREAM + b"data: {\"choices\":[" + b"{}," * min(n, 100_000) + b"{}]}\n\n" + DONE, b""), lambda: (STREAM + b"data: nul\n\n", b""), lambda: (STREAM + b"data: {\"error\":{\"message\":\"%s\"}}\n\n" % (b"\\u001b[31m" * min(n, 9000)), b""),
        lambda: (STREAM + event("half"), b""), lambda: (b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + event("half"), b""), lambda: (whole(json.dumps({"choices": [{"message": {"content": sign}}]}).encode()), b""), lambda: (whole(b"{" * n), b""),
        lambda: (whole(gzip.compress(b"\0" * (1 << 24))).replace(b"Connection", b"Content-Encoding: gzip\r\nConnection", 1), b""), lambda: (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: text/event-stream\r\n\r\n", gzip.compress(b"\0" * (1 << 24))),
        lambda: (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b""), lambda: (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde", b""), lambda: (b"HTTP/9.9 999 X\r\n\r\n", b""), lambda: (b"", b""), lambda: (whole(b"<html>", "text/html"), b""),
        lambda: (STREAM + b"data: " + json.dumps({"choices": [{"delta": {"content": None, "tool_calls": [{"function": {"arguments": sign * 100}}]}}], "usage": {"prompt_tokens": -1, "completion_tokens": 10 ** 40}}).encode() + b"\n\n" + DONE, b""),
    ])()


class Endpoint:
    """Answers every connection with the same response."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port, self.answer = self.listener.getsockname()[1], (b"", b"")
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection, self.answer), daemon=True).start()

    def serve(self, connection, answer):
        first, endless = answer
        try:
            with connection:
                connection.settimeout(20)
                got = b""
                while b"\r\n\r\n" not in got and (part := connection.recv(1 << 16)):
                    got += part
                connection.sendall(first)
                sent = 0
                repeated = endless * max((1 << 16) // len(endless), 1) if endless else b""
                while repeated and sent < ENDLESS:
                    connection.sendall(repeated)
                    sent += len(repeated)
                # The rest of the request is read, because closing would otherwise reset the response.
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.2)
                while connection.recv(1 << 16):
                    pass
        except OSError:
            pass

    def close(self):
        self.listener.close()


class Endpoints:
    def __init__(self, kimi, base, _):
        self.kimi, self.endpoint = kimi, Endpoint()

    def close(self):
        self.endpoint.close()

    def case(self, draw, directory):
        port = self.endpoint.port
        self.endpoint.answer = answers(draw, port)
        first, endless = self.endpoint.answer
        with open(os.path.join(directory, "answer.http"), "wb") as file:
            file.write(first[:1 << 20] + b"\n--- and then without end ---\n" + endless[:1 << 12] if endless else first)
        env = {**os.environ, "XDG_DATA_HOME": directory, "XDG_STATE_HOME": directory, "HOME": directory, "OPENAI_API_KEY": "secret"}
        url = f"http://127.0.0.1:{port}/v1"
        if draw.random() < 0.6:
            command, stdin = [self.kimi, "chat", "--plain", "--url", url, "-m", "m", "-n", "50"], b"Hello\n"
        else:
            with open(os.path.join(directory, "a.txt"), "w") as file:
                file.write("The keeper is Mara.\n")
            command, stdin = [self.kimi, "ask", "--url", url, "-m", "m", "-n", "50", "-f", "a.txt", "Who?"], None
        done = observe.run(command, directory, env=env, stdin=stdin)
        return command, done, done.fault(lines=False)
