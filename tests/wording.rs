//! Checks the wording of comments, documentation and messages: plain technical terms, and doc comments that say more than
//! the name. `docs/` and `CONTRIBUTING.md` describe the style.

#[path = "common/repository.rs"]
mod repository;

use regex::Regex;
use repository::text_files;

/// Phrases for which the field has a term, or that hide the subject of a sentence.
/// Capitals count at the start of a comment only: elsewhere they begin a question to a model.
const PHRASES: &str = r#"(?x)
    \b( who | whoever | nobody | everybody | anybody | somebody
      | (is|are|was|were|be|been)\ told | meets | stands | goes\ on | comes?\ to\ an\ end | asked\ for
      | stand-ins? | stand_in )\b
    | (//[/!]? | \# | """) \s* ( Who | Whoever | Nobody | Everybody | Anybody | Somebody )\b"#;

/// Files with questions and templates as data.
const DATA: &[&str] = &["tests/template_goldens.py", "tests/wording.rs"];

/// The shortest doc comment, in words.
const MIN_DOC_WORDS: usize = 5;

fn is_in(path: &str, list: &[&str]) -> bool {
    list.iter().any(|prefix| path.starts_with(prefix))
}

/// The part of a line that is read as prose. Strings of Rust tests are data, other strings are messages.
fn prose<'a>(path: &str, line: &'a str) -> &'a str {
    let is_rust_test = path.ends_with(".rs") && (path.contains("tests/") || path.ends_with("tests.rs"));
    match line.find("//") {
        Some(start) if is_rust_test => &line[start..],
        None if is_rust_test => "",
        _ => line,
    }
}

#[test]
fn comments_and_messages_use_plain_terms() {
    let phrases = Regex::new(PHRASES).unwrap();
    let mut wrong = Vec::new();
    for source in text_files() {
        if is_in(&source.path, DATA) {
            continue;
        }
        for (i, line) in source.text.lines().enumerate() {
            if let Some(found) = phrases.find(prose(&source.path, line)) {
                wrong.push(format!("{}:{}: {:?} in: {}", source.path, i + 1, found.as_str(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The doc comments of a Rust file with fewer words than allowed, as line and text. Help texts of options may be short.
fn short_docs(text: &str) -> Vec<(usize, String)> {
    let (mut short, mut doc) = (Vec::new(), Vec::new());
    for (i, line) in text.lines().map(str::trim).enumerate() {
        if let Some(part) = line.strip_prefix("///") {
            doc.extend(part.split_whitespace());
            continue;
        }
        let is_help = ["#[arg", "#[command", "#[value"].iter().any(|attribute| line.starts_with(attribute));
        if !doc.is_empty() && doc.len() < MIN_DOC_WORDS && !is_help {
            short.push((i, doc.join(" ")));
        }
        doc.clear();
    }
    short
}

#[test]
fn doc_comments_say_more_than_the_name() {
    let mut wrong = Vec::new();
    for source in text_files().iter().filter(|s| s.is_rust()) {
        for (line, doc) in short_docs(&source.text) {
            wrong.push(format!("{}:{line}: {doc}", source.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn short_docs_are_found() {
    assert_eq!(short_docs("/// The name.\nfn name() {}\n"), [(1, "The name.".to_owned())]);
    assert_eq!(short_docs("/// The name of\n/// the model's file.\nfn name() {}\n"), []);
    assert_eq!(short_docs("/// Threads\n#[arg(long)]\nthreads: u32,\n"), []);
}
