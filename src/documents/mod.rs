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
    /// A document of plain text.
    pub fn plain(name: &str, text: &str) -> Document {
        Document { name: name.to_owned(), text: text.to_owned(), parts: Vec::new() }
    }
}
