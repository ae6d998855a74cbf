//! What a text contains, indexed for claims: words, numbers with their units, and dates. Names of several words and
//! identifiers are searched in the text itself.

use super::Needs;
use super::numbers::{self, DateKey, NumberToken};
use super::words::is_common;
use crate::document_qa::is_spaceless;
use regex::Regex;
use std::collections::{HashMap, HashSet};

/// Between the words of a name: white space, also with the marks of a comment, a hyphen, and the point of an abbreviation.
const BETWEEN: &str = r"(?:['’]s)?\.?[\s\-‐‑*_#/>&]+";
/// Middle names and initials, which an answer may leave out.
const MIDDLE: &str = r"(?:\p{Lu}[\p{L}'’-]*\.?\s+){0,2}";

/// The indexed contents of one or more texts.
pub struct Evidence {
    text: String,
    /// All words, in lower case.
    words: HashSet<String>,
    /// Units by number; an empty unit where a number has none.
    numbers: HashMap<String, Vec<&'static str>>,
    dates: HashSet<DateKey>,
}

impl Evidence {
    pub fn new<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        // Files are apart, so that no name crosses from one to the next.
        let text = texts.into_iter().collect::<Vec<_>>().join("\n;\n");
        let words = split_words(&text).map(str::to_lowercase).collect();
        let mut numbers: HashMap<String, Vec<&'static str>> = HashMap::new();
        for token in numbers::numbers(&text) {
            for value in token.values {
                let units = numbers.entry(value).or_default();
                if !units.contains(&token.unit) {
                    units.push(token.unit);
                }
            }
        }
        let dates = numbers::dates(&text).into_iter().flat_map(|date| date.readings);
        let dates = dates.flat_map(DateKey::contained).collect();
        Evidence { text, words, numbers, dates }
    }

    /// Whether one of the texts supports a claim.
    pub fn supports(texts: &[&Evidence], needs: &Needs) -> bool {
        let either = |has: &dyn Fn(&Evidence) -> bool| texts.iter().any(|text| has(text));
        match needs {
            Needs::Number(token) => {
                let unit = token.unit;
                either(&|evidence| evidence.has_number(token, unit))
                    || either(&|evidence| evidence.has_number(token, ""))
                        && either(&|evidence| evidence.has_unit(unit))
            }
            Needs::Date(readings) => {
                either(&|evidence| readings.iter().any(|date| evidence.dates.contains(date)))
            }
            Needs::Literal(text) => either(&|evidence| evidence.has_literal(text)),
            Needs::Passage(text) => either(&|evidence| evidence.has_passage(text)),
            Needs::Parts { text, parts } => {
                either(&|evidence| evidence.has_literal(text))
                    || parts.iter().all(|part| {
                        is_common(part)
                            || either(&|evidence| evidence.has_word(part, true) || evidence.has_literal(part))
                    })
            }
            Needs::Digits(text) => {
                let ends: Vec<NumberToken> = text.split('-').flat_map(numbers::numbers).collect();
                let is_range = ends.len() == 2 && text.split('-').all(|end| !end.starts_with('0'));
                either(&|evidence| evidence.has_literal(text))
                    || is_range && ends.iter().all(|end| either(&|evidence| evidence.has_number(end, "")))
            }
            Needs::Name { words, opens_sentence } => supports_name(texts, words, *opens_sentence),
        }
    }

    /// Whether a number occurs with a unit; for none, whether it occurs with or without one.
    fn has_number(&self, token: &NumberToken, unit: &'static str) -> bool {
        // Of a positive number the files may have the negative one only: a dash can be both.
        let forms = token.values.iter().flat_map(|value| [value.clone(), format!("-{value}")]);
        let mut units = forms.filter_map(|value| self.numbers.get(&value));
        match (unit, token.unit) {
            ("", "") => units.next().is_some(),
            (unit, _) => units.any(|units| units.contains(&unit)),
        }
    }

    /// Whether a unit occurs in any spelling, as in the head of a column.
    fn has_unit(&self, unit: &str) -> bool {
        let has = |spelling: &str| {
            self.words.contains(&spelling.to_lowercase())
                || !is_word(spelling) && self.text.contains(spelling)
        };
        numbers::spellings(unit).any(has)
    }

    /// Whether a word occurs, also in the plural or singular; `inflected`, with other endings too.
    fn has_word(&self, word: &str, inflected: bool) -> bool {
        let lower = word.to_lowercase().replace('’', "'");
        let bare = lower.strip_suffix("'s").unwrap_or(&lower).trim_end_matches('\'');
        if bare.contains(|c: char| !c.is_alphanumeric()) {
            return self.has_literal(bare);
        }
        let has = |word: &str| self.words.contains(word);
        let with = |stem: &str, ends: &[&str]| ends.iter().any(|end| has(&format!("{stem}{end}")));
        if has(bare)
            || with(bare, &["s", "es"])
            || ["s", "es"].iter().any(|end| bare.strip_suffix(end).is_some_and(has))
        {
            return true;
        }
        let ends = ["ing", "ed", "er", "ers", "ly", "es", "s", "ies", "ion", "ions", "d", "al"];
        let stems = ends.iter().filter_map(|end| bare.strip_suffix(end)).filter(|stem| stem.len() > 2);
        inflected
            && (with(bare, &["ing", "ed", "d", "er", "ly"])
                || stems.clone().any(|stem| with(stem, &["", "e", "y", "ed", "es", "s", "ing", "er", "ers"])))
    }

    fn has_literal(&self, text: &str) -> bool {
        let parts: Vec<String> = text.split_whitespace().map(escaped).collect();
        let starts = match text.chars().next() {
            Some(c) if c.is_ascii_digit() => r"(?:^|[^\p{L}\p{N}_.]|[^\p{N}]\.|\bv)",
            // Underscores at the edge of a word are emphasis; inside they join it to a longer identifier.
            Some(c) if c.is_alphanumeric() => r"(?:^|[^\p{L}\p{N}_])_*",
            _ => "",
        };
        let ends = match text.chars().next_back() {
            Some(c) if c.is_ascii_digit() => r"(?:$|[^\p{L}\p{N}_.,]|[.,](?:$|[^0-9]))",
            Some(c) if c.is_alphanumeric() => r"_*(?:$|[^\p{L}\p{N}_])",
            _ => "",
        };
        self.matches(&format!("{starts}(?i:{}){ends}", parts.join(r"\s+")))
    }

    fn has_passage(&self, text: &str) -> bool {
        if text.contains(is_spaceless) {
            let letters = text.chars().filter(|c| !c.is_whitespace());
            return self.matches(&letters.map(|c| escaped(&c.to_string())).collect::<Vec<_>>().join(r"\s*"));
        }
        // A quotation may leave out the punctuation at its end, and begin with a capital.
        self.has_literal(text.trim_matches(|c: char| ".,;:!?…".contains(c) || c.is_whitespace()))
    }

    fn has_phrase(&self, words: &[String]) -> bool {
        let words: Vec<String> = words.iter().map(|word| format!("(?i:{})", escaped(word))).collect();
        let phrase = words.join(&format!("{BETWEEN}{MIDDLE}"));
        self.matches(&format!(r"(?:^|[^\p{{L}}\p{{N}}]){phrase}(?:['’]?s)?(?:$|[^\p{{L}}\p{{N}}])"))
    }

    /// Whether a pattern occurs; one that is too large, as of a long quotation, does not.
    fn matches(&self, pattern: &str) -> bool {
        Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(&self.text))
    }
}

/// Whether the texts have a name. Titles and, at the start of a sentence, common words may precede it.
fn supports_name(texts: &[&Evidence], words: &[String], opens_sentence: bool) -> bool {
    const TITLES: &[&str] = &["mr", "mrs", "ms", "dr", "prof", "professor", "sir"];
    let [first, rest @ ..] = words else { return true };
    let lower = first.to_lowercase();
    if rest.is_empty() {
        let small =
            ["i", "a", "an", "the", "ok", "yes", "no", "i'm", "i'll", "i've"].contains(&lower.as_str());
        return small
            || texts.iter().any(|evidence| evidence.has_word(first, opens_sentence))
            || opens_sentence && is_common(first);
    }
    texts.iter().any(|evidence| evidence.has_phrase(words))
        || TITLES.contains(&lower.as_str()) && supports_name(texts, rest, false)
        || lower == "the" && supports_name(texts, rest, false)
        || opens_sentence && is_common(first) && supports_name(texts, rest, false)
}

fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() && !is_spaceless(c))
}

/// The words of a text: letters and digits between other characters.
fn split_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() || is_spaceless(c)).filter(|word| !word.is_empty())
}

/// A pattern for a text, in which quotation marks and dashes of any form match each other.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\'' | '’' | '‘' => "['’‘]".to_owned(),
            '-' | '‐' | '‑' | '–' | '—' => "[-‐‑–—]".to_owned(),
            c => regex::escape(&c.to_string()),
        })
        .collect()
}
