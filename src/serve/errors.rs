//! Errors in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use models::visible::visible;
use serde::Serialize;
use utoipa::ToSchema;

/// What went wrong, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// Its class.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field of the request that it is about.
    #[schema(required)]
    pub param: Option<String>,
    /// For programs.
    #[schema(required)]
    pub code: Option<&'static str>,
}

/// The body of every answer that is an error.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The one error.
    pub error: ErrorDetail,
}

/// Bytes that an error quotes of a text from a request, from its beginning.
const QUOTED_BYTES: usize = 200;
/// Bytes that an error keeps of a longer message's end, where what was expected is said.
const TAIL_BYTES: usize = 200;

/// A message for one line: control characters are spelled, and the middle of a long one is left out.
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

/// The beginning of a text from a request, for a place in an error or the log.
pub fn quoted(text: &str) -> String {
    let end = text.floor_char_boundary(QUOTED_BYTES);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", visible(&text[..end]))
}

/// A request that is not done.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// The answer's status.
    pub status: StatusCode,
    /// What is told.
    pub detail: ErrorDetail,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        let message = one_line(&message);
        ApiError { status, detail: ErrorDetail { message, kind, param: None, code } }
    }

    /// A field that is wrong: place, expected, found.
    pub fn invalid(param: &str, why: impl ToString) -> Self {
        let message = format!("{}: {}", quoted(param), why.to_string());
        let error =
            Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("invalid_value"), message);
        error.about(param)
    }

    /// A field whose meaning this server does not carry out.
    pub fn unsupported(param: &str, why: impl ToString) -> Self {
        let mut error = Self::invalid(param, why);
        error.detail.code = Some("unsupported_parameter");
        error
    }

    /// A body that is not a request at all.
    pub fn malformed(status: StatusCode, message: impl ToString) -> Self {
        Self::new(status, "invalid_request_error", None, message.to_string())
    }

    /// The prompt does not fit.
    pub fn too_long(message: impl ToString) -> Self {
        let code = Some("context_length_exceeded");
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message.to_string())
            .about("messages")
    }

    /// No such path.
    pub fn no_route(path: &str) -> Self {
        Self::malformed(
            StatusCode::NOT_FOUND,
            format!("{}: no such endpoint; /openapi.json lists them", quoted(path)),
        )
    }

    /// No such model.
    pub fn no_model(found: &str, served: &str) -> Self {
        let message = format!("model: expected {served}, found {}", quoted(found));
        let code = Some("model_not_found");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", code, message).about("model")
    }

    /// No key, or a wrong one.
    pub fn unauthorized() -> Self {
        let message = "expected `Authorization: Bearer KEY` with a key of this server".to_owned();
        let code = Some("invalid_api_key");
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", code, message)
    }

    /// More work than the queue takes.
    pub fn busy(placed: u64) -> Self {
        let message = format!("the queue is full: {placed} requests run or wait; try again later");
        let code = Some("queue_full");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message)
    }

    /// Other grammars are being compiled.
    pub fn compiling(message: impl ToString) -> Self {
        let code = Some("overloaded");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message.to_string())
    }

    /// The client's grammar ends a reply before its end.
    pub fn grammar(why: &str) -> Self {
        let message = format!("grammar: {why}");
        let code = Some("grammar_failed");
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message).about("response_format")
    }

    /// Other bodies fill the memory for them.
    pub fn overloaded(most: usize) -> Self {
        let message = format!("bodies of requests fill their {most} bytes of memory; try again later");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("overloaded"), message)
    }

    /// The server is starting or ending.
    pub fn unavailable(state: &str) -> Self {
        let message = format!("the server is {state}; try again later");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unavailable"), message)
    }

    /// The time limit passed.
    pub fn timeout(seconds: u64) -> Self {
        let message = format!("not done within the server's limit of {seconds} s (--timeout)");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", Some("timeout"), message)
    }

    /// The work stopped for a reason that is ours.
    pub fn internal(message: impl ToString) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message.to_string())
    }

    /// Names the field.
    pub fn about(mut self, param: &str) -> Self {
        self.detail.param = Some(quoted(param));
        self
    }

    /// The body.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail.clone() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
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
    fn messages_are_lines_of_bounded_length() {
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
