//! `/v1/completions`: texts and how they go on.

use super::api::completion::{
    Completion, CompletionBody, CompletionChoice, CompletionRequest, Prompt, TextLogprobs,
};
use super::api::generation::Generation;
use super::api::schemas::MOST_PROMPTS;
use super::api::{Timings, Usage};
use super::app::{Answers, App, Ask, Ready, Served};
use super::body::Body;
use super::errors::ApiError;
use super::outcome::{FINGERPRINT, Head, failure, timings, usage};
use super::owner::Owner;
use super::sse::{Outbox, Teller, respond};
use super::{prepare, token, tools};
use crate::generation::decoder::FinishReason;
use crate::generation::generate::Stats;
use crate::generation::logprobs::Logprobs;
use crate::scheduler::Update;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Answers with how the prompts go on.
#[utoipa::path(
    post,
    path = "/v1/completions",
    request_body = CompletionBody,
    responses(
        (status = 200, description = "The answer, or its events", content(
            (Completion = "application/json"),
            (crate::serve::api::schemas::Event = "text/event-stream"),
        )),
        super::api::schemas::Refusals,
    )
)]
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(owner): Extension<Owner>,
    body: Body,
) -> Result<Response, ApiError> {
    let preparing = app.clone();
    let prepared = app.intake.run(body.cost(), move |gone| prepare(&preparing, &body, gone)).await;
    let (request, asks, texts) = prepared??;
    let engine = app.ready()?.engine.clone();
    let head = Head::new(&app, "cmpl");
    let n = asks.first().map_or(1, |ask| ask.rules.len());
    let prompt_tokens = asks.iter().map(|ask| ask.prompt.len()).sum();
    let answers = app.start(asks, owner.0)?;
    let texts = Texts { head, request, engine, texts, prompt_tokens, n };
    if texts.request.stream.unwrap_or(false) {
        return Ok(respond(answers, texts));
    }
    texts.whole(answers).await.map(|answer| Json(answer).into_response())
}

fn prepare(
    app: &App,
    body: &Body,
    gone: &AtomicBool,
) -> Result<(CompletionRequest, Vec<Ask>, Vec<Text>), ApiError> {
    let ready = app.ready()?;
    let mut request: CompletionRequest = body.part()?;
    let how: Generation = body.part()?;
    app.check_model(request.model.as_deref())?;
    if request.suffix.as_ref().is_some_and(|s| !s.is_empty()) {
        return Err(ApiError::unsupported("suffix", "the model does not fill in between two texts"));
    }
    if request.best_of.is_some_and(|best| best != how.n.unwrap_or(1)) {
        return Err(ApiError::unsupported("best_of", "expected the value of n: all replies are returned"));
    }
    if request.echo.unwrap_or(false) && request.logprobs.is_some() {
        return Err(ApiError::unsupported(
            "echo",
            "the prompt's own logprobs are not kept: leave one of the two out",
        ));
    }
    prepare::refuse_undone(body)?;
    let grammar = request.response_format.as_ref().map(tools::format).transpose()?.flatten();
    let grammar = grammar.map(|g| app.compile(&g, "response_format", gone)).transpose()?;
    let logprobs = request.logprobs.map(|top| prepare::within("logprobs", top, 0, 20)).transpose()?;
    let prompts = ids(ready, std::mem::replace(&mut request.prompt, Prompt::Ids(Vec::new())))?;
    let ask = |prompt| {
        let ask = prepare::ask(app, ready, prompt, &how, grammar.as_ref())?;
        Ok(Ask { logprobs, ..ask })
    };
    let mut asks = prompts.into_iter().map(ask).collect::<Result<Vec<Ask>, ApiError>>()?;
    let echo = request.echo.unwrap_or(false);
    let (mut texts, mut bytes) = (Vec::new(), 0);
    for ask in &mut asks {
        let text = if echo { ready.engine.tokenizer().decode(&ask.prompt) } else { String::new() };
        let replies = ask.rules.len();
        ask.held += text.len() * replies;
        bytes += text.len() * replies;
        answerable("echo", bytes, app)?;
        texts.extend((0..replies).map(|_| Text { text: text.clone(), ..Text::default() }));
    }
    Ok((request, asks, texts))
}

/// Checks how much text of its own a request makes of ids: a few bytes of them may stand for a hundred.
pub fn answerable(param: &str, bytes: usize, app: &App) -> Result<(), ApiError> {
    let most = app.options.max_body;
    let why = || format!("expected ids of at most {most} bytes of text (--max-body), found {bytes}");
    if bytes <= most { Ok(()) } else { Err(ApiError::invalid(param, why())) }
}

fn ids(ready: &Ready, prompt: Prompt) -> Result<Vec<Vec<u32>>, ApiError> {
    let encode = |text: String| ready.engine.tokenizer().encode(&text);
    let lists = match prompt {
        Prompt::Text(text) => vec![encode(text)],
        Prompt::Ids(ids) => vec![ids],
        Prompt::Texts(texts) => texts.into_iter().map(encode).collect(),
        Prompt::Lists(lists) => lists,
    };
    prepare::within("prompt", lists.len(), 1, MOST_PROMPTS)?;
    Ok(lists)
}

/// A text so far.
#[derive(Default)]
struct Text {
    text: String,
    /// Bytes told in chunks.
    told: usize,
    logprobs: TextLogprobs,
    stats: Option<Stats>,
}

impl Text {
    fn finish_reason(&self) -> Option<&'static str> {
        self.stats.as_ref().map(|s| if s.ended == FinishReason::Length { "length" } else { "stop" })
    }
}

/// An answer on its way.
struct Texts {
    head: Head,
    request: CompletionRequest,
    engine: Arc<dyn Served>,
    texts: Vec<Text>,
    prompt_tokens: usize,
    /// Replies to a prompt.
    n: usize,
}

impl Texts {
    /// Takes what happened. What is new: text, and how likely the token was.
    fn news(&mut self, index: usize, update: Update) -> Result<(String, Option<TextLogprobs>), ApiError> {
        let reply = &mut self.texts[index];
        match update {
            Update::Read { .. } => Ok((String::new(), None)),
            Update::Chosen { token, text, logprobs } => {
                let told = token.zip(logprobs).map(|(token, l)| {
                    let offset = reply.text.chars().count();
                    one(&*self.engine, token, &l, offset)
                });
                reply.text.push_str(&text);
                Ok((text, told))
            }
            Update::Done(stats) => {
                failure(&stats)?;
                reply.stats = Some(stats);
                Ok((String::new(), None))
            }
        }
    }

    async fn whole(mut self, mut answers: Answers) -> Result<Completion, ApiError> {
        while let Some(update) = answers.next().await {
            let (index, update) = update?;
            if let (_, Some(told)) = self.news(index, update)? {
                let all = &mut self.texts[index].logprobs;
                all.tokens.extend(told.tokens);
                all.token_logprobs.extend(told.token_logprobs);
                all.top_logprobs.extend(told.top_logprobs);
                all.text_offset.extend(told.text_offset);
            }
        }
        let wanted = self.request.logprobs.is_some();
        let choice = |(index, text): (usize, &mut Text)| CompletionChoice {
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
        self.texts.iter().find_map(|t| t.stats.as_ref()).map(timings).unwrap_or_default()
    }

    fn chunk(&self) -> Completion {
        let with_usage = self.request.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
        Completion {
            id: self.head.id.clone(),
            object: "text_completion",
            created: self.head.created,
            model: self.head.model.clone(),
            system_fingerprint: FINGERPRINT,
            choices: Vec::new(),
            usage: with_usage.then_some(None),
            timings: None,
        }
    }
}

/// How likely a token was that begins at `offset`, in the lists' form.
fn one(engine: &dyn Served, token: u32, logprobs: &Logprobs, offset: usize) -> TextLogprobs {
    let top = logprobs.top.iter().map(|(id, l)| (token::text(engine, *id), token::finite(*l)));
    TextLogprobs {
        tokens: vec![token::text(engine, token)],
        token_logprobs: vec![token::finite(logprobs.chosen)],
        top_logprobs: vec![top.collect()],
        text_offset: vec![offset],
    }
}

impl Teller for Texts {
    fn begin(&mut self, _: &mut Outbox) {}

    fn hear(&mut self, index: usize, update: Update, out: &mut Outbox) -> Result<(), ApiError> {
        let (_, logprobs) = self.news(index, update)?;
        let text = &mut self.texts[index];
        // An echoed prompt stands before the first token's text.
        let fresh = text.text.split_off(text.told);
        text.text.push_str(&fresh);
        text.told = text.text.len();
        let finish_reason = text.finish_reason();
        if fresh.is_empty() && logprobs.is_none() && finish_reason.is_none() {
            return Ok(());
        }
        let last = self.texts.iter().all(|t| t.stats.is_some());
        let timings = last.then(|| self.timings());
        let choice = CompletionChoice { index, text: fresh, logprobs, finish_reason };
        out.data(&Completion { choices: vec![choice], timings, ..self.chunk() });
        Ok(())
    }

    fn end(&mut self, out: &mut Outbox) {
        let chunk = self.chunk();
        if chunk.usage.is_some() {
            out.data(&Completion { usage: Some(Some(self.usage())), ..chunk });
        }
    }
}
