//! Text to token ids and back: byte-pair encoding over a [`Vocabulary`], exact and linear in the text.
//!
//! One vocabulary type, read from `tiktoken.model`, from `tokenizer.json` or from GGUF metadata, and written
//! as GGUF metadata. It is not a trainer and knows no chat form: that is [`crate::template`].
//! Way of a text: [`pretokenizer`] cuts it into pieces, [`vocab`] knows most of them whole, [`bpe`] builds the
//! others; ids become text again in [`stream`].

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

/// Names that end a generation whenever a vocabulary has them, as llama.cpp treats them.
const END_NAMES: [&str; 4] = ["[EOS]", "<|im_end|>", "[EOT]", "[PAD]"];

/// Ids that have a part to play.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Beginning of a sequence; Kimi's encoding adds none.
    pub bos: Option<u32>,
    /// End of a sequence.
    pub eos: Option<u32>,
    /// Filler.
    pub pad: Option<u32>,
    /// Unknown token.
    pub unk: Option<u32>,
}

/// Tokens, merges, split pattern and special ids of a model.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    tokens: Tokens,
    kinds: Vec<Kind>,
    merges: Merges,
    pretokenizer: Pretokenizer,
    specials: Specials,
    special_ids: SpecialIds,
    /// Sorted.
    ends: Vec<u32>,
}

/// Pieces kept per text so that a repeated one is not merged again, and the longest that is kept in bytes.
const KEPT_PIECES: usize = 1 << 16;
const KEPT_BYTES: usize = 64;

impl Vocabulary {
    /// Ids of a text that nobody vouches for: it never becomes a special id.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_into(text, &mut ids);
        ids
    }

    /// [`Self::encode`] of bytes that may be no UTF-8: broken sequences are read as U+FFFD.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.encode(&String::from_utf8_lossy(bytes))
    }

    /// Ids of a trusted text, in which the names of special tokens are those tokens.
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
                if piece.len() <= KEPT_BYTES && merged.len() < KEPT_PIECES {
                    merged.insert(piece, start..ids.len());
                }
            }
        }
    }

    /// The text of ids, specials by name, broken UTF-8 as U+FFFD; ids that do not exist are nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of a token, the name of a special one; empty for an id that does not exist.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if (id as usize) < self.len() { self.tokens.get(id) } else { &[] }
    }

    /// How many ids there are, unused ones included: the rows of the embedding.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never: a vocabulary has at least the 256 bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What an id is; `None` when it does not exist.
    pub fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    /// Whether generation stops at this id.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// The ids at which generation stops, ascending.
    pub fn eog_tokens(&self) -> &[u32] {
        &self.ends
    }

    /// Whether this id is a special token: not something a user can type.
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id).is_some_and(Kind::is_special)
    }

    /// The special tokens by name.
    pub fn specials(&self) -> &Specials {
        &self.specials
    }

    /// Beginning, end, filler, unknown.
    pub fn special_ids(&self) -> SpecialIds {
        self.special_ids
    }

    /// The name of the split pattern, `tokenizer.ggml.pre`.
    pub fn pre(&self) -> &'static str {
        self.pretokenizer.pattern.name
    }
}
