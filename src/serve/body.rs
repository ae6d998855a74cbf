//! A JSON body read in parts: each part takes the fields it knows and says which one is wrong.

use super::errors::ApiError;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A JSON object that was sent.
#[derive(Debug)]
pub struct Body(Value);

impl Body {
    /// The fields that `T` has; an error names the one that is wrong.
    pub fn part<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(&self.0).map_err(|e| {
            let path = e.path().to_string();
            if path == "." {
                ApiError::malformed(StatusCode::BAD_REQUEST, e.inner())
            } else {
                ApiError::invalid(&path, e.inner())
            }
        })
    }

    /// A field that is there and not null.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // A page of another origin may send forms and plain text unasked, but not JSON.
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        if kind != "application/json" {
            let why = format!("Content-Type: expected application/json, found {kind:?}");
            return Err(ApiError::malformed(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(unread)?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::malformed(StatusCode::BAD_REQUEST, format!("body: expected JSON: {e}")))?;
        if value.is_object() {
            Ok(Body(value))
        } else {
            Err(ApiError::malformed(StatusCode::BAD_REQUEST, "body: expected a JSON object"))
        }
    }
}

fn unread(e: BytesRejection) -> ApiError {
    match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::malformed(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body: larger than the server takes (--max-body)",
        ),
        _ => ApiError::malformed(StatusCode::BAD_REQUEST, e.body_text()),
    }
}
