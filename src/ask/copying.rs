//! Quotes are copied, not remembered: in a line of a reply that begins with `>` only those tokens may follow that the
//! files go on with at some place. What is quoted so far narrows the places; the line may end where a line of theirs or a
//! part of a sentence does.
//!
//! Runs of space count as one, as a quote may be wrapped otherwise than its file. A quote that begins within the very
//! token that has the `>` is left free, and [`super::quotes`] looks it up like any other.

use crate::generation::grammar;
use crate::generation::sample::Constraint;
use crate::io::document::Document;
use models::tokenizer::Vocabulary;
use std::sync::{Arc, OnceLock};
use toktrie::{Recognizer, SimpleVob, TokTrie};

/// A quote of so many bytes ends where it may: a model that has lost its way would copy on and on.
const ENOUGH: usize = 400;

/// Files to quote from, and the vocabulary to quote with.
pub struct Copies {
    text: Vec<u8>,
    /// Whether a word may begin at a byte.
    begins: Vec<bool>,
    /// Whether a quote may end before a byte.
    ends: Vec<bool>,
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
    /// In a quote of so many bytes that goes on at one of these places.
    Quote { places: Vec<u32>, bytes: usize, marked: bool },
    /// After the model's own second quotation mark.
    Closed,
    /// In a quote that is free.
    Free,
}

impl Copies {
    /// Of these files, for a model with so many logits.
    pub fn new(documents: &[Document], vocabulary: &Arc<Vocabulary>, vocab: usize) -> Self {
        let (mut text, mut line_ends) = (String::new(), Vec::new());
        for document in documents {
            for line in document.text.lines().filter(|line| !line.trim().is_empty()) {
                for word in line.split_whitespace() {
                    text.push_str(word);
                    text.push(' ');
                }
                line_ends.push(text.len() - 1);
            }
            text.pop();
            text.push('\n'); // no quote goes on over it
        }
        let [mut begins, mut ends] = [(); 2].map(|()| vec![false; text.len() + 1]);
        let (mut before, mut all) = (' ', text.char_indices().peekable());
        while let Some((at, c)) = all.next() {
            let after = all.peek().map_or(' ', |(_, after)| *after);
            begins[at] = !(joins(before) && joins(c));
            ends[at] = closes(before) && c == ' ' || !before.is_whitespace() && closes(c) && !joins(after);
            before = c;
        }
        line_ends.into_iter().for_each(|at| ends[at] = true);
        let (text, vocabulary) = (text.into_bytes(), vocabulary.clone());
        Copies { text, begins, ends, vocabulary, vocab, prepared: OnceLock::new() }
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
        for ((byte, next), begins) in self.text.iter().zip(1..=u32::MAX).zip(&self.begins) {
            let again = *byte == before && !byte.is_ascii_alphanumeric() && byte.is_ascii();
            if *begins && !again && !matches!(byte, b' ' | b'\n') {
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
                quote(self.prepared()?.openings[usize::from(byte)].clone(), 1, *marked)?
            }
            (At::Quote { places, bytes, marked }, byte) => {
                let goes_on = |at: &&u32| {
                    let at = **at as usize;
                    self.text.get(at) == Some(&byte) && (*bytes < ENOUGH || !self.ends[at])
                };
                let on = quote(places.iter().filter(goes_on).map(|at| at + 1).collect(), bytes + 1, *marked);
                let closes = *marked && byte == b'"' && self.may_end(places);
                on.or(closes.then_some(At::Closed))?
            }
            (At::Closed, b' ') => At::Closed,
            (At::Closed, _) => return None,
            (At::Free, _) => At::Free,
        })
    }

    fn may_end(&self, places: &[u32]) -> bool {
        places.iter().any(|at| self.ends[*at as usize])
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

/// Whether a part of a sentence ends at such a mark, unless a word goes on at once.
fn closes(c: char) -> bool {
    matches!(
        c,
        '.' | ','
            | ';'
            | ':'
            | '!'
            | '?'
            | ')'
            | ']'
            | '}'
            | '('
            | '|'
            | '"'
            | '”'
            | '»'
            | '…'
            | '–'
            | '—'
            | '\n'
    ) || matches!(c, '。' | '，' | '、' | '；' | '：' | '！' | '？' | '」' | '』' | '）')
}

fn quote(places: Vec<u32>, bytes: usize, marked: bool) -> Option<At> {
    if places.is_empty() { None } else { Some(At::Quote { places, bytes, marked }) }
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
        check("> Mara Velt lives ", &["i"]);
        check("> Mara Velt", &[" "]);
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
        for within in ["> Gr", "> Grü", "> При", "> 東京"] {
            let tokens = follow(&copies, within).unwrap();
            assert!(!tokens.iter().any(|token| token == "END"), "{within:?}: {tokens:?}");
        }
        for end in ["> Grüße", "> Привет", "> 東京は大きい", "> 大きい。", "> \"x\" ==== =="]
        {
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
    fn a_long_quote_ends_where_it_may() {
        let copies = copies(&[&"one, two\n".repeat(90)], &[]);
        let after = |n: usize| follow(&copies, &format!("> {}", &"one, two ".repeat(60)[..n])).unwrap();
        assert_eq!(after(3), ["\n", ",", "END"]);
        assert_eq!(after(9 * 44 + 3), ["\n", ",", "END"]);
        assert_eq!(after(9 * 44 + 4), ["\n", "END"]);
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
