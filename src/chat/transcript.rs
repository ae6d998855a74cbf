//! The items of the chat one below the other: laid out once for a width, then only where they change, with the scroll
//! position and the selected quote.
//!
//! Scrolling counts wrapped rows. Next: [`super::transcript_item`], whose rows [`super::view`] draws.

use super::layout::TextRow;
use super::sources::Sources;
use super::store::{StoredChat, Turn};
use super::theme::TextRole;
use super::transcript_item::{ItemKind, ItemLayout, ShownQuote, TranscriptItem};
use crate::generation::markup::ReplyEvent;
use std::ops::Range;

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
    /// The files in which quotes are located.
    sources: Sources,
    /// The name that is shown above replies.
    model: String,
    /// The item of the selected quote, and its index there.
    selected: Option<(usize, usize)>,
    /// Scroll to the selected quote after the next layout.
    reveal: bool,
}

impl Transcript {
    /// Shows a chat. Items of unchanged turns keep their layout; notes after the first changed turn are removed.
    pub fn show(&mut self, chat: &StoredChat) {
        if !self.sources.are_of(chat) {
            self.sources = Sources::new(chat);
            self.width = 0;
        }
        let mut turns = chat.turns.iter().peekable();
        let mut keep = 0;
        for (i, item) in self.items.iter().enumerate() {
            match &item.kind {
                ItemKind::Note(..) | ItemKind::List(..) => {}
                _ if turns.next_if(|turn| item.shows(turn)).is_some() => keep = i + 1,
                _ => break,
            }
        }
        self.items.truncate(keep);
        self.selected = self.selected.filter(|(item, _)| *item < keep);
        let has_files = |turn: &Turn| !turn.files.is_empty();
        let first = chat.turns.iter().position(has_files).unwrap_or(chat.turns.len());
        let shown = chat.turns.len() - turns.len();
        for (i, turn) in (shown..).zip(turns) {
            // A reply that is about to begin is the last turn, and empty.
            self.items.push(TranscriptItem::of(turn, first < i, !turn.is_empty()));
        }
        self.top = None;
    }

    /// Appends a part to the last reply.
    pub fn push_event(&mut self, event: &ReplyEvent) {
        let last = self.items.iter_mut().rev().find(|item| matches!(item.kind, ItemKind::Reply(_)));
        last.into_iter().for_each(|item| item.push_event(event));
    }

    /// Ends the last reply of the chat.
    pub fn finish_reply(&mut self) {
        let last = self.items.iter_mut().rev().find(|item| matches!(item.kind, ItemKind::Reply(_)));
        last.into_iter().for_each(TranscriptItem::finish);
    }

    /// Adds a note of the program after the messages.
    pub fn note(&mut self, text: &str, role: TextRole) {
        self.items.push(TranscriptItem::new(ItemKind::Note(text.to_owned(), role)));
        self.top = None;
    }

    /// Adds a heading with rows of a name and its meaning.
    pub fn list(&mut self, heading: &str, entries: Vec<(String, String)>) {
        self.items.push(TranscriptItem::new(ItemKind::List(heading.to_owned(), entries)));
        self.top = None;
    }

    /// Sets the name above replies.
    pub fn set_model(&mut self, name: &str) {
        name.clone_into(&mut self.model);
        self.width = 0;
    }

    /// Selects another quote, `by` quotes after the selected one, or the last; returns false if there is none.
    pub fn select(&mut self, by: isize) -> bool {
        let quotes =
            |(i, item): (usize, &TranscriptItem)| (0..item.quotes.len()).map(move |quote| (i, quote));
        let all: Vec<(usize, usize)> = self.items.iter().enumerate().flat_map(quotes).collect();
        let Some(last) = all.len().checked_sub(1) else { return false };
        let at = all.iter().position(|quote| Some(*quote) == self.selected);
        let next = at.map_or(last, |at| at.saturating_add_signed(by).min(last));
        (self.selected, self.reveal) = (Some(all[next]), true);
        true
    }

    /// Selects the quote at a visible row, if there is one.
    pub fn select_at(&mut self, row: usize) {
        let row = self.top() + row;
        let item = self.starts.partition_point(|start| *start <= row).saturating_sub(1);
        let Some(quotes) = self.items.get(item).map(|item| &item.quotes) else { return };
        let row = row - self.starts[item];
        if let Some(quote) = quotes.iter().position(|quote| quote.rows.contains(&row)) {
            (self.selected, self.reveal) = (Some((item, quote)), true);
        }
    }

    /// Whether a reply has quotes, none of which is selected.
    pub fn has_quotes(&self) -> bool {
        self.selected.is_none() && self.items.iter().any(|item| !item.quotes.is_empty())
    }

    pub fn deselect(&mut self) {
        self.selected = None;
    }

    /// The quote that is selected, if there is one.
    pub fn selected(&self) -> Option<&ShownQuote> {
        let (item, quote) = self.selected?;
        self.items.get(item)?.quotes.get(quote)
    }

    /// The number of the selected quote among all, from 1, and their number.
    pub fn selected_of(&self) -> Option<(usize, usize)> {
        let (item, quote) = self.selected?;
        let count = |items: &[TranscriptItem]| items.iter().map(|item| item.quotes.len()).sum::<usize>();
        Some((count(&self.items[..item]) + quote + 1, count(&self.items)))
    }

    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The rows of the selected quote, from the start of the transcript.
    fn selected_rows(&self) -> Range<usize> {
        let Some((quote, (item, _))) = self.selected().zip(self.selected) else { return 0..0 };
        let start = self.starts.get(item).copied().unwrap_or(0);
        quote.rows.start + start..quote.rows.end + start
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
        let layout =
            ItemLayout { width, unfolded: self.unfolded, model: &self.model, sources: &self.sources };
        for item in &mut self.items {
            item.lay_out(&layout, width_changed);
            self.starts.push(row);
            row += item.rows.len();
        }
        self.starts.push(row);
        if let Some((item, offset, rows)) = anchor {
            let now = self.items.get(item).map_or(0, |i| i.rows.len());
            self.top = Some(self.starts.get(item).copied().unwrap_or(0) + offset * now / rows);
        }
        if std::mem::take(&mut self.reveal) {
            let rows = self.selected_rows();
            let top = self.top();
            if rows.start < top || rows.end > top + height {
                self.top = Some(rows.start.saturating_sub(height / 3));
            }
        }
        self.top = self.top.filter(|top| *top < self.last_top());
    }

    /// The number of all rows.
    pub fn total(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Index of the first visible row.
    pub fn top(&self) -> usize {
        self.top.unwrap_or(self.last_top())
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

    /// The visible rows, and whether each belongs to the selected quote. The cost depends on their number, not on the
    /// length of the chat.
    pub fn visible(&self) -> impl Iterator<Item = (&TextRow, bool)> {
        let top = self.top();
        let first = self.starts.partition_point(|start| *start <= top).saturating_sub(1);
        let skip = top - self.starts.get(first).copied().unwrap_or(0);
        let rows = self.items.iter().skip(first).flat_map(|item| &item.rows).skip(skip).take(self.height);
        let selected = self.selected_rows();
        rows.zip(top..).map(move |(row, at)| (row, selected.contains(&at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::store::{Attachment, Author};
    use crate::generation::markup::{Markup, ReplyParser};

    fn text(transcript: &Transcript) -> Vec<String> {
        let row = |r: &TextRow| r.iter().map(|s| s.text.as_str()).collect::<String>().trim_end().to_owned();
        transcript.visible().map(|(r, _)| row(r)).collect()
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
        assert_eq!(text(&t), ["  one", "", "  two", ""]);
        t.scroll(-1);
        assert_eq!((text(&t)[0].as_str(), t.below()), ("", 1));
        t.push_event(&ReplyEvent::Text(" three\n\nfour".into()));
        t.arrange(20, 4);
        assert_eq!(text(&t), ["", "  one", "", "  two three"], "the visible rows stay");
        t.scroll(100);
        assert_eq!(text(&t), ["  two three", "", "  four", ""]);
        t.scroll(-100);
        assert_eq!(text(&t)[0], "▌ You");
    }

    #[test]
    fn reasoning_is_folded_and_unfolded() {
        let mut t = Transcript::default();
        t.show(&chat(&[(Author::User, "q"), (Author::Assistant, "")]));
        let mut parser = ReplyParser::new(Markup::Kimi, Vec::new(), true, false);
        for piece in ["<thi", "nk>", "a b", "\nc</th", "ink>", "\n\n**x**"] {
            parser.push(piece).iter().for_each(|event| t.push_event(event));
            t.arrange(40, 20);
        }
        assert_eq!(text(&t), ["▌ You", "▌ q", "", "", "  ▸ thought, 3 words (Ctrl-R)", "", "  x", ""]);
        t.unfold(true);
        t.arrange(40, 20);
        assert_eq!(text(&t)[4..], ["  ▾ thought, 3 words (Ctrl-R)", "  a b", "  c", "", "  x", ""]);
    }

    #[test]
    fn long_messages_are_folded() {
        let mut t = Transcript::default();
        let long = "word\n".repeat(100);
        t.show(&chat(&[(Author::User, &long)]));
        t.arrange(40, 100);
        assert_eq!((text(&t).len(), text(&t)[21].as_str()), (23, "▌ … 401 bytes more (Ctrl-R)"));
        t.unfold(true);
        t.arrange(40, 200);
        assert_eq!(text(&t).len(), 103);
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
        assert_eq!(text(&t), ["▌ You", "▌ a", "", "", "  b", ""]);
    }

    #[test]
    fn quotes_show_their_place_and_are_selected() {
        let mut t = Transcript::default();
        t.set_model("m");
        let file = Attachment { name: "a.txt".into(), text: "one\ntwo\nthree\n".into(), parts: Vec::new() };
        let mut both = chat(&[(Author::User, "q"), (Author::Assistant, "")]);
        both.turns[0].files.push(file);
        t.show(&both);
        for piece in ["It is:\n> tw", "o\n> fo", "ur\nSo two.\n\n", "> three"] {
            t.push_event(&ReplyEvent::Text(piece.into()));
            t.arrange(40, 30);
        }
        let reply =
            ["  m", "  It is:", "", "  ┃ two", "  ┃ ✓ a.txt:2", "", "  ┊ four", "  ┊ ✗ not in the files", ""];
        assert_eq!(text(&t)[4..13], reply);
        assert_eq!(text(&t)[13..], ["  So two.", "", "  ┃ three", ""], "the last line has not ended");
        t.finish_reply();
        t.arrange(40, 30);
        assert_eq!(text(&t)[15..], ["  ┃ three", "  ┃ ✓ a.txt:3", ""]);
        assert!(t.selected().is_none());
        assert!(t.select(1));
        assert_eq!((t.selected().unwrap().text.as_str(), t.selected_of()), ("three", Some((3, 3))));
        assert!(t.select(-5));
        t.arrange(40, 3);
        let selected: Vec<bool> = t.visible().map(|(_, selected)| selected).collect();
        assert_eq!(
            (&text(&t)[1..], &selected[..]),
            (&["  ┃ two".into(), "  ┃ ✓ a.txt:2".to_owned()][..], &[false, true, true][..])
        );
        t.scroll(3);
        t.select_at(1);
        assert_eq!(t.selected().map(|quote| &*quote.text), Some("four"));
        t.show(&StoredChat::new(None));
        assert!(t.selected().is_none() && !t.select(1));
    }
}
