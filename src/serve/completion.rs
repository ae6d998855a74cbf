//! `/v1/completions`: continues prompts, whole or as server-sent events.

use super::api::chat::TokenLogprob;
use super::api::completion::{
    Completion, CompletionBody, CompletionChoice, CompletionPrompt, CompletionRequest, TextLogprobs,
};
use super::api::generation::Generation;
use super::api::schemas::MAX_PROMPTS;
use super::api::{Timings, Usage};
use super::app::{App, Ready};
use super::body::RequestBody;
use super::errors::ApiError;
use super::events::RequestEvents;
use super::fields::{self, Interface};
use super::reply::ParsedEvent;
use super::sse::{Outbox, StreamEncoder, respond};
use super::submit::{EngineRequest, submit};
use super::tenant::Tenant;
use super::trace::MissCell;
use super::usage::{FINGERPRINT, ResponseMeta, timings, usage};
use super::{tools, validate};
use crate::generation::decoder::FinishReason;
use crate::generation::generate::Stats;
use crate::generation::markup::ReplyEvent;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Continues one or several prompts without a chat template
#[utoipa::path(
    post,
    path = "/v1/completions",
    request_body = CompletionBody,
    responses(
        (status = 200, description = "The answer, or its events", content(
            (Completion = "application/json"),
            (crate::serve::api::schemas::ServerSentEvent = "text/event-stream"),
        )),
        super::api::schemas::Refusals,
    )
)]
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let shared = app.clone();
    let prepared = app.intake.run(body.cost(), move |cancelled| prepare(&shared, &body, cancelled)).await;
    let (request, engine_requests, texts) = prepared??;
    let meta = ResponseMeta::new(&app, "cmpl");
    let n = engine_requests.first().map_or(1, |engine_request| engine_request.reply_params.len());
    let prompt_tokens = engine_requests.iter().map(|engine_request| engine_request.prompt.len()).sum();
    let events = submit(&app, engine_requests, tenant.id)?;
    let miss = events.miss.clone();
    let texts = Texts { meta, request, texts, prompt_tokens, n, miss };
    if texts.request.stream.unwrap_or(false) {
        return Ok(respond(events, texts));
    }
    texts.collect(events).await.map(|answer| Json(answer).into_response())
}

fn prepare(
    app: &App,
    body: &RequestBody,
    cancelled: &AtomicBool,
) -> Result<(CompletionRequest, Vec<EngineRequest>, Vec<PartialText>), ApiError> {
    let ready = app.ready()?;
    fields::check(Interface::Completions, body, &app.notices)?;
    let mut request = CompletionRequest { constraint: body.part()?, ..body.part()? };
    let generation: Generation = body.part()?;
    app.check_model(request.model.as_deref())?;
    if request.suffix.as_ref().is_some_and(|s| !s.is_empty()) {
        return Err(ApiError::unsupported("suffix", "the model does not support infilling"));
    }
    if request.best_of.is_some_and(|best| best != generation.n.unwrap_or(1)) {
        return Err(ApiError::unsupported("best_of", "expected the value of n, as all replies are returned"));
    }
    if request.echo.unwrap_or(false) && request.logprobs.is_some() {
        return Err(ApiError::unsupported(
            "echo",
            "not supported with logprobs, which are computed for generated tokens only",
        ));
    }
    let grammar = tools::required_format(request.response_format.as_ref(), &request.constraint)?;
    let grammar = grammar.map(|g| app.compile(&g, "response_format", cancelled)).transpose()?;
    let logprobs = request.logprobs.map(|top| validate::within("logprobs", top, 0, 20)).transpose()?;
    let prompts = ids(ready, std::mem::replace(&mut request.prompt, CompletionPrompt::Ids(Vec::new())))?;
    let engine_request = |prompt| {
        let engine_request = validate::engine_request(app, ready, prompt, &generation, grammar.as_ref())?;
        Ok(EngineRequest { logprobs, ..engine_request })
    };
    let mut engine_requests =
        prompts.into_iter().map(engine_request).collect::<Result<Vec<EngineRequest>, ApiError>>()?;
    let echo = request.echo.unwrap_or(false);
    let (mut texts, mut bytes) = (Vec::new(), 0);
    for engine_request in &mut engine_requests {
        let text = if echo { ready.tokenizer().decode(&engine_request.prompt) } else { String::new() };
        let replies = engine_request.reply_params.len();
        engine_request.retained_bytes += text.len() * replies;
        bytes += text.len() * replies;
        check_decoded_size("echo", bytes, app)?;
        texts.extend((0..replies).map(|_| PartialText { text: text.clone(), ..PartialText::default() }));
    }
    Ok((request, engine_requests, texts))
}

/// Bounds the decoded size of token ids: an id of a few bytes may decode to a hundred.
pub fn check_decoded_size(param: &str, bytes: usize, app: &App) -> Result<(), ApiError> {
    let most = app.options.max_body;
    let why = || format!("expected ids of at most {most} bytes of text (--max-body), found {bytes}");
    if bytes <= most { Ok(()) } else { Err(ApiError::invalid(param, why())) }
}

fn ids(ready: &Ready, prompt: CompletionPrompt) -> Result<Vec<Vec<u32>>, ApiError> {
    let encode = |text: String| ready.tokenizer().encode(&text);
    let lists = match prompt {
        CompletionPrompt::Text(text) => vec![encode(text)],
        CompletionPrompt::Ids(ids) => vec![ids],
        CompletionPrompt::Texts(texts) => texts.into_iter().map(encode).collect(),
        CompletionPrompt::Lists(lists) => lists,
    };
    validate::within("prompt", lists.len(), 1, MAX_PROMPTS)?;
    Ok(lists)
}

/// One text, accumulated from its events.
#[derive(Default)]
struct PartialText {
    text: String,
    /// Bytes already sent in chunks.
    sent: usize,
    logprobs: TextLogprobs,
    stats: Option<Stats>,
}

impl PartialText {
    fn finish_reason(&self) -> Option<&'static str> {
        self.stats.as_ref().map(|s| if s.ended == FinishReason::Length { "length" } else { "stop" })
    }
}

/// A response that is being generated.
struct Texts {
    meta: ResponseMeta,
    request: CompletionRequest,
    texts: Vec<PartialText>,
    prompt_tokens: usize,
    /// Number of replies per prompt.
    n: usize,
    miss: MissCell,
}

impl Texts {
    /// Accumulates an event and returns its log-probabilities.
    fn reply_event(&mut self, index: usize, event: ParsedEvent) -> Option<TextLogprobs> {
        let reply = &mut self.texts[index];
        let mut logprobs = None;
        match &event {
            ParsedEvent::Progress { .. } => {}
            ParsedEvent::Reply(part) => {
                let offset = reply.text.chars().count();
                logprobs = part.logprobs.first().map(|logprob| text_logprobs(logprob, offset));
            }
            ParsedEvent::Finished { stats, .. } => reply.stats = Some(stats.clone()),
        }
        for event in event.into_events() {
            // Without tools and reasoning there is only text.
            if let ReplyEvent::Text(text) = event {
                reply.text.push_str(&text);
            }
        }
        logprobs
    }

    async fn collect(mut self, mut events: RequestEvents) -> Result<Completion, ApiError> {
        while let Some(event) = events.next().await {
            let (index, event) = event?;
            if let Some(logprob) = self.reply_event(index, event) {
                let all = &mut self.texts[index].logprobs;
                all.tokens.extend(logprob.tokens);
                all.token_logprobs.extend(logprob.token_logprobs);
                all.top_logprobs.extend(logprob.top_logprobs);
                all.text_offset.extend(logprob.text_offset);
            }
        }
        let wanted = self.request.logprobs.is_some();
        let choice = |(index, text): (usize, &mut PartialText)| CompletionChoice {
            index,
            text: std::mem::take(&mut text.text),
            logprobs: wanted.then(|| std::mem::take(&mut text.logprobs)),
            finish_reason: text.finish_reason(),
        };
        let choices = self.texts.iter_mut().enumerate().map(choice).collect();
        let (usage, timings) = (Some(Some(self.usage())), Some(self.timings()));
        Ok(Completion { choices, usage, timings, ..self.chunk() })
    }

    fn usage(&self) -> Usage {
        usage(self.prompt_tokens, self.n, self.texts.iter().filter_map(|t| t.stats.as_ref()))
    }

    fn timings(&self) -> Timings {
        self.texts
            .iter()
            .find_map(|t| t.stats.as_ref())
            .map(|stats| timings(stats, &self.miss))
            .unwrap_or_default()
    }

    fn chunk(&self) -> Completion {
        let with_usage = self.request.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
        Completion {
            id: self.meta.id.clone(),
            object: "text_completion",
            created: self.meta.created,
            model: self.meta.model.clone(),
            system_fingerprint: FINGERPRINT,
            choices: Vec::new(),
            usage: with_usage.then_some(None),
            timings: None,
        }
    }
}

/// Returns the log-probabilities of a token at a character offset.
fn text_logprobs(logprob: &TokenLogprob, offset: usize) -> TextLogprobs {
    let top = logprob.top_logprobs.iter().map(|top| (top.token.clone(), top.logprob));
    TextLogprobs {
        tokens: vec![logprob.token.clone()],
        token_logprobs: vec![logprob.logprob],
        top_logprobs: vec![top.collect()],
        text_offset: vec![offset],
    }
}

impl StreamEncoder for Texts {
    fn begin(&mut self, _: &mut Outbox) {}

    fn on_event(&mut self, index: usize, event: ParsedEvent, out: &mut Outbox) {
        let logprobs = self.reply_event(index, event);
        let text = &mut self.texts[index];
        // The first chunk includes an echoed prompt.
        let new = text.text.split_off(text.sent);
        text.text.push_str(&new);
        text.sent = text.text.len();
        let finish_reason = text.finish_reason();
        if new.is_empty() && logprobs.is_none() && finish_reason.is_none() {
            return;
        }
        let last = self.texts.iter().all(|t| t.stats.is_some());
        let timings = last.then(|| self.timings());
        let choice = CompletionChoice { index, text: new, logprobs, finish_reason };
        out.data(&Completion { choices: vec![choice], timings, ..self.chunk() });
    }

    fn end(&mut self, out: &mut Outbox) {
        let chunk = self.chunk();
        if chunk.usage.is_some() {
            out.data(&Completion { usage: Some(Some(self.usage())), ..chunk });
        }
        out.done();
    }
}
