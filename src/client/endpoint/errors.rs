//! Errors of requests to an endpoint: a message of one line that names the endpoint, and the kind of fault, which `serve`
//! maps to a status.

use super::Endpoint;
use serde_json::Value;
use std::io::Read;
use ureq::Body;
use ureq::http::Response;

/// Maximum bytes read of an error response.
const MAX_ERROR_BYTES: u64 = 4096;
/// Maximum characters of an endpoint's message in an error.
const MAX_MESSAGE_CHARS: usize = 500;

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointFault {
    /// The endpoint answered with this HTTP status, or with this code in an error of a stream.
    Status(u16),
    /// The connection, the response or its next part did not come in time.
    Timeout,
    /// There is no connection, or it broke off.
    Connection,
    /// The response is not one of an OpenAI-style endpoint, exceeds a limit, or reports an error without a status.
    Response,
}

/// Why a request to an endpoint failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EndpointError {
    pub fault: EndpointFault,
    pub message: String,
}

impl EndpointError {
    pub fn new(fault: EndpointFault, message: String) -> Self {
        EndpointError { fault, message }
    }

    /// The error for a response with a status other than success.
    pub fn of_response(endpoint: &Endpoint, response: &mut Response<Body>) -> Self {
        let Endpoint { base, settings, .. } = endpoint;
        let status = response.status().as_u16();
        let fault = EndpointFault::Status(status);
        if response.status().is_redirection() {
            let to = response.headers().get("location");
            let to = to.map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
            let to = truncate(&to.unwrap_or_default());
            let advice = format!("redirects are not followed, set {} to that address", settings.url);
            return Self::new(fault, format!("{base}: HTTP {status} to {to}; {advice}"));
        }
        let mut body = Vec::new();
        let _ = response.body_mut().as_reader().take(MAX_ERROR_BYTES).read_to_end(&mut body);
        let text = String::from_utf8_lossy(&body);
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = message_of(&json).unwrap_or(text.trim());
        let advice = if status == 401 { format!(" (the key is {})", settings.key) } else { String::new() };
        let message = truncate(message).replace('\n', " ");
        Self::new(fault, format!("{base}: HTTP {status}: {message}{advice}"))
    }

    /// The error that an event of a stream reports, if any.
    pub fn of_event(base: &str, event: &Value) -> Option<Self> {
        let error = event.get("error").filter(|error| !error.is_null())?;
        let code = error["code"].as_u64().and_then(|code| u16::try_from(code).ok());
        let status = code.filter(|code| (400..600).contains(code));
        let fault = status.map_or(EndpointFault::Response, EndpointFault::Status);
        let text = message_of(event).map_or_else(|| error.to_string(), str::to_owned);
        Some(Self::new(fault, format!("{base}: {}", truncate(&text))))
    }
}

/// The message of an error in the forms of OpenAI, Ollama, FastAPI and others.
fn message_of(json: &Value) -> Option<&str> {
    let places = ["/error/message", "/message", "/error", "/detail", "/detail/0/msg"];
    places.iter().find_map(|place| json.pointer(place)?.as_str())
}

/// Truncates a text from an endpoint.
pub fn truncate(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
