//! Quotes in a reply (lines that begin with `> `), looked up in the files: where they stand, or that they do not.
//!
//! Space does not count, and neither does the form of quotation marks and dashes: a quote may be wrapped otherwise
//! than its file. Everything else has to be there to the letter. A leaf.

use crate::io::document::Document;
use serde::Serialize;

/// Where a quote stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file.
    pub file: String,
    /// Line of its first character, from 1.
    pub line: usize,
    /// Line of its last.
    pub last_line: usize,
}

/// A quote and all the places where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quote {
    /// As the model wrote it.
    pub text: String,
    /// None: the model made it up.
    pub places: Vec<Place>,
}

/// Files prepared for looking up.
pub struct Texts(Vec<Folded>);

struct Folded {
    name: String,
    text: String,
    /// Where each line begins in `text`.
    lines: Vec<usize>,
}

impl Texts {
    /// Of these files.
    pub fn new(documents: &[Document]) -> Texts {
        Texts(documents.iter().map(Folded::new).collect())
    }

    /// The files.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|folded| folded.name.as_str()).collect()
    }

    /// All places of a quote, in the order of the files.
    pub fn find(&self, quote: &str) -> Vec<Place> {
        let whole = fold(quote);
        // The model may add marks around a quote, or say that it is cut.
        let bare = whole.trim_matches(['"', '\'', '.']);
        let places = |quote: &str| match quote {
            "" => Vec::new(),
            quote => self.0.iter().flat_map(|folded| folded.find(quote)).collect(),
        };
        let found = places(&whole);
        if found.is_empty() { places(bare) } else { found }
    }
}

impl Folded {
    fn new(document: &Document) -> Folded {
        let (mut text, mut lines) = (String::new(), Vec::new());
        for line in document.text.split('\n') {
            lines.push(text.len());
            fold_into(line, &mut text);
        }
        Folded { name: document.name.clone(), text, lines }
    }

    fn find(&self, quote: &str) -> Vec<Place> {
        // The last line that begins at or before a byte: those without text begin where the next one does.
        let line = |at: usize| self.lines.partition_point(|start| *start <= at);
        let place = |(at, found): (usize, &str)| {
            let (line, last_line) = (line(at), line(at + found.len() - 1));
            Place { file: self.name.clone(), line, last_line }
        };
        self.text.match_indices(quote).map(place).collect()
    }
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

/// A reply on its way to the reader: says after each quote where it stands.
pub struct Annotated<'t> {
    texts: &'t Texts,
    line: String,
    /// The quotes so far.
    pub quotes: Vec<Quote>,
}

impl<'t> Annotated<'t> {
    /// An empty reply.
    pub fn new(texts: &'t Texts) -> Self {
        Annotated { texts, line: String::new(), quotes: Vec::new() }
    }

    /// More of the reply; returns it with what is to be said of the quotes that end in it.
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

    /// The reply is over.
    pub fn finish(&mut self) -> String {
        self.end_line()
    }

    fn end_line(&mut self) -> String {
        let line = std::mem::take(&mut self.line);
        let quote = line.trim_start().strip_prefix('>').map(str::trim).filter(|quote| !quote.is_empty());
        let Some(quote) = quote else { return String::new() };
        let places = self.texts.find(quote);
        let said = said(&places);
        self.quotes.push(Quote { text: quote.to_owned(), places });
        said
    }
}

/// `  [report.txt:12]`, `  [a.txt:3-4, also b.txt:9 and 2 more]`, `  [not in the text]`
fn said(places: &[Place]) -> String {
    let place = |p: &Place| match p.last_line - p.line {
        0 => format!("{}:{}", p.file, p.line),
        _ => format!("{}:{}-{}", p.file, p.line, p.last_line),
    };
    match places {
        [] => "  [not in the text]".into(),
        [one] => format!("  [{}]", place(one)),
        [one, two] => format!("  [{}, also {}]", place(one), place(two)),
        [one, two, more @ ..] => format!("  [{}, also {} and {} more]", place(one), place(two), more.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Texts {
        let a = "Title\n\nMara Velt lives\n  in “Dunmore” — since\n1990.\n\nThe end.\n";
        let document = |name: &str, text: &str| Document { name: name.into(), text: text.into() };
        Texts::new(&[document("a.txt", a), document("b.txt", "x\nThe end.\nThe end.")])
    }

    fn check(quote: &str, expected: &str) {
        assert_eq!(said(&texts().find(quote)), expected, "{quote}");
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
