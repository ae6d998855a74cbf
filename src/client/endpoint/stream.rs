//! Reads a streamed reply on its own thread, with limits on lines and on the whole stream. Dropping [`StreamGuard`] shuts
//! the connection down, which ends the thread and the endpoint's work. Next: [`super::chunk`], which parses the events.

use super::chunk::ReplyChunk;
use super::errors::{EndpointError, EndpointFault, truncate};
use super::{Endpoint, one_chain};
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use ureq::Agent;

/// Maximum bytes of a line. The event of a token takes a few hundred.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Maximum bytes of a stream: a base and a rate per token, which cover comments and field names.
const BASE_STREAM_BYTES: u64 = 1 << 20;
const STREAM_BYTES_PER_TOKEN: u64 = 4096;

/// A part of a streamed reply.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamItem {
    /// The endpoint accepted the request.
    Accepted,
    /// A line without an event, such as a comment that keeps the connection open.
    Comment,
    Chunk(ReplyChunk),
    /// The event `[DONE]`, after which the endpoint sends nothing.
    Done,
    Failed(EndpointError),
}

/// A request under way, which ends when this is dropped.
pub struct StreamGuard(Agent);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.clone().shutdown();
    }
}

/// Maximum bytes of the stream of a reply of `max_tokens` tokens.
pub fn max_stream_bytes(max_tokens: usize) -> u64 {
    STREAM_BYTES_PER_TOKEN.saturating_mul(max_tokens as u64).saturating_add(BASE_STREAM_BYTES)
}

impl Endpoint {
    /// Sends a request for a streamed chat completion and passes the parts of the reply, of at most `max_bytes`, to
    /// `on_item` on another thread. The thread ends after `Done`, `Failed`, the end of the stream, or a break.
    pub fn stream(
        &self,
        body: String,
        max_bytes: u64,
        mut on_item: impl FnMut(StreamItem) -> ControlFlow<()> + Send + 'static,
    ) -> StreamGuard {
        let agent = Agent::new_with_config(self.agent.config().clone());
        let endpoint = Endpoint { agent: agent.clone(), ..self.clone() };
        std::thread::spawn(move || {
            if let Err(e) = read(&endpoint, &body, max_bytes, &mut on_item) {
                let _ = on_item(StreamItem::Failed(e));
            }
        });
        StreamGuard(agent)
    }
}

type OnItem<'a> = &'a mut dyn FnMut(StreamItem) -> ControlFlow<()>;

fn read(endpoint: &Endpoint, body: &str, max: u64, on_item: OnItem<'_>) -> Result<(), EndpointError> {
    let request = endpoint.agent.post(format!("{}/chat/completions", endpoint.base));
    let request = endpoint.authorized(request.content_type("application/json"));
    let mut response = request.send(body).map_err(|e| endpoint.failed(e))?;
    if !response.status().is_success() {
        return Err(EndpointError::of_response(endpoint, &mut response));
    }
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
    if let Some(kind) = kind.filter(|kind| !kind.trim_start().starts_with("text/event-stream")) {
        let base = &endpoint.base;
        let why = format!("{base}/chat/completions: expected text/event-stream, found {}", truncate(kind));
        return Err(EndpointError::new(EndpointFault::Response, why));
    }
    if on_item(StreamItem::Accepted).is_break() {
        return Ok(());
    }
    forward(&mut BufReader::new(response.body_mut().as_reader()), max, &endpoint.base, on_item)
}

/// Forwards the parts of a stream until it ends or `on_item` breaks.
fn forward(
    reader: &mut impl BufRead,
    max: u64,
    base: &str,
    on_item: OnItem<'_>,
) -> Result<(), EndpointError> {
    let refused = |why: String| EndpointError::new(EndpointFault::Response, format!("{base}: {why}"));
    let (mut line, mut total) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = reader.take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line).map_err(|e| {
            let why = format!("{base}: the reply broke off: {}", one_chain(&e));
            EndpointError::new(EndpointFault::Connection, why)
        })? as u64;
        if read == 0 {
            return Ok(());
        }
        if read > MAX_LINE_BYTES {
            return Err(refused(format!(
                "expected lines of at most {MAX_LINE_BYTES} bytes, found a longer one"
            )));
        }
        total += read;
        if total > max {
            return Err(refused(format!("expected at most {max} bytes for so many tokens, found more")));
        }
        let text = std::str::from_utf8(&line).map_err(|e| refused(format!("expected UTF-8: {e}")))?;
        // Other fields, comments and empty lines are ignored.
        let item = match text.strip_prefix("data:").map(str::trim) {
            None => StreamItem::Comment,
            Some("[DONE]") => StreamItem::Done,
            Some(data) => StreamItem::Chunk(ReplyChunk::parse(data, base)?),
        };
        let is_last = item == StreamItem::Done;
        if on_item(item).is_break() || is_last {
            return Ok(());
        }
    }
}
