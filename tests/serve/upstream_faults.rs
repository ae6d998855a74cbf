//! Failures of the server behind: refusals, hostile replies, silence, clients that leave.

use crate::fake_engine::{
    Behind, END, OK, Then, WORD, error_of, fake_engine, front, in_front_of, one_of_each, refusal, run, values,
};
use crate::support::{TestServer, chat, options, post};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use kimi::serve::{ServeOptions, UpstreamArgs, UpstreamModel};
use serde_json::json;
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tower::ServiceExt;

/// Refusals keep their status if the client can mend them, and have the form of the interface.
#[test]
fn refusals_have_a_status_and_the_form_of_the_interface() {
    for (answer, status, why) in [
        (refusal("400 Bad", r#"{"error":{"message":"no such field"}}"#), 400, "HTTP 400: no such field"),
        (refusal("413 Big", r#"{"message":"too long"}"#), 413, "HTTP 413: too long"),
        (refusal("422 No", r#"{"detail":[{"msg":"bad"}]}"#), 422, "HTTP 422: bad"),
        (refusal("429 Slow", r#"{"error":"slow down"}"#), 429, "HTTP 429: slow down"),
        (refusal("503 Busy", ""), 503, "HTTP 503"),
        (refusal("401 No", "no key"), 502, "HTTP 401: no key (the key is KIMI_UPSTREAM_KEY)"),
        (refusal("404 No", "{}"), 502, "HTTP 404: {}"),
        (refusal("500 Oh", "\u{1b}[2Jboom\nboom"), 502, "boom boom"),
        (
            refusal("302 There\r\nlocation: http://x/", ""),
            502,
            "redirects are not followed, set --upstream to that address",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>".to_owned(),
            502,
            "expected text/event-stream, found text/html",
        ),
        ("SSH-2.0-OpenSSH\r\n\r\n".to_owned(), 502, "upstream server: "),
        (String::new(), 502, "upstream server: "),
    ] {
        let behind = fake_engine("vllm", answer.clone(), Then::Close);
        run(async {
            let front = front(&behind.url);
            for stream in [false, true] {
                for (path, body) in one_of_each(stream) {
                    let (found, value) = front.post(path, body).await;
                    let message = error_of(path, &value);
                    assert_eq!(found.as_u16(), status, "{path}, {answer:?}: {value}");
                    assert!(
                        message.starts_with("upstream server: ") && message.contains(why),
                        "{path}: {value}"
                    );
                    assert!(!message.contains(&behind.url) && message.len() < 500, "{path}: {value}");
                }
            }
            let (_, metrics) = front.get("/metrics").await;
            assert!(
                metrics.contains(&format!("kimi_upstream_errors_total{{status=\"{status}\"}} 10")),
                "{metrics}"
            );
            assert!(metrics.contains("kimi_requests_waiting 0"), "{metrics}");
        });
    }
}

/// Replies that fail, with what follows them and a part of the error.
fn failing_replies() -> Vec<(Vec<u8>, Then, &'static str)> {
    let chunked = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let gzip = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n";
    vec![
        (format!("{OK}{WORD}").into(), Then::Close, "the reply broke off"),
        (
            format!("{chunked}{:x}\r\n{WORD}\r\n9\r\ndata", WORD.len()).into(),
            Then::Close,
            "the reply broke off",
        ),
        (format!("{OK}{WORD}data: {{\n\n").into(), Then::Close, "expected a JSON event, found {"),
        ([OK.as_bytes(), WORD.as_bytes(), b"data: \xff\xfe\n\n"].concat(), Then::Close, "expected UTF-8"),
        (
            [gzip.as_bytes(), b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xff\xff\n"].concat(),
            Then::Close,
            "expected UTF-8",
        ),
        (
            format!("{OK}{WORD}data: {{\"error\":{{\"message\":\"out of memory\",\"code\":500}}}}\n\n")
                .into(),
            Then::Close,
            "out of memory",
        ),
        (
            format!("{OK}data: {{\"choices\":[{{\"index\":7,\"delta\":{{}}}}]}}\n\n").into(),
            Then::Close,
            "expected 1 replies, found number 7",
        ),
        (
            format!("{OK}data: {{\"choices\":[{{\"delta\":{{\"tool_calls\":[{{\"id\":\"x\"}}]}}}}]}}\n\n")
                .into(),
            Then::Close,
            "expected the name of a function",
        ),
        (
            format!("{OK}data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"abort\"}}]}}\n\n").into(),
            Then::Close,
            "the reply was aborted",
        ),
        (format!("{OK}{WORD}data: ").into(), Then::Repeat, "expected"),
        (format!("{chunked}fffffffff\r\n{}", "x".repeat(4096)).into(), Then::Repeat, " bytes"),
    ]
}

/// A reply that fails in its middle ends a stream with an error in the form of the interface.
#[test]
fn replies_that_fail_end_with_an_error() {
    for (answer, then, why) in failing_replies() {
        let shown = String::from_utf8_lossy(&answer).into_owned();
        let behind = fake_engine("sglang", answer, then);
        run(async {
            let front = front(&behind.url);
            for (path, body) in one_of_each(true) {
                let start = Instant::now();
                let (status, text) = front.send(post(path, &body)).await;
                assert!(start.elapsed() < Duration::from_secs(20), "{path}: {shown:?}");
                let values = values(&text);
                let last = values.last().unwrap_or_else(|| panic!("{path}: {shown:?}: {text}"));
                let message = error_of(path, last);
                assert!(message.contains(why) && message.len() < 900, "{path}, {status}, {shown:?}: {text}");
            }
            for (path, body) in one_of_each(false) {
                let (status, value) = front.post(path, body).await;
                assert_eq!(status, StatusCode::BAD_GATEWAY, "{path}, {shown:?}: {value}");
                assert!(error_of(path, &value).contains(why), "{path}, {shown:?}: {value}");
            }
        });
    }
}

/// Silence for longer than --upstream-timeout ends a request, waiting for others does not.
#[test]
fn silence_times_out() {
    for answer in ["", OK, &format!("{OK}{WORD}")] {
        let behind = fake_engine("vllm", answer, Then::Wait);
        run(async {
            let args = UpstreamArgs { upstream_timeout: 1, ..UpstreamArgs::at(&behind.url) };
            let front = in_front_of(&args, 1);
            let ask = || front.post("/v1/chat/completions", chat("hi", json!({})));
            let (first, second) = tokio::join!(ask(), ask());
            for (status, value) in [first, second] {
                assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{answer:?}: {value}");
                let expected = "upstream server: no data within 1 s (--upstream-timeout)";
                assert_eq!(value["error"]["message"], expected, "{answer:?}");
            }
        });
        assert_eq!(behind.most.load(Ordering::SeqCst), 1);
    }
}

/// A client that leaves closes the connection to the server behind, which stops its work.
#[test]
fn a_client_that_leaves_cancels_the_request() {
    let behind = fake_engine("vllm", format!("{OK}{WORD}"), Then::Wait);
    run(async {
        let front = front(&behind.url);
        for (path, body) in one_of_each(true) {
            let response = front.router.clone().oneshot(post(path, &body)).await.unwrap();
            let mut body = response.into_body();
            let mut read = String::new();
            while !read.contains("word") {
                let frame = body.frame().await.unwrap().unwrap();
                read += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
            }
            drop(body);
            // The task that watches the client runs on this thread.
            let until = Instant::now() + Duration::from_secs(10);
            while behind.closed.try_recv().is_err() {
                assert!(Instant::now() < until, "{path}: the connection stays open");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let (_, metrics) = front.get("/metrics").await;
        assert!(
            metrics.contains("kimi_aborted_total 5") && metrics.contains("kimi_requests_running 0"),
            "{metrics}"
        );
    });
}

#[test]
fn requests_beyond_parallel_wait() {
    let behind = fake_engine("vllm", format!("{OK}{WORD}{END}"), Then::Close);
    run(async {
        let front = in_front_of(&UpstreamArgs::at(&behind.url), 2);
        let ask = || front.ok("/v1/chat/completions", chat("hi", json!({})));
        let replies = tokio::join!(ask(), ask(), ask(), ask(), ask(), ask());
        assert_eq!(replies.5["choices"][0]["message"]["content"], "word ");
    });
    assert!((1..=2).contains(&behind.most.load(Ordering::SeqCst)));
}

/// A server that does not answer is named at the start, and reported by /health later.
#[test]
fn a_missing_server_is_reported() {
    let place = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let connect = |args: &UpstreamArgs| UpstreamModel::connect(args, 1).err().unwrap().to_string();
    let url = format!("http://{place}");
    assert!(connect(&UpstreamArgs::at(&url)).starts_with(&format!("{url}/v1: ")));
    let e = connect(&UpstreamArgs::at("localhost:8000"));
    assert_eq!(e, "--upstream: expected http:// or https://, found \"localhost:8000\"");
    let behind = Behind::new(TestServer::new().app);
    let named = UpstreamArgs { upstream_model: Some("other".into()), ..UpstreamArgs::at(&behind.url()) };
    assert!(connect(&named).ends_with("expected the model \"other\", found tiny"));
    let locked = Behind::new(TestServer::with(ServeOptions { keys: vec!["k".into()], ..options() }, 8).app);
    assert!(connect(&UpstreamArgs::at(&locked.url())).ends_with("(the key is KIMI_UPSTREAM_KEY)"));
    let front =
        in_front_of(&UpstreamArgs { upstream_key: Some("k".into()), ..UpstreamArgs::at(&locked.url()) }, 1);
    run(async {
        front.ok("/v1/chat/completions", chat("hi", json!({ "max_tokens": 1 }))).await;
    });
    drop(locked);
    run(async {
        let (status, text) = front.get("/health").await;
        assert_eq!((status, &*text), (StatusCode::SERVICE_UNAVAILABLE, "{\"status\":\"unreachable\"}"));
        let (status, value) = front.post("/v1/messages", json!({ "model": "tiny", "max_tokens": 1, "messages": [{ "role": "user", "content": "hi" }] })).await;
        assert_eq!(
            (status, &value["error"]["type"]),
            (StatusCode::BAD_GATEWAY, &json!("api_error")),
            "{value}"
        );
    });
}
