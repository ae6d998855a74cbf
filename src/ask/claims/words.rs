//! Splits a line of an answer into names, identifiers and quotations. It does not know the files.

use super::{Claim, ClaimKind, Needs};
use crate::document_qa::is_spaceless;
use regex::Regex;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::LazyLock;

/// Common words, which have a capital at the start of a sentence without being names.
static COMMON: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("../common_words.txt").split_whitespace().collect());

static CODE: LazyLock<Regex> = LazyLock::new(|| pattern(r"`([^`\n]+)`"));
static QUOTATION: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        "“([^”\n]+)”|\"([^\"\n]+)\"|「([^」\n]+)」|『([^』\n]+)』|《([^》\n]+)》|«([^»\n]+)»|„([^“”\n]+)[“”]",
    )
});
static MARKER: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\s*(?:[-*+•]\s+|#+\s+)?(?:[0-9]+[.)、]\s*)?"));
static ADDRESS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^(?:[\w.+-]+@[\w-]+(?:\.[\w-]+)+|www\..+|[A-Za-z][\w+.-]*://.+)$"));
static DIGITS: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[0-9]+(?:-[0-9]+)+$"));
static VERSION: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[vV]?[0-9]+(?:\.[0-9]+){2,}(?:[-+.][0-9A-Za-z.-]+)?$"));
/// A number with a sign, a currency and a unit, ordinal or decade, or with words after a hyphen (`5-minute`).
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^[-−+~≈<>$€£¥]*[vV]?[0-9][0-9.,_'’:]*(?:%|‰|°?[A-Za-zµ°%]{0,2}|th|bit|bits|byte|bytes|[KMGT]i?B|[kMG]Hz|min|sec|kcal)?(?:-[a-z]+)*$",
    )
});

fn pattern(source: &str) -> Regex {
    Regex::new(source).expect("a test runs it")
}

pub fn is_common(word: &str) -> bool {
    COMMON.contains(word.to_lowercase().replace('’', "'").as_str())
}

/// The bytes of a list marker or heading mark at the start of a line.
pub fn list_marker(line: &str) -> usize {
    MARKER.find(line).map_or(0, |m| m.end())
}

/// The claims of text between backticks.
pub fn code_spans(line: &str) -> Vec<Claim> {
    let claim = |captures: regex::Captures<'_>| {
        let code = captures.get(1).expect("the only group");
        let text = code.as_str().trim().to_owned();
        let parts = text.split_whitespace().map(str::to_owned).collect();
        Claim { span: code.range(), kind: ClaimKind::Identifier, needs: Needs::Parts { text, parts } }
    };
    CODE.captures_iter(line).map(claim).collect()
}

/// Quotations of several words, and all in scripts without spaces, where they mark names.
pub fn quotations(line: &str) -> Vec<Claim> {
    let claim = |captures: regex::Captures<'_>| {
        let quoted = captures.iter().skip(1).flatten().next()?;
        let text = quoted.as_str();
        let counts = text.split_whitespace().count() > 1 || text.contains(is_spaceless);
        let needs = Needs::Passage(text.to_owned());
        counts.then_some(Claim { span: quoted.range(), kind: ClaimKind::Quotation, needs })
    };
    QUOTATION.captures_iter(line).filter_map(claim).collect()
}

/// A run of characters without white space and brackets.
struct WordRun<'l> {
    text: &'l str,
    span: Range<usize>,
    /// Whether nothing but white space separates it from the chunk before.
    follows: bool,
    opens_sentence: bool,
}

/// The names and identifiers of a line. The first `marker` bytes are its list marker.
pub fn named_things(line: &str, marker: usize) -> Vec<Claim> {
    let is_heading = line.trim_start().starts_with('#');
    let mut found = Vec::new();
    let mut name: Option<(Range<usize>, Vec<String>, bool)> = None;
    let mut connectors: Vec<String> = Vec::new();
    for chunk in chunks(line, marker) {
        let words = name_words(chunk.text);
        let continues = chunk.follows && !is_heading && name.is_some();
        match words {
            Some(words) if continues => {
                if let Some((span, known, _)) = &mut name {
                    known.append(&mut connectors);
                    known.extend(words);
                    span.end = chunk.span.end;
                }
            }
            Some(words) => {
                found.extend(name.take().map(named));
                connectors.clear();
                name = Some((chunk.span.clone(), words, chunk.opens_sentence || is_heading));
            }
            None if continues && is_connector(chunk.text) && connectors.len() < 2 => {
                connectors.push(chunk.text.to_owned());
                continue;
            }
            None => {
                found.extend(name.take().map(named));
                connectors.clear();
                found.extend(identifier(chunk.text, &chunk.span));
            }
        }
        // The words after a possessive are another name.
        if chunk.text.ends_with("'s") || chunk.text.ends_with("’s") {
            found.extend(name.take().map(named));
        }
    }
    found.extend(name.map(named));
    found
}

fn named((span, words, opens_sentence): (Range<usize>, Vec<String>, bool)) -> Claim {
    Claim { span, kind: ClaimKind::Name, needs: Needs::Name { words, opens_sentence } }
}

/// Words without capitals inside of names.
fn is_connector(text: &str) -> bool {
    matches!(
        text,
        "of" | "the" | "de" | "von" | "van" | "der" | "den" | "di" | "da" | "du" | "la" | "le" | "del" | "&"
    )
}

/// The words of a chunk that is a name or a part of one: it begins with a capital and has no marks of an identifier.
fn name_words(text: &str) -> Option<Vec<String>> {
    let first = text.chars().next()?;
    let is_word = |c: char| c.is_alphabetic() || matches!(c, '\'' | '’' | '-' | '.' | '‐' | '‑');
    let parts: Vec<&str> = text.split(['-', '‐', '‑']).collect();
    let inner_capital = |part: &str| {
        let rest = part.chars().skip(1);
        let mixed = part.chars().any(char::is_lowercase) && rest.clone().any(char::is_uppercase);
        mixed
            && !["Mc", "Mac", "O'", "O’", "D'", "D’"].iter().any(|start| part.starts_with(start))
            && !part.ends_with("s")
    };
    let point_inside = text.trim_end_matches('.').split('.').any(|part| part.chars().count() > 1)
        && text.trim_end_matches('.').contains('.');
    if !first.is_uppercase()
        || !text.chars().all(is_word)
        || parts.iter().any(|part| inner_capital(part))
        || point_inside
    {
        return None;
    }
    let bare = |part: &&str| {
        part.trim_end_matches("'s").trim_end_matches("’s").trim_end_matches(['\'', '’', '.']).to_owned()
    };
    Some(parts.iter().filter(|part| !part.is_empty()).map(bare).collect())
}

/// The identifier in a chunk: an address, path, version, option, code or name with marks inside.
fn identifier(text: &str, span: &Range<usize>) -> Vec<Claim> {
    let claim = |needs| vec![Claim { span: span.clone(), kind: ClaimKind::Identifier, needs }];
    let literal = |text: &str| claim(Needs::Literal(text.to_owned()));
    if ADDRESS.is_match(text) {
        return literal(text);
    }
    if DIGITS.is_match(text) {
        return vec![Claim {
            span: span.clone(),
            kind: ClaimKind::Number,
            needs: Needs::Digits(text.to_owned()),
        }];
    }
    if VERSION.is_match(text) {
        return literal(text.trim_start_matches(['v', 'V']));
    }
    if NUMBER.is_match(text) || text.chars().all(|c| !c.is_alphabetic()) {
        return Vec::new(); // read as a number
    }
    let parts: Vec<&str> = text.split(['/', '\\']).filter(|part| !part.is_empty()).collect();
    if parts.len() > 1 || text.starts_with(['/', '~']) {
        let is_path =
            text.starts_with(['/', '~', '.']) || parts.iter().any(|part| has_marks(part)) || parts.len() > 2;
        let parts = if is_path {
            vec![text.to_owned()]
        } else {
            parts.iter().map(|part| (*part).to_owned()).collect()
        };
        return claim(Needs::Parts { text: text.to_owned(), parts });
    }
    if text.starts_with('-') && text.trim_start_matches('-').starts_with(char::is_alphabetic)
        || has_marks(text)
    {
        return literal(text);
    }
    // mid-1990s, top-10: the number alone counts.
    Vec::new()
}

/// Whether a word has marks of an identifier inside: `_`, `::`, a point, a capital, or digits beside letters.
fn has_marks(text: &str) -> bool {
    let letters: Vec<char> = text.chars().collect();
    let pair = |is: &dyn Fn(char, char) -> bool| letters.windows(2).any(|pair| is(pair[0], pair[1]));
    let abbreviation = text.split('.').all(|part| part.chars().count() <= 1);
    let capital_code = text.contains('-')
        && text.chars().any(char::is_uppercase)
        && text.chars().any(|c| c.is_ascii_digit());
    text.contains("::")
        || letters.contains(&'_') && text.chars().any(char::is_alphanumeric)
        || !abbreviation && text.trim_matches('.').contains('.')
        || capital_code
        || pair(&|a, b| a.is_lowercase() && b.is_uppercase())
        || pair(&|a, b| a.is_alphabetic() && b.is_ascii_digit() || a.is_ascii_digit() && b.is_alphabetic())
}

/// Splits a line at white space, brackets, quotation marks and scripts without spaces.
fn chunks(line: &str, marker: usize) -> Vec<WordRun<'_>> {
    let splits = |c: char| {
        c.is_whitespace()
            || is_spaceless(c)
            || "()[]{}<>|*\"“”„«»`=;，。、；：！？（）「」『』《》…—".contains(c)
    };
    let (mut found, mut at, mut last_end) = (Vec::<WordRun<'_>>::new(), marker, marker);
    let mut opens_sentence = true;
    while at < line.len() {
        let rest = &line[at..];
        let len = chunk_length(rest, splits);
        if len > 0 {
            let (start, end) = trimmed(&rest[..len]);
            if start < end {
                let between = &line[last_end..at + start];
                let follows = !found.is_empty() && between.chars().all(char::is_whitespace);
                let span = at + start..at + end;
                found.push(WordRun { text: &line[span.clone()], span, follows, opens_sentence });
                let tail = &rest[end..len];
                opens_sentence =
                    tail.contains(['.', '!', '?', ':', '…']) && !is_abbreviation(&rest[start..end]);
                last_end =
                    if is_abbreviation(&rest[start..end]) && tail == "." { at + len } else { at + end };
            }
            at += len;
        }
        if let Some(c) = line[at..].chars().next() {
            opens_sentence |= "|\"“„«([。！？：".contains(c);
            at += c.len_utf8();
        }
    }
    found
}

/// Bytes up to the next separator. A comma separates, except between digits.
fn chunk_length(text: &str, splits: impl Fn(char) -> bool) -> usize {
    let mut before = ' ';
    let mut all = text.char_indices().peekable();
    while let Some((at, c)) = all.next() {
        let after = all.peek().map_or(' ', |(_, c)| *c);
        let in_number = c == ',' && before.is_ascii_digit() && after.is_ascii_digit();
        if splits(c) || c == ',' && !in_number {
            return at;
        }
        before = c;
    }
    text.len()
}

/// The part of a chunk without punctuation around it; signs, options and paths keep theirs.
fn trimmed(text: &str) -> (usize, usize) {
    let start =
        text.len() - text.trim_start_matches(['\'', '’', '‘', ',', ':', '!', '?', '#', '–', '_']).len();
    let inner = &text[start..];
    let end = inner.trim_end_matches(['\'', '’', '‘', '.', ',', ':', '!', '?', '-', '–', '/', '_']).len();
    let lone_dash = inner.len() > 1
        && inner.starts_with('-')
        && !inner[1..].starts_with(['-', '.', '$'])
        && !inner[1..].starts_with(char::is_alphanumeric);
    (start + usize::from(lone_dash), (start + end).max(start + usize::from(lone_dash)))
}

/// Whether the point after a word belongs to it: an initial or a title.
fn is_abbreviation(word: &str) -> bool {
    let initial = word.chars().count() == 1 && word.chars().all(char::is_uppercase) && word != "I";
    initial
        || matches!(
            word,
            "Mr" | "Mrs" | "Ms" | "Dr" | "Prof" | "St" | "No" | "vs" | "e.g" | "i.e" | "cf" | "approx"
        )
}
