"""Sends JSON schemas, Lark and GBNF grammars, regular expressions and tools to one server, which must answer each with 200 or 400 and survive."""
import json, os

import model, server

MANY = [3, 30, 300, 1000, 3000, 10_000, 50_000]
TYPES = ["string", "number", "integer", "boolean", "null", "array", "object"]
CHAT = "/v1/chat/completions"


def schema(draw, depth=0):
    """A random schema, mostly valid."""
    if depth > 4 or draw.random() < 0.15:
        return draw.choice([{"type": draw.choice(TYPES)}, True, {}, {"const": draw.choice([1, "a", None, [1], {"a": 1}])}, {"enum": ["a", 1, None]},
                            {"$ref": "#"}, {"$ref": "#/$defs/a"}, {"$ref": "https://example.com/x"}, {"type": "string", "pattern": regex(draw)}, {"type": ["string", "null"]}])
    inner = lambda: schema(draw, depth + 1)
    number = lambda: draw.choice([0, 1, 2, 5, -1, 1000, 10 ** 6, 10 ** 18, 1e308, 0.1, "x", None])
    return draw.choice([
        lambda: {"type": "object", "properties": {name: inner() for name in draw.sample(["a", "b", "c", "", "\x1b", "<|im_end|>", "x" * 300], draw.randrange(5))},
                 "required": draw.choice([[], ["a"], ["a", "b"], ["z"], ["a"] * 100]), "additionalProperties": draw.choice([False, True, inner()])},
        lambda: {"type": "array", "items": inner(), "minItems": number(), "maxItems": number()}, lambda: {"type": "array", "prefixItems": [inner(), inner()]},
        lambda: {"type": "string", "minLength": number(), "maxLength": number()}, lambda: {"type": "string", "format": draw.choice(["date", "uuid", "email", "ipv4", "x"])},
        lambda: {"type": "number", "minimum": number(), "maximum": number(), "multipleOf": number()}, lambda: {"type": "integer", "minimum": number(), "exclusiveMaximum": number()},
        lambda: {draw.choice(["anyOf", "oneOf", "allOf"]): [inner() for _ in range(draw.randrange(4))]}, lambda: {"not": inner()}, lambda: {"if": inner(), "then": inner()},
        lambda: {"$defs": {"a": inner()}, **draw.choice([{"$ref": "#/$defs/a"}, {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}])},
        lambda: {"patternProperties": {regex(draw): inner()}}, lambda: {"type": draw.choice(TYPES), draw.choice(["minimum", "pattern", "items", "unknown", "x-guidance"]): number()},
    ])()


def nest(draw, n):
    """A shape nested n times in itself: as nested JSON up to its depth limit, by references beyond it."""
    inner = {"type": "string"}
    for _ in range(min(n, 120)):
        inner = draw.choice([{"type": "object", "properties": {"a": inner}, "required": ["a"]}, {"type": "array", "items": inner}, {"anyOf": [inner, {"type": "null"}]}, {"allOf": [inner]}])
    return inner


def chain(draw, n):
    step = draw.choice([lambda ref: ref, lambda ref: {"type": "object", "properties": {"p": ref}}, lambda ref: {"type": "array", "items": ref}, lambda ref: {"anyOf": [ref, {"type": "null"}]},
                        lambda ref: {"allOf": [ref]}, lambda ref: {"type": "object", "properties": {"p": ref}, "required": ["p"], "additionalProperties": False}])
    place = draw.choice(["$defs", "definitions", "x"])
    defs = {f"d{i}": step({"$ref": f"#/{place}/d{i + 1}"}) for i in range(n)}
    return {place: {**defs, f"d{n}": {"type": "string"}}, "$ref": f"#/{place}/d0"}


def wide(draw, n):
    names = [f"p{i}" for i in range(n)]
    kind = draw.choice([{"type": "string"}, {"type": "integer", "minimum": 0, "maximum": 10 ** 9}, {"type": "string", "pattern": "^[a-z]{1,50}$"}, True])
    return {"type": "object", "properties": dict.fromkeys(names, kind), "required": draw.choice([[], names]), "additionalProperties": draw.choice([True, False])}


def choices(draw, n):
    return draw.choice([{"enum": [f"v{i}" for i in range(n)]}, {"anyOf": [{"const": i} for i in range(n)]}, {"oneOf": [{"type": "object", "properties": {f"a{i}": {}}, "required": [f"a{i}"]} for i in range(n)]},
                        {"allOf": [{"properties": {f"a{i}": {"type": "string"}}} for i in range(n)]}, {"enum": ["x" * n]}, {"const": list(range(n))}, {"type": ["string"] * n}])


def powers(draw, n):
    """Definitions that each refer to the previous one twice."""
    both = draw.choice([lambda r: {"type": "array", "prefixItems": [r, r]}, lambda r: {"type": "object", "properties": {"a": r, "b": r}}, lambda r: {"anyOf": [{"items": r, "type": "array"}, r]}, lambda r: {"allOf": [r, r]}])
    defs = {f"d{i}": both({"$ref": f"#/$defs/d{i + 1}"}) for i in range(min(n, 60))}
    return {"$defs": {**defs, f"d{min(n, 60)}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def bounds(draw, n):
    return draw.choice([{"type": "string", "minLength": n, "maxLength": n * 2}, {"type": "array", "items": {"type": "string"}, "minItems": n, "maxItems": n * 2}, {"type": "string", "pattern": "^(a{%d}){%d}$" % (n, n)},
                        {"type": "object", "minProperties": n, "maxProperties": n}, {"type": "integer", "minimum": -10 ** min(n, 300), "maximum": 10 ** min(n, 300)}, {"type": "number", "multipleOf": 10.0 ** -min(n, 300)},
                        {"type": "string", "pattern": "(" * n + "a" + ")" * n}, {"type": "string", "pattern": "|".join(f"a{i}" for i in range(n))}])


def regex(draw, depth=0):
    if depth > 4 or draw.random() < 0.3:
        return draw.choice(["a", ".", "[a-z]", "\\d", "\\w", "[^x]", "\\p{L}", "^", "$", "\\b", "", "é", "(?=a)", "(?i)a", "\\1", "[[:alpha:]]", "[a&&b]"])
    inner = lambda: regex(draw, depth + 1)
    return draw.choice([lambda: inner() + inner(), lambda: f"({inner()}|{inner()})", lambda: f"({inner()}){draw.choice(['*', '+', '?', '{2}', '{0,}', '{1,1000}', '{99999}', '*?'])}", lambda: f"(?:{inner()})", lambda: f"(?P<a>{inner()})"])()


def big_regex(draw):
    n = draw.choice(MANY)
    return draw.choice(["(" * n + "a" + ")" * n, "a?" * n + "a" * n, "(a|b)*a(a|b){%d}" % n, "(((a{%d}){%d}){%d})" % (n, n, n), "|".join("a%d" % i for i in range(n)), "[" + "a-z" * n + "]", "(a*)*" * n, "\\w{%d}" % n,
                        "(.{0,%d}x){%d}" % (n, min(n, 99)), "(?:" * n + "a" + ")*" * n, ".*" * n, "\\p{L}" * n, "^" * n, "(a&~b){%d}" % n])


def lark(draw):
    n = draw.choice(MANY)
    return draw.choice([
        lambda: "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(n)) + f'r{n}: "a"\n', lambda: "start: R0\n" + "".join(f"R{i}: R{i + 1}\n" for i in range(n)) + f'R{n}: "a"\n',
        lambda: 'start: ' + "(" * n + '"a"' + ")" * n, lambda: "start: " + " | ".join(f'"a{i}"' for i in range(n)), lambda: "start: start", lambda: "start: start start | \n", lambda: "start: a\na: b\nb: a",
        lambda: 'start: "a"{%d}' % n, lambda: "start: /" + big_regex(draw).replace("/", "") + "/", lambda: 'start: "' + "x" * n + '"', lambda: "start: " + "[" * n + '"a"' + "]" * n, lambda: 'start: "a"' + "?" * n,
        lambda: "start: " + "~" * n + '"a"', lambda: "%import common.WORD\nstart: WORD", lambda: "start: %json " + json.dumps(draw.choice([chain, wide, powers, nest])(draw, min(n, 3000))), lambda: "start: <|im_end|> <[1]> <[*]> <[999999999]>",
        lambda: 'start: "a" "b"* | start "c"\n' * min(n, 3000), lambda: "start: " + "r0 " * n + '\nr0: "a" | ""\n', lambda: 'start: (("a"*)*)*' + "*" * min(n, 3000), lambda: "start[capture, max_tokens=%d]: /.*/" % n, lambda: "%ignore /.*/\nstart: \"a\"",
        lambda: "start: " + " & ".join("/a{%d}/" % i for i in range(min(n, 999))), lambda: "start: @other", lambda: "%llguidance {}\nstart: \"a\"" * 2, lambda: "start: \x1b[31m", lambda: "", lambda: "x" * n, lambda: "".join(chr(draw.randrange(32, 127)) for _ in range(80)),
        lambda: "start: " + " ".join(f"t{i}" for i in range(min(n, 3000))) + "\n" + "".join(f"t{i}: /[a-z]{{{i}}}/\n" for i in range(min(n, 3000))),
    ])()


def gbnf(draw):
    n = draw.choice(MANY)
    return draw.choice([
        lambda: "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(n)) + f'r{n} ::= "a"\n', lambda: "root ::= " + "(" * n + '"a"' + ")" * n, lambda: "root ::= root | root root | [^a]",
        lambda: "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(min(n, 60))) + f'r{min(n, 60)} ::= [a-z]*\n', lambda: "root ::= " + " | ".join(f'"a{i}" root' for i in range(n)) + ' | "z"',
        lambda: 'root ::= (("a"{%d}){%d}){%d} root | "b"' % (n, n, n), lambda: 'root ::= "a"' + "*" * n, lambda: "root ::= [" + "\\U0010FFFF" * n + "]", lambda: 'root ::= "' + "\\x" * n + '"', lambda: "#" * n,
        lambda: "root ::= " + ". " * n + "root?", lambda: "root ::= a\na ::= b\nb ::= a", lambda: 'root ::= "a" # \x1b[31m\n' * 2, lambda: "x" * n, lambda: "root ::= [^]", lambda: "root ::= " + "undefined-%d " % n * min(n, 3000),
        lambda: "".join(draw.choice('abr::=|()[]{}"*+?.,#\\0123 \n') for _ in range(min(n, 3000))),
    ])()


def any_schema(draw):
    return draw.choice([lambda: schema(draw)] * 4 + [lambda make=make: make(draw, draw.choice(MANY)) for make in (nest, chain, chain, wide, wide, choices, powers, bounds)])()


def request(draw):
    """A request's body and the grammar's kind."""
    body = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": draw.choice([1, 4, 30]), "temperature": 0, "stream": draw.random() < 0.2}
    kind = draw.choice(["schema"] * 4 + ["lark"] * 3 + ["gbnf"] * 2 + ["regex"] * 2 + ["tools"] * 3)
    if kind == "schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": any_schema(draw)}}
    elif kind == "lark":
        body["response_format"] = {"type": "grammar", "grammar": lark(draw), "syntax": "lark"}
    elif kind == "gbnf":
        body["grammar"] = gbnf(draw)
    elif kind == "regex":
        body["response_format"] = {"type": "grammar", "grammar": draw.choice([regex, big_regex])(draw), "syntax": "regex"}
    else:
        count = draw.choice([1, 1, 2, 40, 128, 129])
        schemas = [any_schema(draw) if i < 2 else schema(draw) for i in range(count)]
        body["tools"] = [{"type": "function", "function": {"name": f"f{i}", "description": "d", "parameters": s, "strict": draw.random() < 0.5}} for i, s in enumerate(schemas)]
        body["tool_choice"] = draw.choice(["required", "auto", "none", {"type": "function", "function": {"name": "f0"}}])
    return body, kind


class Grammars:
    def __init__(self, kimi, base, scratch):
        self.kimi, self.scratch, self.server = kimi, scratch, None
        self.model = model.build(kimi, base, kinds=["q8_0"])["q8_0"]
        self.renew()

    def renew(self):
        self.close()
        self.server = server.Server(self.kimi, self.model, os.path.join(self.scratch, "log"), "--ctx", "4096", "-n", "30")

    def close(self):
        if self.server:
            self.server.end(kill=True)

    def case(self, draw, directory):
        body, kind = request(draw)
        data = server.post(CHAT, body)
        with open(os.path.join(directory, "request.http"), "wb") as file:
            file.write(data)
        command = f"kimi serve -m MODEL --port 8080 --ctx 4096 & nc -N 127.0.0.1 8080 < request.http   # {kind}"
        watch, answer = server.Watch(self.server), b""
        try:
            answer = server.exchange(self.server.address, data)
            fault = judge(answer, body)
        except TimeoutError:
            fault = "no answer within 10 s"
        except OSError as e:
            fault = f"the connection: {e}"
        fault = watch.stop() or self.server.fault() or fault
        return command, Answer(answer, self.server), fault and f"{kind}: {fault}"


class Answer:
    """The files to save for a failure."""

    def __init__(self, answer, server):
        self.stdout, self.stderr = answer, server.logged()[-5000:].encode()


def judge(answer, body):
    """A grammar is refused with 400 and a reason, or the reply matches it."""
    code, text = server.status(answer), server.body(answer)
    if code not in (200, 400, 413, 422):
        return f"status {code}: {text[:200].decode(errors='replace')}"
    if len(text) > 1 << 20 or code != 200 and len(text) > 4096:
        return f"status {code} with {len(text)} bytes"
    if code == 200 and not body["stream"] and body.get("response_format", {}).get("type") == "json_schema":
        choice = json.loads(text)["choices"][0]
        if choice["finish_reason"] == "stop":
            try:
                json.loads(choice["message"]["content"])
            except ValueError:
                return f"a whole reply that is no JSON: {choice['message']['content'][:100]!r}"
    return None
