//! Routes requests to handlers through middleware: logging, Host and Origin checks, CORS, and API keys.

use super::app::App;
use super::errors::{ApiError, quoted};
use super::tenant::Tenant;
use super::{chat, completion, host_check, info, openapi, responses, tokenize};
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// Paths that need no API key, as they reveal nothing and cost little.
const OPEN: [&str; 3] = ["/", "/health", "/openapi.json"];

/// Builds the router, which tests call without a socket.
pub fn router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completion::completions))
        .route("/v1/responses", post(responses::create))
        .route("/v1/embeddings", post(info::embeddings))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{model}", get(info::model))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(info::health))
        .route("/metrics", get(info::show_metrics))
        .route("/openapi.json", get(openapi::show))
        .route("/", get(info::page))
        .fallback(|uri: Uri| async move { ApiError::no_route(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let why = format!("{}: method {} not allowed", quoted(uri.path()), quoted(method.as_str()));
            ApiError::malformed(StatusCode::METHOD_NOT_ALLOWED, why)
        })
        .layer(middleware::from_fn_with_state(app.clone(), authenticate));
    let routes = match cors(&app.options.cors) {
        Some(layer) => routes.layer(layer),
        None => routes,
    };
    let checked = routes.layer(middleware::from_fn_with_state(app.clone(), check_host));
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
            // Clients send their own headers, such as OpenAI's x-stainless-*.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([header::RETRY_AFTER]),
    )
}

/// Refuses requests with a foreign Host or Origin.
async fn check_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match host_check::refusal(&app.options.hosts, &app.options.cors, &app.limits, &request) {
        None => next.run(request).await,
        Some(error) => error.into_response(),
    }
}

/// Checks the API key and attaches the tenant to the request.
async fn authenticate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let key = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let key = key.and_then(|v| v.strip_prefix("Bearer ")).map(str::trim);
    let keys = &app.options.keys;
    let known = key.is_some_and(|key| keys.iter().fold(false, |found, k| found | same(k, key)));
    if !keys.is_empty() && !known && !OPEN.contains(&request.uri().path()) {
        return ApiError::unauthorized().into_response();
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|c| c.0.ip());
    let tenant = Tenant::of(key.filter(|_| known), address);
    request.extensions_mut().insert(tenant);
    next.run(request).await
}

/// Compares two keys in constant time for equal lengths.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |apart, (a, b)| apart | (a ^ b)) == 0
}

/// Logs a line per request without its content.
async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (quoted(request.method().as_str()), quoted(request.uri().path()));
    let start = Instant::now();
    let response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), start.elapsed().as_millis() as u64);
    tracing::info!(%method, path, status, ms, "request");
    response
}
