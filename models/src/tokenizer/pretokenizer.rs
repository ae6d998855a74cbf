//! Splits text into pieces before merging, by the vocabulary's pattern.
//!
//! The patterns are those of the text formats that [`crate::architecture`] lists. Patterns end in
//! `\s+(?!\S)|\s+`, whose look-ahead the regex engine lacks. Both alternatives are therefore compiled as `\s+`, and a match
//! gives back its last white-space character if text follows. The engine also lacks possessive quantifiers (`?+`, `++`);
//! they are compiled as greedy ones, which is equal where what follows matches no character of the repeated class.

use crate::architecture::TEXT_SPECS;
use crate::text_spec::TextSpec;
use regex_automata::meta::{Config, Regex};
use regex_automata::{Anchored, Input};
use std::sync::{LazyLock, OnceLock};

/// The pattern of a text format.
#[derive(Debug)]
pub(super) struct Pattern {
    pub(super) format: &'static TextSpec,
    /// Compiled on first use, in 8 ms.
    regex: OnceLock<Regex>,
}

/// The patterns of all text formats.
pub(super) static PATTERNS: LazyLock<Vec<Pattern>> =
    LazyLock::new(|| TEXT_SPECS.iter().map(|format| Pattern { format, regex: OnceLock::new() }).collect());

impl Pattern {
    /// Finds a pattern by name.
    pub(super) fn named(name: &str) -> Option<&'static Pattern> {
        PATTERNS.iter().find(|pattern| pattern.format.pre == name)
    }

    /// Finds a pattern by the regular expression in a `tokenizer.json`.
    pub(super) fn of_source(source: &str) -> Option<&'static Pattern> {
        PATTERNS.iter().find(|pattern| pattern.source() == source)
    }

    /// The complete regular expression, as published.
    pub(super) fn source(&self) -> String {
        self.format.pieces.join("|") + r"|\s+(?!\S)|\s+"
    }

    /// The names of all patterns, for messages.
    pub(super) fn known() -> String {
        PATTERNS.iter().map(|pattern| pattern.format.pre).collect::<Vec<_>>().join(", ")
    }
}

/// A pattern with its compiled regular expression.
#[derive(Clone, Debug)]
pub(super) struct Pretokenizer {
    pub(super) pattern: &'static Pattern,
    regex: Regex,
}

/// The index of `\s+` among the two compiled patterns.
const SPACES: usize = 1;

fn compile(alternatives: &[&str]) -> Regex {
    // The lazy DFA of these Unicode classes exceeds the default 2 MiB and would be rebuilt repeatedly.
    let config = Config::new().hybrid_cache_capacity(256 << 20).nfa_size_limit(None).onepass(false);
    let greedy = alternatives.join("|").replace("?+", "?").replace("++", "+");
    let regex = Regex::builder().configure(config).build_many(&[&greedy, r"\s+"]);
    regex.expect("the patterns of the table compile: a test builds each")
}

impl Pretokenizer {
    pub(super) fn new(pattern: &'static Pattern) -> Self {
        Self { pattern, regex: pattern.regex.get_or_init(|| compile(pattern.format.pieces)).clone() }
    }

    /// Iterates over the pieces, whose concatenation is the text.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut at = 0;
        std::iter::from_fn(move || {
            (at < text.len()).then(|| {
                let start = at;
                at = self.end_of_piece(text, start);
                &text[start..at]
            })
        })
    }

    fn end_of_piece(&self, text: &str, start: usize) -> usize {
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        let Some(found) = self.regex.search_half(&input) else {
            return start + text[start..].chars().next().map_or(0, char::len_utf8);
        };
        let end = found.offset();
        let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
        let give_back = found.pattern().as_usize() == SPACES && end < text.len() && end - last > start;
        if give_back { end - last } else { end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let pretokenizer = Pretokenizer::new(Pattern::named("kimi-k2").unwrap());
        assert_eq!(pretokenizer.pieces(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_pattern_of_the_table_compiles_and_is_found() {
        for pattern in PATTERNS.iter() {
            assert_eq!(Pretokenizer::new(pattern).pieces("a").count(), 1);
            assert_eq!(Pattern::of_source(&pattern.source()).unwrap().format.pre, pattern.format.pre);
        }
        assert!(Pattern::named("gpt-9").is_none());
    }

    #[test]
    fn spaces_are_given_back_only_before_text() {
        check("a   b", &["a", "  ", " b"]);
        check("a   ", &["a", "   "]);
        check(" \u{3000}x", &[" ", "\u{3000}x"]);
        check("x \n\n  y", &["x", " \n\n", " ", " y"]);
        check("  12345", &[" ", " ", "123", "45"]);
    }

    #[test]
    fn words_scripts_and_contractions() {
        check("I'm IT'S x'ſ", &["I'm", " IT'S", " x'ſ"]);
        check("汉字abc \u{2f9f}!", &["汉字", "abc", " \u{2f9f}!"]);
        check("camelCase中e\u{301}", &["camel", "Case", "中", "e\u{301}"]);
        check("", &[]);
    }
}
