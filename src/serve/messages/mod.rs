//! `/v1/messages` and `/v1/messages/count_tokens`: chat in the form of Anthropic's API. [`request`] converts requests,
//! [`encoder`] encodes messages,
//! [`citations`] the quotations of documents in them.

mod call_id;
mod citations;
mod encoder;
mod request;

use super::api::messages::{MessagesRequest, OutputMessage, TokenCount};
use super::app::{App, ReplySource};
use super::body::RequestBody;
use super::chat::{prepare_chat, prompt_len};
use super::errors::ApiError;
use super::fields::{self, Interface};
use super::files::input::attach;
use super::reply::TrackedReply;
use super::sse::respond;
use super::submit::{PreparedChat, submit_chat};
use super::tenant::Tenant;
use super::usage::ResponseMeta;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use citations::CitedFiles;
use encoder::{MessageEncoder, MessageState};
use request::ConvertedRequest;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Generates the assistant's next message in a conversation, in the form of Anthropic's API
#[utoipa::path(
    post,
    path = "/v1/messages",
    request_body = MessagesRequest,
    responses(
        (status = 200, description = "The message, or its events", content(
            (OutputMessage = "application/json"),
            (crate::serve::api::schemas::ServerSentEvent = "text/event-stream"),
        )),
        super::api::schemas::AnthropicRefusals,
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let shared = app.clone();
    let prepared =
        app.intake.run(body.cost(), move |cancelled| prepare(&shared, &body, tenant, cancelled)).await;
    let (request, prepared, cited) = prepared??;
    let events = submit_chat(&app, prepared, tenant).await?;
    let encoder = MessageEncoder {
        meta: ResponseMeta::new(&app, "msg"),
        tracked: TrackedReply::new(events.prompt_tokens),
        stop_sequences: request.stop_sequences.unwrap_or_default(),
        keeps_prompt: app.keeps_prompts(),
        state: MessageState::default(),
        cited,
        miss: events.miss.clone(),
    };
    if request.stream.unwrap_or(false) {
        return Ok(respond(events, encoder));
    }
    encoder.collect(events).await.map(|message| Json(message).into_response())
}

fn prepare(
    app: &App,
    body: &RequestBody,
    tenant: Tenant,
    cancelled: &AtomicBool,
) -> Result<(MessagesRequest, PreparedChat, Option<CitedFiles>), ApiError> {
    fields::check(Interface::Messages, body, &app.notices)?;
    let mut request: MessagesRequest = body.part()?;
    let ConvertedRequest { mut chat, generation, cited } = request::chat(&mut request, &app.notices)?;
    let files = attach(app, tenant.owner, &mut chat)?;
    let prepared = prepare_chat(app, &mut chat, &generation, (tenant, files.as_deref()), cancelled);
    let prepared = prepared.map_err(|e| e.renamed("stop", "stop_sequences"))?;
    let cited = files.zip(cited).map(|(files, indexes)| CitedFiles { files, indexes });
    Ok((request, prepared, cited))
}

/// Counts the tokens of a prompt without generating a message
#[utoipa::path(
    post,
    path = "/v1/messages/count_tokens",
    request_body = MessagesRequest,
    responses((status = 200, description = "The number of tokens", body = TokenCount), super::api::schemas::AnthropicRefusals)
)]
pub async fn count_tokens(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    body: RequestBody,
) -> Result<Json<TokenCount>, ApiError> {
    let (shared, cost) = (app.clone(), body.cost());
    let count = move |_: &AtomicBool| {
        fields::check(Interface::Messages, &body, &shared.notices)?;
        let mut request: MessagesRequest = body.part()?;
        if let ReplySource::Upstream(upstream) = shared.source()? {
            return upstream.count_tokens(&body.for_model(upstream.name()));
        }
        let ConvertedRequest { mut chat, .. } = request::chat(&mut request, &shared.notices)?;
        attach(&shared, tenant.owner, &mut chat)?;
        prompt_len(&shared, &mut chat, tenant)
    };
    app.intake.run(cost, count).await?.map(|input_tokens| Json(TokenCount { input_tokens }))
}
