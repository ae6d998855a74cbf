//! The OpenAPI description matches the routes; the built-in page loads nothing from other hosts.

use crate::files::{upload, with_files};
use crate::support::TestServer;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use serde_json::Value;
use std::collections::BTreeSet;
use tower::ServiceExt;

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_described_and_every_description_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::with(with_files(dir.path()), 8);
    let (status, text) = server.get("/openapi.json").await;
    assert_eq!(status, StatusCode::OK);
    let described: Value = serde_json::from_str(&text).unwrap();
    let paths = described["paths"].as_object().unwrap();
    let routes = include_str!("../../src/serve/routes.rs");
    let served: BTreeSet<&str> =
        routes.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let undescribed = ["/", "/assets/{*path}", "/openapi.json"];
    let expected: BTreeSet<&str> = served.into_iter().filter(|p| !undescribed.contains(p)).collect();
    assert_eq!(paths.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    for (path, operations) in paths {
        for method in operations.as_object().unwrap().keys() {
            let file = upload(&server, "a.txt", b"One line.").await;
            let path = path.replace("{model}", "tiny").replace("{file_id}", file["id"].as_str().unwrap());
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(&path);
            let (status, _) = server.send(request.body(Body::empty()).unwrap()).await;
            assert!(
                ![StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED].contains(&status),
                "{path}: {status}"
            );
            let code = status.as_str();
            assert!(
                !operations[method]["responses"][code].is_null(),
                "{method} {path}: {code} is not described"
            );
        }
    }
}

/// Every `$ref` of the description resolves, and request schemas have the fields of both their parts.
#[tokio::test(flavor = "multi_thread")]
async fn all_references_of_the_description_resolve() {
    let text = TestServer::new().get("/openapi.json").await.1;
    let described: Value = serde_json::from_str(&text).unwrap();
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(described.pointer(pointer).is_some(), "{pointer}");
    }
    let chat = described.pointer("/components/schemas/ChatBody").unwrap().to_string();
    let generation = described.pointer("/components/schemas/Generation/properties/temperature").unwrap();
    assert!(chat.contains("Generation") && generation["maximum"] == 2.0, "{chat}");
}

/// Returns the response to a GET request.
async fn get(path: &str, tag: Option<&str>) -> Response {
    let request = Request::builder().uri(path).header(header::HOST, "localhost");
    let request = tag.into_iter().fold(request, |request, tag| request.header(header::IF_NONE_MATCH, tag));
    TestServer::new().router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_loads_its_own_files_only() {
    let (status, page) = TestServer::new().get("/").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.starts_with("<!doctype html>"));
    for outside in ["http://", "https://", "<style", " style=", " onclick=", "@import"] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    let loaded =
        page.split("href=\"").chain(page.split("src=\"")).skip(1).map(|rest| rest.split('"').next().unwrap());
    for name in loaded.filter(|name| !name.starts_with('#') && !name.starts_with('<')) {
        let response = get(&format!("/{name}"), None).await;
        assert_eq!(response.status(), StatusCode::OK, "{name}");
    }
    assert_eq!(get("/assets/../routes.rs", None).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get("/assets/page.html", None).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_page_have_a_type_a_policy_and_a_tag() {
    for (path, kind) in
        [("/", "text/html"), ("/assets/main.js", "text/javascript"), ("/assets/page.css", "text/css")]
    {
        let response = get(path, None).await;
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert!(header("content-type").starts_with(kind), "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        let policy = header("content-security-policy");
        for rule in [
            "default-src 'none'",
            "script-src 'self';",
            "style-src 'self';",
            "connect-src 'self';",
            "form-action 'none'",
        ] {
            assert!(policy.contains(rule), "{path}: {policy}");
        }
        let again = get(path, Some(&header("etag"))).await;
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{path}");
    }
}
