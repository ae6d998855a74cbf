//! Client of OpenAI-style endpoints: streams chat completions and queries the model list.
//!
//! It knows HTTP, but no terminal and no engine. The API key comes from `OPENAI_API_KEY`. Endpoints are not trusted:
//! headers, lines, streams and replies are bounded, waiting has a deadline, and redirects are not followed, so that
//! neither key nor text reaches another host. Next: [`stream`].

mod stream;

use crate::generation::reply_parser::ReplyEvent;
use crate::generation::sample::Sampling;
use anyhow::{Context as _, Error, Result, anyhow, bail};
use models::template::Message;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};
use stream::EventStream;
use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder, Timeout};

/// Interval at which the caller may cancel while no event arrives.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum bytes read of an error response.
const MAX_ERROR_BYTES: u64 = 4096;
/// Maximum characters of an endpoint's message in an error.
const MAX_MESSAGE_CHARS: usize = 500;
/// Maximum bytes of the list of models.
const MAX_MODELS_BYTES: u64 = 4 << 20;
/// Timeout of the connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Request bytes that extend the timeout of the first text by a second: about 125 tokens.
const BYTES_PER_SECOND: u64 = 512;
/// Maximum bytes of a reply: a base and a rate per token. The longest tokens of common vocabularies have 128 bytes, few over 16.
const BASE_REPLY_BYTES: usize = 4096;
const REPLY_BYTES_PER_TOKEN: usize = 64;
/// Maximum token count accepted from an endpoint, so that sums do not overflow.
const MAX_COUNT: u64 = 1 << 40;

/// Arguments of commands that can use a remote endpoint.
#[derive(Clone, Debug, clap::Args)]
pub struct EndpointArgs {
    /// Use a model of this OpenAI-style endpoint, with -m as its name and the key in OPENAI_API_KEY
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
    pub model: String,
    key: Option<String>,
    /// Timeout between texts of a reply.
    text_timeout: Duration,
}

/// A model in the list of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedModel {
    pub id: String,
    /// Context size in tokens, if the endpoint reports it.
    pub context: Option<u64>,
}

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
    /// Connects to `http://host:8000`, with or without `/v1`. Waiting for more than `timeout` seconds is an error.
    pub fn new(url: &str, model: &str, timeout: u64) -> Result<Self> {
        let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
        Self::with_key(url, model, timeout, key)
    }

    /// Connects with this API key instead of that of the environment.
    pub fn with_key(url: &str, model: &str, timeout: u64, key: Option<String>) -> Result<Self> {
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            bail!("--url: expected http:// or https://, found {url:?}");
        }
        let base = url.trim_end_matches('/').trim_end_matches("/chat/completions");
        let base = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
        let config = Agent::config_builder().http_status_as_error(false).max_redirects(0);
        let agent = config.timeout_connect(Some(CONNECT_TIMEOUT)).build().new_agent();
        Ok(Endpoint { agent, base, model: model.to_owned(), key, text_timeout: Duration::from_secs(timeout) })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns the model's context length, if the endpoint reports it. Fails if the endpoint lacks the model.
    pub fn context(&self) -> Result<Option<u64>> {
        let models = self.models()?;
        let named = models.iter().find(|m| m.id == self.model);
        if named.is_none() && !models.is_empty() {
            let ids: Vec<&str> = models.iter().map(|m| m.id.as_str()).collect();
            bail!("{}: expected the model {:?}, found {}", self.base, self.model, truncate(&ids.join(", ")));
        }
        Ok(named.and_then(|m| m.context))
    }

    /// Lists the endpoint's models. The list is empty if the endpoint has none, which may still support chat completions.
    pub fn models(&self) -> Result<Vec<ListedModel>> {
        let mut response = self.get(&format!("{}/models", self.base))?;
        if response.status() == 404 {
            return Ok(Vec::new());
        }
        if !response.status().is_success() {
            bail!("{}", error_line(&self.base, &mut response));
        }
        let body = response.body_mut().with_config().limit(MAX_MODELS_BYTES);
        let text = body.read_to_string().map_err(|e| self.with_endpoint(e))?;
        let list: Value = serde_json::from_str(&text).with_context(|| format!("{}/models", self.base))?;
        // The names in vLLM, kimi and llama.cpp.
        let places = ["/max_model_len", "/context_length", "/meta/n_ctx"];
        let context = |m: &Value| places.iter().find_map(|place| m.pointer(place)?.as_u64());
        let listed = |m: &Value| Some(ListedModel { id: m["id"].as_str()?.to_owned(), context: context(m) });
        Ok(list["data"].as_array().map_or(&[][..], Vec::as_slice).iter().filter_map(listed).collect())
    }

    /// Returns the status that a `kimi serve` at this address reports, such as `ready` or `loading`; `None` for no server
    /// and for other servers.
    pub fn kimi_status(&self) -> Option<String> {
        let mut response = self.get(&format!("{}/health", self.base.trim_end_matches("/v1"))).ok()?;
        let body = response.body_mut().with_config().limit(MAX_ERROR_BYTES).read_to_string().ok()?;
        let status: Value = serde_json::from_str(&body).ok()?;
        Some(status["status"].as_str()?.to_owned())
    }

    fn get(&self, url: &str) -> Result<Response<Body>> {
        let request = self.authorized(self.agent.get(url));
        let request = request.config().timeout_global(Some(self.text_timeout)).build();
        request.call().map_err(|e| self.with_endpoint(e))
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    /// Adds the endpoint to the error of a request.
    fn with_endpoint(&self, e: ureq::Error) -> Error {
        let base = &self.base;
        let late = |what: &str, time: Duration| anyhow!("{base}: no {what} within {} s", time.as_secs());
        match e {
            ureq::Error::Timeout(Timeout::Connect) => late("connection", CONNECT_TIMEOUT),
            ureq::Error::Timeout(_) => late("answer", self.text_timeout),
            ureq::Error::BodyExceedsLimit(max) => {
                anyhow!("{base}/models: expected at most {max} bytes, found more")
            }
            e => Error::new(e).context(base.clone()),
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
        sampling: &Sampling,
        max_tokens: usize,
        on: &mut dyn FnMut(Option<ReplyEvent>) -> ControlFlow<()>,
    ) -> Result<ReplySummary> {
        let body = self.request(messages, sampling, max_tokens);
        let max = REPLY_BYTES_PER_TOKEN.saturating_mul(max_tokens).saturating_add(BASE_REPLY_BYTES);
        let mut timeout = self.text_timeout + Duration::from_secs(body.len() as u64 / BYTES_PER_SECOND);
        let (mut summary, mut since, bytes) = (ReplySummary::default(), Instant::now(), Cell::new(0));
        let on = &mut |event: Option<ReplyEvent>| {
            if let Some(ReplyEvent::Reasoning(text) | ReplyEvent::Text(text)) = &event {
                bytes.set(bytes.get() + text.len());
            }
            on(event)
        };
        let events = EventStream::request(self, body, max_tokens);
        loop {
            let before = bytes.get();
            let flow = match events.next(POLL_INTERVAL) {
                Ok(event) => summary.on_event(&event?, &self.base, on)?,
                Err(RecvTimeoutError::Timeout) => on(None),
                Err(RecvTimeoutError::Disconnected) => return Ok(summary),
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

    fn request(&self, messages: &[Message], sampling: &Sampling, max_tokens: usize) -> String {
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "stream": true,
            "stream_options": { "include_usage": true },
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            // Endpoints expect a signed integer.
            "seed": sampling.seed >> 1,
        });
        // These are not part of OpenAI's API, so only set values are sent.
        if sampling.top_k > 0 {
            body["top_k"] = sampling.top_k.into();
        }
        if sampling.min_p > 0.0 {
            body["min_p"] = sampling.min_p.into();
        }
        if sampling.repeat_penalty > 1.0 {
            body["repetition_penalty"] = sampling.repeat_penalty.into();
        }
        body.to_string()
    }
}

impl ReplySummary {
    fn on_event(
        &mut self,
        text: &str,
        base: &str,
        on: &mut dyn FnMut(Option<ReplyEvent>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let event: Value = serde_json::from_str(text)
            .with_context(|| format!("{base}: expected a JSON event, found {}", truncate(text)))?;
        if let Some(message) = event["error"]["message"].as_str() {
            bail!("{base}: {}", truncate(message));
        }
        if let Some(usage) = event.get("usage").filter(|u| u.is_object()) {
            let number = |v: &Value| v.as_u64().filter(|n| *n <= MAX_COUNT).unwrap_or(0) as usize;
            self.prompt = number(&usage["prompt_tokens"]);
            self.completion = number(&usage["completion_tokens"]);
            self.cached = number(&usage["prompt_tokens_details"]["cached_tokens"]);
        }
        let choice = &event["choices"][0];
        self.cut |= choice["finish_reason"] == "length";
        let delta = &choice["delta"];
        let part = |name: &str| delta[name].as_str().filter(|text| !text.is_empty());
        if let Some(text) = part("reasoning_content").or_else(|| part("reasoning"))
            && on(Some(ReplyEvent::Reasoning(text.to_owned()))).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        Ok(part("content")
            .map_or(ControlFlow::Continue(()), |text| on(Some(ReplyEvent::Text(text.to_owned())))))
    }
}

/// Formats an error response as one line.
fn error_line(base: &str, response: &mut Response<Body>) -> String {
    let status = response.status();
    if status.is_redirection() {
        let to =
            response.headers().get("location").map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        let to = truncate(&to.unwrap_or_default());
        return format!(
            "{base}: HTTP {} to {to}; redirects are not followed, set --url to that address",
            status.as_u16()
        );
    }
    let mut body = Vec::new();
    let _ = response.body_mut().as_reader().take(MAX_ERROR_BYTES).read_to_end(&mut body);
    let text = String::from_utf8_lossy(&body);
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    let message =
        json["error"]["message"].as_str().or_else(|| json["message"].as_str()).unwrap_or(text.trim());
    format!("{base}: HTTP {}: {}", status.as_u16(), truncate(message).replace('\n', " "))
}

/// Truncates a text from an endpoint.
fn truncate(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
