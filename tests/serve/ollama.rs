//! Ollama's interface and llama.cpp's properties.

use crate::support::{TestServer, chat, options, post, with_metadata};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use kimi::runtime::sampling_options::SamplingOptions;
use kimi::serve::ServeOptions;
use models::gguf::Value as Metadatum;
use serde_json::{Value, json};
use tower::ServiceExt;

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";

fn ask(text: &str, more: Value) -> Value {
    let mut body = json!({ "model": "tiny", "messages": [{ "role": "user", "content": text }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The lines of a stream.
async fn lines(server: &TestServer, path: &str, body: &Value) -> Vec<Value> {
    let response = server.router.clone().oneshot(post(path, body)).await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/x-ndjson");
    let (status, text) = server.send(post(path, body)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn schema() -> Value {
    json!({ "enum": ["left", "right"] })
}

fn weather() -> Value {
    json!({ "type": "function", "function": { "name": "get_weather", "strict": true, "parameters": {
        "type": "object", "properties": { "city": { "enum": ["Paris", "Oslo"] } }, "required": ["city"],
        "additionalProperties": false } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_the_same_whole_and_as_lines() {
    let server = TestServer::new();
    let whole = server.ok(CHAT, ask("Which?", json!({ "format": schema(), "stream": false }))).await;
    assert_eq!(
        (&whole["model"], &whole["done"], &whole["done_reason"]),
        (&json!("tiny"), &json!(true), &json!("stop"))
    );
    let content = whole["message"]["content"].as_str().unwrap();
    assert!(["\"left\"", "\"right\""].contains(&content), "{whole}");
    assert!(
        whole["prompt_eval_count"].as_u64() > Some(2) && whole["eval_count"].as_u64() > Some(1),
        "{whole}"
    );
    assert!(whole["created_at"].as_str().unwrap().ends_with('Z'));
    let lines = lines(&server, CHAT, &ask("Which?", json!({ "format": schema(), "keep_alive": "5m" }))).await;
    let (last, parts) = lines.split_last().unwrap();
    let joined: String = parts.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(joined, content);
    assert!(parts.iter().all(|line| line["done"] == false && line["message"]["role"] == "assistant"));
    assert_eq!((&last["done"], &last["eval_count"]), (&json!(true), &whole["eval_count"]));
    let cut = json!({ "options": { "num_predict": 2, "num_ctx": 4096 }, "stream": false, "think": true,
        "format": { "type": "string", "pattern": "^[a-z]{50}$" } });
    let cut = server.ok(CHAT, ask("x", cut)).await;
    assert_eq!((&cut["done_reason"], &cut["eval_count"]), (&json!("length"), &json!(2)));
    let json = server
        .ok(CHAT, ask("x", json!({ "format": "json", "stream": false, "options": { "num_predict": 8 } })))
        .await;
    assert!(json["message"]["content"].as_str().unwrap().starts_with('{'), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_their_results_need_no_ids() {
    let server = TestServer::new();
    let mut call = Value::Null;
    for seed in 0..20 {
        let options = json!({ "num_predict": 300, "temperature": 1.5, "seed": seed });
        let how = json!({ "tools": [weather()], "format": schema(), "options": options });
        let lines = lines(&server, CHAT, &ask("Weather?", how)).await;
        if let Some(line) = lines.iter().find(|line| line["message"]["tool_calls"].is_array()) {
            call = line["message"]["tool_calls"][0].clone();
            break;
        }
    }
    assert!(["Paris", "Oslo"].contains(&call["function"]["arguments"]["city"].as_str().unwrap()), "{call}");
    let call = json!({ "function": { "name": "get_weather", "arguments": { "city": "Oslo" } } });
    let messages = json!([{ "role": "user", "content": "Weather?" },
        { "role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call, call] },
        { "role": "tool", "content": "rain", "tool_name": "get_weather" }, { "role": "tool", "content": "sun" }]);
    let how = json!({ "messages": messages, "tools": [weather()], "stream": false, "options": { "num_predict": 2 } });
    server.ok(CHAT, how).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_use_the_template_unless_they_are_raw() {
    let server = TestServer::new();
    let how = json!({ "prompt": "Which?", "system": "Be brief.", "format": schema(), "stream": false });
    let whole = server.ok(GENERATE, how.clone()).await;
    let text = whole["response"].as_str().unwrap();
    assert!(["\"left\"", "\"right\""].contains(&text), "{whole}");
    let mut streamed = how;
    streamed["stream"] = json!(true);
    let lines = lines(&server, GENERATE, &streamed).await;
    assert_eq!(lines.iter().map(|line| line["response"].as_str().unwrap()).collect::<String>(), text);
    let options = json!({ "num_predict": 3 });
    let raw = server
        .ok(GENERATE, json!({ "prompt": "Which?", "raw": true, "stream": false, "options": options }))
        .await;
    let ids = server.ok("/tokenize", json!({ "content": "Which?" })).await;
    assert_eq!(raw["prompt_eval_count"], ids["tokens"].as_array().unwrap().len());
    let load = server.ok(GENERATE, json!({ "model": "tiny" })).await;
    assert_eq!(
        (&load["done"], &load["done_reason"], &load["response"]),
        (&json!(true), &json!("load"), &json!(""))
    );
    assert_eq!(server.ok(CHAT, json!({ "model": "tiny", "messages": [] })).await["done_reason"], "load");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_texts() {
    let server = TestServer::with(ServeOptions { keys: vec!["sesame".into()], ..options() }, 1);
    let send = |path: &str, body: Value| {
        let mut request = post(path, &body);
        request.headers_mut().insert(header::AUTHORIZATION, "Bearer sesame".parse().unwrap());
        server.send(request)
    };
    let image = json!([{ "role": "user", "content": "x", "images": ["aGk="] }]);
    for (path, body, status, place) in [
        (CHAT, ask("x", json!({ "model": "other" })), 404, "model: "),
        (CHAT, ask("x", json!({ "messages": image })), 400, "messages[0].images: "),
        (CHAT, ask("x", json!({ "options": { "temperature": 9 } })), 400, "temperature: "),
        (CHAT, ask("x", json!({ "options": { "top_k": "many" } })), 400, "options.top_k: "),
        (CHAT, ask("x", json!({ "options": { "mirostat": 2 } })), 400, "options.mirostat: "),
        (CHAT, ask("x", json!({ "format": "xml" })), 400, "format: "),
        (CHAT, ask("x", json!({ "think": 3 })), 400, "think: "),
        (GENERATE, json!({ "prompt": "x", "suffix": "y" }), 400, "suffix: "),
        (GENERATE, json!({ "prompt": "x", "context": [1] }), 400, "context: "),
        ("/api/show", json!({ "model": "other" }), 404, "model: "),
        ("/api/pull", json!({ "model": "other" }), 404, "/api/pull: no such endpoint"),
    ] {
        let (found, answer) = send(path, body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(found.as_u16(), status, "{answer}");
        assert!(answer["error"].as_str().unwrap().starts_with(place), "{place}: {answer}");
    }
    let (status, answer) = server.send(post(CHAT, &ask("x", json!({})))).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(serde_json::from_str::<Value>(&answer).unwrap()["error"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_is_described() {
    let server = TestServer::new();
    let get = async |path: &str| -> Value {
        let (status, text) = server.get(path).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    let tags = get("/api/tags").await;
    let model = &tags["models"][0];
    assert_eq!((&model["name"], &model["details"]["family"]), (&json!("tiny"), &json!("kimi-linear")));
    assert_eq!(
        (&model["details"]["quantization_level"], model["digest"].as_str().unwrap().len()),
        (&json!("Q8_0"), 64)
    );
    assert!(model["size"].as_u64() > Some(1 << 20), "{model}");
    assert_eq!(get("/api/ps").await["models"][0]["context_length"], 2048);
    assert!(get("/api/version").await["version"].as_str().unwrap().starts_with("0."));
    let shown = server.ok("/api/show", json!({ "name": "tiny" })).await;
    assert_eq!(
        (&shown["model_info"]["general.architecture"], &shown["capabilities"][1]),
        (&json!("kimi-linear"), &json!("tools"))
    );
    assert!(shown["template"].as_str().unwrap().contains("im_user"));
    let props = get("/props").await;
    assert_eq!(
        (&props["total_slots"], &props["default_generation_settings"]["n_ctx"]),
        (&json!(8), &json!(2048))
    );
    assert_eq!(server.send(Request::head("/").body(Body::empty()).unwrap()).await.0, StatusCode::OK);
}

/// Requests that name no parameter sample as the options of the server, else the model file, say.
#[tokio::test(flavor = "multi_thread")]
async fn sampling_defaults_of_the_model_file_are_used_and_shown() {
    let engine = with_metadata("general.sampling.temp", Metadatum::F32(0.0));
    let sampling = SamplingOptions { min_p: Some(0.25), ..SamplingOptions::default() };
    let server = TestServer::of_with(engine, ServeOptions { sampling, ..options() });
    let props: Value = serde_json::from_str(&server.get("/props").await.1).unwrap();
    let params = &props["default_generation_settings"]["params"];
    assert_eq!(
        (&params["temperature"], &params["min_p"], &params["top_p"], &params["top_k"]),
        (&json!(0.0), &json!(0.25), &json!(0.95), &json!(0))
    );
    let shown = server.ok("/api/show", json!({ "name": "tiny" })).await;
    let parameters = shown["parameters"].as_str().unwrap();
    for line in ["temperature                    0", "min_p                          0.25"] {
        assert!(parameters.lines().any(|found| found == line), "{parameters}");
    }
    let text = |how: Value| {
        let server = &server;
        async move {
            let answer = server.ok("/v1/chat/completions", chat("Once", how)).await;
            answer["choices"][0]["message"]["content"].to_string()
        }
    };
    let greedy = text(json!({ "temperature": 0, "ignore_eos": true })).await;
    assert_eq!(text(json!({ "ignore_eos": true, "seed": 1 })).await, greedy);
    let hot = json!({ "temperature": 2, "min_p": 0, "top_p": 1, "ignore_eos": true, "seed": 1 });
    assert_ne!(text(hot).await, greedy);
}

/// Pages of this machine may read responses; others need `--cors`.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_this_machine_may_read_responses() {
    let server = TestServer::new();
    for (origin, allowed) in
        [("http://localhost:3000", true), ("http://127.0.0.1:1", true), ("http://evil.example", false)]
    {
        let request =
            Request::get("/api/version").header(header::ORIGIN, origin).body(Body::empty()).unwrap();
        let response = server.router.clone().oneshot(request).await.unwrap();
        let found = response.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        assert_eq!(found.is_some_and(|found| found == origin), allowed, "{origin}");
    }
}
