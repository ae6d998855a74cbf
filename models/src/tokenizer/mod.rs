//! Encodes text as token ids and decodes them: byte-pair encoding over a [`Vocabulary`], in time linear in the text.
//!
//! A vocabulary is read from `tiktoken.model`, `tokenizer.json` or GGUF metadata, and written as GGUF metadata. It does
//! not train vocabularies and has no chat format, which is in [`crate::template`]. [`pretokenizer`] splits a text into
//! pieces, [`vocab`] looks them up, and [`bpe`] merges those that are no tokens; [`stream`] decodes ids incrementally.

mod bpe;
mod builder;
mod byte_level;
mod fuzz;
mod json;
mod metadata;
mod pretokenizer;
mod specials;
mod stream;
#[cfg(test)]
mod tests;
mod tiktoken;
mod vocab;

pub use builder::Kind;
pub use fuzz::exercise;
pub(crate) use specials::Segment;
pub use specials::Specials;
pub use stream::Utf8Stream;
#[cfg(test)]
pub(crate) use tests::kimi;

use bpe::{Merges, Scratch};
use pretokenizer::Pretokenizer;
use rustc_hash::FxHashMap;
use std::ops::Range;
use vocab::Tokens;

/// Ids with a special role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Beginning of a sequence; encoding does not add it.
    pub bos: Option<u32>,
    /// End of a sequence (`tokenizer.ggml.eos_token_id`).
    pub eos: Option<u32>,
    /// Padding of training batches (`tokenizer.ggml.padding_token_id`).
    pub pad: Option<u32>,
    /// Replacement for unknown text (`tokenizer.ggml.unknown_token_id`).
    pub unk: Option<u32>,
}

/// Tokens, merges, pre-tokenizer and special ids of a model.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    tokens: Tokens,
    kinds: Vec<Kind>,
    merges: Merges,
    pretokenizer: Pretokenizer,
    specials: Specials,
    special_ids: SpecialIds,
    /// Ids that end generation, in ascending order for binary search.
    eog_tokens: Vec<u32>,
}

/// Size of the cache of merged pieces per text, and the longest cached piece in bytes.
const CACHED_PIECES: usize = 1 << 16;
const CACHED_PIECE_BYTES: usize = 64;

impl Vocabulary {
    /// Encodes untrusted text, which never yields a special token.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, &mut ids);
        ids
    }

    /// [`Self::encode`] of bytes; invalid UTF-8 is replaced by U+FFFD.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.encode(&String::from_utf8_lossy(bytes))
    }

    /// Encodes trusted text, in which names of special tokens become these tokens.
    pub fn encode_with_specials(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for segment in self.specials.segments(text) {
            match segment {
                Segment::Special(id) => ids.push(id),
                Segment::Text(text) => self.encode_into(text, &mut ids),
            }
        }
        ids
    }

    pub(crate) fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        let mut merged: FxHashMap<&[u8], Range<usize>> = FxHashMap::default();
        for piece in self.pretokenizer.pieces(text).map(str::as_bytes) {
            if let Some(id) = self.tokens.id(piece) {
                ids.push(id);
            } else if let Some(before) = merged.get(piece) {
                ids.extend_from_within(before.clone());
            } else {
                let start = ids.len();
                self.merges.merge(piece, &mut scratch, ids);
                if piece.len() <= CACHED_PIECE_BYTES && merged.len() < CACHED_PIECES {
                    merged.insert(piece, start..ids.len());
                }
            }
        }
    }

    /// Decodes ids: special tokens by name, invalid UTF-8 as U+FFFD. Unknown ids are skipped.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of a token, or the name of a special one; empty for an unknown id.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if (id as usize) < self.len() { self.tokens.get(id) } else { &[] }
    }

    /// Number of ids, unused ones included: the rows of the embedding.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Always false: a vocabulary has at least the 256 bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kind of an id. None if unknown.
    pub fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    /// Returns whether generation stops at this id.
    pub fn is_end(&self, id: u32) -> bool {
        self.eog_tokens.binary_search(&id).is_ok()
    }

    /// Ids that end generation, in ascending order.
    pub fn eog_tokens(&self) -> &[u32] {
        &self.eog_tokens
    }

    /// Returns whether this id is a special token, which text never yields.
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id).is_some_and(Kind::is_special)
    }

    /// The special tokens, which [`Self::encode`] never yields.
    pub fn specials(&self) -> &Specials {
        &self.specials
    }

    /// Ids with a special role.
    pub fn special_ids(&self) -> SpecialIds {
        self.special_ids
    }

    /// The name of the pre-tokenizer pattern, `tokenizer.ggml.pre`.
    pub fn pre(&self) -> &'static str {
        self.pretokenizer.pattern.format.pre
    }
}
