//! Citations of documents in a message of `/v1/messages`: the quotations that a document has, by page or by character. Next:
//! [`crate::serve::files::citations`].

use crate::serve::api::files::FileCitation;
use crate::serve::api::messages::MessageCitation;
use crate::serve::files::citations::citations;
use crate::serve::files::set::FileSet;
use std::sync::Arc;

/// The files of a request whose reply cites them.
pub struct CitedFiles {
    pub files: Arc<FileSet>,
    /// Of each file, its index among the documents of the request.
    pub indexes: Vec<usize>,
}

impl CitedFiles {
    /// Returns the citations of a complete text.
    pub fn citations(&self, text: &str) -> Vec<MessageCitation> {
        citations(&self.files, text).into_iter().filter_map(|found| self.citation(found)).collect()
    }

    /// Converts a citation; `None` for a quotation that no file has.
    fn citation(&self, found: FileCitation) -> Option<MessageCitation> {
        let file_id = found.file_id?;
        let at = self.files.ids.iter().position(|id| *id == file_id)?;
        let document_index = self.indexes.get(at).copied().unwrap_or(at);
        let (cited_text, document_title) = (found.quote, found.filename?);
        Some(match found.place.as_deref().and_then(pages) {
            Some((first, last)) => MessageCitation::PageLocation {
                cited_text,
                document_index,
                document_title,
                file_id,
                start_page_number: first,
                end_page_number: last + 1,
            },
            None => MessageCitation::CharLocation {
                cited_text,
                document_index,
                document_title,
                file_id,
                start_char_index: found.text_start?,
                end_char_index: found.text_end?,
            },
        })
    }
}

/// The pages of a place such as `p. 3` or `pp. 3-4`.
fn pages(place: &str) -> Option<(u32, u32)> {
    let range = place.strip_prefix("p. ").or_else(|| place.strip_prefix("pp. "))?;
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::pages;

    #[test]
    fn places_with_pages_are_parsed() {
        assert_eq!(
            ["p. 3", "pp. 3-4", "line 3", "par. 7"].map(pages),
            [Some((3, 3)), Some((3, 4)), None, None]
        );
    }
}
