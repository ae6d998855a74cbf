//! A client of OpenAI-style endpoints: chat completions as a stream, and which models there are.
//!
//! It knows HTTP and that interface, no terminal and no engine. The key comes from `OPENAI_API_KEY`. An endpoint is not
//! trusted: headers, lines, streams and replies have bounds, waiting has a deadline, and redirects are not followed, so
//! that neither key nor text reaches another host. Next: [`stream`].

mod stream;

use crate::generation::generate::{FinishReason, Stats};
use crate::generation::sample::Sampling;
use crate::prefix_cache::Source;
use crate::runtime::session::Prefill;
use anyhow::{Context as _, Error, Result, anyhow, bail};
use models::template::Message;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};
use stream::Events;
use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder, Timeout};

/// How often a caller is asked whether to go on while nothing comes.
const PATIENCE: Duration = Duration::from_millis(50);
/// Bytes of an error's body that are read.
const ERROR_BYTES: u64 = 4096;
/// Characters that a message of an endpoint takes in an error at most.
const SHOWN: usize = 500;
/// Bytes of the list of models at most.
const MODELS_BYTES: u64 = 4 << 20;
/// Time to connect, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// An endpoint may take a second more before a reply for so many bytes of the request: about 125 tokens.
const BYTES_PER_SECOND: u64 = 512;
/// Bytes of a reply at most, at first and for each token: the longest tokens of common vocabularies have 128, few over 16.
const REPLY_BYTES: usize = 4096;
const REPLY_BYTES_PER_TOKEN: usize = 64;
/// Tokens that an endpoint may count: more would overflow sums.
const MAX_COUNT: u64 = 1 << 40;

/// Arguments of commands that can use an endpoint.
#[derive(Clone, Debug, clap::Args)]
pub struct EndpointArgs {
    /// Use the model of an OpenAI-style endpoint instead, where -m is its name; the key comes from OPENAI_API_KEY
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Seconds to wait for text of the endpoint; the first may take one more per 512 bytes sent
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub timeout: u64,
}

/// An endpoint and a model there.
#[derive(Clone)]
pub struct Remote {
    agent: Agent,
    base: String,
    /// The model's name there.
    pub model: String,
    key: Option<String>,
    /// How long it may send no text.
    silence: Duration,
}

/// What comes while a reply is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delta<'a> {
    /// Nothing yet.
    Waiting,
    /// Reasoning before the answer.
    Reasoning(&'a str),
    /// The answer.
    Text(&'a str),
}

/// What the endpoint said of a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of it that it had read before.
    pub cached: usize,
    /// Tokens of the reply.
    pub completion: usize,
    /// It was cut at the limit.
    pub cut: bool,
    /// The caller stopped it.
    pub stopped: bool,
}

impl Remote {
    /// An endpoint: `http://host:8000`, with or without `/v1`. Waiting for more than `timeout` seconds is an error.
    pub fn new(url: &str, model: &str, timeout: u64) -> Result<Self> {
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            bail!("--url: expected http:// or https://, found {url:?}");
        }
        let base = url.trim_end_matches('/').trim_end_matches("/chat/completions");
        let base = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
        let config = Agent::config_builder().http_status_as_error(false).max_redirects(0);
        let agent = config.timeout_connect(Some(CONNECT)).build().new_agent();
        let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
        Ok(Remote { agent, base, model: model.to_owned(), key, silence: Duration::from_secs(timeout) })
    }

    /// Where it is.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The context of the model, if the endpoint says; an error if it has other models only.
    pub fn context(&self) -> Result<Option<u64>> {
        let request = self.authorized(self.agent.get(format!("{}/models", self.base)));
        let request = request.config().timeout_global(Some(self.silence)).build();
        let mut response = request.call().map_err(|e| self.failed(e))?;
        // Chat completions may be there all the same.
        if response.status() == 404 {
            return Ok(None);
        }
        if !response.status().is_success() {
            bail!("{}", failure(&self.base, &mut response));
        }
        let body = response.body_mut().with_config().limit(MODELS_BYTES);
        let text = body.read_to_string().map_err(|e| self.failed(e))?;
        let list: Value = serde_json::from_str(&text).with_context(|| format!("{}/models", self.base))?;
        let models = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        let named = models.iter().find(|m| m["id"] == *self.model);
        if named.is_none() && !models.is_empty() {
            let ids: Vec<&str> = models.iter().filter_map(|m| m["id"].as_str()).collect();
            bail!("{}: expected the model {:?}, found {}", self.base, self.model, cut(&ids.join(", ")));
        }
        // vLLM's name for it, ours, llama.cpp's.
        let places = ["/max_model_len", "/context_length", "/meta/n_ctx"];
        let context = |m: &Value| places.iter().find_map(|place| m.pointer(place)?.as_u64());
        Ok(named.and_then(context))
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    /// An error of a request, with its place.
    fn failed(&self, e: ureq::Error) -> Error {
        let base = &self.base;
        let late = |what: &str, time: Duration| {
            anyhow!("{base}: expected {what} within {} s, found none", time.as_secs())
        };
        match e {
            ureq::Error::Timeout(Timeout::Connect) => late("a connection", CONNECT),
            ureq::Error::Timeout(_) => late("an answer", self.silence),
            ureq::Error::BodyExceedsLimit(most) => {
                anyhow!("{base}/models: expected at most {most} bytes, found more")
            }
            e => Error::new(e).context(base.clone()),
        }
    }

    /// Streams a reply, of which `on` gets each piece and may stop it at any time. A reply that is far longer than
    /// `max_tokens` can be is cut.
    ///
    /// # Errors
    /// What the endpoint or the connection reports, events that are none, more bytes than so many tokens take, and no
    /// text in time.
    pub fn chat(
        &self,
        messages: &[Message],
        sampling: &Sampling,
        max_tokens: usize,
        on: &mut dyn FnMut(Delta<'_>) -> ControlFlow<()>,
    ) -> Result<Told> {
        let body = self.request(messages, sampling, max_tokens);
        let most = REPLY_BYTES_PER_TOKEN.saturating_mul(max_tokens).saturating_add(REPLY_BYTES);
        let mut patience = self.silence + Duration::from_secs(body.len() as u64 / BYTES_PER_SECOND);
        let (mut told, mut since, bytes) = (Told::default(), Instant::now(), Cell::new(0));
        let on = &mut |delta: Delta<'_>| {
            bytes.set(bytes.get() + delta.text().len());
            on(delta)
        };
        let events = Events::request(self, body, max_tokens);
        loop {
            let before = bytes.get();
            let flow = match events.next(PATIENCE) {
                Ok(event) => told.hear(&event?, &self.base, on)?,
                Err(RecvTimeoutError::Timeout) => on(Delta::Waiting),
                Err(RecvTimeoutError::Disconnected) => return Ok(told),
            };
            if flow.is_break() {
                told.stopped = true;
                return Ok(told);
            }
            if bytes.get() > most {
                told.cut = true;
                return Ok(told);
            }
            if bytes.get() > before {
                (patience, since) = (self.silence, Instant::now());
            } else if since.elapsed() > patience {
                let seconds = patience.as_secs();
                bail!("{}: expected text within {seconds} s, found none (--timeout)", self.base);
            }
        }
    }

    /// Streams a reply as [`Remote::chat`] does; `on` also hears how many pieces came and how many a second. What it took.
    pub fn reply(
        &self,
        messages: &[Message],
        sampling: &Sampling,
        max_tokens: usize,
        on: &mut dyn FnMut(Delta<'_>, usize, f64) -> ControlFlow<()>,
    ) -> Result<Stats> {
        let start = Instant::now();
        let (mut first, mut tokens) = (None, 0);
        let told = self.chat(messages, sampling, max_tokens, &mut |delta| {
            if delta == Delta::Waiting {
                return on(delta, tokens, 0.0);
            }
            tokens += 1;
            let since: Instant = *first.get_or_insert_with(Instant::now);
            on(delta, tokens, (tokens - 1) as f64 / since.elapsed().as_secs_f64().max(1e-9))
        })?;
        let begun = first.unwrap_or_else(Instant::now);
        let prefill = Prefill {
            reused: told.cached,
            source: (told.cached > 0).then_some(Source::Live),
            computed: told.prompt.saturating_sub(told.cached),
            stopped: told.stopped && tokens == 0,
        };
        let ended = match (told.stopped, told.cut) {
            (true, _) => FinishReason::Cancelled,
            (_, true) => FinishReason::Length,
            _ => FinishReason::EndToken,
        };
        let (prefill_time, decode_time) = (begun.duration_since(start), begun.elapsed());
        Ok(Stats {
            prefill,
            prefill_time,
            generated: told.completion.max(tokens),
            decode_time,
            expert_cache: None,
            ended,
        })
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
            // Endpoints read a signed number.
            "seed": sampling.seed >> 1,
        });
        // Not of OpenAI's interface: sent only when asked for.
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

impl Delta<'_> {
    fn text(&self) -> &str {
        match self {
            Delta::Waiting => "",
            Delta::Reasoning(text) | Delta::Text(text) => text,
        }
    }
}

impl Told {
    fn hear(
        &mut self,
        text: &str,
        base: &str,
        on: &mut dyn FnMut(Delta<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let event: Value = serde_json::from_str(text)
            .with_context(|| format!("{base}: expected a JSON event, found {}", cut(text)))?;
        if let Some(message) = event["error"]["message"].as_str() {
            bail!("{base}: {}", cut(message));
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
            && on(Delta::Reasoning(text)).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        Ok(part("content").map_or(ControlFlow::Continue(()), |text| on(Delta::Text(text))))
    }
}

/// What an endpoint refused, in a line.
fn failure(base: &str, response: &mut Response<Body>) -> String {
    let status = response.status();
    if status.is_redirection() {
        let to =
            response.headers().get("location").map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        let to = cut(&to.unwrap_or_default());
        return format!(
            "{base}: expected status 200, found {} to {to}: not followed; give --url that address",
            status.as_u16()
        );
    }
    let mut body = Vec::new();
    let _ = response.body_mut().as_reader().take(ERROR_BYTES).read_to_end(&mut body);
    let text = String::from_utf8_lossy(&body);
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    let message =
        json["error"]["message"].as_str().or_else(|| json["message"].as_str()).unwrap_or(text.trim());
    format!("{base}: expected status 200, found {}: {}", status.as_u16(), cut(message).replace('\n', " "))
}

/// The beginning of what an endpoint sent.
fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
