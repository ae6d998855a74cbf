//! Joins the lines of a paragraph that are wrapped at the right edge of their column, so that sentences are in one line.
//! Lines of tables, lists, code and verse stay.
//!
//! A line is full if the first word of the next line does not fit behind it. Paragraphs most of whose lines are full are
//! wrapped text.

use super::segment::{LineSegment, is_spaceless};

/// A line of a page; an empty one separates paragraphs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PageLine {
    pub text: String,
    /// Whether the paragraph continues in the next line.
    pub is_wrapped: bool,
}

/// The narrowest column of wrapped text, in parts of the font size.
const MIN_COLUMN: f64 = 15.0;
/// The share of full lines of a wrapped paragraph, its last line left out.
const MIN_FULL: f64 = 0.6;
/// One in this many lines may exceed the edge of its column, as headings over several columns do.
const OVER_EDGE: usize = 10;

/// Most lines of a page that are compared with each paragraph.
const MAX_LINES: usize = 2000;

/// Decides for the lines of one paragraph, of a page with all of `lines`, which of them are wrapped.
pub(super) fn wrapped(paragraph: &[LineSegment], lines: &[LineSegment]) -> Vec<bool> {
    if paragraph.len() < 2 {
        return vec![false; paragraph.len()];
    }
    let edge = edge(paragraph, if lines.len() <= MAX_LINES { lines } else { paragraph });
    let pairs = paragraph.windows(2);
    let full: Vec<bool> = pairs.map(|w| edge.is_some_and(|edge| is_full(&w[0], &w[1], edge))).collect();
    let count = full.iter().filter(|is_full| **is_full).count();
    let is_text = count as f64 >= MIN_FULL * full.len() as f64;
    let joins =
        paragraph.windows(2).zip(full).map(|(w, is_full)| is_text && is_full && continues(&w[0], &w[1]));
    joins.chain([false]).take(paragraph.len()).collect()
}

/// The right edge of the column of a paragraph; None for a narrow one.
fn edge(paragraph: &[LineSegment], lines: &[LineSegment]) -> Option<f64> {
    let left = paragraph.iter().map(|line| line.start).min_by(f64::total_cmp)?;
    let size = paragraph.iter().map(|line| line.size).max_by(f64::total_cmp)?;
    let in_column = |line: &&LineSegment| (left - size..left + 3.0 * size).contains(&line.start);
    let mut ends: Vec<f64> = lines.iter().filter(in_column).map(|line| line.end).collect();
    ends.sort_by(|a, b| b.total_cmp(a));
    let edge = *ends.get(ends.len() / OVER_EDGE)?;
    (edge - left >= MIN_COLUMN * size).then_some(edge)
}

/// Whether the first word of `next` does not fit behind `line`.
fn is_full(line: &LineSegment, next: &LineSegment, edge: f64) -> bool {
    let word = next.text.split(' ').next().map_or(0, |word| word.chars().count());
    let share = word as f64 / next.text.chars().count().max(1) as f64;
    line.end + 0.2 * line.size + share * (next.end - next.start) > edge
}

/// Whether `next` may continue the sentence of `line`: neither has cells, `next` is no item of a list, and it is not
/// indented, except under the mark of an item.
fn continues(line: &LineSegment, next: &LineSegment) -> bool {
    let size = line.size.max(next.size);
    let is_same_size = (line.size - next.size).abs() < 0.15 * size;
    let has_cells = line.text.contains('\t') || next.text.contains('\t');
    let is_indented = next.start > line.start + 0.5 * size && !is_item(&line.text);
    is_same_size && !has_cells && !is_indented && !is_item(&next.text)
}

/// Whether a line begins with the mark of a list, as `• a`, `- a`, `12. a` or `(b) a`.
fn is_item(text: &str) -> bool {
    let mark = text.split(' ').next().unwrap_or("");
    let bare = mark.trim_start_matches('(').trim_end_matches(['.', ')']);
    let is_number = bare.len() < mark.len() && bare.len() <= 3 && bare.chars().all(char::is_alphanumeric);
    is_number || matches!(mark, "•" | "◦" | "▪" | "‣" | "–" | "—" | "-" | "*" | "·")
}

/// Joins the wrapped lines of a page to paragraphs.
pub(super) fn join(lines: Vec<PageLine>) -> Vec<String> {
    let (mut joined, mut continues): (Vec<String>, bool) = (Vec::new(), false);
    for PageLine { text, is_wrapped } in lines {
        match joined.last_mut().filter(|_| continues && !text.is_empty()) {
            Some(line) => {
                let ends = [line.chars().next_back(), text.chars().next()];
                let is_spaceless = ends.into_iter().flatten().all(is_spaceless);
                line.push_str(if is_spaceless { "" } else { " " });
                line.push_str(&text);
            }
            None => joined.push(text),
        }
        continues = is_wrapped;
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of characters half as wide as the font's size, 10, at a distance of 12.
    fn segments(lines: &[(f64, &str)]) -> Vec<LineSegment> {
        let line = |(i, (start, text)): (usize, &(f64, &str))| LineSegment {
            text: (*text).to_owned(),
            start: *start,
            end: start + 5.0 * text.chars().count() as f64,
            base: -12.0 * i as f64,
            size: 10.0,
            last: (0.0, String::new()),
        };
        lines.iter().enumerate().map(line).collect()
    }

    fn check(lines: &[(f64, &str)], expected: &[&str]) {
        let lines = segments(lines);
        let wrapped = wrapped(&lines, &lines);
        let texts = lines.into_iter().map(|line| line.text).zip(wrapped);
        assert_eq!(join(texts.map(|(text, is_wrapped)| PageLine { text, is_wrapped }).collect()), expected);
    }

    #[test]
    fn full_lines_are_joined() {
        let text = [
            (10.0, "Mara Velt keeps the mill at the harbour since"),
            (0.0, "the third of May, when her brother moved away to"),
            (0.0, "the capital. Nobody knows why."),
            (10.0, "The bridge is older and was built by the miners"),
            (0.0, "and repaired in the north."),
        ];
        let expected = [
            "Mara Velt keeps the mill at the harbour since the third of May, when her brother moved away to \
             the capital. Nobody knows why.",
            "The bridge is older and was built by the miners and repaired in the north.",
        ];
        check(&text, &expected);
        let item = [(0.0, "• The keys of the mill are with the keeper of"), (10.0, "the harbour.")];
        check(&item, &["• The keys of the mill are with the keeper of the harbour."]);
    }

    #[test]
    fn lists_code_and_tables_stay() {
        let code = [
            (0.0, "let mill = 1;"),
            (0.0, "let the_longest_name_of_the_harbour = keeper(mill);"),
            (0.0, "let b = 2;"),
        ];
        check(&code, &code.map(|(_, text)| text));
        let cells = [
            (0.0, "The keeper of the mill\tMara Velt of the north"),
            (0.0, "The keeper of the bridge\tCole"),
        ];
        check(&cells, &cells.map(|(_, text)| text));
        check(&[(0.0, "a short one"), (0.0, "and another")], &["a short one", "and another"]);
    }

    #[test]
    fn scripts_without_spaces_are_joined_without() {
        let line = |text: &str| PageLine { text: text.into(), is_wrapped: true };
        assert_eq!(join(vec![line("磨坊自"), line("五月"), line("May"), line("")]), ["磨坊自五月 May", ""]);
    }
}
