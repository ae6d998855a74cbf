//! Implements the endpoints for health, metrics and models, and the refusal of embeddings.

use super::api::schemas::Refusals;
use super::api::{Health, ModelCard, ModelList};
use super::app::App;
use super::clock::rfc3339;
use super::errors::ApiError;
use super::metrics::{self, SourceState};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// Returns the status of the server
#[utoipa::path(
    get,
    path = "/health",
    responses(
        (status = 200, description = "The server accepts requests, after a failure of the GPU on the CPU (degraded)", body = Health),
        (status = 503, description = "The server is loading, draining or has failed, or its upstream server does not answer", body = Health),
    )
)]
pub async fn health(State(app): State<Arc<App>>) -> Response {
    let status = match app.status() {
        "ready" if !upstream_is_reachable(&app).await => "unreachable",
        status => status,
    };
    let accepts = matches!(status, "ready" | "degraded");
    let code = if accepts { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Health { status })).into_response()
}

/// Returns false if there is an upstream server that does not answer.
async fn upstream_is_reachable(app: &App) -> bool {
    match app.upstream() {
        Some(upstream) => upstream.is_reachable().await,
        None => true,
    }
}

/// Returns metrics in the OpenMetrics format
#[utoipa::path(
    get,
    path = "/metrics",
    responses(
        (status = 200, description = "OpenMetrics", body = String, content_type = "application/openmetrics-text"),
        Refusals,
    )
)]
pub async fn show_metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let source = match (app.loaded(), app.upstream()) {
        (Some(ready), _) => SourceState::Scheduler(&ready.gauges),
        (None, Some(upstream)) => {
            let running = upstream.running() as u64;
            SourceState::Upstream { running, waiting: app.in_flight().saturating_sub(running) }
        }
        (None, None) => SourceState::Loading,
    };
    let text = metrics::text(&app.metrics, &app.limits, &source);
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn cards(app: &App) -> Result<Vec<ModelCard>, ApiError> {
    let context_length = app.context_length()?;
    let card = |id: &String| ModelCard {
        id: id.clone(),
        object: "model",
        created: app.started,
        owned_by: "kimi",
        context_length,
        kind: "model",
        display_name: id.clone(),
        created_at: rfc3339(app.started),
    };
    Ok(app.options.names.iter().map(card).collect())
}

/// Lists the served model under each of its names
#[utoipa::path(
    get,
    path = "/v1/models",
    responses((status = 200, description = "The models", body = ModelList), Refusals)
)]
pub async fn models(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    let data = cards(&app)?;
    let id = |card: Option<&ModelCard>| card.map(|card| card.id.clone());
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    Ok(Json(ModelList { object: "list", data, has_more: false, first_id, last_id }))
}

/// Returns the served model by one of its names
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    params(("model" = String, Path, description = "The name")),
    responses((status = 200, description = "The model", body = ModelCard), Refusals)
)]
pub async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let Path(id) = id.map_err(|e| ApiError::malformed(e.status(), format!("model: {}", e.body_text())))?;
    let found = cards(&app)?.into_iter().find(|card| card.id == id);
    found.map(Json).ok_or_else(|| ApiError::no_model(&id, &app.options.names.join(" or ")))
}

/// Refused, because the model has no embeddings
#[utoipa::path(post, path = "/v1/embeddings", responses(Refusals))]
pub async fn embeddings() -> ApiError {
    let why = "kimi does not compute embeddings";
    let mut error = ApiError::malformed(StatusCode::BAD_REQUEST, format!("/v1/embeddings: {why}"));
    error.detail.code = Some("unsupported_endpoint");
    error
}
