//! Compares converted grammars with a plain matcher of the parsed ones, and tries hostile texts.

use super::parse::{GbnfExpr, GbnfRule, parse};
use super::to_lark;
use crate::generation::grammar::Grammar;
use crate::kernel_checks::rng::TestRng;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};
use std::collections::BTreeSet;

/// The matcher of a grammar over single bytes.
fn matcher(gbnf: &str) -> Matcher {
    let lark = to_lark(gbnf).unwrap_or_else(|e| panic!("{gbnf}: {e}"));
    let mut factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
    factory.quiet();
    let parser = factory.create_parser(TopLevelGrammar::from_lark(lark.clone()));
    Matcher::new(Ok(parser.unwrap_or_else(|e| panic!("{gbnf}\n{lark}\n{e}"))))
}

/// Whether the converted grammar accepts a whole text.
fn accepts(start: &Matcher, text: &str) -> bool {
    let mut matcher = start.deep_clone();
    let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
    matcher.try_consume_tokens(&bytes).unwrap() == bytes.len() && matcher.is_accepting().unwrap()
}

/// Checks texts that a grammar accepts and others that it does not.
fn check(gbnf: &str, good: &[&str], bad: &[&str]) {
    let start = matcher(gbnf);
    good.iter().for_each(|text| assert!(accepts(&start, text), "{gbnf}: {text:?}"));
    bad.iter().for_each(|text| assert!(!accepts(&start, text), "{gbnf}: {text:?}"));
}

fn error(gbnf: &str) -> String {
    to_lark(gbnf).unwrap_err()
}

#[test]
fn strings_classes_and_repetitions() {
    check(r#"root ::= "yes" | "no""#, &["yes", "no"], &["", "ye", "yesno"]);
    check("root ::= [a-c]{2,3}", &["ab", "abc"], &["a", "abca", "ad"]);
    check("root ::= [a-c]{2} [0-9]{1,}", &["ab1", "ab12"], &["ab", "a1"]);
    check(r#"root ::= ("a" "b")* "c"? [^\n"]+"#, &["ababcx", "x", "ü", "ab"], &["", "\n", "a\""]);
    check("root ::= . .", &["ab", "\n\n", "日本"], &["a", "abc"]);
    check(r#"root ::= "" | "a""#, &["", "a"], &["aa"]);
    check("root ::= (\"a\"\n  | # either\n \"b\") # end\n\n# more\n", &["a", "b"], &["", "ab"]);
    check("root ::= a-B_1 \"!\"\r\na-B_1 ::=\n  [xy]+\r\n", &["x!", "yx!"], &["!", "x"]);
}

#[test]
fn escapes_are_those_of_llama_cpp() {
    check(
        r#"root ::= "\x41\u00e4\U0001F600\t\r\n\\\"\[\]/" [\x30-\x39\]\-^/]"#,
        &["Aä😀\t\r\n\\\"[]/5", "Aä😀\t\r\n\\\"[]/]", "Aä😀\t\r\n\\\"[]/-", "Aä😀\t\r\n\\\"[]//"],
        &["Aä😀\t\r\n\\\"[]/a"],
    );
    check("root ::= \"\x7f\u{1}\"", &["\x7f\u{1}"], &["", "\u{1}"]);
    check("root ::= [a-] \"b\" [^-]", &["-bx", "abx"], &["-b-"]);
}

/// The grammar of JSON in llama.cpp's repository has this form.
const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn recursive_grammars() {
    check(
        JSON,
        &["{}", r#"{"a": [1, -2.5e3, {"b": null}], "c\u00e4": "x"}"#, "{ \"a\":\n  [[]]}\n"],
        &["", "[]", "{", r#"{"a"}"#, r#"{"a": 01}"#, r#"{"a": 1,}"#],
    );
    let expressions = "root ::= sum\nsum ::= term ([-+] term)*\nterm ::= [0-9]+ | \"(\" sum \")\"";
    check(expressions, &["1", "12+(3-(4))"], &["", "1+", "(1", "()"]);
    check("root ::= \"a\" root \"b\" | \"\"", &["", "ab", "aabb"], &["a", "abb"]);
    check("root ::= root \"a\" | \"b\"", &["b", "baa"], &["", "a"]);
}

#[test]
fn mistakes_name_their_line() {
    assert_eq!(error(""), "expected a rule root, found none");
    assert_eq!(error("a ::= \"b\""), "expected a rule root, found none");
    assert_eq!(error("root ::= a\n\n"), "line 1: expected a defined rule, found a");
    assert_eq!(error("root ::= \"a\"\nroot ::= \"b\""), "line 2: expected one rule root, found another");
    assert_eq!(error("root = \"a\""), "line 1: expected ::=, found '='");
    assert_eq!(error("root ::= \"a"), "line 1: expected a character or `\"`, found the end");
    assert_eq!(error("root ::= [a"), "line 1: expected a character or `]`, found the end");
    assert_eq!(error("root ::= []"), "line 1: expected characters in a class, found none");
    assert_eq!(error("root ::= [z-a]"), "line 1: expected a range upwards, found 'z' to 'a'");
    assert_eq!(error("root ::= (\"a\""), "line 1: expected `)`, found the end");
    assert_eq!(error("root ::= \"a\")"), "line 1: expected the end of the rule, found ')'");
    assert_eq!(error("root ::= \"a\"{3,2}"), "line 1: expected at least 3 repetitions, found 2");
    assert_eq!(error("root ::= \"a\"{x}"), "line 1: expected a number, found 'x'");
    assert_eq!(
        error("root ::= \"a\"{99999999999}"),
        "line 1: expected at most 100000 repetitions, found '9'"
    );
    assert!(error("root ::= \"\\q\"").starts_with("line 1: expected one of t, r, n, x, u, U"));
    assert_eq!(
        error("root ::= \"\\ud800\""),
        "line 1: expected 4 hexadecimal digits of a character, found 'd'"
    );
    assert!(error("root ::= \"\\u00\"").contains("expected 4 hexadecimal digits"));
    assert!(error("root ::= <[1000]>").contains("a token, which is not supported"));
    assert_eq!(
        error("root ::= *"),
        "line 1: expected a string, a character class, a group or a rule, found '*'"
    );
}

#[test]
fn nesting_is_bounded() {
    let nested = |n: usize| format!("root ::= {}\"a\"{}", "(".repeat(n), ")".repeat(n));
    check(&nested(28), &["a"], &["", "aa"]);
    check(
        &format!("root ::= {} \"b\"", "(\"a\" | ".repeat(28) + "\"c\"" + &")*".repeat(28)),
        &["acb"],
        &["a"],
    );
    assert!(error(&nested(29)).contains("expected at most 28 open groups"));
    assert!(error(&format!("root ::= \"a\"{}", "*".repeat(29))).contains("at most 28 repetitions of a part"));
    // Rules that double one another are bounded by the library's limits, not by memory.
    let doubled: String = (0..60).map(|i| format!("r{i} ::= r{} r{}\n", i + 1, i + 1)).collect();
    let grammar = Grammar::Lark(to_lark(&format!("root ::= r0\n{doubled}r60 ::= [a-z]*\n")).unwrap());
    assert!(grammar.check().is_err());
}

/// All ends of matches of an expression from a position, by trying everything.
fn ends(rules: &[GbnfRule], expr: &GbnfExpr, text: &[u8], from: usize, depth: usize) -> BTreeSet<usize> {
    if depth == 0 {
        return BTreeSet::new();
    }
    let step = |expr: &GbnfExpr, starts: &BTreeSet<usize>| -> BTreeSet<usize> {
        starts.iter().flat_map(|at| ends(rules, expr, text, *at, depth - 1)).collect()
    };
    match expr {
        GbnfExpr::Literal(word) if text[from..].starts_with(word.as_bytes()) => [from + word.len()].into(),
        GbnfExpr::Literal(_) => BTreeSet::new(),
        GbnfExpr::Class(class) => {
            let class = regex_lite(class);
            text.get(from).filter(|b| class.contains(b)).map(|_| from + 1).into_iter().collect()
        }
        GbnfExpr::Rule(index) => ends(rules, &rules[*index].body, text, from, depth - 1),
        GbnfExpr::Sequence(parts) => parts.iter().fold([from].into(), |starts, part| step(part, &starts)),
        GbnfExpr::Alternatives(all) => {
            all.iter().flat_map(|one| ends(rules, one, text, from, depth - 1)).collect()
        }
        GbnfExpr::Repeat(part, least, most) => {
            let (mut now, mut found) = (BTreeSet::from([from]), BTreeSet::new());
            for n in 0..=most.unwrap_or(text.len() as u32 + least).min(text.len() as u32 + least) {
                if n >= *least {
                    found.extend(&now);
                }
                now = step(part, &now);
            }
            found
        }
    }
}

/// The bytes of a class of the letters `a` to `c`, as the parser writes it.
fn regex_lite(class: &str) -> Vec<u8> {
    let inside = |c: char| {
        let ranges = class.trim_start_matches("[^").trim_matches(['[', ']']).split("\\x{").skip(1);
        let bounds: Vec<u32> =
            ranges.map(|part| u32::from_str_radix(part.split('}').next().unwrap(), 16).unwrap()).collect();
        bounds.chunks(2).any(|range| (range[0]..=range[1]).contains(&u32::from(c)))
    };
    let negated = class.starts_with("[^");
    ('a'..='c').filter(|c| inside(*c) != negated).map(|c| c as u8).collect()
}

/// A random expression over the letters `a` to `c` and the rules before `rules`.
fn random_expr(rng: &mut TestRng, depth: usize, rules: usize) -> String {
    let mut pick = |n: usize| rng.uniform(0.0, n as f32) as usize % n;
    let kind = pick(if depth == 0 { 3 } else { 7 });
    let suffix = ["", "", "*", "+", "?", "{2}", "{1,2}", "{0,1}"][pick(8)];
    match kind {
        0 => ["\"a\"", "\"ab\"", "\"b\"", "\"\"", "\"ca\""][pick(5)].to_owned() + suffix,
        1 => ["[ab]", "[^a]", "[b-c]", "[a-c]"][pick(4)].to_owned() + suffix,
        2 if rules > 0 => format!("r{}{suffix}", pick(rules)),
        2 => "\"c\"".to_owned(),
        3 | 4 => format!("{} {}", random_expr(rng, depth - 1, rules), random_expr(rng, depth - 1, rules)),
        _ => format!(
            "({} | {}){suffix}",
            random_expr(rng, depth - 1, rules),
            random_expr(rng, depth - 1, rules)
        ),
    }
}

/// Texts of up to four of the letters.
fn texts() -> Vec<String> {
    let mut all = vec![String::new()];
    let mut last = 0;
    for _ in 0..4 {
        let longer: Vec<String> =
            all[last..].iter().flat_map(|text| ["a", "b", "c"].map(|c| text.clone() + c)).collect();
        last = all.len();
        all.extend(longer);
    }
    all
}

/// Accepted texts of a random grammar: by the library, and by the plain matcher.
fn both(gbnf: &str) -> [BTreeSet<String>; 2] {
    let (start, rules) = (matcher(gbnf), parse(gbnf).unwrap());
    let root = &rules.iter().find(|rule| rule.name == "root").unwrap().body;
    let plain = |text: &&String| ends(&rules, root, text.as_bytes(), 0, 24).contains(&text.len());
    let all = texts();
    [
        all.iter().filter(|text| accepts(&start, text)).cloned().collect(),
        all.iter().filter(plain).cloned().collect(),
    ]
}

#[test]
fn random_grammars_without_recursion_accept_the_same_texts() {
    let mut rng = TestRng::new(5);
    for _ in 0..150 {
        let mut gbnf = format!("root ::= {}\n", random_expr(&mut rng, 2, 3));
        for rule in 0..3 {
            gbnf += &format!("r{rule} ::= {}\n", random_expr(&mut rng, 1, rule));
        }
        let [found, expected] = both(&gbnf);
        assert_eq!(found, expected, "{gbnf}");
    }
}

#[test]
fn random_recursive_grammars_accept_nothing_else() {
    let mut rng = TestRng::new(6);
    let (mut same, mut all) = (0, 0);
    for _ in 0..150 {
        let gbnf = format!(
            "root ::= \"a\" | \"b\" root {} | {}\nr0 ::= [bc]*",
            random_expr(&mut rng, 1, 1),
            random_expr(&mut rng, 1, 1)
        );
        let [found, expected] = both(&gbnf);
        assert!(found.is_subset(&expected), "{gbnf}: {found:?}, {expected:?}");
        all += expected.len();
        same += found.len();
    }
    assert!(same * 2 >= all, "{same} of {all} texts");
}

#[test]
fn mutated_grammars_are_errors_or_grammars() {
    let mut rng = TestRng::new(7);
    let bytes: Vec<char> = JSON.chars().collect();
    for _ in 0..2000 {
        let mut text = bytes.clone();
        for _ in 0..1 + rng.uniform(0.0, 4.0) as usize {
            if text.is_empty() {
                break;
            }
            let at = rng.uniform(0.0, text.len() as f32) as usize % text.len();
            match rng.uniform(0.0, 3.0) as usize {
                0 => drop(text.remove(at)),
                1 => text.insert(at, bytes[rng.uniform(0.0, bytes.len() as f32) as usize % bytes.len()]),
                _ => text.truncate(at.max(1)),
            }
        }
        let text: String = text.into_iter().collect();
        if let Ok(lark) = to_lark(&text) {
            assert!(lark.starts_with("start: "), "{text}");
        }
    }
}
