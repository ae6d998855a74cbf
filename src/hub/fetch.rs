//! Reads a remote file over several connections and writes its bytes in order.
//!
//! Each connection requests ranges of [`CHUNK`] bytes. One writer appends them, so that the file is a prefix of the result at
//! any moment: a killed download resumes where it ended, in this program or in `huggingface_hub`. Ranges that arrive early
//! wait in memory, at most [`AHEAD`] per connection. Servers without ranges are read over one connection.

use super::client::{HubClient, MAX_RETRIES, RequestFailure, host};
use super::progress::PullProgress;
use super::sum::Sum;
use anyhow::{Context as _, Error, Result, anyhow};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex};
use std::thread;
use ureq::Body;
use ureq::http::Response;

/// Bytes of one range request.
const CHUNK: u64 = 8 << 20;
/// Ranges per connection that may be requested beyond the end of the file.
const AHEAD: u64 = 2;
/// Size of a read in bytes.
const READ: usize = 256 << 10;
/// Times that an expired address is renewed for one range.
const MAX_RENEWALS: u32 = 3;

/// A remote file and the way to read it.
pub struct Fetch<'a> {
    pub client: &'a HubClient,
    /// `USER/REPO/FILE`, the name in messages.
    pub name: &'a str,
    pub size: u64,
    pub connections: usize,
    pub address: FileAddress<'a>,
    pub progress: &'a dyn PullProgress,
}

/// The current address of a file; signed addresses expire.
pub struct FileAddress<'a> {
    current: Mutex<(u32, String)>,
    locate: &'a (dyn Fn() -> Result<String> + Sync),
}

/// The local file, its length and the sum of its bytes.
pub struct Destination<'a> {
    pub file: File,
    pub path: &'a Path,
    pub length: u64,
    pub sum: Sum,
}

impl<'a> FileAddress<'a> {
    pub fn new(url: String, locate: &'a (dyn Fn() -> Result<String> + Sync)) -> FileAddress<'a> {
        FileAddress { current: Mutex::new((0, url)), locate }
    }

    /// The number of renewals, and the address.
    fn get(&self) -> (u32, String) {
        self.current.lock().expect("no panic while the lock is held").clone()
    }

    /// Requests a new address unless another thread has done so since `seen`.
    fn renew(&self, seen: u32) -> Result<()> {
        let mut current = self.current.lock().expect("no panic while the lock is held");
        if current.0 == seen {
            *current = (seen + 1, (self.locate)()?);
        }
        Ok(())
    }
}

impl Destination<'_> {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| {
            let kept = crate::io::units::format_size(self.length);
            anyhow!("{}: {e}; {kept} are kept, run the command again to resume", self.path.display())
        })?;
        self.sum.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .with_context(|| self.path.display().to_string())?;
        self.sum = self.sum.restarted();
        self.length = 0;
        Ok(())
    }
}

/// The ranges that connections request: the next one, and the first one that the file lacks.
struct RangeQueue {
    state: Mutex<QueueState>,
    moved: Condvar,
    start: u64,
    end: u64,
    window: u64,
}

struct QueueState {
    next: u64,
    first_missing: u64,
    stopped: bool,
}

impl RangeQueue {
    fn new(start: u64, end: u64, connections: usize) -> RangeQueue {
        let state = Mutex::new(QueueState { next: 0, first_missing: 0, stopped: false });
        RangeQueue { state, moved: Condvar::new(), start, end, window: AHEAD * connections as u64 }
    }

    fn count(&self) -> u64 {
        (self.end - self.start).div_ceil(CHUNK)
    }

    /// First and last byte of a range.
    fn bounds(&self, chunk: u64) -> (u64, u64) {
        let from = self.start + chunk * CHUNK;
        (from, (from + CHUNK).min(self.end))
    }

    /// Takes the next range, once the file has grown close enough to it.
    fn claim(&self) -> Option<u64> {
        let mut state = self.state.lock().expect("no panic while the lock is held");
        loop {
            if state.stopped || state.next >= self.count() {
                return None;
            }
            if state.next < state.first_missing + self.window {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.moved.wait(state).expect("no panic while the lock is held");
        }
    }

    fn update(&self, change: impl FnOnce(&mut QueueState)) {
        change(&mut self.state.lock().expect("no panic while the lock is held"));
        self.moved.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.state.lock().expect("no panic while the lock is held").stopped
    }
}

/// Bytes of a range, or the failure that ends the download.
type RangePiece = Result<(u64, Vec<u8>), RequestFailure>;

impl Fetch<'_> {
    /// Appends the bytes that the destination lacks.
    ///
    /// # Errors
    /// The server fails repeatedly or sends another file; the disk is full.
    pub fn run(&self, to: &mut Destination<'_>) -> Result<()> {
        match self.in_parallel(to) {
            Err(RequestFailure::NoRanges) => self.whole(to),
            Err(failure) => Err(self.named(failure)),
            Ok(()) => Ok(()),
        }
    }

    /// Reads the first bytes of the file into memory.
    ///
    /// # Errors
    /// The server fails repeatedly or knows no ranges.
    pub fn first_bytes(&self, bytes: u64) -> Result<Vec<u8>> {
        let queue = RangeQueue::new(0, bytes, 1);
        let (send, pieces) = channel();
        let result = (0..queue.count()).try_for_each(|chunk| self.read_range(&queue, chunk, &send));
        result.map_err(|failure| self.named(failure))?;
        drop(send);
        let read = pieces.into_iter().filter_map(Result::ok);
        Ok(read.flat_map(|(_, bytes)| bytes).collect())
    }

    fn named(&self, failure: RequestFailure) -> Error {
        let again = "run the command again to resume";
        match failure {
            RequestFailure::Temporary { .. } => anyhow!("{}: {}; {again}", self.name, failure.into_error()),
            failure => failure.into_error(),
        }
    }

    fn in_parallel(&self, to: &mut Destination<'_>) -> Result<(), RequestFailure> {
        let queue = RangeQueue::new(to.length, self.size, self.connections);
        let connections = (self.connections as u64).min(queue.count());
        thread::scope(|scope| {
            let (send, pieces) = channel();
            for _ in 0..connections {
                let (queue, send) = (&queue, send.clone());
                scope.spawn(move || self.read_ranges(queue, &send));
            }
            drop(send);
            let result = self.write_ranges(&queue, &pieces, to);
            queue.update(|state| state.stopped = true);
            result
        })
    }

    /// Writes ranges in order until the file is complete.
    fn write_ranges(
        &self,
        queue: &RangeQueue,
        pieces: &Receiver<RangePiece>,
        to: &mut Destination<'_>,
    ) -> Result<(), RequestFailure> {
        let mut early: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        let mut current = 0;
        while current < queue.count() {
            let Ok(piece) = pieces.recv() else {
                return Err(RequestFailure::Final(anyhow!("{}: the connections ended early", self.name)));
            };
            let (chunk, bytes) = piece?;
            if self.progress.is_cancelled() {
                return Err(RequestFailure::Final(anyhow!("{}: the download was cancelled", self.name)));
            }
            early.entry(chunk).or_default().push(bytes);
            while let Some(ready) = early.remove(&current) {
                ready.iter().try_for_each(|bytes| to.append(bytes)).map_err(RequestFailure::Final)?;
                if to.length < queue.bounds(current).1 {
                    break;
                }
                current += 1;
                queue.update(|state| state.first_missing = current);
            }
        }
        Ok(())
    }

    fn read_ranges(&self, queue: &RangeQueue, send: &Sender<RangePiece>) {
        while let Some(chunk) = queue.claim() {
            if let Err(failure) = self.read_range(queue, chunk, send) {
                // The writer has ended if the channel is closed.
                let _ = send.send(Err(failure));
                return;
            }
        }
    }

    /// Reads one range, with retries from where the last try ended.
    fn read_range(
        &self,
        queue: &RangeQueue,
        chunk: u64,
        send: &Sender<RangePiece>,
    ) -> Result<(), RequestFailure> {
        let (mut at, end) = queue.bounds(chunk);
        let (mut retries, mut renewals) = (0, 0);
        while at < end && !queue.is_stopped() {
            let (seen, url) = self.address.get();
            let before = at;
            let mut on = |bytes: &[u8]| {
                at += bytes.len() as u64;
                self.progress.received(bytes.len() as u64);
                send.send(Ok((chunk, bytes.to_vec()))).is_ok() && !queue.is_stopped()
            };
            match self.request(&url, (before, end), &mut on) {
                Ok(()) => {}
                Err(RequestFailure::Temporary { wait, message }) if retries < MAX_RETRIES || at > before => {
                    retries = if at > before { 1 } else { retries + 1 };
                    self.client.pause(wait, retries, &message, &|| queue.is_stopped());
                }
                Err(RequestFailure::Expired(_)) if renewals < MAX_RENEWALS => {
                    renewals += 1;
                    self.address.renew(seen).map_err(RequestFailure::Final)?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Requests bytes `from` to `to` and hands them to `on` until it returns false.
    fn request(
        &self,
        url: &str,
        range: (u64, u64),
        on: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), RequestFailure> {
        let mut response = self.client.send("GET", url, Some(range))?;
        match response.status().as_u16() {
            206 => self.check_range(&response, range)?,
            200 if range == (0, self.size) => {}
            200 => return Err(RequestFailure::NoRanges),
            status @ (301..=303 | 307 | 308 | 401 | 403 | 404 | 410) => {
                return Err(RequestFailure::Expired(status));
            }
            status => {
                let (name, from) = (self.name, host(url));
                return Err(RequestFailure::Final(anyhow!(
                    "{name}: expected status 206, found {status} from {from}"
                )));
            }
        }
        copy(&mut response, url, range.1 - range.0, on)
    }

    fn check_range(&self, response: &Response<Body>, (from, to): (u64, u64)) -> Result<(), RequestFailure> {
        let header = response.headers().get("content-range").and_then(|value| value.to_str().ok());
        let expected = format!("bytes {from}-{}/{}", to - 1, self.size);
        match header {
            Some(found) if found.trim() == expected => Ok(()),
            found => Err(RequestFailure::Final(anyhow!(
                "{}: Content-Range: expected {expected:?}, found {:?}",
                self.name,
                models::visible::one_line(found.unwrap_or("nothing"), 100)
            ))),
        }
    }

    /// Reads the whole file from its start, as often as it takes.
    fn whole(&self, to: &mut Destination<'_>) -> Result<()> {
        let (mut retries, mut renewals) = (0, 0);
        loop {
            self.progress.lost(to.length);
            to.restart()?;
            let (seen, url) = self.address.get();
            let mut full = Ok(());
            let mut on = |bytes: &[u8]| {
                self.progress.received(bytes.len() as u64);
                full = to.append(bytes);
                full.is_ok()
            };
            let result = self.request_whole(&url, &mut on);
            full?;
            match result {
                Ok(()) => return Ok(()),
                Err(RequestFailure::Temporary { wait, message }) if retries < MAX_RETRIES => {
                    retries += 1;
                    self.client.pause(wait, retries, &message, &|| false);
                }
                Err(RequestFailure::Expired(_)) if renewals < MAX_RENEWALS => {
                    renewals += 1;
                    self.address.renew(seen)?;
                }
                Err(failure) => return Err(self.named(failure)),
            }
        }
    }

    fn request_whole(&self, url: &str, on: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), RequestFailure> {
        let mut response = self.client.send("GET", url, None)?;
        match response.status().as_u16() {
            200 => copy(&mut response, url, self.size, on),
            status => Err(RequestFailure::Expired(status)),
        }
    }
}

/// Reads exactly `bytes` bytes of a body.
fn copy(
    response: &mut Response<Body>,
    url: &str,
    bytes: u64,
    on: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<(), RequestFailure> {
    let cut =
        |what: String| RequestFailure::Temporary { wait: None, message: format!("{}: {what}", host(url)) };
    let mut body = response.body_mut().as_reader().take(bytes);
    let (mut buffer, mut left) = (vec![0; READ], bytes);
    while left > 0 {
        match body.read(&mut buffer) {
            Ok(0) => return Err(cut(format!("the connection ended {left} bytes early"))),
            Ok(n) => {
                left -= n as u64;
                if !on(&buffer[..n]) {
                    return Ok(());
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(cut(e.to_string())),
        }
    }
    Ok(())
}
