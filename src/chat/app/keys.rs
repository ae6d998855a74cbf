//! Key bindings of the full-screen chat.

use super::{Activity, AppEvent, ChatApp, Effect, Menu};
use crate::chat::chat_session;
use crate::chat::command::{self, SlashCommand};
use crate::chat::input::Move;
use crate::chat::picker::Picker;
use crate::chat::theme::TextRole;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// The key bindings, as `/help` lists them.
pub const HELP: [(&str, &str); 14] = [
    ("Enter", "send; Alt-Enter or Ctrl-J adds a line"),
    ("Tab", "complete a command, a path or a setting"),
    ("Up, Down", "recall sent messages"),
    ("Esc, Ctrl-C", "stop a reply"),
    ("Ctrl-C, Ctrl-D", "clear the input or cancel /edit; quit"),
    ("Ctrl-P, Ctrl-N", "show the source of the previous or next quote"),
    ("Alt-Up, Alt-Down", "scroll the source; Esc closes it"),
    ("PageUp, PageDown", "scroll, as the wheel does"),
    ("Ctrl-Home, Ctrl-End", "go to the start or the end"),
    ("Ctrl-O", "list of chats"),
    ("Ctrl-R", "unfold reasoning and long messages"),
    ("Ctrl-G", "write the message in the editor"),
    ("F2", "leave the mouse to the terminal to select text"),
    ("Ctrl-A, -E, -W, -U ...", "edit as in a shell; also Ctrl-K, -Y, Alt-B, -F"),
];

impl ChatApp {
    pub(super) fn key(&mut self, key: KeyEvent) -> Vec<Effect> {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if self.picker.is_some() {
            self.picker_key(key.code, control);
            return Vec::new();
        }
        let one = |effect| vec![effect];
        match key.code {
            KeyCode::Char('c') if control => return self.interrupt(),
            KeyCode::Char('d') if control && self.input.is_empty() => return one(Effect::Quit),
            KeyCode::Esc if self.menu.chosen.is_none() && self.is_replying() => return one(Effect::Stop),
            KeyCode::Esc if self.menu.lines.is_empty() => self.transcript.deselect(),
            KeyCode::Esc => self.menu = Menu::default(),
            KeyCode::Enter if key.modifiers.intersects(KeyModifiers::ALT | KeyModifiers::SHIFT) => {
                self.write("\n")
            }
            KeyCode::Char('j') if control => self.write("\n"),
            KeyCode::Enter => return self.submit(),
            KeyCode::Tab => self.complete(1),
            KeyCode::BackTab => self.complete(-1),
            KeyCode::F(2) => return one(self.set_mouse(!self.mouse)),
            KeyCode::Char('o') if control && !self.busy() => {
                self.picker = Some(Picker::new(self.session.store.list()));
            }
            KeyCode::Char('n' | 'p') if control => self.select_quote(key.code == KeyCode::Char('n')),
            KeyCode::Char('g') if control => return self.run(SlashCommand::Editor).into_iter().collect(),
            KeyCode::Char('r') if control => self.transcript.unfold(!self.transcript.unfolded()),
            KeyCode::PageUp | KeyCode::PageDown => {
                let page = self.transcript.height().saturating_sub(2).max(1).cast_signed();
                self.transcript.scroll(if key.code == KeyCode::PageUp { -page } else { page });
            }
            KeyCode::Home if control => self.transcript.scroll(isize::MIN / 2),
            KeyCode::End if control => self.transcript.scroll(isize::MAX / 2),
            KeyCode::Up | KeyCode::Down
                if key.modifiers.contains(KeyModifiers::ALT) && self.transcript.selected().is_some() =>
            {
                self.source.scroll(if key.code == KeyCode::Up { -1 } else { 1 });
            }
            KeyCode::Up | KeyCode::Down => self.vertical(key.code == KeyCode::Down),
            _ => self.edit(key),
        }
        Vec::new()
    }

    /// Selects the next or the previous quote and shows its source.
    fn select_quote(&mut self, next: bool) {
        if !self.transcript.select(if next { 1 } else { -1 }) {
            self.transcript.note("no reply quotes an attached file yet", TextRole::Dim);
        }
    }

    fn is_replying(&self) -> bool {
        matches!(self.state, Activity::Prefill { .. } | Activity::Decode { .. })
    }

    fn interrupt(&mut self) -> Vec<Effect> {
        if self.is_replying() {
            return vec![Effect::Stop];
        }
        if self.session.cancel_edit() {
            self.transcript.show(&self.session.chat);
            self.transcript.note(chat_session::EDIT_CANCELLED, TextRole::Dim);
        } else if self.input.is_empty() {
            self.transcript.note("Ctrl-D or /quit quits", TextRole::Dim);
        }
        self.input.take();
        self.menu = Menu::default();
        Vec::new()
    }

    fn write(&mut self, text: &str) {
        self.input.insert(text);
        self.suggest();
    }

    /// Moves the cursor by a row; at the first and last row, recalls a sent message.
    fn vertical(&mut self, down: bool) {
        if !self.input.vertical(down) {
            self.input.recall(!down);
        }
    }

    fn edit(&mut self, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        let by_word = control || alt;
        match key.code {
            KeyCode::Left if by_word => self.input.go(Move::WordLeft),
            KeyCode::Right if by_word => self.input.go(Move::WordRight),
            KeyCode::Left => self.input.go(Move::Left),
            KeyCode::Right => self.input.go(Move::Right),
            KeyCode::Home => self.input.go(Move::Home),
            KeyCode::End => self.input.go(Move::End),
            KeyCode::Backspace if by_word => self.input.remove(Move::WordLeft),
            KeyCode::Backspace => self.input.remove(Move::Left),
            KeyCode::Delete => self.input.remove(Move::Right),
            KeyCode::Char(c) if control => match c {
                'a' => self.input.go(Move::Home),
                'e' => self.input.go(Move::End),
                'b' => self.input.go(Move::Left),
                'f' => self.input.go(Move::Right),
                'h' => self.input.remove(Move::Left),
                'd' => self.input.remove(Move::Right),
                'w' => self.input.remove(Move::WordLeft),
                'u' => self.input.remove(Move::Home),
                'k' => self.input.remove(Move::End),
                'y' => self.input.yank(),
                _ => {}
            },
            KeyCode::Char('b') if alt => self.input.go(Move::WordLeft),
            KeyCode::Char('f') if alt => self.input.go(Move::WordRight),
            KeyCode::Char('d') if alt => self.input.remove(Move::WordRight),
            KeyCode::Char(c) if !alt => self.input.insert(c.encode_utf8(&mut [0; 4])),
            _ => {}
        }
        self.suggest();
    }

    /// Suggests commands while the input is the first word of one.
    fn suggest(&mut self) {
        let line = self.input.text();
        let first_word = line.starts_with('/') && !line.contains([' ', '\n']);
        let lines = if first_word { command::complete(line) } else { Vec::new() };
        self.menu = Menu { lines, chosen: None };
    }

    /// Selects the next completion; a single one is accepted at once.
    fn complete(&mut self, by: isize) {
        let line = self.input.text();
        if self.menu.chosen.is_none() && line.starts_with('/') && !line.contains('\n') && self.input.at_end()
        {
            self.menu.lines = command::complete(line);
        }
        let count = self.menu.lines.len();
        if count == 0 {
            return;
        }
        let next = match self.menu.chosen {
            Some(at) => (at + count).wrapping_add_signed(by) % count,
            None if by < 0 => count - 1,
            None => 0,
        };
        let completion = self.menu.lines[next].clone();
        self.input.set(completion);
        self.menu.chosen = Some(next);
        if count == 1 {
            self.menu = Menu::default();
        }
    }

    fn picker_key(&mut self, code: KeyCode, control: bool) {
        let Some(picker) = &mut self.picker else { return };
        match code {
            KeyCode::Esc => self.picker = None,
            KeyCode::Char('c' | 'o') if control => self.picker = None,
            KeyCode::Up => picker.go(-1),
            KeyCode::Down => picker.go(1),
            KeyCode::PageUp => picker.go(-10),
            KeyCode::PageDown => picker.go(10),
            KeyCode::Backspace => picker.pop(),
            KeyCode::Char(c) if !control => picker.push(c),
            KeyCode::Enter => {
                if let Some(id) = self.picker.take().and_then(|p| p.id()) {
                    self.open(&id);
                }
            }
            _ => {}
        }
    }
}

/// A key press without modifiers.
impl From<KeyCode> for AppEvent {
    fn from(code: KeyCode) -> Self {
        AppEvent::Key(code.into())
    }
}
