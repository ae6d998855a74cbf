//! The server over sockets: connections that stall, stay open or do not read; hosts and origins that are allowed.

use crate::support::{TestServer, options};
use kimi::serve::{HostPolicy, HttpLimits, ServeOptions, listen};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::watch;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// A server that listens on loopback.
struct Site {
    address: SocketAddr,
    ending: watch::Sender<bool>,
    _runtime: Runtime,
}

impl Site {
    fn new(options: ServeOptions, ready: bool) -> Site {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let app = if ready { TestServer::with(options, 4).app } else { TestServer::loading(options).app };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (ending, ended) = watch::channel(false);
        runtime.spawn(listen(listener, app, ended));
        Site { address, ending, _runtime: runtime }
    }

    fn with(http: HttpLimits) -> Site {
        Site::new(ServeOptions { http, ..options() }, false)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(MS(10_000))).unwrap();
        stream
    }

    /// A connection on which `bytes` were sent.
    fn sent(&self, text: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    /// The whole response to a request on a new connection.
    fn ask(&self, request: &str) -> String {
        let mut answer = Vec::new();
        let mut stream = self.sent(request);
        // The connection is reset if the server refuses the body before its end.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.ask("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    fn at_limit(&self, limit: &str) -> u64 {
        self.metric(&format!("kimi_http_limit_total{{limit=\"{limit}\"}}"))
    }
}

/// The time until the server closes the connection, and what it sent before.
fn until_closed(stream: &mut TcpStream) -> (Duration, Vec<u8>) {
    let (start, mut sent) = (Instant::now(), Vec::new());
    match stream.read_to_end(&mut sent) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset, "{e}"),
    }
    (start.elapsed(), sent)
}

/// The head and body of one response on a connection that stays open.
fn answer(stream: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn short() -> HttpLimits {
    HttpLimits {
        header_timeout: MS(200),
        idle_timeout: MS(200),
        write_timeout: MS(200),
        body_stall: MS(200),
        ..HttpLimits::default()
    }
}

#[test]
fn half_open_connections_close_in_time() {
    let site = Site::with(short());
    for text in ["", "GET /health HT", "GET /health HTTP/1.1\r\nHost: localhost\r\n"] {
        let (time, sent) = until_closed(&mut site.sent(text));
        assert!(sent.is_empty() && (MS(150)..MS(3000)).contains(&time), "{text:?}: {time:?}");
    }
    assert_eq!((site.at_limit("header_timeout"), site.at_limit("idle_timeout")), (2, 1));
}

#[test]
fn idle_connections_close_in_time_and_serve_until_then() {
    let site = Site::with(HttpLimits { header_timeout: MS(100), idle_timeout: MS(600), ..short() });
    let mut stream = site.connect();
    for _ in 0..3 {
        stream.write_all(HEALTH.as_bytes()).unwrap();
        assert_eq!(answer(&mut stream).1, r#"{"status":"loading"}"#);
        std::thread::sleep(MS(200));
    }
    let (time, sent) = until_closed(&mut stream);
    assert!(sent.is_empty() && (MS(200)..MS(3000)).contains(&time), "{time:?}");
    // The limit of the first header holds for a second one that does not end.
    stream = site.sent(HEALTH);
    answer(&mut stream);
    stream.write_all(b"GET /hea").unwrap();
    assert!(until_closed(&mut stream).0 < MS(500));
    assert_eq!((site.at_limit("idle_timeout"), site.at_limit("header_timeout")), (1, 1));
}

#[test]
fn timeouts_do_not_limit_a_reply_in_progress() {
    let brief = HttpLimits { header_timeout: MS(20), idle_timeout: MS(20), write_timeout: MS(20), ..short() };
    let site = Site::new(ServeOptions { http: brief, ..options() }, true);
    let body = r#"{"prompt":"x","max_tokens":400,"ignore_eos":true}"#;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    let start = Instant::now();
    let answer = site.ask(&format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"completion_tokens\":400"),
        "{answer}"
    );
    assert!(start.elapsed() > MS(100), "{:?}: too fast to show anything", start.elapsed());
}

fn post(length: usize, text: &str) -> String {
    let head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    format!("{head}Content-Length: {length}\r\n\r\n{text}")
}

#[test]
fn bodies_that_stall_or_trickle_are_refused() {
    let site = Site::with(HttpLimits { body_rate: 1 << 20, ..short() });
    let stuck = site.ask(&post(1000, "{\"content\": \""));
    assert!(stuck.starts_with("HTTP/1.1 408 "), "{stuck}");
    assert!(stuck.contains("body: expected at least 1048576 bytes/s, found 13 bytes after 0."), "{stuck}");
    let mut stream = site.sent(&post(1000, "{"));
    let start = Instant::now();
    let trickled = (0..100).take_while(|_| {
        std::thread::sleep(MS(20));
        stream.write_all(b" ").is_ok()
    });
    let trickled = trickled.count();
    assert!(trickled < 100, "a byte each 20 ms was taken for {:?}", start.elapsed());
    assert_eq!(site.at_limit("body_timeout"), 2);
    // An unread body does not keep the connection open either.
    let unread = site.ask("GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n");
    assert!(unread.ends_with(r#"{"status":"loading"}"#), "{unread}");
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    let site = Site::with(HttpLimits::default());
    let refused = site.ask(&post(usize::MAX / 2, ""));
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    assert!(refused.contains("body: expected at most 1048576 bytes, found more (--max-body)"), "{refused}");
}

#[test]
fn a_client_that_does_not_read_is_closed() {
    let site = Site::with(short());
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stream = site.connect();
    stream.set_write_timeout(Some(MS(5000))).unwrap();
    let start = Instant::now();
    // The write succeeds or blocks until the server closes the connection.
    while stream.write_all(request.as_bytes()).is_ok() {
        assert!(start.elapsed() < MS(30_000), "open after 30 s");
    }
    assert_eq!(site.at_limit("write_timeout"), 1);
}

#[test]
fn the_longest_idle_connections_are_evicted() {
    let site = Site::with(HttpLimits { connections: 8, ..HttpLimits::default() });
    let mut halves: Vec<_> = (0..60).map(|_| site.sent("GET /health HT")).collect();
    // While all connections are in use, a response closes its own.
    let last = halves.last_mut().unwrap();
    last.write_all(b"TP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let (head, _) = answer(last);
    assert!(head.contains("connection: close"), "{head}");
    let start = Instant::now();
    assert_eq!(answer(&mut site.sent(HEALTH)).1, r#"{"status":"loading"}"#);
    assert!(start.elapsed() < MS(2000), "{:?}", start.elapsed());
    assert_eq!(until_closed(&mut halves[0]).1, b"");
    assert!(site.at_limit("evicted") >= 52);
    assert!(site.metric("kimi_http_connections") <= 8);
}

#[test]
fn bodies_share_a_memory_limit() {
    let limits = HttpLimits { body_bytes: 256 << 10, body_wait: MS(200), ..HttpLimits::default() };
    let site = Site::new(ServeOptions { http: limits, ..options() }, true);
    let large = format!("{{\"content\":\"{}\"}}", "x ".repeat(100_000));
    let holding = site.sent(&post(1 << 20, &large));
    std::thread::sleep(MS(300));
    let asked = post(large.len(), &large).replacen("Host", "Connection: close\r\nHost", 1);
    let refused = site.ask(&asked);
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1"), "{refused}");
    let why = "request bodies fill their memory of 262144 bytes; try again later";
    assert!(refused.contains(why), "{refused}");
    let small = r#"{"content":"x"}"#;
    let small = site.ask(&post(small.len(), small).replacen("Host", "Connection: close\r\nHost", 1));
    assert!(small.starts_with("HTTP/1.1 200 "), "{small}");
    drop(holding);
    std::thread::sleep(MS(300));
    for _ in 0..3 {
        let taken = site.ask(&asked);
        assert!(taken.starts_with("HTTP/1.1 200 "), "{}", &taken[..taken.len().min(500)]);
    }
    assert_eq!(site.at_limit("body_memory"), 1);
}

#[test]
fn headers_are_limited_in_size_and_number() {
    let site = Site::with(HttpLimits::default());
    for headers in [format!("X: {}\r\n", "x".repeat(40 << 10)), "X: y\r\n".repeat(101)] {
        let refused = site.ask(&format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
        assert!(refused.starts_with("HTTP/1.1 431 "), "{refused}");
    }
}

#[test]
fn open_connections_do_not_delay_shutdown() {
    let site = Site::with(HttpLimits::default());
    let mut idle = site.sent(HEALTH);
    answer(&mut idle);
    site.ending.send(true).unwrap();
    assert_eq!(until_closed(&mut idle).1, b"");
    let start = Instant::now();
    while TcpStream::connect(site.address).is_ok() {
        assert!(start.elapsed() < MS(5000), "it still listens");
    }
}

#[test]
fn a_server_on_loopback_serves_its_own_names_and_pages() {
    let hosts = HostPolicy::new([127, 0, 0, 1].into(), vec!["kimi.lan".into()]);
    let cors = vec!["https://page.example".to_owned()];
    let site = Site::new(ServeOptions { hosts, cors, ..options() }, true);
    for (path, headers, status) in [
        ("/v1/models", "Host: localhost\r\n", 200),
        ("/v1/models", "Host: 127.0.0.1:8080\r\n", 200),
        ("/v1/models", "Host: [::1]:9\r\n", 200),
        ("/v1/models", "Host: KIMI.lan\r\n", 200),
        ("/v1/models", "Host: evil.example\r\n", 403),
        ("/health", "Host: evil.example:8080\r\n", 403),
        ("/metrics", "Host: evil.example\r\n", 403),
        ("/", "Host: evil.example\r\n", 403),
        ("/none", "Host: evil.example\r\n", 403),
        ("/v1/models", "Host: 192.168.0.9\r\n", 403),
        ("/v1/models", "", 400),
        ("/v1/models", "Host: localhost\r\nHost: evil.example\r\n", 400),
        ("/v1/models", "Host:\r\n", 403),
        ("http://evil.example/v1/models", "Host: localhost\r\n", 403),
        ("http://localhost/v1/models", "Host: localhost\r\n", 200),
        ("/v1/models", "Host: localhost\r\nOrigin: http://localhost:3000\r\n", 200),
        ("/v1/models", "Host: localhost\r\nOrigin: https://page.example\r\n", 200),
        ("/v1/models", "Host: localhost\r\nOrigin: null\r\n", 200),
        ("/v1/models", "Host: localhost\r\nOrigin: http://evil.example\r\n", 403),
        ("/v1/models", "Host: localhost\r\nOrigin: https://localhost.evil.example\r\n", 403),
    ] {
        let answer = site.ask(&format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {headers}: {answer}");
        if status == 403 {
            let error: Value = serde_json::from_str(answer.rsplit("\r\n\r\n").next().unwrap()).unwrap();
            assert!(error["error"]["message"].as_str().unwrap().contains("--allow-host"), "{error}");
        }
    }
    assert!(site.at_limit("host") >= 6 && site.at_limit("origin") == 2);
}

#[test]
fn a_server_on_other_addresses_serves_any_name_by_default() {
    let ask =
        |site: &Site, host: &str| site.ask(&format!("GET / HTTP/1.1\r\n{host}Connection: close\r\n\r\n"));
    let any =
        Site::new(ServeOptions { hosts: HostPolicy::new([0, 0, 0, 0].into(), vec![]), ..options() }, false);
    assert!(ask(&any, "Host: gpu-box:8080\r\n").starts_with("HTTP/1.1 200 "));
    assert!(ask(&any, "Host: x\r\nOrigin: http://page.example\r\n").starts_with("HTTP/1.1 200 "));
    assert!(ask(&any, "").starts_with("HTTP/1.1 400 "));
    let named = HostPolicy::new([0, 0, 0, 0].into(), vec!["gpu-box".into()]);
    let named = Site::new(ServeOptions { hosts: named, ..options() }, false);
    assert!(ask(&named, "Host: gpu-box:8080\r\n").starts_with("HTTP/1.1 200 "));
    assert!(ask(&named, "Host: other\r\n").starts_with("HTTP/1.1 403 "));
}

#[test]
fn errors_are_short_json_lines() {
    let site = Site::new(options(), true);
    let get = |path: &str| {
        let answer = site.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let error: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{path}: {e}: {answer}"));
        (head[9..12].to_owned(), error["error"]["message"].as_str().unwrap().to_owned())
    };
    let (status, message) = get("/v1/models/%ff");
    assert_eq!(status, "400");
    assert_eq!(message, "model: Invalid URL: Invalid UTF-8 in `model`");
    let (status, message) = get("/tokenize");
    assert_eq!((status.as_str(), message.as_str()), ("405", "/tokenize: method GET not allowed"));
    let long = "x".repeat(20_000);
    for path in [format!("/{long}"), format!("/v1/models/{long}")] {
        let (status, message) = get(&path);
        assert!(status == "404" && message.len() < 300, "{message}");
    }
    assert_eq!(get("/v1/models/%1b%5b2K%c2%9b").1, "model: expected tiny, found ^[[2K<U+009B>");
}
