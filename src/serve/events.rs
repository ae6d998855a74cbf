//! The events of a submitted request, from the scheduler or from an upstream server, with deadline, counts and the parsing
//! of the model's markup. The encoders of all interfaces read them.
//! Next: [`super::upstream`].

use super::app::App;
use super::errors::ApiError;
use super::logprobs;
use super::reply::{ParsedEvent, ReplyPart};
use super::reservation::Places;
use super::trace::{MissCell, ReplyTrace};
use super::upstream::UpstreamReply;
use super::usage::failure;
use crate::generation::decoder::FinishReason;
use crate::generation::event::EngineEvent;
use crate::generation::markup::ReplyParser;
use crate::scheduler::Client;
use models::tokenizer::Vocabulary;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout_at};

/// Unread events after which a sequence pauses. An event is small: 300 bytes with 20 top log-probabilities.
const MAX_UNREAD_EVENTS: usize = 256;

/// Where the events of a request come from.
pub enum EventSource {
    Scheduler(SchedulerEvents),
    Upstream(Box<UpstreamReply>),
}

/// The events of a submitted request. Dropping it cancels the request.
pub struct RequestEvents {
    app: Arc<App>,
    source: EventSource,
    /// Number of replies that have not ended.
    open: usize,
    /// Tokens of all prompts together; None if an upstream server counts them.
    pub prompt_tokens: Option<usize>,
    /// The cause for which the first prompt was prefilled, set at the end of its first reply.
    pub miss: MissCell,
    pub start: Instant,
    deadline: Option<Instant>,
    /// Time of the last token of each reply.
    last_token: HashMap<usize, Instant>,
}

impl RequestEvents {
    /// Starts to count a request that has been submitted.
    pub fn new(app: &Arc<App>, source: EventSource, prompt_tokens: Option<usize>, miss: MissCell) -> Self {
        app.metrics.requests.inc();
        app.response_started();
        let start = Instant::now();
        RequestEvents {
            app: app.clone(),
            open: match &source {
                EventSource::Scheduler(events) => events.unread.len(),
                EventSource::Upstream(reply) => reply.replies(),
            },
            source,
            prompt_tokens,
            miss,
            start,
            deadline: app.options.timeout.map(|limit| start + limit),
            last_token: HashMap::new(),
        }
    }

    /// Waits until an upstream server has accepted or refused the request, but not for long: clients close connections
    /// without an answer.
    pub async fn wait_until_accepted(&mut self) -> Result<(), ApiError> {
        let EventSource::Upstream(reply) = &mut self.source else { return Ok(()) };
        let accepted = reply.wait_until_accepted().await;
        accepted.map_err(|error| self.failed(error))
    }

    /// Returns the next event with the reply's index, or None after the last reply has ended. Dropping the future loses no
    /// event.
    pub async fn next(&mut self) -> Option<Result<(usize, ParsedEvent), ApiError>> {
        if self.open == 0 {
            return None;
        }
        let next = match self.deadline {
            None => self.source.next().await,
            Some(deadline) => match timeout_at(deadline, self.source.next()).await {
                Ok(next) => next,
                Err(_) => {
                    let seconds = self.app.options.timeout.map_or(0, |limit| limit.as_secs());
                    self.app.metrics.aborted.inc();
                    return Some(Err(self.failed(ApiError::timeout(seconds))));
                }
            },
        };
        let Some(next) = next else {
            let error = self.app.engine_stopped();
            return Some(Err(self.failed(error)));
        };
        let (index, event) = match next {
            Ok(next) => next,
            Err(error) => return Some(Err(self.failed(error))),
        };
        self.count(index, &event);
        if let ParsedEvent::Finished { stats, .. } = &event
            && let Err(error) = failure(stats)
        {
            return Some(Err(error));
        }
        Some(Ok((index, event)))
    }

    /// Ends all replies, which an error does.
    fn failed(&mut self, error: ApiError) -> ApiError {
        self.open = 0;
        if let EventSource::Upstream(_) = self.source {
            self.app.metrics.count_upstream_error(error.status.as_u16());
            tracing::warn!(status = error.status.as_u16(), "{}", error.detail.message);
        }
        error
    }

    fn count(&mut self, index: usize, event: &ParsedEvent) {
        let metrics = &self.app.metrics;
        match event {
            ParsedEvent::Progress { .. } => {}
            ParsedEvent::Reply(_) => {
                let now = Instant::now();
                match self.last_token.insert(index, now) {
                    None => metrics.time_to_first_token.observe((now - self.start).as_secs_f64()),
                    Some(before) => metrics.inter_token_latency.observe((now - before).as_secs_f64()),
                }
            }
            ParsedEvent::Finished { stats, .. } => {
                self.open -= 1;
                metrics.count(stats);
            }
        }
    }
}

impl Drop for RequestEvents {
    fn drop(&mut self) {
        if self.open > 0 {
            self.app.metrics.aborted.inc();
        }
        self.app.response_ended();
    }
}

impl EventSource {
    /// Returns the next event, or None if the thread of the model has ended.
    async fn next(&mut self) -> Option<Result<(usize, ParsedEvent), ApiError>> {
        match self {
            EventSource::Scheduler(events) => events.next().await.map(Ok),
            EventSource::Upstream(reply) => Some(reply.next().await),
        }
    }
}

/// The events of a request to the scheduler.
pub struct SchedulerEvents {
    events: UnboundedReceiver<(usize, EngineEvent)>,
    tokenizer: Arc<Vocabulary>,
    parsers: Vec<ReplyParser>,
    /// For each reply, events sent and not yet read.
    unread: Vec<Arc<AtomicUsize>>,
}

/// The sender of a request's events.
pub type EventSender = UnboundedSender<(usize, EngineEvent)>;

impl SchedulerEvents {
    pub fn new(tokenizer: Arc<Vocabulary>) -> (Self, EventSender) {
        let (sender, events) = unbounded_channel();
        (SchedulerEvents { events, tokenizer, parsers: Vec::new(), unread: Vec::new() }, sender)
    }

    /// Returns the client of another reply, whose text `parser` parses.
    pub fn client(
        &mut self,
        sender: EventSender,
        parser: ReplyParser,
        places: Arc<Places>,
        trace: ReplyTrace,
    ) -> Box<dyn Client> {
        let unread = Arc::new(AtomicUsize::new(0));
        let index = self.unread.len();
        self.parsers.push(parser);
        self.unread.push(unread.clone());
        Box::new(ChannelClient { index, sender, places: Some(places), unread, trace })
    }

    async fn next(&mut self) -> Option<(usize, ParsedEvent)> {
        let (index, event) = self.events.recv().await?;
        self.unread[index].fetch_sub(1, Ordering::Relaxed);
        Some((index, self.parse(index, event)))
    }

    /// Parses the text of an event.
    fn parse(&mut self, index: usize, event: EngineEvent) -> ParsedEvent {
        let parser = &mut self.parsers[index];
        match event {
            EngineEvent::Prefill { reused, done, total } => ParsedEvent::Progress { reused, done, total },
            EngineEvent::Token { token, text, logprobs } => {
                let logprob = |(token, l)| logprobs::token_logprob(&self.tokenizer, token, &l);
                ParsedEvent::Reply(ReplyPart {
                    events: parser.push(&text),
                    tokens: usize::from(token.is_some()),
                    logprobs: token.zip(logprobs).map(logprob).into_iter().collect(),
                })
            }
            EngineEvent::Finished(stats) => ParsedEvent::Finished { events: parser.finish(), stats },
        }
    }
}

struct ChannelClient {
    index: usize,
    sender: EventSender,
    /// Released when the reply has ended.
    places: Option<Arc<Places>>,
    /// Events sent and not yet read.
    unread: Arc<AtomicUsize>,
    trace: ReplyTrace,
}

impl Client for ChannelClient {
    fn on_event(&mut self, event: EngineEvent) {
        self.trace.on_event(&event);
        // Released before the client gets the event, because it may send the next request at once.
        if let EngineEvent::Finished(stats) = &event {
            self.places = None;
            if let FinishReason::Unread(limit) = stats.ended {
                let seconds = limit.as_secs();
                tracing::warn!(seconds, "stream unread for too long (--stream-timeout): reply ended");
            }
        }
        self.unread.fetch_add(1, Ordering::Relaxed);
        // Fails if the client has disconnected; the next step checks that.
        let _ = self.sender.send((self.index, event));
    }

    fn is_disconnected(&self) -> bool {
        self.sender.is_closed()
    }

    fn is_ready(&self) -> bool {
        self.unread.load(Ordering::Relaxed) < MAX_UNREAD_EVENTS
    }
}
