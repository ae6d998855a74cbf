//! The input of the full-screen chat: a text with a cursor and its wrapped rows, and the history of sent messages.
//!
//! It knows no keys; `app/keys.rs` binds them.

use super::store::restrict_to_user;
use crate::io::output::printable;
use crate::io::{private_file, user_dirs};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// The width of a tab in columns.
const TAB: usize = 4;

/// The message that the user edits.
#[derive(Default)]
pub struct InputBox {
    text: String,
    /// Byte offset in the text, at a grapheme boundary.
    cursor: usize,
    width: usize,
    /// Byte ranges of the wrapped rows, until the text or the width changes.
    rows: Vec<Range<usize>>,
    /// The preferred column of vertical movement.
    goal: Option<usize>,
    /// The text of the last cut, for [`InputBox::yank`].
    cut: String,
    /// Sent messages from the oldest, and the index of the recalled one.
    sent: Vec<String>,
    recalled: Option<usize>,
    draft: String,
}

#[cfg(test)]
thread_local! {
    /// Bytes that this thread has wrapped, for tests of the work per key.
    pub static WRAPPED_BYTES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A movement of the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Left,
    Right,
    /// To the start of the word at or before the cursor.
    WordLeft,
    /// To the end of the word at or after the cursor.
    WordRight,
    /// To the start of the line.
    Home,
    /// To the end of the line.
    End,
}

/// Largest history file in bytes that is read.
const MAX_HISTORY: u64 = 1 << 28;

impl InputBox {
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Whether the cursor is after the last character.
    pub fn at_end(&self) -> bool {
        self.cursor == self.text.len()
    }

    /// Replaces the text and moves the cursor to its end.
    pub fn set(&mut self, text: impl Into<String>) {
        self.text = printable(&text.into());
        self.cursor = self.text.len();
        self.changed();
    }

    /// Takes the text and leaves the input empty.
    pub fn take(&mut self) -> String {
        let text = std::mem::take(&mut self.text);
        self.set("");
        self.recalled = None;
        text
    }

    /// Inserts text at the cursor. Line ends become `\n`; control characters are removed.
    pub fn insert(&mut self, text: &str) {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let text = printable(&text);
        self.text.insert_str(self.cursor, &text);
        self.cursor += text.len();
        self.changed();
    }

    fn changed(&mut self) {
        self.goal = None;
        self.rows.clear();
        self.arrange(self.width);
    }

    pub fn go(&mut self, to: Move) {
        self.cursor = self.place(to);
        self.goal = None;
    }

    /// Removes the text between the cursor and the destination. Cuts of more than a grapheme can be yanked.
    pub fn remove(&mut self, to: Move) {
        let there = self.place(to);
        let range = self.cursor.min(there)..self.cursor.max(there);
        let removed: String = self.text.drain(range.clone()).collect();
        if !matches!(to, Move::Left | Move::Right) && !removed.is_empty() {
            self.cut = removed;
        }
        self.cursor = range.start;
        self.changed();
    }

    /// Inserts the text of the last cut.
    pub fn yank(&mut self) {
        let cut = std::mem::take(&mut self.cut);
        self.insert(&cut);
        self.cut = cut;
    }

    fn place(&self, to: Move) -> usize {
        let (before, after) = self.text.split_at(self.cursor);
        let word = |(_, w): &(usize, &str)| w.chars().any(char::is_alphanumeric);
        match to {
            Move::Left => before.graphemes(true).next_back().map_or(0, |g| self.cursor - g.len()),
            Move::Right => after.graphemes(true).next().map_or(self.cursor, |g| self.cursor + g.len()),
            Move::WordLeft => before.split_word_bound_indices().rfind(word).map_or(0, |(at, _)| at),
            Move::WordRight => {
                let next = after.split_word_bound_indices().find(word);
                next.map_or(self.text.len(), |(at, w)| self.cursor + at + w.len())
            }
            Move::Home => before.rfind('\n').map_or(0, |at| at + 1),
            Move::End => after.find('\n').map_or(self.text.len(), |at| self.cursor + at),
        }
    }

    /// Moves the cursor by a row; returns false at the first and last row.
    pub fn vertical(&mut self, down: bool) -> bool {
        let (row, column) = self.cursor_at();
        let next = if down { row + 1 } else { row.wrapping_sub(1) };
        let Some(range) = self.rows.get(next).cloned() else { return false };
        let goal = *self.goal.get_or_insert(column);
        let mut used = 0;
        let mut at = range.start;
        for g in self.text[range].graphemes(true) {
            used += width(g);
            if used > goal {
                break;
            }
            at += g.len();
        }
        // The position after the last character of a wrapped row belongs to the next row.
        let wrapped = self.rows.get(next + 1).is_some_and(|r| r.start == at);
        self.cursor = if wrapped {
            self.text[..at].graphemes(true).next_back().map_or(at, |g| at - g.len())
        } else {
            at
        };
        true
    }

    /// Wraps the text into rows of at most `width` columns, one of which is left for the cursor.
    pub fn arrange(&mut self, width: usize) {
        if width == self.width && !self.rows.is_empty() {
            return;
        }
        self.width = width;
        self.rows.clear();
        #[cfg(test)]
        WRAPPED_BYTES.set(WRAPPED_BYTES.get() + self.text.len());
        let columns = width.saturating_sub(1).max(1);
        let mut start = 0;
        for line in self.text.split('\n') {
            wrap(line, start, columns, &mut self.rows);
            start += line.len() + 1;
        }
    }

    /// The number of wrapped rows, at least 1.
    pub fn height(&self) -> usize {
        self.rows.len().max(1)
    }

    /// The row and column of the cursor.
    pub fn cursor_at(&self) -> (usize, usize) {
        let row = self.rows.partition_point(|r| r.start <= self.cursor).saturating_sub(1);
        let start = self.rows.get(row).map_or(0, |r| r.start);
        (row, self.text[start..self.cursor].graphemes(true).map(width).sum())
    }

    /// The wrapped rows from row `first` on.
    pub fn rows(&self, first: usize) -> impl Iterator<Item = String> {
        self.rows.iter().skip(first).map(|r| self.text[r.clone()].replace('\t', "    "))
    }

    /// Adds a sent message to the history, unless it repeats the last one.
    pub fn remember(&mut self, text: &str) {
        if self.sent.last().is_none_or(|last| last != text) {
            self.sent.push(text.to_owned());
        }
    }

    /// Replaces the history by messages from the oldest to the newest.
    pub fn remember_all(&mut self, sent: Vec<String>) {
        self.sent = sent;
    }

    /// Recalls an older or newer sent message; the draft follows the newest.
    pub fn recall(&mut self, older: bool) {
        let next = match (self.recalled, older) {
            (None, true) => self.sent.len().checked_sub(1),
            (Some(at), true) => Some(at.saturating_sub(1)),
            (Some(at), false) => Some(at + 1).filter(|at| *at < self.sent.len()),
            (None, false) => return,
        };
        if self.recalled.is_none() {
            self.draft = self.text.clone();
        }
        let text = match next {
            Some(at) => self.sent[at].clone(),
            None if self.recalled.is_some() => std::mem::take(&mut self.draft),
            None => return,
        };
        self.set(text);
        self.recalled = next;
    }
}

fn width(grapheme: &str) -> usize {
    if grapheme == "\t" { TAB } else { grapheme.width() }
}

fn wrap(line: &str, start: usize, columns: usize, rows: &mut Vec<Range<usize>>) {
    let (mut from, mut used) = (start, 0);
    // ASCII needs no segmentation, which is slow for a pasted megabyte.
    if line.is_ascii() && !line.contains('\t') {
        while start + line.len() - from > columns {
            rows.push(from..from + columns);
            from += columns;
        }
    } else {
        for (at, g) in line.grapheme_indices(true) {
            if used + width(g) > columns && start + at > from {
                rows.push(from..start + at);
                (from, used) = (start + at, 0);
            }
            used += width(g);
        }
    }
    rows.push(from..start + line.len());
}

/// The file with the messages of earlier runs, one JSON string per line.
pub struct History {
    path: Option<PathBuf>,
}

impl History {
    /// The file `messages` in [`user_dirs::state`].
    pub fn for_user() -> Self {
        History { path: user_dirs::state().map(|dir| dir.join("messages")) }
    }

    /// Reads the newest 1,000 messages.
    pub fn read(&self) -> Vec<String> {
        let file =
            self.path.as_ref().and_then(|path| restrict_to_user(path, || private_file::open(path)).ok());
        let mut text = String::new();
        let read = file.is_some_and(|file| file.take(MAX_HISTORY).read_to_string(&mut text).is_ok());
        let text = if read { text } else { String::new() };
        let mut all: Vec<String> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        all.split_off(all.len().saturating_sub(1000))
    }

    /// Appends a message of at most 10,000 bytes. Errors are ignored: only the history is lost.
    pub fn add(&self, text: &str) {
        let Some(path) = self.path.as_ref().filter(|_| text.len() <= 10_000) else { return };
        let _ = path.parent().map(private_file::create_dir);
        let file = restrict_to_user(path, || private_file::open_or_create(path));
        let line = serde_json::Value::from(text).to_string() + "\n";
        let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str, width: usize) -> InputBox {
        let mut input = InputBox::default();
        input.arrange(width);
        input.insert(text);
        input
    }

    #[cfg(unix)]
    #[test]
    fn the_history_is_private() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kimi/messages");
        let history = History { path: Some(path.clone()) };
        history.add("one");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        // Older versions wrote the file with this mode.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o664)).unwrap();
        history.add("two");
        assert_eq!((mode(), history.read()), (0o600, vec!["one".to_owned(), "two".to_owned()]));
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        let linked = History { path: Some(link) };
        linked.add("three");
        assert_eq!((linked.read().len(), history.read().len()), (0, 2), "links are not followed");
    }

    #[test]
    fn rows_and_cursor_agree_for_wide_text() {
        let mut i = input("ab\n你好世界\n👩‍👩‍👧‍👦x", 6);
        assert_eq!(i.rows(0).collect::<Vec<_>>(), ["ab", "你好", "世界", "👩‍👩‍👧‍👦x"]);
        assert_eq!(i.cursor_at(), (3, 3));
        i.go(Move::Left);
        i.go(Move::Left);
        assert_eq!(i.cursor_at(), (3, 0), "a multi-codepoint emoji is one step");
        assert!(i.vertical(false) && i.vertical(false));
        assert_eq!(i.cursor_at(), (1, 0));
        i.go(Move::End);
        assert_eq!(i.cursor_at(), (2, 4));
        assert!(i.vertical(false) && i.vertical(false));
        assert_eq!(i.cursor_at(), (0, 2));
        assert!(!i.vertical(false));
        assert!(i.vertical(true));
        assert_eq!(i.cursor_at(), (1, 2), "the last position of a wrapped row is before its last character");
    }

    #[test]
    fn words_and_lines_are_cut_and_yanked() {
        let mut i = input("one two\nthree", 40);
        i.remove(Move::WordLeft);
        assert_eq!(i.text(), "one two\n");
        i.yank();
        i.go(Move::Home);
        i.remove(Move::Left);
        assert_eq!(i.text(), "one twothree");
        i.go(Move::Home);
        i.go(Move::WordRight);
        i.remove(Move::End);
        assert_eq!((i.text(), i.cursor_at()), ("one", (0, 3)));
        i.yank();
        assert_eq!(i.text(), "one twothree");
    }

    #[test]
    fn pasted_control_characters_are_removed() {
        assert_eq!(input("a\r\nb\rc\x1b[31m\td\0", 40).text(), "a\nb\nc[31m\td");
        let mut big = input(&"x".repeat(1 << 20), 80);
        assert_eq!((big.height(), big.cursor_at()), ((1 << 20) / 79 + 1, (13273, (1 << 20) % 79)));
        big.insert("y");
        big.remove(Move::Left);
        assert_eq!(big.take().len(), 1 << 20);
        assert_eq!(big.height(), 1);
    }

    #[test]
    fn sent_messages_and_the_draft_are_recalled() {
        let mut i = input("draft", 40);
        i.recall(true);
        assert_eq!(i.text(), "draft", "nothing was sent");
        ["one", "two", "two"].iter().for_each(|t| i.remember(t));
        let mut seen = Vec::new();
        for older in [true, true, true, false, false, false] {
            i.recall(older);
            seen.push(i.text().to_owned());
        }
        assert_eq!(seen, ["two", "one", "one", "two", "draft", "draft"]);
    }
}
