//! Routes requests to handlers through middleware: logging, Host and Origin checks, CORS, and API keys.

use super::app::App;
use super::errors::{ApiError, quoted};
use super::tenant::Tenant;
use super::{
    chat, completion, error_form, files, host_check, info, messages, ollama, openapi, page, responses,
    tokenize,
};
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// Returns true for paths that need no API key, as they reveal nothing and cost little.
fn is_open(path: &str) -> bool {
    ["/", "/health", "/openapi.json"].contains(&path) || path.starts_with("/assets/")
}

/// Builds the router, which tests call without a socket.
pub fn router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completion::completions))
        .route("/v1/responses", post(responses::create))
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/api/chat", post(ollama::create_message))
        .route("/api/generate", post(ollama::generate))
        .route("/api/show", post(ollama::models::show))
        .route("/api/tags", get(ollama::models::tags))
        .route("/api/ps", get(ollama::models::ps))
        .route("/api/version", get(ollama::models::version))
        .route("/props", get(ollama::models::props))
        .route("/v1/files", post(files::routes::create).get(files::routes::list))
        .route("/v1/files/{file_id}", get(files::routes::retrieve).delete(files::routes::delete))
        .route("/v1/files/{file_id}/content", get(files::routes::content))
        .route("/v1/files/{file_id}/text", get(files::routes::text))
        .route("/v1/files/{file_id}/read", post(files::read::read))
        .route("/v1/embeddings", post(info::embeddings))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{model}", get(info::model))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(info::health))
        .route("/metrics", get(info::show_metrics))
        .route("/openapi.json", get(openapi::show))
        .route("/", get(page::index))
        .route("/assets/{*path}", get(page::asset))
        .fallback(|uri: Uri| async move { ApiError::no_route(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let why = format!("{}: method {} not allowed", quoted(uri.path()), quoted(method.as_str()));
            ApiError::malformed(StatusCode::METHOD_NOT_ALLOWED, why)
        })
        .layer(middleware::from_fn_with_state(app.clone(), authenticate));
    let checked =
        routes.layer(cors(&app.options.cors)).layer(middleware::from_fn_with_state(app.clone(), check_host));
    checked.layer(middleware::from_fn(error_form::apply)).layer(middleware::from_fn(log)).with_state(app)
}

/// Allows pages of this machine and of the given origins to read responses.
fn cors(origins: &[String]) -> CorsLayer {
    let origins = origins.to_vec();
    let allowed = if origins.iter().any(|o| o == "*") {
        AllowOrigin::from(Any)
    } else {
        AllowOrigin::predicate(move |origin: &HeaderValue, _: &Parts| {
            let allowed = |origin: &str| {
                host_check::is_loopback_origin(origin) || origins.iter().any(|allowed| allowed == origin)
            };
            origin.to_str().is_ok_and(allowed)
        })
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods(Any)
        // Clients send their own headers, such as OpenAI's x-stainless-*.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER])
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
    let keys = &app.options.keys;
    let is_known = |key: &&str| keys.iter().fold(false, |found, k| found | same(k, key));
    let key = presented_keys(request.headers()).into_iter().flatten().find(is_known);
    if !keys.is_empty() && key.is_none() && !is_open(request.uri().path()) {
        return ApiError::unauthorized().into_response();
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|c| c.0.ip());
    let tenant = Tenant::of(key, address);
    request.extensions_mut().insert(tenant);
    next.run(request).await
}

/// Returns the API keys of a request: OpenAI's clients send a bearer token, Anthropic's `x-api-key`, Azure's `api-key`.
fn presented_keys(headers: &HeaderMap) -> [Option<&str>; 3] {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let bearer = text("authorization").and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    [bearer, text("x-api-key"), text("api-key")]
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
