//! Builds a [`Vocabulary`]: tokens are added id by id and then validated together.
//!
//! The three readers ([`super::tiktoken`], [`super::json`], [`super::metadata`]) use it.

use super::bpe::{Merges, Scratch};
use super::pretokenizer::{Pattern, Pretokenizer};
use super::vocab::Tokens;
use super::{SpecialIds, Specials, Vocabulary};
use crate::architecture::TEXT_SPECS;
use crate::gguf::Error;
use std::fmt::Display;

/// The kind of a token, with GGUF's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ordinary bytes of text, which encoding yields.
    Normal = 1,
    /// Replaces text that no token encodes.
    Unknown = 2,
    /// Special: delimits the parts of a conversation.
    Control = 3,
    /// Added by the model's author; treated as special.
    UserDefined = 4,
    /// An id without a token.
    Unused = 5,
    /// A single byte, written `<0x41>`.
    Byte = 6,
}

impl Kind {
    /// The kind with GGUF's number.
    pub(super) fn of(number: i32) -> Option<Self> {
        [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte]
            .into_iter()
            .find(|&kind| kind as i32 == number)
    }

    /// Returns whether the token is special: text never yields it.
    pub fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }
}

/// Largest number of ids, above any known model: a file with more is invalid.
pub(super) const MAX_IDS: usize = 1 << 22;

/// Largest total length of special names, which every prompt is searched for; Kimi's have 7 kB.
const MAX_SPECIAL_BYTES: usize = 1 << 20;

/// An error of a tokenizer file.
pub(super) fn bad(path: &str, place: impl Display, expected: impl Display, found: impl Display) -> Error {
    Error::Bad {
        path: path.to_owned(),
        place: place.to_string(),
        expected: expected.to_string(),
        found: shortened(&found.to_string()),
    }
}

/// Truncates text to 80 characters and escapes control characters, so that a message stays one line.
fn shortened(text: &str) -> String {
    let escaped: String = text.chars().take(81).flat_map(|c| Escape(c).into_iter()).collect();
    match text.chars().nth(80) {
        Some(_) => format!("{}...", escaped.chars().take(80).collect::<String>()),
        None => escaped,
    }
}

struct Escape(char);

impl Escape {
    fn into_iter(self) -> Vec<char> {
        if self.0.is_control() { self.0.escape_default().collect() } else { vec![self.0] }
    }
}

/// A vocabulary under construction; tokens get their ids in order.
pub(super) struct VocabularyBuilder<'p> {
    path: &'p str,
    pub(super) tokens: Tokens,
    kinds: Vec<Kind>,
}

impl<'p> VocabularyBuilder<'p> {
    /// Allocates room for `count` tokens of the file `path`.
    pub(super) fn new(path: &'p str, count: usize) -> Result<Self, Error> {
        if count > MAX_IDS {
            return Err(bad(path, "tokens", format_args!("at most {MAX_IDS} ids"), count));
        }
        Ok(Self { path, tokens: Tokens::with_capacity(count), kinds: Vec::with_capacity(count) })
    }

    /// Adds the token of the next id.
    pub(super) fn push(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), Error> {
        let place = || format!("token {}", self.kinds.len());
        let too_long = || bad(self.path, place(), "tokens of less than 4 GiB in all", "more");
        let id = self.tokens.push(bytes).ok_or_else(too_long)?;
        if matches!(kind, Kind::Normal | Kind::Byte) {
            if bytes.is_empty() {
                return Err(bad(self.path, place(), "at least one byte", "none"));
            }
            let twice = |other| bad(self.path, place(), "a new token", format_args!("token {other} again"));
            self.tokens.index(id).map_err(twice)?;
        }
        self.kinds.push(kind);
        Ok(())
    }

    /// Adds an id without a token.
    pub(super) fn push_unused(&mut self) -> Result<(), Error> {
        self.push(Kind::Unused, format!("[PAD{}]", self.kinds.len()).as_bytes())
    }

    /// Derives the merge table of a vocabulary whose ids are ranks.
    pub(super) fn derive_merges(&self) -> Result<Merges, Error> {
        Merges::derive(&self.tokens).map_err(|byte| self.missing(byte))
    }

    /// Creates an empty merge table.
    pub(super) fn new_merges(&self, count: usize) -> Result<Merges, Error> {
        Merges::new(&self.tokens, count).map_err(|byte| self.missing(byte))
    }

    fn missing(&self, byte: u8) -> Error {
        bad(self.path, "tokens", format_args!("a token for every byte"), format_args!("none for {byte:#04x}"))
    }

    /// Adds the `index`-th merge of the file: two tokens, given as bytes.
    pub(super) fn merge(
        &self,
        merges: &mut Merges,
        index: usize,
        left: &[u8],
        right: &[u8],
    ) -> Result<(), Error> {
        let known = |bytes: &[u8]| {
            let found =
                || bad(self.path, format_args!("merge {index}"), "known tokens", bytes.escape_ascii());
            self.tokens.id(bytes).ok_or_else(found)
        };
        merges.push(known(left)?, known(right)?, known(&[left, right].concat())?);
        Ok(())
    }

    /// Ids of tokens that their bytes do not merge to, in ascending order.
    pub(super) fn unreachable(&self, merges: &Merges) -> Vec<u32> {
        let (mut scratch, mut merged) = (Scratch::default(), Vec::new());
        let is_unreachable = |&id: &u32| {
            let bytes = self.tokens.get(id);
            merged.clear();
            if bytes.len() > 1 && self.tokens.id(bytes) == Some(id) {
                merges.merge(bytes, &mut scratch, &mut merged);
            }
            merged.len() > 1
        };
        (0..self.tokens.len() as u32).filter(is_unreachable).collect()
    }

    /// Validates and returns the vocabulary.
    pub(super) fn finish(
        mut self,
        merges: Merges,
        pattern: &'static Pattern,
        special_ids: SpecialIds,
    ) -> Result<Vocabulary, Error> {
        let count = self.tokens.len();
        for (name, id) in [
            ("bos", special_ids.bos),
            ("eos", special_ids.eos),
            ("padding", special_ids.pad),
            ("unknown", special_ids.unk),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                let expected = format_args!("an id below {count}");
                return Err(bad(self.path, format_args!("{name} token id"), expected, id));
            }
        }
        let ids = (0..count as u32).filter(|&id| self.kinds[id as usize].is_special());
        let bytes: usize = ids.clone().map(|id| self.tokens.get(id).len()).sum();
        if bytes > MAX_SPECIAL_BYTES {
            let expected = format_args!("names of at most {MAX_SPECIAL_BYTES} bytes in all");
            return Err(bad(self.path, "special tokens", expected, bytes));
        }
        let named = ids.map(|id| (String::from_utf8_lossy(self.tokens.get(id)).into_owned(), id));
        let specials = Specials::new(named.collect());
        // As in llama.cpp, names of all formats end a reply.
        let end_names = TEXT_SPECS.iter().flat_map(|format| format.end_names);
        let mut eog_tokens: Vec<u32> =
            end_names.filter_map(|name| specials.id(name)).chain(special_ids.eos).collect();
        eog_tokens.sort_unstable();
        eog_tokens.dedup();
        if !pattern.format.whole_pieces {
            self.tokens.unindex(&self.unreachable(&merges));
        }
        let pretokenizer = Pretokenizer::new(pattern);
        Ok(Vocabulary {
            tokens: self.tokens,
            kinds: self.kinds,
            merges,
            pretokenizer,
            specials,
            special_ids,
            eog_tokens,
        })
    }
}
