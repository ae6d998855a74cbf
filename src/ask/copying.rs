//! Quotes are copied, not remembered: in a line of a reply that begins with `>` only those tokens may follow that the
//! files go on with at some place. What is quoted so far narrows the places; the line may end where a word does.
//!
//! Runs of space count as one, as a quote may be wrapped otherwise than its file. A quote that begins within the very
//! token that has the `>` is left free, and [`super::quotes`] looks it up like any other.

use super::document::Document;
use crate::sample::Constraint;
use std::sync::{Arc, OnceLock};
use toktrie::{Recognizer, SimpleVob, TokTrie};

/// Files to quote from, and the vocabulary to quote with.
pub struct Copies {
    text: Vec<u8>,
    trie: TokTrie,
    ends: Vec<u32>,
    /// After each byte that may open a quote, the places where it goes on.
    openings: OnceLock<Vec<Vec<u32>>>,
    /// The tokens that may open one.
    first: OnceLock<SimpleVob>,
}

/// Where a reply is.
#[derive(Clone)]
enum At {
    /// In a line that is no quote; not yet, as long as it has not begun but with spaces.
    Line { begun: bool },
    /// After `>` and spaces.
    Open,
    /// In a quote that goes on at one of these places.
    Quote(Vec<u32>),
    /// In a quote that is free.
    Free,
}

impl Copies {
    /// Of these files, for the tokens of `trie`; `ends` are those that end a reply.
    pub fn new(documents: &[Document], trie: TokTrie, ends: &[u32]) -> Self {
        let mut text = String::new();
        for document in documents {
            for word in document.text.split_whitespace() {
                text.push_str(word);
                text.push(' ');
            }
            text.pop();
            text.push('\n'); // no quote goes on over it
        }
        // Places are 32 bits wide: what lies beyond 4 GiB cannot be quoted.
        let mut text = text.into_bytes();
        text.truncate(u32::MAX as usize);
        Copies { text, trie, ends: ends.to_vec(), openings: OnceLock::new(), first: OnceLock::new() }
    }

    /// For one reply.
    pub fn constraint(self: &Arc<Self>) -> Box<dyn Constraint> {
        Box::new(Copying { copies: self.clone(), at: At::Line { begun: false }, mask: SimpleVob::new() })
    }

    /// Where a reply is after one byte more; None where the files do not go on so.
    fn step(&self, at: &At, byte: u8) -> Option<At> {
        Some(match (at, byte) {
            (At::Quote(places), b'\n') if !places.iter().any(|at| self.word_ends(*at as usize)) => {
                return None;
            }
            (_, b'\n') => At::Line { begun: false },
            (At::Line { begun: false }, b' ' | b'\t') => At::Line { begun: false },
            (At::Line { begun: false }, b'>') => At::Open,
            (At::Line { .. }, _) => At::Line { begun: true },
            (At::Open, b' ') => At::Open,
            (At::Open, byte) => quote(self.openings()[usize::from(byte)].clone())?,
            (At::Quote(places), byte) => {
                let goes_on = |at: &&u32| self.text.get(**at as usize) == Some(&byte);
                quote(places.iter().filter(goes_on).map(|at| at + 1).collect())?
            }
            (At::Free, _) => At::Free,
        })
    }

    fn openings(&self) -> &[Vec<u32>] {
        self.openings.get_or_init(|| {
            let mut openings = vec![Vec::new(); 256];
            for (byte, at) in self.text.iter().zip(1..) {
                if *byte != b' ' && *byte != b'\n' && self.word_ends(at as usize - 1) {
                    openings[usize::from(*byte)].push(at);
                }
            }
            openings
        })
    }

    /// Whether no word and no character goes on from before `at` to after it.
    fn word_ends(&self, at: usize) -> bool {
        let (Some(before), Some(after)) =
            (at.checked_sub(1).and_then(|i| self.text.get(i)), self.text.get(at))
        else {
            return true;
        };
        let within = before.is_ascii_alphanumeric() && after.is_ascii_alphanumeric();
        !within && after & 0xC0 != 0x80
    }

    /// The tokens that may follow.
    fn mask(&self, at: &At) -> SimpleVob {
        let mut mask = self.trie.alloc_token_set();
        self.trie.add_bias(&mut Walk { copies: self, stack: vec![at.clone()] }, &mut mask, &[]);
        if self.step(at, b'\n').is_some() {
            self.ends.iter().for_each(|end| mask.allow_token(*end));
        }
        mask
    }
}

fn quote(places: Vec<u32>) -> Option<At> {
    if places.is_empty() { None } else { Some(At::Quote(places)) }
}

/// A walk over the vocabulary from one place in a reply.
struct Walk<'c> {
    copies: &'c Copies,
    stack: Vec<At>,
}

impl Recognizer for Walk<'_> {
    fn pop_bytes(&mut self, num: usize) {
        self.stack.truncate(self.stack.len() - num);
    }

    fn collapse(&mut self) {
        self.stack.drain(..self.stack.len() - 1);
    }

    fn trie_finished(&mut self) {
        self.stack.truncate(1);
    }

    fn try_push_byte(&mut self, byte: u8) -> bool {
        let next = self.stack.last().and_then(|at| self.copies.step(at, byte));
        let allowed = next.is_some();
        self.stack.extend(next);
        allowed
    }
}

/// One reply.
struct Copying {
    copies: Arc<Copies>,
    at: At,
    mask: SimpleVob,
}

impl Constraint for Copying {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        let mask = match &self.at {
            At::Line { .. } | At::Free => return Ok(None),
            At::Open => self.copies.first.get_or_init(|| self.copies.mask(&At::Open)),
            quote @ At::Quote(_) => {
                self.mask = self.copies.mask(quote);
                &self.mask
            }
        };
        if mask.is_zero() {
            self.at = At::Free; // a vocabulary that cannot spell the files
            return Ok(None);
        }
        Ok(Some(mask.as_slice()))
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if !self.copies.trie.is_special_token(token) {
            for byte in self.copies.trie.token(token) {
                self.at = self.copies.step(&self.at, *byte).unwrap_or(At::Free);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use toktrie::TokRxInfo;

    const END: u32 = 0;

    /// Tokens: an end, the bytes, and some longer ones.
    fn copies(texts: &[&str], longer: &[&str]) -> Arc<Copies> {
        let mut words = vec![[&[TokTrie::SPECIAL_TOKEN_MARKER][..], b"end"].concat()];
        words.extend((0..=254u8).map(|byte| vec![byte]));
        words.extend(longer.iter().map(|word| word.as_bytes().to_vec()));
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, END), &words);
        let document = |(i, text): (usize, &&str)| Document { name: i.to_string(), text: (*text).into() };
        let documents: Vec<Document> = texts.iter().enumerate().map(document).collect();
        Arc::new(Copies::new(&documents, trie, &[END]))
    }

    /// The tokens that may follow a reply, spelled; None where all may.
    fn follow(copies: &Arc<Copies>, reply: &str) -> Option<Vec<String>> {
        let mut constraint = copies.constraint();
        for byte in reply.bytes() {
            constraint.allowed().unwrap();
            constraint.accept(u32::from(byte) + 1).unwrap();
        }
        let mask = constraint.allowed().unwrap()?;
        let set = |id: &u32| mask[*id as usize / 32] >> (id % 32) & 1 == 1;
        let spelled = |id| match id {
            END => "END".to_owned(),
            id => String::from_utf8_lossy(copies.trie.token(id)).into_owned(),
        };
        Some((0..copies.trie.vocab_size() as u32).filter(set).map(spelled).collect())
    }

    const TEXT: &str = "Mara Velt lives\n   in Dunmore. Mark\tVelten too: \u{1F600}!";

    #[test]
    fn a_reply_is_free_but_for_its_quotes() {
        let copies = copies(&[TEXT], &[]);
        for free in ["", "In Dunmore.", "a > b", "In Paris.\n", "x\n ", "> Mara\n", "> Mara\nSo"] {
            assert_eq!(follow(&copies, free), None, "{free:?}");
        }
    }

    #[test]
    fn a_quote_goes_on_as_a_file_does() {
        let copies = copies(
            &[TEXT, "Mara, again"],
            &["Mara Velt", "ra Vel", "Mart", "\nThe", "\n> Mara", "\n> Paris"],
        );
        let check = |reply: &str, expected: &[&str]| {
            assert_eq!(follow(&copies, reply).as_deref(), Some(&expected.map_owned()[..]), "{reply:?}");
        };
        check("> Ma", &["r", "ra Vel"]);
        check("> Mar", &["a", "k"]);
        let over = ["\nThe", "\n> Mara"];
        check("> Mara", &[&["END", "\n", " ", ","][..], &over].concat());
        check("x\n> Mara Velt lives", &[&["END", "\n", " "][..], &over].concat());
        check("> Mara Velt lives ", &[&["END", "\n", "i"][..], &over].concat());
        check("> Mara Velt lives in Dunmore.", &[&["END", "\n", " "][..], &over].concat());
        check("> again", &[&["END", "\n"][..], &over].concat()); // not on into another file
        check("> Vel", &["t"]);
        check("> too: \u{1F600}", &[&["END", "\n", "!"][..], &over].concat());
    }

    trait Owned {
        fn map_owned(&self) -> Vec<String>;
    }

    impl Owned for &[&str] {
        fn map_owned(&self) -> Vec<String> {
            self.iter().map(|s| (*s).to_owned()).collect()
        }
    }

    #[test]
    fn a_quote_opens_where_a_word_begins() {
        let copies = copies(&[TEXT], &["Mara Velt", "ara", "ark", "> Mara", "lt"]);
        let opening = follow(&copies, "> ").unwrap();
        for yes in ["M", "V", "l", "i", "D", ".", "t", "Mara Velt", " ", "END"] {
            assert!(opening.iter().any(|token| token == yes), "{yes:?} in {opening:?}");
        }
        for no in ["a", "ara", "ark", "x", "lt", "> Mara"] {
            assert!(!opening.iter().any(|token| token == no), "{no:?} in {opening:?}");
        }
    }

    #[test]
    fn a_token_with_more_than_its_mark_leaves_a_quote_free() {
        let copies = copies(&[TEXT], &[">In"]);
        let token = copies.trie.vocab_size() as u32 - 1;
        let mut constraint = copies.constraint();
        constraint.accept(token).unwrap();
        assert!(constraint.allowed().unwrap().is_none());
        constraint.accept(u32::from(b'\n') + 1).unwrap();
        constraint.accept(u32::from(b'>') + 1).unwrap();
        assert!(constraint.allowed().unwrap().is_some());
    }

    #[test]
    fn nothing_to_quote_is_no_dead_end() {
        let copies = copies(&[""], &[]);
        assert_eq!(follow(&copies, "> ").unwrap(), ["END", "\n", " "]);
    }
}
