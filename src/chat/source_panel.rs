//! The source panel: the text of a file around the selected quote, or a message that no file has it.
//!
//! It lays out rows and scrolls them. Next: [`super::view`], which draws them.

use super::layout::{BlockBody, TextBlock, TextRow};
use super::sources::{Excerpt, Sources};
use super::theme::{StyledSpan, TextRole, TextStyle};
use super::transcript_item::ShownQuote;

/// The rows of the panel, and the scroll position.
#[derive(Default)]
pub struct SourcePanel {
    title: String,
    rows: Vec<TextRow>,
    /// Index of the first visible row.
    top: usize,
    height: usize,
    /// The quote and the width that the rows are laid out for.
    shown: Option<(ShownQuote, usize)>,
}

impl SourcePanel {
    /// Shows a quote in an area of this size. Another quote is scrolled into view.
    pub fn arrange(&mut self, quote: &ShownQuote, sources: &Sources, width: usize, height: usize) {
        let is_same = |(shown, columns): &(ShownQuote, usize)| {
            (&shown.text, &shown.span, *columns) == (&quote.text, &quote.span, width)
        };
        if !(self.shown.as_ref().is_some_and(is_same) && self.height == height) {
            self.rows.clear();
            let row = match &quote.span {
                Some(span) => {
                    self.title = span.place.with_file();
                    excerpt_rows(&sources.excerpt(span), width, &mut self.rows)
                }
                None => {
                    self.title = "not in the files".into();
                    missing_rows(&quote.text, width, &mut self.rows);
                    0
                }
            };
            self.height = height;
            self.top = row.saturating_sub(height / 3).min(self.last_top());
            self.shown = Some((quote.clone(), width));
        }
    }

    pub fn title(&self) -> &str {
        &self.title
    }

    fn last_top(&self) -> usize {
        self.rows.len().saturating_sub(self.height)
    }

    /// Scrolls by rows, upwards if negative.
    pub fn scroll(&mut self, rows: isize) {
        self.top = self.top.saturating_add_signed(rows).min(self.last_top());
    }

    /// The first visible row and the number of rows.
    pub fn position(&self) -> (usize, usize) {
        (self.top, self.rows.len())
    }

    pub fn visible(&self) -> impl Iterator<Item = &TextRow> {
        self.rows.iter().skip(self.top).take(self.height)
    }
}

/// Appends the lines of an excerpt with their numbers; returns the first row of the quote.
fn excerpt_rows(excerpt: &Excerpt<'_>, width: usize, rows: &mut Vec<TextRow>) -> usize {
    let last = excerpt.line + excerpt.text.trim_end_matches('\n').matches('\n').count();
    let digits = last.to_string().len();
    let (mut start, mut quote_row) = (0, None);
    let text = excerpt.text.strip_suffix('\n').unwrap_or(excerpt.text);
    for (number, line) in (excerpt.line..).zip(text.split('\n')) {
        let within = |at: usize| at.clamp(start, start + line.len()) - start;
        let (from, to) = (within(excerpt.quote.start), within(excerpt.quote.end));
        let spans = [
            (&line[..from], TextRole::Plain),
            (&line[from..to], TextRole::Highlight),
            (&line[to..], TextRole::Plain),
        ];
        if from < to {
            quote_row.get_or_insert(rows.len());
        }
        let spans = spans.into_iter().filter(|(text, _)| !text.is_empty());
        let block = TextBlock {
            first: vec![StyledSpan::new(format!("{number:>digits$}  "), TextRole::Dim)],
            rest: vec![StyledSpan::new(" ".repeat(digits + 2), TextRole::Dim)],
            body: BlockBody::Words(spans.map(|(text, role)| StyledSpan::new(text, role)).collect()),
        };
        block.rows(width, rows);
        start += line.len() + 1;
    }
    quote_row.unwrap_or(0)
}

fn missing_rows(quote: &str, width: usize, rows: &mut Vec<TextRow>) {
    let missing = TextStyle { italic: true, ..TextRole::Unverified.into() };
    let mut words = |text: &str, style: TextStyle| {
        TextBlock::new(BlockBody::Words(vec![StyledSpan::new(text, style)])).rows(width, rows);
        rows.push(TextRow::new());
    };
    words("No attached file has this text:", TextStyle::default());
    words(quote, missing);
    words("The model may have invented or reworded it.", TextRole::Dim.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(rows: &[TextRow]) -> Vec<String> {
        let row = |r: &TextRow| r.iter().map(|s| s.text.as_str()).collect::<String>().trim_end().to_owned();
        rows.iter().map(row).collect()
    }

    #[test]
    fn the_quote_is_highlighted_in_its_lines() {
        let excerpt = Excerpt { text: "one\ntwo words\n\nend of it", line: 9, quote: 8..18 };
        let mut rows = Vec::new();
        assert_eq!(excerpt_rows(&excerpt, 40, &mut rows), 1);
        assert_eq!(text(&rows), [" 9  one", "10  two words", "11", "12  end of it"]);
        let marked: Vec<&str> =
            rows.iter().flatten().filter(|s| s.style.role == TextRole::Highlight).map(|s| &*s.text).collect();
        assert_eq!(marked, ["words", "end"]);
        rows.clear();
        assert_eq!(excerpt_rows(&excerpt, 8, &mut rows), 1);
        assert_eq!(
            text(&rows),
            [" 9  one", "10  two", "    word", "    s", "11", "12  end", "    of", "    it"]
        );
    }
}
