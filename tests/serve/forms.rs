//! Constrained replies: JSON schemas, grammars, tool calls.

use crate::support::{TestServer, chat};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn weather() -> Value {
    json!({ "type": "function", "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": { "enum": ["Paris", "Oslo"] },
                "days": { "type": "integer", "minimum": 1, "maximum": 3 }
            },
            "required": ["city", "days"],
            "additionalProperties": false
        }
    }})
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn json_matches_its_schema() {
    let server = TestServer::new();
    let schema = json!({
        "type": "object",
        "properties": { "answer": { "enum": ["yes", "no"] }, "sure": { "type": "boolean" } },
        "required": ["answer", "sure"],
        "additionalProperties": false
    });
    let form =
        json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema, "strict": true } });
    for seed in 0..3 {
        let how = json!({ "response_format": form, "max_tokens": 200, "temperature": 1.5, "seed": seed });
        let answer = server.ok(CHAT, chat("Is it?", how)).await;
        let found: Value = serde_json::from_str(content(&answer)).unwrap_or_else(|e| panic!("{e}: {answer}"));
        assert!(["yes", "no"].contains(&found["answer"].as_str().unwrap()) && found["sure"].is_boolean());
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    let how = json!({ "response_format": { "type": "json_object" }, "max_tokens": 8 });
    assert!(content(&server.ok(CHAT, chat("x", how)).await).starts_with('{'));
}

#[tokio::test(flavor = "multi_thread")]
async fn grammars_constrain_chats_and_texts() {
    let server = TestServer::new();
    let lark = json!({ "type": "grammar", "grammar": "start: \"left\" | \"right\"" });
    let answer = server.ok(CHAT, chat("x", json!({ "response_format": lark }))).await;
    assert!(["left", "right"].contains(&content(&answer)), "{answer}");
    let regex = json!({ "type": "grammar", "syntax": "regex", "grammar": "[0-9]{3}-[a-c]{2}" });
    let answer = server.ok("/v1/completions", json!({ "prompt": "x", "response_format": regex })).await;
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(text.len() == 6 && text.as_bytes()[3] == b'-', "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_call_is_the_same_whole_and_streamed() {
    let server = TestServer::new();
    let how = json!({ "tools": [weather()], "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 200 });
    let whole = server.ok(CHAT, chat("Weather?", how.clone())).await;
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!((calls.len(), &calls[0]["type"]), (1, &json!("function")));
    assert_eq!(calls[0]["function"]["name"], "get_weather");
    assert!(calls[0]["id"].as_str().unwrap().starts_with("functions.get_weather:"), "{calls:?}");
    let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(["Paris", "Oslo"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
    assert!((1..=3).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
    let mut streamed = chat("Weather?", how);
    streamed["stream"] = json!(true);
    let events = server.stream(CHAT, streamed).await;
    let deltas: Vec<_> =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["tool_calls"].as_array()).collect();
    assert_eq!((&deltas[0][0]["index"], &deltas[0][0]["id"]), (&json!(0), &calls[0]["id"]));
    assert_eq!(deltas[0][0]["function"]["name"], "get_weather");
    let arguments = deltas.iter().filter_map(|d| d[0]["function"]["arguments"].as_str());
    assert_eq!(arguments.collect::<String>(), calls[0]["function"]["arguments"]);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_declared_chosen_and_answered() {
    let server = TestServer::new();
    let other = json!({ "type": "function", "function": { "name": "other", "strict": true,
        "parameters": { "type": "object", "properties": {}, "additionalProperties": false } } });
    let read = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let ask = |how: Value| server.ok(CHAT, chat("x", how));
    let plain = read(&ask(json!({ "max_tokens": 2 })).await);
    let declared = ask(json!({ "tools": [weather(), other], "max_tokens": 2 })).await;
    assert!(read(&declared) > plain + 20, "{declared}");
    let none = ask(json!({ "tools": [weather()], "tool_choice": "none", "max_tokens": 2 })).await;
    assert_eq!(read(&none), plain);
    let named = json!({ "type": "function", "function": { "name": "other" } });
    let named = json!({ "tools": [weather(), other], "tool_choice": named, "parallel_tool_calls": false, "max_tokens": 100 });
    let named = ask(named).await;
    assert_eq!(named["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "other", "{named}");
    let call = json!({ "id": "functions.get_weather:0", "type": "function",
        "function": { "name": "get_weather", "arguments": "{\"city\": \"Oslo\"}" } });
    let messages = json!([
        { "role": "user", "content": "Weather?" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "functions.get_weather:0", "content": "rain" },
    ]);
    server.ok(CHAT, json!({ "messages": messages, "tools": [weather()], "max_tokens": 2 })).await;
}

/// Grammars in llama.cpp's syntax, in its field and in `response_format`.
#[tokio::test(flavor = "multi_thread")]
async fn replies_match_gbnf_grammars() {
    let server = TestServer::new();
    let gbnf =
        "root ::= list # words\nlist ::= word | \"(\" list \",\" list \")\"\nword ::= (\"ab\" | \"c\"){1,2}";
    let format = json!({ "type": "grammar", "syntax": "gbnf", "grammar": gbnf });
    for how in [json!({ "grammar": gbnf, "seed": 3 }), json!({ "response_format": format, "seed": 3 })] {
        let answer = server.ok(CHAT, chat("Which?", how.clone())).await;
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        assert!(!text.is_empty() && text.chars().all(|c| "(,)abc".contains(c)), "{answer}");
        if choice["finish_reason"] == "stop" {
            assert_eq!(text.matches('(').count(), text.matches(')').count(), "{answer}");
        }
    }
    let plain = json!({ "grammar": "root ::= \"yes\" | \"no\"" });
    let text = server.ok("/v1/completions", json!({ "prompt": "x", "grammar": plain["grammar"] })).await;
    assert!(["yes", "no"].contains(&text["choices"][0]["text"].as_str().unwrap()), "{text}");
    server.ok(CHAT, chat("x", json!({ "grammar": "", "ignore_eos": true }))).await;
    let (status, answer) = server.post(CHAT, chat("x", json!({ "grammar": "root ::=\n[a" }))).await;
    let error = &answer["error"];
    assert_eq!((status.as_u16(), &error["param"]), (400, &json!("grammar")), "{answer}");
    assert!(error["message"].as_str().unwrap().contains("line 2: expected a character or `]`"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_values_are_refused() {
    let server = TestServer::new();
    let tool = |name: &str| json!([{ "type": "function", "function": { "name": name } }]);
    for (param, how) in [
        ("tools[0].type", json!({ "tools": [{ "type": "web_search" }], "tool_choice": "required" })),
        ("tools[0].function.name", json!({ "tools": tool("a b") })),
        ("tools[1].function.name", json!({ "tools": [tool("a")[0], tool("a")[0]] })),
        ("tool_choice", json!({ "tool_choice": "required" })),
        ("tool_choice", json!({ "tools": tool("a"), "tool_choice": "sometimes" })),
        (
            "tool_choice.function.name",
            json!({ "tools": tool("a"), "tool_choice": { "type": "function", "function": { "name": "b" } } }),
        ),
        ("response_format.type", json!({ "response_format": { "type": "xml" } })),
        ("response_format.json_schema", json!({ "response_format": { "type": "json_schema" } })),
        ("response_format", json!({ "response_format": { "type": "grammar", "grammar": "start: nothing" } })),
        (
            "response_format",
            json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "no" } } } }),
        ),
        ("ignore_eos", json!({ "response_format": { "type": "json_object" }, "ignore_eos": true })),
        ("functions", json!({ "functions": [] })),
        ("modalities", json!({ "modalities": ["text", "audio"] })),
    ] {
        let (status, answer) = server.post(CHAT, chat("x", how.clone())).await;
        assert_eq!(
            (status.as_u16(), answer["error"]["param"].as_str()),
            (400, Some(param)),
            "{how}: {answer}"
        );
    }
    server
        .ok(CHAT, chat("x", json!({ "store": false, "modalities": ["text"], "tools": [], "max_tokens": 1 })))
        .await;
}
