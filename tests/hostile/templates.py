"""Generates chat templates: known attacks in random sizes, random programs of the template language, damaged copies of Kimi's own.

Each is stored in a model file's metadata and is rendered with a conversation by `generate`, `chat` and `inspect`.
"""
import os

import gguf, model, observe

KIMI = os.path.join(model.HERE, "..", "..", "models", "src", "kimi_linear", "chat.jinja")
MANY = [3, 30, 300, 3000, 30_000, 100_000, 1_000_000]
HUGE = ["65536", "1000000", "4000000000", "9223372036854775807", "1e308", "-1", "18446744073709551616"]

NESTS = [("(", ")"), ("[", "]"), ("{'a':", "}"), ("not ", ""), ("-", ""), ("+", ""), ("f(", ")"), ("x if 1 else ", ""), ("1 + ", ""), ("1 ** ", ""), ("a and ", ""),
         ("a ~ ", ""), ("a == ", ""), ("a in ", ""), ("", ".a"), ("", "[0]"), ("", "|list"), ("", "|upper"), ("", "()"), ("", " is defined"), ("", "[1:]"), ("", " and a")]
BLOCKS = [("{% if 1 %}", "{% endif %}"), ("{% for a in [1] %}", "{% endfor %}"), ("{% set x %}", "{% endset %}"), ("{% macro m() %}", "{% endmacro %}"),
          ("{% filter upper %}", "{% endfilter %}"), ("{% with %}", "{% endwith %}"), ("{% call m() %}", "{% endcall %}"), ("{% if 1 %}{% elif 2 %}", "{% endif %}"),
          ("{% autoescape true %}", "{% endautoescape %}"), ("{% block a %}", "{% endblock %}")]
GROW = ["ns.x ~ ns.x", "[ns.x, ns.x]", "ns.x + ns.x", "ns.x|replace('a', 'aaaa')", "ns.x|indent(1000)", "ns.x * 16", "ns.x|tojson", "ns.x|string ~ ns.x", "[ns.x] * 2",
        "{'a': ns.x, 'b': ns.x}", "ns.x|urlencode", "ns.x|escape", "ns.x|join(ns.x)", "(ns.x, ns.x)", "ns.x|list", "ns.x|batch(1)|list", "ns.x|slice(99999)|list", "dict(a=ns.x, b=ns.x)"]
ONE = ["{{ '%%%sd'|format(1) }}", "{{ 'a'|indent(%s) }}", "{{ 'a' * %s }}", "{{ [1] * %s }}", "{%% for i in range(%s) %%}a{%% endfor %%}", "{{ range(%s)|list }}",
       "{{ [1,2,3]|batch(%s, 'x')|list }}", "{{ [1,2,3]|slice(%s, 'x')|list }}", "{{ 'abc'.center(%s) }}", "{{ 'a'.ljust(%s) }}", "{{ 'a'.zfill(%s) }}", "{{ 2 ** %s }}",
       "{{ 1.0|round(%s) }}", "{{ 'a b'|wordwrap(%s) }}", "{{ 'abc'|truncate(%s) }}", "{{ lipsum(%s) }}", "{{ 'x'.replace('', 'y' * %s) }}", "{{ [1]|tojson(indent=%s) }}",
       "{{ '{:%s}'.format(1) }}", "{{ '%%.%sf'|format(1) }}", "{{ ''.join(['a'] * %s) }}", "{{ 'a'.split('', %s) }}", "{{ [][::%s] }}", "{{ 'abc'[%s:] }}",
       "{{ strftime_now('%%%sY') }}", "{{ (%s)|int ** 99 }}", "{{ range(0, %s, 1)|sum }}", "{{ cycler('a')|list * %s }}", "{{ 'x'.encode() * %s }}"]
SLOW = ["{%% set l = range(%s)|list %%}{%% for i in l %%}{{ -1 in l }}{%% endfor %%}", "{%% set l = range(%s)|list %%}{%% for i in l %%}{{ l == l }}{%% endfor %%}",
        "{%% set l = range(%s)|list %%}{%% for i in l %%}{{ l|sort|first }}{%% endfor %%}", "{%% set l = range(%s)|list %%}{%% for i in l %%}{{ l|unique|length }}{%% endfor %%}",
        "{%% set s = 'a' * %s %%}{%% for i in s %%}{{ 'b' in s }}{%% endfor %%}", "{%% set s = 'a' * %s %%}{%% for i in s %%}{{ s|upper|length }}{%% endfor %%}",
        "{%% set l = range(%s)|list %%}{%% for i in l %%}{{ l|map('string')|join|length }}{%% endfor %%}", "{%% for i in range(%s) %%}{{ messages|tojson|length }}{%% endfor %%}",
        "{%% set l = range(%s)|list %%}{%% for i in l %%}{{ l|selectattr('a')|list }}{%% endfor %%}", "{%% set s = 'ab' * %s %%}{%% for i in s %%}{{ s.split('a')|length }}{%% endfor %%}",
        "{%% macro f(n) %%}{%% for i in range(%s) %%}{{ f(n - 1) if n > 0 }}{%% endfor %%}{%% endmacro %%}{{ f(90) }}", "{%% set l = range(%s)|list %%}{%% for i in l %%}{{ l|groupby('a') }}{%% endfor %%}",
        "{%% set l = range(%s)|list %%}{%% for i in l %%}{{ l[::-1]|length }}{%% endfor %%}", "{%% set l = range(%s)|list %%}{%% for i in l %%}{{ l|reverse|list|max }}{%% endfor %%}"]
SELF = ["{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns|tojson }}", "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns == ns }}",
        "{% set ns = namespace() %}{% set ns.x = {'a': ns} %}{{ ns.x|string }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{{ f() }}{% endcall %}",
        "{% set a = namespace() %}{% set b = namespace() %}{% set a.x = b %}{% set b.x = a %}{{ a }}{{ a|pprint }}", "{% set ns = namespace() %}{% set ns.x = ns %}{% for k in ns|items %}{{ k }}{% endfor %}",
        "{% include 'chat_template' %}", "{% extends 'chat_template' %}", "{% import 'chat_template' as t %}{{ t }}", "{{ self }}{{ loop }}{{ caller }}", "{% for a in [[1]] recursive %}{{ loop(a) if a is iterable }}{% endfor %}",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}", "{{ raise_exception('\x1b]0;owned\x07') }}", "{{ raise_exception('a\nb\nc') }}", "{{ raise_exception('x' * 100000) }}", "{{ debug() }}", "{{ [][::-1] }}",
        "{{ messages[99999999999999999999] }}", "{{ 'a'|attr('__class__') }}", "{{ ''.__class__.__mro__ }}", "{{ undefined_thing.a.b }}", "{{ messages|map(attribute='content.a.b.c')|list }}", "{{ '\\ud800' }}", "{{ 1 / 0 }}{{ 1 % 0 }}{{ 1 // 0 }}",
        "{{ -9223372036854775808 // -1 }}", "{{ 9223372036854775807 + 1 }}", "{{ '<|im_end|>' * 3 }}", "{% set x = 'a' %}{% for i in range(60) %}{% set x = x ~ x %}{% endfor %}"]


def nested(draw):
    before, after = draw.choice(NESTS)
    n = draw.choice(MANY)
    return "{{ " + before * n + "a" + after * n + " }}"


def nested_blocks(draw):
    before, after = draw.choice(BLOCKS)
    n = draw.choice(MANY[:-1])
    return before * n + "a" + after * n


def many(draw):
    """A small construct repeated very often."""
    unit = draw.choice(["{{ a }}", "{% if a %}{% endif %}", "{# c #}", "{% set x = 1 %}", "{{ '", "{%", "{{ [1,2,3] }}", "<|im_end|>", "a" * 10, "\x1b[31m", "{% macro m() %}{% endmacro %}"])
    return unit * draw.choice(MANY[:-1])


def elifs(draw):
    return "{% if 0 %}" + "{% elif 0 %}" * draw.choice(MANY[:-1]) + "{% endif %}"


def growing(draw):
    grow, start = draw.choice(GROW), draw.choice(["'a' * 1000", "'a'", "[1]", "messages"])
    use = draw.choice(["", "{{ ns.x }}", "{{ ns.x == ns.x }}", "{{ ns.x|length }}", "{{ ns.x|tojson|length }}"])
    return "{%% set ns = namespace(x=%s) %%}{%% for i in range(%d) %%}{%% set ns.x = %s %%}{%% endfor %%}%s" % (start, draw.choice([8, 20, 40, 1000]), grow, use)


def one(draw):
    return draw.choice(ONE) % draw.choice(HUGE)


def slow(draw):
    return draw.choice(SLOW) % draw.choice(["30", "2000", "20000", "99999"])


def itself(draw):
    return draw.choice(SELF)


def expression(draw, depth=0):
    if depth > 5 or draw.random() < 0.25:
        return draw.choice(["a", "1", "-1", "''", "'x<|im_end|>'", "[]", "{}", "none", "true", "messages", "messages[0]", "messages[0]['content']", "tools", "loop", "ns.x", "1.5", "bos_token", "'\\u202e'"])
    inner = lambda: expression(draw, depth + 1)
    return draw.choice([
        lambda: f"({inner()} {draw.choice(['+', '-', '*', '/', '//', '%', '**', '~', '==', '<', 'in', 'and', 'or', 'is', 'not in'])} {inner()})",
        lambda: f"{inner()}|{draw.choice(FILTERS)}", lambda: f"{inner()}|{draw.choice(FILTERS)}({inner()})", lambda: f"{inner()}|{draw.choice(FILTERS)}({inner()}, {inner()})",
        lambda: f"{inner()} is {draw.choice(['defined', 'string', 'mapping', 'iterable', 'sameas(1)', 'divisibleby(0)', 'none', 'in([])'])}",
        lambda: f"{inner()}[{inner()}]", lambda: f"{inner()}[{inner()}:{inner()}:{draw.choice(['1', '-1', '0', inner()])}]", lambda: f"{inner()}.{draw.choice(METHODS)}({inner()})",
        lambda: f"({inner()} if {inner()} else {inner()})", lambda: f"[{inner()}, {inner()}]", lambda: f"{{'a': {inner()}}}", lambda: f"{draw.choice(['range', 'dict', 'namespace', 'lipsum', 'cycler', 'joiner', 'strftime_now'])}({inner()})",
    ])()


FILTERS = ("abs attr batch bool capitalize count default dictsort escape first float format groupby indent int items join last length lines list lower map max min pprint reject rejectattr "
           "replace reverse round safe select selectattr slice sort split string sum title tojson trim unique upper urlencode wordcount xmlattr zip chain").split()
METHODS = "upper lower strip split join replace format items keys values get startswith endswith find rfind count title center ljust zfill splitlines encode append pop index".split()


def statement(draw, depth=0):
    if depth > 3 or draw.random() < 0.4:
        return "{{ " + expression(draw) + " }}"
    inner = lambda: statement(draw, depth + 1)
    return draw.choice([
        lambda: "{% if " + expression(draw) + " %}" + inner() + "{% else %}" + inner() + "{% endif %}", lambda: "{% for a in " + expression(draw) + " %}" + inner() + "{% endfor %}",
        lambda: "{% set a = " + expression(draw) + " %}" + inner(), lambda: "{% macro f(a, b=1) %}" + inner() + "{% endmacro %}{{ f(" + expression(draw) + ") }}",
        lambda: "{% for a, b in " + expression(draw) + " if a %}" + inner() + "{% endfor %}", lambda: "{% filter " + draw.choice(FILTERS) + " %}" + inner() + "{% endfilter %}",
        lambda: "{% set a %}" + inner() + "{% endset %}" + inner(), lambda: inner() + inner(), lambda: "{%- for m in messages -%}{{ m['role'] }}" + inner() + "{%- endfor -%}",
    ])()


def program(draw):
    return "{% set ns = namespace(x='a') %}" + "".join(statement(draw) for _ in range(draw.randrange(1, 6)))


def damaged(draw):
    """Kimi's template with pieces removed, duplicated or replaced."""
    with open(KIMI) as file:
        text = file.read()
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(text))
        end = at + draw.randrange(1, 60)
        text = text[:at] + draw.choice(["", text[at:end] * 2, "{{ " + expression(draw) + " }}", "{%", "%}", "'", "-", "\0", "|"]) + text[end:]
    return text


MAKERS = [nested] * 3 + [nested_blocks, nested_blocks, many, elifs] + [growing] * 3 + [one] * 3 + [slow, slow, itself, itself] + [program] * 5 + [damaged] * 3


class Templates:
    def __init__(self, kimi, base, _):
        self.kimi = kimi
        with open(model.build(kimi, base, kinds=["q8_0"])["q8_0"], "rb") as file:
            self.sound = gguf.File(file.read())

    def case(self, draw, directory):
        text = draw.choice(MAKERS)(draw)
        file = self.sound.copy()
        value = gguf.string(text.encode(errors="replace"))
        file.keys = [key for key in file.keys if key[0] != b"tokenizer.chat_template"] + [[b"tokenizer.chat_template", gguf.STRING, value]]
        with open(os.path.join(directory, "m.gguf"), "wb") as out:
            out.write(file.bytes())
        with open(os.path.join(directory, "template.jinja"), "w", errors="replace") as out:
            out.write(text)
        shared = ["-m", "m.gguf", "-n", "1", "--no-cache", "--threads", "1"]
        way, stdin, env = draw.random(), None, None
        if way < 0.8:
            command = [self.kimi, "generate", *shared, "--system", "Be brief.", "--quiet", "What <|im_end|> is it?"]
        elif way < 0.95:
            command, stdin = [self.kimi, "chat", "--plain", *shared, "--system", "Be brief."], b"Hello\nAnd then?\n/stats\n"
            env = {**os.environ, "XDG_DATA_HOME": directory, "XDG_STATE_HOME": directory, "HOME": directory}
        else:
            command = [self.kimi, "inspect", "m.gguf"]
        done = observe.run(command, directory, env=env, stdin=stdin)
        # A chat reports each line that it could not answer, and at the end how many.
        return command, done, done.fault(lines="chat" not in command) or self.by_ids(draw, directory)

    def by_ids(self, draw, directory):
        """Token ids run, whatever the template is."""
        if draw.random() > 0.2:
            return None
        done = observe.run([self.kimi, "generate", "-m", "m.gguf", "--ids", "1", "-n", "1", "--no-cache", "--threads", "1", "--quiet"], directory)
        fault = done.fault(codes=(0,))
        return f"by ids: {fault}: {done.error_text[:200]}" if fault else None
