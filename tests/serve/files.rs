//! `/v1/files`: the life of a file, its owner, uploads that are cut off or too large, and documents without text.

use crate::support::{TestServer, cached_engine, options};
use crate::test_files::pdf;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use kernels::backend::CacheFormat;
use kimi::prefix_cache::options::StoreOptions;
use kimi::serve::{FileOptions, ServeOptions};
use serde_json::{Value, json};
use std::path::Path;
use tower::ServiceExt;

const BOUNDARY: &str = "a-boundary";
pub const FILES: &str = "/v1/files";

/// The options of a server that stores files in a directory.
pub fn with_files(dir: &Path) -> ServeOptions {
    ServeOptions { files: FileOptions { dir: Some(dir.to_owned()), bytes: 1 << 20 }, ..options() }
}

/// A form with one file, up to its end.
fn form(name: &str, bytes: &[u8]) -> Vec<u8> {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n--{BOUNDARY}\r\n\
         Content-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\nContent-Type: text/plain\r\n\r\n"
    );
    [head.as_bytes(), bytes, format!("\r\n--{BOUNDARY}--\r\n").as_bytes()].concat()
}

fn upload_form(form: Vec<u8>) -> Request<Body> {
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    Request::post(FILES).header(header::CONTENT_TYPE, kind).body(Body::from(form)).unwrap()
}

/// The request that uploads a file.
pub fn upload_request(name: &str, bytes: &[u8]) -> Request<Body> {
    upload_form(form(name, bytes))
}

/// Uploads a file and returns its object.
pub async fn upload(server: &TestServer, name: &str, bytes: &[u8]) -> Value {
    let (status, text) = server.send(upload_request(name, bytes)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn keyed(mut request: Request<Body>, key: &str) -> Request<Body> {
    request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
    request
}

fn to(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

async fn json_of(server: &TestServer, request: Request<Body>) -> (u16, Value) {
    let (status, text) = server.send(request).await;
    (status.as_u16(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

/// All files below a directory.
fn below(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { below(&entry.path()) } else { 1 }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_uploaded_listed_read_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::with(with_files(dir.path()), 8);
    let text = "Grüße.\nMara lives in Dunmore.\n";
    let file = upload(&server, "notes.txt", text.as_bytes()).await;
    let id = file["id"].as_str().unwrap();
    assert_eq!(
        (&file["object"], &file["bytes"], &file["filename"], &file["purpose"], &file["format"]),
        (&json!("file"), &json!(text.len()), &json!("notes.txt"), &json!("user_data"), &json!("text"))
    );
    assert_eq!((&file["status"], &file["status_details"]), (&json!("processed"), &Value::Null));
    assert!(file["tokens"].as_u64().unwrap() > 10 && file["ready"] == false, "{file}");
    assert_eq!(upload(&server, "notes.txt", text.as_bytes()).await["id"], *id, "the same file");
    let other = upload(&server, "other.txt", text.as_bytes()).await;
    assert_ne!(other["id"], *id);
    let (_, list) = json_of(&server, to("GET", &format!("{FILES}?order=asc&limit=1"))).await;
    assert_eq!((list["data"].as_array().unwrap().len(), &list["has_more"]), (1, &json!(true)));
    let after = list["last_id"].as_str().unwrap();
    let (_, rest) = json_of(&server, to("GET", &format!("{FILES}?order=asc&after={after}"))).await;
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (1, &json!(false)));
    assert_ne!(rest["first_id"], *after);
    assert_eq!(json_of(&server, to("GET", &format!("{FILES}?purpose=vision"))).await.1["data"], json!([]));
    assert_eq!(json_of(&server, to("GET", &format!("{FILES}/{id}"))).await, (200, file.clone()));
    let (_, read) = json_of(&server, to("GET", &format!("{FILES}/{id}/text"))).await;
    assert_eq!((&read["text"], &read["places"]), (&json!(text), &json!([])));
    let response = server.router.clone().oneshot(to("GET", &format!("{FILES}/{id}/content"))).await.unwrap();
    let header = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().to_owned();
    assert!(
        header(response.headers(), "content-disposition").starts_with("attachment; filename=\"notes.txt\"")
    );
    assert_eq!(header(response.headers(), "x-content-type-options"), "nosniff");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), text.as_bytes());
    let (status, gone) = json_of(&server, to("DELETE", &format!("{FILES}/{id}"))).await;
    assert_eq!((status, gone), (200, json!({ "id": id, "object": "file", "deleted": true })));
    for (method, path) in
        [("GET", ""), ("GET", "/content"), ("GET", "/text"), ("POST", "/read"), ("DELETE", "")]
    {
        let (status, answer) = json_of(&server, to(method, &format!("{FILES}/{id}{path}"))).await;
        assert_eq!((status, &answer["error"]["code"]), (404, &json!("file_not_found")), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_another_key_do_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let keys = vec!["alpha".to_owned(), "beta".to_owned()];
    let server = TestServer::with(ServeOptions { keys, ..with_files(dir.path()) }, 8);
    let request = keyed(upload_request("secret.txt", b"The code is 4713."), "alpha");
    let (status, file) = json_of(&server, request).await;
    assert_eq!(status, 200, "{file}");
    let id = file["id"].as_str().unwrap();
    let part = json!({ "type": "file", "file": { "file_id": id } });
    let body = json!({ "messages": [{ "role": "user", "content": [part] }], "max_tokens": 1 });
    let ask = || crate::support::post("/v1/chat/completions", &body);
    for path in ["", "/content", "/text"] {
        let get = || to("GET", &format!("{FILES}/{id}{path}"));
        assert_eq!(server.send(keyed(get(), "alpha")).await.0, StatusCode::OK, "{path}");
        assert_eq!(server.send(keyed(get(), "beta")).await.0, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(server.send(get()).await.0, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(json_of(&server, keyed(to("GET", FILES), "beta")).await.1["data"], json!([]));
    assert_eq!(json_of(&server, keyed(to("DELETE", &format!("{FILES}/{id}")), "beta")).await.0, 404);
    assert_eq!(json_of(&server, keyed(ask(), "beta")).await.0, 404);
    assert_eq!(json_of(&server, keyed(ask(), "alpha")).await.0, 200);
    // The same bytes of another key are another file.
    let (_, own) = json_of(&server, keyed(upload_request("secret.txt", b"The code is 4713."), "beta")).await;
    assert_ne!(own["id"], *id);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let id = {
        let server = TestServer::with(with_files(dir.path()), 8);
        upload(&server, "a.txt", b"One line.").await["id"].as_str().unwrap().to_owned()
    };
    // A server that has no model yet has the file, but not the number of its tokens.
    let server = TestServer::loading(with_files(dir.path()));
    let (status, file) = json_of(&server, to("GET", &format!("{FILES}/{id}"))).await;
    assert_eq!((status, &file["status"], &file["tokens"]), (200, &json!("processed"), &Value::Null));
    let store = StoreOptions { cache_ram: Some(64 << 20), ..StoreOptions::in_memory() };
    let server = TestServer::of_with(cached_engine(store, CacheFormat::F16), with_files(dir.path()));
    assert!(json_of(&server, to("GET", &format!("{FILES}/{id}"))).await.1["tokens"].as_u64().unwrap() > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_are_cut_off_or_too_large_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files = FileOptions { dir: Some(dir.path().to_owned()), bytes: 5000 };
    let server = TestServer::with(ServeOptions { files, max_body: 1 << 16, ..options() }, 8);
    let whole = form("a.txt", &[b'x'; 4000]);
    let refused = async |request: Request<Body>, status: u16, why: &str| {
        let (found, answer) = json_of(&server, request).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(found == status && message.contains(why), "{found} {message}");
        assert_eq!(below(dir.path()), 0, "{why}");
    };
    refused(upload_form(whole[..2000].to_vec()), 400, "body: ").await;
    refused(upload_form(b"nonsense".to_vec()), 400, "body: ").await;
    refused(upload_request("a.txt", &[b'x'; 6000]), 507, "--files-size").await;
    refused(upload_request("a.txt", &vec![b'x'; 1 << 17]), 413, "--max-body").await;
    refused(upload_request("", b"x"), 400, "filename: ").await;
    let empty = format!("--{BOUNDARY}--\r\n").into_bytes();
    refused(upload_form(empty), 400, "file: expected a file").await;
    refused(crate::support::post(FILES, &json!({})), 415, "multipart/form-data").await;
    // A client that leaves in the middle of its upload.
    let head = whole[..2000].to_vec();
    let chunks = futures_util::stream::once(async move { Ok::<_, std::io::Error>(head) });
    let endless = futures_util::StreamExt::chain(chunks, futures_util::stream::pending());
    let mut request = upload_form(Vec::new());
    *request.body_mut() = Body::from_stream(endless);
    let left = tokio::time::timeout(std::time::Duration::from_millis(500), server.send(request)).await;
    assert!(left.is_err());
    assert_eq!(below(dir.path()), 0);
    upload(&server, "a.txt", &[b'x'; 4000]).await;
    let (status, answer) = json_of(&server, upload_request("b.txt", &[b'y'; 4000])).await;
    assert_eq!((status, &answer["error"]["code"]), (507, &json!("insufficient_storage")));
}

/// A PDF whose password is not empty.
fn with_password(pages: &[&str]) -> Vec<u8> {
    let plain = String::from_utf8(pdf(pages)).unwrap();
    let (o, u) = ("41".repeat(32), "42".repeat(32));
    let encrypt = format!(
        "/Root 1 0 R /ID [<00><00>] /Encrypt << /Filter /Standard /V 1 /R 2 /Length 40 /P -4 /O <{o}> /U <{u}> >>"
    );
    plain.replace("/Root 1 0 R", &encrypt).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_without_text_say_why_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::with(with_files(dir.path()), 8);
    let page = "BT /F1 12 Tf 72 700 Td (The code is 4713.) Tj ET";
    for (name, bytes, why) in [
        ("locked.pdf", with_password(&[page]), "needs a password"),
        ("scan.pdf", pdf(&["0 0 9 9 re f"]), "expected text"),
        ("broken.pdf", b"%PDF-1.7\nnothing".to_vec(), "broken.pdf: "),
        ("photo.png", b"\x89PNG\r\n\x1a\n\0\0".to_vec(), "found an image"),
        ("empty.txt", Vec::new(), "the file is empty"),
    ] {
        let file = upload(&server, name, &bytes).await;
        let details = file["status_details"].as_str().unwrap_or_else(|| panic!("{file}"));
        assert_eq!((&file["status"], &file["ready"]), (&json!("error"), &json!(false)), "{file}");
        assert!(details.contains(why) && !details.contains('\n'), "{name}: {details}");
        let part = json!({ "type": "input_file", "file_id": file["id"] });
        let body = json!({ "input": [{ "role": "user", "content": [part] }] });
        let (status, answer) = server.post("/v1/responses", body).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == StatusCode::BAD_REQUEST && message.contains(why), "{name}: {answer}");
        let id = file["id"].as_str().unwrap();
        let (_, data) = server.get(&format!("{FILES}/{id}/text")).await;
        assert!(data.contains(why), "{data}");
    }
    let good = upload(&server, "good.pdf", &pdf(&[page, page])).await;
    assert_eq!((&good["status"], &good["format"]), (&json!("processed"), &json!("pdf")), "{good}");
    let (_, text) =
        json_of(&server, to("GET", &format!("{FILES}/{}/text", good["id"].as_str().unwrap()))).await;
    let second = text["text"].as_str().unwrap().chars().collect::<Vec<_>>().len() / 2;
    assert_eq!(text["places"][0], json!({ "start": 0, "place": "p. 1" }), "{text}");
    assert_eq!(text["places"][1]["place"], "p. 2");
    assert!(text["places"][1]["start"].as_u64().unwrap() as usize >= second, "{text}");
}
