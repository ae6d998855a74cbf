//! Finds the numbers, dates, names, identifiers and quotations of an answer that occur neither in the files nor in the
//! questions.
//!
//! It reads one line at a time and does not judge whether a sentence is true: a sum that the model computed is reported,
//! and a wrong statement made of words of the files is not. docs/ask.md has the rules. Next: [`words`] (what a line
//! claims), [`numbers`] and [`evidence`] (what the files contain).

mod evidence;
pub mod numbers;
mod words;

use crate::documents::Document;
use evidence::Evidence;
use numbers::{DateKey, NumberToken, contains, overlap};
use serde::Serialize;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use words::named_things;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimKind {
    Number,
    Date,
    Name,
    Identifier,
    Quotation,
}

/// A part of an answer that is looked up in the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its bytes in the line.
    pub span: Range<usize>,
    pub kind: ClaimKind,
    needs: Needs,
}

impl Claim {
    /// The claim without the common words with which a sentence begins.
    fn without_common_words(&self, line: &str) -> Claim {
        let mut claim = self.clone();
        if let Needs::Name { words, opens_sentence: true } = &self.needs {
            for word in words[..words.len() - 1].iter().take_while(|word| words::is_common(word)) {
                let rest = &line[claim.span.start + word.len()..claim.span.end];
                claim.span.start = claim.span.end - rest.trim_start().len();
            }
        }
        claim
    }
}

/// What the files must contain to support a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Needs {
    /// A number with one of the values, and not with other units only.
    Number(NumberToken),
    /// A date in one of the readings.
    Date(Vec<DateKey>),
    /// The words in this order. At the start of a sentence a common word may have a capital.
    Name { words: Vec<String>, opens_sentence: bool },
    /// The text between word boundaries, in any case.
    Literal(String),
    /// The text, or each of its parts.
    Parts { text: String, parts: Vec<String> },
    /// The text, or both ends of a range of numbers.
    Digits(String),
    /// The words of a quotation with any white space.
    Passage(String),
}

/// A part of an answer that occurs in no file. Offsets count Unicode characters of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unsupported {
    pub text: String,
    pub start: usize,
    pub end: usize,
    pub kind: ClaimKind,
}

/// The contents of the files, indexed at the first claim, as large files take a second.
pub struct FileEvidence<'t> {
    documents: &'t [Document],
    evidence: OnceCell<Evidence>,
}

impl<'t> FileEvidence<'t> {
    pub fn new(documents: &'t [Document]) -> Self {
        FileEvidence { documents, evidence: OnceCell::new() }
    }

    fn get(&self) -> &Evidence {
        let texts = || self.documents.iter().map(|document| document.text.as_str());
        self.evidence.get_or_init(|| Evidence::new(texts()))
    }
}

/// Looks up the claims of one answer.
pub struct ClaimChecker<'t> {
    files: &'t FileEvidence<'t>,
    /// The questions so far and the names of the files, which an answer may repeat.
    asked: Evidence,
    /// Results so far, as a line is checked again while it grows.
    known: RefCell<HashMap<Needs, bool>>,
}

impl<'t> ClaimChecker<'t> {
    pub fn new(files: &'t FileEvidence<'t>, questions: &[String]) -> Self {
        let names = files.documents.iter().map(|document| document.name.as_str());
        let asked = Evidence::new(names.chain(questions.iter().map(String::as_str)));
        ClaimChecker { files, asked, known: RefCell::default() }
    }

    /// The unsupported claims of a line, in its order.
    pub fn unsupported(&self, line: &str, is_code: bool) -> Vec<Claim> {
        let mut claims = claims(line, is_code);
        claims.sort_by_key(|claim| (claim.span.start, std::cmp::Reverse(claim.span.end)));
        let mut unsupported: Vec<Claim> = Vec::new();
        let mut done = 0;
        for (i, claim) in claims.iter().enumerate() {
            if claim.span.start < done {
                continue; // a part of the claim before
            }
            let parts = claims[i + 1..].iter().take_while(|part| part.span.start < claim.span.end);
            let parts: Vec<&Claim> = parts.filter(|part| part.kind == claim.kind).collect();
            let by_parts = !parts.is_empty() && parts.iter().all(|part| self.supports(part));
            done = claim.span.end;
            if !(self.supports(claim) || by_parts) {
                unsupported.push(claim.without_common_words(line));
            }
        }
        unsupported
    }

    fn supports(&self, claim: &Claim) -> bool {
        if let Some(known) = self.known.borrow().get(&claim.needs) {
            return *known;
        }
        let supported = Evidence::supports(&[&self.asked, self.files.get()], &claim.needs);
        self.known.borrow_mut().insert(claim.needs.clone(), supported);
        supported
    }
}

/// The claims of a line.
fn claims(line: &str, is_code: bool) -> Vec<Claim> {
    let mut claims = words::code_spans(line);
    let is_free =
        |claims: &[Claim], span: &Range<usize>| claims.iter().all(|claim| !overlap(&claim.span, span));
    for date in numbers::dates(line) {
        if is_free(&claims, &date.span) {
            claims.push(Claim { span: date.span, kind: ClaimKind::Date, needs: Needs::Date(date.readings) });
        }
    }
    let marker = words::list_marker(line);
    let numbers = numbers::numbers(line);
    let is_unit = |thing: &Claim| numbers.iter().any(|number| contains(&number.span, &thing.span));
    let things = named_things(line, marker).into_iter();
    let things = things.filter(|thing| thing.kind != ClaimKind::Name || !is_code && !is_unit(thing));
    let things: Vec<Claim> = things.filter(|thing| is_free(&claims, &thing.span)).collect();
    claims.extend(things);
    let numbers =
        numbers.iter().filter(|number| number.span.start >= marker && is_free(&claims, &number.span));
    let needs = |number: &NumberToken| Needs::Number(number.clone());
    let numbers = numbers.map(|number| Claim {
        span: number.span.clone(),
        kind: ClaimKind::Number,
        needs: needs(number),
    });
    let numbers: Vec<Claim> = numbers.collect();
    claims.extend(numbers);
    claims.extend(words::quotations(line));
    claims
}

#[cfg(test)]
mod tests;
