"""Sends mutated requests on raw connections: JSON, headers, chunked bodies, framing that proxies and servers read differently."""
import json, os, re, socket

import checkpoints, grammars, model, server

# A valid body for each path.
GOOD = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "file", "file": {"filename": "a.txt", "file_data": "QSBtaWxsLg=="}}]}, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "a", "content": "x"}], "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "n": 1, "seed": 1,
        "stop": ["x"], "stream": False, "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1.0}, "presence_penalty": 0.1, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto", "response_format": {"type": "text"}, "chat_template_kwargs": {}, "stream_options": None},
    "/v1/completions": {"model": "m", "prompt": ["a", "b"], "max_tokens": 3, "echo": True, "logprobs": 1, "stop": "x", "n": 1, "stream": False, "suffix": None, "ignore_eos": True},
    "/v1/responses": {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}, {"type": "input_file", "filename": "a.txt", "file_data": "QSBtaWxsLg=="}]}], "max_output_tokens": 3, "stream": False, "store": False, "text": {"format": {"type": "text"}}, "instructions": "I"},
    "/v1/messages": {"model": "m", "max_tokens": 3, "system": [{"type": "text", "text": "S"}], "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "t", "signature": ""}, {"type": "tool_use", "id": "toolu_0123456789abcdef_f_0", "name": "f", "input": {}}]}, {"role": "user", "content": [{"type": "tool_result",
        "tool_use_id": "toolu_0123456789abcdef_f_0", "content": [{"type": "text", "text": "x"}], "is_error": True}]}], "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
        "stop_sequences": ["x"], "temperature": 0.5, "top_k": 4, "top_p": 0.9, "stream": False, "thinking": {"type": "enabled"}, "output_config": {"effort": "low"}},
    "/v1/messages/count_tokens": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
    "/api/chat": {"model": "m", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, {"role": "tool", "content": "x", "tool_name": "f"}],
        "options": {"num_predict": 3, "temperature": 0.5, "stop": ["x"]}, "format": "json", "stream": False, "think": False, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
    "/api/generate": {"model": "m", "prompt": "Hi", "system": "S", "raw": False, "stream": False, "options": {"num_predict": 3}}, "/api/show": {"model": "m"},
    "/tokenize": {"content": "abc", "parse_special": True, "add_special": False}, "/detokenize": {"tokens": [1, 2, 300]}, "/v1/embeddings": {"input": "x"},
}
PATHS = list(GOOD)
CODES = {*range(200, 206), *range(400, 432), 431, 501, 503, 505}


def valid(draw):
    path = draw.choice(PATHS)
    return path, json.loads(json.dumps(GOOD[path]))


def changed(draw):
    path, body = valid(draw)
    for _ in range(draw.choice([1, 1, 2, 4])):
        body = checkpoints.change_json(body, draw)
    return server.post(path, body)


def streamed(draw):
    path, body = valid(draw)
    body = {**body, "stream": True, draw.choice(list(body)): draw.choice(checkpoints.VALUES)}
    return server.post(path, body)


def raw_text(draw):
    n = draw.choice([10, 1000, 100_000])
    text = draw.choice([b"[" * n, b'{"a":' * n, b'{"messages":[' + b'{"role":"user","content":"x"},' * n + b"]}", b'"' + b"\\u0000" * n + b'"', b"1" * n, b"1e" + b"9" * n, b"\xff" * n, b"nul", b"", b"{}" * n,
                        b'{"messages":"' + b"a" * n + b'"}', b'{"prompt":[' + b"1," * n + b"1]}", b'{"prompt":' + b"[" * n + b"]" * n + b"}", b'{"tools":[' + b'{"":1},' * n + b"{}]}", b'{"messages":[],"messages":[]}', b"\xef\xbb\xbf{}",
                        b'{"stop":[' + b'"a",' * n + b'"a"]}', b'{"logit_bias":{' + b",".join(b'"%d":1' % i for i in range(min(n, 20_000))) + b'}}', b'{"prompt":"' + b"a" * n + b'","max_tokens":1}'])
    return server.post(draw.choice(PATHS), text)


def cut(draw):
    """Closes the connection before the announced length."""
    path, body = valid(draw)
    data = server.post(path, body)
    return data[:draw.randrange(len(data))]


def flipped(draw):
    path, body = valid(draw)
    data = bytearray(server.post(path, body))
    for _ in range(draw.choice([1, 2, 8])):
        data[draw.randrange(len(data))] = draw.choice([0, 10, 13, 32, 34, 58, 123, 255, draw.randrange(256)])
    return bytes(data)


def headers(draw):
    n = draw.choice([1, 99, 101, 1000, 60_000])
    line = draw.choice([b"A: " + b"x" * n, b"\r\n".join(b"A%d: x" % i for i in range(min(n, 5000))), b"x" * n, b": x", b"A : x", b" A: x", b"A: \0", b"A\xff: \xff", b"Host: a\r\nHost: b", b"Expect: 100-continue", b"Upgrade: h2c\r\nConnection: Upgrade",
                        b"Connection: Upgrade\r\nUpgrade: websocket", b"Authorization: Bearer " + b"x" * n, b"Content-Encoding: gzip", b"Content-Type: " + b"a" * n, b"Accept: " + b"*/*," * n, b"Cookie: " + b"a=b;" * n, b"Origin: null", b"Transfer-Encoding: gzip", b"X: a\rb", b"X: a\nY: b"])
    return draw.choice([b"GET", b"POST", b"OPTIONS", b"TRACE", b"CONNECT", b"PUT", b"\x1b[31m", b"G" * 1000]) + b" /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + line + b"\r\n\r\n"


def lines(draw):
    n = draw.choice([1, 100, 9000, 100_000])
    target = draw.choice([b"/" + b"x" * n, b"/../../etc/passwd", b"/%2e%2e/%00", b"http://evil.example/", b"*", b"//", b"/?" + b"a=b&" * n, b"/\xff\xfe", b"/%ff%fe", b"/v1/models/" + b"%1b%5d0;x%07" * min(n, 999), b"", b"/\x1b[31m", b"/v1/models/../../health", b"/ HTTP/1.1 x", b"/\xe2\x80\xae"])
    version = draw.choice([b"HTTP/1.1"] * 4 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/9.9", b"", b"JUNK", b"HTTP/1.1\r\n\r\nGET / HTTP/1.1"])
    return b"GET " + target + b" " + version + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def chunked(draw):
    path, body = valid(draw)
    text = json.dumps(body).encode()
    size = b"%x" % len(text)
    chunk = draw.choice([size + b"\r\n" + text + b"\r\n0\r\n\r\n", b"\r\n".join(b"1\r\n%c" % b for b in text) + b"\r\n0\r\n\r\n", b"ffffffffffffffff\r\n" + text, b"fffffffffffffffff\r\n", b"-1\r\n" + text, b"0x10\r\n" + text, size + b";" + b"x" * draw.choice([9, 100_000]) + b"\r\n" + text + b"\r\n0\r\n\r\n",
                         size + b"\r\n" + text + b"0\r\n\r\n", size + b"\n" + text + b"\n0\n\n", size + b"\r\n" + text + b"\r\n0\r\n" + b"T: x\r\n" * draw.choice([1, 5000]) + b"\r\n", b"0" * 5000 + size + b"\r\n" + text, b"\r\n\r\n", b"zz\r\n", b" 5\r\nabcde\r\n0\r\n\r\n", size + b" \r\n" + text + b"\r\n0\r\n\r\n"])
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunk


def smuggled(draw):
    """A second request inside what some servers parse as the first one's body. It must not be answered."""
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Hidden: 1\r\n\r\n"
    encoding = draw.choice([b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding:\tchunked", b"Transfer-Encoding: identity, chunked", b"transfer-encoding: chunked\r\nTransfer-Encoding: x", b"Transfer-Encoding\r\n : chunked", b"X: y\r\n Transfer-Encoding: chunked", b"Transfer-Encoding: chunked, gzip", b"Transfer-Encoding: \x0bchunked"])
    body = b"0\r\n\r\n" + hidden
    length = draw.choice([b"Content-Length: %d" % len(body), b"Content-Length: 5", b"Content-Length: +%d" % len(body), b"Content-Length: 0%d\r\nContent-Length: %d" % (len(body), len(body)), b"Content-Length: 5\r\nContent-Length: %d" % len(body), b"Content-Length: 5, %d" % len(body), b"Content-Length: 0x5", b"Content-Length: -1",
                          b"Content-Length: 99999999999999999999", b"Content-Length: 18446744073709551615", b"Content-Length: 1e3"])
    # With a correct length nothing is hidden: the bytes after it are the next request.
    both = [length, encoding] if draw.random() < 0.7 or length == b"Content-Length: 5" else [length]
    draw.shuffle(both)
    return b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + b"\r\n".join(both) + b"\r\n\r\n" + body


def pipelined(draw):
    one = server.get("/health").replace(b"close", b"keep-alive")
    return one * draw.choice([2, 50]) + draw.choice([b"", b"G", b"\r\n\r\n", server.get("/x"), b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]) + server.get("/health")


def other_protocols(draw):
    return draw.choice([b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + draw.randbytes(200), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + draw.randbytes(draw.randrange(300)), draw.randbytes(draw.randrange(1, 5000)), b"\0" * 70_000, b"\r\n" * 5000, b"SSH-2.0-x\r\n", b"\n\n\n"])


def other_hosts(draw):
    path, body = valid(draw)
    hosts = ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "evil.example:80", "127.0.0.1@evil.example", "[::2]", "x" * 5000]
    return server.post(path, body, host=draw.choice(hosts), more=draw.choice(["", "Origin: http://evil.example\r\n", "Origin: null\r\n"]))


def other_types(draw):
    path, body = valid(draw)
    return server.post(path, body, kind=draw.choice(["text/plain", "", "application/json; charset=utf-16", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json, text/html", "a" * 5000, "application/\x1bjson"]))


# The results of these mutations may be incomplete requests.
INCOMPLETE = (cut, flipped, chunked, smuggled, other_protocols, headers, pipelined)
MAKERS = [changed] * 6 + [streamed, raw_text, raw_text, raw_text, cut, flipped, flipped, headers, headers, lines, lines, chunked, chunked, smuggled, smuggled, pipelined, other_protocols, other_hosts, other_types]


class Requests:
    def __init__(self, kimi, base, scratch):
        self.kimi, self.scratch, self.server, self.asked = kimi, scratch, None, 0
        self.model = model.build(kimi, base, kinds=["q8_0"])["q8_0"]
        self.renew()

    def renew(self):
        self.close()
        self.server = server.Server(self.kimi, self.model, os.path.join(self.scratch, "log"), "--ctx", "4096", "-n", "8", "--queue", "64")

    def close(self):
        if self.server:
            self.server.end(kill=True)

    def case(self, draw, directory):
        maker = draw.choice(MAKERS)
        data = maker(draw)
        with open(os.path.join(directory, "request.http"), "wb") as file:
            file.write(data)
        watch, answer = server.Watch(self.server), b""
        try:
            answer = server.exchange(self.server.address, data, patience=0.2 if maker in INCOMPLETE else None)
            fault = judge(maker, data, answer)
        except TimeoutError:
            fault = "no answer within 10 s"
        except OSError as e:
            fault = f"the connection: {e}"
        self.asked += 1
        fault = watch.stop() or fault or (self.server.fault() if self.asked % 8 == 0 or not answer else None)
        command = "kimi serve -m MODEL --port 8080 --ctx 4096 -n 8 & nc -N 127.0.0.1 8080 < request.http"
        return command, grammars.Answer(answer, self.server), fault and f"{maker.__name__}: {fault}"


def first_bytes(answer):
    """The bytes of the first of several answers on a connection."""
    head, _, _ = answer.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *([0-9]+)", head, re.IGNORECASE)
    return len(head) + 4 + int(length[1]) if length else len(answer)


def judge(maker, data, answer):
    code = server.status(answer)
    if code is not None and code not in CODES:
        return f"status {code}: {server.body(answer)[:200].decode(errors='replace')}"
    if code is not None and code >= 400 and first_bytes(answer) > 8192:
        return f"a refusal of {first_bytes(answer)} bytes"
    if maker is other_hosts and code == 200:
        return "answered although the Host is not this machine"
    if maker is smuggled and answer.count(b"HTTP/1.1 ") > 1 and b'"owned_by"' in answer:
        return "the hidden request was answered"
    head, _, rest = answer.partition(b"\r\n\r\n")
    if any(b in head for b in (b"\x1b", b"\0")):
        return "a raw control character in an answer's head"
    if code is not None and code >= 400 and b"application/json" in head.lower() and maker is not pipelined:
        try:
            error = json.loads(server.body(answer))["error"]
            # Ollama's interface has texts as errors, the others objects.
            assert isinstance(error if b" /api/" in data.partition(b"\r\n")[0] else error["message"], str)
        except (AssertionError, ValueError, KeyError, TypeError):
            return f"an error that is not in the interface's form: {rest[:100]!r}"
    return None
