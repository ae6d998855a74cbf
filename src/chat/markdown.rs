//! Incremental Markdown parser: blocks that can no longer change are final, and only the last block is parsed again.
//!
//! It knows neither the width of the screen nor colors. Next: [`super::layout`] (blocks to rows), [`super::code`].

use super::code::{CodeHighlighter, language_name};
use super::layout::{BlockBody, QuoteLine, TextBlock};
use super::theme::{StyledSpan, TextRole, TextStyle};
use crate::document_qa::quotes::quoted;
use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use std::ops::Range;

/// A growing Markdown text with its blocks.
#[derive(Clone, Default)]
pub struct Markdown {
    source: String,
    /// Bytes of the source that the `settled` blocks cover.
    parsed: usize,
    settled: Vec<TextBlock>,
    open: Vec<TextBlock>,
    fence: Option<Fence>,
    /// Whether lines that begin with `>` quote files, one quote a line.
    cites: bool,
}

/// An unfinished fenced code block with the state of its highlighter.
#[derive(Clone)]
struct Fence {
    mark: char,
    length: usize,
    indent: usize,
    code: CodeHighlighter,
}

impl Markdown {
    /// Creates an empty text. With `cites`, each line that begins with `>` becomes a [`BlockBody::Quote`].
    pub fn new(cites: bool) -> Self {
        Markdown { cites, ..Default::default() }
    }

    /// Appends text; [`Markdown::settle`] parses it.
    pub fn push(&mut self, text: &str) {
        self.source.push_str(text);
    }

    /// Ends the last line, as no further text follows.
    pub fn finish(&mut self) {
        if !self.source.is_empty() && !self.source.ends_with('\n') {
            self.source.push('\n');
        }
    }

    /// Blocks that no further text changes.
    pub fn settled(&self) -> &[TextBlock] {
        &self.settled
    }

    /// Blocks that further text may change.
    pub fn open(&self) -> &[TextBlock] {
        &self.open
    }

    /// Parses the text that was appended since the last call.
    pub fn settle(&mut self) {
        self.open.clear();
        while self.step() {}
    }

    /// Parses the next part; returns false when only open blocks are left.
    fn step(&mut self) -> bool {
        let rest = &self.source[self.parsed..];
        if let Some(fence) = &mut self.fence {
            let Some(end) = rest.find('\n') else {
                if !rest.is_empty() && !rest.trim_start().starts_with(fence.mark) {
                    self.open.push(fence.clone().line(rest));
                }
                self.open.push(TextBlock::new(BlockBody::FrameBottom));
                return false;
            };
            if fence.ends(&rest[..end]) {
                self.fence = None;
                self.settled.push(TextBlock::new(BlockBody::FrameBottom));
            } else {
                self.settled.push(fence.line(&rest[..end]));
            }
            self.parsed += end + 1;
            return true;
        }
        let chunks = chunks(rest);
        let Some((begin, _)) = chunks.last() else { return false };
        // An incomplete line may continue the previous block: `2` becomes `2. second`.
        let whole = rest[begin.start..].contains('\n');
        let last = (chunks.len() - 1).saturating_sub(usize::from(!whole));
        let open = chunks[last].0.start;
        for (i, (range, events)) in chunks.into_iter().enumerate() {
            let gap = !(self.settled.is_empty() && self.open.is_empty());
            if let Some((fence, header)) = Fence::begins(&rest[range.start..], &events) {
                self.settled.append(&mut self.open);
                self.settled.extend(gap.then(TextBlock::default));
                self.settled.push(frame_top(&events));
                self.fence = Some(fence);
                self.parsed += range.start + header;
                return true;
            }
            let is_quote = self.cites && matches!(events.first(), Some(Event::Start(Tag::BlockQuote(_))));
            let blocks = if is_quote {
                quotes(&rest[range.clone()], range.end < rest.len())
            } else {
                Walker::walk(events)
            };
            let blocks = gap.then(TextBlock::default).into_iter().chain(blocks);
            if i >= last {
                self.open.extend(blocks);
            } else {
                self.settled.extend(blocks);
            }
        }
        self.parsed += rest[..open].rfind('\n').map_or(0, |at| at + 1);
        false
    }
}

impl Fence {
    /// The fence and the bytes of its first line, if this block is fenced code and that line is complete.
    fn begins(text: &str, events: &[Event<'_>]) -> Option<(Self, usize)> {
        let Some(Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language)))) = events.first() else {
            return None;
        };
        let header = text.find('\n')?;
        let line = text[..header].trim_start();
        let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
        let length = line.chars().take_while(|c| *c == mark).count();
        Some((
            Fence { mark, length, indent: header - line.len(), code: CodeHighlighter::new(language) },
            header + 1,
        ))
    }

    fn ends(&self, line: &str) -> bool {
        let marks = line.trim();
        marks.len() >= self.length && marks.chars().all(|c| c == self.mark)
    }

    fn line(&mut self, line: &str) -> TextBlock {
        let indent = line.len() - line.trim_start_matches(' ').len();
        TextBlock::new(BlockBody::Framed(self.code.line(&line[indent.min(self.indent)..])))
    }
}

/// The upper edge of the frame of a code block, with the first word of its info string.
fn frame_top(events: &[Event<'_>]) -> TextBlock {
    let label = match events.first() {
        Some(Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language)))) => language_name(language),
        _ => "",
    };
    TextBlock::new(BlockBody::FrameTop(label.to_owned()))
}

/// The blocks of a block quote that quotes files: a quote per line that begins with `>`. Markdown continues a quote in lines
/// without `>`; these are text of the reply, as in `kimi ask`.
fn quotes(source: &str, has_ended: bool) -> Vec<TextBlock> {
    let mut blocks: Vec<TextBlock> = Vec::new();
    let mut lines = source.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        blocks.extend((!blocks.is_empty()).then(TextBlock::default));
        if line.trim_start().starts_with('>') {
            let complete = has_ended || line.ends_with('\n') || lines.peek().is_some();
            let text = quoted(line).unwrap_or_default().to_owned();
            blocks.push(TextBlock::new(BlockBody::Quote(QuoteLine { text, complete })));
            continue;
        }
        let mut text = line.to_owned();
        while let Some(more) = lines.next_if(|line| !line.trim_start().starts_with('>')) {
            text.push_str(more);
        }
        for (i, (_, events)) in chunks(&text).into_iter().enumerate() {
            blocks.extend((i > 0).then(TextBlock::default));
            blocks.extend(Walker::walk(events));
        }
    }
    blocks
}

fn options() -> Options {
    Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS
}

/// The top-level blocks, each with its range and its events.
fn chunks(text: &str) -> Vec<(Range<usize>, Vec<Event<'_>>)> {
    let (mut chunks, mut depth) = (Vec::<(Range<usize>, Vec<Event<'_>>)>::new(), 0);
    for (event, range) in Parser::new_ext(text, options()).into_offset_iter() {
        if depth == 0 {
            chunks.push((range, Vec::new()));
        }
        match event {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth -= 1,
            _ => {}
        }
        if let Some((_, events)) = chunks.last_mut() {
            events.push(event);
        }
    }
    chunks
}

/// The last code block of a text.
pub fn last_code(text: &str) -> Option<String> {
    let (mut last, mut inside) = (None, false);
    for event in Parser::new_ext(text, options()) {
        match event {
            Event::Start(Tag::CodeBlock(_)) => (last, inside) = (Some(String::new()), true),
            Event::End(TagEnd::CodeBlock) => inside = false,
            Event::Text(text) if inside => last.get_or_insert_default().push_str(&text),
            _ => {}
        }
    }
    last
}

/// The prefix of the rows of a container, such as a list item: of the first row, then of the others.
struct Level {
    first: Option<StyledSpan>,
    rest: StyledSpan,
}

/// Converts the events of a top-level block to layout blocks.
#[derive(Default)]
struct Walker {
    out: Vec<TextBlock>,
    spans: Vec<StyledSpan>,
    styles: Vec<TextStyle>,
    levels: Vec<Level>,
    lists: Vec<Option<u64>>,
    code: Option<(String, String)>,
    table: Option<Vec<Vec<Vec<StyledSpan>>>>,
    link: Option<(String, usize)>,
    gap: bool,
}

impl Walker {
    fn walk(events: Vec<Event<'_>>) -> Vec<TextBlock> {
        let mut walker = Walker::default();
        for event in events {
            walker.event(event);
        }
        walker.flush();
        walker.out
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) => match &mut self.code {
                Some((_, code)) => code.push_str(&text),
                None => self.text(&text, self.style()),
            },
            Event::Code(text) => self.text(&text, TextStyle { role: TextRole::Code, ..self.style() }),
            Event::SoftBreak => self.text(" ", self.style()),
            Event::HardBreak => self.flush(),
            Event::Rule => self.emit(BlockBody::Rule),
            Event::TaskListMarker(done) => {
                self.text(if done { "[x] " } else { "[ ] " }, TextRole::Accent.into())
            }
            Event::Html(text) | Event::InlineHtml(text) => {
                for (i, line) in text.lines().enumerate() {
                    if i > 0 {
                        self.flush();
                    }
                    self.text(line, TextRole::Dim.into());
                }
            }
            Event::InlineMath(text) | Event::DisplayMath(text) | Event::FootnoteReference(text) => {
                self.text(&text, self.style());
            }
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        let style = self.style();
        match tag {
            Tag::Paragraph => self.space(),
            Tag::Heading { level, .. } => {
                let underline = level == HeadingLevel::H1;
                self.styles.push(TextStyle { role: TextRole::Heading, bold: true, underline, ..style });
            }
            Tag::BlockQuote(_) => {
                self.space();
                let bar = StyledSpan::new("▏ ", TextRole::Frame);
                self.levels.push(Level { first: Some(bar.clone()), rest: bar });
                self.gap = false;
            }
            Tag::CodeBlock(kind) => {
                self.flush();
                self.space();
                let language = match kind {
                    CodeBlockKind::Fenced(language) => language.to_string(),
                    CodeBlockKind::Indented => String::new(),
                };
                self.code = Some((language, String::new()));
            }
            Tag::List(start) => {
                self.flush();
                self.lists.push(start);
                self.gap = false;
            }
            Tag::Item => self.item(),
            Tag::Table(_) => {
                self.space();
                self.table = Some(Vec::new());
            }
            Tag::TableHead | Tag::TableRow => {
                if let Some(rows) = &mut self.table {
                    rows.push(Vec::new());
                }
            }
            Tag::Emphasis => self.styles.push(TextStyle { italic: true, ..style }),
            Tag::Strong => self.styles.push(TextStyle { bold: true, ..style }),
            Tag::Strikethrough => self.styles.push(TextStyle { strike: true, ..style }),
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => {
                self.link = Some((dest_url.to_string(), self.spans.len()));
                self.styles.push(TextStyle { role: TextRole::Link, ..style });
            }
            _ => {}
        }
    }

    fn item(&mut self) {
        self.flush();
        let mark = match self.lists.last_mut() {
            Some(Some(n)) => {
                *n += 1;
                format!("{}. ", *n - 1)
            }
            _ => "• ".to_owned(),
        };
        let rest = StyledSpan::new(" ".repeat(mark.chars().count()), TextRole::Plain);
        self.levels.push(Level { first: Some(StyledSpan::new(mark, TextRole::Accent)), rest });
        self.gap = false;
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph => {
                self.flush();
                self.gap = true;
            }
            TagEnd::Heading(_) => {
                self.flush();
                self.styles.pop();
            }
            TagEnd::Item | TagEnd::BlockQuote(_) => {
                self.flush();
                self.levels.pop();
                self.gap = matches!(tag, TagEnd::BlockQuote(_));
            }
            TagEnd::List(_) => {
                self.lists.pop();
                self.gap = true;
            }
            TagEnd::CodeBlock => self.end_code(),
            TagEnd::TableCell => {
                let cell = std::mem::take(&mut self.spans);
                if let Some(row) = self.table.as_mut().and_then(|rows| rows.last_mut()) {
                    row.push(cell);
                }
            }
            TagEnd::Table => {
                if let Some(mut rows) = self.table.take() {
                    rows.iter_mut().take(1).flatten().flatten().for_each(|span| span.style.bold = true);
                    self.emit(BlockBody::Table(rows));
                }
            }
            TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough => {
                self.styles.pop();
            }
            TagEnd::Link | TagEnd::Image => {
                self.styles.pop();
                if let Some((url, from)) = self.link.take() {
                    let shown: String = self.spans[from..].iter().map(|s| s.text.as_str()).collect();
                    if shown != url && !url.is_empty() {
                        self.text(&format!(" ({url})"), TextRole::Dim.into());
                    }
                }
            }
            _ => {}
        }
    }

    fn end_code(&mut self) {
        let Some((language, text)) = self.code.take() else { return };
        let mut code = CodeHighlighter::new(&language);
        self.emit(BlockBody::FrameTop(language_name(&language).to_owned()));
        for line in text.lines() {
            self.emit(BlockBody::Framed(code.line(line)));
        }
        self.emit(BlockBody::FrameBottom);
        self.gap = true;
    }

    fn style(&self) -> TextStyle {
        self.styles.last().copied().unwrap_or_default()
    }

    fn text(&mut self, text: &str, style: TextStyle) {
        self.spans.push(StyledSpan::new(text, style));
    }

    /// Adds an empty row between two blocks of the same container.
    fn space(&mut self) {
        self.flush();
        if std::mem::take(&mut self.gap) {
            let before = self.levels.iter().map(|l| l.rest.clone()).collect();
            self.out.push(TextBlock { first: before, ..Default::default() });
        }
    }

    fn flush(&mut self) {
        if !self.spans.is_empty() {
            let spans = std::mem::take(&mut self.spans);
            self.emit(BlockBody::Words(spans));
        }
    }

    fn emit(&mut self, body: BlockBody) {
        let first = self.before();
        let rest = self.levels.iter().map(|l| l.rest.clone()).collect();
        self.out.push(TextBlock { first, rest, body });
    }

    fn before(&mut self) -> Vec<StyledSpan> {
        self.levels.iter_mut().map(|l| l.first.take().unwrap_or_else(|| l.rest.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(markdown: &Markdown) -> Vec<TextBlock> {
        [markdown.settled(), markdown.open()].concat()
    }

    fn shown(text: &str, width: usize) -> Vec<String> {
        let mut markdown = Markdown::default();
        markdown.push(text);
        markdown.settle();
        let mut rows = Vec::new();
        blocks(&markdown).iter().for_each(|b| b.rows(width, &mut rows));
        rows.iter()
            .map(|r| r.iter().map(|s| s.text.as_str()).collect::<String>().trim_end().to_owned())
            .collect()
    }

    const ALL: &str = "# Head *one*\n\nSome `code` and **bold**\nnext [text](http://x.y).\n\n1. first\n   ```sh\n   echo 1\n   ```\n2. second\n   - inner\n\n> quoted\n> more\n\n```rust\nfn main() {\n    let x = 1; // 你好\n}\n```\n\n| a | b |\n|---|---|\n| 1 | two |\n\n---\n\nend  \nline\n\n- [x] done\n- [ ] not\n\n    indented\n\n<b>html</b>\n";

    #[test]
    fn every_kind_of_block_is_laid_out() {
        let expected = "Head one\n\nSome code and bold next text\n(http://x.y).\n\n1. first\n   ╭─ sh ──────────────────╮\n   │ echo 1                │\n\
                        \u{20}  ╰───────────────────────╯\n2. second\n   • inner\n\n▏ quoted more\n\n\
                        ╭─ rust ───────────────────╮\n│ fn main() {              │\n│     let x = 1; // 你好   │\n│ }                        │\n\
                        ╰──────────────────────────╯\n\n╭───┬─────╮\n│ a │ b   │\n├───┼─────┤\n│ 1 │ two │\n╰───┴─────╯\n\n\
                        ────────────────────────────\n\nend\nline\n\n• [x] done\n• [ ] not\n\n\
                        \u{20} indented\n\n<b>html</b>";
        assert_eq!(shown(ALL, 28).join("\n"), expected);
    }

    #[test]
    fn incremental_parsing_matches_parsing_at_once() {
        let mut whole = Markdown::default();
        whole.push(ALL);
        whole.settle();
        for size in [1, 3, 7, 50] {
            let mut grown = Markdown::default();
            let chars: Vec<char> = ALL.chars().collect();
            for piece in chars.chunks(size) {
                grown.push(&piece.iter().collect::<String>());
                grown.settle();
            }
            assert_eq!(blocks(&grown), blocks(&whole), "pieces of {size}");
        }
    }

    #[test]
    fn only_the_last_block_stays_open() {
        let mut markdown = Markdown::default();
        markdown.push("one\n\ntwo\n\n```c\nint a;\nint");
        markdown.settle();
        assert_eq!((markdown.settled().len(), markdown.open().len()), (6, 2));
        let before = markdown.settled().to_vec();
        markdown.push(" b;\n```\n\nend");
        markdown.settle();
        assert_eq!(markdown.settled()[..6], before[..]);
        assert_eq!(markdown.source[markdown.parsed..], *"end");
    }

    #[test]
    fn each_line_of_a_quote_of_files_is_a_quote() {
        let text = "It is:\n> one\n> two\nSo *three*.\n> four";
        for size in [1, 4, 100] {
            let mut markdown = Markdown::new(true);
            for piece in text.as_bytes().chunks(size) {
                markdown.push(std::str::from_utf8(piece).unwrap());
                markdown.settle();
            }
            let quote = |text: &str, complete| BlockBody::Quote(QuoteLine { text: text.into(), complete });
            let bodies =
                |markdown: &Markdown| blocks(markdown).into_iter().map(|b| b.body).collect::<Vec<_>>();
            let found = bodies(&markdown);
            assert_eq!(
                found[1..5],
                [BlockBody::Blank, quote("one", true), BlockBody::Blank, quote("two", true)]
            );
            assert_eq!((found.len(), &found[8]), (9, &quote("four", false)));
            markdown.finish();
            markdown.settle();
            assert_eq!(bodies(&markdown)[8], quote("four", true));
        }
        let mut plain = Markdown::new(false);
        plain.push(text);
        plain.settle();
        assert!(!blocks(&plain).iter().any(|b| matches!(b.body, BlockBody::Quote(_))));
    }

    #[test]
    fn the_last_block_of_code_is_found() {
        assert_eq!(last_code("```\na\n```\ntext\n```rust\nb\nc\n```\n"), Some("b\nc\n".into()));
        assert_eq!(last_code("none"), None);
    }
}
