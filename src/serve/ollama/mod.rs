//! Ollama's interface: `/api/chat` and `/api/generate`. [`request`] converts requests, [`encoder`] encodes replies,
//! [`models`] describes the model.

mod encoder;
pub mod models;
mod request;

use super::api::ollama::{OllamaAnswer, OllamaChatRequest, OllamaGenerateRequest, OllamaReply};
use super::app::{App, unix_seconds};
use super::body::RequestBody;
use super::clock::rfc3339;
use super::errors::ApiError;
use super::reply::TrackedReply;
use super::sse::respond;
use super::submit::{PreparedChat, submit_chat};
use super::tenant::Tenant;
use super::{chat, tools, validate};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use encoder::LineEncoder;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::time::Instant;

/// A validated request of either kind.
struct PreparedReply {
    model: Option<String>,
    stream: bool,
    is_chat: bool,
    /// None if the request only asks to load the model.
    prepared: Option<PreparedChat>,
}

/// Generates the next message of a conversation, in the form of Ollama's API
#[utoipa::path(
    post,
    path = "/api/chat",
    request_body = OllamaChatRequest,
    responses(
        (status = 200, description = "The reply, or its lines", content(
            (OllamaReply = "application/json"),
            (OllamaReply = "application/x-ndjson"),
        )),
        super::api::schemas::OllamaRefusals,
    )
)]
pub async fn create_message(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let (shared, cost) = (app.clone(), body.cost());
    let prepare = move |cancelled: &AtomicBool| prepare_chat(&shared, &body, tenant, cancelled);
    let prepared = app.intake.run(cost, prepare).await??;
    reply(&app, prepared, tenant).await
}

/// Continues a prompt, in the form of Ollama's API
#[utoipa::path(
    post,
    path = "/api/generate",
    request_body = OllamaGenerateRequest,
    responses(
        (status = 200, description = "The reply, or its lines", content(
            (OllamaReply = "application/json"),
            (OllamaReply = "application/x-ndjson"),
        )),
        super::api::schemas::OllamaRefusals,
    )
)]
pub async fn generate(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let (shared, cost) = (app.clone(), body.cost());
    let prepare = move |cancelled: &AtomicBool| prepare_completion(&shared, &body, tenant, cancelled);
    let prepared = app.intake.run(cost, prepare).await??;
    reply(&app, prepared, tenant).await
}

fn prepare_chat(
    app: &App,
    body: &RequestBody,
    tenant: Tenant,
    cancelled: &AtomicBool,
) -> Result<PreparedReply, ApiError> {
    let mut request: OllamaChatRequest = body.part()?;
    let generation = request::generation(&request.how)?;
    let is_load = request.messages.is_empty();
    let mut chat_request = request::chat(&mut request)?;
    chat_request.model.clone_from(&request.model);
    let mut prepare = || chat::prepare_chat(app, &mut chat_request, &generation, (tenant, None), cancelled);
    Ok(PreparedReply {
        stream: request.how.stream.unwrap_or(true),
        is_chat: true,
        prepared: if is_load { None } else { Some(prepare()?) },
        model: request.model,
    })
}

fn prepare_completion(
    app: &App,
    body: &RequestBody,
    tenant: Tenant,
    cancelled: &AtomicBool,
) -> Result<PreparedReply, ApiError> {
    let request: OllamaGenerateRequest = body.part()?;
    request::check_completion(&request)?;
    app.check_model(request.model.as_deref())?;
    let generation = request::generation(&request.how)?;
    let prepared = if request.prompt.is_empty() {
        None
    } else if request.raw.unwrap_or(false) {
        let ready = app.ready()?;
        let format = request::format(&request.how)?;
        let grammar = tools::required_format(format.as_ref(), &Default::default())?;
        let grammar = grammar.map(|grammar| app.compile(&grammar, "format", cancelled)).transpose()?;
        let prompt = ready.tokenizer().encode(&request.prompt);
        let engine_request = validate::engine_request(app, ready, prompt, &generation, grammar.as_ref())?;
        Some(PreparedChat::Local(Box::new(engine_request)))
    } else {
        let mut chat_request = request::completion(&request)?;
        Some(chat::prepare_chat(app, &mut chat_request, &generation, (tenant, None), cancelled)?)
    };
    let stream = request.how.stream.unwrap_or(true);
    Ok(PreparedReply { model: request.model, stream, is_chat: false, prepared })
}

async fn reply(app: &Arc<App>, prepared: PreparedReply, tenant: Tenant) -> Result<Response, ApiError> {
    let model = prepared.model.unwrap_or_else(|| app.model_name().to_owned());
    let Some(request) = prepared.prepared else {
        app.source()?;
        return Ok(Json(loaded(model, prepared.is_chat)).into_response());
    };
    let start = Instant::now();
    let events = submit_chat(app, request, tenant).await?;
    let encoder = LineEncoder {
        model,
        is_chat: prepared.is_chat,
        tracked: TrackedReply::new(events.prompt_tokens),
        start,
        call: None,
        whole: OllamaAnswer::default(),
    };
    if prepared.stream {
        return Ok(respond(events, encoder));
    }
    encoder.collect(events).await.map(|reply| Json(reply).into_response())
}

/// Returns the response to a request that only loads the model.
fn loaded(model: String, is_chat: bool) -> OllamaReply {
    let answer = OllamaAnswer { role: "assistant", ..OllamaAnswer::default() };
    OllamaReply {
        model,
        created_at: rfc3339(unix_seconds()),
        message: is_chat.then_some(answer),
        response: (!is_chat).then(String::new),
        done: true,
        done_reason: Some("load"),
        ..OllamaReply::default()
    }
}
