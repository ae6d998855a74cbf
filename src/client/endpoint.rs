//! Client of OpenAI-style endpoints: streams chat completions and queries the model list.
//!
//! It knows HTTP, but no terminal and no engine. Endpoints are not trusted: headers, lines, streams and replies are bounded,
//! waiting has a deadline, and redirects are not followed, so that neither key nor text reaches another host. The client
//! blocks, so that a request takes a thread: tens of them wait for one server, and TLS comes with ureq.
//! Next: [`stream`].

pub mod chunk;
pub mod errors;
mod models;
pub mod stream;

use crate::generation::markup::ReplyEvent;
use crate::runtime::sampling_options::SamplingOptions;
use ::models::template::Message;
use anyhow::{Result, bail};
use chunk::ReplyChunk;
use errors::{EndpointError, EndpointFault};
pub use models::ListedModel;
use serde_json::json;
use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use stream::{StreamItem, max_stream_bytes};
use ureq::{Agent, RequestBuilder, Timeout};

/// Interval at which the caller may cancel while no event arrives.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Timeout of the connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Request bytes that extend the timeout of the first text by a second: about 125 tokens.
const BYTES_PER_SECOND: u64 = 512;
/// Maximum bytes of a reply: a base and a rate per token. The longest tokens of common vocabularies have 128 bytes, few over 16.
const BASE_REPLY_BYTES: usize = 4096;
const REPLY_BYTES_PER_TOKEN: usize = 64;
/// The error for a stream that ends before its reply does.
pub const BROKEN_OFF: &str = "the reply broke off: the stream ended without a finish_reason";
/// Events buffered ahead of the caller.
const BUFFERED_EVENTS: usize = 64;

/// Arguments of commands that can use a remote endpoint.
#[derive(Clone, Debug, clap::Args)]
pub struct EndpointArgs {
    /// Use a model of this OpenAI-style endpoint; -m is its name (default: the only one) and OPENAI_API_KEY the key
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Seconds to wait for text from the endpoint; the first text may take one more per 512 bytes sent
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub timeout: u64,
}

/// A model of an OpenAI-style endpoint.
#[derive(Clone)]
pub struct Endpoint {
    agent: Agent,
    base: String,
    settings: EndpointSettings,
    pub model: String,
    /// The name of the engine in the list of models; empty if unknown.
    pub owner: String,
    key: Option<String>,
    /// Timeout between texts of a reply.
    text_timeout: Duration,
}

/// Where users set an endpoint, for messages.
#[derive(Clone, Copy, Debug)]
pub struct EndpointSettings {
    /// The option of the URL.
    pub url: &'static str,
    /// The option of the model's name.
    pub model: &'static str,
    /// The environment variable of the key.
    pub key: &'static str,
}

/// The settings of `chat` and `ask`.
const CLIENT: EndpointSettings = EndpointSettings { url: "--url", model: "-m", key: "OPENAI_API_KEY" };

/// Token counts and the end of a reply, as the endpoint reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplySummary {
    pub prompt: usize,
    /// Tokens of the prompt that were cached.
    pub cached: usize,
    pub completion: usize,
    /// The reply was cut at the token limit.
    pub cut: bool,
    pub stopped: bool,
}

impl Endpoint {
    /// Sets `http://host:8000`, with or without `/v1`, and the key of `OPENAI_API_KEY`. Waiting for more than `timeout`
    /// seconds is an error.
    pub fn new(url: &str, model: &str, timeout: u64) -> Result<Self> {
        Endpoint::with_key(url, model, timeout, std::env::var(CLIENT.key).ok())
    }

    /// Sets this API key instead of that of the environment.
    pub fn with_key(url: &str, model: &str, timeout: u64, key: Option<String>) -> Result<Self> {
        let endpoint = Endpoint::with_settings(CLIENT, url, key, timeout)?;
        Ok(Endpoint { model: model.to_owned(), ..endpoint })
    }

    /// Sets the URL and the key, without a model.
    pub fn with_settings(
        settings: EndpointSettings,
        url: &str,
        key: Option<String>,
        timeout: u64,
    ) -> Result<Self> {
        let option = settings.url;
        let Some((_, rest)) = url.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme))
        else {
            bail!("{option}: expected http:// or https://, found {url:?}");
        };
        // Messages and logs contain the URL.
        if rest.split('/').next().is_some_and(|host| host.contains('@')) {
            bail!("{option}: expected a URL without a user name and password");
        }
        let base = url.trim_end_matches('/').trim_end_matches("/chat/completions");
        let base = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
        let config = Agent::config_builder().http_status_as_error(false).max_redirects(0);
        let agent = config.timeout_connect(Some(CONNECT_TIMEOUT)).build().new_agent();
        let key = key.filter(|key| !key.is_empty());
        let text_timeout = Duration::from_secs(timeout);
        let (model, owner) = (String::new(), String::new());
        Ok(Endpoint { agent, base, settings, model, owner, key, text_timeout })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// The name of the repetition penalty in requests.
    pub fn repeat_penalty_name(&self) -> &'static str {
        if self.is_like_llama_cpp() { "repeat_penalty" } else { "repetition_penalty" }
    }

    /// Returns whether the engine has the extensions of llama.cpp's server.
    pub fn is_like_llama_cpp(&self) -> bool {
        ["kimi", "llamacpp"].contains(&self.owner.as_str())
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    fn failed(&self, e: ureq::Error) -> EndpointError {
        self.failed_within(e, self.text_timeout)
    }

    /// Adds the endpoint to the error of a request with this timeout.
    fn failed_within(&self, e: ureq::Error, timeout: Duration) -> EndpointError {
        let base = &self.base;
        let late = |what: &str, time: Duration| {
            let message = format!("{base}: no {what} within {} s", time.as_secs());
            EndpointError::new(EndpointFault::Timeout, message)
        };
        match e {
            ureq::Error::Timeout(Timeout::Connect) => late("connection", CONNECT_TIMEOUT),
            ureq::Error::Timeout(_) => late("answer", timeout),
            ureq::Error::BodyExceedsLimit(max) => {
                let message = format!("{base}/models: expected at most {max} bytes, found more");
                EndpointError::new(EndpointFault::Response, message)
            }
            e @ ureq::Error::Protocol(_) => {
                EndpointError::new(EndpointFault::Response, format!("{base}: {}", one_chain(&e)))
            }
            e => EndpointError::new(EndpointFault::Connection, format!("{base}: {}", one_chain(&e))),
        }
    }

    /// Streams a reply. `on` gets each part of it, None while waiting for the next one, and may cancel the reply. A reply
    /// much longer than `max_tokens` is cut.
    ///
    /// # Errors
    /// Returns errors of the endpoint and the connection, malformed events, streams that exceed their size limit, and
    /// timeouts.
    pub fn chat(
        &self,
        messages: &[Message],
        sampling: &SamplingOptions,
        max_tokens: usize,
        on: &mut dyn FnMut(Option<ReplyEvent>) -> ControlFlow<()>,
    ) -> Result<ReplySummary> {
        let body = self.request(messages, sampling, max_tokens);
        let max = REPLY_BYTES_PER_TOKEN.saturating_mul(max_tokens).saturating_add(BASE_REPLY_BYTES);
        let mut timeout = self.text_timeout + Duration::from_secs(body.len() as u64 / BYTES_PER_SECOND);
        let (mut summary, mut since, bytes) = (ReplySummary::default(), Instant::now(), Cell::new(0));
        let mut is_complete = false;
        let on = &mut |event: Option<ReplyEvent>| {
            if let Some(ReplyEvent::Reasoning(text) | ReplyEvent::Text(text)) = &event {
                bytes.set(bytes.get() + text.len());
            }
            on(event)
        };
        let (outbox, inbox) = sync_channel(BUFFERED_EVENTS);
        let _guard = self.stream(body, max_stream_bytes(max_tokens), move |item| match outbox.send(item) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        });
        loop {
            let before = bytes.get();
            let flow = match inbox.recv_timeout(POLL_INTERVAL) {
                Ok(StreamItem::Failed(e)) => return Err(e.into()),
                Ok(StreamItem::Chunk(chunk)) => {
                    is_complete |= chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
                    summary.on_chunk(chunk, on)
                }
                Ok(StreamItem::Done) => {
                    is_complete = true;
                    ControlFlow::Continue(())
                }
                Ok(StreamItem::Accepted | StreamItem::Comment) | Err(RecvTimeoutError::Timeout) => on(None),
                Err(RecvTimeoutError::Disconnected) if is_complete => return Ok(summary),
                Err(RecvTimeoutError::Disconnected) => bail!("{}: {BROKEN_OFF}", self.base),
            };
            if flow.is_break() {
                summary.stopped = true;
                return Ok(summary);
            }
            if bytes.get() > max {
                summary.cut = true;
                return Ok(summary);
            }
            if bytes.get() > before {
                (timeout, since) = (self.text_timeout, Instant::now());
            } else if since.elapsed() > timeout {
                let seconds = timeout.as_secs();
                bail!("{}: no text within {seconds} s (--timeout)", self.base);
            }
        }
    }

    /// The body of a request. Only sampling parameters that are set are sent: the server has its own for the others, which
    /// may be those that the model's authors recommend.
    fn request(&self, messages: &[Message], sampling: &SamplingOptions, max_tokens: usize) -> String {
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "stream": true,
            "stream_options": { "include_usage": true },
            "max_tokens": max_tokens,
        });
        let numbers = [
            ("temperature", sampling.temperature),
            ("top_p", sampling.top_p),
            ("min_p", sampling.min_p),
            (self.repeat_penalty_name(), sampling.repeat_penalty),
            ("presence_penalty", sampling.presence_penalty),
            ("frequency_penalty", sampling.frequency_penalty),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                body[name] = value.into();
            }
        }
        if let Some(top_k) = sampling.top_k {
            body["top_k"] = top_k.into();
        }
        if let Some(seed) = sampling.seed {
            // Endpoints expect a signed integer.
            body["seed"] = (seed >> 1).into();
        }
        body.to_string()
    }
}

impl ReplySummary {
    fn on_chunk(
        &mut self,
        mut chunk: ReplyChunk,
        on: &mut dyn FnMut(Option<ReplyEvent>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if let Some(usage) = chunk.usage {
            (self.prompt, self.cached, self.completion) = (usage.prompt, usage.cached, usage.completion);
        }
        if chunk.choices.is_empty() {
            return ControlFlow::Continue(());
        }
        let choice = chunk.choices.swap_remove(0);
        self.cut |= choice.finish_reason.as_deref() == Some("length");
        let events = [ReplyEvent::Reasoning(choice.reasoning), ReplyEvent::Text(choice.text)];
        let is_empty = |event: &ReplyEvent| matches!(event, ReplyEvent::Reasoning(text) | ReplyEvent::Text(text) if text.is_empty());
        events.into_iter().filter(|event| !is_empty(event)).try_for_each(|event| on(Some(event)))
    }
}

/// Joins an error with its causes.
fn one_chain(e: &(dyn std::error::Error + 'static)) -> String {
    let mut text = e.to_string();
    for cause in std::iter::successors(e.source(), |e| e.source()).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests;
