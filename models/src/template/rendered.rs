//! A rendered conversation: its text and which parts of it are special tokens. Made by [`super::Template::render`];
//! ids come from [`crate::tokenizer`].

use crate::tokenizer::{Segment, Specials, Vocabulary};

/// A prompt: its text, and which of it is special tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    /// End of each part in `text`, with the id if it is a special token.
    parts: Vec<(usize, Option<u32>)>,
}

impl Rendered {
    /// An empty one with room for `bytes`.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), parts: Vec::new() }
    }

    pub(super) fn push(&mut self, segment: Segment, sentinel: char, specials: &Specials) {
        let id = match segment {
            Segment::Text(text) => {
                self.text.extend(text.chars().filter(|&c| c != sentinel));
                None
            }
            Segment::Special(id) => {
                self.text.push_str(specials.name(id).unwrap_or_default());
                Some(id)
            }
        };
        self.parts.push((self.text.len(), id));
    }

    /// The text, to be read: encoding it anew would not tell a user's `<|im_end|>` from the template's.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The ids in the vocabulary that the template was made with.
    pub fn encode(&self, vocabulary: &Vocabulary) -> Vec<u32> {
        self.encode_after(0, vocabulary)
    }

    /// The ids of the text after its first `seen` bytes, which end at a character and not in a special token.
    pub fn encode_after(&self, seen: usize, vocabulary: &Vocabulary) -> Vec<u32> {
        let mut ids = Vec::with_capacity((self.text.len() - seen) / 3);
        let mut start = seen;
        for &(end, id) in self.parts.iter().filter(|(end, _)| *end > seen) {
            match id {
                Some(id) => ids.push(id),
                None => vocabulary.encode_into(&self.text[start..end], &mut ids),
            }
            start = end;
        }
        ids
    }

    /// The byte that these tokens lead to from byte `at`, if they spell what stands there: special tokens as
    /// themselves, text cut in any way.
    pub fn follow(&self, at: usize, tokens: &[u32], vocabulary: &Vocabulary) -> Option<usize> {
        let mut at = at;
        let mut parts = self.parts[self.parts.partition_point(|(end, _)| *end <= at)..].iter();
        let mut part = parts.next();
        for &token in tokens {
            let &(end, id) = part?;
            let bytes = vocabulary.token_bytes(token);
            let text = &self.text.as_bytes()[at..end];
            let spelled = match id {
                Some(id) => id == token,
                None => !vocabulary.is_special(token) && !bytes.is_empty() && text.starts_with(bytes),
            };
            if !spelled {
                return None;
            }
            at += bytes.len();
            while part.is_some_and(|(end, _)| *end <= at) {
                part = parts.next();
            }
        }
        Some(at)
    }

    /// Whether a special token or the end of the text stands at this byte, or a special token ends there: what
    /// comes after is cut into tokens without regard to what was before.
    pub fn is_border(&self, at: usize) -> bool {
        at == 0 || self.parts.binary_search_by_key(&at, |(end, _)| *end).is_ok()
    }
}
