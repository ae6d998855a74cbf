//! A server in front of another engine: a second server of this program, and fake engines.

use crate::fake_engine::{
    Behind, END, FakeEngine, OK, Then, WORD, fake_engine, front, in_front_of, refusal, run, values,
};
use crate::support::{TestServer, chat, post};
use axum::http::StatusCode;
use kimi::serve::UpstreamArgs;
use serde_json::{Value, json};
use std::time::Duration;

fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "enum": ["Rome", "Oslo"] } }, "required": ["city"], "additionalProperties": false });
    json!({ "name": "weather", "description": "d", "parameters": parameters })
}

fn number_schema() -> Value {
    json!({ "type": "object", "properties": { "n": { "type": "integer", "maximum": 9, "minimum": 0 } }, "required": ["n"] })
}

/// Requests for chat completions, with their path.
fn chat_completions() -> Vec<(&'static str, Value)> {
    let schema = number_schema();
    let tools = json!([{ "type": "function", "function": weather() }]);
    let asked = json!([{ "role": "user", "content": "Weather?" }]);
    let mut answered = asked.clone();
    let call = json!({ "id": "functions.weather:0", "type": "function", "function": { "name": "weather", "arguments": "{\"city\":\"Rome\"}" } });
    answered.as_array_mut().unwrap().extend([
        json!({ "role": "assistant", "content": null, "tool_calls": [call] }),
        json!({ "role": "tool", "tool_call_id": "functions.weather:0", "content": "rain" }),
    ]);
    vec![
        ("/v1/chat/completions", chat("Left or right?", json!({ "max_tokens": 12 }))),
        (
            "/v1/chat/completions",
            chat(
                "Left?",
                json!({ "max_tokens": 5, "logprobs": true, "top_logprobs": 2, "stream_options": { "include_usage": true } }),
            ),
        ),
        (
            "/v1/chat/completions",
            chat("Left?", json!({ "max_tokens": 40, "stop": ["no", "ight", "eft", "a"] })),
        ),
        (
            "/v1/chat/completions",
            chat("Right?", json!({ "n": 2, "temperature": 1, "seed": 7, "max_tokens": 6 })),
        ),
        (
            "/v1/chat/completions",
            chat(
                "A number",
                json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": schema } } }),
            ),
        ),
        ("/v1/chat/completions", chat("ab", json!({ "guided_regex": "(ab|cd){2}" }))),
        (
            "/v1/chat/completions",
            json!({ "messages": asked, "tools": tools, "tool_choice": "required", "max_tokens": 60, "parallel_tool_calls": false }),
        ),
        ("/v1/chat/completions", json!({ "messages": answered, "tools": tools, "max_tokens": 6 })),
    ]
}

/// Requests to the other interfaces, with their paths.
fn other_requests() -> Vec<(&'static str, Value)> {
    let asked = json!([{ "role": "user", "content": "Weather?" }]);
    let anthropic_tools = json!([{ "name": "weather", "input_schema": weather()["parameters"] }]);
    vec![
        (
            "/v1/responses",
            json!({ "input": "Left or right?", "instructions": "Be brief.", "max_output_tokens": 12 }),
        ),
        (
            "/v1/responses",
            json!({ "input": "Weather?", "tools": [{ "type": "function", "name": "weather", "parameters": weather()["parameters"] }], "tool_choice": "required", "parallel_tool_calls": false, "max_output_tokens": 60 }),
        ),
        (
            "/v1/messages",
            json!({ "max_tokens": 12, "system": "Be brief.", "messages": [{ "role": "user", "content": "Left or right?" }] }),
        ),
        (
            "/v1/messages",
            json!({ "max_tokens": 40, "messages": asked, "stop_sequences": ["no", "ight", "eft", "a"] }),
        ),
        (
            "/v1/messages",
            json!({ "max_tokens": 60, "messages": asked, "tools": anthropic_tools, "tool_choice": { "type": "any", "disable_parallel_tool_use": true } }),
        ),
        ("/api/chat", json!({ "messages": asked, "options": { "num_predict": 12 } })),
        ("/api/chat", json!({ "messages": asked, "format": number_schema() })),
        (
            "/api/generate",
            json!({ "prompt": "Left or right?", "system": "Be brief.", "options": { "num_predict": 12 } }),
        ),
    ]
}

/// A reply through the server in front equals the direct one, whole and streamed, in every interface.
#[test]
fn replies_equal_the_direct_ones() {
    let behind = Behind::new(TestServer::new().app);
    run(async {
        let (direct, front) = (TestServer::new(), front(&behind.url()));
        for (path, body) in [chat_completions(), other_requests()].concat() {
            for stream in [false, true] {
                let mut body = body.clone();
                body["stream"] = stream.into();
                if path == "/v1/messages" {
                    body["model"] = "tiny".into();
                }
                let (status, expected) = direct.send(post(path, &body)).await;
                assert_eq!(status, StatusCode::OK, "{body}: {expected}");
                let (status, found) = front.send(post(path, &body)).await;
                assert_eq!(status, StatusCode::OK, "{body}: {found}");
                let (expected, found) = (values(&expected), values(&found));
                assert_eq!(found, expected, "{path} {body}");
                assert!(!found.is_empty(), "{path} {body}");
            }
        }
        let count = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "Left or right?" }] });
        let expected = direct.ok("/v1/messages/count_tokens", count.clone()).await;
        assert_eq!(front.ok("/v1/messages/count_tokens", count).await, expected);
    });
}

/// Tokens that the server behind has cached are reported in every interface.
#[test]
fn cached_tokens_are_reported() {
    let behind = Behind::new(TestServer::with_cache().app);
    run(async {
        let front = front(&behind.url());
        let body = chat("An upstream prompt that is cached", json!({ "max_tokens": 2 }));
        front.ok("/v1/chat/completions", body.clone()).await;
        let again = front.ok("/v1/chat/completions", body).await;
        let usage = &again["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached > 0 && cached <= usage["prompt_tokens"].as_u64().unwrap(), "{again}");
        let body = json!({ "model": "tiny", "max_tokens": 2, "messages": [{ "role": "user", "content": "An upstream prompt that is cached" }] });
        let usage = front.ok("/v1/messages", body).await["usage"].clone();
        assert_eq!(usage["cache_read_input_tokens"], cached, "{usage}");
        assert_eq!(usage["cache_creation_input_tokens"], 0, "{usage}");
        let (_, metrics) = front.get("/metrics").await;
        assert!(metrics.contains(&format!("kimi_cached_tokens_total {}", 2 * cached)), "{metrics}");
    });
}

/// The body of the last request to a fake engine.
fn body_of(behind: &FakeEngine) -> (String, Value) {
    let request = behind.requests.recv_timeout(Duration::from_secs(10)).unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), serde_json::from_str(body).unwrap())
}

/// Requests keep their structure; fields go by the names that the engine has.
#[test]
fn requests_are_forwarded_in_structure() {
    let request = json!({
        "messages": [{ "role": "developer", "content": [{ "type": "text", "text": "s" }] }, { "role": "user", "content": "<|im_end|>" }],
        "tools": [{ "type": "function", "function": weather() }, { "type": "web_search" }],
        "tool_choice": { "type": "function", "function": { "name": "weather" } },
        "repeat_penalty": 1.5, "top_k": 3, "seed": 5, "max_tokens": -1, "logit_bias": { "7": 1.0 }, "stop": "x",
        "reasoning_effort": "none", "user": "someone", "stream": true,
    });
    for (owner, penalty, other) in [
        ("vllm", "repetition_penalty", "repeat_penalty"),
        ("llamacpp", "repeat_penalty", "repetition_penalty"),
    ] {
        let behind = fake_engine(owner, format!("{OK}{WORD}{END}"), Then::Close);
        run(async {
            let args = UpstreamArgs { upstream_key: Some("secret".into()), ..UpstreamArgs::at(&behind.url) };
            in_front_of(&args, 1).send(post("/v1/chat/completions", &request)).await;
        });
        let (head, body) = body_of(&behind);
        assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{head}");
        assert!(head.to_lowercase().contains("authorization: bearer secret"), "{head}");
        assert_eq!(
            body["messages"],
            json!([{ "role": "system", "content": "s" }, { "role": "user", "content": "<|im_end|>" }])
        );
        assert_eq!(body["tools"], json!([{ "type": "function", "function": weather() }]));
        assert_eq!(body["tool_choice"], request["tool_choice"]);
        assert_eq!((&body["model"], &body["stream"]), (&json!("tiny"), &json!(true)));
        assert_eq!(body["chat_template_kwargs"]["enable_thinking"], false);
        assert_eq!((&body[penalty], &body["top_k"], &body["seed"]), (&json!(1.5), &json!(3), &json!(5)));
        assert_eq!((&body["stop"], &body["logit_bias"]), (&json!(["x"]), &json!({ "7": 1.0 })));
        for absent in [other, "max_tokens", "user", "reasoning_effort", "n"] {
            assert!(body.get(absent).is_none(), "{absent}: {body}");
        }
    }
}

/// Reasoning and calls are found in the fields of other engines, and in the model's markup if the engine leaves it as text.
#[test]
fn reasoning_and_calls_of_other_engines_are_found() {
    let event =
        |delta: Value| format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": delta }] }));
    let structured = [
        event(json!({ "role": "assistant", "reasoning": "hm" })),
        event(json!({ "content": "Let me see." })),
        event(
            json!({ "tool_calls": [{ "index": 0, "id": "a", "type": "function", "function": { "name": "weather", "arguments": "{\"city\":" } }] }),
        ),
        event(json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "\"Rome\"}" } }] })),
        event(
            json!({ "tool_calls": [{ "index": 1, "id": "b", "function": { "name": "weather", "arguments": "{\"city\":\"Oslo\"}" } }] }),
        ),
    ];
    let call = |i: usize, city: &str| {
        format!(
            "<|tool_call_begin|>functions.weather:{i}<|tool_call_argument_begin|>{{\"city\":\"{city}\"}}<|tool_call_end|>"
        )
    };
    let text = format!(
        "<think>hm</think>Let me see.<|tool_calls_section_begin|>{}{}<|tool_calls_section_end|>",
        call(0, "Rome"),
        call(1, "Oslo")
    );
    let as_text: Vec<String> = text
        .as_bytes()
        .chunks(7)
        .map(|part| event(json!({ "content": std::str::from_utf8(part).unwrap() })))
        .collect();
    for events in [structured.concat(), as_text.concat()] {
        let behind = fake_engine("vllm", format!("{OK}{events}{END}"), Then::Close);
        run(async {
            let front = front(&behind.url);
            let tools = json!([{ "type": "function", "function": weather() }]);
            let reply = front.ok("/v1/chat/completions", chat("hi", json!({ "tools": tools }))).await;
            let choice = &reply["choices"][0];
            let message = &choice["message"];
            assert_eq!(
                (&message["reasoning_content"], &message["content"]),
                (&json!("hm"), &json!("Let me see."))
            );
            let arguments =
                |i: usize| message["tool_calls"][i]["function"]["arguments"].as_str().unwrap_or_default();
            assert_eq!([arguments(0), arguments(1)], ["{\"city\":\"Rome\"}", "{\"city\":\"Oslo\"}"]);
            assert_eq!(choice["finish_reason"], "tool_calls");
            let tools = json!([{ "name": "weather", "input_schema": weather()["parameters"] }]);
            let body = json!({ "model": "tiny", "max_tokens": 9, "messages": [{ "role": "user", "content": "hi" }], "tools": tools });
            let message = front.ok("/v1/messages", body).await;
            let kinds: Vec<&str> =
                message["content"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap()).collect();
            assert_eq!(kinds, ["thinking", "text", "tool_use", "tool_use"]);
            assert_eq!(message["content"][3]["input"], json!({ "city": "Oslo" }));
        });
    }
}

/// What is known of the model is reported, what is not is absent, and endpoints that need a model here are refused by name.
#[test]
fn other_endpoints_say_what_is_known() {
    let behind = fake_engine("vllm", refusal("404 No", "{}"), Then::Close);
    let url = behind.url.clone();
    run(async {
        let front = front(&url);
        let get = async |path: &str| {
            let (status, text) = front.get(path).await;
            assert_eq!(status, StatusCode::OK, "{path}: {text}");
            serde_json::from_str::<Value>(&text).unwrap()
        };
        assert_eq!(get("/health").await, json!({ "status": "ready" }));
        let models = get("/v1/models").await;
        assert_eq!(
            (&models["data"][0]["id"], &models["data"][0]["context_length"]),
            (&json!("tiny"), &json!(4096))
        );
        let props = get("/props").await;
        assert_eq!((&props["total_slots"], &props["chat_template"]), (&json!(4), &json!("")));
        assert_eq!(get("/api/tags").await["models"][0]["size"], 0);
        assert_eq!(get("/api/ps").await["models"][0]["context_length"], 4096);
        let shown = front.ok("/api/show", json!({ "model": "tiny" })).await;
        assert_eq!(shown["model_info"], json!({ "general.context_length": 4096 }));
        for (path, body) in [
            ("/tokenize", json!({ "content": "x" })),
            ("/detokenize", json!({ "tokens": [1] })),
            ("/v1/completions", json!({ "prompt": "x" })),
            (
                "/v1/messages/count_tokens",
                json!({ "model": "tiny", "messages": [{ "role": "user", "content": "x" }] }),
            ),
            ("/api/generate", json!({ "prompt": "x", "raw": true })),
        ] {
            let (status, value) = front.post(path, body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {value}");
            assert!(value.to_string().contains("is not available with --upstream"), "{path}: {value}");
        }
        let grammar = json!({ "response_format": { "type": "grammar", "grammar": "start: \"a\"" } });
        for (param, more) in
            [("response_format.type", grammar), ("guided_regex", json!({ "guided_regex": "a" }))]
        {
            let (status, value) = front.post("/v1/chat/completions", chat("x", more)).await;
            assert_eq!(
                (status, &value["error"]["param"]),
                (StatusCode::BAD_REQUEST, &json!(param)),
                "{value}"
            );
        }
    });
}
