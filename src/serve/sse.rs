//! Streams responses as server-sent events: `data: JSON` lines, errors included, and `data: [DONE]` at the end.

use super::app::RequestEvents;
use super::errors::ApiError;
use crate::generation::event::EngineEvent;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;

/// Encodes the events of a request as server-sent events.
pub trait StreamEncoder: Send + 'static {
    /// Runs before the first event.
    fn begin(&mut self, out: &mut Outbox);
    /// Encodes an event of a reply; an error ends the stream.
    fn on_event(&mut self, index: usize, event: EngineEvent, out: &mut Outbox) -> Result<(), ApiError>;
    /// Runs after all replies have ended.
    fn end(&mut self, out: &mut Outbox);
    /// Encodes an error that ends the stream.
    fn fail(&mut self, error: &ApiError, out: &mut Outbox) {
        out.data(&error.body());
    }
    /// Returns whether `[DONE]` ends the stream.
    fn sends_done(&self) -> bool {
        true
    }
}

/// Server-sent events that are not sent yet.
#[derive(Default)]
pub struct Outbox(VecDeque<Event>);

impl Outbox {
    /// Appends an event without a name.
    pub fn data(&mut self, value: &impl Serialize) {
        self.0.push_back(with(Event::default(), value));
    }

    /// Appends an event with a name.
    pub fn named(&mut self, name: &str, value: &impl Serialize) {
        self.0.push_back(with(Event::default().event(name), value));
    }

    /// Forgets what is not sent.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

fn with(event: Event, value: &impl Serialize) -> Event {
    // Serialization of the API types does not fail.
    event.data(serde_json::to_string(value).unwrap_or_default())
}

/// Returns a streaming response for submitted requests.
pub fn respond(events: RequestEvents, mut encoder: impl StreamEncoder) -> Response {
    let mut out = Outbox::default();
    encoder.begin(&mut out);
    let state = SseStream { events: Some(events), encoder, out };
    let stream = stream::unfold(state, |mut state| async move {
        let event = state.next().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

struct SseStream<T> {
    /// None after the last event.
    events: Option<RequestEvents>,
    encoder: T,
    out: Outbox,
}

impl<T: StreamEncoder> SseStream<T> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.out.0.pop_front() {
                return Some(event);
            }
            let result = match self.events.as_mut()?.next().await {
                Some(Ok((index, event))) => self.encoder.on_event(index, event, &mut self.out),
                Some(Err(error)) => Err(error),
                None => {
                    self.events = None;
                    self.encoder.end(&mut self.out);
                    if self.encoder.sends_done() {
                        self.out.0.push_back(Event::default().data("[DONE]"));
                    }
                    Ok(())
                }
            };
            if let Err(error) = result {
                self.events = None;
                self.encoder.fail(&error, &mut self.out);
            }
        }
    }
}
