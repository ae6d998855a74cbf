//! `/v1/chat/completions`: generates the next message of a conversation, whole or as server-sent events.

use super::api::chat::{
    Answer, ChatBody, ChatChoice, ChatChunk, ChatCompletion, ChatDelta, ChatLogprobs, ChatMessage,
    ChatRequest, ChunkChoice, FunctionCall, FunctionDelta, TokenLogprob, ToolCall, ToolCallDelta,
};
use super::api::files::FileCitation;
use super::api::generation::{Generation, StopStrings};
use super::api::{PromptProgress, Timings, Usage};
use super::app::{App, Ready, ReplySource};
use super::body::RequestBody;
use super::errors::{ApiError, quoted};
use super::events::RequestEvents;
use super::fields::{self, Interface};
use super::files::citations::citations;
use super::files::set::{AttachedFiles, FileSet};
use super::outline::{FoundParts, PromptText};
use super::reply::{ParsedEvent, ReplyPart, TrackedReply};
use super::sse::{Outbox, StreamEncoder, respond};
use super::submit::{EngineRequest, PreparedChat, prompt_namespace, submit_chat};
use super::tenant::Tenant;
use super::trace::MissCell;
use super::usage::{FINGERPRINT, ResponseMeta, timings, usage};
use super::{files, tools, upstream, validate};
use crate::generation::decoder::FinishReason;
use crate::generation::markup::grammar::CallMarkup;
use crate::generation::markup::{REASONING_TAGS, ReplyEvent, ReplyParser, opens_reasoning};
use crate::prefix_cache::retokenize::ids_before;
use crate::prefix_cache::served::PromptOutline;
use crate::runtime::chat_template::explain;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use models::template::{Message, Rendered};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::time::Instant;

/// Generates the assistant's next message in a conversation
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    request_body = ChatBody,
    responses(
        (status = 200, description = "The answer, or its events", content(
            (ChatCompletion = "application/json"),
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
    // Rendering and tokenizing a long conversation blocks for some time.
    let prepared =
        app.intake.run(body.cost(), move |cancelled| prepare(&shared, &body, tenant, cancelled)).await;
    let (request, prepared, stops, files) = prepared??;
    let meta = ResponseMeta::new(&app, "chatcmpl");
    let replies = prepared.replies();
    let events = submit_chat(&app, prepared, tenant).await?;
    let (start, miss) = (events.start, events.miss.clone());
    let reply = |_| {
        let tracked = TrackedReply::new(events.prompt_tokens);
        PartialReply { tracked, ..PartialReply::default() }
    };
    let replies = (0..replies).map(reply).collect();
    let chat = Chat { meta, request, stops, files, replies, miss, start };
    if chat.request.stream.unwrap_or(false) {
        return Ok(respond(events, chat));
    }
    chat.collect(events).await.map(|answer| Json(answer).into_response())
}

fn prepare(
    app: &App,
    body: &RequestBody,
    tenant: Tenant,
    cancelled: &AtomicBool,
) -> Result<(ChatRequest, PreparedChat, Vec<String>, AttachedFiles), ApiError> {
    fields::check(Interface::Chat, body, &app.notices)?;
    let mut request = ChatRequest { constraint: body.part()?, ..body.part()? };
    let generation: Generation = body.part()?;
    let files = files::input::attach(app, tenant.owner, &mut request)?;
    let prepared = prepare_chat(app, &mut request, &generation, (tenant, files.as_deref()), cancelled)?;
    // Freed before generation: schemas may take more memory than the prompt.
    request.tools = None;
    request.response_format = None;
    let stops = generation.stop.map(StopStrings::into_list).unwrap_or_default();
    Ok((request, prepared, stops, files))
}

/// Validates a request and builds the one to the source of replies. The prompt begins with the files, if there are any.
pub fn prepare_chat(
    app: &App,
    request: &mut ChatRequest,
    generation: &Generation,
    (tenant, files): (Tenant, Option<&FileSet>),
    cancelled: &AtomicBool,
) -> Result<PreparedChat, ApiError> {
    let ready = match app.source()? {
        ReplySource::Local(ready) => ready,
        ReplySource::Upstream(upstream) => {
            let request = upstream::prepare(app, upstream, request, generation)?;
            return Ok(PreparedChat::Upstream(Box::new(request)));
        }
    };
    let top = validate::top_logprobs(request)?;
    let markup = CallMarkup::of(ready.template(), ready.tokenizer().specials());
    let tools = tools::Plan::new(request, &app.notices, &markup)?;
    let calls = |message: &ChatMessage| message.tool_calls.as_ref().map_or(0, Vec::len);
    let earlier_calls = request.messages.iter().map(calls).sum();
    let param = if tools.declared.is_empty() { "response_format" } else { "tools" };
    let grammar = tools.grammar.as_ref().map(|g| app.compile(g, param, cancelled)).transpose()?;
    let EncodedPrompt { tokens, snapshot_lengths, question, outline, in_reasoning } =
        encode(app, request, &tools, (tenant, files))?;
    let has_reasoning = REASONING_TAGS.iter().any(|tag| ready.template().mentions(tag));
    let parser = ReplyParser::new(markup.markup, tools.callable, has_reasoning, in_reasoning)
        .constrained(tools.constrained)
        .numbered_from(earlier_calls);
    let mut engine_request = validate::engine_request(app, ready, tokens, generation, grammar.as_ref())?;
    if let Some(files) = files.filter(|_| grammar.is_none() && tools.declared.is_empty()) {
        let index = files.quote_index(ready.tokenizer(), ready.engine.config.vocab);
        engine_request.reply_params.iter_mut().for_each(|reply| reply.constraint = Some(index.constraint()));
    }
    let request =
        EngineRequest { parser, logprobs: top, snapshot_lengths, question, outline, ..engine_request };
    Ok(PreparedChat::Local(Box::new(request)))
}

/// Returns the number of tokens of a conversation's prompt.
pub fn prompt_len(app: &App, request: &mut ChatRequest, tenant: Tenant) -> Result<usize, ApiError> {
    let ready = app.ready()?;
    let markup = CallMarkup::of(ready.template(), ready.tokenizer().specials());
    let tools = tools::Plan::new(request, &app.notices, &markup)?;
    encode(app, request, &tools, (tenant, None)).map(|prompt| prompt.tokens.len())
}

/// The prompt of a conversation.
struct EncodedPrompt {
    tokens: Vec<u32>,
    /// Lengths of the prompt at which to take snapshots.
    snapshot_lengths: Vec<usize>,
    /// The start of the question about files.
    question: Option<usize>,
    outline: PromptOutline,
    /// The template has opened the reasoning tag.
    in_reasoning: bool,
}

/// Renders and encodes the messages of a request, which it takes.
fn encode(
    app: &App,
    request: &mut ChatRequest,
    plan: &tools::Plan,
    (tenant, files): (Tenant, Option<&FileSet>),
) -> Result<EncodedPrompt, ApiError> {
    let tools = &plan.declared[..];
    let ready = app.ready()?;
    app.check_model(request.model.as_deref())?;
    let messages = validate::messages(std::mem::take(&mut request.messages))?;
    let mut extra = template_variables(app, ready, request);
    // A grammar applies from the first token, so a template that opens the reasoning must not.
    if plan.grammar.is_some() && ready.template().mentions("enable_thinking") {
        extra.entry("enable_thinking").or_insert(false.into());
    }
    let (rendered, tools_end, exact) = render(ready, &messages, tools, &extra)?;
    let tokenizer = ready.tokenizer();
    let replied = messages.iter().any(|m| m.role == "assistant");
    let tokens = |has_documents: bool| {
        let namespace = prompt_namespace(app, tenant.id, has_documents);
        match replied {
            true => ready.engine.encode_within(namespace, &rendered, tokenizer),
            false => rendered.encode(tokenizer),
        }
    };
    let prefix = files.map(|files| files.prefix(&app.files, &ready.engine)).transpose()?;
    let about_documents = prefix.and_then(|prefix| {
        let tokens = tokens(true);
        prefix.question_in(&tokens).map(|question| (tokens, question, &prefix.snapshots[..]))
    });
    let (tokens, question, file_ends) = match about_documents {
        Some((tokens, question, file_ends)) => (tokens, Some(question), file_ends),
        None => (tokens(false), None, &[][..]),
    };
    let exact = exact.into_iter().filter_map(|bytes| ids_before(&tokens, bytes, tokenizer));
    let text = PromptText { rendered: &rendered, messages: &messages, tools, tools_end };
    let FoundParts { outline, cuts } = text.find(&tokens, tokenizer);
    let snapshot_lengths = exact.chain(cuts).chain(question).chain(file_ends.iter().copied()).collect();
    Ok(EncodedPrompt {
        tokens,
        snapshot_lengths,
        question,
        outline,
        in_reasoning: opens_reasoning(rendered.text()),
    })
}

/// Returns the variables that the template uses, of those for reasoning and of the request's own.
fn template_variables(app: &App, ready: &Ready, request: &mut ChatRequest) -> Map<String, Value> {
    let mut variables = Map::new();
    if let Some(effort) = request.reasoning_effort.take() {
        variables.insert("enable_thinking".to_owned(), (effort != "none").into());
        variables.insert("thinking".to_owned(), (effort != "none").into());
        variables.insert("reasoning_effort".to_owned(), effort.into());
    }
    variables.retain(|name, _| ready.template().mentions(name));
    for (name, value) in request.chat_template_kwargs.take().unwrap_or_default() {
        if ready.template().mentions(&name) {
            variables.insert(name, value);
        } else {
            let name = quoted(&name);
            app.notices.once(&format!("chat_template_kwargs: the template does not use {name}: ignored"));
        }
    }
    variables
}

/// Renders a conversation. Also returns the end of the tools, and byte offsets for snapshots, after which other conversations
/// may differ: the end of tools and instructions, and the start of the last message.
fn render(
    ready: &Ready,
    messages: &[Message],
    tools: &[Value],
    extra: &Map<String, Value>,
) -> Result<(Rendered, Option<usize>, Vec<usize>), ApiError> {
    let template = ready.template();
    let part = |n: usize, last: bool| template.render(&messages[..n], tools, last, extra);
    let all = part(messages.len(), true).map_err(|e| ApiError::invalid("messages", explain(e)))?;
    let instructions = messages.iter().take_while(|m| m.role == "system").count();
    let prefix_len = |n: usize| {
        // A template may refuse a partial conversation, which then gets no snapshot.
        let part = part(n, false).ok()?;
        all.text().starts_with(part.text()).then_some(part.text().len()).filter(|bytes| *bytes > 0)
    };
    let tools_end = if tools.is_empty() { None } else { prefix_len(0) };
    let exact = [instructions, messages.len() - 1].into_iter().filter_map(prefix_len).collect();
    Ok((all, tools_end, exact))
}

/// One reply, accumulated from its events.
#[derive(Default)]
struct PartialReply {
    tracked: TrackedReply,
    /// The chunk with the role has been sent.
    has_role: bool,
    text: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<TokenLogprob>,
}

impl PartialReply {
    fn append_arguments(&mut self, more: &str) {
        self.calls.last_mut().into_iter().for_each(|call| call.function.arguments.push_str(more));
    }

    fn finish_reason(&self) -> &'static str {
        match self.calls.is_empty() {
            _ if self.tracked.is_cut() => "length",
            true => "stop",
            false => "tool_calls",
        }
    }
}

/// A response that is being generated.
struct Chat {
    meta: ResponseMeta,
    request: ChatRequest,
    /// The stop strings of the request.
    stops: Vec<String>,
    /// The files of the prompt.
    files: AttachedFiles,
    replies: Vec<PartialReply>,
    miss: MissCell,
    start: Instant,
}

impl Chat {
    fn prompt_progress(&self, reused: usize, done: usize, total: usize) -> PromptProgress {
        let time_ms = self.start.elapsed().as_millis() as u64;
        PromptProgress { total, cache: reused, processed: done, time_ms }
    }

    /// Returns the stop string that ended a reply, if any.
    fn stop_reason(&self, reply: &PartialReply) -> Option<String> {
        match reply.tracked.ended()? {
            FinishReason::StopString(index) => self.stops.get(*index).cloned(),
            _ => None,
        }
    }

    /// Returns the quotations of a complete text, if there are files.
    fn annotations(&self, text: &str) -> Option<Vec<FileCitation>> {
        self.files.as_ref().map(|files| citations(files, text))
    }

    async fn collect(mut self, mut events: RequestEvents) -> Result<ChatCompletion, ApiError> {
        while let Some(event) = events.next().await {
            let (index, event) = event?;
            let reply = &mut self.replies[index];
            reply.tracked.record(&event);
            let (events, logprobs) = match event {
                ParsedEvent::Reply(part) => (part.events, part.logprobs),
                event => (event.into_events(), Vec::new()),
            };
            reply.logprobs.extend(logprobs);
            for event in events {
                match event {
                    ReplyEvent::Text(text) => reply.text.push_str(&text),
                    ReplyEvent::Reasoning(text) => reply.reasoning.push_str(&text),
                    ReplyEvent::ToolCallBegin { id, name } => reply.calls.push(tool_call(id, name)),
                    ReplyEvent::ToolCallArguments(more) => reply.append_arguments(&more),
                    ReplyEvent::ToolCallEnd => {}
                }
            }
        }
        let (usage, timings) = (self.usage(), self.timings());
        let mut stop_reasons: Vec<_> = self.replies.iter().map(|reply| self.stop_reason(reply)).collect();
        let mut annotations: Vec<_> =
            self.replies.iter().map(|reply| self.annotations(&reply.text)).collect();
        let wanted = self.request.logprobs.unwrap_or(false);
        let choice = |(index, reply): (usize, PartialReply)| ChatChoice {
            index,
            finish_reason: reply.finish_reason(),
            stop_reason: stop_reasons[index].take(),
            logprobs: wanted.then_some(ChatLogprobs { content: reply.logprobs, refusal: None }),
            message: Answer {
                role: "assistant",
                content: Some(reply.text).filter(|t| !t.is_empty() || reply.calls.is_empty()),
                refusal: None,
                reasoning_content: Some(reply.reasoning).filter(|t| !t.is_empty()),
                annotations: annotations[index].take(),
                tool_calls: reply.calls,
            },
        };
        Ok(ChatCompletion {
            id: self.meta.id,
            object: "chat.completion",
            created: self.meta.created,
            model: self.meta.model,
            choices: self.replies.into_iter().enumerate().map(choice).collect(),
            usage,
            system_fingerprint: FINGERPRINT,
            timings,
        })
    }

    fn usage(&self) -> Usage {
        let prompt_tokens = self.replies.first().map_or(0, |reply| reply.tracked.prompt().0);
        let stats = self.replies.iter().filter_map(|reply| reply.tracked.stats.as_ref());
        usage(prompt_tokens, self.replies.len(), stats)
    }

    fn timings(&self) -> Timings {
        self.replies
            .iter()
            .find_map(|reply| reply.tracked.stats.as_ref())
            .map(|stats| timings(stats, &self.miss))
            .unwrap_or_default()
    }

    fn chunk(&self) -> ChatChunk {
        let with_usage = self.request.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
        ChatChunk {
            id: self.meta.id.clone(),
            object: "chat.completion.chunk",
            created: self.meta.created,
            model: self.meta.model.clone(),
            system_fingerprint: FINGERPRINT,
            choices: Vec::new(),
            usage: with_usage.then_some(None),
            timings: None,
            prompt_progress: None,
        }
    }

    fn send(&self, index: usize, delta: ChatDelta, logprobs: Option<ChatLogprobs>, out: &mut Outbox) {
        let choice = ChunkChoice { index, delta, logprobs, ..ChunkChoice::default() };
        out.data(&ChatChunk { choices: vec![choice], ..self.chunk() });
    }

    /// Sends the chunk with the role, which is the first one of a reply.
    fn send_role(&mut self, index: usize, out: &mut Outbox) {
        if !std::mem::replace(&mut self.replies[index].has_role, true) {
            let delta =
                ChatDelta { role: Some("assistant"), content: Some(String::new()), ..ChatDelta::default() };
            self.send(index, delta, None, out);
        }
    }

    fn send_events(
        &mut self,
        index: usize,
        events: Vec<ReplyEvent>,
        mut logprobs: Option<ChatLogprobs>,
        out: &mut Outbox,
    ) {
        let mut events = events.into_iter().peekable();
        while let Some(event) = events.next() {
            let delta = match event {
                ReplyEvent::Text(text) => {
                    if self.files.is_some() {
                        self.replies[index].text.push_str(&text);
                    }
                    ChatDelta { content: Some(text), ..ChatDelta::default() }
                }
                ReplyEvent::Reasoning(text) => {
                    ChatDelta { reasoning_content: Some(text), ..ChatDelta::default() }
                }
                ReplyEvent::ToolCallBegin { id, name } => {
                    let mut call = tool_call(id, name);
                    // A complete call is sent as one chunk.
                    if let Some(ReplyEvent::ToolCallArguments(arguments)) =
                        events.next_if(|next| matches!(next, ReplyEvent::ToolCallArguments(_)))
                    {
                        call.function.arguments = arguments;
                    }
                    let calls = &mut self.replies[index].calls;
                    calls.push(call.clone());
                    ChatDelta { tool_calls: vec![call_start(calls.len() - 1, call)], ..ChatDelta::default() }
                }
                ReplyEvent::ToolCallArguments(arguments) => {
                    let index = self.replies[index].calls.len().saturating_sub(1);
                    let function = FunctionDelta { name: None, arguments };
                    let more = ToolCallDelta { index, id: None, kind: None, function };
                    ChatDelta { tool_calls: vec![more], ..ChatDelta::default() }
                }
                ReplyEvent::ToolCallEnd => continue,
            };
            self.send(index, delta, logprobs.take(), out);
        }
        if logprobs.is_some() {
            // The token's text is withheld by the parser.
            self.send(
                index,
                ChatDelta { content: Some(String::new()), ..ChatDelta::default() },
                logprobs,
                out,
            );
        }
    }
}

fn tool_call(id: String, name: String) -> ToolCall {
    ToolCall { id, kind: "function".to_owned(), function: FunctionCall { name, arguments: String::new() } }
}

fn call_start(index: usize, call: ToolCall) -> ToolCallDelta {
    let function = FunctionDelta { name: Some(call.function.name), arguments: call.function.arguments };
    ToolCallDelta { index, id: Some(call.id), kind: Some("function"), function }
}

impl StreamEncoder for Chat {
    fn begin(&mut self, out: &mut Outbox) {
        // The role is sent with the first token: clients measure the time to the first token by the first chunk.
        out.comment();
    }

    fn on_event(&mut self, index: usize, event: ParsedEvent, out: &mut Outbox) {
        self.replies[index].tracked.record(&event);
        match event {
            ParsedEvent::Progress { reused, done, total } => {
                if self.request.return_progress.unwrap_or(false) {
                    let prompt_progress = Some(self.prompt_progress(reused, done, total));
                    out.data(&ChatChunk { prompt_progress, ..self.chunk() });
                }
            }
            ParsedEvent::Reply(ReplyPart { events, logprobs, .. }) => {
                self.send_role(index, out);
                let logprobs = ChatLogprobs { content: logprobs, refusal: None };
                let logprobs = Some(logprobs).filter(|logprobs| !logprobs.content.is_empty());
                self.send_events(index, events, logprobs, out);
            }
            ParsedEvent::Finished { events, .. } => {
                self.send_role(index, out);
                self.send_events(index, events, None, out);
                let reply = &self.replies[index];
                if let Some(annotations) = self.annotations(&reply.text) {
                    let (content, annotations) = (Some(String::new()), Some(annotations));
                    let delta = ChatDelta { content, annotations, ..ChatDelta::default() };
                    self.send(index, delta, None, out);
                }
                let (finish_reason, stop_reason) = (Some(reply.finish_reason()), self.stop_reason(reply));
                let choice = ChunkChoice { index, finish_reason, stop_reason, ..ChunkChoice::default() };
                let last = self.replies.iter().all(|reply| reply.tracked.stats.is_some());
                let timings = last.then(|| self.timings());
                out.data(&ChatChunk { choices: vec![choice], timings, ..self.chunk() });
            }
        }
    }

    fn end(&mut self, out: &mut Outbox) {
        let chunk = self.chunk();
        if chunk.usage.is_some() {
            out.data(&ChatChunk { usage: Some(Some(self.usage())), ..chunk });
        }
        out.done();
    }
}
