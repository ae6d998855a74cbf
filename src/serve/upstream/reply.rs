//! Reads the reply of an upstream server as events of the kind that the scheduler's replies have.

use super::UpstreamModel;
use crate::client::endpoint::BROKEN_OFF;
use crate::client::endpoint::chunk::{CallDelta, ChoiceDelta, ReplyChunk, TokenCounts};
use crate::client::endpoint::errors::{EndpointError, EndpointFault};
use crate::client::endpoint::stream::StreamItem;
use crate::generation::decoder::FinishReason;
use crate::generation::draft::DraftCounts;
use crate::generation::event::Stats;
use crate::generation::markup::{ReplyEvent, ReplyParser};
use crate::prefix_cache::PrefixSource;
use crate::runtime::session::Prefill;
use crate::serve::api::chat::{TokenLogprob, TopLogprob};
use crate::serve::errors::ApiError;
use crate::serve::reply::{ParsedEvent, ReplyPart};
use crate::serve::reservation::Places;
use serde_json::Value;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

/// Time for the token counts after the last part of a reply.
const COUNTS_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a response is held back for the status of the upstream server.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// A request to an upstream server.
pub struct UpstreamRequest {
    /// The body, as JSON text.
    pub body: String,
    /// Maximum bytes of the stream.
    pub max_bytes: u64,
    pub expected: ExpectedReply,
}

/// What the reader of a reply needs to know of its request.
pub struct ExpectedReply {
    /// Number of replies to the prompt.
    pub replies: usize,
    /// The parser of text with the model's markup, which servers without parsers of their own send.
    pub parser: ReplyParser,
    pub stops: Vec<String>,
    pub max_tokens: usize,
}

impl UpstreamRequest {
    /// Number of replies to the prompt.
    pub fn replies(&self) -> usize {
        self.expected.replies
    }

    /// Bytes that count against the memory of the queue.
    pub fn bytes(&self) -> u64 {
        self.body.len() as u64
    }
}

/// What a request's thread sends.
pub enum ThreadMessage {
    /// The request leaves the queue.
    Sent,
    Item(StreamItem),
}

/// A reply of an upstream server. Dropping it cancels the request there.
pub struct UpstreamReply {
    base: String,
    silence: Duration,
    received: mpsc::Receiver<ThreadMessage>,
    _alive: oneshot::Sender<()>,
    /// Released when the reply has ended.
    places: Option<Places>,
    stops: Vec<String>,
    max_tokens: usize,
    choices: Vec<UpstreamChoice>,
    pending: VecDeque<(usize, ParsedEvent)>,
    counts: Option<TokenCounts>,
    times: Option<(Duration, Duration)>,
    /// When the request was sent; None while it waits.
    sent: Option<Instant>,
    /// When the first part arrived.
    first: Option<Instant>,
    /// When the last data arrived.
    last: Instant,
    is_accepted: bool,
}

/// One of the replies to a request.
struct UpstreamChoice {
    parser: ReplyParser,
    call: Option<OpenCall>,
    calls: usize,
    /// Number of parts, which are tokens for most engines.
    parts: usize,
    finish: Option<FinishReason>,
}

/// A tool call whose arguments may be incomplete.
struct OpenCall {
    index: usize,
    id: String,
    has_arguments: bool,
}

impl UpstreamReply {
    pub fn new(
        upstream: &UpstreamModel,
        expected: ExpectedReply,
        places: Places,
        (received, alive): (mpsc::Receiver<ThreadMessage>, oneshot::Sender<()>),
    ) -> Self {
        let choice = || UpstreamChoice {
            parser: expected.parser.clone(),
            call: None,
            calls: 0,
            parts: 0,
            finish: None,
        };
        UpstreamReply {
            base: upstream.url().to_owned(),
            silence: upstream.silence,
            received,
            _alive: alive,
            places: Some(places),
            choices: (0..expected.replies).map(|_| choice()).collect(),
            stops: expected.stops,
            max_tokens: expected.max_tokens,
            pending: VecDeque::new(),
            counts: None,
            times: None,
            sent: None,
            first: None,
            last: Instant::now(),
            is_accepted: false,
        }
    }

    /// Number of replies to the prompt.
    pub fn replies(&self) -> usize {
        self.choices.len()
    }

    /// Waits until the server has accepted or refused the request, for [`STATUS_TIMEOUT`] at most.
    pub async fn wait_until_accepted(&mut self) -> Result<(), ApiError> {
        let until = Instant::now() + STATUS_TIMEOUT;
        while !self.is_accepted {
            let Ok(received) = timeout_at(until, self.received.recv()).await else { return Ok(()) };
            self.on_received(received)?;
        }
        Ok(())
    }

    /// Returns the next event with the reply's index. Dropping the future loses no event.
    pub async fn next(&mut self) -> Result<(usize, ParsedEvent), ApiError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let received = match self.sent {
                None => self.received.recv().await,
                Some(_) => {
                    let limit = if self.is_complete() { COUNTS_TIMEOUT } else { self.silence };
                    match timeout(limit.saturating_sub(self.last.elapsed()), self.received.recv()).await {
                        Ok(received) => received,
                        Err(_) if self.is_complete() => None,
                        Err(_) => return Err(self.silent()),
                    }
                }
            };
            self.on_received(received)?;
        }
    }

    fn silent(&self) -> ApiError {
        let seconds = self.silence.as_secs();
        let why = format!("{}: no data within {seconds} s (--upstream-timeout)", self.base);
        ApiError::upstream(EndpointError::new(EndpointFault::Timeout, why), &self.base)
    }

    fn refused(&self, fault: EndpointFault, why: &str) -> ApiError {
        ApiError::upstream(EndpointError::new(fault, format!("{}: {why}", self.base)), &self.base)
    }

    /// Whether all replies have ended.
    fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    fn on_received(&mut self, received: Option<ThreadMessage>) -> Result<(), ApiError> {
        self.last = Instant::now();
        match received {
            Some(ThreadMessage::Sent) => {
                self.sent = Some(self.last);
                Ok(())
            }
            Some(ThreadMessage::Item(StreamItem::Accepted)) => {
                self.is_accepted = true;
                Ok(())
            }
            Some(ThreadMessage::Item(StreamItem::Comment)) => Ok(()),
            Some(ThreadMessage::Item(StreamItem::Chunk(chunk))) => self.on_chunk(chunk),
            Some(ThreadMessage::Item(StreamItem::Failed(e))) if !self.is_complete() => {
                Err(ApiError::upstream(e, &self.base))
            }
            Some(ThreadMessage::Item(StreamItem::Failed(_) | StreamItem::Done)) | None => self.end(),
        }
    }

    fn on_chunk(&mut self, chunk: ReplyChunk) -> Result<(), ApiError> {
        self.counts = chunk.usage.or(self.counts);
        self.times = chunk.times.or(self.times);
        if let Some(progress) = chunk.progress {
            let (reused, done, total) = (progress.cached, progress.done, progress.total);
            self.pending.push_back((0, ParsedEvent::Progress { reused, done, total }));
        }
        for delta in chunk.choices {
            let (index, reason, stop) = (delta.index, delta.finish_reason.clone(), delta.stop.clone());
            let Some(choice) = self.choices.get_mut(index) else {
                let why = format!("expected {} replies, found number {index}", self.choices.len());
                return Err(self.refused(EndpointFault::Response, &why));
            };
            if choice.finish.is_some() {
                continue;
            }
            let part = choice.part(delta);
            let part = part.map_err(|why| self.refused(EndpointFault::Response, why))?;
            if !part.events.is_empty() || !part.logprobs.is_empty() {
                self.first.get_or_insert(self.last);
                self.pending.push_back((index, ParsedEvent::Reply(part)));
            }
            if let Some(reason) = reason {
                let finish = self.finish_reason(&reason, stop.as_deref())?;
                self.choices[index].finish = Some(finish);
            }
        }
        Ok(())
    }

    fn finish_reason(&self, reason: &str, stop: Option<&str>) -> Result<FinishReason, ApiError> {
        let stop = stop.and_then(|stop| self.stops.iter().position(|known| known == stop));
        match (reason, stop) {
            ("length", _) => Ok(FinishReason::Length),
            ("abort" | "error", _) => Err(self.refused(EndpointFault::Response, "the reply was aborted")),
            (_, Some(stop)) => Ok(FinishReason::StopString(stop)),
            _ => Ok(FinishReason::EndToken),
        }
    }

    /// Ends all replies at the end of the stream.
    fn end(&mut self) -> Result<(), ApiError> {
        if !self.is_complete() {
            return Err(self.refused(EndpointFault::Connection, BROKEN_OFF));
        }
        // Released before the client gets the end, because it may send the next request at once.
        self.places = None;
        for index in 0..self.choices.len() {
            let stats = self.stats(index);
            if index == 0 {
                self.log(&stats);
            }
            let events = self.choices[index].finish();
            self.pending.push_back((index, ParsedEvent::Finished { events, stats }));
        }
        Ok(())
    }

    /// The statistics of a reply. The server counts all replies together: those after the first have their number of parts.
    fn stats(&self, index: usize) -> Stats {
        let parts = |choices: &[UpstreamChoice]| choices.iter().map(|choice| choice.parts).sum::<usize>();
        let counts =
            self.counts.unwrap_or(TokenCounts { completion: parts(&self.choices), ..TokenCounts::default() });
        let cached = if index == 0 { counts.cached.min(counts.prompt) } else { counts.prompt };
        let sent = self.sent.unwrap_or(self.last);
        let first = self.first.unwrap_or(self.last);
        let (prefill_time, decode_time) = self.times.unwrap_or_else(|| (first - sent, self.last - first));
        Stats {
            prefill: Prefill {
                reused: cached,
                source: (cached > 0).then_some(PrefixSource::Live),
                computed: counts.prompt - cached,
                stopped: false,
            },
            prefill_time,
            generated: match index {
                0 => counts.completion.saturating_sub(parts(&self.choices[1..])),
                index => self.choices[index].parts,
            },
            decode_time,
            draft: DraftCounts::default(),
            expert_cache: None,
            ended: self.choices[index].finish.clone().unwrap_or(FinishReason::EndToken),
        }
    }

    fn log(&self, stats: &Stats) {
        let (cached, prefilled) = (stats.prefill.reused, stats.prefill.computed);
        tracing::info!(
            prompt = cached + prefilled,
            cached,
            prefilled,
            seconds = stats.prefill_time.as_secs_f32(),
            tokens = stats.generated,
            finish = if stats.ended == FinishReason::Length { "length" } else { "stop" },
            "reply"
        );
    }
}

impl Drop for UpstreamReply {
    fn drop(&mut self) {
        if self.sent.is_some() && !self.is_complete() {
            let parts: usize = self.choices.iter().map(|choice| choice.parts).sum();
            let finish = format!("ended after {parts} parts of at most {} tokens", self.max_tokens);
            tracing::info!(finish, "reply");
        }
    }
}

impl UpstreamChoice {
    /// Converts a part of the reply. An error says what is wrong with it.
    fn part(&mut self, delta: ChoiceDelta) -> Result<ReplyPart, &'static str> {
        let mut events = Vec::new();
        if !delta.reasoning.is_empty() {
            self.end_call(&mut events);
            events.push(ReplyEvent::Reasoning(delta.reasoning));
        }
        if !delta.text.is_empty() {
            self.end_call(&mut events);
            events.extend(self.parser.push(&delta.text));
            // The token counts although its text is withheld.
            self.parts += usize::from(events.is_empty());
        }
        if !delta.calls.is_empty() {
            events.extend(self.parser.finish());
        }
        for call in delta.calls {
            self.on_call(call, &mut events)?;
        }
        self.parts += usize::from(!events.is_empty());
        let logprobs: Vec<TokenLogprob> = delta.logprobs.iter().filter_map(logprob).collect();
        let tokens = logprobs.len().max(usize::from(!events.is_empty()));
        Ok(ReplyPart { events, tokens, logprobs })
    }

    fn on_call(&mut self, delta: CallDelta, events: &mut Vec<ReplyEvent>) -> Result<(), &'static str> {
        let is_more =
            |open: &OpenCall| open.index == delta.index && (delta.id.is_empty() || delta.id == open.id);
        if !self.call.as_ref().is_some_and(is_more) {
            if delta.name.is_empty() {
                return Err("expected the name of a function at the start of a tool call");
            }
            self.end_call(events);
            let id = match delta.id.as_str() {
                "" => format!("functions.{}:{}", delta.name, self.calls),
                id => id.to_owned(),
            };
            self.calls += 1;
            self.call = Some(OpenCall { index: delta.index, id: delta.id, has_arguments: false });
            events.push(ReplyEvent::ToolCallBegin { id, name: delta.name });
        }
        if let Some(call) = self.call.as_mut().filter(|_| !delta.arguments.is_empty()) {
            call.has_arguments = true;
            events.push(ReplyEvent::ToolCallArguments(delta.arguments));
        }
        Ok(())
    }

    fn end_call(&mut self, events: &mut Vec<ReplyEvent>) {
        let Some(call) = self.call.take() else { return };
        if !call.has_arguments {
            events.push(ReplyEvent::ToolCallArguments("{}".to_owned()));
        }
        events.push(ReplyEvent::ToolCallEnd);
    }

    /// Ends the reply. A call that the token limit cut stays open.
    fn finish(&mut self) -> Vec<ReplyEvent> {
        let mut events = self.parser.finish();
        if self.finish != Some(FinishReason::Length) {
            self.end_call(&mut events);
        }
        events
    }
}

/// Converts the log-probability of a token.
fn logprob(value: &Value) -> Option<TokenLogprob> {
    let token = |value: &Value| value["token"].as_str().map(str::to_owned);
    let logprob = |value: &Value| value["logprob"].as_f64().map(|logprob| logprob as f32);
    let bytes = |value: &Value| match value["bytes"].as_array() {
        Some(bytes) => bytes.iter().filter_map(|byte| byte.as_u64()?.try_into().ok()).collect(),
        None => value["token"].as_str().unwrap_or_default().as_bytes().to_vec(),
    };
    let top = value["top_logprobs"].as_array().map_or(&[][..], Vec::as_slice);
    let top = top.iter().filter_map(|value| {
        Some(TopLogprob { token: token(value)?, logprob: logprob(value)?, bytes: bytes(value) })
    });
    let top_logprobs = top.collect();
    Some(TokenLogprob { token: token(value)?, logprob: logprob(value)?, bytes: bytes(value), top_logprobs })
}
