//! The endpoints of files: upload, list, retrieve, content, text and deletion, in OpenAI's form. Next: [`super::upload`],
//! [`super::read`].

use super::set::FileSource;
use super::store::{MAX_FILES, StoredFile, file_id};
use super::upload::{self, Upload};
use crate::documents::{Document, format_name};
use crate::io::errors::one_line;
use crate::serve::api::files::{
    FileDeleted, FileList, FileObject, FileQuery, FileText, FileUpload, TextPlace,
};
use crate::serve::api::schemas::Refusals;
use crate::serve::app::{App, Ready, unix_seconds};
use crate::serve::errors::ApiError;
use crate::serve::submit::prompt_namespace;
use crate::serve::tenant::Tenant;
use crate::serve::validate::within;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

/// The id in the path of a request.
pub type PathId = Result<Path<String>, PathRejection>;

/// Returns the id in a path; one that is not UTF-8 belongs to no file.
pub fn named(id: PathId) -> Result<String, ApiError> {
    id.map(|Path(id)| id).map_err(|_| ApiError::no_file("an id that is not UTF-8"))
}

/// Bytes of a file that are read at a time.
const READ_BYTES: usize = 256 << 10;

/// Stores a file, whose text is extracted; the same file again is the same object
#[utoipa::path(
    post,
    path = "/v1/files",
    request_body(content = FileUpload, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The file; its status says whether it has text", body = FileObject),
        (status = 507, description = "The disk or the quota of files is full", body = crate::serve::errors::ErrorBody),
        Refusals,
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    request: Request,
) -> Result<Json<FileObject>, ApiError> {
    let (parts, body) = request.into_parts();
    let upload = upload::receive(&app, tenant.owner, &parts.headers, body).await?;
    let (shared, cost) = (app.clone(), upload.bytes as usize);
    app.intake.run(cost, move |_| add(&shared, tenant, upload)).await?.map(Json)
}

/// Extracts the text of a received file and stores both, unless the file is there.
fn add(app: &App, tenant: Tenant, upload: Upload) -> Result<FileObject, ApiError> {
    let Upload { filename, purpose, bytes, hash, data } = upload;
    let id = file_id(tenant.owner, &filename, hash);
    if let Ok(record) = app.files.find(tenant.owner, &id) {
        return object(app, tenant, record);
    }
    let content = data.read().map_err(ApiError::internal)?;
    let document = Document::from_bytes(&filename, &content);
    let record = StoredFile {
        id,
        format: format_name(&content, document.as_ref().ok()).to_owned(),
        fault: document.as_ref().err().map(one_line),
        filename,
        purpose,
        bytes,
        created_at: unix_seconds(),
    };
    drop(content);
    app.files.add(tenant.owner, &record, data, document.as_ref().ok())?;
    object(app, tenant, record)
}

/// Lists the uploaded files of this API key
#[utoipa::path(
    get,
    path = "/v1/files",
    params(
        ("limit" = Option<usize>, Query, description = "Maximum number of files, 1 to 10,000"),
        ("after" = Option<String>, Query, description = "Id of the last file of the list before"),
        ("order" = Option<String>, Query, description = "By time of the upload: asc or desc"),
        ("purpose" = Option<String>, Query, description = "Files with this purpose only"),
    ),
    responses((status = 200, description = "The files, the latest first", body = FileList), Refusals)
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    query: Result<Query<FileQuery>, QueryRejection>,
) -> Result<Json<FileList>, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::malformed(e.status(), e.body_text()))?;
    let shared = app.clone();
    app.intake.run(0, move |_| listed(&shared, tenant, &query)).await?.map(Json)
}

fn listed(app: &App, tenant: Tenant, query: &FileQuery) -> Result<FileList, ApiError> {
    let limit = within("limit", query.limit.unwrap_or(MAX_FILES), 1, MAX_FILES)?;
    let mut all = app.files.list(tenant.owner)?;
    match query.order.as_deref() {
        Some("asc") => {}
        None | Some("desc") => all.reverse(),
        Some(other) => {
            return Err(ApiError::invalid("order", format!("expected asc or desc, found {other}")));
        }
    }
    if let Some(after) = &query.after {
        let at = all.iter().position(|file| file.id == *after).ok_or_else(|| ApiError::no_file(after))?;
        all.drain(..=at);
    }
    all.retain(|file| query.purpose.as_ref().is_none_or(|purpose| file.purpose == *purpose));
    let has_more = all.len() > limit;
    all.truncate(limit);
    let data = all.into_iter().map(|file| object(app, tenant, file)).collect::<Result<Vec<_>, _>>()?;
    let id = |file: Option<&FileObject>| file.map(|file| file.id.clone());
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    Ok(FileList { object: "list", data, first_id, last_id, has_more })
}

/// Returns an uploaded file with its state
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}",
    params(("file_id" = String, Path, description = "Id of the file")),
    responses((status = 200, description = "The file", body = FileObject), Refusals)
)]
pub async fn retrieve(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    id: PathId,
) -> Result<Json<FileObject>, ApiError> {
    let (shared, id) = (app.clone(), named(id)?);
    let find = move |_: &_| object(&shared, tenant, shared.files.find(tenant.owner, &id)?);
    app.intake.run(0, find).await?.map(Json)
}

/// Deletes an uploaded file, its text, and what the prefix cache has of its prompts
#[utoipa::path(
    delete,
    path = "/v1/files/{file_id}",
    params(("file_id" = String, Path, description = "Id of the file")),
    responses((status = 200, description = "The file is deleted", body = FileDeleted), Refusals)
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    id: PathId,
) -> Result<Json<FileDeleted>, ApiError> {
    let (shared, id) = (app.clone(), named(id)?);
    let remove = move |_: &_| {
        let record = shared.files.find(tenant.owner, &id)?;
        forget(&shared, tenant, &record);
        shared.files.remove(tenant.owner, &record)?;
        shared.file_sets.forget(tenant.owner, &id);
        Ok(Json(FileDeleted { id, object: "file", deleted: true }))
    };
    app.intake.run(0, remove).await?
}

/// Removes what the prefix cache has of a file's prompts, if its tokens are known.
fn forget(app: &App, tenant: Tenant, record: &StoredFile) {
    let sources = [FileSource::Stored(record.clone())];
    if let Some(ready) = app.loaded().filter(|_| record.fault.is_none())
        && let Ok(set) = app.file_sets.get(&app.files, tenant.owner, &sources)
        && let Ok(prefix) = set.prefix(&app.files, &ready.engine)
    {
        ready.engine.forget(prompt_namespace(app, tenant.id, true), &prefix.tokens);
    }
}

/// Returns the bytes of an uploaded file
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/content",
    params(("file_id" = String, Path, description = "Id of the file")),
    responses(
        (status = 200, description = "The file", body = [u8], content_type = "application/octet-stream"),
        Refusals,
    )
)]
pub async fn content(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    id: PathId,
) -> Result<Response, ApiError> {
    let (shared, id) = (app.clone(), named(id)?);
    let open = move |_: &_| {
        let record = shared.files.find(tenant.owner, &id)?;
        shared.files.open_data(tenant.owner, &record).map(|file| (record, file))
    };
    let (record, file) = app.intake.run(0, open).await??;
    let headers: [(HeaderName, String); 4] = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, record.bytes.to_string()),
        (header::CONTENT_DISPOSITION, attachment(&record.filename)),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let chunks = stream::try_unfold(file, |file| async move {
        // A failed read ends the connection before the announced length.
        tokio::task::spawn_blocking(move || read_chunk(file)).await.map_err(std::io::Error::other)?
    });
    Ok((headers, Body::from_stream(chunks)).into_response())
}

/// Reads the next bytes of a file; `None` at its end.
fn read_chunk(mut file: File) -> std::io::Result<Option<(Bytes, File)>> {
    let mut chunk = vec![0; READ_BYTES];
    let n = file.read(&mut chunk)?;
    chunk.truncate(n);
    Ok((n > 0).then(|| (chunk.into(), file)))
}

/// Returns the header of a download with this name, by RFC 6266.
fn attachment(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ');
    let ascii: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    let encode = |byte: u8| match byte {
        b if b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_') => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    let encoded: String = name.bytes().map(encode).collect();
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")
}

/// Returns the text of an uploaded file with the places of its parts
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/text",
    params(("file_id" = String, Path, description = "Id of the file")),
    responses((status = 200, description = "The text as the model reads it", body = FileText), Refusals)
)]
pub async fn text(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    id: PathId,
) -> Result<Json<FileText>, ApiError> {
    let (shared, id) = (app.clone(), named(id)?);
    let read = move |_: &_| {
        let record = shared.files.find(tenant.owner, &id)?;
        let document = shared.files.document(tenant.owner, &record)?;
        let places = document.places().into_iter().map(|(start, place)| TextPlace { start, place });
        let places = places.collect();
        Ok(Json(FileText { id, object: "file.text", filename: record.filename, text: document.text, places }))
    };
    app.intake.run(0, read).await?
}

/// Returns a file as clients see it.
fn object(app: &App, tenant: Tenant, record: StoredFile) -> Result<FileObject, ApiError> {
    let ready = app.loaded().filter(|_| record.fault.is_none());
    let read = ready.and_then(|ready| tokens(app, tenant, &record, ready).ok());
    let (tokens, tokens_read) = read.map_or((None, 0), |(tokens, read)| (Some(tokens), read));
    Ok(FileObject {
        object: "file",
        status: if record.fault.is_some() { "error" } else { "processed" },
        status_details: record.fault,
        id: record.id,
        bytes: record.bytes,
        created_at: record.created_at,
        filename: record.filename,
        purpose: record.purpose,
        format: record.format,
        tokens,
        tokens_read,
        ready: tokens == Some(tokens_read),
    })
}

/// Returns the number of tokens of a file's prompts, and how many of them are cached.
fn tokens(app: &App, tenant: Tenant, record: &StoredFile, ready: &Ready) -> Result<(usize, usize), ApiError> {
    let sources = [FileSource::Stored(record.clone())];
    let set = app.file_sets.get(&app.files, tenant.owner, &sources)?;
    let tokens = &set.prefix(&app.files, &ready.engine)?.tokens;
    Ok((tokens.len(), ready.engine.cached_len(prompt_namespace(app, tenant.id, true), tokens)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_downloads_are_encoded() {
        let header = "attachment; filename=\"_a_ b.txt\"; filename*=UTF-8''%22a%22%20b.txt";
        assert_eq!(attachment("\"a\" b.txt"), header);
        assert_eq!(attachment("é"), "attachment; filename=\"_\"; filename*=UTF-8''%C3%A9");
    }
}
