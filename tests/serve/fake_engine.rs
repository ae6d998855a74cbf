//! Servers behind the tested one: a second server of this program on a socket, and fake engines.

use crate::support::{TestServer, options};
use kimi::serve::{App, ReplySource, UpstreamArgs, UpstreamModel, listen};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// A server of this program on a socket, with a runtime of its own.
pub struct Behind {
    address: SocketAddr,
    _ending: watch::Sender<bool>,
    _runtime: tokio::runtime::Runtime,
}

impl Behind {
    pub fn new(app: Arc<App>) -> Behind {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (ending, ended) = watch::channel(false);
        runtime.spawn(listen(listener, app, ended));
        Behind { address, _ending: ending, _runtime: runtime }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// A server in front of the one that `args` name.
pub fn in_front_of(args: &UpstreamArgs, parallel: usize) -> TestServer {
    let server = TestServer::loading(options());
    let upstream = UpstreamModel::connect(args, parallel).unwrap().unwrap();
    server.app.set_ready(ReplySource::Upstream(Box::new(upstream)));
    server
}

pub fn front(url: &str) -> TestServer {
    in_front_of(&UpstreamArgs::at(url), 4)
}

/// Runs a test with this server; both end outside the test's runtime.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

/// Fields that differ between two replies with the same content.
pub const OWN: [&str; 10] = [
    "id",
    "call_id",
    "item_id",
    "created",
    "created_at",
    "timings",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
];

pub fn without_own(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !OWN.contains(&name.as_str()));
            fields.values_mut().for_each(without_own);
        }
        Value::Array(items) => items.iter_mut().for_each(without_own),
        _ => {}
    }
}

/// The JSON values of a response: the body, its lines, or the data of its events.
pub fn values(text: &str) -> Vec<Value> {
    let line = |line: &str| {
        let data = line.strip_prefix("data: ").unwrap_or(line);
        let mut value: Value = serde_json::from_str(data).ok()?;
        without_own(&mut value);
        Some(value)
    };
    let mut values: Vec<Value> = text.lines().filter_map(line).collect();
    // The replies of a request alternate in any order; each is in order.
    values.sort_by_key(|value| value["choices"][0]["index"].as_u64().unwrap_or(u64::MAX));
    values
}

/// An engine that lists one model and answers every chat with the same bytes.
pub struct FakeEngine {
    pub url: String,
    /// The head and body of each chat request.
    pub requests: Receiver<String>,
    /// A message for each chat whose connection the client has closed.
    pub closed: Receiver<()>,
    pub most: Arc<AtomicUsize>,
}

/// What a fake engine does after its answer.
#[derive(Clone, Copy, PartialEq)]
pub enum Then {
    Close,
    /// Keeps the connection open until the client closes it.
    Wait,
    /// Sends the same again until the client closes.
    Repeat,
}

pub fn fake_engine(owner: &'static str, answer: impl Into<Vec<u8>>, then: Then) -> FakeEngine {
    let answer = Arc::new(answer.into());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let ((requested, requests), (closing, closed)) = (channel(), channel());
    let senders = Arc::new(Mutex::new((requested, closing)));
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let peak = most.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer, senders) = (stream.unwrap(), answer.clone(), senders.clone());
            let (running, peak) = (running.clone(), peak.clone());
            std::thread::spawn(move || {
                let Some(request) = read_request(&stream) else { return };
                if request.starts_with("GET ") {
                    let list =
                        json!({ "data": [{ "id": "tiny", "owned_by": owner, "max_model_len": 4096 }] })
                            .to_string();
                    let length = list.len();
                    let head =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    let _ = stream.write_all((head + &list).as_bytes());
                    return;
                }
                peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(10));
                running.fetch_sub(1, Ordering::SeqCst);
                let _ = senders.lock().unwrap().0.send(request);
                let mut is_open = stream.write_all(&answer).is_ok();
                while is_open && then == Then::Repeat {
                    is_open = stream.write_all(&answer).is_ok();
                }
                if then != Then::Close {
                    while is_open && stream.read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
                    let _ = senders.lock().unwrap().1.send(());
                }
            });
        }
    });
    FakeEngine { url, requests, closed, most }
}

pub fn read_request(stream: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let from = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if let Some(n) = head[from..].to_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8(body).ok()?)
}

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
pub const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"word \"}}]}\n\n";
pub const END: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

/// A chat request to each interface.
pub fn one_of_each(stream: bool) -> [(&'static str, Value); 5] {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    [
        ("/v1/chat/completions", json!({ "messages": messages, "stream": stream })),
        ("/v1/responses", json!({ "input": "hi", "stream": stream })),
        ("/v1/messages", json!({ "model": "tiny", "max_tokens": 9, "messages": messages, "stream": stream })),
        ("/api/chat", json!({ "messages": messages, "stream": stream })),
        ("/api/generate", json!({ "prompt": "hi", "stream": stream })),
    ]
}

/// The message of an error in the form of an interface.
pub fn error_of<'v>(path: &str, value: &'v Value) -> &'v str {
    let (message, kind) = match path {
        "/api/chat" | "/api/generate" => return value["error"].as_str().unwrap_or_default(),
        "/v1/responses" if value["type"] == "error" => (&value["message"], &value["code"]),
        "/v1/messages" => {
            assert_eq!(value["type"], "error", "{value}");
            (&value["error"]["message"], &value["error"]["type"])
        }
        _ => (&value["error"]["message"], &value["error"]["type"]),
    };
    assert!(kind.is_string(), "{path}: {value}");
    message.as_str().unwrap_or_default()
}

pub fn refusal(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
