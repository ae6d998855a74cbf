//! Holds a rendered conversation, its text with its special tokens, and encodes it.
//!
//! [`super::Template::render`] creates it. Next: [`crate::tokenizer`].

use crate::tokenizer::{Segment, Specials, Vocabulary};

/// A prompt: its text, and the special tokens in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    /// End of each part in `text`, with the id of a special token.
    parts: Vec<(usize, Option<u32>)>,
}

impl Rendered {
    /// Creates an empty prompt with room for `bytes`.
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

    /// The text for display. Encoding it again would confuse a user's `<|im_end|>` with the template's.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Encodes the prompt with the vocabulary of the template.
    pub fn encode(&self, vocabulary: &Vocabulary) -> Vec<u32> {
        self.encode_after(0, vocabulary)
    }

    /// Encodes the text after its first `seen` bytes, which must end at a character and outside special tokens.
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

    /// The byte position after these tokens from position `at`, if they match the prompt there: special tokens exactly, text
    /// in any tokenization.
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

    /// Bytes from `at` on where [`Rendered::is_border`] holds, in ascending order.
    pub fn borders_from(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        self.parts[self.parts.partition_point(|(end, _)| *end < at)..].iter().map(|(end, _)| *end)
    }

    /// Returns whether a special token starts or ends at this byte, or the text ends there: the text after it is tokenized
    /// independently of the text before.
    pub fn is_border(&self, at: usize) -> bool {
        at == 0 || self.parts.binary_search_by_key(&at, |(end, _)| *end).is_ok()
    }
}
