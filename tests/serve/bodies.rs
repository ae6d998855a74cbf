//! Request bodies of real clients (`tests/data/bodies`, recorded by `record.py` there) against the demonstration model.

use crate::support::{TestServer, options, post};
use kernels::cpu::Cpu;
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use kimi::runtime::options::LoadOptions;
use kimi::serve::ServeOptions;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// The recorded bodies by file name.
fn bodies() -> Vec<(String, Value)> {
    let dir = std::fs::read_dir("tests/data/bodies").unwrap();
    let paths = dir.map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        (name, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    };
    paths.iter().map(read).collect()
}

/// The names in the table of a section of `docs/fields.md`.
fn listed(title: &str) -> BTreeSet<String> {
    let text = include_str!("../../docs/fields.md");
    let section = text.split("\n## ").find(|section| section.lines().next() == Some(title));
    let rows = section.unwrap_or_else(|| panic!("no section {title}")).lines();
    rows.filter_map(|row| Some(row.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
}

/// The fields of a body that the document does not list.
fn unlisted(path: &str, body: &Value) -> BTreeSet<String> {
    let fields = body.as_object().unwrap().keys();
    let title = format!("POST {}", path.trim_end_matches("/count_tokens"));
    let mut known = listed(&title);
    if path.starts_with("/v1") {
        known.extend(listed("Fields of other engines, for all interfaces but Ollama's"));
    }
    let mut missing: BTreeSet<String> = fields.filter(|name| !known.contains(*name)).cloned().collect();
    if let Some(options) = body["options"].as_object() {
        let known = listed("Members of options of /api/chat and /api/generate");
        missing.extend(options.keys().filter(|name| !known.contains(*name)).cloned());
    }
    missing
}

/// Replies of a few tokens, where the client sets a limit.
fn shorten(body: &mut Value) {
    for name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
        if body[name].is_number() {
            body[name] = json!(2);
        }
    }
    if body["options"]["num_predict"].is_number() {
        body["options"]["num_predict"] = json!(2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_real_clients_are_accepted_and_their_fields_are_listed() {
    let store = StoreOptions { cache_ram: Some(256 << 20), ..StoreOptions::in_memory() };
    let engine = Engine::<Cpu>::open(&LoadOptions { store, threads: Some(2), ..LoadOptions::default() });
    let options = ServeOptions { max_tokens: 2, strict_model: false, ..options() };
    let server = TestServer::of_with(Arc::new(engine.unwrap()), options);
    let bodies = bodies();
    assert!(bodies.len() >= 30, "{} bodies", bodies.len());
    for (name, record) in bodies {
        let (path, mut body) = (record["path"].as_str().unwrap(), record["body"].clone());
        let missing = unlisted(path, &body);
        assert!(missing.is_empty(), "{name}: docs/fields.md does not list {missing:?}");
        shorten(&mut body);
        let (status, text) = server.send(post(path, &body)).await;
        assert_eq!(status, 200, "{name}: {text}");
        assert!(!text.contains("\"error\":{"), "{name}: {text}");
    }
}
