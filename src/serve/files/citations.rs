//! Finds the quotations of a reply in the files of its prompt, as `ask` does: lines that begin with `>` are quotations, and
//! white space and the form of quotation marks do not matter. Several words in double quotation marks in other lines are
//! quotations if the files have them. Next: [`crate::document_qa::quotes`].

use super::set::FileSet;
use crate::document_qa::is_spaceless;
use crate::document_qa::quotes::quoted;
use crate::serve::api::files::FileCitation;

/// Returns the quotations of a reply in their order, with their place in the first file that has them.
pub fn citations(files: &FileSet, reply: &str) -> Vec<FileCitation> {
    let mut found = Vec::new();
    let mut line_start = 0;
    for line in reply.split('\n') {
        if let Some(quote) = quoted(line) {
            let before = line.len() - line.trim_start()[1..].trim_start().len();
            let start = line_start + line[..before].chars().count();
            found.push(citation(files, quote, start));
        } else {
            let marked = in_marks(line).into_iter();
            let cited =
                marked.map(|(at, text)| citation(files, text, line_start + line[..at].chars().count()));
            found.extend(cited.filter(|citation| citation.verified));
        }
        line_start += line.chars().count() + 1;
    }
    found
}

/// Texts of several words between double quotation marks of a line, with their offsets in bytes.
fn in_marks(line: &str) -> Vec<(usize, &str)> {
    let (mut found, mut rest) = (Vec::new(), 0);
    let is_open = |c: char| matches!(c, '"' | '“' | '„' | '«');
    while let Some((at, open)) = line[rest..].char_indices().find(|(_, c)| is_open(*c)) {
        let start = rest + at + open.len_utf8();
        let close = |c: char| match open {
            '"' => c == '"',
            '“' => c == '”',
            '„' => matches!(c, '“' | '”'),
            _ => c == '»',
        };
        let Some(length) = line[start..].find(close) else { break };
        let text = &line[start..start + length];
        let has_words = |text: &str| text.split_whitespace().nth(1).is_some() || text.contains(is_spaceless);
        if has_words(text) && text.trim() == text {
            found.push((start, text));
        }
        rest = start + length + line[start + length..].chars().next().map_or(0, char::len_utf8);
    }
    found
}

fn citation(files: &FileSet, quote: &str, start: usize) -> FileCitation {
    let span = files.texts().span(quote, &files.documents);
    let end = start + quote.chars().count();
    FileCitation {
        kind: "file_citation",
        file_id: span.as_ref().map(|span| files.ids[span.file].clone()),
        filename: span.as_ref().map(|span| files.documents[span.file].name.clone()),
        index: end,
        quote: quote.to_owned(),
        place: span.as_ref().map(|span| span.place.place.clone()),
        start_index: start,
        end_index: end,
        text_start: span.as_ref().map(|span| span.start),
        text_end: span.as_ref().map(|span| span.end),
        verified: span.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_in_double_marks_are_found() {
        let texts =
            |line: &str| in_marks(line).into_iter().map(|(_, text)| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            texts("It says \"a mill\" and “the old bridge”, not \"mill\"."),
            ["a mill", "the old bridge"]
        );
        assert_eq!(texts("„die Mühle dort“ «le moulin» “磨坊”"), ["die Mühle dort", "le moulin", "磨坊"]);
        assert!(texts("5\" by 6\" and an open \"one here").is_empty());
        assert_eq!(in_marks("é \"a b\""), [(4, "a b")]);
    }
}
