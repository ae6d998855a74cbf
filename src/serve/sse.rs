//! Streams responses: as server-sent events (`data: JSON`, errors included), or as lines of JSON for clients of Ollama.

use super::errors::ApiError;
use super::events::RequestEvents;
use super::reply::ParsedEvent;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Time without output after which a stream sends something, because clients and proxies close silent connections.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Encodes the events of a request for a stream.
pub trait StreamEncoder: Send + 'static {
    /// Runs before the first event.
    fn begin(&mut self, out: &mut Outbox);
    /// Encodes an event of a reply.
    fn on_event(&mut self, index: usize, event: ParsedEvent, out: &mut Outbox);
    /// Runs after all replies have ended.
    fn end(&mut self, out: &mut Outbox);
    /// Encodes an error that ends the stream.
    fn fail(&mut self, error: &ApiError, out: &mut Outbox) {
        out.data(&error.body());
    }
    /// Runs when the stream has been silent for [`KEEP_ALIVE`].
    fn keep_alive(&mut self, out: &mut Outbox) {
        out.comment();
    }
    /// The type of the stream in its header.
    fn content_type(&self) -> &'static str {
        "text/event-stream"
    }
}

/// Encoded events that are not sent yet.
#[derive(Default)]
pub struct Outbox(VecDeque<Bytes>);

impl Outbox {
    /// Appends an event without a name.
    pub fn data(&mut self, value: &impl Serialize) {
        self.push(format!("data: {}\n\n", json(value)));
    }

    /// Appends an event with a name.
    pub fn named(&mut self, name: &str, value: &impl Serialize) {
        self.push(format!("event: {name}\ndata: {}\n\n", json(value)));
    }

    /// Appends the event that ends streams of OpenAI's chat and text completions.
    pub fn done(&mut self) {
        self.push("data: [DONE]\n\n".to_owned());
    }

    /// Appends a comment, which clients skip.
    pub fn comment(&mut self) {
        self.push(":\n\n".to_owned());
    }

    /// Appends a line of JSON.
    pub fn line(&mut self, value: &impl Serialize) {
        self.push(json(value) + "\n");
    }

    /// Forgets what is not sent.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn push(&mut self, text: String) {
        self.0.push_back(text.into());
    }
}

/// Serializes a value of the API, which does not fail. JSON text has no line breaks outside strings, where they are escaped.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Returns a streaming response for submitted requests.
pub fn respond(events: RequestEvents, mut encoder: impl StreamEncoder) -> Response {
    let mut out = Outbox::default();
    encoder.begin(&mut out);
    let headers = [(header::CONTENT_TYPE, encoder.content_type()), (header::CACHE_CONTROL, "no-cache")];
    let state = ResponseStream { events: Some(events), encoder, out, last_sent: Instant::now() };
    let stream = stream::unfold(state, |mut state| async move {
        let event = state.next().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    (headers, Body::from_stream(stream)).into_response()
}

struct ResponseStream<T> {
    /// None after the last event.
    events: Option<RequestEvents>,
    encoder: T,
    out: Outbox,
    last_sent: Instant,
}

impl<T: StreamEncoder> ResponseStream<T> {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.out.0.pop_front() {
                self.last_sent = Instant::now();
                return Some(event);
            }
            let next = self.events.as_mut()?.next();
            let Ok(next) = timeout_at(self.last_sent + KEEP_ALIVE, next).await else {
                self.encoder.keep_alive(&mut self.out);
                // An encoder may have nothing to send.
                self.last_sent = Instant::now();
                continue;
            };
            match next {
                Some(Ok((index, event))) => self.encoder.on_event(index, event, &mut self.out),
                Some(Err(error)) => {
                    self.events = None;
                    self.encoder.fail(&error, &mut self.out);
                }
                None => {
                    self.events = None;
                    self.encoder.end(&mut self.out);
                }
            }
        }
    }
}
