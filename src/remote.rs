//! A client of OpenAI-style endpoints: chat completions as a stream, and which models there are.
//!
//! It knows HTTP and that interface, no terminal and no engine. The key comes from `OPENAI_API_KEY`.

use crate::generate::{Ended, Stats};
use crate::sample::Sampling;
use crate::session::Prefill;
use crate::snapshot::Source;
use anyhow::{Context as _, Result, bail};
use models::template::Message;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use ureq::Agent;

/// How often a caller is asked whether to go on while nothing comes.
const PATIENCE: Duration = Duration::from_millis(50);
/// Of an error's body as much as a line holds.
const ERROR_BYTES: u64 = 2000;

/// An endpoint and a model there.
#[derive(Clone)]
pub struct Remote {
    agent: Agent,
    base: String,
    /// The model's name there.
    pub model: String,
    key: Option<String>,
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
    /// An endpoint: `http://host:8000`, with or without `/v1`.
    pub fn new(url: &str, model: &str) -> Result<Self> {
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            bail!("--url: expected http:// or https://, found {url:?}");
        }
        let base = url.trim_end_matches('/').trim_end_matches("/chat/completions");
        let base = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
        let config = Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_connect(Some(Duration::from_secs(10))).build().new_agent();
        let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
        Ok(Remote { agent, base, model: model.to_owned(), key })
    }

    /// Where it is.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The context of the model, if the endpoint says; an error if it has other models only.
    pub fn context(&self) -> Result<Option<u64>> {
        let mut request = self.agent.get(format!("{}/models", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().with_context(|| self.base.clone())?;
        // Chat completions may be there all the same.
        if response.status() == 404 {
            return Ok(None);
        }
        if !response.status().is_success() {
            let status = response.status();
            bail!("{}", failure(&self.base, status.as_u16(), &mut response.body_mut().as_reader()));
        }
        let text = response.body_mut().read_to_string().with_context(|| self.base.clone())?;
        let list: Value = serde_json::from_str(&text).with_context(|| format!("{}/models", self.base))?;
        let models = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        let named = models.iter().find(|m| m["id"] == *self.model);
        if named.is_none() && !models.is_empty() {
            let ids: Vec<&str> = models.iter().filter_map(|m| m["id"].as_str()).collect();
            bail!("{}: expected the model {:?}, found {}", self.base, self.model, ids.join(", "));
        }
        // vLLM's name for it, ours, llama.cpp's.
        let places = ["/max_model_len", "/context_length", "/meta/n_ctx"];
        let context = |m: &Value| places.iter().find_map(|place| m.pointer(place)?.as_u64());
        Ok(named.and_then(context))
    }

    /// Streams a reply; `on` hears what comes and may stop it at any time.
    pub fn chat(
        &self,
        messages: &[Message],
        sampling: &Sampling,
        max_tokens: usize,
        on: &mut dyn FnMut(Delta<'_>) -> ControlFlow<()>,
    ) -> Result<Told> {
        let body = self.request(messages, sampling, max_tokens);
        // The connection has a thread of its own, which ends when nobody listens: a stop need not wait for it.
        let (lines, inbox) = sync_channel(64);
        let far = self.clone();
        std::thread::spawn(move || {
            if let Err(e) = far.stream(&body, &lines) {
                let _ = lines.send(Err(e));
            }
        });
        let mut told = Told::default();
        loop {
            let flow = match inbox.recv_timeout(PATIENCE) {
                Ok(line) => told.hear(&line?, &self.base, on)?,
                Err(RecvTimeoutError::Timeout) => on(Delta::Waiting),
                Err(RecvTimeoutError::Disconnected) => return Ok(told),
            };
            if flow.is_break() {
                told.stopped = true;
                return Ok(told);
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
            (true, _) => Ended::Cancelled,
            (_, true) => Ended::Length,
            _ => Ended::EndToken,
        };
        let (prefill_time, decode_time) = (begun.duration_since(start), begun.elapsed());
        Ok(Stats {
            prefill,
            prefill_time,
            generated: told.completion.max(tokens),
            decode_time,
            met: None,
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

    /// Sends the request and passes on what events say, until the end or until nobody listens.
    fn stream(&self, body: &str, lines: &SyncSender<Result<String>>) -> Result<()> {
        let mut request =
            self.agent.post(format!("{}/chat/completions", self.base)).content_type("application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(body).with_context(|| self.base.clone())?;
        let status = response.status();
        if !status.is_success() {
            bail!("{}", failure(&self.base, status.as_u16(), &mut response.body_mut().as_reader()));
        }
        for line in BufReader::new(response.body_mut().as_reader()).lines() {
            let line = line.with_context(|| format!("{}: the reply broke off", self.base))?;
            // Other fields of an event, comments and empty lines carry nothing here.
            let Some(text) = line.strip_prefix("data:").map(str::trim) else { continue };
            if text == "[DONE]" || lines.send(Ok(text.to_owned())).is_err() {
                break;
            }
        }
        Ok(())
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
            .with_context(|| format!("{base}: expected a JSON event, found {text:?}"))?;
        if let Some(message) = event["error"]["message"].as_str() {
            bail!("{base}: {message}");
        }
        if let Some(usage) = event.get("usage").filter(|u| u.is_object()) {
            let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
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
fn failure(base: &str, status: u16, body: &mut dyn Read) -> String {
    let mut text = String::new();
    let _ = body.take(ERROR_BYTES).read_to_string(&mut text);
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    let message =
        json["error"]["message"].as_str().or_else(|| json["message"].as_str()).unwrap_or(text.trim());
    format!("{base}: expected status 200, found {status}: {}", message.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    const SAMPLING: Sampling = Sampling {
        temperature: 0.5,
        top_k: 0,
        top_p: 0.9,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        presence_penalty: 0.0,
        frequency_penalty: 0.25,
        seed: 3,
    };

    /// A server of one reply; what it was sent comes back by the handle.
    fn serve(reply: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let handle = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let from = head.len();
                reader.read_line(&mut head).unwrap();
                if let Some(n) = head[from..].to_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
            head + &String::from_utf8(body).unwrap()
        });
        (url, handle)
    }

    fn heard(reply: &'static str) -> (Result<Told>, Vec<String>, String) {
        let (url, server) = serve(reply);
        let mut all = Vec::new();
        let told =
            Remote::new(&url, "m").unwrap().chat(&[Message::new("user", "hi")], &SAMPLING, 9, &mut |d| {
                match d {
                    Delta::Waiting => {}
                    Delta::Reasoning(text) => all.push(format!("({text})")),
                    Delta::Text(text) => all.push(text.to_owned()),
                }
                ControlFlow::Continue(())
            });
        (told, all, server.join().unwrap())
    }

    #[test]
    fn a_stream_is_heard_and_counted() {
        let (told, all, sent) = heard(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n\
             data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"你\"},\"finish_reason\":\"length\"}]}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n\
             data: [DONE]\n\n",
        );
        assert_eq!(all, ["(hm)", "a", "你"]);
        assert_eq!(told.unwrap(), Told { prompt: 7, cached: 4, completion: 2, cut: true, stopped: false });
        assert!(sent.starts_with("POST /v1/chat/completions"), "{sent}");
        assert!(sent.contains(r#""messages":[{"role":"user","content":"hi"}]"#), "{sent}");
        assert!(sent.contains(r#""max_tokens":9"#) && !sent.contains("top_k"), "{sent}");
    }

    #[test]
    fn refusals_say_why() {
        let (told, _, _) = heard(
            "HTTP/1.1 404 Not Found\r\ncontent-length: 33\r\n\r\n{\"error\":{\"message\":\"no model\"}} ",
        );
        let e = told.unwrap_err().to_string();
        assert!(e.ends_with("expected status 200, found 404: no model"), "{e}");
        let (told, _, _) = heard(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\ndata: {\"error\":{\"message\":\"too long\"}}\n\n",
        );
        assert!(told.unwrap_err().to_string().ends_with("too long"));
        assert!(Remote::new("localhost:8000", "m").is_err());
    }

    #[test]
    fn the_model_is_looked_for() {
        let models = "HTTP/1.1 200 OK\r\ncontent-length: 45\r\n\r\n{\"data\":[{\"id\":\"m\",\"max_model_len\":1048576}]}";
        let (url, _server) = serve(models);
        assert_eq!(Remote::new(&url, "m").unwrap().context().unwrap(), Some(1_048_576));
        let (url, _server) = serve(models);
        let e = Remote::new(&(url + "/v1/"), "n").unwrap().context().unwrap_err().to_string();
        assert!(e.ends_with("expected the model \"n\", found m"), "{e}");
    }
}
