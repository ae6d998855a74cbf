//! Constrained decoding of quotes: in a line of a reply that begins with `>`, only tokens that continue the quote somewhere
//! in the files are allowed. Each token narrows the matching positions. A quote can end where a line or a part of a
//! sentence ends in the files.
//!
//! Runs of white space match each other, as a quote may be wrapped differently from its file. A quote that begins within
//! the token that contains the `>` is not constrained; [`super::quotes`] locates it like any other.

use super::is_spaceless;
use crate::documents::Document;
use crate::generation::grammar;
use crate::generation::sample::Constraint;
use models::tokenizer::Vocabulary;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use toktrie::{Recognizer, SimpleVob, TokTrie};

/// Bytes after which a quote ends at the next possible end, so that a degenerating model does not copy on without end.
const SOFT_MAX_BYTES: usize = 400;

/// Positions of a quote of which a continuation is looked for, and bytes of that.
const MOST_POSITIONS: usize = 32;
const MOST_BYTES: usize = 160;

/// The text of the files with the possible starts and ends of quotes, and the vocabulary.
pub struct QuoteIndex {
    text: Vec<u8>,
    /// Per byte, whether a word can start there.
    word_starts: Vec<bool>,
    /// Per byte, whether a quote can end before it.
    quote_ends: Vec<bool>,
    vocabulary: Arc<Vocabulary>,
    /// The number of logits, which can exceed the vocabulary.
    vocab: usize,
    /// Built at the first quote; None for a vocabulary without an end token.
    lookup: OnceLock<Option<Lookup>>,
}

/// What the masks are computed from.
struct Lookup {
    trie: TokTrie,
    /// By the first byte of a quote, the positions after it.
    openings: Vec<Vec<u32>>,
}

/// The state of a reply with respect to quotes.
#[derive(Clone)]
enum QuoteState {
    /// In a line that is no quote, or whose leading spaces do not decide it yet.
    Line { has_text: bool },
    /// After `>` and spaces, and perhaps an opening quotation mark that the model added.
    Open { in_marks: bool },
    /// In a quote of `bytes` bytes that continues at one of these positions.
    Quote { positions: Vec<u32>, bytes: usize, in_marks: bool },
    /// After the closing quotation mark that the model added.
    Closed,
    /// In a quote without constraint, until the end of its line.
    Unconstrained,
}

impl QuoteIndex {
    /// Indexes files for a model with `vocab` logits.
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
            text.push('\n'); // separates files: no quote crosses it
        }
        let [mut word_starts, mut quote_ends] = [(); 2].map(|()| vec![false; text.len() + 1]);
        let (mut before, mut all) = (' ', text.char_indices().peekable());
        while let Some((at, c)) = all.next() {
            let after = all.peek().map_or(' ', |(_, after)| *after);
            word_starts[at] = !(joins(before) && joins(c));
            quote_ends[at] =
                closes(before) && c == ' ' || !before.is_whitespace() && closes(c) && !joins(after);
            before = c;
        }
        line_ends.into_iter().for_each(|at| quote_ends[at] = true);
        let (text, vocabulary) = (text.into_bytes(), vocabulary.clone());
        QuoteIndex { text, word_starts, quote_ends, vocabulary, vocab, lookup: OnceLock::new() }
    }

    /// Prepares the masks, which takes a tenth of a second with a large vocabulary and otherwise happens at the first quote.
    pub fn prepare(&self) {
        self.lookup();
    }

    /// Creates the constraint of one reply.
    pub fn constraint(self: &Arc<Self>) -> Box<dyn Constraint> {
        Box::new(QuoteConstraint {
            index: self.clone(),
            state: QuoteState::Line { has_text: false },
            mask: SimpleVob::new(),
        })
    }

    fn lookup(&self) -> Option<&Lookup> {
        let prepare = || {
            let trie = grammar::trie(&self.vocabulary, self.vocab).ok()?;
            Some(Lookup { trie, openings: self.openings() })
        };
        self.lookup.get_or_init(prepare).as_ref()
    }

    /// The positions where a quote can start: at the start of a word, and at the first of several equal punctuation marks.
    /// Positions have 32 bits, so that text beyond 4 GiB cannot be quoted.
    fn openings(&self) -> Vec<Vec<u32>> {
        let mut openings = vec![Vec::new(); 256];
        let mut before = b' ';
        for ((byte, next), word_starts) in self.text.iter().zip(1..=u32::MAX).zip(&self.word_starts) {
            let again = *byte == before && !byte.is_ascii_alphanumeric() && byte.is_ascii();
            if *word_starts && !again && !matches!(byte, b' ' | b'\n') {
                openings[usize::from(*byte)].push(next);
            }
            before = *byte;
        }
        openings
    }

    /// The state after one more byte; None if the files do not continue with it.
    fn step(&self, state: &QuoteState, byte: u8) -> Option<QuoteState> {
        Some(match (state, byte) {
            (QuoteState::Quote { positions, .. }, b'\n') if !self.can_end(positions) => return None,
            (_, b'\n') => QuoteState::Line { has_text: false },
            (QuoteState::Line { has_text: false }, b' ' | b'\t') => QuoteState::Line { has_text: false },
            (QuoteState::Line { has_text: false }, b'>') => QuoteState::Open { in_marks: false },
            (QuoteState::Line { .. }, _) => QuoteState::Line { has_text: true },
            (QuoteState::Open { in_marks: false }, b' ') => QuoteState::Open { in_marks: false },
            (QuoteState::Open { in_marks: false }, b'"') => QuoteState::Open { in_marks: true },
            (QuoteState::Open { in_marks }, byte) => {
                quote(self.lookup()?.openings[usize::from(byte)].clone(), 1, *in_marks)?
            }
            (QuoteState::Quote { positions, bytes, in_marks }, byte) => {
                let continues = |at: &&u32| {
                    let at = **at as usize;
                    self.text.get(at) == Some(&byte) && (*bytes < SOFT_MAX_BYTES || !self.quote_ends[at])
                };
                let on = quote(
                    positions.iter().filter(continues).map(|at| at + 1).collect(),
                    bytes + 1,
                    *in_marks,
                );
                let closes = *in_marks && byte == b'"' && self.can_end(positions);
                on.or(closes.then_some(QuoteState::Closed))?
            }
            (QuoteState::Closed, b' ') => QuoteState::Closed,
            (QuoteState::Closed, _) => return None,
            (QuoteState::Unconstrained, _) => QuoteState::Unconstrained,
        })
    }

    fn can_end(&self, positions: &[u32]) -> bool {
        positions.iter().any(|at| self.quote_ends[*at as usize])
    }

    /// The words that follow all of these positions, to the end of their sentence; none if there are many positions.
    fn continuation(&self, positions: &[u32]) -> &[u8] {
        let [first, others @ ..] = positions else { return &[] };
        if others.len() >= MOST_POSITIONS {
            return &[];
        }
        let first = *first as usize;
        let rest = &self.text[first..self.text.len().min(first + MOST_BYTES)];
        let common = others.iter().fold(rest.len(), |common, at| {
            rest[..common].iter().zip(&self.text[*at as usize..]).take_while(|(a, b)| a == b).count()
        });
        let ends = |at: &usize| {
            let before = *at > 0 && matches!(rest[at - 1], b'.' | b'!' | b'?') && rest[*at] == b' ';
            rest[*at] == b'\n' || before
        };
        let last_word = || rest[..common].iter().rposition(|byte| *byte == b' ').unwrap_or(0);
        &rest[..(0..common).find(ends).unwrap_or_else(last_word)]
    }

    /// The mask of the tokens that are allowed next.
    fn mask(&self, trie: &TokTrie, state: &QuoteState) -> SimpleVob {
        let mut mask = trie.alloc_token_set();
        trie.add_bias(&mut TrieWalk { index: self, stack: vec![state.clone()] }, &mut mask, &[]);
        if self.step(state, b'\n').is_some() {
            trie.eos_tokens().iter().for_each(|end| mask.allow_token(*end));
        }
        mask
    }
}

/// Whether a character forms words with its neighbors: letters and digits, except in scripts without spaces.
fn joins(c: char) -> bool {
    c.is_alphanumeric() && !is_spaceless(c)
}

/// Whether a part of a sentence ends at a character, unless a word follows immediately.
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

fn quote(positions: Vec<u32>, bytes: usize, in_marks: bool) -> Option<QuoteState> {
    if positions.is_empty() { None } else { Some(QuoteState::Quote { positions, bytes, in_marks }) }
}

/// A walk over the token trie from one state.
struct TrieWalk<'c> {
    index: &'c QuoteIndex,
    stack: Vec<QuoteState>,
}

impl Recognizer for TrieWalk<'_> {
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
        let next = self.stack.last().and_then(|state| self.index.step(state, byte));
        let allowed = next.is_some();
        self.stack.extend(next);
        allowed
    }
}

/// The constraint of one reply.
struct QuoteConstraint {
    index: Arc<QuoteIndex>,
    state: QuoteState,
    mask: SimpleVob,
}

impl Constraint for QuoteConstraint {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        if matches!(self.state, QuoteState::Line { .. } | QuoteState::Unconstrained) {
            return Ok(None);
        }
        self.mask = match self.index.lookup() {
            Some(lookup) => self.index.mask(&lookup.trie, &self.state),
            None => SimpleVob::new(),
        };
        if self.mask.is_zero() {
            self.state = QuoteState::Unconstrained; // the vocabulary cannot encode the files
            return Ok(None);
        }
        Ok(Some(self.mask.as_slice()))
    }

    fn likely(&mut self, _limit: Duration) -> Vec<u8> {
        match &self.state {
            QuoteState::Quote { positions, .. } => self.index.continuation(positions).to_vec(),
            _ => Vec::new(),
        }
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if !self.index.vocabulary.is_special(token) {
            for byte in self.index.vocabulary.token_bytes(token) {
                self.state = self.index.step(&self.state, *byte).unwrap_or(QuoteState::Unconstrained);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(dead_code, reason = "other tests use the published vocabulary")]
#[path = "../../models/tests/support/kimi_vocabulary.rs"]
mod kimi_vocabulary;

#[cfg(test)]
mod tests {
    use super::kimi_vocabulary::base64;
    use super::*;
    use std::fmt::Write as _;

    /// A vocabulary of all bytes, then some longer tokens.
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

    fn index(texts: &[&str], longer: &[&str]) -> Arc<QuoteIndex> {
        let document = |(i, text): (usize, &&str)| Document::plain(&i.to_string(), text);
        let documents: Vec<Document> = texts.iter().enumerate().map(document).collect();
        let vocabulary = vocabulary(longer);
        Arc::new(QuoteIndex::new(&documents, &vocabulary, vocabulary.len()))
    }

    /// The text of the tokens that are allowed after a reply, the end last; None if all are.
    fn allowed_after(index: &Arc<QuoteIndex>, reply: &str) -> Option<Vec<String>> {
        let mut constraint = index.constraint();
        for byte in reply.bytes() {
            constraint.allowed().unwrap();
            constraint.accept(u32::from(byte)).unwrap();
        }
        let mask = constraint.allowed().unwrap()?;
        let vocabulary = &index.vocabulary;
        let set = (0..vocabulary.len() as u32).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1);
        let mut texts: Vec<String> = set
            .map(|id| match vocabulary.is_end(id) {
                true => "END".to_owned(),
                false => String::from_utf8_lossy(vocabulary.token_bytes(id)).into_owned(),
            })
            .collect();
        texts.dedup();
        Some(texts)
    }

    const TEXT: &str = "Mara Velt lives\n   in Dunmore. Mark\tVelten too: \u{1F600}!";

    #[test]
    fn only_quotes_are_constrained() {
        let index = index(&[TEXT], &[]);
        for free in ["", "In Dunmore.", "a > b", "In Paris.\n", "x\n ", "> Mara\n", "> Mara\nSo"] {
            assert_eq!(allowed_after(&index, free), None, "{free:?}");
        }
    }

    #[test]
    fn a_quote_continues_as_a_file_does() {
        let index =
            index(&[TEXT, "Mara, again"], &["Mara Velt", "ra Vel", "Mart", "\nThe", "\n> Mara", "\n> Paris"]);
        let check = |reply: &str, expected: &[&str]| {
            let expected = expected.iter().map(|token| (*token).to_owned()).collect();
            assert_eq!(allowed_after(&index, reply), Some(expected), "{reply:?}");
        };
        check("> Ma", &["r", "ra Vel"]);
        check("> Mar", &["a", "k"]);
        let over = ["\nThe", "\n> Mara", "END"];
        check("> Mara", &[&["\n", " ", ","][..], &over].concat());
        check("x\n> Mara Velt lives", &[&["\n", " "][..], &over].concat());
        check("> Mara Velt lives ", &["i"]);
        check("> Mara Velt", &[" "]);
        check("> Mara Velt lives in Dunmore.", &[&["\n", " "][..], &over].concat());
        check("> again", &[&["\n"][..], &over].concat()); // does not continue in another file
        check("> Vel", &["t"]);
        check("> too: \u{1F600}", &[&["\n", "!"][..], &over].concat());
        check("> \"Mara", &[&["\n", " ", "\"", ","][..], &over].concat());
        check("> \"Mara\"", &[&["\n", " "][..], &over].concat());
    }

    #[test]
    fn words_of_other_scripts_are_not_cut() {
        let index = index(&["Grüße, Привет! 東京は大きい。", "\"x\" ==== =="], &[]);
        for within in ["> Gr", "> Grü", "> При", "> 東京"] {
            let tokens = allowed_after(&index, within).unwrap();
            assert!(!tokens.iter().any(|token| token == "END"), "{within:?}: {tokens:?}");
        }
        for end in ["> Grüße", "> Привет", "> 東京は大きい", "> 大きい。", "> \"x\" ==== =="]
        {
            let tokens = allowed_after(&index, end).unwrap();
            assert!(tokens.iter().any(|token| token == "END"), "{end:?}: {tokens:?}");
        }
        let lookup = index.lookup().unwrap();
        assert_eq!(lookup.openings[usize::from(b'=')].len(), 2, "a run of equal marks has one start");
        assert_eq!(
            [0xD0, 0xD1].map(|lead| lookup.openings[lead].len()),
            [1, 0],
            "a quote starts at the start of a word"
        );
    }

    #[test]
    fn a_long_quote_ends_at_the_next_possible_end() {
        let index = index(&[&"one, two\n".repeat(90)], &[]);
        let after = |n: usize| allowed_after(&index, &format!("> {}", &"one, two ".repeat(60)[..n])).unwrap();
        assert_eq!(after(3), ["\n", ",", "END"]);
        assert_eq!(after(9 * 44 + 3), ["\n", ",", "END"]);
        assert_eq!(after(9 * 44 + 4), ["\n", "END"]);
    }

    #[test]
    fn the_files_continue_a_quote() {
        let index = index(&[TEXT, "Mara Velt reads. So"], &[]);
        let after = |reply: &str| {
            let mut constraint = index.constraint();
            reply.bytes().for_each(|byte| constraint.accept(u32::from(byte)).unwrap());
            String::from_utf8(constraint.likely(Duration::ZERO)).unwrap()
        };
        assert_eq!(after("> Mara Velt l"), "ives in Dunmore.");
        assert_eq!(after("> Mara"), " Velt", "both files continue so far");
        assert_eq!(after("> Mara Velt r"), "eads.");
        assert_eq!(after("> So"), "");
        assert_eq!([after("> "), after("Mara Velt l"), after("> Mara Velt lives in D\n")], ["", "", ""]);
    }

    #[test]
    fn a_quote_starts_at_a_word() {
        let index = index(&[TEXT], &["Mara Velt", "ara", "ark", "> Mara", "lt"]);
        let opening = allowed_after(&index, "> ").unwrap();
        for yes in ["M", "V", "l", "i", "D", ".", "t", "Mara Velt", " ", "\"", "END"] {
            assert!(opening.iter().any(|token| token == yes), "{yes:?} in {opening:?}");
        }
        for no in ["a", "ara", "ark", "x", "lt", "> Mara"] {
            assert!(!opening.iter().any(|token| token == no), "{no:?} in {opening:?}");
        }
    }

    #[test]
    fn a_quote_that_starts_inside_the_mark_token_is_unconstrained() {
        let index = index(&[TEXT], &[">In"]);
        let token = 256;
        let mut constraint = index.constraint();
        constraint.accept(token).unwrap();
        assert!(constraint.allowed().unwrap().is_none());
        constraint.accept(u32::from(b'\n')).unwrap();
        constraint.accept(u32::from(b'>')).unwrap();
        assert!(constraint.allowed().unwrap().is_some());
    }

    #[test]
    fn an_empty_file_is_no_dead_end() {
        let index = index(&[""], &[]);
        assert_eq!(allowed_after(&index, "> ").unwrap(), ["\n", " ", "\"", "END"]);
    }
}
