//! Templates that attack the engine's stack, memory or time: one per known way.

/// Deep for the parser and the code generator, but within the bounds on a source.
const DEEP: usize = 4000;
/// Deeper than the bounds on a source.
const TOO_DEEP: usize = 80_000;

/// Values that contain themselves, or are nested so deeply that dropping them overflows the stack.
fn cycles() -> Vec<String> {
    let uses = [
        "{{ ns }}",
        "{{ ns == ot }}",
        "{{ ns | tojson }}",
        "{{ ns | string }}",
        "{{ ns ~ '' }}",
        "{{ '%s' | format(ns) }}",
        "{{ [ns] | join }}",
        "{{ [ns, ot] | sort | length }}",
        "{{ [ns, ot] | unique | list | length }}",
        "{{ ns in [ot] }}",
        "{{ {ns: 1} }}",
        "{{ ns | pprint }}",
        "{{ ns | list }}",
        "{{ ns | items }}",
        "{{ ns | upper }}",
        "{{ ns < ot }}",
        "{{ debug() }}",
        "{{ raise_exception(ns) }}",
        "{{ ns.x.x.x.x | length }}",
        "{{ ns | urlencode }}",
        "{{ [ns, ot] | max }}",
        "{{ [ns, ot] | groupby('x') }}",
        "{{ dict(a=ns) }}",
        "{{ ns | e }}",
    ];
    let spaces = "{% set ns = namespace(x=[]) %}{% set ot = namespace(x=[]) %}";
    let cycle = format!("{spaces}{{% set ns.x = ns %}}{{% set ot.x = ot %}}");
    let list = format!("{spaces}{{% set ns.x = [ot] %}}{{% set ot.x = [ns] %}}");
    let grow = "{% set ns.x = [ns.x] %}{% set ot.x = [ot.x] %}";
    let chain = format!(
        "{spaces}{{% for i in range(1000) %}}{{% for j in range(900) %}}{grow}{{% endfor %}}{{% endfor %}}"
    );
    let chained = [
        "",
        "{{ ns.x }}",
        "{{ ns.x == ot.x }}",
        "{{ ns.x | tojson }}",
        "{{ ns.x in [ot.x] }}",
        "{{ {ns.x: 1} }}",
    ];
    let after = |start: &str, uses: &[&str]| uses.iter().map(|u| start.to_owned() + u).collect::<Vec<_>>();
    [after(&cycle, &uses), after(&list, &uses[..8]), after(&chain, &chained)].concat()
}

/// Sources that make the parser, the code generator or the interpreter recurse.
fn depth(n: usize) -> Vec<String> {
    let chain =
        |open: &str, inner: &str, close: &str| format!("{}{inner}{}", open.repeat(n), close.repeat(n));
    let expressions = [
        ("not ", "x", ""),
        ("- ", "1", ""),
        ("-", "1", ""),
        ("(", "1", ")"),
        ("[", "1", "]"),
        ("{1:", "1", "}"),
        ("", "x", "|upper"),
        ("", "x", ".a"),
        ("", "x", "[0]"),
        ("", "x", "()"),
        ("", "'a'", "~'a'"),
        ("", "1", "+1"),
        ("", "1", " and 1"),
        ("", "1", " is defined"),
        ("1 if 1 else ", "1", ""),
        ("", "1", "**1"),
        ("", "1", "<1"),
        ("", "1", " in x"),
        ("", "x", "[:]"),
        ("x(", "1", ")"),
        ("x|f(", "1", ")"),
        ("", "1", "//1"),
        ("", "1", " not in x"),
    ];
    let blocks = [
        ("{% if a %}", "", "{% endif %}"),
        ("{% for a in b %}", "", "{% endfor %}"),
        ("{% filter upper %}", "x", "{% endfilter %}"),
        ("{% set x %}", "x", "{% endset %}"),
        ("{% with %}", "x", "{% endwith %}"),
        ("{% macro m() %}", "x", "{% endmacro %}"),
    ];
    let expressions =
        expressions.map(|(open, inner, close)| format!("{{{{ {} }}}}", chain(open, inner, close)));
    let blocks = blocks.map(|(open, inner, close)| chain(open, inner, close));
    let conditions = [
        format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(n)),
        format!("{{% if {}x %}}{{% endif %}}", "not ".repeat(n)),
    ];
    expressions.into_iter().chain(blocks).chain(conditions).collect()
}

/// Templates with macros, blocks and imports that call themselves.
const RECURSION: [&str; 9] = [
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}",
    "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}",
    "{% include 'chat_template' %}",
    "{% extends 'chat_template' %}",
    "{% import 'chat_template' as a %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
];

/// Values that double in each of 64 rounds: the first value, the next from `ns.x`, and the use after the loop.
const DOUBLED: [[&str; 3]; 16] = [
    ["'ab'", "ns.x ~ ns.x", "{{ ns.x }}"],
    ["'ab'", "ns.x ~ ns.x", ""],
    ["'ab'", "ns.x + ns.x", ""],
    ["[1]", "ns.x + ns.x", "{{ ns.x }}"],
    ["'ab'", "ns.x * 2", "{{ ns.x }}"],
    ["[1]", "ns.x * 2", ""],
    ["'ab'", "ns.x | replace('a', ns.x)", ""],
    ["'ab'", "(ns.x ~ ns.x) | upper", ""],
    ["'ab'", "[ns.x, ns.x] | join", ""],
    ["'<'", "ns.x | e | e", ""],
    ["'%'", "ns.x | urlencode", ""],
    ["'%s%s'", "ns.x | format(ns.x, ns.x)", ""],
    ["[1]", "(ns.x + ns.x) | list", ""],
    ["'ab'", "ns.x.replace('a', ns.x)", ""],
    ["'\"'", "ns.x | tojson", ""],
    ["'ab'", "(ns.x ~ ns.x) | list | join", "{{ ns.x }}"],
];

/// Expressions that allocate much memory.
const LARGE: [&str; 38] = [
    "'%4000000000d' | format(1)",
    "'%.4000000000f' | format(1)",
    "'%4000000000s' | format('a')",
    "'%-999999999d' | format(1)",
    "'a\n' | indent(4000000000)",
    "('a\n' * 99999) | indent(99999)",
    "('a' * 99999) | replace('a', 'b' * 99999)",
    "range(99999) | join('a' * 99999)",
    "[1] | batch(4000000000, 1) | list",
    "[1] | slice(4000000000) | list",
    "[1] | slice(4000000000, 1) | list",
    "range(99999) | batch(1) | list",
    "'a' * 4000000000",
    "[1] * 4000000000",
    "range(4000000000) | list",
    "range(99999) | map('string') | list | length",
    "'a'.center(4000000000)",
    "'a'.ljust(4000000000)",
    "'a'.zfill(4000000000)",
    "('a' * 9999).replace('', 'b' * 99999)",
    "('a' * 9999999).split('a') | list | length",
    "('a,' * 9999999).split(',')",
    "[[1] * 9999] | tojson(indent=64)",
    "(('<' * 99999) | e) * 9999",
    "[('a' * 9999)] * 99999",
    "lipsum(99999)",
    "('{}' * 9999).format('a' * 99999)",
    "('a' * 99999) | wordwrap(1)",
    "('a' * 99999999) | list",
    "cycler('a' * 99999999)",
    "('a b ' * 9999999) | title | wordcount",
    "range(-99999, 99999) | tojson",
    "range(0, 9223372036854775807, 1)",
    "('a' * 99999) | center(999999999999)",
    "'a' | ljust(999999999)",
    "{'a': 1} * 9",
    "'a' ~ ('b' * 999999999)",
    "messages | tojson(indent='a' * 99999999)",
];

/// Templates that allocate much memory.
fn memory() -> Vec<String> {
    let double = |[start, step, end]: [&str; 3]| {
        let body = format!("{{% for i in range(64) %}}{{% set ns.x = {step} %}}{{% endfor %}}{end}");
        format!("{{% set ns = namespace(x={start}) %}}{body}")
    };
    let written = [
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}aaaaaaaa{% endif %}{% endmacro %}{{ m(40) }}",
        "{% set x = 'a' * 999 %}{% for i in range(60) %}{% set x %}{{ x }}{{ x }}{% endset %}{% endfor %}{{ x }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
        "{% set x = 'a' * 90000000 %}{% for i in range(9999) %}{{ x }}{% endfor %}",
    ];
    let large = LARGE.map(|expression| format!("{{{{ {expression} }}}}"));
    DOUBLED.map(double).into_iter().chain(written.map(str::to_owned)).chain(large).collect()
}

/// Long steps, over a string `s` of 3 MB and a list `l` of 90,000.
const LONG: [&str; 25] = [
    "{% if 'b' in s %}{% endif %}",
    "{% if s == s ~ '' %}{% endif %}",
    "{% if -1 in l %}{% endif %}",
    "{% if l == l + [] %}{% endif %}",
    "{% set x = l | sort(reverse=true) %}",
    "{% set x = l | unique | list %}",
    "{% set x = s | replace('a', 'b') %}",
    "{% set x = s.count('a') %}",
    "{% set x = s.find('b') %}",
    "{% set x = s.split('b') %}",
    "{% set x = s | length %}",
    "{% set x = s.upper().lower() %}",
    "{% set x = s[::-1] %}",
    "{% set x = l | max %}",
    "{% set x = l | sum %}",
    "{% set x = l | join %}",
    "{% set x = l[1:] %}",
    "{% set x = l | reverse | list %}",
    "{% set x = l | select('in', l) | list %}",
    "{% set x = l | map('string') | list %}",
    "{% set x = s | trim | length %}",
    "{% set x = s | tojson %}",
    "{% set x = l | groupby('x') %}",
    "{% set x = s | first %}{% set x = s | last %}",
    "{% set x = s is eq(s ~ 'a') %}",
];

/// Uses of two values whose parts double in each of 70 rounds.
const WIDE: [&str; 10] = [
    "{{ ns.x == ns.y }}",
    "{{ ns.x }}",
    "{{ ns.x | tojson }}",
    "{{ {ns.x: 1} | length }}",
    "{{ ns.x in [ns.y] }}",
    "{{ [ns.x, ns.y] | sort | length }}",
    "{{ [ns.x, ns.y] | unique | list | length }}",
    "{{ ns.x < ns.y }}",
    "{{ ns.x | string | length }}",
    "{{ ns.x is eq(ns.y) }}",
];

/// A use of two values of which each holds the one before twice, 70 deep.
pub fn wide(step: &str, end: &str) -> String {
    let steps = format!("{{% set ns.x = {step} %}}{{% set ns.y = {} %}}", step.replace('x', "y"));
    format!("{{% set ns = namespace(x=[1], y=[1]) %}}{{% for i in range(70) %}}{steps}{{% endfor %}}{end}")
}

/// Templates with few long steps, or without end.
fn time() -> Vec<String> {
    let big = "{% set s = 'a' * 3000000 %}{% set l = range(90000) | list %}";
    let long = LONG.map(|body| format!("{big}{{% for i in range(90000) %}}{body}{{% endfor %}}"));
    let lists = WIDE.map(|end| wide("[ns.x, ns.x]", end));
    let maps = WIDE.map(|end| wide("{'a': ns.x, 'b': ns.x}", end));
    let others = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% set l = range(90000) | list %}{{ l | select('in', l | reverse | list) | list | length }}",
        "{{ 2 ** 10 ** 9 }}",
        "{{ 1.5 | round(999999999) }}",
        "{{ '9' * 999999 | int }}",
        "{{ (10 ** 18) ** 9 }}",
        "{{ strftime_now('%Y' * 9999999) }}",
    ];
    long.into_iter().chain(lists).chain(maps).chain(others.map(str::to_owned)).collect()
}

/// Sources that are not templates, and extreme values.
fn broken() -> Vec<String> {
    let short = [
        "",
        "{",
        "{{",
        "{%",
        "{#",
        "{{ '",
        "{% raw %}",
        "{% if %}",
        "{{ } }}",
        "{% endif %}",
        "{{ a. }}",
        "{{ [][::-1] }}",
        "\0{{ \0 }}",
        "{{ 'a'[0:9223372036854775807] }}",
        "{{ 1 // 0 }}",
        "{{ 1 % 0 }}",
        "{{ -9223372036854775808 // -1 }}",
        "{{ [1][9223372036854775807] }}",
        "{{ range(1, 2, 0) }}",
        "{{ 99999999999999999999999999999999999999999999 }}",
        "{{ 1e999 }}",
        "{% for a in 1 %}{% endfor %}",
        "{% set a.b.c = 1 %}",
        "{{ messages[0]['\u{202e}'] }}",
        "{{ raise_exception('\u{1b}[2J\n\u{9b}') }}",
    ];
    let long = [
        "{{ 'a' }}".repeat(29_000),
        "a".repeat(262_145),
        format!("{{{{ raise_exception('{}') }}}}", "a".repeat(200_000)),
    ];
    short.map(str::to_owned).into_iter().chain(long).collect()
}

/// All templates of this file.
pub fn all() -> Vec<String> {
    let recursion = RECURSION.map(str::to_owned).to_vec();
    let kinds = [cycles(), depth(140), depth(DEEP), depth(TOO_DEEP), recursion, memory(), time(), broken()];
    kinds.concat()
}
