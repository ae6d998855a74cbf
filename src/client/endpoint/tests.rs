//! Tests the client with well-behaved and hostile servers.

use super::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

const SAMPLING: SamplingOptions = SamplingOptions {
    temperature: Some(0.5),
    top_k: None,
    top_p: None,
    min_p: None,
    repeat_penalty: None,
    repeat_last_n: Some(64),
    presence_penalty: None,
    frequency_penalty: Some(0.25),
    seed: Some(6),
};

/// Serves one connection and runs `script` after the request. The handle returns the request.
fn server(script: impl FnOnce(&mut TcpStream) + Send + 'static) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let handle = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let from = head.len();
            reader.read_line(&mut head).unwrap();
            if let Some(n) = head[from..].to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        script(&mut stream);
        head + &String::from_utf8(body).unwrap()
    });
    (url, handle)
}

/// Serves one connection with a fixed response.
fn serve(reply: &'static str) -> (String, JoinHandle<String>) {
    server(|stream| stream.write_all(reply.as_bytes()).unwrap())
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint::new(url, "m", 1).unwrap()
}

fn chat(url: &str, on: &mut dyn FnMut(Option<ReplyEvent>) -> ControlFlow<()>) -> Result<ReplySummary> {
    endpoint(url).chat(&[Message::new("user", "hi")], &SAMPLING, 9, on)
}

fn text_of(event: &Option<ReplyEvent>) -> &str {
    match event {
        Some(ReplyEvent::Reasoning(text) | ReplyEvent::Text(text)) => text,
        _ => "",
    }
}

fn parts(reply: &'static str) -> (Result<ReplySummary>, Vec<String>, String) {
    let (url, server) = serve(reply);
    let mut all = Vec::new();
    let summary = chat(&url, &mut |event| {
        match event {
            Some(ReplyEvent::Reasoning(text)) => all.push(format!("({text})")),
            Some(ReplyEvent::Text(text)) => all.push(text),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    (summary, all, server.join().unwrap())
}

#[test]
fn a_stream_is_parsed_and_counted() {
    let (summary, all, sent) = parts(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n\
         data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
         data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
         data: {\"choices\":[{\"delta\":{\"content\":\"你\"},\"finish_reason\":\"length\"}]}\n\n\
         data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n\
         data: [DONE]\n\n",
    );
    assert_eq!(all, ["(hm)", "a", "你"]);
    assert_eq!(
        summary.unwrap(),
        ReplySummary { prompt: 7, cached: 4, completion: 2, cut: true, stopped: false }
    );
    assert!(sent.starts_with("POST /v1/chat/completions"), "{sent}");
    assert!(sent.contains(r#""messages":[{"role":"user","content":"hi"}]"#), "{sent}");
    let set = [r#""max_tokens":9"#, r#""temperature":0.5"#, r#""frequency_penalty":0.25"#, r#""seed":3"#];
    assert!(set.iter().all(|field| sent.contains(field)), "{sent}");
    // What the user did not set is left to the server.
    let unset = ["top_k", "top_p", "min_p", "repeat", "presence"];
    assert!(!unset.iter().any(|field| sent.contains(field)), "{sent}");
}

#[test]
fn errors_give_the_reason() {
    let (summary, _, _) =
        parts("HTTP/1.1 404 Not Found\r\ncontent-length: 33\r\n\r\n{\"error\":{\"message\":\"no model\"}} ");
    let e = summary.unwrap_err().to_string();
    assert!(e.ends_with(": HTTP 404: no model"), "{e}");
    let (summary, _, _) =
        parts("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: {\"error\":{\"message\":\"too long\"}}\n\n");
    assert!(summary.unwrap_err().to_string().ends_with("too long"));
    assert!(Endpoint::new("localhost:8000", "m", 9).is_err());
}

#[test]
fn the_model_is_looked_up() {
    let models =
        "HTTP/1.1 200 OK\r\ncontent-length: 45\r\n\r\n{\"data\":[{\"id\":\"m\",\"max_model_len\":1048576}]}";
    let (url, _server) = serve(models);
    assert_eq!(endpoint(&url).context().unwrap(), Some(1_048_576));
    let (url, _server) = serve(models);
    let e = Endpoint::new(&(url + "/v1/"), "n", 9).unwrap().context().unwrap_err().to_string();
    assert!(e.ends_with("expected the model \"n\", found m"), "{e}");
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"word \"}}]}\n\n";

/// Sends `head`, then `part` repeatedly, every `pause` or as fast as possible, until the client closes.
fn endless(head: &'static str, part: &'static str, pause: Duration) -> (String, JoinHandle<String>) {
    server(move |stream| {
        stream.write_all(head.as_bytes()).unwrap();
        let part = if pause.is_zero() { part.repeat(1 + 4096 / part.len()) } else { part.to_owned() };
        let until = Instant::now() + Duration::from_secs(60);
        while stream.write_all(part.as_bytes()).is_ok() {
            std::thread::sleep(pause);
            assert!(Instant::now() < until, "the client takes {head:?} and {part:?} without end");
        }
    })
}

/// Returns how the client ends an endless reply.
fn ended(head: &'static str, part: &'static str, pause: Duration) -> Result<ReplySummary> {
    let (url, server) = endless(head, part, pause);
    let began = Instant::now();
    // Without pauses the limits in bytes apply, however slow the machine.
    let timeout = if pause.is_zero() { 5 } else { 1 };
    let endpoint = Endpoint::new(&url, "m", timeout).unwrap();
    let summary =
        endpoint.chat(&[Message::new("user", "hi")], &SAMPLING, 9, &mut |_| ControlFlow::Continue(()));
    assert!(began.elapsed() < Duration::from_secs(20), "{head:?}, {part:?}: {summary:?}");
    server.join().unwrap();
    summary
}

#[test]
fn endless_streams_are_ended() {
    let cases = [
        (OK, "a", "expected lines of at most 1048576 bytes, found a longer one"),
        (OK, "data: a", "expected lines of at most 1048576 bytes, found a longer one"),
        (OK, ": waiting\n", "expected at most 1085440 bytes for so many tokens, found more"),
        (OK, "data: {}\n\n", "expected at most 1085440 bytes for so many tokens, found more"),
        (OK, "\n", "expected at most 1085440 bytes for so many tokens, found more"),
        (OK, "\u{80}", "expected lines of at most 1048576 bytes, found a longer one"),
        ("HTTP/1.1 500 Oh\r\n\r\n", "a", ": HTTP 500: "),
        ("HTTP/1.1 200 OK\r\nx: ", "a", ""),
        ("HTTP/1.1 200 OK\r\n", "x: y\r\n", ""),
        ("HTTP/1.1 200 ", "a", ""),
        (CHUNKED, "1", ""),
        (CHUNKED, "1;x=y", ""),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", "x: y\r\n", ""),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffff\r\n", "a", "at most 1048576 bytes"),
        ("", "HTTP/1.1 100 Continue\r\n\r\n", ""),
    ];
    for (head, part, expected) in cases {
        match ended(head, part, Duration::ZERO) {
            Err(e) => {
                let e = format!("{e:#}");
                assert!(e.contains(expected) && e.len() < 800, "{head:?}, {part:?}: {e}");
            }
            // Endless trailers follow a complete reply.
            Ok(summary) => {
                assert!(head.ends_with("0\r\n") && summary == ReplySummary::default(), "{head:?}, {part:?}")
            }
        }
    }
}

#[test]
fn endless_events_are_cut_at_the_limit() {
    let (url, server) = endless(OK, EVENT, Duration::ZERO);
    let mut bytes = 0;
    let summary = chat(&url, &mut |event| {
        bytes += text_of(&event).len();
        ControlFlow::Continue(())
    });
    server.join().unwrap();
    assert!(summary.unwrap().cut && (4000..6000).contains(&bytes), "{bytes}");
}

#[test]
fn silence_times_out() {
    let tenth = Duration::from_millis(100);
    for (head, part) in [
        ("HTTP/1.1 200 OK\r\nx: ", "a"),
        (OK, ": waiting\n\n"),
        (OK, "data: {}\n\n"),
        (OK, "a"),
        ("HTTP/1.1 500 Oh\r\n\r\n", "a"),
    ] {
        let e = ended(head, part, tenth).unwrap_err().to_string();
        assert!(e.ends_with(": no text within 1 s (--timeout)"), "{head:?}, {part:?}: {e}");
    }
    for sent in ["", OK, "HTTP/1.1 200 OK\r\n"] {
        let (url, server) = server(move |stream| {
            stream.write_all(sent.as_bytes()).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "the client closes");
        });
        let e = chat(&url, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(e.ends_with(": no text within 1 s (--timeout)"), "{sent:?}: {e}");
        server.join().unwrap();
    }
    let (url, server) = endless("HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n", " ", tenth);
    let e = endpoint(&url).context().unwrap_err().to_string();
    assert!(e.ends_with(": no answer within 1 s"), "{e}");
    server.join().unwrap();
}

/// A slow reply does not time out.
#[test]
fn a_slow_reply_is_read_completely() {
    let (url, server) = server(|stream| {
        stream.write_all(OK.as_bytes()).unwrap();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(400));
            stream.write_all(EVENT.as_bytes()).unwrap();
        }
        stream.write_all(b"data: [DONE]\n\n").unwrap();
    });
    let mut text = String::new();
    let summary = chat(&url, &mut |event| {
        text += text_of(&event);
        ControlFlow::Continue(())
    });
    server.join().unwrap();
    assert_eq!((summary.unwrap(), &text[..]), (ReplySummary::default(), "word word word word word "));
}

#[test]
fn a_stopped_request_closes_its_connection() {
    for sent in ["", OK] {
        let (url, server) = server(move |stream| {
            stream.write_all(sent.as_bytes()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the client closes");
        });
        let summary = Endpoint::new(&url, "m", 600).unwrap().chat(
            &[Message::new("user", "hi")],
            &SAMPLING,
            9,
            &mut |_| ControlFlow::Break(()),
        );
        assert!(summary.unwrap().stopped);
        server.join().unwrap();
    }
}

#[test]
fn redirects_are_not_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let place = elsewhere.local_addr().unwrap();
    for to in [format!("http://{place}/v1/models"), "file:///etc/passwd".into(), "/v1/other".into()] {
        for status in [301, 302, 303, 307, 308] {
            let expected =
                format!("HTTP {status} to {to}; redirects are not followed, set --url to that address");
            let redirect = format!("HTTP/1.1 {status} X\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            let with_key = |redirect: String| {
                let (url, server) = server(move |stream| stream.write_all(redirect.as_bytes()).unwrap());
                (Endpoint { key: Some("secret".into()), ..endpoint(&url) }, server)
            };
            let (remote, server) = with_key(redirect.clone());
            let e = remote.context().unwrap_err().to_string();
            assert!(e.ends_with(&expected), "{e}");
            assert!(server.join().unwrap().contains("authorization: Bearer secret"));
            let (remote, server) = with_key(redirect);
            let go = &mut |_: Option<ReplyEvent>| ControlFlow::Continue(());
            let e = remote.chat(&[Message::new("user", "hi")], &SAMPLING, 9, go).unwrap_err().to_string();
            assert!(e.ends_with(&expected), "{e}");
            server.join().unwrap();
        }
    }
    assert!(elsewhere.accept().is_err(), "nothing was sent to another host");
}

#[test]
fn lists_of_models_are_bounded() {
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"data\":[";
    let (url, server) = endless(head, "{\"id\":\"x\"},", Duration::ZERO);
    let e = Endpoint::new(&url, "m", 60).unwrap().context().unwrap_err().to_string();
    assert!(e.ends_with("/models: expected at most 4194304 bytes, found more"), "{e}");
    server.join().unwrap();
    let ids: Vec<String> = (0..1000).map(|i| format!("{{\"id\":\"model-{i}\"}}")).collect();
    let list = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{{\"data\":[{}]}}", ids.join(","));
    let (url, _server) = server_of(list);
    let e = endpoint(&url).context().unwrap_err().to_string();
    assert!(e.contains("found model-0, model-1") && e.len() < 700, "{e}");
}

fn server_of(reply: String) -> (String, JoinHandle<String>) {
    server(move |stream| stream.write_all(reply.as_bytes()).unwrap())
}

/// Compressed bodies were not requested, so they are refused as malformed and never decompressed.
#[test]
fn hostile_events_are_refused_with_a_short_error() {
    let long = "x".repeat(100_000);
    for (body, expected) in [
        (format!("data: {}\n\n", "[".repeat(100_000)), "expected a JSON event, found [[["),
        (format!("data: {long}\n\n"), "expected a JSON event, found xxx"),
        (format!("data: {{\"error\":{{\"message\":\"{long}\"}}}}\n\n"), "xxx"),
        ("data: \u{1}\n\n".into(), "expected a JSON event"),
    ] {
        let (url, server) = server_of(format!("{OK}{body}"));
        let e = format!("{:#}", chat(&url, &mut |_| ControlFlow::Continue(())).unwrap_err());
        assert!(e.contains(expected) && e.len() < 900, "{e}");
        server.join().unwrap();
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n";
    let (url, server) = server(move |stream| {
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xff\xff\n").unwrap();
    });
    let e = format!("{:#}", chat(&url, &mut |_| ControlFlow::Continue(())).unwrap_err());
    assert!(e.contains("expected UTF-8"), "{e}");
    server.join().unwrap();
}

#[test]
fn invalid_counts_are_ignored() {
    let (summary, _, _) = parts(
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n\
         data: {\"usage\":{\"prompt_tokens\":18446744073709551615,\"completion_tokens\":-1}}\n\n\
         data: [DONE]\n\n",
    );
    assert_eq!(summary.unwrap(), ReplySummary::default());
}

/// A reply that ends without a reason was cut by the endpoint or on its way.
#[test]
fn a_cut_reply_is_an_error() {
    for end in ["", "data: {\"choices\":[{\"delta\":{},\"finish_reason\":null}]}\n\n"] {
        let (url, server) = server_of(format!("{OK}{EVENT}{end}"));
        let e = chat(&url, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(e.ends_with(": the reply broke off: the stream ended without a finish_reason"), "{e}");
        server.join().unwrap();
    }
    let last = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let (url, server) = server_of(format!("{OK}{EVENT}{last}"));
    assert!(chat(&url, &mut |_| ControlFlow::Continue(())).is_ok());
    server.join().unwrap();
    let (url, server) = server_of(format!("{CHUNKED}ff\r\n{EVENT}"));
    let e = chat(&url, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(e.contains(": the reply broke off: "), "{e}");
    server.join().unwrap();
}

#[test]
fn other_servers_are_named() {
    for (kind, body) in [("text/html", "<html>"), ("application/json", "{\"choices\":[]}")] {
        let (url, server) =
            server_of(format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{body}"));
        let e = chat(&url, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(e.ends_with(&format!("/chat/completions: expected text/event-stream, found {kind}")), "{e}");
        server.join().unwrap();
    }
    let (url, server) =
        server_of("HTTP/1.1 401 No\r\nconnection: close\r\n\r\n{\"error\":\"bad key\"}".into());
    let e = endpoint(&url).context().unwrap_err().to_string();
    assert!(e.ends_with(": HTTP 401: bad key (the key is OPENAI_API_KEY)"), "{e}");
    server.join().unwrap();
    let e = Endpoint::new("https://me:pass@host/v1", "m", 9).err().unwrap().to_string();
    assert_eq!(e, "--url: expected a URL without a user name and password");
}

/// Without a name, the only model of the list is used.
#[test]
fn the_only_model_is_selected() {
    let select = |list: &str, name| {
        let (url, server) =
            server_of(format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{{\"data\":[{list}]}}"));
        let mut endpoint = Endpoint::new(&url, "", 9).unwrap();
        let selected = endpoint.select(name).map_err(|e| e.to_string());
        server.join().unwrap();
        (selected.map(|model| (model.id, model.context)), endpoint.repeat_penalty_name())
    };
    let one = r#"{"id":"a","owned_by":"llamacpp","meta":{"n_ctx":4096}}"#;
    assert_eq!(select(one, None), (Ok(("a".to_owned(), Some(4096))), "repeat_penalty"));
    let two = r#"{"id":"a","owned_by":"vllm"},{"id":"b"}"#;
    assert!(select(two, None).0.unwrap_err().ends_with(": expected -m with one of a, b"));
    assert_eq!(select(two, Some("a")), (Ok(("a".to_owned(), None)), "repetition_penalty"));
    assert!(select("", None).0.unwrap_err().ends_with(": lists no models, set -m"));
    assert_eq!(select("", Some("x")).0, Ok(("x".to_owned(), None)));
}
