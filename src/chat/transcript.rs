//! Messages and notes as wrapped rows: laid out once for a width, then only where they change.
//!
//! Scrolling counts wrapped rows. Next: [`super::view`], which draws the visible rows.

use super::layout::{BlockBody, TextBlock, TextRow};
use super::markdown::Markdown;
use super::store::{Author, StoredChat, Turn};
use super::theme::{StyledSpan, TextRole, TextStyle};
use crate::generation::reply_parser::ReplyEvent;
use crate::io::units::counted;

/// Messages and notes with their rows and the scroll position.
#[derive(Default)]
pub struct Transcript {
    items: Vec<TranscriptItem>,
    /// The first row of each item, then the total.
    starts: Vec<usize>,
    width: usize,
    height: usize,
    /// The first visible row; None while the view follows the end.
    top: Option<usize>,
    unfolded: bool,
}

struct TranscriptItem {
    kind: ItemKind,
    rows: Vec<TextRow>,
    /// The number of rows and of blocks that are final.
    settled: (usize, usize),
    stale: bool,
}

enum ItemKind {
    User(Turn),
    Reply(Box<ShownReply>),
    Note(String, TextRole),
}

/// A reply: its reasoning, its text, and the text's blocks.
#[derive(Default)]
struct ShownReply {
    reasoning: String,
    text: String,
    answer: Markdown,
}

/// Lines and bytes that a folded user message shows.
const FOLDED_LINES: usize = 20;
const FOLDED_BYTES: usize = 4000;

impl ShownReply {
    fn push(&mut self, event: &ReplyEvent) {
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
    fn new(kind: ItemKind) -> Self {
        TranscriptItem { kind, rows: Vec::new(), settled: (0, 0), stale: true }
    }

    fn of(turn: &Turn) -> Self {
        TranscriptItem::new(match turn.role {
            Author::User => ItemKind::User(turn.clone()),
            Author::Assistant => {
                let mut reply = ShownReply::default();
                reply.push(&ReplyEvent::Reasoning(turn.reasoning.clone()));
                reply.push(&ReplyEvent::Text(turn.text.clone()));
                ItemKind::Reply(Box::new(reply))
            }
        })
    }

    fn shows(&self, turn: &Turn) -> bool {
        match &self.kind {
            ItemKind::User(own) => own == turn,
            ItemKind::Reply(reply) => {
                turn.role == Author::Assistant
                    && (&reply.reasoning, &reply.text) == (&turn.reasoning, &turn.text)
            }
            ItemKind::Note(..) => false,
        }
    }

    /// Lays out the item if it is stale; `relayout` discards its final rows too.
    fn lay_out(&mut self, width: usize, unfolded: bool, relayout: bool) {
        if !self.stale && !relayout {
            return;
        }
        self.stale = false;
        match &mut self.kind {
            ItemKind::User(turn) => {
                self.rows.clear();
                user_blocks(turn, unfolded).iter().for_each(|b| b.rows(width, &mut self.rows));
            }
            ItemKind::Note(text, role) => {
                self.rows.clear();
                text.lines().for_each(|l| line(l, *role).rows(width, &mut self.rows));
            }
            ItemKind::Reply(reply) => {
                reply.answer.settle();
                if relayout || reply.answer.settled().is_empty() || self.settled.1 == 0 {
                    self.rows.clear();
                    reply.reasoning_blocks(unfolded).iter().for_each(|b| b.rows(width, &mut self.rows));
                    self.settled = (self.rows.len(), 0);
                }
                self.rows.truncate(self.settled.0);
                let (blocks, open) = (reply.answer.settled(), reply.answer.open());
                blocks[self.settled.1..].iter().for_each(|b| b.rows(width, &mut self.rows));
                self.settled = (self.rows.len(), blocks.len());
                open.iter().for_each(|b| b.rows(width, &mut self.rows));
            }
        }
        self.rows.push(TextRow::new());
    }
}

fn line(text: &str, role: TextRole) -> TextBlock {
    TextBlock::new(BlockBody::Line(vec![StyledSpan::new(text, role)]))
}

/// The blocks of a user message; a long one is cut and followed by its remaining size, unless unfolded.
fn user_blocks(turn: &Turn, unfolded: bool) -> Vec<TextBlock> {
    let files = turn.files.iter().map(|f| {
        let (lines, bytes) = (counted(f.text.lines().count(), "line"), counted(f.text.len(), "byte"));
        let text = format!("[{}: {lines}, {bytes}]", f.name);
        (text, TextStyle::from(TextRole::Dim))
    });
    let mut cut = turn.text.len();
    if !unfolded {
        let lines = turn.text.match_indices('\n').nth(FOLDED_LINES - 1).map_or(cut, |(at, _)| at);
        cut = (0..=lines.min(FOLDED_BYTES)).rev().find(|at| turn.text.is_char_boundary(*at)).unwrap_or(0);
    }
    let lines = turn.text[..cut]
        .split('\n')
        .map(|l| (l.to_owned(), TextStyle { bold: true, ..TextStyle::default() }));
    let left = turn.text.len() - cut;
    let more = (left > 0).then(|| (format!("… {left} bytes more (Ctrl-R)"), TextStyle::from(TextRole::Dim)));
    let all = files.chain(lines).chain(more).enumerate();
    all.map(|(i, (text, style))| TextBlock {
        first: vec![StyledSpan::new(if i == 0 { "> " } else { "  " }, TextRole::Accent)],
        rest: vec![StyledSpan::new("  ", TextRole::Plain)],
        body: BlockBody::Words(vec![StyledSpan::new(text, style)]),
    })
    .collect()
}

impl Transcript {
    /// Shows a chat. Items of unchanged turns keep their layout; notes after the first changed turn are removed.
    pub fn show(&mut self, chat: &StoredChat) {
        let mut turns = chat.turns.iter().peekable();
        let mut keep = 0;
        for (i, item) in self.items.iter().enumerate() {
            match &item.kind {
                ItemKind::Note(..) => {}
                _ if turns.next_if(|turn| item.shows(turn)).is_some() => keep = i + 1,
                _ => break,
            }
        }
        self.items.truncate(keep);
        self.items.extend(turns.map(TranscriptItem::of));
        self.top = None;
    }

    /// Appends a part to the last reply.
    pub fn push_event(&mut self, event: &ReplyEvent) {
        let last = self.items.iter_mut().rev().find(|item| matches!(item.kind, ItemKind::Reply(_)));
        if let Some(TranscriptItem { kind: ItemKind::Reply(reply), stale, .. }) = last {
            reply.push(event);
            *stale = true;
        }
    }

    /// Adds a note of the program after the messages.
    pub fn note(&mut self, text: &str, role: TextRole) {
        self.items.push(TranscriptItem::new(ItemKind::Note(text.to_owned(), role)));
        self.top = None;
    }

    /// Unfolds or folds reasoning and long messages.
    pub fn unfold(&mut self, unfolded: bool) {
        self.unfolded = unfolded;
        self.width = 0;
    }

    pub fn unfolded(&self) -> bool {
        self.unfolded
    }

    /// Lays out new items for an area of this size. When the width changes, the topmost message stays at the top.
    pub fn arrange(&mut self, width: usize, height: usize) {
        let width_changed = width != self.width;
        let anchor = self.top.filter(|_| width_changed).map(|top| {
            let item = self.starts.partition_point(|start| *start <= top).saturating_sub(1);
            let rows = self.items.get(item).map_or(1, |i| i.rows.len().max(1));
            (item, top.saturating_sub(self.starts.get(item).copied().unwrap_or(0)), rows)
        });
        (self.width, self.height) = (width, height);
        self.starts.clear();
        let mut row = 0;
        for item in &mut self.items {
            item.lay_out(width, self.unfolded, width_changed);
            self.starts.push(row);
            row += item.rows.len();
        }
        self.starts.push(row);
        if let Some((item, offset, rows)) = anchor {
            let now = self.items.get(item).map_or(0, |i| i.rows.len());
            self.top = Some(self.starts.get(item).copied().unwrap_or(0) + offset * now / rows);
        }
        self.top = self.top.filter(|top| *top < self.last_top());
    }

    fn total(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn last_top(&self) -> usize {
        self.total().saturating_sub(self.height)
    }

    /// Scrolls by rows, upwards if negative.
    pub fn scroll(&mut self, rows: isize) {
        let top = self.top.unwrap_or(self.last_top()).saturating_add_signed(rows);
        self.top = Some(top).filter(|top| *top < self.last_top());
    }

    pub fn height(&self) -> usize {
        self.height
    }

    /// The number of rows below the visible ones.
    pub fn below(&self) -> usize {
        self.top.map_or(0, |top| self.last_top() - top)
    }

    /// The visible rows. The cost depends on their number, not on the length of the chat.
    pub fn visible(&self) -> impl Iterator<Item = &TextRow> {
        let top = self.top.unwrap_or(self.last_top());
        let first = self.starts.partition_point(|start| *start <= top).saturating_sub(1);
        let skip = top - self.starts.get(first).copied().unwrap_or(0);
        self.items.iter().skip(first).flat_map(|item| &item.rows).skip(skip).take(self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::reply_parser::ReplyParser;

    fn text(transcript: &Transcript) -> Vec<String> {
        let row = |r: &TextRow| r.iter().map(|s| s.text.as_str()).collect::<String>().trim_end().to_owned();
        transcript.visible().map(row).collect()
    }

    fn chat(turns: &[(Author, &str)]) -> StoredChat {
        let turns = turns.iter().map(|(role, text)| Turn::new(*role, *text)).collect();
        StoredChat { turns, ..StoredChat::new(None) }
    }

    #[test]
    fn the_view_follows_the_end_until_scrolled() {
        let mut t = Transcript::default();
        t.show(&chat(&[(Author::User, "hi"), (Author::Assistant, "one\n\ntwo")]));
        t.arrange(20, 4);
        assert_eq!(text(&t), ["one", "", "two", ""]);
        t.scroll(-1);
        assert_eq!((text(&t)[0].as_str(), t.below()), ("", 1));
        t.push_event(&ReplyEvent::Text(" three\n\nfour".into()));
        t.arrange(20, 4);
        assert_eq!(text(&t), ["", "one", "", "two three"], "the visible rows stay");
        t.scroll(100);
        assert_eq!(text(&t), ["two three", "", "four", ""]);
        t.scroll(-100);
        assert_eq!(text(&t)[0], "> hi");
    }

    #[test]
    fn reasoning_is_folded_and_unfolded() {
        let mut t = Transcript::default();
        t.show(&chat(&[(Author::User, "q"), (Author::Assistant, "")]));
        let mut parser = ReplyParser::new(Vec::new(), true, false);
        for piece in ["<thi", "nk>", "a b", "\nc</th", "ink>", "\n\n**x**"] {
            parser.push(piece).iter().for_each(|event| t.push_event(event));
            t.arrange(40, 20);
        }
        assert_eq!(text(&t), ["> q", "", "▸ thought, 3 words (Ctrl-R)", "", "x", ""]);
        t.unfold(true);
        t.arrange(40, 20);
        assert_eq!(text(&t)[2..], ["▾ thought, 3 words (Ctrl-R)", "a b", "c", "", "x", ""]);
    }

    #[test]
    fn long_messages_are_folded() {
        let mut t = Transcript::default();
        let long = "word\n".repeat(100);
        t.show(&chat(&[(Author::User, &long)]));
        t.arrange(40, 100);
        assert_eq!((text(&t).len(), text(&t)[20].as_str()), (22, "  … 401 bytes more (Ctrl-R)"));
        t.unfold(true);
        t.arrange(40, 200);
        assert_eq!(text(&t).len(), 102);
    }

    #[test]
    fn a_change_of_width_keeps_the_message_in_view() {
        let mut t = Transcript::default();
        let turns: Vec<(Author, String)> =
            (0..50).map(|i| (Author::User, format!("message {i} {}", "x ".repeat(40)))).collect();
        let turns: Vec<(Author, &str)> = turns.iter().map(|(r, t)| (*r, t.as_str())).collect();
        t.show(&chat(&turns));
        t.arrange(30, 10);
        t.scroll(-100);
        let top = text(&t).into_iter().find(|r| r.contains("message")).unwrap();
        t.arrange(60, 10);
        let number = |row: &str| row.split(' ').nth(2).unwrap().parse::<i32>().unwrap();
        let after = text(&t).into_iter().find(|r| r.contains("message")).unwrap();
        assert!((number(&top) - number(&after)).abs() <= 1, "{top} {after}");
    }

    #[test]
    fn removed_turns_disappear_and_the_rest_keeps_its_layout() {
        let mut t = Transcript::default();
        let long = chat(&[
            (Author::User, "a"),
            (Author::Assistant, "b"),
            (Author::User, "c"),
            (Author::Assistant, "d"),
        ]);
        t.show(&long);
        t.note("done", TextRole::Dim);
        t.arrange(20, 20);
        t.show(&StoredChat { turns: long.turns[..2].to_vec(), ..long });
        assert!(t.items.iter().all(|item| !item.stale));
        t.arrange(20, 20);
        assert_eq!(text(&t), ["> a", "", "b", ""]);
    }
}
