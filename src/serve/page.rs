//! Serves the built-in page, whose files are embedded: plain modules without a build step, and the libraries in
//! `page/vendor`. Its content security policy allows requests to this server only and no script in markup.

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use std::sync::LazyLock;
use xxhash_rust::xxh3::xxh3_128;

use super::errors::ApiError;

/// Only own files, no inline script or style, no frame; strings become markup through the sanitizer alone.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types dompurify";

/// An embedded file of the page.
struct Asset {
    /// Path below `/assets/`, which is the one below the directory `page`.
    path: &'static str,
    bytes: &'static [u8],
}

/// Embeds files of the directory `page`.
macro_rules! assets {
    ($($path:literal),* $(,)?) => {
        &[$(Asset { path: $path, bytes: include_bytes!(concat!("page/", $path)) }),*]
    };
}

static INDEX: Asset = Asset { path: "index.html", bytes: include_bytes!("page/index.html") };

static ASSETS: &[Asset] = assets![
    "api.js",
    "chats.js",
    "citations.js",
    "conversation.js",
    "dialogs.js",
    "dom.js",
    "export.js",
    "follow.js",
    "format.js",
    "highlight.js",
    "icon.svg",
    "library.js",
    "main.js",
    "markdown.js",
    "page.css",
    "reply.css",
    "settings.js",
    "source.js",
    "store.js",
    "theme.js",
    "tree.js",
    "turns.js",
    "vendor/marked.js",
    "vendor/purify.js",
    "vendor/highlight/bash.js",
    "vendor/highlight/c.js",
    "vendor/highlight/core.js",
    "vendor/highlight/cpp.js",
    "vendor/highlight/csharp.js",
    "vendor/highlight/css.js",
    "vendor/highlight/diff.js",
    "vendor/highlight/go.js",
    "vendor/highlight/ini.js",
    "vendor/highlight/java.js",
    "vendor/highlight/javascript.js",
    "vendor/highlight/json.js",
    "vendor/highlight/kotlin.js",
    "vendor/highlight/lua.js",
    "vendor/highlight/makefile.js",
    "vendor/highlight/markdown.js",
    "vendor/highlight/php.js",
    "vendor/highlight/python.js",
    "vendor/highlight/ruby.js",
    "vendor/highlight/rust.js",
    "vendor/highlight/sql.js",
    "vendor/highlight/swift.js",
    "vendor/highlight/typescript.js",
    "vendor/highlight/xml.js",
    "vendor/highlight/yaml.js",
];

/// Entity tags by the order of [`ASSETS`], with that of the page itself last.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let tag = |asset: &Asset| format!("\"{:032x}\"", xxh3_128(asset.bytes));
    ASSETS.iter().chain([&INDEX]).map(tag).collect()
});

/// Returns the built-in page, which loads its other files from `/assets/`.
pub async fn index(headers: HeaderMap) -> Response {
    send(&INDEX, &TAGS[ASSETS.len()], &headers)
}

/// Returns a file of the page.
pub async fn asset(uri: Uri, path: Option<Path<String>>, headers: HeaderMap) -> Response {
    let found = path.and_then(|Path(path)| ASSETS.iter().position(|asset| asset.path == path));
    match found {
        Some(index) => send(&ASSETS[index], &TAGS[index], &headers),
        None => ApiError::no_route(uri.path()).into_response(),
    }
}

fn send(asset: &'static Asset, tag: &'static str, headers: &HeaderMap) -> Response {
    let kind = match asset.path.rsplit('.').next() {
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/html; charset=utf-8",
    };
    // Browsers ask each time, so that a new version of the program is never mixed with an old page.
    let common = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::ETAG, tag),
    ];
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    if known.is_some_and(|known| known.split(',').any(|k| k.trim().trim_start_matches("W/") == tag)) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(header::CONTENT_TYPE, kind)], asset.bytes).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::digest::{SHA256, digest};
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path as FilePath;

    fn page() -> &'static FilePath {
        FilePath::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/serve/page"))
    }

    /// The files below a directory, by their paths from the page's directory.
    fn files(directory: &FilePath) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let below = |path: std::path::PathBuf| {
            if path.is_dir() {
                return files(&path);
            }
            vec![path.strip_prefix(page()).unwrap().to_str().unwrap().replace('\\', "/")]
        };
        entries.flat_map(below).collect()
    }

    #[test]
    fn every_file_of_the_page_is_embedded() {
        let is_served = |path: &String| [".js", ".css", ".svg"].iter().any(|e| path.ends_with(e));
        let stored: BTreeSet<String> = files(page()).into_iter().filter(is_served).collect();
        let embedded: BTreeSet<String> = ASSETS.iter().map(|asset| asset.path.to_owned()).collect();
        assert_eq!(stored, embedded);
    }

    #[test]
    fn modules_import_embedded_files_only() {
        let own = ASSETS.iter().filter(|a| a.path.ends_with(".js") && !a.path.starts_with("vendor/"));
        let mut imports = 0;
        for asset in own {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            for name in text.lines().filter_map(|line| line.strip_prefix("import ")).filter_map(|line| {
                let (_, name) = line.rsplit_once("\"./")?;
                name.strip_suffix("\";")
            }) {
                imports += 1;
                assert!(ASSETS.iter().any(|a| a.path == name), "{}: no file {name}", asset.path);
            }
        }
        assert!(imports > 30, "found only {imports} imports");
    }

    #[test]
    fn libraries_are_those_of_the_registry() {
        let versions = fs::read_to_string(page().join("vendor/versions.json")).unwrap();
        let versions: serde_json::Value = serde_json::from_str(&versions).unwrap();
        let mut recorded = BTreeSet::new();
        for package in versions.as_object().unwrap().values() {
            for (name, expected) in package["files"].as_object().unwrap() {
                let found = digest(&SHA256, &fs::read(page().join("vendor").join(name)).unwrap());
                let found: String = found.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(Some(&*found), expected.as_str(), "{name}");
                recorded.insert(format!("vendor/{name}"));
            }
        }
        let embedded = ASSETS.iter().map(|a| a.path).filter(|path| path.starts_with("vendor/"));
        let unknown: Vec<_> = embedded.filter(|path| !recorded.contains(*path)).collect();
        assert!(unknown.is_empty(), "not in versions.json: {unknown:?}");
    }
}
