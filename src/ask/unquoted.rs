//! Finds the numbers and dates of an answer that the files have, but none of the answer's quotes: the reader cannot check them
//! at a quote. And answers that quote the text and then say that it does not say.

use super::claims::{ClaimChecker, ClaimKind, FileEvidence, Unsupported};
use crate::document_qa::quotes::{Quote, quoted};
use crate::documents::Document;

/// The sentence for questions that the files do not answer, which the demonstration model was trained to say.
const DOES_NOT_SAY: &str = "the text does not say";

/// The numbers and dates of an answer that are in none of its located quotes, each once; none for answers without one. What
/// the questions and names of the files have, and `unsupported` parts, are left out.
pub fn unquoted(
    answer: &str,
    quotes: &[Quote],
    known: &[String],
    unsupported: &[Unsupported],
) -> Vec<String> {
    let located: Vec<&str> =
        quotes.iter().filter(|quote| !quote.places.is_empty()).map(|quote| quote.text.as_str()).collect();
    if located.is_empty() {
        return Vec::new();
    }
    let documents = [Document::plain("", &located.join("\n"))];
    let evidence = FileEvidence::new(&documents);
    let checker = ClaimChecker::new(&evidence, known);
    let mut values: Vec<String> = Vec::new();
    for line in answer.lines().filter(|line| quoted(line).is_none()) {
        for claim in checker.unsupported(line, false) {
            let text = &line[claim.span];
            let is_value = matches!(claim.kind, ClaimKind::Number | ClaimKind::Date);
            let is_marked = unsupported.iter().any(|part| part.text == text);
            if is_value && !is_marked && !values.iter().any(|value| value == text) {
                values.push(text.to_owned());
            }
        }
    }
    values
}

/// Whether an answer says that the text does not say, after a quote from it.
pub fn denies_its_quotes(answer: &str, quotes: &[Quote]) -> bool {
    let mut lines = answer.lines().filter(|line| quoted(line).is_none()).map(str::trim);
    let first = lines.find(|line| !line.is_empty()).unwrap_or_default().to_lowercase();
    first.starts_with(DOES_NOT_SAY) && quotes.iter().any(|quote| !quote.places.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::Place;

    fn quote(text: &str, is_located: bool) -> Quote {
        let place = Place::new("a.txt", (1, 1), &[]);
        Quote { text: text.into(), places: if is_located { vec![place] } else { Vec::new() } }
    }

    #[test]
    fn values_that_no_quote_has_are_found() {
        let quotes =
            [quote("The lock takes the code 4713 since 3 May 1998.", true), quote("It is 55 m.", false)];
        let answer = "> The lock takes the code 4713 since 3 May 1998.\n\nThe code is 4713, since 1998-05-03.\n\
                      It is 55 m high, has 12 rooms, 12 doors and 7 keys.";
        let known = ["Are there 7 keys?".to_owned()];
        assert_eq!(unquoted(answer, &quotes, &known, &[]), ["55 m", "12"]);
        let unsupported = Unsupported { text: "12".into(), start: 0, end: 2, kind: ClaimKind::Number };
        assert_eq!(unquoted(answer, &quotes, &known, &[unsupported]), ["55 m"]);
        assert_eq!(unquoted(answer, &quotes[1..], &known, &[]), Vec::<String>::new());
    }

    #[test]
    fn a_denial_after_a_quote_is_found() {
        let quotes = [quote("Mara lives.", true)];
        assert!(denies_its_quotes("> Mara lives.\n\nThe text does not say.", &quotes));
        assert!(!denies_its_quotes("> Mara lives.\n\nMara lives. The text does not say where.", &quotes));
        assert!(!denies_its_quotes("The text does not say.", &[]));
    }
}
