//! Random hostile schemas, grammars and regular expressions, and valid schemas with an instance of each.

use kimi::generation::grammar::{Grammar, with_white_space};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// A pseudo-random series of grammars with a seed.
pub struct GrammarGenerator(Pcg64Mcg);

/// Definitions `d0` to `dn`, each a reference to the next.
fn chain(n: usize, link: impl Fn(Value) -> Value) -> Value {
    let mut defs = Map::new();
    (0..n).for_each(|i| {
        drop(defs.insert(format!("d{i}"), link(json!({ "$ref": format!("#/$defs/d{}", i + 1) }))))
    });
    defs.insert(format!("d{n}"), json!({ "type": "integer" }));
    json!({ "$ref": "#/$defs/d0", "$defs": defs })
}

fn lines(n: usize, line: impl Fn(usize) -> String) -> String {
    (0..n).fold(String::new(), |mut text, i| {
        let _ = writeln!(text, "{}", line(i));
        text
    })
}

/// The schema of a call to one of `tools` tools with `parameters` parameters each.
pub fn tools(tools: usize, parameters: usize) -> Grammar {
    let calls: Vec<String> = (0..tools).map(|i| format!("call_{i}")).collect();
    let mut text = format!("start: ({})+\n", calls.join(" | "));
    for i in 0..tools {
        let parameter = |j: usize| {
            (
                format!("parameter_{j}"),
                json!({ "type": if j.is_multiple_of(2) { "string" } else { "number" } }),
            )
        };
        let properties: Map<String, Value> = (0..parameters).map(parameter).collect();
        let schema = json!({ "type": "object", "properties": properties, "required": ["parameter_0"] });
        let schema = with_white_space(&schema);
        let _ = writeln!(
            text,
            "call_{i}: \"functions.tool_{i}:\" /[0-9]{{1,3}}/ args_{i}\nargs_{i}: %json {schema}"
        );
    }
    Grammar::Lark(text)
}

/// Definitions of which each refers to several others.
pub fn definitions(n: usize) -> Grammar {
    let definition = |i: usize| {
        let to = |k: usize| json!({ "$ref": format!("#/$defs/Type{}", (i * 7 + k * 13 + 1) % n) });
        let properties = json!({
            "name": { "type": "string", "description": "A name" },
            "kind": { "enum": ["a", "b", format!("kind-{i}")] },
            "next": { "anyOf": [to(0), { "type": "null" }], "title": "Next" },
            "all": { "type": "array", "items": to(1), "maxItems": 40 },
            "parent": { "allOf": [to(2)] }
        });
        let value = json!({ "type": "object", "properties": properties, "required": ["name"] });
        (format!("Type{i}"), value)
    };
    let defs: Map<String, Value> = (0..n).map(definition).collect();
    Grammar::Schema(json!({ "$ref": "#/$defs/Type0", "$defs": defs }))
}

impl GrammarGenerator {
    pub fn new(seed: u64) -> Self {
        GrammarGenerator(Pcg64Mcg::new(
            u128::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835) | 1,
        ))
    }

    /// A random number below `n`, uniformly.
    pub fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n.max(1) as u64) as usize
    }

    /// A random number up to `n`, uniform in magnitude.
    fn size(&mut self, n: usize) -> usize {
        let bits = self.below(n.ilog2() as usize + 1);
        (1 << bits) + self.below(1 << bits)
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// The `i`th hostile grammar and its family.
    pub fn hostile(&mut self, i: usize) -> (&'static str, Grammar) {
        match i % 12 {
            0 => ("references", Grammar::Schema(self.references())),
            1 => ("wide objects", Grammar::Schema(self.wide())),
            2 => ("products", Grammar::Schema(self.products())),
            3 => ("nesting", Grammar::Schema(self.nested())),
            4 => ("numbers", Grammar::Schema(self.numbers())),
            5 | 6 => ("random schema", Grammar::Schema(self.schema(5))),
            7 => ("rules", Grammar::Lark(self.rules())),
            8 => ("lark tokens", Grammar::Lark(self.soup())),
            9 => ("lark with json", Grammar::Lark(self.lark_with_json())),
            10 => ("regex", Grammar::Regex(self.regex(5))),
            _ => ("large regex", Grammar::Regex(self.large_regex())),
        }
    }

    fn references(&mut self) -> Value {
        let n = self.size(4000);
        match self.below(7) {
            0 => chain(n, |to| to),
            1 => chain(n, |to| json!({ "type": "object", "properties": { "a": to } })),
            2 => chain(n, |to| json!({ "type": "array", "items": to })),
            3 => chain(n, |to| json!({ "allOf": [to, { "type": "integer" }] })),
            4 => chain(n, |to| json!({ "anyOf": [to, { "type": "null" }], "description": "x" })),
            5 => chain(n.min(60), |to| {
                json!({ "type": "object", "properties": {
                "a": { "type": "object", "allOf": [to] }, "b": { "type": "object", "allOf": [to] } } })
            }),
            _ => chain(
                n,
                |to| json!({ "type": "object", "additionalProperties": to, "patternProperties": { "^x": to } }),
            ),
        }
    }

    fn wide(&mut self) -> Value {
        let n = self.size(6000);
        let value =
            self.pick(&[json!({ "type": "string" }), json!(true), json!({}), json!({ "enum": ["a", "b"] })]);
        let names: Vec<String> = (0..n).map(|i| format!("p{i}")).collect();
        let properties: Map<String, Value> = names.iter().map(|name| (name.clone(), value.clone())).collect();
        match self.below(6) {
            0 => json!({ "type": "object", "properties": properties }),
            1 => {
                json!({ "type": "object", "properties": properties, "required": names, "additionalProperties": false })
            }
            2 => json!({ "type": "object", "required": names }),
            3 => json!({ "enum": names }),
            4 => json!({ "type": "array", "prefixItems": vec![value; n] }),
            _ => {
                json!({ "type": "object", "properties": properties, "additionalProperties": false, "maxProperties": 1 })
            }
        }
    }

    fn products(&mut self) -> Value {
        let (lists, n) = (1 + self.below(5), self.size(300));
        let entry = |k: usize, i: usize| match k % 3 {
            0 => json!({ "type": "object", "properties": { (format!("p{k}_{i}")): { "type": "string" } } }),
            1 => json!({ "const": i }),
            _ => json!({ "required": [format!("r{i}")] }),
        };
        let list = |k: usize| json!({ "anyOf": (0..n).map(|i| entry(k, i)).collect::<Vec<_>>() });
        let all: Vec<Value> = (0..lists).map(list).collect();
        let large = json!({ "properties": { "a": { "enum": (0..self.size(4000)).collect::<Vec<_>>() } } });
        match self.below(3) {
            0 => json!({ "allOf": all }),
            1 => json!({ "allOf": [large, all[0]] }),
            _ => json!({ "properties": { "a": { "allOf": all }, "b": { "anyOf": all } }, "anyOf": all }),
        }
    }

    fn nested(&mut self) -> Value {
        let depth = self.size(120).min(120);
        let kind = self.below(5);
        (0..depth).fold(json!({ "type": "integer" }), |inner, i| {
            match (kind + usize::from(kind == 4) * i) % 4 {
                0 => json!({ "type": "array", "items": inner }),
                1 => json!({ "type": "object", "properties": { "a": inner } }),
                2 => json!({ "type": ["object", "array"], "anyOf": [inner] }),
                _ => json!({ "allOf": [inner, {}] }),
            }
        })
    }

    fn numbers(&mut self) -> Value {
        let extremes =
            [0.0, -1.0, 1e-300, 1e300, -1e308, 0.1, 4294967295.0, 9007199254740993.0, 1e18, 3.5, -7.25];
        let mut schema = Map::from_iter([(
            "type".to_owned(),
            json!(self.pick(&["integer", "number", "string", "array"])),
        )]);
        for key in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"] {
            if self.below(2) == 0 {
                schema.insert(key.to_owned(), json!(self.pick(&extremes)));
            }
        }
        for key in ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"] {
            if self.below(2) == 0 {
                schema.insert(
                    key.to_owned(),
                    json!(self.pick(&[0u64, 1, 3, 1000, 1_000_000, 4_294_967_295, u64::MAX])),
                );
            }
        }
        Value::Object(schema)
    }

    /// A schema of random keywords with values that mostly fit them.
    fn schema(&mut self, depth: usize) -> Value {
        if depth == 0 || self.below(20) == 0 {
            return self.pick(&[
                json!(true),
                json!(false),
                json!({}),
                json!(null),
                json!("x"),
                json!({ "type": "string" }),
            ]);
        }
        let keywords = [
            "type",
            "properties",
            "patternProperties",
            "additionalProperties",
            "items",
            "prefixItems",
            "allOf",
            "anyOf",
            "oneOf",
            "enum",
            "const",
            "$ref",
            "pattern",
            "format",
            "required",
            "minItems",
            "maxLength",
            "$defs",
            "not",
            "x-guidance",
            "$schema",
        ];
        let mut schema = Map::new();
        for _ in 0..1 + self.below(4) {
            let keyword = self.pick(&keywords);
            let value = match keyword {
                "properties" | "$defs" | "patternProperties" => {
                    let name = |this: &mut Self, i| {
                        if keyword == "patternProperties" { this.regex(3) } else { format!("p{i}") }
                    };
                    (0..1 + self.below(3))
                        .map(|i| (name(self, i), self.schema(depth - 1)))
                        .collect::<Map<_, _>>()
                        .into()
                }
                "items" | "additionalProperties" | "not" => self.schema(depth - 1),
                "prefixItems" | "allOf" | "anyOf" | "oneOf" => {
                    (0..1 + self.below(3)).map(|_| self.schema(depth - 1)).collect()
                }
                leaf => self.value(leaf),
            };
            schema.insert(keyword.to_owned(), value);
        }
        Value::Object(schema)
    }

    /// A value for a keyword that does not take a schema.
    fn value(&mut self, keyword: &str) -> Value {
        let references = ["#", "#/", "#/$defs/p0", "#/properties/p1", "#/allOf/0", "http://x/y", "#/é/~1"];
        match keyword {
            "type" => self.pick(&[
                json!("object"),
                json!("array"),
                json!("string"),
                json!(["integer", "null"]),
                json!(7),
            ]),
            "enum" => json!([1, "a", null, { "a": [1, 2, { "b": "é\u{0}" }] }]),
            "const" => json!("x".repeat(self.size(3000))),
            "$ref" => self.pick(&references).into(),
            "pattern" => self.regex(4).into(),
            "format" => self.pick(&["date-time", "uuid", "ipv6", "email", "nonsense"]).into(),
            "required" => json!(["p0", "q", "é".repeat(60)]),
            "x-guidance" => json!({ "whitespace_pattern": self.regex(3), "lenient": true }),
            "$schema" => "http://json-schema.org/draft-07/schema#".into(),
            _ => self.size(100_000).into(),
        }
    }

    fn rules(&mut self) -> String {
        let n = self.size(5000);
        let nest = self.size(60);
        let (open, close) = ("(".repeat(nest), ")".repeat(nest));
        match self.below(9) {
            0 => lines(n, |i| format!("r{i}: \"a\" r{}", i + 1)) + &format!("r{n}: \"b\"\nstart: r0\n"),
            1 => lines(n, |i| format!("R{i}: \"a\" R{}", i + 1)) + &format!("R{n}: \"b\"\nstart: R0\n"),
            2 => {
                lines(n, |i| format!("r{i}: {open}\"a\" r{}{close}", i + 1))
                    + &format!("r{n}: \"b\"\nstart: r0\n")
            }
            3 => format!("start: {}\"a\"{}\n", "(".repeat(n), ")".repeat(n)),
            4 => format!("start: \"x\"{}\n", " | \"y\"".repeat(n)),
            5 => format!("start: r::0\nr::_: \"a\" %if {}true{}\n", "not(".repeat(n), ")".repeat(n)),
            6 => {
                lines(n.min(40), |i| format!("R{i}: R{}{{2,1000}} | ~R{}", i + 1, i + 1))
                    + &format!("R{}: \"b\"\nstart: R0\n", n.min(40))
            }
            7 => {
                lines(n.min(40), |i| format!("r{i}: (r{} r{})+ | \"c\"", i + 1, i + 1))
                    + &format!("r{}: \"b\"\nstart: r0{{1,100000}}\n", n.min(40))
            }
            _ => format!("start: {} \"a\" {}\n", "%lark { start: ".repeat(nest), "}".repeat(nest)),
        }
    }

    /// Random tokens of the Lark language.
    fn soup(&mut self) -> String {
        let tokens = [
            "start:",
            "a:",
            "B:",
            "a",
            "B",
            "\"x\"",
            "\"\\n\"",
            "/[a-z]+/",
            "(",
            ")",
            "[",
            "]",
            "{2,5}",
            "{,}",
            "~3..9",
            "|",
            "&",
            "~",
            "*",
            "+",
            "?",
            "->",
            "%ignore",
            "%import common.INT",
            "%declare",
            "<|im_end|>",
            "<[0-99]>",
            "<[^5]>",
            "@x",
            "::_",
            "%if",
            "is_ones(_)",
            "%json {\"type\":\"string\"}",
            "%regex {\"substring_chars\": \"abcabc\"}",
            "[lazy]",
            "\n",
            "\n",
            "\n",
            "%llguidance {\"no_forcing\": true}",
            "%lark {",
            "}",
            "é",
            "\"a\"..\"z\"",
            "[max_tokens=3]",
            "[stop=\"\"]",
        ];
        let n = self.size(300);
        let body = (0..n).fold(String::new(), |text, _| text + self.pick(&tokens) + " ");
        let b = self.regex(3).replace('/', "");
        format!(
            "start: a B*\na: \"x\" | B\nB: /{b}./\n{}",
            if self.below(3) == 0 { body } else { String::new() }
        )
    }

    fn lark_with_json(&mut self) -> String {
        let schema = match self.below(4) {
            0 => self.references(),
            1 => self.wide(),
            2 => self.products(),
            _ => self.schema(4),
        };
        let n = 1 + self.below(3);
        format!("start: {}\n{}", "j ".repeat(n), format_args!("j: %json {schema}\n"))
    }

    fn regex(&mut self, depth: usize) -> String {
        let atoms = [
            "a",
            "b",
            ".",
            r"\w",
            r"\d+",
            r"[^x]",
            r"\p{L}",
            "[a-z]{2,9}",
            "(?i)k",
            r"\x{41}",
            "é",
            "^",
            "$",
            r"\b",
            "()",
            "(?P<stop>b)",
        ];
        (0..1 + self.below(3)).fold(String::new(), |text, _| {
            let part = match self.below(7) {
                0 if depth > 0 => format!("({})", self.regex(depth - 1)),
                1 if depth > 0 => format!("({}|{})", self.regex(depth - 1), self.regex(depth - 1)),
                2 if depth > 0 => format!("({}){{{}}}", self.regex(depth - 1), self.size(3000)),
                3 if depth > 0 => format!("({})*", self.regex(depth - 1)),
                _ => self.pick(&atoms).to_owned(),
            };
            text + &part
        })
    }

    fn large_regex(&mut self) -> String {
        let n = self.size(20_000);
        match self.below(8) {
            0 => "(".repeat(n) + "a" + &")".repeat(n),
            1 => format!("a{{{}}}", n * 1000),
            2 => format!("((a{{{n}}}){{{n}}}){{{n}}}"),
            3 => (0..n).fold("x".to_owned(), |text, i| text + &format!("|w{i}x*")),
            4 => r"\w\p{Lu}[^a-k]".repeat(n / 4),
            5 => format!("(a|b)*a(a|b){{{n}}}"),
            6 => format!("({}){{0,{n}}}", (0..60).map(|i| format!("(x{i}|y){{0,9}}")).collect::<String>()),
            _ => format!(r"(.*\d.*){{{}}}(\w|\s)*z{{0,{n}}}", 1 + n % 40),
        }
    }

    /// A valid schema and an instance of it.
    pub fn valid(&mut self, depth: usize) -> (Value, Value) {
        match self.below(if depth == 0 { 5 } else { 9 }) {
            0 => (json!({ "type": "integer", "minimum": -5, "maximum": 500 }), json!(self.below(500))),
            1 => (
                json!({ "type": "string", "maxLength": 40 }),
                json!("a \"quoted\" é".repeat(1 + self.below(3))),
            ),
            2 => (json!({ "type": "boolean" }), json!(self.below(2) == 0)),
            3 => (
                json!({ "enum": ["red", 7, null, { "a": [1] }] }),
                self.pick(&[json!("red"), json!(7), json!(null), json!({ "a": [1] })]),
            ),
            4 => (
                json!({ "type": "string", "pattern": "^[a-f]{2,8}-\\d+$" }),
                json!(format!("abc-{}", self.below(99))),
            ),
            5 => {
                let (schema, _) = (json!({ "type": "number" }), ());
                (
                    json!({ "type": "array", "items": schema, "maxItems": 9 }),
                    (0..self.below(9)).map(|i| json!(i as f64 + 0.5)).collect(),
                )
            }
            6 => {
                let (a, x) = self.valid(depth - 1);
                let (b, _) = self.valid(depth - 1);
                (json!({ "anyOf": [b, a] }), x)
            }
            7 => {
                let (inner, x) = self.valid(depth - 1);
                (
                    json!({ "type": "array", "prefixItems": [inner, { "$ref": "#" }], "minItems": 1, "maxItems": 1 }),
                    json!([x]),
                )
            }
            _ => {
                let fields: Vec<(String, Value, Value)> = (0..1 + self.below(6))
                    .map(|i| {
                        let (schema, instance) = self.valid(depth - 1);
                        (format!("field {i}"), schema, instance)
                    })
                    .collect();
                let properties: Map<String, Value> =
                    fields.iter().map(|(name, schema, _)| (name.clone(), schema.clone())).collect();
                let required: Vec<&String> = fields.iter().step_by(2).map(|(name, ..)| name).collect();
                let schema = json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
                let all = self.below(2) == 0;
                let instance: Map<String, Value> = fields
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| all || i % 2 == 0)
                    .map(|(_, (name, _, x))| (name.clone(), x.clone()))
                    .collect();
                (schema, Value::Object(instance))
            }
        }
    }
}
