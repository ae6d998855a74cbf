//! Isolation of clients: cached prefixes of other API keys, unread streams, memory for prompts, NaN logits.

use crate::support::{TestServer, broken, chat, options, post};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use kimi::scheduler::SchedulerLimits;
use kimi::serve::ServeOptions;
use serde_json::{Value, json};
use std::time::Duration;
use tower::ServiceExt;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn with_key(key: &str, body: &Value) -> Request<Body> {
    let mut request = post(CHAT, body);
    request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
    request
}

/// The cached tokens of a request with a key.
async fn cached(server: &TestServer, key: &str, body: &Value) -> u64 {
    let (status, text) = server.send(with_key(key, body)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    answer.pointer("/usage/prompt_tokens_details/cached_tokens").and_then(Value::as_u64).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_prefixes_are_private_to_a_key() {
    let keys = |keys: &[&str], share_prefix_cache| {
        let keys = keys.iter().map(ToString::to_string).collect();
        let options = ServeOptions { keys, share_prefix_cache, ..options() };
        TestServer::within(1, options, SchedulerLimits::new(8, 1 << 30))
    };
    let turns = |text: &str| {
        let user = |text: &str| json!({ "role": "user", "content": text.repeat(20) });
        let (first, other) = (user(text), user(&text.to_uppercase()));
        let reply = json!({ "role": "assistant", "content": "Yes." });
        let next = json!({ "role": "user", "content": "And?" });
        [json!([first]), json!([other, reply, next])].map(|m| json!({ "messages": m, "max_tokens": 2 }))
    };
    let server = keys(&["alpha", "beta"], false);
    for body in turns("A secret plan of mine. ") {
        cached(&server, "alpha", &body).await;
        assert!(cached(&server, "alpha", &body).await > 20);
        assert_eq!(cached(&server, "beta", &body).await, 0, "{body}");
        assert!(cached(&server, "beta", &body).await > 20);
    }
    // Concurrently: neither waits for the other's prefill.
    let [body, _] = turns("A plan of both. ");
    let both = tokio::join!(cached(&server, "alpha", &body), cached(&server, "beta", &body));
    assert_eq!(both, (0, 0));
    for (server, text) in
        [(keys(&["alpha", "beta"], true), "On. "), (keys(&["alpha", "alpha"], false), "One. ")]
    {
        let [body, _] = turns(&format!("Known to all who ask here. {text}"));
        cached(&server, "alpha", &body).await;
        let other = if text == "On. " { "beta" } else { "alpha" };
        assert!(cached(&server, other, &body).await > 20, "{text}");
    }
}

async fn metric(server: &TestServer, name: &str) -> u64 {
    let text = server.get("/metrics").await.1;
    let line =
        text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}: {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until the engine is idle; returns the number of tokens that it has computed.
async fn until_idle(server: &TestServer) -> u64 {
    let mut before = u64::MAX;
    loop {
        let now = metric(server, "kimi_batched_tokens_total").await;
        if now > 0 && now == before {
            return now;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn stream() -> Request<Body> {
    let how = json!({ "stream": true, "logprobs": true, "top_logprobs": 20, "max_tokens": 1900, "ignore_eos": true });
    post(CHAT, &chat("x", how))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_stream_is_paused() {
    let server = TestServer::within(
        0,
        options(),
        SchedulerLimits { unread: Duration::from_secs(600), ..SchedulerLimits::new(1, 1 << 30) },
    );
    let mut body = server.router.clone().oneshot(stream()).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert!(until_idle(&server).await < 400, "tokens for a stream that nobody reads");
    // Another request takes the only slot meanwhile.
    let answer = server.ok(CHAT, chat("Hello", json!({ "max_tokens": 9, "ignore_eos": true }))).await;
    assert_eq!(answer["usage"]["completion_tokens"], 9);
    let rest = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(
        rest.ends_with("data: [DONE]\n\n") && rest.contains(r#""predicted_n":1900"#),
        "{}",
        &rest[rest.len() - 600..]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_stream_times_out() {
    let server = TestServer::within(
        0,
        options(),
        SchedulerLimits { unread: Duration::from_millis(200), ..SchedulerLimits::new(1, 1 << 30) },
    );
    let mut body = server.router.clone().oneshot(stream()).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    until_idle(&server).await;
    for _ in 0..200 {
        if metric(&server, "kimi_requests_running").await + metric(&server, "kimi_requests_waiting").await
            == 0
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let rest = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let last = rest.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.contains("the stream was not read for 0 s (--stream-timeout)"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_waiting_prompts_is_limited() {
    let server = TestServer::with(ServeOptions { queue_bytes: 3000, ..options() }, 1);
    let request = |tokens: usize, n: usize| {
        let prompt: Vec<usize> = (0..tokens).map(|i| 100 + i).collect();
        json!({ "prompt": prompt, "n": n, "max_tokens": 40, "ignore_eos": true })
    };
    // First more than the whole budget, whatever n is; then what fits beside the running requests.
    assert_eq!(server.post(TEXT, request(1000, 2)).await.0, StatusCode::OK);
    let answers = join_all((0..4).map(|_| server.post(TEXT, request(300, 4)))).await;
    let (done, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|(status, _)| *status == StatusCode::OK);
    assert_eq!((done.len(), refused.len()), (2, 2), "{answers:?}");
    for (status, answer) in refused {
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(
            (*status, &answer["error"]["code"]),
            (StatusCode::TOO_MANY_REQUESTS, &json!("queue_full"))
        );
        assert!(
            message.starts_with("the queue holds 0.0 MiB of prompts") && message.contains("--queue-memory"),
            "{message}"
        );
    }
    assert_eq!(server.post(TEXT, request(300, 1)).await.0, StatusCode::OK, "the memory is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_waiting_grammars_is_limited() {
    let server = TestServer::with(ServeOptions { queue_bytes: 200_000, ..options() }, 1);
    let request = |stream: bool| {
        let text = format!("start: /[qj]{{1500}}/ // {}", "x".repeat(2000));
        let form = json!({ "type": "grammar", "grammar": text, "syntax": "lark" });
        chat("x", json!({ "response_format": form, "max_tokens": 1500, "stream": stream }))
    };
    // An unread stream keeps its grammar in memory.
    let mut body = server.router.clone().oneshot(post(CHAT, &request(true))).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    let (status, answer) = server.post(CHAT, request(false)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("the queue holds 0.1 MiB of prompts and grammars"), "{message}");
    server.ok(CHAT, chat("x", json!({ "max_tokens": 1 }))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_answers_waiting_requests() {
    let server = TestServer::with(options(), 1);
    let long = |_| server.post(CHAT, chat("x", json!({ "max_tokens": 1900, "ignore_eos": true })));
    let end = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(server.app.open(), 4);
        server.app.drain();
        server.app.stop();
    };
    let (answers, ()) = tokio::join!(join_all((0..4).map(long)), end);
    for (status, answer) in answers {
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn non_finite_logits_are_an_error() {
    let server = TestServer::of(broken());
    for how in [
        json!({}),
        json!({ "temperature": 1, "top_k": 5 }),
        json!({ "temperature": 1, "frequency_penalty": 1 }),
    ] {
        let (status, answer) = server.post(CHAT, chat("x", how)).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("all logits at position "), "{message}");
        assert!(message.ends_with(" are NaN; check the model file with kimi inspect --check"), "{message}");
    }
    assert_eq!(server.get("/health").await.0, StatusCode::OK);
}
