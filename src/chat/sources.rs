//! The files attached to a chat, in which quotes are located.
//!
//! Next: [`crate::document_qa::quotes`].

use super::store::{Attachment, StoredChat};
use crate::document_qa::quotes::{FoldedTexts, QuoteSpan};
use crate::documents::Document;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ops::Range;

/// Most bytes of a file before and after a quote that the source panel shows.
const CONTEXT_BYTES: usize = 32 << 10;

/// The attachments of a chat in the order of their messages.
#[derive(Default)]
pub struct Sources {
    documents: Vec<Document>,
    /// The text to search, made when the first quote is looked up.
    folded: OnceCell<FoldedTexts>,
    /// Quotes that were looked up: another layout does not search again.
    found: RefCell<HashMap<String, Option<QuoteSpan>>>,
}

/// The lines of a file around a quote.
#[derive(Debug, PartialEq, Eq)]
pub struct Excerpt<'s> {
    pub text: &'s str,
    /// The number of its first line, from 1.
    pub line: usize,
    /// The bytes of the quote in the text.
    pub quote: Range<usize>,
}

impl Sources {
    /// Collects the attachments of a chat.
    pub fn new(chat: &StoredChat) -> Self {
        let document = |file: &Attachment| Document {
            parts: file.parts.clone(),
            ..Document::plain(&file.name, &file.text)
        };
        Sources { documents: attachments(chat).map(document).collect(), ..Default::default() }
    }

    /// Whether these are the attachments of a chat.
    pub fn are_of(&self, chat: &StoredChat) -> bool {
        let own = self.documents.iter().map(|document| (&document.name, &document.text));
        own.eq(attachments(chat).map(|file| (&file.name, &file.text)))
    }

    /// The first location of a quote; None if no file has it.
    pub fn locate(&self, quote: &str) -> Option<QuoteSpan> {
        if let Some(span) = self.found.borrow().get(quote) {
            return span.clone();
        }
        let folded = self.folded.get_or_init(|| FoldedTexts::new(&self.documents));
        let span = folded.span(quote, &self.documents);
        self.found.borrow_mut().insert(quote.to_owned(), span.clone());
        span
    }

    /// Whole lines around a located quote; of longer lines only the part next to the quote.
    pub fn excerpt(&self, span: &QuoteSpan) -> Excerpt<'_> {
        let text = &*self.documents[span.file].text;
        let byte = |character: usize| text.char_indices().nth(character).map_or(text.len(), |(at, _)| at);
        let (start, end) = (byte(span.start), byte(span.end));
        let from = text.floor_char_boundary(start.saturating_sub(CONTEXT_BYTES));
        let to = text.ceil_char_boundary((end + CONTEXT_BYTES).min(text.len()));
        let from = if from == 0 { 0 } else { text[from..start].find('\n').map_or(from, |at| from + at + 1) };
        let to = if to == text.len() { to } else { text[end..to].rfind('\n').map_or(to, |at| end + at) };
        let line = 1 + text[..from].matches('\n').count();
        Excerpt { text: &text[from..to], line, quote: start - from..end - from }
    }
}

fn attachments(chat: &StoredChat) -> impl Iterator<Item = &Attachment> {
    chat.turns.iter().flat_map(|turn| &turn.files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::store::{Author, Turn};

    fn chat(text: &str) -> StoredChat {
        let file = Attachment { name: "a.txt".into(), text: text.into(), parts: Vec::new() };
        let turn = Turn { files: vec![file], ..Turn::new(Author::User, "q") };
        StoredChat { turns: vec![turn], ..StoredChat::new(None) }
    }

    #[test]
    fn quotes_are_located_with_their_lines() {
        let chat = chat("one\nGrüße an\nalle hier\nend\n");
        let sources = Sources::new(&chat);
        assert!(sources.are_of(&chat) && !sources.are_of(&StoredChat::new(None)));
        let span = sources.locate("an alle").unwrap();
        assert_eq!(span.place.with_file(), "a.txt:2-3");
        let excerpt = sources.excerpt(&span);
        assert_eq!((excerpt.line, &excerpt.text[excerpt.quote]), (1, "an\nalle"));
        assert_eq!((sources.locate("an allen"), sources.locate("an alle")), (None, Some(span)));
        let mut paged = chat;
        paged.turns[0].files[0].parts =
            serde_json::from_str(r#"[{"line": 1, "part": {"Page": 1}}, {"line": 3, "part": {"Page": 2}}]"#)
                .unwrap();
        let place = Sources::new(&paged).locate("alle hier").unwrap().place;
        assert_eq!(place.with_file(), "a.txt p. 2");
    }

    #[test]
    fn an_excerpt_of_a_large_file_is_small() {
        let text =
            format!("{}needle in line\n{}", "a line of text\n".repeat(10_000), "another\n".repeat(10_000));
        let sources = Sources::new(&chat(&text));
        let excerpt = sources.excerpt(&sources.locate("needle in").unwrap());
        assert!(excerpt.text.len() <= 2 * CONTEXT_BYTES + 9, "{}", excerpt.text.len());
        assert_eq!(&excerpt.text[excerpt.quote], "needle in");
        assert!(excerpt.text.starts_with("a line of text\na") && excerpt.text.ends_with("\nanother"));
        assert_eq!(excerpt.line + excerpt.text.split("needle").next().unwrap().matches('\n').count(), 10_001);
        let sources = Sources::new(&chat(&format!("{}needle{}", "你".repeat(50_000), "好".repeat(50_000))));
        let excerpt = sources.excerpt(&sources.locate("needle").unwrap());
        assert!(excerpt.text.len() <= 2 * CONTEXT_BYTES + 16 && excerpt.text[excerpt.quote].eq("needle"));
    }
}
