//! `/v1/messages` and `/v1/messages/count_tokens`, with and without streaming.

use crate::support::{TestServer, options, post};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use kimi::serve::ServeOptions;
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// The body of a request with one message and more fields.
fn ask(text: &str, more: Value) -> Value {
    let mut body =
        json!({ "model": "tiny", "max_tokens": 16, "messages": [{ "role": "user", "content": text }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The events of a stream, whose names are their types.
async fn events(server: &TestServer, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let (status, text) = server.send(post(MESSAGES, &body)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let mut events = Vec::new();
    for block in text.split_terminator("\n\n").filter(|block| *block != ":") {
        let (name, data) = block.split_once('\n').unwrap();
        let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), event["type"].as_str());
        events.push(event);
    }
    events
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

fn number(value: &Value, name: &str) -> u64 {
    value["usage"][name].as_u64().unwrap_or_else(|| panic!("{name}: {value}"))
}

fn prompt_tokens(message: &Value) -> u64 {
    ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"]
        .iter()
        .map(|name| number(message, name))
        .sum()
}

fn schema() -> Value {
    json!({ "type": "json_schema", "schema": { "enum": ["left", "right"] } })
}

fn weather() -> Value {
    json!({ "name": "get_weather", "description": "The weather of a city", "input_schema": {
        "type": "object", "properties": { "city": { "enum": ["Paris", "Oslo"] } }, "required": ["city"],
        "additionalProperties": false } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_the_same_whole_and_as_events() {
    let server = TestServer::new();
    let how = json!({ "system": "Be brief.", "output_config": { "format": schema() }, "max_tokens": 64_000 });
    let request = ask("Which?", how);
    let whole = server.ok(MESSAGES, request.clone()).await;
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["model"], &whole["stop_reason"], &whole["stop_sequence"]),
        (&json!("message"), &json!("assistant"), &json!("tiny"), &json!("end_turn"), &Value::Null)
    );
    let text = whole["content"][0]["text"].as_str().unwrap();
    assert!(["\"left\"", "\"right\""].contains(&text), "{whole}");
    let events = events(&server, &request).await;
    assert_eq!(
        kinds(&events),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let start = &events[0]["message"];
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
    assert_eq!(start["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    assert_eq!(events[1]["content_block"], json!({ "type": "text", "text": "" }));
    let deltas: String = events.iter().filter_map(|e| e["delta"]["text"].as_str()).collect();
    assert_eq!(deltas, text);
    let last = &events[events.len() - 2];
    assert_eq!(last["delta"], json!({ "stop_reason": "end_turn", "stop_sequence": null }));
    assert_eq!(last["usage"], whole["usage"]);
    let count = server.ok(COUNT, request).await;
    assert_eq!(count["input_tokens"].as_u64().unwrap(), prompt_tokens(&whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_reasons_say_what_ended_the_reply() {
    let server = TestServer::new();
    let cut = server
        .ok(MESSAGES, ask("x", json!({ "max_tokens": 1, "output_config": { "format": schema() } })))
        .await;
    assert_eq!((&cut["stop_reason"], number(&cut, "output_tokens")), (&json!("max_tokens"), 1));
    let how = json!({ "stop_sequences": ["no", "ight", "eft"], "output_config": { "format": schema() } });
    let stopped = server.ok(MESSAGES, ask("x", how.clone())).await;
    let text = stopped["content"][0]["text"].as_str().unwrap();
    let expected = if text == "\"l" { "eft" } else { "ight" };
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!(expected))
    );
    let events = events(&server, &ask("x", how)).await;
    assert_eq!(events[events.len() - 2]["delta"]["stop_sequence"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_the_same_whole_and_as_events_and_its_result_is_accepted() {
    let server = TestServer::new();
    let choice = json!({ "type": "tool", "name": "get_weather", "disable_parallel_tool_use": true });
    let request = ask("Weather?", json!({ "tools": [weather()], "tool_choice": choice, "max_tokens": 100 }));
    let whole = server.ok(MESSAGES, request.clone()).await;
    assert_eq!((&whole["stop_reason"], whole["content"].as_array().unwrap().len()), (&json!("tool_use"), 1));
    let call = &whole["content"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("tool_use"), &json!("get_weather")));
    let id = call["id"].as_str().unwrap();
    assert!(id.starts_with("toolu_") && id.contains("_get_weather_"), "{id}");
    assert!(["Paris", "Oslo"].contains(&call["input"]["city"].as_str().unwrap()), "{call}");
    let events = events(&server, &request).await;
    let block = &events[1]["content_block"];
    assert_eq!((&block["type"], &block["input"]), (&json!("tool_use"), &json!({})));
    assert_ne!(block["id"], call["id"]);
    let json: String = events.iter().filter_map(|e| e["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), call["input"]);
    let result = |more: Value| {
        let mut block = json!({ "type": "tool_result", "tool_use_id": id });
        block.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        block
    };
    let mut lengths = Vec::new();
    for content in [
        json!([result(json!({ "content": "rain" }))]),
        json!([result(json!({ "content": [{ "type": "text", "text": "rain" }] }))]),
        json!([result(json!({}))]),
        json!([result(
            json!({ "content": "rain", "is_error": true, "cache_control": { "type": "ephemeral" } })
        )]),
        json!([result(json!({ "content": "rain" })), { "type": "text", "text": "Go on" }]),
    ] {
        let messages = json!([request["messages"][0], { "role": "assistant", "content": whole["content"] },
            { "role": "user", "content": content }]);
        let next = json!({ "messages": messages, "tools": [weather()], "max_tokens": 2 });
        lengths.push(prompt_tokens(&server.ok(MESSAGES, next).await));
    }
    assert_eq!(lengths[0], lengths[1]);
    assert!(lengths[2] < lengths[0] && lengths[0] < lengths[3] && lengths[0] < lengths[4], "{lengths:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_calls_are_several_blocks() {
    let server = TestServer::new();
    let how = json!({ "tools": [weather()], "tool_choice": { "type": "any" }, "temperature": 1.5, "max_tokens": 300 });
    let mut most = 0;
    for _ in 0..8 {
        let events = events(&server, &ask("Weather in both?", how.clone())).await;
        let starts = events.iter().filter(|e| e["type"] == "content_block_start").collect::<Vec<_>>();
        let stops = events.iter().filter(|e| e["type"] == "content_block_stop").count();
        assert_eq!(starts.len(), stops);
        assert!(starts.iter().enumerate().all(|(i, e)| e["index"] == i), "{starts:?}");
        most = most.max(starts.len());
    }
    assert!(most > 1, "no reply had several calls");
}

/// The line of Claude Code's billing is no part of the prompt, in any form of the instructions.
#[tokio::test(flavor = "multi_thread")]
async fn the_billing_header_is_left_out() {
    let server = TestServer::with_cache();
    let header = |i: usize| format!("x-anthropic-billing-header: cc_version=2.1.{i}; cch={i}f;");
    let rules = "Be brief, but never too brief. ".repeat(10);
    let plain = server.ok(COUNT, ask("x", json!({ "system": rules }))).await;
    for system in [
        json!(format!("{}\n{rules}", header(1))),
        json!([{ "type": "text", "text": header(2) }, { "type": "text", "text": rules, "cache_control": { "type": "ephemeral" } }]),
        json!([{ "type": "text", "text": rules }]),
    ] {
        assert_eq!(server.ok(COUNT, ask("x", json!({ "system": system }))).await, plain);
    }
    let only = server.ok(COUNT, ask("x", json!({ "system": [{ "type": "text", "text": header(3) }] }))).await;
    assert_eq!(only, server.ok(COUNT, ask("x", json!({}))).await);
}

/// Usage adds up, a turn reads only what is new, and a server without a cache says that it keeps nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_reads_only_what_is_new() {
    let (caching, fresh) = (TestServer::with_cache(), TestServer::new());
    let mut messages = vec![
        json!({ "role": "user", "content": [{ "type": "text", "text": "Say something. ".repeat(30) }] }),
    ];
    let mut known = 0;
    for turn in 0..4 {
        let system = json!([{ "type": "text", "text": format!("x-anthropic-billing-header: cch={turn};") },
            { "type": "text", "text": "You are brief." }]);
        let request = json!({ "messages": messages, "system": system, "max_tokens": 12,
            "output_config": { "format": { "type": "json_schema", "schema": { "type": "string", "pattern": "^[a-z ]{8,9}$" } } } });
        let count = server_count(&caching, &request).await;
        let message = caching.ok(MESSAGES, request.clone()).await;
        assert_eq!(number(&message, "cache_read_input_tokens"), known, "turn {turn}: {message}");
        assert_eq!(
            (number(&message, "input_tokens"), prompt_tokens(&message)),
            (0, count),
            "turn {turn}: {message}"
        );
        let without = fresh.ok(MESSAGES, request).await;
        assert_eq!(number(&without, "input_tokens"), prompt_tokens(&without));
        known = prompt_tokens(&message) + number(&message, "output_tokens");
        messages.push(json!({ "role": "assistant", "content": message["content"] }));
        messages.push(json!({ "role": "user", "content": format!("And then? {turn}") }));
    }
}

async fn server_count(server: &TestServer, request: &Value) -> u64 {
    let request = json!({ "messages": request["messages"], "system": request["system"] });
    server.ok(COUNT, request).await["input_tokens"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_send_is_accepted() {
    let server = TestServer::new();
    let blocks = json!([
        { "role": "user", "content": [{ "type": "text", "text": "<system-reminder>be kind</system-reminder>" },
            { "type": "text", "text": "Hello", "cache_control": { "type": "ephemeral", "ttl": "1h" } },
            { "type": "document", "title": "Notes", "source": { "type": "text", "media_type": "text/plain", "data": "a b c" } }] },
        { "role": "system", "content": "The date has changed." },
        { "role": "assistant", "content": [{ "type": "thinking", "thinking": "hm", "signature": "abc" },
            { "type": "redacted_thinking", "data": "xyz" }, { "type": "text", "text": "I look." },
            { "type": "tool_use", "id": "toolu_01AbC", "name": "get_weather", "input": { "city": "Oslo" } },
            { "type": "tool_use", "id": "toolu_02AbC", "name": "get_weather", "input": { "city": "Paris" } }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "toolu_02AbC", "content": "rain" },
            { "type": "tool_result", "tool_use_id": "toolu_01AbC", "content": [{ "type": "text", "text": "sun" }] }] },
    ]);
    let request = json!({
        "model": "tiny", "max_tokens": 4, "messages": blocks, "temperature": 1, "top_k": 5, "top_p": 0.9, "stop_sequences": ["zzz"],
        "metadata": { "user_id": "u" }, "service_tier": "auto", "thinking": { "type": "enabled", "budget_tokens": 4000 },
        "context_management": { "edits": [] }, "output_config": { "effort": "high" }, "stream": false,
        "tool_choice": { "type": "auto" },
        "tools": [weather(), { "type": "web_search_20250305", "name": "web_search", "max_uses": 8 },
            { "type": "custom", "name": "other", "input_schema": { "type": "object" }, "cache_control": { "type": "ephemeral" } }] });
    let mut post = post("/v1/messages?beta=true", &request);
    for (name, value) in
        [("anthropic-version", "2023-06-01"), ("anthropic-beta", "none-such-2030-01-01,other")]
    {
        post.headers_mut().insert(name, value.parse().unwrap());
    }
    let (status, text) = server.send(post).await;
    assert_eq!(status, StatusCode::OK, "{text}");
}

/// The kind and the text of an error in Anthropic's form.
fn refused(answer: &Value) -> (&str, &str) {
    assert_eq!(answer["type"], "error");
    (answer["error"]["type"].as_str().unwrap(), answer["error"]["message"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_the_form_of_anthropic() {
    let server = TestServer::with(ServeOptions { keys: vec!["sesame".into()], ..options() }, 1);
    let send = async |body: Value, key: (&'static str, &'static str)| {
        let mut request = post(MESSAGES, &body);
        request.headers_mut().insert(key.0, key.1.parse().unwrap());
        server.send(request).await
    };
    let good = ("x-api-key", "sesame");
    for key in [good, ("authorization", "Bearer sesame"), ("api-key", "sesame")] {
        assert_eq!(send(ask("x", json!({ "max_tokens": 1 })), key).await.0, StatusCode::OK, "{key:?}");
    }
    let loading = TestServer::loading(options());
    let other = Request::get(MESSAGES).header("x-api-key", "sesame").body(Body::empty()).unwrap();
    for ((status, answer), expected) in [
        (send(ask("x", json!({})), ("x-api-key", "wrong")).await, (401, "authentication_error")),
        (send(ask("x", json!({ "model": "claude" })), good).await, (404, "not_found_error")),
        (send(ask(&"x".repeat(2 << 20), json!({})), good).await, (413, "request_too_large")),
        (loading.send(post(MESSAGES, &ask("x", json!({})))).await, (503, "overloaded_error")),
        (server.send(other).await, (405, "invalid_request_error")),
    ] {
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status.as_u16(), refused(&answer).0), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unsupported_values_are_refused_by_name() {
    let server = TestServer::new();
    let image =
        json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "" } });
    let result = json!({ "type": "tool_result", "tool_use_id": "a", "content": [image] });
    for (place, more) in [
        (
            "messages[0].content[1]: images",
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "x" }, image] }] }),
        ),
        (
            "messages[0].content[0].content[0]: images",
            json!({ "messages": [{ "role": "user", "content": [result] }] }),
        ),
        (
            "messages: expected a message of the user at the end",
            json!({ "messages": [{ "role": "assistant", "content": "x" }] }),
        ),
        ("messages: ", json!({ "messages": [] })),
        ("messages[0].role", json!({ "messages": [{ "role": "tool", "content": "x" }] })),
        ("tool_choice.type", json!({ "tool_choice": { "type": "all" } })),
        ("thinking.type", json!({ "thinking": { "type": "on" } })),
        ("stop_sequences: ", json!({ "stop_sequences": [""] })),
        ("mcp_servers: ", json!({ "mcp_servers": [{ "url": "x" }] })),
        (
            "tools[0].type",
            json!({ "tools": [{ "type": "bash_20250124", "name": "bash" }], "tool_choice": { "type": "any" } }),
        ),
        ("output_config.format.type", json!({ "output_config": { "format": { "type": "xml" } } })),
        ("max_tokens: ", json!({ "max_tokens": 0 })),
        ("temperature: ", json!({ "temperature": 9 })),
    ] {
        let (status, answer) = server.post(MESSAGES, ask("x", more)).await;
        let (kind, message) = refused(&answer);
        assert_eq!((status.as_u16(), kind), (400, "invalid_request_error"), "{message}");
        assert!(message.starts_with(place), "{place}: {message}");
    }
}
