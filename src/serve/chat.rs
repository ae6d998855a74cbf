//! `/v1/chat/completions`: a conversation and the next message in it.

use super::api::chat::{
    Answer, ChatBody, ChatChunk, ChatCompletion, ChatLogprobs, ChatMessage, ChatRequest, Choice, ChunkChoice,
    Delta, FunctionDelta, TokenLogprob, ToolCall, ToolCallDelta,
};
use super::api::generation::Generation;
use super::api::{Progress, Timings, Usage};
use super::app::{Answers, App, Ask, Ready, Served};
use super::body::Body;
use super::errors::ApiError;
use super::markup::{Markup, Piece};
use super::outcome::{FINGERPRINT, Head, failure, timings, usage};
use super::owner::Owner;
use super::sse::{Outbox, Teller, respond};
use super::{prepare, token, tools};
use crate::generation::decoder::FinishReason;
use crate::generation::generate::Stats;
use crate::prefix_cache::retokenize::ids_before;
use crate::runtime::chat_template::explain;
use crate::scheduler::Update;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use models::template::{Message, Rendered};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::time::Instant;

/// Answers with the assistant's next message.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    request_body = ChatBody,
    responses(
        (status = 200, description = "The answer, or its events", content(
            (ChatCompletion = "application/json"),
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
    // Rendering and tokenizing a long conversation takes a while.
    let prepared = app.intake.run(body.cost(), move |gone| prepare(&preparing, &body, owner, gone)).await;
    let (request, ask, markup) = prepared??;
    let head = Head::new(&app, "chatcmpl");
    let reply = |_| Reply { markup: markup.clone(), ..Reply::default() };
    let replies = (0..ask.rules.len()).map(reply).collect();
    let engine = app.ready()?.engine.clone();
    let answers = app.start(vec![ask], owner.0)?;
    let start = answers.start;
    let chat = Chat { head, request, engine, replies, prompt_tokens: answers.prompt_tokens, start };
    if chat.request.stream.unwrap_or(false) {
        return Ok(respond(answers, chat));
    }
    chat.whole(answers).await.map(|answer| Json(answer).into_response())
}

fn prepare(
    app: &App,
    body: &Body,
    owner: Owner,
    gone: &AtomicBool,
) -> Result<(ChatRequest, Ask, Markup), ApiError> {
    let mut request: ChatRequest = body.part()?;
    let how: Generation = body.part()?;
    prepare::refuse_undone(body)?;
    let (ask, markup) = plan(app, &mut request, &how, owner, gone)?;
    // Not kept while the reply is made: schemas may take more memory than the prompt.
    request.tools = None;
    request.response_format = None;
    Ok((request, ask, markup))
}

/// What is asked of the engine, and the parser of what comes back.
pub fn plan(
    app: &App,
    request: &mut ChatRequest,
    how: &Generation,
    owner: Owner,
    gone: &AtomicBool,
) -> Result<(Ask, Markup), ApiError> {
    let ready = app.ready()?;
    app.check_model(request.model.as_deref())?;
    let top = logprobs(request)?;
    let tools = tools::Plan::new(request)?;
    let param = if tools.declared.is_empty() { "response_format" } else { "tools" };
    let grammar = tools.grammar.as_ref().map(|g| app.compile(g, param, gone)).transpose()?;
    let messages = messages(std::mem::take(&mut request.messages))?;
    let extra = request.chat_template_kwargs.take().unwrap_or_default();
    let (rendered, marks) = render(ready, &messages, &tools.declared, &extra)?;
    let (template, tokenizer) = (ready.engine.template(), ready.engine.tokenizer());
    let thinks = template.mentions("<think>") || template.mentions("</think>");
    let thinking = rendered.text().trim_end().ends_with("<think>");
    let markup = Markup::new(tools.names, thinks, thinking).sure(tools.sure);
    let replied = messages.iter().any(|m| m.role == "assistant");
    let namespace = app.namespace(owner.0);
    let prompt = if replied { ready.engine.encode(namespace, &rendered) } else { rendered.encode(tokenizer) };
    let marks = marks.into_iter().filter_map(|bytes| ids_before(&prompt, bytes, tokenizer)).collect();
    let ask = prepare::ask(app, ready, prompt, how, grammar.as_ref())?;
    Ok((Ask { logprobs: top, marks, ..ask }, markup))
}

/// How many most likely tokens to tell; None: none, and not the chosen one's probability either.
fn logprobs(request: &ChatRequest) -> Result<Option<usize>, ApiError> {
    let top = request.top_logprobs;
    match (request.logprobs.unwrap_or(false), top) {
        (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "expected logprobs to be true beside it")),
        (false, None) => Ok(None),
        (true, top) => prepare::within("top_logprobs", top.unwrap_or(0), 0, 20).map(Some),
    }
}

/// The conversation as templates read it.
fn messages(messages: Vec<ChatMessage>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "expected at least one, found none"));
    }
    let message = |(i, m): (usize, ChatMessage)| {
        m.into_template().map_err(|(place, why)| ApiError::invalid(&format!("messages[{i}].{place}"), why))
    };
    messages.into_iter().enumerate().map(message).collect()
}

/// The conversation as the model reads it, and the bytes of it after which others may go on differently: tools and
/// instructions, and all before the last message.
fn render(
    ready: &Ready,
    messages: &[Message],
    tools: &[Value],
    extra: &Map<String, Value>,
) -> Result<(Rendered, Vec<usize>), ApiError> {
    let template = ready.engine.template();
    if let Some(name) = extra.keys().find(|name| !template.mentions(name)) {
        let param = format!("chat_template_kwargs.{name}");
        return Err(ApiError::unsupported(&param, "the model's template does not know it"));
    }
    let part = |n: usize, last: bool| template.render(&messages[..n], tools, last, extra);
    let all = part(messages.len(), true).map_err(|e| ApiError::invalid("messages", explain(e)))?;
    let instructions = messages.iter().take_while(|m| m.role == "system").count();
    let beginning = |n: usize| {
        // A template may refuse a part of a conversation: then there is no mark.
        let part = part(n, false).ok()?;
        all.text().starts_with(part.text()).then_some(part.text().len()).filter(|bytes| *bytes > 0)
    };
    let marks = [instructions, messages.len() - 1].into_iter().filter_map(beginning).collect();
    Ok((all, marks))
}

/// A reply so far.
#[derive(Default)]
struct Reply {
    markup: Markup,
    text: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<TokenLogprob>,
    stats: Option<Stats>,
}

impl Reply {
    fn more_arguments(&mut self, more: &str) {
        self.calls.last_mut().into_iter().for_each(|call| call.function.arguments.push_str(more));
    }

    fn finish_reason(&self) -> &'static str {
        match self.stats.as_ref().map(|s| &s.ended) {
            Some(FinishReason::Length) => "length",
            _ if !self.calls.is_empty() => "tool_calls",
            _ => "stop",
        }
    }
}

/// An answer on its way.
struct Chat {
    head: Head,
    request: ChatRequest,
    engine: Arc<dyn Served>,
    replies: Vec<Reply>,
    prompt_tokens: usize,
    start: Instant,
}

/// What became of an update.
enum News {
    /// Pieces, and how likely the tokens were that they came with.
    Said(Vec<Piece>, Option<ChatLogprobs>),
    Read(Progress),
    /// The reply is whole; these are the pieces that were held.
    Whole(Vec<Piece>),
}

impl Chat {
    fn news(&mut self, index: usize, update: Update) -> Result<News, ApiError> {
        let reply = &mut self.replies[index];
        Ok(match update {
            Update::Read { reused, done, total } => {
                let time_ms = self.start.elapsed().as_millis() as u64;
                News::Read(Progress { total, cache: reused, processed: done, time_ms })
            }
            Update::Chosen { token, text, logprobs } => {
                let told = token.zip(logprobs).map(|(token, l)| token::told(&*self.engine, token, &l));
                let logprobs = told.map(|told| ChatLogprobs { content: vec![told], refusal: None });
                News::Said(reply.markup.push(&text), logprobs)
            }
            Update::Done(stats) => {
                failure(&stats)?;
                reply.stats = Some(stats);
                News::Whole(reply.markup.finish())
            }
        })
    }

    async fn whole(mut self, mut answers: Answers) -> Result<ChatCompletion, ApiError> {
        while let Some(update) = answers.next().await {
            let (index, update) = update?;
            let (pieces, logprobs) = match self.news(index, update)? {
                News::Said(pieces, logprobs) => (pieces, logprobs),
                News::Whole(pieces) => (pieces, None),
                News::Read(_) => continue,
            };
            let reply = &mut self.replies[index];
            reply.logprobs.extend(logprobs.into_iter().flat_map(|l| l.content));
            for piece in pieces {
                match piece {
                    Piece::Text(text) => reply.text.push_str(&text),
                    Piece::Reasoning(text) => reply.reasoning.push_str(&text),
                    Piece::Call(call) => reply.calls.push(call),
                    Piece::Arguments(more) => reply.more_arguments(&more),
                }
            }
        }
        let (usage, timings) = (self.usage(), self.timings());
        let wanted = self.request.logprobs.unwrap_or(false);
        let choice = |(index, reply): (usize, Reply)| Choice {
            index,
            finish_reason: reply.finish_reason(),
            logprobs: wanted.then_some(ChatLogprobs { content: reply.logprobs, refusal: None }),
            message: Answer {
                role: "assistant",
                content: Some(reply.text).filter(|t| !t.is_empty() || reply.calls.is_empty()),
                refusal: None,
                reasoning_content: Some(reply.reasoning).filter(|t| !t.is_empty()),
                tool_calls: reply.calls,
            },
        };
        Ok(ChatCompletion {
            id: self.head.id,
            object: "chat.completion",
            created: self.head.created,
            model: self.head.model,
            choices: self.replies.into_iter().enumerate().map(choice).collect(),
            usage,
            system_fingerprint: FINGERPRINT,
            timings,
        })
    }

    fn usage(&self) -> Usage {
        usage(self.prompt_tokens, self.replies.len(), self.replies.iter().filter_map(|r| r.stats.as_ref()))
    }

    fn timings(&self) -> Timings {
        self.replies.iter().find_map(|r| r.stats.as_ref()).map(timings).unwrap_or_default()
    }

    fn chunk(&self) -> ChatChunk {
        let with_usage = self.request.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
        ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk",
            created: self.head.created,
            model: self.head.model.clone(),
            system_fingerprint: FINGERPRINT,
            choices: Vec::new(),
            usage: with_usage.then_some(None),
            timings: None,
            prompt_progress: None,
        }
    }

    fn send(&self, index: usize, delta: Delta, logprobs: Option<ChatLogprobs>, out: &mut Outbox) {
        let choice = ChunkChoice { index, delta, logprobs, finish_reason: None };
        out.data(&ChatChunk { choices: vec![choice], ..self.chunk() });
    }

    fn send_pieces(
        &mut self,
        index: usize,
        pieces: Vec<Piece>,
        mut logprobs: Option<ChatLogprobs>,
        out: &mut Outbox,
    ) {
        for piece in pieces {
            let delta = match piece {
                Piece::Text(text) => Delta { content: Some(text), ..Delta::default() },
                Piece::Reasoning(text) => Delta { reasoning_content: Some(text), ..Delta::default() },
                Piece::Call(call) => {
                    let calls = &mut self.replies[index].calls;
                    calls.push(call.clone());
                    Delta { tool_calls: vec![begun_call(calls.len() - 1, call)], ..Delta::default() }
                }
                Piece::Arguments(arguments) => {
                    let index = self.replies[index].calls.len().saturating_sub(1);
                    let function = FunctionDelta { name: None, arguments };
                    let more = ToolCallDelta { index, id: None, kind: None, function };
                    Delta { tool_calls: vec![more], ..Delta::default() }
                }
            };
            self.send(index, delta, logprobs.take(), out);
        }
        if logprobs.is_some() {
            // A token whose text is held back.
            self.send(index, Delta { content: Some(String::new()), ..Delta::default() }, logprobs, out);
        }
    }
}

fn begun_call(index: usize, call: ToolCall) -> ToolCallDelta {
    let function = FunctionDelta { name: Some(call.function.name), arguments: call.function.arguments };
    ToolCallDelta { index, id: Some(call.id), kind: Some("function"), function }
}

impl Teller for Chat {
    fn begin(&mut self, out: &mut Outbox) {
        for index in 0..self.replies.len() {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            self.send(index, delta, None, out);
        }
    }

    fn hear(&mut self, index: usize, update: Update, out: &mut Outbox) -> Result<(), ApiError> {
        match self.news(index, update)? {
            News::Read(progress) => {
                if self.request.return_progress.unwrap_or(false) {
                    out.data(&ChatChunk { prompt_progress: Some(progress), ..self.chunk() });
                }
            }
            News::Said(pieces, logprobs) => self.send_pieces(index, pieces, logprobs, out),
            News::Whole(pieces) => {
                self.send_pieces(index, pieces, None, out);
                let finish_reason = Some(self.replies[index].finish_reason());
                let choice = ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason };
                let last = self.replies.iter().all(|r| r.stats.is_some());
                let timings = last.then(|| self.timings());
                out.data(&ChatChunk { choices: vec![choice], timings, ..self.chunk() });
            }
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Outbox) {
        let chunk = self.chunk();
        if chunk.usage.is_some() {
            out.data(&ChatChunk { usage: Some(Some(self.usage())), ..chunk });
        }
    }
}
