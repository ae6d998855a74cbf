//! Streams, concurrent replies, clients that disconnect.

use crate::support::{TestServer, chat, options, post};
use axum::http::StatusCode;
use futures_util::future::join_all;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::Duration;
use tower::ServiceExt;

const CHAT: &str = "/v1/chat/completions";

fn content(events: &[Value]) -> String {
    let content = |e: &Value| e["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    events.iter().filter_map(content).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_the_text_of_a_whole_response() {
    let server = TestServer::new();
    let how = json!({ "max_tokens": 20, "ignore_eos": true });
    let whole = server.ok(CHAT, chat("Tell me", how.clone())).await;
    let mut streamed = chat("Tell me", how);
    streamed["stream"] = json!(true);
    let events = server.stream(CHAT, streamed.clone()).await;
    assert_eq!(content(&events), whole["choices"][0]["message"]["content"]);
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["timings"]["predicted_n"], 20);
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk" && e["id"] == events[0]["id"]));
    assert!(events.iter().all(|e| e.get("usage").is_none()));
    streamed["stream_options"] = json!({ "include_usage": true });
    let events = server.stream(CHAT, streamed).await;
    let (last, before) = events.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    assert!(before.iter().all(|e| e["usage"].is_null() && e.get("usage").is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_sent_on_request() {
    let server = TestServer::new();
    let how = json!({ "max_tokens": 1, "stream": true, "return_progress": true });
    let events = server.stream(CHAT, chat(&"word ".repeat(300), how)).await;
    let done: Vec<u64> = events.iter().filter_map(|e| e["prompt_progress"]["processed"].as_u64()).collect();
    assert!(done.len() > 3 && done.is_sorted(), "{done:?}");
    let last = events.iter().rfind(|e| e.get("prompt_progress").is_some()).unwrap();
    assert_eq!(last["prompt_progress"]["total"], *done.last().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_echoed_prompt_is_streamed_first() {
    let server = TestServer::new();
    let how = json!({ "prompt": "Once", "max_tokens": 5, "ignore_eos": true, "stream": true, "echo": true, "logprobs": 1 });
    let mut how_whole = how.clone();
    how_whole["logprobs"] = Value::Null;
    how_whole["stream"] = json!(false);
    let mut streamed = how;
    streamed["echo"] = json!(false);
    let events = server.stream("/v1/completions", streamed.clone()).await;
    let text: String = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
    let whole = server.ok("/v1/completions", how_whole.clone()).await;
    assert_eq!(format!("Once{text}"), whole["choices"][0]["text"]);
    let tokens = events
        .iter()
        .filter_map(|e| e["choices"][0]["logprobs"]["tokens"].as_array())
        .map(Vec::len)
        .sum::<usize>();
    assert_eq!(tokens, 5);
    how_whole["stream"] = json!(true);
    let events = server.stream("/v1/completions", how_whole).await;
    assert!(events[0]["choices"][0]["text"].as_str().unwrap().starts_with("Once"));
}

/// Greedy and sampled replies are the same alone and in a batch with eight others of other lengths, two of them long enough
/// that their ends are prefilled with materialized attention in large chunks.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_the_same_alone_and_batched() {
    let server = TestServer::with(options(), 9);
    let request = |i: u64| {
        let text = "A question of some length? ".repeat([1, 8, 15, 260][i as usize % 4]);
        let how = json!({ "temperature": if i.is_multiple_of(2) { 0.0 } else { 1.0 }, "seed": i, "max_tokens": 24 + i, "ignore_eos": true });
        chat(&text, how)
    };
    let content = |answer: Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let mut alone = Vec::new();
    for i in 0..9 {
        alone.push(content(server.ok(CHAT, request(i)).await));
    }
    let together = join_all((0..9).map(|i| server.ok(CHAT, request(i)))).await;
    let together: Vec<_> = together.into_iter().map(content).collect();
    assert_eq!(alone, together);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_disconnected_clients_are_cancelled() {
    let server = TestServer::with(options(), 2);
    let long = || chat("x", json!({ "max_tokens": 1500, "ignore_eos": true, "stream": true }));
    for i in 0..20 {
        let response = server.router.clone().oneshot(post(CHAT, &long())).await.unwrap();
        let mut body = response.into_body();
        // Half of the clients disconnect before their first token, half after it.
        for _ in 0..1 + i % 2 {
            assert!(body.frame().await.unwrap().unwrap().is_data());
        }
    }
    // Twenty replies of 1,500 tokens would take far longer than this timeout.
    for _ in 0..200 {
        let metrics = server.get("/metrics").await.1;
        let none = ["kimi_requests_running 0\n", "kimi_requests_waiting 0\n"]
            .iter()
            .all(|line| metrics.contains(line));
        if none && !metrics.contains("kimi_scheduler_steps_total 0\n") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let metrics = server.get("/metrics").await.1;
    assert!(
        metrics.contains("kimi_requests_running 0\n") && metrics.contains("kimi_requests_waiting 0\n"),
        "{metrics}"
    );
    assert!(metrics.contains("kimi_aborted_total 20\n"), "{metrics}");
    server.ok(CHAT, chat("x", json!({ "max_tokens": 1 }))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_and_queue_are_limited() {
    let short = kimi::serve::ServeOptions { timeout: Some(Duration::from_millis(50)), ..options() };
    let server = TestServer::with(short, 1);
    let (status, answer) =
        server.post(CHAT, chat("x", json!({ "max_tokens": 1900, "ignore_eos": true }))).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (504, &json!("timeout")));
    for queue in [0, 1] {
        let server = TestServer::with(kimi::serve::ServeOptions { queue, ..options() }, 1);
        let ask = || server.post(CHAT, chat("x", json!({ "max_tokens": 300, "ignore_eos": true })));
        let answers = join_all((0..8).map(|_| ask())).await;
        let full = |(status, answer): &&(StatusCode, Value)| {
            *status == StatusCode::TOO_MANY_REQUESTS && answer["error"]["code"] == "queue_full"
        };
        let done = answers.iter().filter(|(status, _)| *status == StatusCode::OK).count() as u64;
        let refused = answers.iter().filter(full).count() as u64;
        assert_eq!((done, refused), (1 + queue, 7 - queue), "{answers:?}");
        // The slots of the finished replies are free.
        assert_eq!(ask().await.0, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_cancels_running_requests() {
    let server = TestServer::with(options(), 1);
    let long = server.post(CHAT, chat("x", json!({ "max_tokens": 1900, "ignore_eos": true })));
    let end = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(server.app.open(), 1);
        server.app.drain();
        server.app.stop();
    };
    let ((status, answer), ()) = tokio::join!(long, end);
    assert_eq!(status.as_u16(), 503, "{answer}");
    server.app.idle().await;
    assert_eq!(server.app.open(), 0);
}
