//! Answers as server-sent events: `data: JSON` lines, an error as one of them, `data: [DONE]` at the end.

use super::app::Answers;
use super::errors::ApiError;
use crate::scheduler::Update;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;

/// Turns what happens into events.
pub trait Teller: Send + 'static {
    /// Before anything happens.
    fn begin(&mut self, out: &mut Outbox);
    /// Something happened to a reply. An error ends the stream.
    fn hear(&mut self, index: usize, update: Update, out: &mut Outbox) -> Result<(), ApiError>;
    /// All replies have ended.
    fn end(&mut self, out: &mut Outbox);
    /// Something went wrong.
    fn fail(&mut self, error: &ApiError, out: &mut Outbox) {
        out.data(&error.body());
    }
    /// Whether `[DONE]` ends the stream.
    fn says_done(&self) -> bool {
        true
    }
}

/// Events not yet sent.
#[derive(Default)]
pub struct Outbox(VecDeque<Event>);

impl Outbox {
    /// An event without a name.
    pub fn data(&mut self, value: &impl Serialize) {
        self.0.push_back(with(Event::default(), value));
    }

    /// An event with a name.
    pub fn named(&mut self, name: &str, value: &impl Serialize) {
        self.0.push_back(with(Event::default().event(name), value));
    }

    /// Forgets what is not sent.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

fn with(event: Event, value: &impl Serialize) -> Event {
    // Our own shapes are strings and numbers: they have a JSON form.
    event.data(serde_json::to_string(value).unwrap_or_default())
}

/// The stream of an answer.
pub fn respond(answers: Answers, mut teller: impl Teller) -> Response {
    let mut out = Outbox::default();
    teller.begin(&mut out);
    let state = Telling { answers: Some(answers), teller, out };
    let events = stream::unfold(state, |mut state| async move {
        let event = state.next().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

struct Telling<T> {
    /// None once they have ended.
    answers: Option<Answers>,
    teller: T,
    out: Outbox,
}

impl<T: Teller> Telling<T> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.out.0.pop_front() {
                return Some(event);
            }
            let told = match self.answers.as_mut()?.next().await {
                Some(Ok((index, update))) => self.teller.hear(index, update, &mut self.out),
                Some(Err(error)) => Err(error),
                None => {
                    self.answers = None;
                    self.teller.end(&mut self.out);
                    if self.teller.says_done() {
                        self.out.0.push_back(Event::default().data("[DONE]"));
                    }
                    Ok(())
                }
            };
            if let Err(error) = told {
                self.answers = None;
                self.teller.fail(&error, &mut self.out);
            }
        }
    }
}
