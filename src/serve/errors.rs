//! Defines error responses in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use crate::client::endpoint::errors::{EndpointError, EndpointFault};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use models::visible::visible;
use serde::Serialize;
use utoipa::ToSchema;

/// An error as clients read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorDetail {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The invalid field of the request.
    #[schema(required)]
    pub param: Option<String>,
    #[schema(required)]
    pub code: Option<&'static str>,
}

/// The body of every error response.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

/// Maximum bytes that an error quotes from the start of a request's text.
const QUOTED_BYTES: usize = 200;
/// Maximum bytes kept of the end of a long message, which states what was expected.
const TAIL_BYTES: usize = 200;

/// Formats a message as one line: escapes control characters and omits the middle of a long one.
fn one_line(message: &str) -> String {
    let message = message.trim();
    let line = if message.len() <= QUOTED_BYTES + TAIL_BYTES {
        message.to_owned()
    } else {
        let (head, tail) = (
            message.floor_char_boundary(QUOTED_BYTES),
            message.ceil_char_boundary(message.len() - TAIL_BYTES),
        );
        format!("{}... [{} bytes] ...{}", &message[..head], tail - head, &message[tail..])
    };
    visible(&line.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned()
}

/// Returns the escaped start of a request's text for an error or the log.
pub fn quoted(text: &str) -> String {
    let end = text.floor_char_boundary(QUOTED_BYTES);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", visible(&text[..end]))
}

/// An error response to a request.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub detail: ErrorDetail,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        let message = one_line(&message);
        ApiError { status, detail: ErrorDetail { message, kind, param: None, code } }
    }

    /// An invalid field, with what was expected and found.
    pub fn invalid(param: &str, why: impl ToString) -> Self {
        let message = format!("{}: {}", quoted(param), why.to_string());
        let error =
            Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("invalid_value"), message);
        error.about(param)
    }

    /// A field that this server does not support.
    pub fn unsupported(param: &str, why: impl ToString) -> Self {
        let mut error = Self::invalid(param, why);
        error.detail.code = Some("unsupported_parameter");
        error
    }

    /// A malformed request that no field can be blamed for.
    pub fn malformed(status: StatusCode, message: impl ToString) -> Self {
        Self::new(status, "invalid_request_error", None, message.to_string())
    }

    /// The prompt exceeds the context or memory.
    pub fn too_long(message: impl ToString) -> Self {
        let code = Some("context_length_exceeded");
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message.to_string())
            .about("messages")
    }

    pub fn no_route(path: &str) -> Self {
        Self::malformed(
            StatusCode::NOT_FOUND,
            format!("{}: no such endpoint; /openapi.json lists them", quoted(path)),
        )
    }

    pub fn no_model(found: &str, served: &str) -> Self {
        let message = format!("model: expected {served}, found {}", quoted(found));
        let code = Some("model_not_found");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", code, message).about("model")
    }

    /// The owner of the key has no file with this id.
    pub fn no_file(id: &str) -> Self {
        let message = format!("no such file: {}", quoted(id));
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("file_not_found"), message)
            .about("file_id")
    }

    /// The disk, the quota or the directory of files does not allow another file.
    pub fn no_storage(why: impl ToString) -> Self {
        let code = Some("insufficient_storage");
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "server_error", code, why.to_string())
    }

    /// No key, or a wrong one.
    pub fn unauthorized() -> Self {
        let message =
            "expected `Authorization: Bearer KEY` or `x-api-key: KEY` with a key of this server".to_owned();
        let code = Some("invalid_api_key");
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", code, message)
    }

    /// The queue of waiting requests is full.
    pub fn busy(placed: u64) -> Self {
        let message = format!("the queue is full: {placed} requests are running or waiting; try again later");
        let code = Some("queue_full");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message)
    }

    /// Other grammars are being compiled.
    pub fn compiling(message: impl ToString) -> Self {
        let code = Some("overloaded");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message.to_string())
    }

    /// The client's grammar failed during generation.
    pub fn grammar(why: &str) -> Self {
        let message = format!("grammar: {why}");
        let code = Some("grammar_failed");
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message).about("response_format")
    }

    /// The memory for request bodies is exhausted.
    pub fn overloaded(most: usize) -> Self {
        let message = format!("request bodies fill their memory of {most} bytes; try again later");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("overloaded"), message)
    }

    /// The server is loading, draining or stopped.
    pub fn unavailable(state: &str) -> Self {
        let message = format!("the server is {state}; try again later");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unavailable"), message)
    }

    /// The GPU failed during the reply; the CPU computes later ones.
    pub fn device_failed(why: &str) -> Self {
        let message =
            format!("the GPU failed and the reply ended: {why}; the server continues on the CPU, try again");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("device_failed"), message)
    }

    /// The endpoint needs a model that is loaded here.
    pub fn needs_local_model() -> Self {
        let message = "this endpoint needs the model's tokenizer and is not available with --upstream: send it to the \
            upstream server, or use /v1/chat/completions";
        let code = Some("unsupported_endpoint");
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message.to_owned())
    }

    /// A request failed at an upstream server, whose URL clients do not see. What the client can mend keeps its status; a
    /// refused key and a missing model are faults of this server's settings.
    pub fn upstream(e: EndpointError, base: &str) -> Self {
        let message =
            format!("upstream server: {}", e.message.trim_start_matches(base).trim_start_matches(": "));
        let status = match e.fault {
            EndpointFault::Status(status @ (400 | 413 | 422 | 429 | 503 | 504)) => {
                StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY)
            }
            EndpointFault::Status(408) | EndpointFault::Timeout => StatusCode::GATEWAY_TIMEOUT,
            EndpointFault::Status(_) | EndpointFault::Connection | EndpointFault::Response => {
                StatusCode::BAD_GATEWAY
            }
        };
        let (kind, code) = match status {
            StatusCode::TOO_MANY_REQUESTS => ("rate_limit_error", "upstream_busy"),
            StatusCode::GATEWAY_TIMEOUT => ("server_error", "upstream_timeout"),
            status if status.is_client_error() => ("invalid_request_error", "upstream_refused"),
            _ => ("server_error", "upstream_failed"),
        };
        Self::new(status, kind, Some(code), message)
    }

    pub fn timeout(seconds: u64) -> Self {
        let message = format!("request exceeded the server's time limit of {seconds} s (--timeout)");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", Some("timeout"), message)
    }

    /// The server failed through no fault of the client.
    pub fn internal(message: impl ToString) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message.to_string())
    }

    /// Sets the field that the error names.
    pub fn about(mut self, param: &str) -> Self {
        self.detail.param = Some(quoted(param));
        self
    }

    /// Replaces the name of a field that another interface has under another name.
    pub fn renamed(mut self, from: &str, to: &str) -> Self {
        if self.detail.param.as_deref() == Some(from) {
            self.detail.message = self.detail.message.replacen(from, to, 1);
            self.detail.param = Some(to.to_owned());
        }
        self
    }

    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail.clone() }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.detail.message)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        // Read by `error_form`.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        if [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&self.status) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_lines() {
        assert_eq!(one_line("a:\n\tb\u{1b}[2K\u{9b}"), "a: b^[[2K<U+009B>");
        let long = format!("unknown variant `{}`, expected `a` or `b`", "é".repeat(50_000));
        let line = one_line(&long);
        assert!(line.len() < 450 && line.starts_with("unknown variant `é"), "{line}");
        assert!(line.contains(" bytes] ...") && line.ends_with("expected `a` or `b`"), "{line}");
        assert_eq!(quoted(&"é".repeat(150)), format!("{}...", "é".repeat(100)));
        let error = ApiError::no_model(&"x".repeat(100_000), "tiny");
        assert!(error.detail.message.len() < 300, "{}", error.detail.message);
        assert!(error.about(&"y".repeat(1000)).detail.param.unwrap().len() < 210);
    }
}
