//! Extracts JSON request bodies, which handlers deserialize in parts with errors that name the field.

use super::app::App;
use super::errors::ApiError;
use super::intake::{BodyReservation, ReceivedBody};
use super::json::{self, Parsed};
use super::limits::LimitEvent;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;

/// Bytes of parsed values that cost as much work as a byte of text.
const VALUE_COST: usize = 8;

/// A received JSON object, with its memory reservation.
#[derive(Debug)]
pub struct RequestBody {
    value: Value,
    cost: usize,
    _reservation: BodyReservation,
}

impl RequestBody {
    /// Deserializes the fields of `T`; an error names the invalid field.
    pub fn part<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(&self.value).map_err(|e| {
            let path = e.path().to_string();
            if path == "." {
                ApiError::malformed(StatusCode::BAD_REQUEST, e.inner())
            } else {
                ApiError::invalid(&path, e.inner())
            }
        })
    }

    /// Returns the fields of the object.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the body as JSON text, for another name of the model.
    pub fn for_model(&self, name: &str) -> String {
        let mut value = self.value.clone();
        value["model"] = name.into();
        value.to_string()
    }

    /// Estimates the processing cost, in bytes of plain text.
    pub fn cost(&self) -> usize {
        self.cost
    }
}

impl FromRequest<Arc<App>> for RequestBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        // Pages of other origins may send forms and plain text without a CORS preflight, but not JSON.
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        if kind != "application/json" && !is_curl_default(&kind, &request) {
            let why = format!("Content-Type: expected application/json, found {kind:?}");
            return Err(ApiError::malformed(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        let declared =
            request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let ReceivedBody { bytes, mut reservation } =
            app.intake.receive(&app.limits, declared, request.into_body()).await?;
        let size = bytes.len();
        let parsed = app.intake.run(size, move |cancelled| json::parse(&bytes, cancelled)).await?;
        let Parsed { value, memory } = parsed.map_err(|e| {
            if matches!(e, json::JsonError::TooMany(..)) {
                app.limits.note(LimitEvent::JsonSize);
            }
            ApiError::malformed(StatusCode::BAD_REQUEST, format!("body: {e}"))
        })?;
        if memory > size {
            reservation.extend(&app.intake, &app.limits, memory - size).await?;
        }
        if value.is_object() {
            Ok(RequestBody { value, cost: size.max(memory / VALUE_COST), _reservation: reservation })
        } else {
            Err(ApiError::malformed(StatusCode::BAD_REQUEST, "body: expected a JSON object"))
        }
    }
}

/// Whether a request to Ollama's interface has the content type that curl sends with `-d`: its documentation omits the header.
/// Browsers send an Origin with every form, so no page can send such a request.
fn is_curl_default(kind: &str, request: &Request) -> bool {
    kind == "application/x-www-form-urlencoded"
        && request.uri().path().starts_with("/api/")
        && !request.headers().contains_key(header::ORIGIN)
}
