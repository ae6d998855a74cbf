//! Quotes are copied, not remembered: in a line of a reply that begins with `>` only those tokens may follow that the
//! files go on with at some place. What is quoted so far narrows the places; the line may end where a word does.
//!
//! Runs of space count as one, as a quote may be wrapped otherwise than its file. A quote that begins within the very
//! token that has the `>` is left free, and [`super::quotes`] looks it up like any other.

use super::document::Document;
use crate::grammar;
use crate::sample::Constraint;
use models::tokenizer::Vocabulary;
use std::sync::{Arc, OnceLock};
use toktrie::{Recognizer, SimpleVob, TokTrie};

/// Files to quote from, and the vocabulary to quote with.
pub struct Copies {
    text: Vec<u8>,
    /// Whether a word ends and another thing begins before a byte.
    borders: Vec<bool>,
    vocabulary: Arc<Vocabulary>,
    /// Logits of the model.
    vocab: usize,
    /// Made when the first quote opens; none for a vocabulary that ends no reply.
    prepared: OnceLock<Option<Prepared>>,
}

struct Prepared {
    trie: TokTrie,
    /// After each byte that may open a quote, the places where it goes on.
    openings: Vec<Vec<u32>>,
}

/// Where a reply is.
#[derive(Clone)]
enum At {
    /// In a line that is no quote; not yet, as long as it has not begun but with spaces.
    Line { begun: bool },
    /// After `>` and spaces, and perhaps a quotation mark of the model's own.
    Open { marked: bool },
    /// In a quote that goes on at one of these places.
    Quote { places: Vec<u32>, marked: bool },
    /// After the model's own second quotation mark.
    Closed,
    /// In a quote that is free.
    Free,
}

impl Copies {
    /// Of these files, for a model with so many logits.
    pub fn new(documents: &[Document], vocabulary: &Arc<Vocabulary>, vocab: usize) -> Self {
        let mut text = String::new();
        for document in documents {
            for word in document.text.split_whitespace() {
                text.push_str(word);
                text.push(' ');
            }
            text.pop();
            text.push('\n'); // no quote goes on over it
        }
        let mut borders = vec![false; text.len() + 1];
        let mut before = None;
        for (at, after) in text.char_indices() {
            borders[at] = !(before.is_some_and(joins) && joins(after));
            before = Some(after);
        }
        borders[text.len()] = true;
        let (text, vocabulary) = (text.into_bytes(), vocabulary.clone());
        Copies { text, borders, vocabulary, vocab, prepared: OnceLock::new() }
    }

    /// For one reply.
    pub fn constraint(self: &Arc<Self>) -> Box<dyn Constraint> {
        Box::new(Copying { copies: self.clone(), at: At::Line { begun: false }, mask: SimpleVob::new() })
    }

    fn prepared(&self) -> Option<&Prepared> {
        let prepare = || {
            let trie = grammar::trie(&self.vocabulary, self.vocab).ok()?;
            Some(Prepared { trie, openings: self.openings() })
        };
        self.prepared.get_or_init(prepare).as_ref()
    }

    /// Quotes open where a word begins, and at the first of equal marks in a row. (Places are 32 bits wide: what lies beyond
    /// 4 GiB cannot be quoted.)
    fn openings(&self) -> Vec<Vec<u32>> {
        let mut openings = vec![Vec::new(); 256];
        let mut before = b' ';
        for ((byte, next), border) in self.text.iter().zip(1..=u32::MAX).zip(&self.borders) {
            let again = *byte == before && !byte.is_ascii_alphanumeric() && byte.is_ascii();
            if *border && !again && !matches!(byte, b' ' | b'\n') {
                openings[usize::from(*byte)].push(next);
            }
            before = *byte;
        }
        openings
    }

    /// Where a reply is after one byte more; None where the files do not go on so.
    fn step(&self, at: &At, byte: u8) -> Option<At> {
        Some(match (at, byte) {
            (At::Quote { places, .. }, b'\n') if !self.may_end(places) => return None,
            (_, b'\n') => At::Line { begun: false },
            (At::Line { begun: false }, b' ' | b'\t') => At::Line { begun: false },
            (At::Line { begun: false }, b'>') => At::Open { marked: false },
            (At::Line { .. }, _) => At::Line { begun: true },
            (At::Open { marked: false }, b' ') => At::Open { marked: false },
            (At::Open { marked: false }, b'"') => At::Open { marked: true },
            (At::Open { marked }, byte) => {
                quote(self.prepared()?.openings[usize::from(byte)].clone(), *marked)?
            }
            (At::Quote { places, marked }, byte) => {
                let goes_on = |at: &&u32| self.text.get(**at as usize) == Some(&byte);
                let on = quote(places.iter().filter(goes_on).map(|at| at + 1).collect(), *marked);
                let closes = *marked && byte == b'"' && self.may_end(places);
                on.or(closes.then_some(At::Closed))?
            }
            (At::Closed, b' ') => At::Closed,
            (At::Closed, _) => return None,
            (At::Free, _) => At::Free,
        })
    }

    /// Whether a word ends at one of these places.
    fn may_end(&self, places: &[u32]) -> bool {
        places.iter().any(|at| self.borders[*at as usize])
    }

    /// The tokens that may follow.
    fn mask(&self, trie: &TokTrie, at: &At) -> SimpleVob {
        let mut mask = trie.alloc_token_set();
        trie.add_bias(&mut Walk { copies: self, stack: vec![at.clone()] }, &mut mask, &[]);
        if self.step(at, b'\n').is_some() {
            trie.eos_tokens().iter().for_each(|end| mask.allow_token(*end));
        }
        mask
    }
}

/// Whether a letter or digit is part of a word with its neighbours: not in scripts that are written without spaces.
fn joins(c: char) -> bool {
    let spaceless = matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}');
    c.is_alphanumeric() && !spaceless
}

fn quote(places: Vec<u32>, marked: bool) -> Option<At> {
    if places.is_empty() { None } else { Some(At::Quote { places, marked }) }
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
        if matches!(self.at, At::Line { .. } | At::Free) {
            return Ok(None);
        }
        self.mask = match self.copies.prepared() {
            Some(prepared) => self.copies.mask(&prepared.trie, &self.at),
            None => SimpleVob::new(),
        };
        if self.mask.is_zero() {
            self.at = At::Free; // a vocabulary that cannot spell the files
            return Ok(None);
        }
        Ok(Some(self.mask.as_slice()))
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if !self.copies.vocabulary.is_special(token) {
            for byte in self.copies.vocabulary.token_bytes(token) {
                self.at = self.copies.step(&self.at, *byte).unwrap_or(At::Free);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(dead_code, reason = "the real vocabulary is for others")]
#[path = "../../models/tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;

#[cfg(test)]
mod tests {
    use super::kimi_vocabulary::base64;
    use super::*;
    use std::fmt::Write as _;

    /// A vocabulary of the bytes and some longer tokens, in the order of their ids.
    fn vocabulary(longer: &[&str]) -> Arc<Vocabulary> {
        let bytes = (0..=255u8).map(|byte| vec![byte]);
        let words = bytes.chain(longer.iter().map(|word| word.as_bytes().to_vec()));
        let ranks = words.enumerate().fold(String::new(), |mut ranks, (rank, word)| {
            writeln!(ranks, "{} {rank}", String::from_utf8(base64(&word)).unwrap()).unwrap();
            ranks
        });
        let end = serde_json::json!({ "content": "[EOS]", "special": true });
        let config = serde_json::json!({ "added_tokens_decoder": { (256 + longer.len()).to_string(): end }, "eos_token": "[EOS]" });
        Arc::new(Vocabulary::from_tiktoken("test", ranks.as_bytes(), &config.to_string(), None).unwrap())
    }

    fn copies(texts: &[&str], longer: &[&str]) -> Arc<Copies> {
        let document = |(i, text): (usize, &&str)| Document { name: i.to_string(), text: (*text).into() };
        let documents: Vec<Document> = texts.iter().enumerate().map(document).collect();
        let vocabulary = vocabulary(longer);
        Arc::new(Copies::new(&documents, &vocabulary, vocabulary.len()))
    }

    /// The tokens that may follow a reply, spelled, the end last; None where all may.
    fn follow(copies: &Arc<Copies>, reply: &str) -> Option<Vec<String>> {
        let mut constraint = copies.constraint();
        for byte in reply.bytes() {
            constraint.allowed().unwrap();
            constraint.accept(u32::from(byte)).unwrap();
        }
        let mask = constraint.allowed().unwrap()?;
        let vocabulary = &copies.vocabulary;
        let set = (0..vocabulary.len() as u32).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1);
        let mut spelled: Vec<String> = set
            .map(|id| match vocabulary.is_end(id) {
                true => "END".to_owned(),
                false => String::from_utf8_lossy(vocabulary.token_bytes(id)).into_owned(),
            })
            .collect();
        spelled.dedup();
        Some(spelled)
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
            let expected = expected.iter().map(|token| (*token).to_owned()).collect();
            assert_eq!(follow(&copies, reply), Some(expected), "{reply:?}");
        };
        check("> Ma", &["r", "ra Vel"]);
        check("> Mar", &["a", "k"]);
        let over = ["\nThe", "\n> Mara", "END"];
        check("> Mara", &[&["\n", " ", ","][..], &over].concat());
        check("x\n> Mara Velt lives", &[&["\n", " "][..], &over].concat());
        check("> Mara Velt lives ", &[&["\n", "i"][..], &over].concat());
        check("> Mara Velt lives in Dunmore.", &[&["\n", " "][..], &over].concat());
        check("> again", &[&["\n"][..], &over].concat()); // not on into another file
        check("> Vel", &["t"]);
        check("> too: \u{1F600}", &[&["\n", "!"][..], &over].concat());
        check("> \"Mara", &[&["\n", " ", "\"", ","][..], &over].concat());
        check("> \"Mara\"", &[&["\n", " "][..], &over].concat());
    }

    #[test]
    fn words_of_other_scripts_are_whole() {
        let copies = copies(&["Grüße, Привет! 東京は大きい。", "\"x\" ==== =="], &[]);
        for within in ["> Gr", "> Grü", "> При"] {
            let tokens = follow(&copies, within).unwrap();
            assert!(!tokens.iter().any(|token| token == "END"), "{within:?}: {tokens:?}");
        }
        for end in ["> Grüße", "> Привет", "> 東", "> 東京は", "> ===="] {
            let tokens = follow(&copies, end).unwrap();
            assert!(tokens.iter().any(|token| token == "END"), "{end:?}: {tokens:?}");
        }
        let prepared = copies.prepared().unwrap();
        assert_eq!(prepared.openings[usize::from(b'=')].len(), 2, "equal marks in a row open once");
        assert_eq!(
            [0xD0, 0xD1].map(|lead| prepared.openings[lead].len()),
            [1, 0],
            "a word opens at its beginning"
        );
    }

    #[test]
    fn a_quote_opens_where_a_word_begins() {
        let copies = copies(&[TEXT], &["Mara Velt", "ara", "ark", "> Mara", "lt"]);
        let opening = follow(&copies, "> ").unwrap();
        for yes in ["M", "V", "l", "i", "D", ".", "t", "Mara Velt", " ", "\"", "END"] {
            assert!(opening.iter().any(|token| token == yes), "{yes:?} in {opening:?}");
        }
        for no in ["a", "ara", "ark", "x", "lt", "> Mara"] {
            assert!(!opening.iter().any(|token| token == no), "{no:?} in {opening:?}");
        }
    }

    #[test]
    fn a_token_with_more_than_its_mark_leaves_a_quote_free() {
        let copies = copies(&[TEXT], &[">In"]);
        let token = 256;
        let mut constraint = copies.constraint();
        constraint.accept(token).unwrap();
        assert!(constraint.allowed().unwrap().is_none());
        constraint.accept(u32::from(b'\n')).unwrap();
        constraint.accept(u32::from(b'>')).unwrap();
        assert!(constraint.allowed().unwrap().is_some());
    }

    #[test]
    fn nothing_to_quote_is_no_dead_end() {
        let copies = copies(&[""], &[]);
        assert_eq!(follow(&copies, "> ").unwrap(), ["\n", " ", "\"", "END"]);
    }
}
