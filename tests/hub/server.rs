//! A small Hugging Face hub on loopback: its API, and a content network on another port to which large files redirect.
//!
//! Faults can be switched on: cut-off bodies, wrong bytes, rate limits, no ranges, expired addresses, stalls.

#![allow(dead_code, reason = "the example that serves files causes no faults")]

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The commit of every repository.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The token that opens gated repositories.
pub const TOKEN: &str = "hf_testtoken";
/// Files from this size on are in large file storage.
const LARGE: usize = 1000;
/// Bytes that are written at once.
const WRITE: usize = 64 << 10;

/// A repository with its files.
#[derive(Clone, Default)]
pub struct Repo {
    pub files: Vec<(String, Vec<u8>)>,
    /// Files that are only listed, with their sizes.
    pub listed: Vec<(String, u64)>,
    pub gated: bool,
    pub architecture: Option<&'static str>,
}

/// The faults of the hub and its content network.
#[derive(Default)]
pub struct Faults {
    /// Requests that get status 429, and its `Retry-After`.
    pub rate_limited: AtomicUsize,
    pub retry_after: AtomicUsize,
    /// Requests to the content network that get status 403.
    pub expired: AtomicUsize,
    /// Bytes of a body after which its connection closes; 0 for none.
    pub cut_after: AtomicUsize,
    /// Bytes of a body after which the server stops sending; 0 for none.
    pub stall_after: AtomicUsize,
    pub no_ranges: AtomicBool,
    pub wrong_bytes: AtomicBool,
    /// Entries per page of a list; 0 for all.
    pub page: AtomicUsize,
    /// Replaces the ETag of large files.
    pub etag: Mutex<Option<&'static str>>,
    /// Replaces the location of large files.
    pub location: Mutex<Option<String>>,
    /// Replaces the response to `/api/` addresses.
    pub api: Mutex<Option<String>>,
    /// Replaces the address of the next page.
    pub next: Mutex<Option<String>>,
}

/// A request that the hub or the content network received.
#[derive(Clone, Debug)]
pub struct HubRequest {
    pub from_hub: bool,
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// The running servers; their threads end with the test.
pub struct TestHub {
    pub url: String,
    pub state: Arc<HubState>,
}

pub struct HubState {
    repos: HashMap<String, Repo>,
    /// Large files by their SHA-256.
    content: HashMap<String, Vec<u8>>,
    /// SHA-256 and Git object id of each file, by repository and path.
    sums: HashMap<(String, String), [String; 2]>,
    pub faults: Faults,
    pub requests: Mutex<Vec<HubRequest>>,
    /// Bytes of bodies that the content network sent.
    pub sent: AtomicU64,
    content_url: String,
}

pub fn sha256(bytes: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    hex(context)
}

fn git_id(bytes: &[u8]) -> String {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {}\0", bytes.len()).as_bytes());
    context.update(bytes);
    hex(context)
}

fn hex(context: Context) -> String {
    context.finish().as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl TestHub {
    pub fn start(repos: &[(&str, Repo)]) -> TestHub {
        let [hub, network] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (mut sums, mut content) = (HashMap::new(), HashMap::new());
        for (name, repo) in repos {
            for (path, bytes) in &repo.files {
                let sum = sha256(bytes);
                sums.insert(((*name).to_owned(), path.clone()), [sum.clone(), git_id(bytes)]);
                content.insert(sum, bytes.clone());
            }
        }
        let state = Arc::new(HubState {
            repos: repos.iter().map(|(name, repo)| ((*name).to_owned(), repo.clone())).collect(),
            content,
            sums,
            faults: Faults::default(),
            requests: Mutex::default(),
            sent: AtomicU64::new(0),
            content_url: url(&network),
        });
        let hub_url = url(&hub);
        for (listener, from_hub) in [(hub, true), (network, false)] {
            let state = state.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    thread::spawn(move || state.connection(&stream, from_hub));
                }
            });
        }
        TestHub { url: hub_url, state }
    }

    pub fn faults(&self) -> &Faults {
        &self.state.faults
    }

    pub fn requests(&self) -> Vec<HubRequest> {
        self.state.requests.lock().unwrap().clone()
    }
}

/// A response: status, headers, body.
type HubReply = (u16, Vec<(String, String)>, Vec<u8>);

impl HubState {
    /// Serves requests of one connection until it closes.
    fn connection(&self, stream: &TcpStream, from_hub: bool) -> Option<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let request = read_request(&mut reader, from_hub)?;
            self.requests.lock().unwrap().push(request.clone());
            let (status, headers, body) = match from_hub {
                true => self.hub_reply(&request),
                false => self.content_reply(&request),
            };
            let has_length = headers.iter().any(|(name, _)| name == "Content-Length");
            let mut head = format!("HTTP/1.1 {status} X\r\n");
            headers.iter().for_each(|(name, value)| {
                let _ = write!(head, "{name}: {value}\r\n");
            });
            if !has_length {
                let _ = write!(head, "Content-Length: {}\r\n", body.len());
            }
            (&mut &*stream).write_all((head + "\r\n").as_bytes()).ok()?;
            if request.method != "HEAD" {
                self.send_body(stream, &body, from_hub)?;
            }
        }
    }

    fn send_body(&self, mut stream: &TcpStream, body: &[u8], from_hub: bool) -> Option<()> {
        let limit = |fault: &AtomicUsize| Some(fault.load(SeqCst)).filter(|n| *n > 0 && !from_hub);
        let (cut, stall) = (limit(&self.faults.cut_after), limit(&self.faults.stall_after));
        let end = cut.into_iter().chain(stall).min().unwrap_or(usize::MAX).min(body.len());
        for piece in body[..end].chunks(WRITE) {
            stream.write_all(piece).ok()?;
            if !from_hub {
                self.sent.fetch_add(piece.len() as u64, SeqCst);
            }
        }
        if stall.is_some() && end < body.len() {
            // Until the client closes.
            let _ = stream.read(&mut [0]);
            return None;
        }
        (end == body.len()).then_some(())
    }

    fn hub_reply(&self, request: &HubRequest) -> HubReply {
        if take(&self.faults.rate_limited) {
            let after = self.faults.retry_after.load(SeqCst).to_string();
            return (429, vec![("Retry-After".into(), after)], b"slow down".to_vec());
        }
        let path = request.path.split('?').next().unwrap();
        let may_see_gated = request.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"));
        let error =
            |status: u16, code: &str| (status, vec![("X-Error-Code".into(), code.into())], Vec::new());
        if let Some(rest) = path.strip_prefix("/api/models/") {
            let parts: Vec<&str> = rest.splitn(4, '/').collect();
            let name = parts[..2].join("/");
            let Some(repo) = self.repos.get(&name) else {
                return if may_see_gated { error(404, "RepoNotFound") } else { error(401, "RepoNotFound") };
            };
            if let Some(text) = &*self.faults.api.lock().unwrap() {
                return (200, Vec::new(), text.clone().into_bytes());
            }
            return match parts[2] {
                "revision" if !["main", COMMIT].contains(&parts[3]) => error(404, "RevisionNotFound"),
                "revision" => (200, Vec::new(), info(&name, repo).into_bytes()),
                _ => self.tree(&name, &request.path),
            };
        }
        let parts: Vec<&str> = path[1..].splitn(5, '/').collect();
        let [user, name, "resolve", _, file] = parts[..] else { return error(404, "EntryNotFound") };
        let name = format!("{user}/{name}");
        let Some(repo) = self.repos.get(&name) else { return error(404, "RepoNotFound") };
        if repo.gated && !may_see_gated {
            let status = if request.authorization.is_some() { 403 } else { 401 };
            return error(status, "GatedRepo");
        }
        match repo.files.iter().find(|(path, _)| *path == file.replace("%20", " ")) {
            Some((path, bytes)) => self.resolved(request, bytes, &self.sums[&(name, path.clone())]),
            None => error(404, "EntryNotFound"),
        }
    }

    /// The response to the address of a file: its bytes, or a redirect to the content network.
    fn resolved(&self, request: &HubRequest, bytes: &[u8], [sum, git]: &[String; 2]) -> HubReply {
        let mut headers = vec![("X-Repo-Commit".to_owned(), COMMIT.to_owned())];
        if bytes.len() < LARGE {
            headers.push(("ETag".into(), format!("\"{git}\"")));
            if request.method == "HEAD" {
                headers.push(("Content-Length".into(), bytes.len().to_string()));
            }
            return ranged(request, bytes, headers);
        }
        let etag = self.faults.etag.lock().unwrap().map_or(sum.clone(), str::to_owned);
        let location = self.faults.location.lock().unwrap().clone();
        headers.extend([
            ("ETag".into(), "\"not-the-sum\"".into()),
            ("X-Linked-Etag".into(), format!("\"{etag}\"")),
            ("X-Linked-Size".into(), bytes.len().to_string()),
            (
                "Location".into(),
                location.unwrap_or_else(|| format!("{}/{sum}?signature=1", self.content_url)),
            ),
        ]);
        (302, headers, Vec::new())
    }

    fn content_reply(&self, request: &HubRequest) -> HubReply {
        if take(&self.faults.expired) {
            return (403, Vec::new(), b"expired".to_vec());
        }
        let sum = request.path[1..].split('?').next().unwrap();
        let Some(bytes) = self.content.get(sum) else { return (404, Vec::new(), Vec::new()) };
        if self.faults.no_ranges.load(SeqCst) {
            return (200, Vec::new(), bytes.clone());
        }
        let mut reply = ranged(request, bytes, Vec::new());
        reply.2[7] ^= u8::from(self.faults.wrong_bytes.load(SeqCst));
        reply
    }

    fn tree(&self, name: &str, path: &str) -> HubReply {
        let repo = &self.repos[name];
        let stored = repo.files.iter().map(|(path, bytes)| {
            let ([sum, git], size) = (&self.sums[&(name.to_owned(), path.clone())], bytes.len());
            let lfs = format!(r#","lfs":{{"oid":"{sum}","size":{size},"pointerSize":134}}"#);
            let lfs = if size < LARGE { String::new() } else { lfs };
            format!(r#"{{"type":"file","oid":"{git}","size":{size},"path":"{path}"{lfs}}}"#)
        });
        let listed = repo.listed.iter().map(|(path, size)| {
            let sum = sha256(path.as_bytes());
            format!(
                r#"{{"type":"file","size":{size},"path":"{path}","lfs":{{"oid":"{sum}","size":{size}}}}}"#
            )
        });
        let entries: Vec<String> = stored.chain(listed).collect();
        let cursor = path.split("cursor=").nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        let page = Some(self.faults.page.load(SeqCst)).filter(|n| *n > 0).unwrap_or(entries.len());
        let end = (cursor + page).min(entries.len());
        let mut headers = Vec::new();
        if end < entries.len() {
            let base = path.split('?').next().unwrap();
            let next = self.faults.next.lock().unwrap().clone();
            let next = next.unwrap_or_else(|| format!("{base}?recursive=true&cursor={end}"));
            headers.push(("Link".to_owned(), format!("<{next}>; rel=\"next\"")));
        }
        (200, headers, format!("[{}]", entries[cursor..end].join(",")).into_bytes())
    }
}

fn info(name: &str, repo: &Repo) -> String {
    let gguf = repo.architecture.map(|name| format!(r#","gguf":{{"total":1,"architecture":"{name}"}}"#));
    format!(r#"{{"id":"{name}","sha":"{COMMIT}","gated":{}{}}}"#, repo.gated, gguf.unwrap_or_default())
}

/// The bytes of the requested range.
fn ranged(request: &HubRequest, bytes: &[u8], mut headers: Vec<(String, String)>) -> HubReply {
    let range = request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let Some((from, to)) = range else { return (200, headers, bytes.to_vec()) };
    let from: usize = from.parse().unwrap();
    let to = to.parse::<usize>().map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
    headers.push(("Content-Range".into(), format!("bytes {from}-{}/{}", to - 1, bytes.len())));
    (206, headers, bytes[from..to].to_vec())
}

/// Takes one of the remaining faults.
fn take(left: &AtomicUsize) -> bool {
    left.try_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn read_request(reader: &mut BufReader<&TcpStream>, from_hub: bool) -> Option<HubRequest> {
    let _ = reader.get_ref().set_read_timeout(Some(Duration::from_secs(60)));
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut request = HubRequest { from_hub, method, path, range: None, authorization: None };
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Some(request) };
        match &*name.to_ascii_lowercase() {
            "range" => request.range = Some(value.trim().to_owned()),
            "authorization" => request.authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
}
