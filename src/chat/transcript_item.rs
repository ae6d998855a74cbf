//! A message, a reply or a note of the transcript, with its rows and the quotes in them.
//!
//! It does not scroll. Next: [`super::markdown`], [`super::sources`].

use super::layout::{BlockBody, QuoteLine, TextBlock, TextRow};
use super::markdown::Markdown;
use super::sources::Sources;
use super::store::{Author, Turn};
use super::theme::{StyledSpan, TextRole, TextStyle};
use crate::document_qa::quotes::QuoteSpan;
use crate::generation::markup::ReplyEvent;
use crate::io::units::{format_size, grouped};
use std::ops::Range;
use unicode_width::UnicodeWidthStr;

/// Columns of prose and code: longer lines are hard to read. Tables may be wider.
const MEASURE: usize = 100;
/// Columns before all text, beside which the user's messages have a bar.
const INDENT: &str = "  ";
/// Lines and bytes that a folded user message shows.
const FOLDED_LINES: usize = 20;
const FOLDED_BYTES: usize = 4000;
/// Columns between the names of a [`ItemKind::List`] and their meanings.
const GAP: usize = 3;

pub struct TranscriptItem {
    pub kind: ItemKind,
    pub rows: Vec<TextRow>,
    /// The quotes of a reply, from top to bottom.
    pub quotes: Vec<ShownQuote>,
    settled: Settled,
    pub stale: bool,
}

/// Numbers of rows, of blocks and of quotes that are final.
#[derive(Clone, Copy, Default)]
struct Settled {
    rows: usize,
    blocks: usize,
    quotes: usize,
}

pub enum ItemKind {
    User(Turn),
    Reply(Box<ShownReply>),
    Note(String, TextRole),
    /// A heading and rows of a name and its meaning, such as commands.
    List(String, Vec<(String, String)>),
}

/// A reply: its reasoning, its text, and the text's blocks.
#[derive(Default)]
pub struct ShownReply {
    reasoning: String,
    text: String,
    answer: Markdown,
}

/// A quote in a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownQuote {
    pub text: String,
    /// Its first location in the attached files; None if they do not have it.
    pub span: Option<QuoteSpan>,
    /// Its rows in the item.
    pub rows: Range<usize>,
}

/// What the rows of an item depend on.
pub struct ItemLayout<'a> {
    pub width: usize,
    pub unfolded: bool,
    /// The name that is shown above replies.
    pub model: &'a str,
    pub sources: &'a Sources,
}

impl ItemLayout<'_> {
    /// Appends the rows of a block, indented.
    fn push(&self, block: &TextBlock, rows: &mut Vec<TextRow>) {
        let start = rows.len();
        let most = if matches!(block.body, BlockBody::Table(_)) { usize::MAX } else { MEASURE };
        block.rows(self.width.saturating_sub(INDENT.len()).min(most), rows);
        for row in rows[start..].iter_mut().filter(|row| !row.is_empty()) {
            row.insert(0, plain(INDENT));
        }
    }

    /// Appends the rows of a quote, beneath which its place is shown once the quote is complete.
    fn push_quote(&self, quote: &QuoteLine, rows: &mut Vec<TextRow>, quotes: &mut Vec<ShownQuote>) {
        if quote.text.is_empty() {
            return;
        }
        let span = quote.complete.then(|| self.sources.locate(&quote.text)).flatten();
        let (mark, role, place) = match &span {
            _ if !quote.complete => ("┃ ", TextRole::Frame, None),
            Some(span) => ("┃ ", TextRole::Verified, Some(format!("✓ {}", span.place.with_file()))),
            None => ("┊ ", TextRole::Unverified, Some("✗ not in the files".to_owned())),
        };
        let is_missing = role == TextRole::Unverified;
        let style =
            TextStyle { italic: is_missing, ..(if is_missing { role } else { TextRole::Plain }).into() };
        let bar = vec![StyledSpan::new(mark, role)];
        let block = |text: &str, style: TextStyle| TextBlock {
            first: bar.clone(),
            rest: bar.clone(),
            body: BlockBody::Words(vec![StyledSpan::new(text, style)]),
        };
        let start = rows.len();
        self.push(&block(&quote.text, style), rows);
        place.iter().for_each(|place| self.push(&block(place, role.into()), rows));
        quotes.push(ShownQuote { text: quote.text.clone(), span, rows: start..rows.len() });
    }
}

impl ShownReply {
    pub fn push(&mut self, event: &ReplyEvent) {
        let before = self.text.len();
        event.append_to(&mut self.reasoning, &mut self.text);
        let text = &self.text[before..];
        // Models put empty lines between reasoning and answer.
        let is_first = !self.reasoning.is_empty() && self.text[..before].trim().is_empty();
        self.answer.push(if is_first { text.trim_start() } else { text });
    }

    fn reasoning_blocks(&self, unfolded: bool) -> Vec<TextBlock> {
        if self.reasoning.trim().is_empty() {
            return Vec::new();
        }
        let words = self.reasoning.split_whitespace().count();
        let verb = if self.text.is_empty() { "thinking" } else { "thought" };
        let mark = if unfolded { "▾" } else { "▸" };
        let head = line(&format!("{mark} {verb}, {words} words (Ctrl-R)"), TextRole::Dim);
        let style = TextStyle { italic: true, ..TextRole::Dim.into() };
        let words = |l: &str| TextBlock::new(BlockBody::Words(vec![StyledSpan::new(l, style)]));
        let lines = self.reasoning.trim().lines().filter(|_| unfolded).map(words);
        std::iter::once(head).chain(lines).chain([TextBlock::default()]).collect()
    }
}

impl TranscriptItem {
    pub fn new(kind: ItemKind) -> Self {
        TranscriptItem {
            kind,
            rows: Vec::new(),
            quotes: Vec::new(),
            settled: Settled::default(),
            stale: true,
        }
    }

    /// The item of a turn. `cites` says whether quotes in it are looked up in files; `complete`, whether it has ended.
    pub fn of(turn: &Turn, cites: bool, complete: bool) -> Self {
        TranscriptItem::new(match turn.role {
            Author::User => ItemKind::User(turn.clone()),
            Author::Assistant => {
                let mut reply = ShownReply { answer: Markdown::new(cites), ..Default::default() };
                reply.push(&ReplyEvent::Reasoning(turn.reasoning.clone()));
                reply.push(&ReplyEvent::Text(turn.text.clone()));
                if complete {
                    reply.answer.finish();
                }
                ItemKind::Reply(Box::new(reply))
            }
        })
    }

    /// Appends a part to a reply.
    pub fn push_event(&mut self, event: &ReplyEvent) {
        if let ItemKind::Reply(reply) = &mut self.kind {
            reply.push(event);
            self.stale = true;
        }
    }

    /// Ends a reply, whose last line is complete now.
    pub fn finish(&mut self) {
        if let ItemKind::Reply(reply) = &mut self.kind {
            reply.answer.finish();
            self.stale = true;
        }
    }

    pub fn shows(&self, turn: &Turn) -> bool {
        match &self.kind {
            ItemKind::User(own) => own == turn,
            ItemKind::Reply(reply) => {
                turn.role == Author::Assistant
                    && (&reply.reasoning, &reply.text) == (&turn.reasoning, &turn.text)
            }
            ItemKind::Note(..) | ItemKind::List(..) => false,
        }
    }

    /// Lays out the item if it is stale; `relayout` discards its final rows too.
    pub fn lay_out(&mut self, layout: &ItemLayout<'_>, relayout: bool) {
        if !self.stale && !relayout {
            return;
        }
        self.stale = false;
        let rows = &mut self.rows;
        match &mut self.kind {
            ItemKind::User(turn) => {
                rows.clear();
                let blocks = user_blocks(turn, layout.unfolded);
                blocks.iter().for_each(|b| b.rows(layout.width.min(MEASURE + INDENT.len()), rows));
            }
            ItemKind::Note(text, role) => {
                rows.clear();
                text.lines().for_each(|l| layout.push(&line(l, *role), rows));
            }
            ItemKind::List(heading, entries) => {
                rows.clear();
                list_blocks(heading, entries).iter().for_each(|b| layout.push(b, rows));
            }
            ItemKind::Reply(reply) => {
                lay_out_reply(reply, layout, relayout, (rows, &mut self.quotes, &mut self.settled))
            }
        }
        self.rows.push(TextRow::new());
    }
}

/// Appends the rows of the blocks that are new, after those that are final.
fn lay_out_reply(
    reply: &mut ShownReply,
    layout: &ItemLayout<'_>,
    relayout: bool,
    (rows, quotes, settled): (&mut Vec<TextRow>, &mut Vec<ShownQuote>, &mut Settled),
) {
    reply.answer.settle();
    if relayout || settled.blocks == 0 {
        rows.clear();
        let name = StyledSpan::new(layout.model, TextStyle { bold: true, ..TextRole::Model.into() });
        layout.push(&TextBlock::new(BlockBody::Line(vec![name])), rows);
        reply.reasoning_blocks(layout.unfolded).iter().for_each(|b| layout.push(b, rows));
        *settled = Settled { rows: rows.len(), blocks: 0, quotes: 0 };
    }
    rows.truncate(settled.rows);
    quotes.truncate(settled.quotes);
    let mut push = |block: &TextBlock| {
        match &block.body {
            BlockBody::Quote(quote) => layout.push_quote(quote, rows, quotes),
            _ => layout.push(block, rows),
        }
        (rows.len(), quotes.len())
    };
    let blocks = reply.answer.settled();
    for block in &blocks[settled.blocks..] {
        (settled.rows, settled.quotes) = push(block);
    }
    settled.blocks = blocks.len();
    for block in reply.answer.open() {
        push(block);
    }
}

fn plain(text: &str) -> StyledSpan {
    StyledSpan::new(text, TextRole::Plain)
}

fn line(text: &str, role: TextRole) -> TextBlock {
    TextBlock::new(BlockBody::Line(vec![StyledSpan::new(text, role)]))
}

/// The blocks of a heading and of rows of a name and its meaning.
fn list_blocks(heading: &str, entries: &[(String, String)]) -> Vec<TextBlock> {
    let bold = TextStyle { bold: true, ..TextStyle::default() };
    let heading = TextBlock::new(BlockBody::Words(vec![StyledSpan::new(heading, bold)]));
    let columns = entries.iter().map(|(name, _)| name.width()).max().unwrap_or(0) + GAP;
    let entry = |(name, meaning): &(String, String)| TextBlock {
        first: vec![StyledSpan::new(format!("{name:<columns$}"), TextRole::Accent)],
        rest: vec![plain(&" ".repeat(columns))],
        body: BlockBody::Words(vec![plain(meaning)]),
    };
    [heading, TextBlock::default()].into_iter().chain(entries.iter().map(entry)).collect()
}

/// The blocks of a user message; a long one is cut and followed by its remaining size, unless unfolded.
fn user_blocks(turn: &Turn, unfolded: bool) -> Vec<TextBlock> {
    let dim = TextStyle::from(TextRole::Dim);
    let name = ("You".to_owned(), TextStyle { bold: true, ..TextRole::User.into() });
    let files = turn.files.iter().map(|f| {
        let lines = f.text.lines().count();
        let noun = if lines == 1 { "line" } else { "lines" };
        (format!("[{}: {} {noun}, {}]", f.name, grouped(lines), format_size(f.text.len() as u64)), dim)
    });
    let mut cut = turn.text.len();
    if !unfolded {
        let lines = turn.text.match_indices('\n').nth(FOLDED_LINES - 1).map_or(cut, |(at, _)| at);
        cut = (0..=lines.min(FOLDED_BYTES)).rev().find(|at| turn.text.is_char_boundary(*at)).unwrap_or(0);
    }
    let lines = turn.text[..cut].split('\n').map(|l| (l.to_owned(), TextStyle::default()));
    let left = turn.text.len() - cut;
    let more = (left > 0).then(|| (format!("… {left} bytes more (Ctrl-R)"), dim));
    let bar = vec![StyledSpan::new("▌ ", TextRole::User)];
    let block = |(text, style)| TextBlock {
        first: bar.clone(),
        rest: bar.clone(),
        body: BlockBody::Words(vec![StyledSpan::new(text, style)]),
    };
    std::iter::once(name).chain(files).chain(lines).chain(more).map(block).collect()
}
