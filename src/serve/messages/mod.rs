//! `/v1/messages` and `/v1/messages/count_tokens`: chat in the form of Anthropic's API. [`request`] converts requests,
//! [`encoder`] encodes messages.

mod call_id;
mod encoder;
mod request;

use super::api::messages::{MessagesRequest, OutputMessage, TokenCount};
use super::app::{App, ReplySource};
use super::body::RequestBody;
use super::chat;
use super::errors::ApiError;
use super::fields::{self, Interface};
use super::reply::TrackedReply;
use super::sse::respond;
use super::submit::{PreparedChat, submit_chat};
use super::tenant::Tenant;
use super::usage::ResponseMeta;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use encoder::{MessageEncoder, MessageState};
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
    let (request, prepared) = prepared??;
    let events = submit_chat(&app, prepared, tenant).await?;
    let encoder = MessageEncoder {
        meta: ResponseMeta::new(&app, "msg"),
        tracked: TrackedReply::new(events.prompt_tokens),
        stop_sequences: request.stop_sequences.unwrap_or_default(),
        keeps_prompt: app.keeps_prompts(),
        state: MessageState::default(),
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
) -> Result<(MessagesRequest, PreparedChat), ApiError> {
    fields::check(Interface::Messages, body, &app.notices)?;
    let mut request: MessagesRequest = body.part()?;
    let (mut chat_request, generation) = request::chat(&mut request, &app.notices)?;
    let prepared = chat::prepare_chat(app, &mut chat_request, &generation, (tenant, None), cancelled);
    Ok((request, prepared.map_err(|e| e.renamed("stop", "stop_sequences"))?))
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
        let (mut chat_request, _) = request::chat(&mut request, &shared.notices)?;
        chat::prompt_len(&shared, &mut chat_request, tenant)
    };
    app.intake.run(cost, count).await?.map(|input_tokens| Json(TokenCount { input_tokens }))
}
