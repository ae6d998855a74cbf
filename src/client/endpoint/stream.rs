//! Reads the events of a streamed reply on its own thread, with limits on lines and on the whole stream. It does not parse
//! them. Dropping [`EventStream`] shuts the connection down, which ends the thread and the endpoint's work.

use super::{Endpoint, error_line};
use anyhow::{Context as _, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use ureq::Agent;

/// Maximum bytes of a line. The event of a token takes a few hundred.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Maximum bytes of a stream: a base and a rate per token, which cover comments and field names.
const BASE_STREAM_BYTES: u64 = 1 << 20;
const STREAM_BYTES_PER_TOKEN: u64 = 4096;
/// Events buffered ahead of the caller.
const BUFFERED_EVENTS: usize = 64;

/// The `data` fields of a stream's events, in order.
pub(super) struct EventStream {
    inbox: Receiver<Result<String>>,
    agent: Agent,
}

impl EventStream {
    /// Sends a request and starts the reader thread.
    pub(super) fn request(endpoint: &Endpoint, body: String, max_tokens: usize) -> EventStream {
        let (outbox, inbox) = sync_channel(BUFFERED_EVENTS);
        let agent = Agent::new_with_config(endpoint.agent.config().clone());
        let max = STREAM_BYTES_PER_TOKEN.saturating_mul(max_tokens as u64).saturating_add(BASE_STREAM_BYTES);
        let endpoint = Endpoint { agent: agent.clone(), ..endpoint.clone() };
        std::thread::spawn(move || {
            if let Err(e) = stream(&endpoint, &body, max, &outbox) {
                let _ = outbox.send(Err(e));
            }
        });
        EventStream { inbox, agent }
    }

    /// Returns the next event, `Timeout`, or `Disconnected` after the last event.
    pub(super) fn next(&self, timeout: Duration) -> Result<Result<String>, RecvTimeoutError> {
        self.inbox.recv_timeout(timeout)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.agent.clone().shutdown();
    }
}

fn stream(endpoint: &Endpoint, body: &str, max: u64, events: &SyncSender<Result<String>>) -> Result<()> {
    let request = endpoint.agent.post(format!("{}/chat/completions", endpoint.base));
    let request = endpoint.authorized(request.content_type("application/json"));
    let mut response = request.send(body).map_err(|e| endpoint.with_endpoint(e))?;
    if !response.status().is_success() {
        bail!("{}", error_line(&endpoint.base, &mut response));
    }
    forward(&mut BufReader::new(response.body_mut().as_reader()), max, &endpoint.base, events)
}

/// Forwards events until the stream ends or the receiver is dropped.
fn forward(
    reader: &mut impl BufRead,
    max: u64,
    base: &str,
    events: &SyncSender<Result<String>>,
) -> Result<()> {
    let (mut line, mut total) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = reader.take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
        let read = read.with_context(|| format!("{base}: the reply broke off"))? as u64;
        if read == 0 {
            return Ok(());
        }
        ensure!(
            read <= MAX_LINE_BYTES,
            "{base}: expected lines of at most {MAX_LINE_BYTES} bytes, found a longer one"
        );
        total += read;
        ensure!(total <= max, "{base}: expected at most {max} bytes for so many tokens, found more");
        let text = std::str::from_utf8(&line).with_context(|| format!("{base}: expected UTF-8"))?;
        // Other fields, comments and empty lines are ignored.
        let Some(data) = text.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" || events.send(Ok(data.to_owned())).is_err() {
            return Ok(());
        }
    }
}
