//! Extracts the text of the input as a document: as a file of one format, or as the entries of a zip archive, which the
//! target packs, so that mutations change their XML and not compressed bytes.
//!
//! An input for an archive is its entries, separated by a zero byte; each is its path, a line end and its content. An input
//! that begins as an archive does is taken as it is.

#[path = "../../src/documents/test_files.rs"]
#[allow(dead_code, reason = "the tests of the library use the rest")]
mod test_files;

use kimi::documents::Document;

/// Tests one PDF, and panics if a property does not hold.
pub fn pdf(input: &[u8]) {
    check(&after(b"%PDF-", b"%PDF-1.7\n", input));
}

/// Tests one page of HTML, with or without a byte order mark.
pub fn html(input: &[u8]) {
    let marked = input.starts_with(b"\xff\xfe") || input.starts_with(b"\xfe\xff");
    check(&if marked { input.to_owned() } else { after(b"<", b"<!doctype html>", input) });
}

/// Tests one plain text in any encoding.
pub fn text(input: &[u8]) {
    check(input);
}

/// Tests one Office document or book.
pub fn archive(input: &[u8]) {
    if input.starts_with(b"PK\x03\x04") {
        return check(input);
    }
    let entries = input.split(|byte| *byte == 0).filter_map(|entry| {
        let end = entry.iter().position(|byte| *byte == b'\n')?;
        Some((std::str::from_utf8(&entry[..end]).ok()?, &entry[end + 1..]))
    });
    let entries: Vec<_> = entries.filter(|(path, _)| !path.is_empty()).take(64).collect();
    check(&test_files::zip(&entries));
}

/// The input, after `head` unless it begins with `start`.
fn after(start: &[u8], head: &[u8], input: &[u8]) -> Vec<u8> {
    if input.starts_with(start) { input.to_owned() } else { [head, input].concat() }
}

fn check(bytes: &[u8]) {
    match Document::from_bytes("x", bytes) {
        Ok(document) => {
            assert!(!document.text.trim().is_empty() && !document.text.contains('\r'));
            let places = document.places();
            assert!(places.is_sorted_by_key(|(at, _)| *at), "{places:?}");
            let end = document.text.chars().count();
            assert!(places.last().is_none_or(|(at, _)| *at <= end), "{places:?}");
        }
        Err(e) => {
            let message = format!("{e:#}");
            // The reason that a panic of a library is given.
            assert!(!message.contains("expected a valid document"), "{message}");
        }
    }
}
