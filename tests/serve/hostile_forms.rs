//! Grammars that attack the server: each is refused with a one-line error, and the server answers the next request.

use crate::support::{TestServer, chat};
use kimi::generation::grammar::Grammar;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::time::Instant;
use tower::ServiceExt;

const CHAT: &str = "/v1/chat/completions";

/// Definitions, each a reference to the next.
fn chain(n: usize, link: impl Fn(Value) -> Value) -> Value {
    let mut defs = Map::new();
    for i in 0..n {
        defs.insert(format!("d{i}"), link(json!({ "$ref": format!("#/$defs/d{}", i + 1) })));
    }
    defs.insert(format!("d{n}"), json!({ "type": "integer" }));
    json!({ "$ref": "#/$defs/d0", "$defs": defs })
}

fn rules(n: usize, name: &str) -> String {
    let mut text = format!("start: {name}0\n");
    for i in 0..n {
        let _ = writeln!(text, "{name}{i}: \"a\" {name}{}", i + 1);
    }
    text + &format!("{name}{n}: \"b\"\n")
}

fn object(n: usize, required: bool) -> Value {
    let properties: Map<String, Value> =
        (0..n).map(|i| (format!("p{i}"), json!({ "type": "string" }))).collect();
    let names: Vec<String> = properties.keys().filter(|_| required).cloned().collect();
    json!({ "type": "object", "properties": properties, "required": names, "additionalProperties": false })
}

fn schema(schema: Value) -> Value {
    json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": schema } }, "max_tokens": 2 })
}

fn grammar(text: String, syntax: &str) -> Value {
    json!({ "response_format": { "type": "grammar", "grammar": text, "syntax": syntax }, "max_tokens": 2 })
}

fn tool(parameters: Value) -> Value {
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": parameters } });
    json!({ "tools": [tool], "tool_choice": "required", "max_tokens": 2 })
}

/// Grammars that once overflowed the stack.
#[tokio::test(flavor = "multi_thread")]
async fn grammars_that_overflowed_the_stack_are_answered() {
    let server = TestServer::new();
    let properties = |found: usize| format!("expected at most 2048 properties in an object, found {found}");
    let place = "response_format.json_schema.schema";
    let tools = "tools[0].function.parameters";
    for (how, expected) in [
        (grammar(rules(683, "r"), "lark"), None),
        (grammar(rules(937, "R"), "lark"), None),
        (schema(chain(225, |to| json!({ "type": "object", "properties": { "a": to } }))), None),
        (
            schema(chain(565, |to| to)),
            Some((place, "expected at most 512 references in a chain, found 566".to_owned())),
        ),
        (schema(object(4531, false)), Some((place, properties(4531)))),
        (schema(object(4531, true)), Some((place, properties(4531)))),
        (tool(object(4531, true)), Some((tools, properties(4531)))),
        (
            grammar(rules(5000, "r"), "lark"),
            Some((
                "response_format.grammar",
                "expected at most 4096 rules and terminals, found 5002".to_owned(),
            )),
        ),
        (
            grammar("(".repeat(5000), "regex"),
            Some((
                "response_format.grammar",
                "expected at most 100 levels of brackets in a regular expression, found 5000".to_owned(),
            )),
        ),
        (
            grammar("(a{1000}){1001}".to_owned(), "regex"),
            Some((
                "response_format.grammar",
                "expected at most 1000000 repetitions, multiplied where nested, found 1001000".to_owned(),
            )),
        ),
    ] {
        let (status, answer) = server.post(CHAT, chat("x", how)).await;
        match expected {
            None => assert_eq!(status, 200, "{answer}"),
            Some((param, why)) => {
                let error = &answer["error"];
                let found = (status.as_u16(), error["param"].as_str(), error["message"].as_str().unwrap());
                assert_eq!(found, (400, Some(param), format!("{param}: {why}").as_str()));
            }
        }
    }
}

/// Hostile texts in llama.cpp's syntax are refused with a reason, by the conversion or by the limits on its result.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_gbnf_grammars_are_refused() {
    let server = TestServer::new();
    let chain = |n: usize, link: &str| {
        let rule = |i: usize| format!("r{i} ::= {}\n", link.replace('N', &(i + 1).to_string()));
        let rules: String = (0..n).map(rule).collect();
        format!("root ::= r0\n{rules}r{n} ::= [a-z]*\n")
    };
    for (text, expected) in [
        ("(".repeat(5000), "expected the name of a rule"),
        (format!("root ::= {}", "(".repeat(5000)), "expected at most 28 open groups"),
        (format!("root ::= \"a\"{}", "*".repeat(5000)), "expected at most 28 repetitions of a part"),
        (chain(5000, "\"x\" rN"), "expected at most 4096 rules and terminals"),
        (chain(40, "rN rN"), "quantifiers in a terminal and those that it uses"),
        ("root ::= \"a\"{99999999}".to_owned(), "expected at most 100000 repetitions"),
        (format!("root ::= {}", "undefined ".repeat(40_000)), "expected a defined rule, found undefined"),
        (format!("root ::= \"{}\"", "x".repeat(600 << 10)), "bytes in a grammar"),
    ] {
        let how = json!({ "grammar": text, "max_tokens": 2 });
        let (status, answer) = server.post(CHAT, chat("x", how)).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(expected) && message.len() < 300, "{expected}: {answer}");
    }
    // Long chains and deep recursion within the limits are answered.
    for text in [chain(600, "\"x\" rN"), "root ::= \"a\" | \"(\" root \")\" root".to_owned()] {
        server.ok(CHAT, chat("x", json!({ "grammar": text, "max_tokens": 2 }))).await;
    }
}

/// A grammar that compiles and then fails in the middle of a reply is the client's error.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_grammar_is_a_client_error() {
    let server = TestServer::new();
    let how = |stream: bool| {
        let mut how = schema(object(500, false));
        (how["max_tokens"], how["stream"]) = (json!(40), json!(stream));
        how
    };
    let (status, answer) = server.post(CHAT, chat("x", how(false))).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("grammar: parser error: Too many items (limit 50000; mask)"), "{answer}");
    assert_eq!((status.as_u16(), &answer["error"]["type"]), (400, &json!("invalid_request_error")));
    let (_, text) = server.send(crate::support::post(CHAT, &chat("x", how(true)))).await;
    assert!(text.contains("\"message\":\"grammar: parser error"), "{text}");
}

/// 128 tools with 50 parameters each give the tokens of masks computed inline, and do not delay other replies.
#[test]
fn concurrent_masks_give_the_same_tokens() {
    let mut found = [true, false].map(crate::masks::run);
    for run in &mut found {
        run.gaps.sort();
        let at = |part: f64| run.gaps[((run.gaps.len() - 1) as f64 * part) as usize];
        println!(
            "in line {}: others wait {:?} (median), {:?} (p99), {:?} (most)",
            run.in_line,
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    assert!(found[0].tokens.iter().all(|tokens| tokens.len() > 5), "{:?}", found[0].tokens);
    assert_eq!(found[0].tokens, found[1].tokens);
}

/// Requests whose clients disconnect while their grammars are queued or compile do not block other compilations.
#[tokio::test(flavor = "multi_thread")]
async fn disconnected_clients_leave_no_compilation() {
    let server = TestServer::new();
    let quick = || chat("x", grammar("start: \"a\"".to_owned(), "lark"));
    server.ok(CHAT, quick()).await;
    let Grammar::Lark(tools) = crate::generate::tools(128, 50) else {
        unreachable!("tools are a Lark grammar")
    };
    let costly = chat("x", grammar(tools, "lark"));
    let start = Instant::now();
    server.ok(CHAT, costly.clone()).await;
    let alone = start.elapsed();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let request = server.router.clone().oneshot(crate::support::post(CHAT, &costly));
        clients.spawn(async move { tokio::time::timeout(alone / 8, request).await.is_err() });
    }
    assert!(clients.join_all().await.into_iter().all(|left| left), "nothing takes an eighth of itself");
    let start = Instant::now();
    server.ok(CHAT, quick()).await;
    let waited = start.elapsed();
    println!("alone {alone:?}, behind 16 that left {waited:?}");
    assert!(waited < alone * 4, "waited {waited:?} behind 16 that left, each {alone:?}");
}
