//! Reads the events of a streamed reply on a thread of its own, within bounds on lines and on the whole stream. It does
//! not parse them. Dropping [`Events`] shuts the connection down, so that neither thread nor endpoint works on.

use super::{Remote, failure};
use anyhow::{Context as _, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use ureq::Agent;

/// Bytes of a line at most. Events of one token take some hundred.
const LINE_BYTES: u64 = 1 << 20;
/// Bytes of a stream at most: so many at first and for each token of the reply, comments and field names included.
const STREAM_BYTES: u64 = 1 << 20;
const STREAM_BYTES_PER_TOKEN: u64 = 4096;
/// Events that are read before the caller takes them.
const AHEAD: usize = 64;

/// The `data` of events, in order.
pub(super) struct Events {
    inbox: Receiver<Result<String>>,
    /// Of this request alone.
    agent: Agent,
}

impl Events {
    /// Sends a request for a reply of at most `max_tokens`.
    pub(super) fn request(remote: &Remote, body: String, max_tokens: usize) -> Events {
        let (outbox, inbox) = sync_channel(AHEAD);
        let agent = Agent::new_with_config(remote.agent.config().clone());
        let most = STREAM_BYTES_PER_TOKEN.saturating_mul(max_tokens as u64).saturating_add(STREAM_BYTES);
        let remote = Remote { agent: agent.clone(), ..remote.clone() };
        std::thread::spawn(move || {
            if let Err(e) = stream(&remote, &body, most, &outbox) {
                let _ = outbox.send(Err(e));
            }
        });
        Events { inbox, agent }
    }

    /// The next event, or `Timeout`, or `Disconnected` after the last.
    pub(super) fn next(&self, patience: Duration) -> Result<Result<String>, RecvTimeoutError> {
        self.inbox.recv_timeout(patience)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.agent.clone().shutdown();
    }
}

fn stream(remote: &Remote, body: &str, most: u64, events: &SyncSender<Result<String>>) -> Result<()> {
    let request = remote.agent.post(format!("{}/chat/completions", remote.base));
    let request = remote.authorized(request.content_type("application/json"));
    let mut response = request.send(body).map_err(|e| remote.failed(e))?;
    if !response.status().is_success() {
        bail!("{}", failure(&remote.base, &mut response));
    }
    forward(&mut BufReader::new(response.body_mut().as_reader()), most, &remote.base, events)
}

/// Passes events on until the stream ends or the caller is gone.
fn forward(
    reader: &mut impl BufRead,
    most: u64,
    base: &str,
    events: &SyncSender<Result<String>>,
) -> Result<()> {
    let (mut line, mut total) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = reader.take(LINE_BYTES + 1).read_until(b'\n', &mut line);
        let read = read.with_context(|| format!("{base}: the reply broke off"))? as u64;
        if read == 0 {
            return Ok(());
        }
        ensure!(
            read <= LINE_BYTES,
            "{base}: expected lines of at most {LINE_BYTES} bytes, found a longer one"
        );
        total += read;
        ensure!(total <= most, "{base}: expected at most {most} bytes for so many tokens, found more");
        let text = std::str::from_utf8(&line).with_context(|| format!("{base}: expected UTF-8"))?;
        // Other fields of an event, comments and empty lines carry nothing here.
        let Some(data) = text.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" || events.send(Ok(data.to_owned())).is_err() {
            return Ok(());
        }
    }
}
