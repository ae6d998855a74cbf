//! The server as a process: few file descriptors, bodies that are expensive in memory or time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

/// A server process with the built-in model, and its log.
struct Process {
    child: Child,
    address: String,
    log: Mutex<mpsc::Receiver<String>>,
}

impl Process {
    fn start(shell: &str) -> Process {
        let command =
            format!("{shell} exec \"$0\" serve --port 0 --no-cache --device cpu --threads 1 --ctx 1024");
        let mut child = Command::new("sh")
            .args(["-c", &command, env!("CARGO_BIN_EXE_kimi")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let mut process = Process { child, address: String::new(), log: Mutex::new(log) };
        let line = process.line("listening address=");
        process.address = line.split("address=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        process.line(" ready ");
        process
    }

    /// The next line of the log that contains `part`.
    fn line(&self, part: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let next = self.log.lock().unwrap().recv_timeout(end - Instant::now());
            let line = next.unwrap_or_else(|e| panic!("{part}: {e}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The duration of a health check.
    fn health(&self) -> Duration {
        let start = Instant::now();
        let answer = self.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        start.elapsed()
    }

    fn post(&self, path: &str, body: &str) -> String {
        let head = "Host: localhost\r\nConnection: close\r\nContent-Type: application/json";
        let head = format!("POST {path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n", body.len());
        self.ask(&[head.as_bytes(), body.as_bytes()].concat())
    }

    /// A line of /proc/PID/status in MiB.
    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().split(' ').next().unwrap().parse::<u64>().unwrap() >> 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn half_open_connections_do_not_take_the_descriptors() {
    let server = Process::start("ulimit -n 64;");
    let open = |text: &[u8]| {
        let mut stream = server.connect();
        stream.write_all(text).unwrap();
        stream
    };
    let held: Vec<_> = (0..1100).map(|_| open(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")).collect();
    let time = server.health();
    assert!(time < Duration::from_secs(2), "{time:?}");
    let line = server.line("limit=\"evicted\"");
    assert!(line.contains("WARN") && line.contains("most=32"), "{line}");
    drop(held);
    assert!(server.health() < Duration::from_secs(2));
    let answer = server.post("/v1/completions", r#"{"prompt":"x","max_tokens":2}"#);
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

/// JSON whose values take a hundred times its size in memory is refused before they are allocated.
#[test]
fn millions_of_json_values_are_refused_quickly() {
    let server = Process::start("");
    let before = server.memory("VmRSS");
    let values = r#"{"":1},"#.repeat(4_400_000);
    let parameters = format!("{{\"type\":\"object\",\"enum\":[{}0]}}", &values[..values.len() * 29 / 31]);
    let tool =
        format!("{{\"type\":\"function\",\"function\":{{\"name\":\"f\",\"parameters\":{parameters}}}}}");
    let body = format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],\"tools\":[{tool}]}}");
    let start = Instant::now();
    let answer = server.post("/v1/chat/completions", &body);
    let (time, peak) = (start.elapsed(), server.memory("VmHWM"));
    let why = "body: expected at most 200000 objects, arrays, keys and strings, found more";
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(why), "{answer}");
    println!("{} MB: {time:?}, {} MiB over {before}", body.len() / 1_000_000, peak - before);
    assert!(time < Duration::from_secs(10) && peak < before + 300, "{time:?}, {before} -> {peak} MiB");
}
