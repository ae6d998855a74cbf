//! Prepares a streaming answer for output: locations after its quotes, and its unsupported parts as pieces of their own.
//!
//! It decides what is marked, not how a mark looks. Next: [`super::claims`] and [`crate::document_qa::quotes`].

use super::claims::{ClaimChecker, Unsupported};
use crate::document_qa::quotes::{Annotated, FoldedTexts, Quote};
use std::ops::Range;

/// Words at the end of an incomplete line that are withheld, as they may be the start of a name or date.
const PENDING_WORDS: usize = 5;

/// Bytes of a line that is marked while it is generated, as each token checks the whole line.
const MAX_MARKED_BYTES: usize = 4096;

/// A piece of an answer for output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerPiece {
    pub text: String,
    pub unsupported: bool,
}

/// An answer that is being generated, with its quotes and unsupported parts so far.
pub struct MarkedAnswer<'t> {
    annotated: Annotated<'t>,
    checker: ClaimChecker<'t>,
    /// Whether text is withheld until it is certain which parts are unsupported.
    withholds: bool,
    /// The incomplete line, of which `shown` bytes are in the output.
    line: String,
    shown: usize,
    /// Unicode characters before the line.
    offset: usize,
    in_code: bool,
    pub unsupported: Vec<Unsupported>,
}

impl<'t> MarkedAnswer<'t> {
    pub fn new(texts: &'t FoldedTexts, checker: ClaimChecker<'t>, withholds: bool) -> Self {
        let (annotated, line) = (Annotated::new(texts), String::new());
        let unsupported = Vec::new();
        MarkedAnswer { annotated, checker, withholds, line, shown: 0, offset: 0, in_code: false, unsupported }
    }

    /// The complete quotes so far.
    pub fn quotes(&self) -> &[Quote] {
        &self.annotated.quotes
    }

    /// Appends text of the answer; returns the pieces that can be shown.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPiece> {
        let mut pieces = Vec::new();
        for part in text.split_inclusive('\n') {
            self.line.push_str(part);
            if part.ends_with('\n') {
                self.end_line(&mut pieces);
            } else if !self.withholds || self.line.len() > MAX_MARKED_BYTES {
                self.show(self.line.len(), &[], &mut pieces);
            } else if !self.is_quote() {
                // The last word is incomplete.
                let marks = self.marks(self.line.rfind(char::is_whitespace).unwrap_or(0));
                self.show(self.certain(&marks), &marks, &mut pieces);
            }
        }
        pieces
    }

    /// Ends the answer; returns what was withheld.
    pub fn finish(&mut self) -> Vec<AnswerPiece> {
        let mut pieces = Vec::new();
        self.end_line(&mut pieces);
        let annotation = self.annotated.finish();
        if !annotation.is_empty() {
            pieces.push(AnswerPiece { text: annotation, unsupported: false });
        }
        pieces
    }

    fn is_quote(&self) -> bool {
        self.line.trim_start().starts_with('>')
    }

    /// The unsupported parts of the first `end` bytes of the line.
    fn marks(&self, end: usize) -> Vec<Range<usize>> {
        self.checker
            .unsupported(&self.line[..end], self.in_code)
            .into_iter()
            .map(|claim| claim.span)
            .collect()
    }

    /// The bytes of the incomplete line whose marks cannot change any more.
    fn certain(&self, marks: &[Range<usize>]) -> usize {
        let starts = self.line.match_indices(char::is_whitespace).map(|(at, _)| at).rev();
        let mut end = starts.clone().nth(PENDING_WORDS - 1).unwrap_or(0);
        // An open quotation or code span may become one claim.
        for mark in ['`', '"', '“', '「', '《'] {
            if let Some(at) = self.line.rfind(mark).filter(|_| self.line.matches(mark).count() % 2 == 1) {
                end = end.min(at);
            }
        }
        for mark in marks {
            end = if mark.end >= end { end.min(mark.start) } else { end };
        }
        end.max(self.shown)
    }

    fn end_line(&mut self, pieces: &mut Vec<AnswerPiece>) {
        let located = self.is_quote() && self.annotated.is_located(&self.line);
        if !located {
            for claim in self.checker.unsupported(self.line.trim_end_matches('\n'), self.in_code) {
                let characters = |end: usize| self.offset + self.line[..end].chars().count();
                let (start, end) = (characters(claim.span.start), characters(claim.span.end));
                let text = self.line[claim.span].to_owned();
                self.unsupported.push(Unsupported { text, start, end, kind: claim.kind });
            }
        }
        let marks = if located || !self.withholds { Vec::new() } else { self.marks(self.line.len()) };
        self.show(self.line.len(), &marks, pieces);
        self.in_code ^= self.line.trim_start().starts_with("```");
        self.offset += self.line.chars().count();
        self.line.clear();
        self.shown = 0;
    }

    /// Moves the line up to `end` into pieces.
    fn show(&mut self, end: usize, marks: &[Range<usize>], pieces: &mut Vec<AnswerPiece>) {
        let marks: Vec<Range<usize>> =
            marks.iter().filter(|mark| self.shown <= mark.start && mark.end <= end).cloned().collect();
        for mark in marks {
            self.piece(mark.start, false, pieces);
            self.piece(mark.end, true, pieces);
        }
        self.piece(end, false, pieces);
    }

    fn piece(&mut self, end: usize, unsupported: bool, pieces: &mut Vec<AnswerPiece>) {
        if end > self.shown {
            let text = self.annotated.push(&self.line[self.shown..end]);
            self.shown = end;
            pieces.push(AnswerPiece { text, unsupported });
        }
    }
}

/// The line that lists unsupported parts, each once; None without any.
pub fn unsupported_line(unsupported: &[Unsupported]) -> Option<String> {
    let mut texts: Vec<&str> = Vec::new();
    for part in unsupported {
        if !texts.contains(&part.text.as_str()) {
            texts.push(&part.text);
        }
    }
    (!texts.is_empty()).then(|| format!("not in the files: {}", texts.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::super::claims::FileEvidence;
    use super::*;
    use crate::documents::Document;

    const FILE: &str = "Mara Velt lives in Dunmore.\nThe lock takes the code 4713.\n";

    /// Streams a reply in steps of some characters; marks unsupported parts with brackets.
    fn streamed(reply: &str, step: usize, withholds: bool) -> (String, Vec<Unsupported>) {
        let documents = [Document::plain("a.txt", FILE)];
        let (texts, evidence) = (FoldedTexts::new(&documents), FileEvidence::new(&documents));
        let checker = ClaimChecker::new(&evidence, &["Where is the code of 1999?".to_owned()]);
        let mut marked = MarkedAnswer::new(&texts, checker, withholds);
        let letters: Vec<char> = reply.chars().collect();
        let mut pieces = Vec::new();
        for part in letters.chunks(step) {
            pieces.extend(marked.push(&part.iter().collect::<String>()));
        }
        pieces.extend(marked.finish());
        let show =
            |piece: AnswerPiece| if piece.unsupported { format!("[{}]", piece.text) } else { piece.text };
        (pieces.into_iter().map(show).collect(), marked.unsupported)
    }

    #[test]
    fn marks_do_not_depend_on_the_steps_of_the_stream() {
        let reply = "> Mara Velt lives\n> Mara Smith lives\n\nIn Denmore, says Mara Velt, since 3 May 1999: 4713 or 4714.\nBob Cole";
        let shown = "> Mara Velt lives  [a.txt:1]\n> [Mara Smith] lives  [not in the text]\n\nIn [Denmore], says Mara Velt, \
            since [3 May 1999]: 4713 or [4714].\n[Bob Cole]";
        for step in [1, 2, 7, 1000] {
            let (text, unsupported) = streamed(reply, step, true);
            assert_eq!(text, shown, "steps of {step}");
            let plain = unsupported
                .iter()
                .fold(shown.to_owned(), |text, part| text.replace(&format!("[{}]", part.text), &part.text));
            assert_eq!(streamed(reply, step, false), (plain, unsupported.clone()), "steps of {step}");
            let letters: Vec<char> = reply.chars().collect();
            for part in &unsupported {
                assert_eq!(letters[part.start..part.end].iter().collect::<String>(), part.text);
            }
            let line = unsupported_line(&unsupported).unwrap();
            assert_eq!(line, "not in the files: Mara Smith; Denmore; 3 May 1999; 4714; Bob Cole");
        }
        assert_eq!(unsupported_line(&[]), None);
    }

    #[test]
    fn a_terminal_gets_text_before_its_line_ends() {
        let documents = [Document::plain("a.txt", FILE)];
        let (texts, evidence) = (FoldedTexts::new(&documents), FileEvidence::new(&documents));
        let mut marked = MarkedAnswer::new(&texts, ClaimChecker::new(&evidence, &[]), true);
        let text: String =
            marked.push("it is in the mill with a").into_iter().map(|piece| piece.text).collect();
        assert_eq!(text, "it is");
    }
}
