#!/usr/bin/env python3
"""Makes models/tests/data/template_goldens.json: templates rendered by Python's jinja2 as transformers does.

    python3 tests/template_goldens.py

Uses the settings of transformers' chat template environment: trim_blocks, lstrip_blocks, loop controls,
`tojson` as json.dumps without HTML escapes, raise_exception. Needs jinja2; made with 3.1.
"""

import copy
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

DATA = pathlib.Path(__file__).resolve().parent.parent / "models"
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Wetter <in> 'Köln' & \"中\"",
           "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer",
           "minimum": 1e-7, "maximum": 1e22, "default": 1.0, "enum": [1, -2, 3.5]}}, "required": ["city"]}}}
TALK = [
    {"role": "system", "content": "  Be brief. \n"},
    {"role": "user", "content": "\u001c\u3000 What is it?\n\n\u2028"},
    {"role": "assistant", "content": "<think>hm, a \\ and a \"\u0007\u007f\u009f</think>\nIt is 12 °C 😀.", "weight": 0.25},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}], "name": "Ann"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "functions.get_weather:0", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Köln\"}"}},
        {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rom", "n": 2, "deep": [[], {}, [None, True]]}}}]},
    {"role": "tool", "content": "18 C", "tool_call_id": "functions.get_weather:0", "name": "get_weather"},
    {"role": "tool", "content": "20 C", "tool_call_id": "functions.get_weather:1"},
]
SHORT = [m for m in TALK if isinstance(m["content"], str) and m["role"] != "tool"]

# Written for these tests; engines differ on each of them.
TEMPLATES = {
    "kimi": (DATA / "src/kimi_linear/chat.jinja").read_text(),
    "ling": (DATA / "src/ling/chat.jinja").read_text(),
    "chatml, no whitespace control": """{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
""",
    "whitespace": "  {% if true %}\n   a\n  {% endif %}\n\n {{ 'b' }} \n{%- set x = 1 -%}\n c {%+ if x %} d{% endif +%}\n\t{# note #}\ne{{ '\\n' }}\n\n",
    "tojson": "{% for t in tools or [] %}{{ t | tojson }}\n{{ t | tojson(indent=2) }}\n{{ t|tojson(separators=(',', ':'), ensure_ascii=True) }}\n{{ t | tojson(indent=4, sort_keys=true, separators=(',', ' : ')) }}{% endfor %}{{ messages | tojson }}{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=1) }}{{ {2: none, 'é': [1.5e300, -0.0], true: 'a/b', none: 1, 0.5: 2} | tojson }}",
    "printing": "{{ true }} {{ none }} {{ 1.0 }} {{ 3 / 2 }} {{ 7 // 2 }} {{ [1, 'a', none, true] }} {{ {'k': 'v', 'n': [1.5]} }} {{ missing }} {{ 'a' ~ 1 ~ none ~ 2.0 }} {{ -7 % 3 }} {{ 2 ** 5 }}",
    "strings": "{% for m in messages if m.content is string %}{{ m.content.strip() }}|{{ m.content.lstrip() }}|{{ m.content.rstrip('.\\n ') }}|{{ m.content.split('</think>')[-1].lstrip('\\n') }}|{{ '</think>' in m.content }}|{{ m.content.startswith('<') }}|{{ m.content.upper() }}|{{ m.content | length }}|{{ m.content[1:-1] }}|{{ m.content.replace('i', 'I') }}|{{ m.content.split() }}\n{% endfor %}",
    "namespace and loops": "{% set ns = namespace(found=false, n=0) %}{% for m in (messages[::-1] if messages else []) %}{% if m.role == 'user' and not ns.found %}{% set ns.found = true %}{{ loop.index0 }}/{{ loop.length }}/{{ loop.last }}{% endif %}{% if m.role == 'tool' %}{% continue %}{% endif %}{% set ns.n = ns.n + loop.revindex %}{% if ns.n > 20 %}{% break %}{% endif %}[{{ m.role }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if loop.nextitem is defined }}]{% else %}none{% endfor %}{{ ns.n }}",
    "macros and defaults": "{% macro say(who, what='nothing', loud=false) -%}\n  {{ who }}: {{ what | upper if loud else what }}\n{%- endmacro %}{% for m in messages %}{{ say(m.role, m.get('name', 'nobody'), loud=loop.first) }}; {% endfor %}{{ say('x') }}{{ extra_flag | default('unset') }}{{ enable_thinking is defined and enable_thinking is false }}",
    "filters": "{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'in', ['tool', 'user']) | map(attribute='role') | list }} {{ (messages | first).role }} {{ (messages | last).role }} {{ 'a b' | title }} {{ 'x' | indent(3, true) }} {{ [3, 1, 2] | sort }} {{ {'b': 1, 'a': 2} | dictsort }} {% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}={{ v }} {% endfor %}{{ '%s-%05.2f' | format('q', 3.14159) }} {{ 'abc' | replace('b', '') }} {{ [1, 2, 3] | tojson }} {{ 'ab' in ['ab'] }} {{ [1] + [2] }} {{ messages | length }} {{ 'a,b' .split(',') | join('-') }}",
    "tests": "{% for v in [none, 1, 1.5, 'a', [1], {'a': 1}, true, missing] %}{{ v is none }},{{ v is string }},{{ v is mapping }},{{ v is iterable }},{{ v is sequence }},{{ v is number }},{{ v is boolean }};{% endfor %}{{ x is undefined }}{{ x is not defined }}{{ messages[0].nothing is defined }}{{ messages[0]['nothing'] is none }}",
    "alternation": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate, ' + message['role'] + ' at ' ~ loop.index0) }}{% endif %}{{ message['content'] }}{{ eos_token }}{% endfor %}",
    "raw and comments": "{% raw %}{{ not this }}{% endraw %}{#- gone -#}  {{- ' a ' -}}  \n{% filter upper %}up{% endfilter %}{% set block %}in{% endset %}{{ block }}{% with a = 1 %}{{ a }}{% endwith %}",
}


def environment():
    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                        extensions=[jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    return made


def converted(messages, source):
    """Messages whose calls have arguments as objects, for a template that writes arguments one by one."""
    messages = copy.deepcopy(messages)
    for call in (call for message in messages if "<arg_key>" in source for call in message.get("tool_calls", [])):
        if isinstance(call["function"]["arguments"], str):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages


def main():
    cases = []
    for name, source in TEMPLATES.items():
        template = environment().from_string(source)
        for messages, tools, prompt, extra in [(TALK, [WEATHER], True, {"enable_thinking": False}), (SHORT, [], False, {}),
                                               (SHORT[1:], [WEATHER, {"a": 1}], True, {"extra_flag": "é"}), ([], [], False, {})]:
            case = {"name": name, "messages": messages, "tools": tools, "add_generation_prompt": prompt, "extra": extra}
            try:
                case["text"] = template.render(messages=converted(messages, source), tools=tools or None, add_generation_prompt=prompt,
                                               bos_token="[BOS]", eos_token="[EOS]", **extra)
            except (jinja2.exceptions.TemplateError, TypeError) as error:
                case["error"] = str(error)
            cases.append(case)
    sources = {name: source for name, source in TEMPLATES.items() if name not in ("kimi", "ling")}
    out = DATA / "tests/data/template_goldens.json"
    out.write_text(json.dumps({"templates": sources, "cases": cases}, ensure_ascii=False, indent=1) + "\n")
    print(f"{out.name}: {len(cases)} cases, {sum('error' in case for case in cases)} of them errors")


if __name__ == "__main__":
    main()
