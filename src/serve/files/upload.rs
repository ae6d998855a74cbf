//! Receives an uploaded file as a stream of multipart/form-data into a temporary file, within the limits on bodies and on the
//! files of an owner. Next: [`super::store`].

use super::store::{FileStore, TemporaryFile, storage_error};
use crate::serve::app::App;
use crate::serve::errors::ApiError;
use crate::serve::host_check;
use crate::serve::tenant::Owner;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::stream;
use multer::{Field, Multipart};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Bytes that are collected before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// Maximum bytes of a file's name, as file systems have it.
const MAX_NAME_BYTES: usize = 255;
/// Maximum bytes of the field `purpose`.
const MAX_PURPOSE_BYTES: usize = 64;

/// A file that was received completely.
pub struct Upload {
    pub filename: String,
    pub purpose: String,
    pub bytes: u64,
    pub hash: blake3::Hash,
    pub data: TemporaryFile,
}

/// A file that is being received.
struct Receiver {
    data: TemporaryFile,
    hash: blake3::Hasher,
    bytes: u64,
    /// Maximum bytes of the file.
    limit: u64,
}

/// Receives the form of an upload.
///
/// # Errors
/// Returns 415 for another content type, 403 for a page of another origin, 400 for a form without a file or one that is cut off, 507 if the files of the owner
/// would exceed their limit, and the errors of all bodies.
pub async fn receive(
    app: &Arc<App>,
    owner: Owner,
    headers: &HeaderMap,
    body: Body,
) -> Result<Upload, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let boundary = multer::parse_boundary(kind).map_err(|_| {
        let why = format!("Content-Type: expected multipart/form-data with a boundary, found {kind:?}");
        ApiError::malformed(StatusCode::UNSUPPORTED_MEDIA_TYPE, why)
    })?;
    if let Some(error) = host_check::form_refusal(headers, &app.options.cors) {
        return Err(error);
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = app.intake.limited(&app.limits, declared, body)?;
    let chunks = stream::unfold(body, |mut body| async move { Some((body.next().await?, body)) });
    let mut form = Multipart::new(chunks, boundary);
    let (mut file, mut purpose) = (None, "user_data".to_owned());
    while let Some(field) = form.next_field().await.map_err(refused)? {
        match field.name() {
            Some("file") if file.is_some() => {
                return Err(ApiError::invalid("file", "expected one file, found several"));
            }
            Some("file") => {
                let name = file_name(field.file_name())?;
                let (shared, store) = (app.clone(), move |store: &FileStore| store.begin(owner));
                let begun = app.intake.run(0, move |_| store(&shared.files)).await??;
                file = Some((name, save(field, begun, app.files.limit()).await?));
            }
            Some("purpose") => purpose = text(field).await?,
            // Other fields, such as OpenAI's expires_after, are skipped.
            _ => {}
        }
    }
    let (filename, receiver) =
        file.ok_or_else(|| ApiError::invalid("file", "expected a file, found none"))?;
    let Receiver { data, hash, bytes, .. } = receiver;
    Ok(Upload { filename, purpose, bytes, hash: hash.finalize(), data })
}

/// Returns the error of a form; those of the body keep their status.
fn refused(e: multer::Error) -> ApiError {
    match e {
        multer::Error::StreamReadFailed(e) => match e.downcast::<ApiError>() {
            Ok(e) => *e,
            Err(e) => ApiError::malformed(StatusCode::BAD_REQUEST, format!("body: {e}")),
        },
        e => ApiError::malformed(StatusCode::BAD_REQUEST, format!("body: {e}")),
    }
}

/// Returns the last part of the path that a client sends as the name of a file.
pub fn file_name(name: Option<&str>) -> Result<String, ApiError> {
    let name = name.unwrap_or_default();
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = last.chars().filter(|c| !c.is_control()).collect();
    let name = name.trim();
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        let why = format!("expected a name of 1 to {MAX_NAME_BYTES} bytes, found {}", name.len());
        return Err(ApiError::invalid("filename", why));
    }
    Ok(name.to_owned())
}

/// Reads a short field as text.
async fn text(mut field: Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(refused)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_PURPOSE_BYTES {
            let why = format!("expected at most {MAX_PURPOSE_BYTES} bytes, found more");
            return Err(ApiError::invalid("purpose", why));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid("purpose", "expected UTF-8"))
}

/// Writes a field to a temporary file on blocking threads.
async fn save(
    mut field: Field<'_>,
    (data, used): (TemporaryFile, u64),
    quota: u64,
) -> Result<Receiver, ApiError> {
    let limit = quota.saturating_sub(used);
    let mut receiver = Receiver { data, hash: blake3::Hasher::new(), bytes: 0, limit };
    let (mut chunks, mut size): (Vec<Bytes>, usize) = (Vec::new(), 0);
    loop {
        let chunk = field.chunk().await.map_err(refused)?;
        let is_last = chunk.is_none();
        size += chunk.as_ref().map_or(0, Bytes::len);
        chunks.extend(chunk);
        if is_last || size >= WRITE_BYTES {
            let chunks = std::mem::take(&mut chunks);
            size = 0;
            let written = tokio::task::spawn_blocking(move || receiver.write(&chunks));
            receiver = written.await.map_err(ApiError::internal)??;
        }
        if is_last {
            return Ok(receiver);
        }
    }
}

impl Receiver {
    fn write(mut self, chunks: &[Bytes]) -> Result<Self, ApiError> {
        self.bytes += chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        if self.bytes > self.limit {
            let why = "the files of this key exceed their limit; delete some, or raise --files-size";
            return Err(ApiError::no_storage(why));
        }
        for chunk in chunks {
            self.hash.update(chunk);
            self.data.file.write_all(chunk).map_err(|e| storage_error(Path::new("upload"), &e))?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_without_directories_and_control_characters() {
        for (sent, name) in [("a.pdf", "a.pdf"), ("C:\\x\\a b.pdf", "a b.pdf"), ("../../é\n.txt ", "é.txt")]
        {
            assert_eq!(file_name(Some(sent)).unwrap(), name);
        }
        for sent in [None, Some(""), Some("a/"), Some(&*"x".repeat(256))] {
            assert_eq!(file_name(sent).unwrap_err().status, StatusCode::BAD_REQUEST, "{sent:?}");
        }
    }
}
