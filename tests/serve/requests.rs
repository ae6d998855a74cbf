//! Responses without streaming, and refused requests.

use crate::support::{TestServer, chat, options, post};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_has_the_shape_that_clients_read() {
    let server = TestServer::new();
    let answer = server.ok(CHAT, chat("Hello", json!({ "max_tokens": 5, "ignore_eos": true }))).await;
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["model"], "tiny");
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    let choice = &answer["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["refusal"], Value::Null);
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 5);
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], prompt + 5);
    assert_eq!(answer["timings"]["prompt_n"], prompt);
    assert_eq!(answer["timings"]["predicted_n"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_and_its_token_ids_give_the_same_completion() {
    let server = TestServer::new();
    let ids = server.ok("/tokenize", json!({ "content": "Hello world" })).await["tokens"].clone();
    let pieces = json!({ "content": "Hello world", "with_pieces": true });
    let pieces = server.ok("/tokenize", pieces).await["tokens"].clone();
    let column = |name: &str| pieces.as_array().unwrap().iter().map(|t| t[name].clone()).collect::<Vec<_>>();
    assert_eq!(Value::Array(column("id")), ids);
    assert_eq!(column("piece").iter().map(|p| p.as_str().unwrap()).collect::<String>(), "Hello world");
    let how = json!({ "prompt": "Hello world", "max_tokens": 6, "ignore_eos": true, "logprobs": 2 });
    let by_text = server.ok(TEXT, how).await;
    let by_ids = server.ok(TEXT, json!({ "prompt": ids, "max_tokens": 6, "ignore_eos": true })).await;
    assert_eq!(by_text["object"], "text_completion");
    assert_eq!(by_text["choices"][0]["text"], by_ids["choices"][0]["text"]);
    let logprobs = &by_text["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 6);
    assert_eq!(logprobs["text_offset"][0], 0);
    for (chosen, top) in logprobs["token_logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .zip(logprobs["top_logprobs"].as_array().unwrap())
    {
        assert_eq!(top.as_object().unwrap().len(), 2);
        let best = top.as_object().unwrap().values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(chosen.as_f64().unwrap(), best, "greedy takes the most likely");
    }
    let several = json!({ "prompt": ["a", "b"], "n": 2, "max_tokens": 2, "echo": true });
    let several = server.ok(TEXT, several).await;
    let texts: Vec<_> =
        several["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert!(texts.len() == 4 && texts[1].starts_with('a') && texts[2].starts_with('b'), "{texts:?}");
    assert_eq!(several["choices"][3]["index"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_seeds_biases_and_penalties_take_effect() {
    let server = TestServer::new();
    let a = server.ok("/tokenize", json!({ "content": "abc" })).await["tokens"][0].as_u64().unwrap();
    let bias = json!({ a.to_string(): 100 });
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let forced = server.ok(CHAT, chat("x", json!({ "logit_bias": bias, "max_tokens": 4 }))).await;
    assert_eq!(text(&forced), "abcabcabcabc");
    let stop = json!({ "logit_bias": bias, "max_tokens": 9, "stop": ["nothing", "cab"] });
    let stopped = server.ok(CHAT, chat("x", stop)).await;
    assert_eq!((text(&stopped), &stopped["choices"][0]["finish_reason"]), ("ab".into(), &json!("stop")));
    let hot = |seed: u64| {
        chat("x", json!({ "temperature": 1.5, "seed": seed, "max_tokens": 12, "ignore_eos": true }))
    };
    let first = text(&server.ok(CHAT, hot(5)).await);
    assert_eq!(first, text(&server.ok(CHAT, hot(5)).await));
    assert_ne!(first, text(&server.ok(CHAT, hot(6)).await));
    let n =
        server.ok(CHAT, chat("x", json!({ "temperature": 1.5, "seed": 5, "n": 3, "max_tokens": 12 }))).await;
    let texts: Vec<_> =
        n["choices"].as_array().unwrap().iter().map(|c| c["message"]["content"].clone()).collect();
    assert!(texts.len() == 3 && texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    let again = json!({ "logit_bias": { a.to_string(): 20 }, "frequency_penalty": 2, "max_tokens": 64 });
    let penalized = server.ok(CHAT, chat("x", again)).await;
    assert!(!text(&penalized).contains(&"abc".repeat(20)), "{}", text(&penalized));
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_logprobs_match_the_tokens() {
    let server = TestServer::new();
    let how = json!({ "logprobs": true, "top_logprobs": 3, "max_tokens": 4, "ignore_eos": true });
    let answer = server.ok(CHAT, chat("x", how)).await;
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 4);
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|t| t["bytes"].as_array().unwrap())
        .map(|b| b.as_u64().unwrap() as u8)
        .collect();
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), content);
    assert!(tokens.iter().all(|t| t["top_logprobs"].as_array().unwrap().len() == 3));
    assert_eq!(tokens[0]["logprob"], tokens[0]["top_logprobs"][0]["logprob"]);
}

/// A refused request, and the field that the error names.
async fn refused(server: &TestServer, path: &str, body: Value, status: u16, param: Option<&str>) {
    let (found, answer) = server.post(path, body.clone()).await;
    assert_eq!(found.as_u16(), status, "{body}: {answer}");
    let error = &answer["error"];
    assert!(error["message"].is_string() && error["type"].is_string(), "{answer}");
    assert_eq!(error["param"].as_str(), param, "{body}: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_values_are_refused_by_name_and_unknown_fields_ignored() {
    let server = TestServer::new();
    server.ok(CHAT, chat("x", json!({ "max_tokens": 1, "user": "me", "no_such_field": { "a": 1 } }))).await;
    for (param, value) in [
        ("temperature", json!(3)),
        ("temperature", json!("hot")),
        ("top_p", json!(-0.1)),
        ("top_k", json!(-1)),
        ("n", json!(0)),
        ("n", json!(17)),
        ("max_tokens", json!(0)),
        ("stop", json!([""])),
        ("stop", json!(5)),
        ("presence_penalty", json!(2.5)),
        ("logit_bias.x", json!({ "x": 1 })),
        ("logit_bias.200000", json!({ "200000": 1 })),
        ("top_logprobs", json!(2)),
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("messages[0].role", json!([{ "role": "wizard", "content": "x" }])),
        ("messages[0].content", json!([{ "role": "user", "content": 7 }])),
        (
            "messages[0].content[0]",
            json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]),
        ),
        ("stream", json!("yes")),
    ] {
        let field = param.split(['.', '[']).next().unwrap();
        refused(&server, CHAT, chat("x", json!({ field: value })), 400, Some(param)).await;
    }
    refused(&server, CHAT, chat("x", json!({ "model": "gpt" })), 404, Some("model")).await;
    let long = "word ".repeat(3000);
    refused(&server, CHAT, chat(&long, json!({})), 400, Some("messages")).await;
    refused(&server, CHAT, chat(&"x".repeat(2 << 20), json!({})), 413, None).await;
    refused(&server, TEXT, json!({ "prompt": [] }), 400, Some("prompt")).await;
    refused(&server, TEXT, json!({ "prompt": [163_840] }), 400, Some("prompt")).await;
    refused(&server, TEXT, json!({ "prompt": "x", "suffix": "y" }), 400, Some("suffix")).await;
    refused(&server, TEXT, json!({}), 400, None).await;
    refused(&server, "/detokenize", json!({ "tokens": [1, 163_840] }), 400, Some("tokens[1]")).await;
    refused(&server, "/v1/embeddings", json!({ "input": "x" }), 400, None).await;
    refused(&server, "/v1/nothing", json!({}), 404, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_a_json_object_are_refused() {
    let server = TestServer::new();
    for (kind, body, status) in [
        ("application/json", "{", 400),
        ("application/json; charset=utf-8", "[1]", 400),
        ("application/json", "\u{0}", 400),
        ("text/plain", "{}", 415),
    ] {
        let request = Request::post(CHAT).header(header::CONTENT_TYPE, kind).body(Body::from(body)).unwrap();
        let (found, answer) = server.send(request).await;
        assert_eq!(found.as_u16(), status, "{body}: {answer}");
        assert!(answer.contains("invalid_request_error"), "{answer}");
    }
    // curl's default, which Ollama's documentation relies on; a page's form has an Origin.
    let form = "application/x-www-form-urlencoded";
    for (path, origin, status) in
        [("/api/show", None, 200), ("/api/show", Some("http://localhost"), 415), (CHAT, None, 415)]
    {
        let mut request = Request::post(path).header(header::CONTENT_TYPE, form);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        let (found, answer) = server.send(request.body(Body::from(r#"{"model":"tiny"}"#)).unwrap()).await;
        assert_eq!(found.as_u16(), status, "{path}: {answer}");
    }
    assert_eq!(server.get(CHAT).await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_keys_are_required_and_foreign_pages_get_no_cors() {
    let server = TestServer::with(
        kimi::serve::ServeOptions { keys: vec!["sesame".into(), "open".into()], ..options() },
        1,
    );
    let ask = |key: Option<&str>| {
        let mut request = post("/tokenize", &json!({ "content": "x" }));
        if let Some(key) = key {
            request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
        }
        server.send(request)
    };
    assert_eq!(ask(Some("open")).await.0, StatusCode::OK);
    for key in [None, Some("opem"), Some(""), Some("sesam")] {
        let (status, answer) = ask(key).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(answer.contains("invalid_api_key"), "{answer}");
    }
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
    assert_eq!(server.get("/metrics").await.0, StatusCode::UNAUTHORIZED);
    let page =
        Request::get("/health").header(header::ORIGIN, "http://evil.example").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(server.router.clone(), page).await.unwrap();
    assert!(!response.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
}

/// OpenAI's browser client sends its own headers and reads `retry-after`.
#[tokio::test(flavor = "multi_thread")]
async fn allowed_pages_send_and_read_the_headers_of_clients() {
    let origin = "http://page.example";
    let server = TestServer::loading(kimi::serve::ServeOptions { cors: vec![origin.into()], ..options() });
    let asked = "authorization,content-type,x-stainless-lang,x-stainless-retry-count";
    let preflight = Request::options(CHAT)
        .header(header::ORIGIN, origin)
        .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
        .header(header::ACCESS_CONTROL_REQUEST_HEADERS, asked);
    let preflight = preflight.body(Body::empty()).unwrap();
    let allowed = tower::ServiceExt::oneshot(server.router.clone(), preflight).await.unwrap();
    assert_eq!(allowed.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS], asked);
    let mut request = post(CHAT, &chat("x", json!({})));
    request.headers_mut().insert(header::ORIGIN, origin.parse().unwrap());
    let refused = tower::ServiceExt::oneshot(server.router.clone(), request).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[header::ACCESS_CONTROL_EXPOSE_HEADERS], "retry-after");
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reports_the_status() {
    let server = TestServer::loading(options());
    assert_eq!(
        server.get("/health").await,
        (StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"loading"}"#.into())
    );
    refused(&server, CHAT, chat("x", json!({})), 503, None).await;
    let server = TestServer::new();
    assert_eq!(server.get("/health").await, (StatusCode::OK, r#"{"status":"ready"}"#.into()));
    let models: Value = serde_json::from_str(&server.get("/v1/models").await.1).unwrap();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(server.get("/v1/models/tiny").await.0, StatusCode::OK);
    assert_eq!(server.get("/v1/models/other").await.0, StatusCode::NOT_FOUND);
    server.app.drain();
    assert_eq!(
        server.get("/health").await,
        (StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"draining"}"#.into())
    );
    refused(&server, CHAT, chat("x", json!({})), 503, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_requests_and_tokens() {
    let server = TestServer::new();
    let answer = server.ok(CHAT, chat("x", json!({ "max_tokens": 3, "ignore_eos": true }))).await;
    let text = server.get("/metrics").await.1;
    let value = |name: &str| {
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("{name}: {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value("kimi_requests_total"), 1.0);
    assert_eq!(value("kimi_generated_tokens_total"), 3.0);
    assert_eq!(value("kimi_prompt_tokens_total"), answer["usage"]["prompt_tokens"].as_f64().unwrap());
    assert_eq!(value("kimi_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(value("kimi_inter_token_latency_seconds_count"), 2.0);
    assert!(text.ends_with("# EOF\n"));
}

/// A turn prefills only its new tokens, a shared instruction is prefilled once, and the replies do not change.
#[tokio::test(flavor = "multi_thread")]
async fn cached_prefixes_are_not_prefilled_again() {
    let (caching, fresh) = (TestServer::with_cache(), TestServer::new());
    let rules = json!({ "role": "system", "content": "Be brief, but never too brief. ".repeat(20) });
    let ask = |text: &str, more: &[Value]| {
        let mut messages = vec![rules.clone(), json!({ "role": "user", "content": text })];
        messages.extend_from_slice(more);
        json!({ "messages": messages, "max_tokens": 8, "ignore_eos": true })
    };
    let read = |answer: &Value| answer["timings"]["prompt_n"].as_u64().unwrap();
    let content = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    let first = caching.ok(CHAT, ask("One", &[])).await;
    assert_eq!(content(&first), content(&fresh.ok(CHAT, ask("One", &[])).await));
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let again = caching.ok(CHAT, ask("One", &[])).await;
    assert_eq!((read(&again), content(&again)), (0, content(&first)));
    let other = caching.ok(CHAT, ask("Two", &[])).await;
    assert!(read(&other) < 10, "{other}");
    assert_eq!(content(&other), content(&fresh.ok(CHAT, ask("Two", &[])).await));
    let turn =
        [json!({ "role": "assistant", "content": "Yes." }), json!({ "role": "user", "content": "More" })];
    let next = caching.ok(CHAT, ask("Two", &turn)).await;
    assert!(read(&next) < 14, "{next}");
    assert_eq!(content(&next), content(&fresh.ok(CHAT, ask("Two", &turn)).await));
}

/// On a single-threaded runtime another request is answered before the large body of the first is parsed.
#[tokio::test(flavor = "current_thread")]
async fn large_bodies_do_not_block_other_requests() {
    let server = TestServer::loading(kimi::serve::ServeOptions { max_body: 32 << 20, ..options() });
    let body = format!("[{}0]", "12345,".repeat(1_900_000));
    let request = Request::post("/tokenize").header(header::CONTENT_TYPE, "application/json");
    let large = server.send(request.body(Body::from(body)).unwrap());
    let mut large = std::pin::pin!(large);
    let mut answered = 0;
    let (status, answer) = loop {
        tokio::select! {
            biased;
            answer = &mut large => break answer,
            _ = server.get("/health") => answered += 1,
        }
    };
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.contains("expected a JSON object"), "{answer}");
    assert!(answered > 0, "the only thread parsed the body");
}

/// A few bytes of ids decode to a hundred of text: a response has no more text than a request body may have.
#[tokio::test(flavor = "multi_thread")]
async fn decoded_text_of_token_ids_is_bounded() {
    let server = TestServer::with(kimi::serve::ServeOptions { max_body: 6000, ..options() }, 1);
    let spaces = server.ok("/tokenize", json!({ "content": " ".repeat(64) })).await["tokens"].clone();
    let spaces = spaces.as_array().unwrap();
    let ids = |texts: usize| Value::from(vec![spaces.clone(); texts].concat());
    let text = server.ok("/detokenize", json!({ "tokens": ids(50) })).await;
    assert_eq!(text["content"], " ".repeat(3200));
    refused(&server, "/detokenize", json!({ "tokens": ids(100) }), 400, Some("tokens")).await;
    let echo = |texts, n| json!({ "prompt": ids(texts), "n": n, "echo": true, "max_tokens": 1 });
    server.ok(TEXT, echo(50, 1)).await;
    refused(&server, TEXT, echo(50, 2), 400, Some("echo")).await;
}
