//! Paths, and the layers around them: log, Host and Origin, CORS, key.

use super::api::{Health, ModelCard, ModelList};
use super::app::App;
use super::connections::network;
use super::errors::{ApiError, quoted};
use super::{chat, completion, host_check, metrics, openapi, responses, tokenize};
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// Whose a request is: its key's, or that of its address's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(pub u64);

/// Paths that need no key: they tell nothing and cost nothing.
const OPEN: [&str; 3] = ["/", "/health", "/openapi.json"];

/// The server without a socket.
pub fn router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completion::completions))
        .route("/v1/responses", post(responses::create))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health))
        .route("/metrics", get(show_metrics))
        .route("/openapi.json", get(openapi::show))
        .route("/", get(page))
        .fallback(|uri: Uri| async move { ApiError::no_route(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let why = format!("{}: method {} not allowed", quoted(uri.path()), quoted(method.as_str()));
            ApiError::malformed(StatusCode::METHOD_NOT_ALLOWED, why)
        })
        .layer(middleware::from_fn_with_state(app.clone(), admit));
    let routes = match cors(&app.options.cors) {
        Some(layer) => routes.layer(layer),
        None => routes,
    };
    let checked = routes.layer(middleware::from_fn_with_state(app.clone(), host_check::check));
    checked.layer(middleware::from_fn(log)).with_state(app)
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|o| o == "*") {
        AllowOrigin::from(Any)
    } else {
        AllowOrigin::list(origins.iter().filter_map(|o| HeaderValue::from_str(o).ok()))
    };
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods(Any)
            // Clients tell about themselves in headers of their own: OpenAI's in x-stainless-*.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([header::RETRY_AFTER]),
    )
}

/// Checks the key and notes whose the request is.
async fn admit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let key = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let key = key.and_then(|v| v.strip_prefix("Bearer ")).map(str::trim);
    let keys = &app.options.keys;
    let known = key.is_some_and(|key| keys.iter().fold(false, |found, k| found | same(k, key)));
    if !keys.is_empty() && !known && !OPEN.contains(&request.uri().path()) {
        return ApiError::unauthorized().into_response();
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|c| c.0.ip());
    let owner = Owner::of(key.filter(|_| known), address);
    request.extensions_mut().insert(owner);
    next.run(request).await
}

impl Owner {
    /// By the key, or without one by the network of the address.
    fn of(key: Option<&str>, address: Option<IpAddr>) -> Owner {
        let mut hasher = DefaultHasher::new();
        match key {
            Some(key) => key.hash(&mut hasher),
            None => address.map(network).hash(&mut hasher),
        }
        Owner(hasher.finish())
    }
}

/// Whether two keys are the same, in a time that does not tell where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |apart, (a, b)| apart | (a ^ b)) == 0
}

/// A line for each request; what was asked stays out of it.
async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (quoted(request.method().as_str()), quoted(request.uri().path()));
    let start = Instant::now();
    let response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), start.elapsed().as_millis() as u64);
    tracing::info!(%method, path, status, ms, "request");
    response
}

/// What the server does.
#[utoipa::path(
    get,
    path = "/health",
    responses(
        (status = 200, description = "It answers", body = Health),
        (status = 503, description = "It is loading, ending or has failed", body = Health),
    )
)]
pub async fn health(State(app): State<Arc<App>>) -> Response {
    let status = app.status();
    let code = if status == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Health { status })).into_response()
}

/// What is counted, in Prometheus' words.
#[utoipa::path(
    get,
    path = "/metrics",
    responses(
        (status = 200, description = "OpenMetrics", body = String, content_type = "application/openmetrics-text"),
        openapi::Refusals,
    )
)]
pub async fn show_metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::text(&app)).into_response()
}

/// The built-in page, which says itself that it may ask this server and nobody else.
async fn page() -> Response {
    ([(header::X_FRAME_OPTIONS, "DENY")], Html(include_str!("page.html"))).into_response()
}

fn cards(app: &App) -> Result<Vec<ModelCard>, ApiError> {
    let context_length = app.ready()?.engine.context();
    let card = |id: &String| ModelCard {
        id: id.clone(),
        object: "model",
        created: app.started,
        owned_by: "kimi",
        context_length,
    };
    Ok(app.options.names.iter().map(card).collect())
}

/// The served model, by each of its names.
#[utoipa::path(
    get,
    path = "/v1/models",
    responses((status = 200, description = "The models", body = ModelList), openapi::Refusals)
)]
pub async fn models(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    Ok(Json(ModelList { object: "list", data: cards(&app)? }))
}

/// The served model by one of its names.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    params(("model" = String, Path, description = "The name")),
    responses((status = 200, description = "The model", body = ModelCard), openapi::Refusals)
)]
pub async fn model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let Path(id) = id.map_err(|e| ApiError::malformed(e.status(), format!("model: {}", e.body_text())))?;
    let found = cards(&app)?.into_iter().find(|card| card.id == id);
    found.map(Json).ok_or_else(|| ApiError::no_model(&id, &app.options.names.join(" or ")))
}

/// Refused: the model has none.
#[utoipa::path(post, path = "/v1/embeddings", responses(openapi::Refusals))]
pub async fn embeddings() -> ApiError {
    let why = "this model generates text; it has no embeddings to give";
    let mut error = ApiError::malformed(StatusCode::BAD_REQUEST, format!("/v1/embeddings: {why}"));
    error.detail.code = Some("unsupported_endpoint");
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_one_owner_with_all_its_addresses() {
        let of = |key, address: &str| Owner::of(key, Some(address.parse().unwrap()));
        assert_eq!(of(None, "2001:db8::1"), of(None, "2001:db8::2:3"));
        assert_eq!(of(None, "::ffff:192.0.2.1"), of(None, "192.0.2.1"));
        assert_ne!(of(None, "2001:db8::1"), of(None, "2001:db8:0:1::1"));
        assert_ne!(of(None, "192.0.2.1"), of(None, "192.0.2.2"));
        assert_eq!(of(Some("key"), "192.0.2.1"), of(Some("key"), "192.0.2.2"));
    }
}
