//! Locates the quotes of a reply (lines that begin with `> `) in the files.
//!
//! White space and the form of quotation marks and dashes are ignored, as a quote may be wrapped differently from its
//! file. Everything else must match exactly.

use crate::documents::{Document, PartStart, Place};
use serde::Serialize;

/// A quote with all its locations in the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quote {
    /// The text as the model generated it.
    pub text: String,
    /// Empty if the files do not contain the quote.
    pub places: Vec<Place>,
}

/// The first place where files have the words of a quote, with its range in the file's text in Unicode characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuoteSpan {
    /// The index of the file.
    pub file: usize,
    pub start: usize,
    pub end: usize,
    pub place: Place,
}

/// The normalized text of all files.
pub struct FoldedTexts(Vec<Folded>);

struct Folded {
    name: String,
    text: String,
    /// The offset of each line in `text`.
    lines: Vec<usize>,
    parts: Vec<PartStart>,
}

impl FoldedTexts {
    pub fn new(documents: &[Document]) -> FoldedTexts {
        FoldedTexts(documents.iter().map(Folded::new).collect())
    }

    /// The names of the files in order.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|folded| folded.name.as_str()).collect()
    }

    /// All locations of a quote, in the order of the files.
    pub fn find(&self, quote: &str) -> Vec<Place> {
        let whole = fold(quote);
        let places =
            |quote: &str| self.0.iter().flat_map(|folded| folded.find(quote)).collect::<Vec<Place>>();
        let found = places(&whole);
        if found.is_empty() { places(without_marks(&whole)) } else { found }
    }

    /// The first location of a quote in these files, from which the texts were made.
    pub fn span(&self, quote: &str, documents: &[Document]) -> Option<QuoteSpan> {
        let whole = fold(quote);
        let first = |quote: &str| {
            self.0.iter().enumerate().find_map(|(file, folded)| {
                let at = folded.matches(quote).next()?;
                let (start, end) = folded.characters(&documents[file].text, at, at + quote.len());
                Some(QuoteSpan { file, start, end, place: folded.place(at, quote.len()) })
            })
        };
        first(&whole).or_else(|| first(without_marks(&whole)))
    }
}

/// A folded quote without what models add: quotation marks around it, and an ellipsis where they cut it.
fn without_marks(folded: &str) -> &str {
    folded.trim_matches(['"', '\'', '.'])
}

impl Folded {
    fn new(document: &Document) -> Folded {
        let (mut text, mut lines) = (String::new(), Vec::new());
        for line in document.text.split('\n') {
            lines.push(text.len());
            fold_into(line, &mut text);
        }
        Folded { name: document.name.clone(), text, lines, parts: document.parts.clone() }
    }

    fn find(&self, quote: &str) -> Vec<Place> {
        self.matches(quote).map(|at| self.place(at, quote.len())).collect()
    }

    /// The positions of a folded quote; none of an empty one.
    fn matches<'q>(&'q self, quote: &'q str) -> impl Iterator<Item = usize> + 'q {
        self.text.match_indices(quote).map(|(at, _)| at).take_while(|_| !quote.is_empty())
    }

    /// The last line that starts at or before a byte, from 1; empty lines start where the next line does.
    fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at)
    }

    fn place(&self, at: usize, len: usize) -> Place {
        let (line, last_line) = (self.line(at), self.line(at + len - 1));
        Place::new(&self.name, (line, last_line), &self.parts)
    }

    /// The range of the characters of `text` that a range of its folded bytes was made of.
    fn characters(&self, text: &str, start: usize, end: usize) -> (usize, usize) {
        let (first, last) = (self.line(start), self.line(end - 1));
        let (mut at, mut range) = (0, (0, 0));
        for (number, (line, folded_start)) in (1..).zip(text.split('\n').zip(&self.lines)).take(last) {
            if number == first {
                range.0 = at + character(line, start - folded_start);
            }
            if number == last {
                range.1 = at + character(line, end - 1 - folded_start) + 1;
            }
            at += line.chars().count() + 1;
        }
        range
    }
}

/// The index of the character of a line that makes the byte `at` of the folded line.
fn character(line: &str, at: usize) -> usize {
    let mut folded = String::new();
    let makes = |c: char| {
        fold_into(c.encode_utf8(&mut [0; 4]), &mut folded);
        folded.len() > at
    };
    line.chars().position(makes).unwrap_or(0)
}

fn fold(text: &str) -> String {
    let mut out = String::new();
    fold_into(text, &mut out);
    out
}

fn fold_into(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\u{200b}'..='\u{200d}' | '\u{ad}' | '\u{feff}' => {}
            c if c.is_whitespace() => {}
            '‘' | '’' | '‚' | '‛' | '`' | '´' => out.push('\''),
            '“' | '”' | '„' | '‟' | '«' | '»' => out.push('"'),
            '‐' | '‑' | '‒' | '–' | '—' | '−' => out.push('-'),
            '…' => out.push_str("..."),
            c => out.push(c),
        }
    }
}

/// Annotates a streaming reply with the location of each quote.
pub struct Annotated<'t> {
    texts: &'t FoldedTexts,
    line: String,
    /// The complete quotes so far.
    pub quotes: Vec<Quote>,
}

impl<'t> Annotated<'t> {
    pub fn new(texts: &'t FoldedTexts) -> Self {
        Annotated { texts, line: String::new(), quotes: Vec::new() }
    }

    /// Appends text of the reply; returns it with the annotations of the quotes that end in it.
    pub fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for c in text.chars() {
            if c == '\n' {
                out.push_str(&self.end_line());
            } else {
                self.line.push(c);
            }
            out.push(c);
        }
        out
    }

    /// Ends the reply; returns the annotation of a quote at its end.
    pub fn finish(&mut self) -> String {
        self.end_line()
    }

    /// Whether a line is a quote of the files.
    pub fn is_located(&self, line: &str) -> bool {
        quoted(line).is_some_and(|quote| !self.texts.find(quote).is_empty())
    }

    fn end_line(&mut self) -> String {
        let line = std::mem::take(&mut self.line);
        let Some(quote) = quoted(&line) else { return String::new() };
        let places = self.texts.find(quote);
        let annotation = annotation(&places);
        self.quotes.push(Quote { text: quote.to_owned(), places });
        annotation
    }
}

/// The text of a line that is a quote.
pub fn quoted(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix('>').map(str::trim).filter(|quote| !quote.is_empty())
}

/// Formats locations: `  [report.txt:12]`, `  [a.txt:3-4, also b.txt:9 and 2 more]`, `  [not in the text]`.
fn annotation(places: &[Place]) -> String {
    match places {
        [] => "  [not in the text]".into(),
        [one] => format!("  [{}]", one.with_file()),
        [one, two] => format!("  [{}, also {}]", one.with_file(), two.with_file()),
        [one, two, more @ ..] => {
            format!("  [{}, also {} and {} more]", one.with_file(), two.with_file(), more.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> FoldedTexts {
        let a = "Title\n\nMara Velt lives\n  in “Dunmore” — since\n1990.\n\nThe end.\n";
        let document = |name: &str, text: &str| Document::plain(name, text);
        FoldedTexts::new(&[document("a.txt", a), document("b.txt", "x\nThe end.\nThe end.")])
    }

    fn check(quote: &str, expected: &str) {
        assert_eq!(annotation(&texts().find(quote)), expected, "{quote}");
    }

    #[test]
    fn quotes_are_found_by_line() {
        check("Mara Velt lives", "  [a.txt:3]");
        check("Mara Velt lives in \"Dunmore\" - since 1990.", "  [a.txt:3-5]");
        check("\"Mara   Velt\"", "  [a.txt:3]");
        check("Velt lives...", "  [a.txt:3]");
        check("Mara Welt lives", "  [not in the text]");
        check("mara velt lives", "  [not in the text]");
        check("The end.", "  [a.txt:7, also b.txt:2 and 1 more]");
        check("Title", "  [a.txt:1]");
        check("“”", "  [not in the text]");
    }

    #[test]
    fn spans_are_characters_of_the_text() {
        let text = "Grüße an alle.\n\nMara … lives\n  in “Dünmore” — since\n1990.\n";
        let documents = [Document::plain("x", "nothing"), Document::plain("a.txt", text)];
        let texts = FoldedTexts::new(&documents);
        let check = |quote: &str, expected: &str, place: &str| {
            let span = texts.span(quote, &documents).unwrap();
            let found: String = text.chars().skip(span.start).take(span.end - span.start).collect();
            assert_eq!((span.file, &*found, &*span.place.place), (1, expected, place), "{quote}");
        };
        check("an alle", "an alle", "line 1");
        check("Mara ... lives in \"Dünmore\"", "Mara … lives\n  in “Dünmore”", "lines 3-4");
        check("\"lives in...", "lives\n  in", "lines 3-4");
        check("G", "G", "line 1");
        assert_eq!(texts.span("Maria", &documents), None);
        assert_eq!(texts.span("\"\"", &documents), None);
    }

    #[test]
    fn a_reply_is_annotated_as_it_streams() {
        let reply = "In Dunmore.\n> Mara Velt lives\n> in Paris\n>\na > b\n> x";
        let expected = "In Dunmore.\n> Mara Velt lives  [a.txt:3]\n> in Paris  [not in the text]\n>\na > b\n> x  [b.txt:1]";
        let texts = texts();
        for step in [1, 3, 100] {
            let mut annotated = Annotated::new(&texts);
            let letters: Vec<char> = reply.chars().collect();
            let mut out: String =
                letters.chunks(step).map(|part| annotated.push(&part.iter().collect::<String>())).collect();
            out += &annotated.finish();
            assert_eq!(out, expected);
            let found: Vec<_> = annotated.quotes.iter().map(|q| (q.text.as_str(), q.places.len())).collect();
            assert_eq!(found, [("Mara Velt lives", 1), ("in Paris", 0), ("x", 1)]);
        }
    }
}
