//! Reads documents: plain text in any encoding, HTML, PDF, Word, PowerPoint and Excel files and EPUB books, as text with
//! the places that the format has.
//!
//! Text is decoded here. All other formats are extracted in a worker process with limits on memory and time
//! ([`worker`]), because their files are not trusted. Next: [`gather`] (files and directories), [`format`] (detection),
//! [`worker`].

mod archive;
mod builder;
mod cell_format;
mod epub;
mod format;
pub(crate) mod gather;
mod html;
mod pdf;
mod place;
mod plain;
mod presentation;
mod relations;
mod spreadsheet;
#[cfg(test)]
pub(crate) mod test_files;
mod word;
pub(crate) mod worker;
mod xml;

use place::Part;
pub(crate) use place::{PartStart, Place};

/// A document as text, with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The path as given, or [`gather::PIPE`].
    pub name: String,
    /// The text without a byte order mark, with lines that end in `\n`.
    pub text: String,
    /// The parts of the format, in the order of their lines; empty for plain text.
    pub(crate) parts: Vec<PartStart>,
}

impl Document {
    /// Extracts the text of a file with these bytes.
    ///
    /// # Errors
    /// The name and the reason why the file has no text, in one line.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> anyhow::Result<Document> {
        gather::document(name, bytes)
    }

    /// A document of plain text.
    pub fn plain(name: &str, text: &str) -> Document {
        Document { name: name.to_owned(), text: text.to_owned(), parts: Vec::new() }
    }

    /// The starts of the parts in the text, in Unicode characters, with their places in words of the format.
    pub fn places(&self) -> Vec<(usize, String)> {
        let (mut line, mut at, mut rest) = (1, 0, &*self.text);
        let start = |part: &PartStart| {
            while line < part.line {
                let (before, after) = rest.split_once('\n').unwrap_or((rest, ""));
                (line, at, rest) = (line + 1, at + before.chars().count() + 1, after);
            }
            (at, Place::new("", (part.line, part.line), &self.parts).place)
        };
        self.parts.iter().map(start).collect()
    }
}

/// The name of a file's format, by its first bytes and its extracted text, if there is one.
pub(crate) fn format_name(head: &[u8], document: Option<&Document>) -> &'static str {
    let part = document.and_then(|document| document.parts.first()).map(|start| &start.part);
    match (format::detect(head), part) {
        (None, _) => "text",
        (Some(format::Format::Pdf), _) => "pdf",
        (Some(format::Format::Html), _) => "html",
        (Some(format::Format::Zip), Some(Part::Paragraph(_))) => "docx",
        (Some(format::Format::Zip), Some(Part::Slide(_))) => "pptx",
        (Some(format::Format::Zip), Some(Part::Cells(_))) => "xlsx",
        (Some(format::Format::Zip), Some(Part::Chapter(..))) => "epub",
        (Some(format::Format::Zip), _) => "zip",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_start_at_characters_of_the_text() {
        let part = |line, page| PartStart { line, part: Part::Page(page) };
        let text = "Grüße\n日本\n\nx\n".to_owned();
        let document = Document { name: "a".into(), text, parts: vec![part(1, 1), part(2, 2), part(4, 4)] };
        let places = document.places();
        assert_eq!(places, [(0, "p. 1".into()), (6, "p. 2".into()), (10, "p. 4".into())]);
        assert_eq!(format_name(b"%PDF-1.7", Some(&document)), "pdf");
        assert_eq!(format_name(b"x", None), "text");
    }
}
