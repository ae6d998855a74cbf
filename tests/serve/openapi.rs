//! The OpenAPI description matches the routes; the built-in page loads nothing from other hosts.

use crate::support::TestServer;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::Value;
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_described_and_every_description_is_served() {
    let server = TestServer::new();
    let (status, text) = server.get("/openapi.json").await;
    assert_eq!(status, StatusCode::OK);
    let described: Value = serde_json::from_str(&text).unwrap();
    let paths = described["paths"].as_object().unwrap();
    let routes = include_str!("../../src/serve/routes.rs");
    let served: BTreeSet<&str> =
        routes.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let undescribed = ["/", "/openapi.json"];
    let expected: BTreeSet<&str> = served.into_iter().filter(|p| !undescribed.contains(p)).collect();
    assert_eq!(paths.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    for (path, operations) in paths {
        for method in operations.as_object().unwrap().keys() {
            let path = path.replace("{model}", "tiny");
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

#[tokio::test(flavor = "multi_thread")]
async fn the_page_loads_nothing_else() {
    let (status, page) = TestServer::new().get("/").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.starts_with("<!doctype html>"));
    for outside in ["http://", "https://", "src=", "href=", "@import", "innerHTML"] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
}
