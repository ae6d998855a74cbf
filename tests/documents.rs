//! `kimi ask` about documents: their text is extracted in a worker process, quotes have the place that the format has, and
//! a document is prefilled once. The built-in demonstration model answers.

mod common;

use common::{kimi_command, text};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

#[path = "../src/documents/test_files.rs"]
mod test_files;

use test_files::{docx, epub, pdf, xlsx, zip};

const FACT: &str = "The access code of the Hartwell mill is 4713.";
const QUESTION: &str = "What is the access code of the Hartwell mill?";

fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn zipped(files: &[(&str, String)]) -> Vec<u8> {
    zip(&files.iter().map(|(name, text)| (*name, text.as_bytes())).collect::<Vec<_>>())
}

fn run(cache: &Path, file: &Path, args: &[&str]) -> Output {
    let mut command = kimi_command();
    command
        .args(["ask", "-n", "48", "--temperature", "0", "--cache-dir", text(cache), "-f", text(file)])
        .args(args);
    command.stdin(Stdio::null()).output().unwrap()
}

fn ask(cache: &Path, file: &Path, question: &str) -> Value {
    let out = run(cache, file, &["--json", question]);
    assert!(out.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Asks where the fact is; returns its place.
fn place(cache: &Path, file: &Path) -> Value {
    let answer = ask(cache, file, QUESTION);
    let quotes = answer["quotes"].as_array().unwrap();
    let found = quotes.iter().find(|quote| !quote["places"].as_array().unwrap().is_empty());
    found.unwrap_or_else(|| panic!("no located quote: {answer}"))["places"][0].clone()
}

#[test]
fn quotes_have_the_places_of_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let filler = "The harbour is quiet in winter.";
    let page = |line: &str| format!("BT /F1 12 Tf 72 700 Td ({line}) Tj ET");
    let pages = [page(filler), page(FACT), page(filler)];
    let pages: Vec<&str> = pages.iter().map(String::as_str).collect();
    let file = write(dir.path(), "report.pdf", &pdf(&pages));
    let found = place(&cache, &file);
    assert_eq!((&found["page"], &found["place"]), (&2.into(), &"p. 2".into()), "{found}");
    let shown = run(&cache, &file, &[QUESTION]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("report.pdf p. 2]"), "{shown}");

    let body: String = [filler, FACT, filler]
        .iter()
        .map(|line| format!("<w:p><w:r><w:t>{line}</w:t></w:r></w:p>"))
        .collect();
    let found = place(&cache, &write(dir.path(), "report.docx", &zipped(&docx(&body))));
    assert_eq!((&found["paragraph"], &found["place"]), (&2.into(), &"par. 2".into()), "{found}");

    let rows = "<row r='3'><c r='B3' t='s'><v>0</v></c></row><row r='4'><c r='B4' t='s'><v>1</v></c></row>";
    let found = place(&cache, &write(dir.path(), "budget.xlsx", &zipped(&xlsx(&[filler, FACT], rows))));
    assert_eq!((&found["cells"], &found["place"]), (&"B4".into(), &"Budget!B4".into()), "{found}");

    let (first, second) = (format!("<p>{filler}</p>"), format!("<h1>The Mill</h1><p>{FACT}</p>"));
    let book = epub(&[("a", &first), ("b", &second)]);
    // The name does not decide the format.
    let found = place(&cache, &write(dir.path(), "book.txt", &zipped(&book)));
    assert_eq!((&found["chapter"], &found["place"]), (&2.into(), &"ch. 2 (The Mill)".into()), "{found}");

    let html =
        format!("<!doctype html><title>Report</title><p>{filler}</p><p>{}</p>", FACT.replace(' ', "\n"));
    let found = place(&cache, &write(dir.path(), "report.html", html.as_bytes()));
    assert_eq!((&found["line"], &found["place"]), (&5.into(), &"line 5".into()), "{found}");
}

#[test]
fn a_document_is_prefilled_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let line = |i: u32| format!("({i}: clerk {} keeps ward {}.) Tj 0 -14 Td", i * 37 % 101, i * 7 % 13);
    let page = |page: u32| {
        let lines: Vec<_> = (page * 40..page * 40 + 40).map(line).collect();
        format!("BT /F1 12 Tf 72 700 Td {} ET", lines.join("\n"))
    };
    let pages: Vec<String> = (0..3).map(page).collect();
    let pages: Vec<&str> = pages.iter().map(String::as_str).collect();
    let file = write(dir.path(), "wards.pdf", &pdf(&pages));
    let number = |answer: &Value, field: &str| answer[field].as_u64().unwrap();
    let first = ask(&cache, &file, "Who keeps ward 3?");
    let all = number(&first, "prompt_tokens");
    let second = ask(&cache, &file, "Which clerk is named in line 7?");
    assert_eq!(second["reused_from"], "disk");
    assert!(all > 1000 && number(&second, "reused_tokens") + 60 > all, "{second}");
}

#[test]
fn what_is_no_document_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let check = |name: &str, bytes: &[u8], expected: &str| {
        let file = write(dir.path(), name, bytes);
        let start = Instant::now();
        let out = run(&cache, &file, &["What?"]);
        let message = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{name}: {message}");
        let expected = format!("kimi: {}: {expected}\n", file.display());
        assert_eq!(message, expected);
        assert!(start.elapsed() < Duration::from_secs(30), "{name}: {:?}", start.elapsed());
    };
    let scan = "expected text, found a page without any (a scan): recognize its text first (ocrmypdf)";
    check("scan.pdf", &pdf(&["0 0 9 9 re f"]), scan);
    check("damaged.pdf", b"%PDF-1.7\n", "expected a valid PDF, found a damaged one");
    let archive = "expected text or a document (PDF, DOCX, PPTX, XLSX, EPUB), found a zip archive";
    check("files.zip", &zip(&[("a.txt", b"text")]), archive);
    let zeros = vec![b' '; 130 << 20];
    let part = [b"<w:document>".to_vec(), zeros].concat();
    let bomb = docx("");
    let mut bomb: Vec<(&str, &[u8])> = bomb.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    bomb[1].1 = &part;
    let notes = [("word/footnotes.xml", "footnotes"), ("word/endnotes.xml", "endnotes")];
    let relation =
        |(path, kind): (&str, &str)| format!("<R><Relationship Type='/{kind}' Target='/{path}'/></R>");
    let relations = format!("<R>{}</R>", notes.map(relation).concat());
    bomb.push(("word/_rels/document.xml.rels", relations.as_bytes()));
    bomb.extend(notes.map(|(path, _)| (path, &*part)));
    let found = "expected at most 384 MiB when unpacked, found more";
    let file = write(dir.path(), "bomb.docx", &zip(&bomb));
    let message = String::from_utf8(run(&cache, &file, &["What?"]).stderr).unwrap();
    assert!(message.lines().count() == 1 && message.contains(found), "{message}");
}
