//! Submits requests to the source of replies: prompts to the scheduler, chats to it or to an upstream server.
//! Next: [`super::events`].

use super::app::{App, Ready, ReplySource};
use super::errors::ApiError;
use super::events::{EventSource, RequestEvents, SchedulerEvents};
use super::tenant::Tenant;
use super::trace::{MissCell, PromptTrace, ReplyTrace};
use super::upstream::UpstreamRequest;
use crate::generation::decoder::GenerationParams;
use crate::generation::markup::ReplyParser;
use crate::prefix_cache::namespace::{Namespace, PromptLayout};
use crate::prefix_cache::served::PromptOutline;
use crate::scheduler::{Command, SequenceRequest};
use std::sync::Arc;

/// A prompt for the scheduler, with one reply for each element of `reply_params`.
pub struct EngineRequest {
    /// Tokens of the prompt, shared by all its replies.
    pub prompt: Arc<[u32]>,
    /// Prompt lengths at which to insert a snapshot.
    pub snapshot_lengths: Vec<usize>,
    /// The start of the question about documents at the start of the prompt.
    pub question: Option<usize>,
    /// Tools and messages of the prompt.
    pub outline: PromptOutline,
    pub reply_params: Vec<GenerationParams>,
    /// The parser at the start of each reply.
    pub parser: ReplyParser,
    /// Report the log-probability of each token and of this many most likely tokens.
    pub logprobs: Option<usize>,
    /// Bytes of its grammar and of the prompt text that the response echoes.
    pub retained_bytes: usize,
}

/// A validated request for the next message of a conversation, for the source of its replies.
pub enum PreparedChat {
    Local(Box<EngineRequest>),
    Upstream(Box<UpstreamRequest>),
}

impl PreparedChat {
    /// Number of replies to the prompt.
    pub fn replies(&self) -> usize {
        match self {
            PreparedChat::Local(request) => request.reply_params.len(),
            PreparedChat::Upstream(request) => request.replies(),
        }
    }
}

impl EngineRequest {
    /// Bytes that count against `queue_bytes`.
    fn bytes(&self) -> u64 {
        let bias = self.reply_params.first().map_or(0, |params| size_of_val(&*params.bias));
        let stops = self.reply_params.iter().flat_map(|params| &params.stops).map(String::len).sum::<usize>();
        (size_of_val(&*self.prompt) + bias + stops + self.retained_bytes) as u64
    }
}

/// Submits a request for the next message of a conversation. A refusal by an upstream server that comes at once is
/// returned; a later one is an error of the events.
pub async fn submit_chat(
    app: &Arc<App>,
    request: PreparedChat,
    tenant: Tenant,
) -> Result<RequestEvents, ApiError> {
    match (request, app.source()?) {
        (PreparedChat::Local(request), _) => submit(app, vec![*request], tenant.id),
        (PreparedChat::Upstream(request), ReplySource::Upstream(upstream)) => {
            let reservation = app.reserve(upstream.parallel, request.bytes())?;
            if app.options.log_prompts {
                tracing::info!(text = request.body, "prompt");
            }
            let source = EventSource::Upstream(Box::new(upstream.send(*request, reservation)));
            let mut events = RequestEvents::new(app, source, None, MissCell::default());
            events.wait_until_accepted().await?;
            Ok(events)
        }
        (PreparedChat::Upstream(_), ReplySource::Local(_)) => Err(ApiError::needs_local_model()),
    }
}

/// Submits requests to the scheduler.
pub fn submit(app: &Arc<App>, requests: Vec<EngineRequest>, tenant: u64) -> Result<RequestEvents, ApiError> {
    let ready = app.ready()?;
    let bytes = requests.iter().map(EngineRequest::bytes).sum();
    let reservation = Arc::new(app.reserve(ready.limits.slots, bytes)?);
    let namespace = |request: &EngineRequest| prompt_namespace(app, tenant, request.question.is_some());
    if app.options.log_prompts {
        let text = |request: &EngineRequest| ready.tokenizer().decode(&request.prompt);
        requests.iter().for_each(|request| tracing::info!(text = text(request), "prompt"));
    }
    let (mut source, sender) = SchedulerEvents::new(ready.tokenizer().clone());
    let mut prompt_tokens = 0;
    let mut miss = None;
    for mut request in requests {
        prompt_tokens += request.prompt.len();
        let (namespace, question) = (namespace(&request), request.question);
        let trace = Arc::new(trace(app, ready, &mut request, namespace));
        miss.get_or_insert_with(|| trace.miss());
        for params in request.reply_params {
            let trace = ReplyTrace::new(trace.clone(), params.max_tokens);
            let client = source.client(sender.clone(), request.parser.clone(), reservation.clone(), trace);
            let (prompt, snapshot_lengths, logprobs) =
                (request.prompt.clone(), request.snapshot_lengths.clone(), request.logprobs);
            let request = Box::new(SequenceRequest {
                prompt,
                snapshot_lengths,
                question,
                params,
                logprobs,
                tenant,
                namespace,
                client,
            });
            ready.commands.send(Command::Submit(request)).map_err(|_| app.engine_stopped())?;
        }
    }
    let source = EventSource::Scheduler(source);
    Ok(RequestEvents::new(app, source, Some(prompt_tokens), miss.unwrap_or_default()))
}

/// Returns the namespace of a prompt, with or without documents at its start.
pub fn prompt_namespace(app: &App, tenant: u64, has_documents: bool) -> Namespace {
    let layout = if has_documents { PromptLayout::Ask } else { PromptLayout::One };
    app.namespace(tenant).with_layout(layout)
}

/// Compares a prompt with the recently served ones of its namespace.
fn trace(app: &App, ready: &Ready, request: &mut EngineRequest, namespace: Namespace) -> PromptTrace {
    let outline = std::mem::take(&mut request.outline);
    PromptTrace {
        engine: ready.engine.clone(),
        history: ready.history.clone(),
        namespace,
        nearest: ready.history.nearest(namespace, &request.prompt, &outline),
        prompt: request.prompt.clone(),
        outline,
        snapshot_lengths: request.snapshot_lengths.clone(),
        with_texts: app.options.explain,
        misses: app.metrics.misses.clone(),
        miss: MissCell::default(),
    }
}
