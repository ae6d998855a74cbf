//! Wraps blocks of text into rows of the screen by display width, not by bytes or characters.
//!
//! It knows neither Markdown nor colors.

use super::theme::{StyledSpan, TextRole, TextStyle};
use models::visible::visible;
use std::borrow::Cow;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// A row of the screen.
pub type TextRow = Vec<StyledSpan>;

/// A block with the prefixes of its rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextBlock {
    /// Prefix of the first row.
    pub first: Vec<StyledSpan>,
    /// Prefix of the other rows, of the same width.
    pub rest: Vec<StyledSpan>,
    pub body: BlockBody,
}

/// The content of a block.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum BlockBody {
    /// An empty row without text.
    #[default]
    Blank,
    /// Text that is wrapped between words.
    Words(Vec<StyledSpan>),
    /// A line that is wrapped at any character, such as code.
    Line(Vec<StyledSpan>),
    /// A horizontal rule of full width.
    Rule,
    /// The upper edge of a frame, with a label in it.
    FrameTop(String),
    /// A line of code inside a frame, wrapped at any character.
    Framed(Vec<StyledSpan>),
    /// The lower edge of a frame.
    FrameBottom,
    /// A line that quotes a file.
    Quote(QuoteLine),
    /// Rows of cells; the first row is the header.
    Table(Vec<Vec<Vec<StyledSpan>>>),
}

/// A line of a reply that begins with `>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuoteLine {
    pub text: String,
    /// Whether the line has ended.
    pub complete: bool,
}

impl TextBlock {
    /// Creates a block without prefixes.
    pub fn new(body: BlockBody) -> Self {
        TextBlock { body, ..Default::default() }
    }

    /// Appends the rows of the block, of at most `width` columns each.
    pub fn rows(&self, width: usize, out: &mut Vec<TextRow>) {
        let inner = width.saturating_sub(columns(&self.first)).max(1);
        let start = out.len();
        match &self.body {
            BlockBody::Blank => out.push(Vec::new()),
            BlockBody::Words(spans) => wrap(spans, inner, true, out),
            BlockBody::Line(spans) => wrap(spans, inner, false, out),
            BlockBody::Rule => out.push(vec![StyledSpan::new("─".repeat(inner), TextRole::Frame)]),
            BlockBody::FrameTop(label) => out.push(frame_top(label, inner)),
            BlockBody::Framed(spans) => framed(spans, inner, out),
            BlockBody::FrameBottom => out.push(edge("╰", &["─".repeat(inner.saturating_sub(2))], "", "╯")),
            BlockBody::Quote(quote) => {
                wrap(&[StyledSpan::new(&*quote.text, TextRole::Plain)], inner, true, out)
            }
            BlockBody::Table(table) => table_rows(table, inner, out),
        }
        for (i, row) in out[start..].iter_mut().enumerate() {
            let before = if i == 0 { &self.first } else { &self.rest };
            row.splice(0..0, before.iter().cloned());
        }
    }
}

/// The display width of text in columns.
pub fn columns(spans: &[StyledSpan]) -> usize {
    spans.iter().map(|s| s.text.width()).sum()
}

/// The text in at most `width` columns: a longer one is cut and ends with `…`.
pub fn shorten(text: &str, width: usize) -> Cow<'_, str> {
    let text = visible(text);
    if text.width() <= width {
        return text;
    }
    let mut used = 1;
    let fits = |g: &&str| {
        used += g.width();
        used <= width
    };
    Cow::Owned(text.graphemes(true).take_while(fits).chain(["…"]).collect())
}

/// A grapheme with its width. Control characters are made visible; a tab is four spaces.
struct Cell<'a> {
    text: Cow<'a, str>,
    width: usize,
    style: TextStyle,
}

fn cells(spans: &[StyledSpan]) -> Vec<Cell<'_>> {
    let mut cells = Vec::new();
    for span in spans {
        for text in span.text.graphemes(true) {
            let text = match text {
                "\t" => "    ".into(),
                "\n" | "\r\n" => " ".into(),
                _ => visible(text),
            };
            let width = text.width();
            if width > 0 {
                cells.push(Cell { text, width, style: span.style });
            }
        }
    }
    cells
}

/// Wraps into rows of at most `width` columns. Words longer than a row are cut.
fn wrap(spans: &[StyledSpan], width: usize, words: bool, out: &mut Vec<TextRow>) {
    let cells = cells(spans);
    let (mut start, mut used, mut break_at) = (0, 0, 0);
    let mut at = 0;
    while at < cells.len() {
        let cell = &cells[at];
        if words && at > start && breaks(&cells[at - 1], cell) {
            break_at = at;
        }
        if used + cell.width > width && at > start {
            let space = cell.text == " ";
            let end = if !words || space || break_at <= start { at } else { break_at };
            let shown = if words { without_spaces(&cells[start..end]) } else { &cells[start..end] };
            out.push(row(shown));
            start = end;
            // Spaces at a line break are dropped.
            while words && start < cells.len() && cells[start].text == " " {
                start += 1;
            }
            (at, used, break_at) = (start, 0, start);
            continue;
        }
        used += cell.width;
        at += 1;
    }
    if start < cells.len() || cells.is_empty() {
        out.push(row(&cells[start..]));
    }
}

fn without_spaces<'a, 'b>(cells: &'a [Cell<'b>]) -> &'a [Cell<'b>] {
    let last = cells.iter().rposition(|cell| cell.text != " ");
    &cells[..last.map_or(0, |at| at + 1)]
}

/// Whether a line break is allowed between two graphemes.
fn breaks(before: &Cell<'_>, after: &Cell<'_>) -> bool {
    let closing =
        |t: &str| t.starts_with(['，', '。', '、', '！', '？', '；', '：', '）', '」', '』', '》', '】']);
    let wide = before.width == 2 || after.width == 2;
    after.text != " " && (matches!(&*before.text, " " | "-") || (wide && !closing(&after.text)))
}

fn row(cells: &[Cell<'_>]) -> TextRow {
    let mut row: TextRow = Vec::new();
    for cell in cells {
        match row.last_mut() {
            Some(last) if last.style == cell.style => last.text.push_str(&cell.text),
            _ => row.push(StyledSpan::new(&*cell.text, cell.style)),
        }
    }
    row
}

/// A horizontal edge of a frame: `line`s between the corners, joined by `joint`.
fn edge(left: &str, lines: &[String], joint: &str, right: &str) -> TextRow {
    vec![StyledSpan::new(format!("{left}{}{right}", lines.join(joint)), TextRole::Frame)]
}

fn frame_top(label: &str, width: usize) -> TextRow {
    let label = if label.is_empty() { String::new() } else { format!(" {} ", visible(label)) };
    if label.width() + 4 > width {
        return edge("╭", &["─".repeat(width.saturating_sub(2))], "", "╮");
    }
    let rest = format!("{}╮", "─".repeat(width - 3 - label.width()));
    let span = |text: String, role| StyledSpan::new(text, role);
    vec![span("╭─".into(), TextRole::Frame), span(label, TextRole::Dim), span(rest, TextRole::Frame)]
}

fn framed(spans: &[StyledSpan], width: usize, out: &mut Vec<TextRow>) {
    let inner = width.saturating_sub(FRAME).max(1);
    let start = out.len();
    wrap(spans, inner, false, out);
    for row in &mut out[start..] {
        let pad = inner.saturating_sub(columns(row));
        row.insert(0, StyledSpan::new("│ ", TextRole::Frame));
        row.push(StyledSpan::new(format!("{} │", " ".repeat(pad)), TextRole::Frame));
    }
}

/// Columns of the two sides of a frame, each with a space.
const FRAME: usize = 4;
/// Columns between the texts of two columns of a table.
const GAP: usize = 3;

fn table_rows(table: &[Vec<Vec<StyledSpan>>], width: usize, out: &mut Vec<TextRow>) {
    let widths = column_widths(table, width);
    let lines: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
    out.push(edge("╭", &lines, "┬", "╮"));
    for (i, cells) in table.iter().enumerate() {
        let mut wrapped: Vec<Vec<TextRow>> = Vec::new();
        for (cell, width) in cells.iter().zip(&widths) {
            let mut rows = Vec::new();
            wrap(cell, *width, true, &mut rows);
            wrapped.push(rows);
        }
        wrapped.resize(widths.len(), Vec::new());
        for line in 0..wrapped.iter().map(Vec::len).max().unwrap_or(0) {
            let mut row = vec![StyledSpan::new("│ ", TextRole::Frame)];
            for (rows, width) in wrapped.iter().zip(&widths) {
                let cell = rows.get(line).cloned().unwrap_or_default();
                let pad = width.saturating_sub(columns(&cell));
                row.extend(cell);
                row.push(StyledSpan::new(format!("{} │ ", " ".repeat(pad)), TextRole::Frame));
            }
            if let Some(last) = row.last_mut() {
                last.text.pop();
            }
            out.push(row);
        }
        if i == 0 {
            out.push(edge("├", &lines, "┼", "┤"));
        }
    }
    out.push(edge("╰", &lines, "┴", "╯"));
}

/// The widths of the contents; if they do not fit, the widest columns are narrowed first.
fn column_widths(table: &[Vec<Vec<StyledSpan>>], width: usize) -> Vec<usize> {
    let count = table.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |i: usize| table.iter().filter_map(|row| row.get(i)).map(|c| columns(c)).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..count).map(|i| widest(i).max(1)).collect();
    let available = width.saturating_sub(FRAME + GAP * count.saturating_sub(1)).max(count);
    while widths.iter().sum::<usize>() > available {
        let most = widths.iter().copied().max().unwrap_or(1);
        let next = widths.iter().copied().filter(|w| *w < most).max().unwrap_or(1).max(1);
        let (at_most, excess) =
            (widths.iter().filter(|w| **w == most).count(), widths.iter().sum::<usize>() - available);
        let less = (most - next).min(excess.div_ceil(at_most)).max(1);
        let mut left = excess;
        for w in widths.iter_mut().filter(|w| **w == most) {
            let cut = less.min(left);
            *w -= cut;
            left -= cut;
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid(body: BlockBody, width: usize) -> Vec<String> {
        let mut rows = Vec::new();
        TextBlock::new(body).rows(width, &mut rows);
        rows.iter().map(|r| r.iter().map(|s| s.text.as_str()).collect()).collect()
    }

    fn words(text: &str) -> BlockBody {
        BlockBody::Words(vec![StyledSpan::new(text, TextRole::Plain)])
    }

    #[test]
    fn rows_break_between_words_or_wide_characters() {
        assert_eq!(laid(words("one two three"), 8), ["one two", "three"]);
        assert_eq!(laid(words("one two"), 7), ["one two"]);
        assert_eq!(laid(words("abcdefghij k"), 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(laid(words("你好，世界"), 5), ["你", "好，", "世界"]);
        assert_eq!(laid(words("a 👩‍👩‍👧‍👦 b"), 4), ["a 👩‍👩‍👧‍👦", "b"]);
        assert_eq!(laid(words(""), 4), [""]);
    }

    #[test]
    fn lines_keep_their_spaces_and_show_control_characters() {
        let line = |text: &str| BlockBody::Line(vec![StyledSpan::new(text, TextRole::Plain)]);
        assert_eq!(laid(line("  a  bcd"), 4), ["  a ", " bcd"]);
        assert_eq!(laid(line("\tx\x1b[31my"), 20), ["    x^[[31my"]);
        assert_eq!(laid(line("a\u{202e}b\u{9b}m"), 40), ["a<U+202E>b<U+009B>m"]);
        assert_eq!(
            laid(line("宽宽"), 1),
            ["宽", "宽"],
            "a wide character that does not fit gets its own row"
        );
    }

    #[test]
    fn tables_fit_and_the_widest_column_is_narrowed() {
        let cell = |t: &str| vec![StyledSpan::new(t, TextRole::Plain)];
        let table = vec![vec![cell("k"), cell("value")], vec![cell("好"), cell("a longer one")]];
        let rows = laid(BlockBody::Table(table.clone()), 40);
        assert_eq!(
            rows,
            [
                "╭────┬──────────────╮",
                "│ k  │ value        │",
                "├────┼──────────────┤",
                "│ 好 │ a longer one │",
                "╰────┴──────────────╯"
            ]
        );
        let narrow = laid(BlockBody::Table(table), 15);
        assert_eq!(
            narrow,
            [
                "╭────┬────────╮",
                "│ k  │ value  │",
                "├────┼────────┤",
                "│ 好 │ a      │",
                "│    │ longer │",
                "│    │ one    │",
                "╰────┴────────╯"
            ]
        );
    }

    #[test]
    fn long_text_is_cut_by_columns() {
        assert_eq!([shorten("Who is it?", 10), shorten("Who is it?", 9)], ["Who is it?", "Who is i…"]);
        assert_eq!([shorten("你好世界", 7), shorten("你好世界", 2)], ["你好世…", "…"]);
    }

    #[test]
    fn code_is_framed() {
        let code = |text: &str| BlockBody::Framed(vec![StyledSpan::new(text, TextRole::Plain)]);
        assert_eq!(laid(BlockBody::FrameTop("rust".into()), 12), ["╭─ rust ───╮"]);
        assert_eq!(laid(code("let a;"), 12), ["│ let a;   │"]);
        assert_eq!(laid(code("let 你好 = 1;"), 12), ["│ let 你好 │", "│  = 1;    │"]);
        assert_eq!(laid(BlockBody::FrameBottom, 12), ["╰──────────╯"]);
        assert_eq!(laid(BlockBody::FrameTop("a long label".into()), 12), ["╭──────────╮"]);
        assert_eq!(laid(code("ab"), 2), ["│ a │", "│ b │"], "too narrow for a frame");
    }

    #[test]
    fn prefixes_count_towards_the_width() {
        let block = TextBlock {
            first: vec![StyledSpan::new("• ", TextRole::Accent)],
            rest: vec![StyledSpan::new("  ", TextRole::Plain)],
            body: words("one two"),
        };
        let mut rows = Vec::new();
        block.rows(5, &mut rows);
        let text: Vec<String> = rows.iter().map(|r| r.iter().map(|s| s.text.as_str()).collect()).collect();
        assert_eq!(text, ["• one", "  two"]);
    }
}
