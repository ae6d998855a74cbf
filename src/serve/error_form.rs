//! Gives error responses the form of the interface that was called: OpenAI's, Anthropic's or Ollama's.

use super::api::ollama::OllamaError;
use super::errors::ApiError;
use super::logprobs::new_id;
use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// The form of an interface's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorForm {
    OpenAi,
    Anthropic,
    Ollama,
}

impl ErrorForm {
    /// Returns the form of the errors under a path.
    fn of(path: &str) -> ErrorForm {
        let is_under =
            |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        match () {
            () if is_under("/v1/messages") => ErrorForm::Anthropic,
            () if is_under("/api") => ErrorForm::Ollama,
            () => ErrorForm::OpenAi,
        }
    }

    /// Returns the body of an error response.
    pub fn body(self, error: &ApiError) -> Value {
        match self {
            ErrorForm::OpenAi => json!(error.body()),
            ErrorForm::Anthropic => {
                let error = AnthropicDetail {
                    kind: anthropic_kind(error.status),
                    message: error.detail.message.clone(),
                };
                json!(AnthropicError { kind: "error", error })
            }
            ErrorForm::Ollama => json!(OllamaError { error: error.detail.message.clone() }),
        }
    }
}

/// The body of an error response in Anthropic's form.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AnthropicError {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub error: AnthropicDetail,
}

/// An error in Anthropic's form.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AnthropicDetail {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub message: String,
}

fn anthropic_kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "timeout_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}

/// Rewrites the body of an error response, and sends the id that Anthropic's clients report.
pub async fn apply(request: Request, next: Next) -> Response {
    let form = ErrorForm::of(request.uri().path());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions().get::<ApiError>().filter(|_| form != ErrorForm::OpenAi) {
        let (body, headers) = (Json(form.body(error)), response.headers().clone());
        let status = response.status();
        response = (status, body).into_response();
        for (name, value) in &headers {
            if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    if form == ErrorForm::Anthropic
        && let Ok(id) = HeaderValue::from_str(&new_id("req"))
    {
        response.headers_mut().insert("request-id", id);
    }
    response
}
