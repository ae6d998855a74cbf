//! The house rules that a machine can check. Function and parameter counts are clippy's (clippy.toml).

use std::fs;
use std::path::{Path, PathBuf};

/// A source file under the repository's root.
struct Source {
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for root in ["src", "kernels", "models", "convert", "tests", "fuzz"] {
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(root), &mut found);
    }
    assert!(found.len() > 20, "found only {} sources", found.len());
    found
}

fn walk(dir: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.map(|e| e.unwrap().path()) {
        if path.is_dir() && !path.ends_with("target") {
            walk(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
            found.push(Source { path: path.to_str().unwrap().to_owned(), text });
        }
    }
}

/// Asserts that no line of the sources breaks a rule; `broken` says what is wrong with a line, if anything.
fn no_line(broken: impl Fn(&Source, &str) -> Option<String>) {
    let mut all = Vec::new();
    for source in sources().iter().filter(|s| s.path != "tests/tidy.rs") {
        for (i, line) in source.text.lines().enumerate() {
            if let Some(what) = broken(source, line) {
                all.push(format!("{}:{}: {what}", source.path, i + 1));
            }
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

#[test]
fn unsafe_stands_only_in_kernels_and_at_the_one_mapping() {
    no_line(|s, line| {
        let is_unsafe = code(line).split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
        // tests/peer calls llama.cpp's C interface, and is no part of the program.
        let allowed =
            ["kernels/", "models/src/gguf/read.rs", "tests/peer/"].iter().any(|p| s.path.starts_with(p));
        (is_unsafe && !allowed).then(|| "unsafe outside kernels and the mapping".into())
    });
    let read = sources().into_iter().find(|s| s.path == "models/src/gguf/read.rs").expect("the reader");
    assert_eq!(read.text.matches("unsafe {").count(), 1, "one mapping, one unsafe block");
}

#[test]
fn files_open_with_what_they_are_and_stay_small() {
    for s in sources() {
        assert!(s.text.starts_with("//!"), "{}: no //! at its head", s.path);
        let lines = s.text.lines().count();
        assert!(lines <= 600, "{}: {lines} lines, at most 600", s.path);
    }
}

#[test]
fn libraries_do_not_print_and_nothing_is_left_open() {
    no_line(|s, line| {
        let library = ["kernels/src", "models/src", "convert/src"].iter().any(|p| s.path.starts_with(p));
        let prints = ["println!", "eprintln!", "print!(", "eprint!("].iter().any(|p| code(line).contains(p));
        (library && prints).then(|| "a print in a library".into())
    });
    no_line(|_, line| line.contains("#[ignore").then(|| "an ignored test".into()));
    no_line(|_, line| {
        let open = ["TODO", "FIXME", "XXX"].iter().any(|w| line.contains(w)) && !line.contains("TODO(#");
        open.then(|| "left open without an issue number".into())
    });
}

#[test]
fn packages_depend_only_downwards() {
    let allowed: [(&str, &[&str]); 3] =
        [("kernels", &[]), ("models", &["kernels"]), ("convert", &["kernels", "models"])];
    for (package, below) in allowed {
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(package).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).unwrap();
        for other in ["kernels", "models", "convert", "kimi"] {
            let depends = manifest
                .lines()
                .any(|l| l.starts_with(&format!("{other}.")) || l.starts_with(&format!("{other} =")));
            assert!(!depends || below.contains(&other), "{package} depends on {other}");
        }
    }
    no_line(|s, line| {
        let runs = code(line).contains("kimi_linear::Model") || code(line).contains("kernels::backend");
        (s.path.starts_with("convert/src") && runs).then(|| "convert never runs a model".into())
    });
    no_line(|s, line| {
        let knows = ["target_feature", "std::arch", "cfg(feature", "std::thread", "rayon"].iter();
        let knows = knows.clone().find(|w| code(line).contains(**w));
        (s.path.starts_with("models/src")).then_some(knows).flatten().map(|w| format!("models know no {w}"))
    });
}

/// Every promise of docs/security.md and every invariant of ARCHITECTURE.md names the test that holds it: `path.rs::test`, or
/// a test alone after its path.
#[test]
fn the_threat_model_and_the_invariants_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (document, least) in [("docs/security.md", 30), ("ARCHITECTURE.md", 15)] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        let (mut named, mut path) = (0, String::new());
        for word in text.split('`').skip(1).step_by(2) {
            let (file, test) = match word.split_once("::") {
                Some((file, test)) => (file, test),
                None if word.ends_with(".rs") || word.ends_with(".py") => (word, ""),
                None if word.matches('_').count() >= 3 && !word.contains(['-', '/']) => (path.as_str(), word),
                None => continue,
            };
            let source =
                fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{document}: {file}: {e}"));
            let exists = test.is_empty() || source.contains(&format!("fn {test}("));
            assert!(exists, "{document}: {file}: no test {test}");
            named += 1;
            path = file.to_owned();
        }
        assert!(named > least, "{document}: only {named} tests are named");
    }
}

/// Relative links and pictures of the documents lead to files, and the documents keep their lengths.
#[test]
fn documents_are_short_and_their_links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = [
        ("README.md", 130),
        ("ARCHITECTURE.md", 150),
        ("CONTRIBUTING.md", 150),
        ("CHANGELOG.md", 400),
        ("SECURITY.md", 50),
        ("THIRD-PARTY.md", 50),
        ("docs/performance.md", 200),
        ("docs/security.md", 200),
    ];
    for (document, lines) in documents {
        let path = root.join(document);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() <= lines, "{document}: more than {lines} lines");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let outside = link.contains("://");
            assert!(outside || path.with_file_name(link).exists(), "{document}: no file {link}");
        }
    }
}
