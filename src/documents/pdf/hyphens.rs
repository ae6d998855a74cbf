//! Joins words that are hyphenated at the ends of lines: the rest of the word moves up to the line that it starts on.
//!
//! A hyphen stays where the document has the word with its hyphen elsewhere, as in `well-known`, and not without.

use super::reflow::PageLine;
use std::collections::HashSet;

/// Joins words within pages and over the ends of pages.
pub(super) fn join(pages: &mut [Vec<PageLine>]) {
    let words = words(pages);
    let numbered = pages
        .iter_mut()
        .enumerate()
        .flat_map(|(page, lines)| lines.iter_mut().map(move |line| (page, &mut line.text)));
    let mut lines: Vec<(usize, &mut String)> = numbered.filter(|(_, line)| !line.is_empty()).collect();
    for at in 0..lines.len() {
        let Some((start, is_soft)) = hyphenated(lines[at].1) else { continue };
        let Some(next) = continuation(&lines, at) else { continue };
        let (before, after) = lines.split_at_mut(next);
        let (line, next) = (&mut *before[at].1, &mut *after[0].1);
        let end = next.find(char::is_whitespace).unwrap_or(next.len());
        let rest = next[..end].to_owned();
        let letters = rest.trim_end_matches(|c: char| !c.is_alphanumeric());
        let (whole, kept) = (format!("{start}{letters}"), format!("{start}-{letters}"));
        let keeps =
            !is_soft && words.contains(&kept.to_lowercase()) && !words.contains(&whole.to_lowercase());
        line.truncate(line.trim_end_matches(HYPHENS).len());
        line.push_str(if keeps { "-" } else { "" });
        line.push_str(&rest);
        *next = next[end..].trim_start().to_owned();
    }
    for page in pages {
        // A line that only had the rest of a word.
        let mut before = true;
        page.retain(|line| {
            let is_empty = line.text.is_empty();
            let follows_empty = std::mem::replace(&mut before, is_empty);
            !(is_empty && follows_empty)
        });
        if page.last().is_some_and(|line| line.text.is_empty()) {
            page.pop();
        }
    }
}

/// Longest header at the top of a page, in bytes.
const MAX_HEADER: usize = 60;

/// The line that continues the word at the end of the line `at`: the next one, or one after the number of the page and the
/// header of the next page.
fn continuation(lines: &[(usize, &mut String)], at: usize) -> Option<usize> {
    let page = lines[at].0;
    for next in (at + 1..lines.len()).take(3) {
        let (its_page, line) = &lines[next];
        if continues(line) && (next == at + 1 || *its_page == page + 1) {
            return Some(next);
        }
        let is_number = *its_page == page && !line.contains(char::is_alphabetic);
        let is_header = *its_page == page + 1 && line.len() <= MAX_HEADER;
        if !is_number && !is_header {
            return None;
        }
    }
    None
}

const HYPHENS: [char; 3] = ['-', '\u{ad}', '\u{2010}'];

/// The last word of a line that ends with a hyphen after a letter, and whether the hyphen is one for line ends only.
fn hyphenated(line: &str) -> Option<(String, bool)> {
    let bare = line.strip_suffix(HYPHENS)?;
    let word = bare.rsplit(|c: char| !c.is_alphanumeric()).next()?;
    let is_word = word.chars().next_back().is_some_and(char::is_alphabetic);
    is_word.then(|| (word.to_owned(), line.ends_with('\u{ad}')))
}

/// Whether a line begins in the middle of a word.
fn continues(line: &str) -> bool {
    line.chars().next().is_some_and(char::is_lowercase)
}

/// The words of the document in lower case, with and without hyphens inside, except at the ends of lines.
fn words(pages: &[Vec<PageLine>]) -> HashSet<String> {
    let all =
        pages.iter().flatten().flat_map(|line| line.text.split(|c: char| !c.is_alphanumeric() && c != '-'));
    all.filter(|word| word.len() > 1 && !word.ends_with('-')).map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pages: &[&str], expected: &[&str]) {
        let line = |text: &str| PageLine { text: text.to_owned(), is_wrapped: false };
        let mut lines: Vec<Vec<PageLine>> =
            pages.iter().map(|page| page.split('\n').map(line).collect()).collect();
        join(&mut lines);
        let joined: Vec<String> =
            lines.into_iter().map(|page| super::super::reflow::join(page).join("\n")).collect();
        assert_eq!(joined, expected);
    }

    #[test]
    fn words_move_up_to_the_line_of_their_start() {
        check(&["the exam-\nple, and so"], &["the example,\nand so"]);
        check(&["the exam\u{ad}\nple"], &["the example"]);
        check(&["a mill-\nBrandt", "x -\ny", "1-\n2"], &["a mill-\nBrandt", "x -\ny", "1-\n2"]);
        check(&["is well-\nknown", "a well-known mill"], &["is well-known", "a well-known mill"]);
        check(&["is well-\nknown", "wellknown, well-known"], &["is wellknown", "wellknown, well-known"]);
        check(&["an exam-\n\n12", "Header\n\nple of"], &["an example\n\n12", "Header\n\nof"]);
    }
}
