//! Detects the format of a document by its content.

/// A format that is extracted in a worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Pdf,
    /// An Office document or an EPUB book; its entries decide which.
    Zip,
    Html,
}

impl Format {
    /// A byte for the request to a worker.
    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Format> {
        [Format::Pdf, Format::Zip, Format::Html].into_iter().find(|format| format.code() == code)
    }
}

/// Bytes before the header of a PDF that readers accept.
const PDF_HEADER_WITHIN: usize = 1024;

/// The format of a file with this beginning; None for plain text and unknown formats.
pub(super) fn detect(head: &[u8]) -> Option<Format> {
    let start = &head[..head.len().min(PDF_HEADER_WITHIN)];
    let has_pdf_header = start.windows(5).position(|window| window == b"%PDF-").is_some_and(|at| {
        // A text may speak of the header.
        at == 0 || start[..at].contains(&0) || start[at + 5..].starts_with(b"1.") && !start[..at].is_ascii()
    });
    if has_pdf_header {
        return Some(Format::Pdf);
    }
    if head.starts_with(b"PK\x03\x04") {
        return Some(Format::Zip);
    }
    is_html(start).then_some(Format::Html)
}

/// Whether a text begins as an HTML document, after white space, comments, an XML declaration and a document type.
fn is_html(start: &[u8]) -> bool {
    // UTF-16 has a zero beside every letter of a tag.
    let letters: Vec<u8> = start.iter().filter(|byte| **byte != 0).map(u8::to_ascii_lowercase).collect();
    let letters = letters.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&letters);
    let mut text = String::from_utf8_lossy(letters).into_owned();
    loop {
        text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{fffd}').to_owned();
        let end = match () {
            () if text.starts_with("<!--") => "-->",
            () if text.starts_with("<?xml") => "?>",
            () if text.starts_with("<!doctype") && !text.starts_with("<!doctype html") => ">",
            () => break,
        };
        let Some(at) = text.find(end) else { return false };
        text.drain(..at + end.len());
    }
    ["<!doctype html", "<html", "<head>", "<body"].iter().any(|tag| text.starts_with(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_detected_by_content() {
        assert_eq!(detect(b"%PDF-1.7\n"), Some(Format::Pdf));
        assert_eq!(detect(b"\0\0junk\n%PDF-1.4\n"), Some(Format::Pdf));
        assert_eq!(detect(b"A PDF starts with %PDF-1.4 and"), None);
        assert_eq!(detect(b"PK\x03\x04..."), Some(Format::Zip));
        assert_eq!(detect(b"\xef\xbb\xbf <!DOCTYPE HTML>"), Some(Format::Html));
        assert_eq!(detect(b"<?xml version='1.0'?>\n<!-- a > b -->\n<html lang=en>"), Some(Format::Html));
        assert_eq!(detect(b"\xff\xfe<\0h\0t\0m\0l\0>\0"), Some(Format::Html));
        assert_eq!(
            detect(b"<!DOCTYPE doctype PUBLIC \"-//W3C//DTD XHTML 1.0 Strict//EN\">\n<html>"),
            Some(Format::Html)
        );
        assert_eq!(detect(b"<!-- <html>"), None);
        assert_eq!(detect(b"<!DOCTYPE book>\n<book>"), None);
        assert_eq!(detect(b"<svg>"), None);
        assert_eq!(detect(b""), None);
        for format in [Format::Pdf, Format::Zip, Format::Html] {
            assert_eq!(Format::from_code(format.code()), Some(format));
        }
        assert_eq!(Format::from_code(9), None);
    }
}
