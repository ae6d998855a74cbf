//! Finds the quotations of a reply in the files of its prompt, as `ask` does: lines that begin with `>` are quotations, and
//! white space and the form of quotation marks do not matter. Next: [`crate::document_qa::quotes`].

use super::set::FileSet;
use crate::document_qa::quotes::quoted;
use crate::serve::api::files::FileCitation;

/// Returns the quotations of a reply in their order, with their place in the first file that has them.
pub fn citations(files: &FileSet, reply: &str) -> Vec<FileCitation> {
    let mut found = Vec::new();
    let mut line_start = 0;
    for line in reply.split('\n') {
        if let Some(quote) = quoted(line) {
            let before = line.len() - line.trim_start()[1..].trim_start().len();
            let start = line_start + line[..before].chars().count();
            found.push(citation(files, quote, start));
        }
        line_start += line.chars().count() + 1;
    }
    found
}

fn citation(files: &FileSet, quote: &str, start: usize) -> FileCitation {
    let span = files.texts().span(quote, &files.documents);
    let end = start + quote.chars().count();
    FileCitation {
        kind: "file_citation",
        file_id: span.as_ref().map(|span| files.ids[span.file].clone()),
        filename: span.as_ref().map(|span| files.documents[span.file].name.clone()),
        index: end,
        quote: quote.to_owned(),
        place: span.as_ref().map(|span| span.place.place.clone()),
        start_index: start,
        end_index: end,
        text_start: span.as_ref().map(|span| span.start),
        text_end: span.as_ref().map(|span| span.end),
        verified: span.is_some(),
    }
}
