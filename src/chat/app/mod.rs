//! The full-screen chat as a state and what events do to it. What it wants done outside it returns as effects.
//!
//! It draws nothing and waits for nothing. Next: [`keys`], [`super::view`], [`super::terminal`].

mod keys;

use super::command::{self, Command};
use super::input::Input;
use super::picker::Picker;
use super::reply::Ask;
use super::talk::{self, Back, Talk, Todo};
use super::theme::{Ink, Theme};
use super::transcript::Transcript;
use super::worker::Report;
use crate::io::errors::one_line;
use anyhow::Result;
use crossterm::event::KeyEvent;
use std::path::PathBuf;

/// Everything the screen shows.
pub struct App {
    /// The chat.
    pub talk: Talk,
    /// What was said, as rows.
    pub transcript: Transcript,
    /// The message being written.
    pub input: Input,
    /// What the engine is doing.
    pub state: State,
    /// The list of chats, when it is open.
    pub picker: Option<Picker>,
    /// What the line may go on to, and which of it was taken.
    pub menu: Menu,
    /// Colours.
    pub theme: Theme,
    /// Whether the wheel is ours; selecting text needs Shift then.
    pub mouse: bool,
    /// Tokens of the prompt being answered.
    pub prompt: usize,
    /// Bytes of memory this process holds.
    pub memory: Option<u64>,
    /// Columns and rows of the screen.
    pub size: (u16, u16),
}

/// What the engine is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    /// Nothing.
    Idle,
    /// Opening a model.
    Opening,
    /// Reading the prompt; the total is 0 before the first report.
    Reading {
        /// Tokens in.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Tokens a second; 0 while unknown.
        rate: f64,
    },
    /// Writing the reply.
    Writing {
        /// Tokens so far.
        tokens: usize,
        /// Tokens a second; 0 while unknown.
        rate: f64,
    },
}

/// Completions.
#[derive(Default)]
pub struct Menu {
    /// Whole lines.
    pub lines: Vec<String>,
    /// The one that was taken.
    pub chosen: Option<usize>,
}

/// What happens to an [`App`].
#[derive(Debug)]
pub enum Event {
    /// A key.
    Key(KeyEvent),
    /// Text that was pasted.
    Paste(String),
    /// The wheel, up below zero.
    Wheel(isize),
    /// The screen has this many columns and rows.
    Resize(u16, u16),
    /// The engine tells.
    Report(Report),
    /// The editor was closed with this text.
    Edited(Result<String>),
    /// This process holds so much memory.
    Memory(Option<u64>),
}

/// What an [`App`] wants done.
#[derive(Debug)]
pub enum Effect {
    /// Have this answered.
    Ask(Ask),
    /// Stop the reply.
    Stop,
    /// Put this on the clipboard.
    Copy(String),
    /// Open the editor on this text.
    Editor(String),
    /// Take the wheel, or leave it to the terminal.
    Mouse(bool),
    /// Open another model.
    Open(PathBuf),
    /// Remember a message that was sent.
    Remember(String),
    /// Leave.
    Quit,
}

impl App {
    /// An empty chat on a screen of this size.
    pub fn new(talk: Talk, theme: Theme, size: (u16, u16)) -> Self {
        App {
            talk,
            transcript: Transcript::default(),
            input: Input::default(),
            state: State::Idle,
            picker: None,
            menu: Menu::default(),
            theme,
            mouse: true,
            prompt: 0,
            memory: None,
            size,
        }
    }

    /// What an event does.
    pub fn update(&mut self, event: Event) -> Vec<Effect> {
        let effects = match event {
            Event::Key(key) => self.key(key),
            Event::Paste(text) => {
                self.input.insert(&text);
                self.menu = Menu::default();
                Vec::new()
            }
            Event::Wheel(rows) => {
                match &mut self.picker {
                    Some(picker) => picker.go(rows.signum()),
                    None => self.transcript.scroll(rows),
                }
                Vec::new()
            }
            Event::Resize(columns, rows) => {
                self.size = (columns, rows);
                Vec::new()
            }
            Event::Report(report) => {
                self.report(report);
                Vec::new()
            }
            Event::Edited(Ok(text)) => {
                self.input.set("");
                self.input.insert(text.trim_end_matches('\n'));
                Vec::new()
            }
            Event::Edited(Err(e)) => {
                self.complain(&e);
                Vec::new()
            }
            Event::Memory(bytes) => {
                self.memory = bytes;
                Vec::new()
            }
        };
        if let Some(note) = self.talk.note.take() {
            self.transcript.remark(&note, Ink::Dim);
        }
        self.arrange();
        effects
    }

    /// Rows of the message being written: it grows to a third of the screen.
    pub fn input_rows(&self) -> u16 {
        let most = (self.size.1 / 3).max(1);
        u16::try_from(self.input.height()).unwrap_or(most).min(most)
    }

    /// Lays out what has changed.
    fn arrange(&mut self) {
        let (columns, rows) = self.size;
        self.input.arrange(usize::from(columns.saturating_sub(2)));
        let height = rows.saturating_sub(self.input_rows() + 2);
        self.transcript.arrange(usize::from(columns).max(1), usize::from(height));
    }

    /// Whether a reply is under way or a model is being opened.
    pub fn busy(&self) -> bool {
        self.state != State::Idle
    }

    /// What was typed: a command or a message.
    pub fn submit(&mut self) -> Vec<Effect> {
        let line = self.input.text().trim().to_owned();
        if line.is_empty() {
            return Vec::new();
        }
        let command = command::parse(&line);
        let may = match &command {
            Some(Ok(command)) => Talk::allowed_meanwhile(command),
            Some(Err(_)) => true,
            None => false,
        };
        if self.busy() && !may {
            self.transcript.remark("a reply is under way: Esc stops it", Ink::Dim);
            return Vec::new();
        }
        self.input.take();
        self.input.remember(&line);
        self.menu = Menu::default();
        let mut effects = vec![Effect::Remember(line.clone())];
        match command {
            Some(Ok(command)) => effects.extend(self.run(command)),
            Some(Err(e)) => self.transcript.remark(&e, Ink::Error),
            None => {
                self.talk.say(&line);
                effects.extend(self.answer());
            }
        }
        effects
    }

    /// Runs a command.
    pub fn run(&mut self, command: Command) -> Option<Effect> {
        let before = self.talk.chat.turns.len();
        let id = self.talk.chat.id.clone();
        let todo = match self.talk.run(command) {
            Ok(todo) => todo,
            Err(e) => {
                self.complain(&e);
                return None;
            }
        };
        if self.talk.chat.turns.len() != before || self.talk.chat.id != id {
            self.transcript.show(&self.talk.chat);
        }
        match todo {
            Todo::Say(text) => self.transcript.remark(&text, Ink::Dim),
            Todo::Help => self.transcript.remark(&format!("{}\n\n{}", command::help(), keys::HELP), Ink::Dim),
            Todo::Answer => return self.answer(),
            Todo::Type(text) => self.input.set(text),
            Todo::Editor => return Some(Effect::Editor(self.input.text().to_owned())),
            Todo::Copy(text) => {
                self.transcript.remark(&format!("{} bytes to the clipboard", text.len()), Ink::Dim);
                return Some(Effect::Copy(text));
            }
            Todo::List => self.picker = Some(Picker::new(self.talk.store.list())),
            Todo::Look(name, value) => return self.look(&name, &value),
            Todo::Model(path) => {
                self.state = State::Opening;
                return Some(Effect::Open(path));
            }
            Todo::Quit => return Some(Effect::Quit),
        }
        None
    }

    fn look(&mut self, name: &str, value: &str) -> Option<Effect> {
        let flag = match value {
            "on" | "show" => Some(true),
            "off" | "hide" => Some(false),
            _ => None,
        };
        match (name, value, flag) {
            ("theme", "light" | "dark", _) => self.theme.light = value == "light",
            ("mouse", _, Some(on)) => return Some(self.take_mouse(on)),
            ("reasoning", _, Some(shown)) => self.transcript.unfold(shown),
            _ => {
                let expected = if name == "theme" { "light or dark" } else { "on or off" };
                self.transcript
                    .remark(&format!("/set {name}: expected {expected}, found {value:?}"), Ink::Error);
            }
        }
        None
    }

    /// Takes the wheel, or leaves the mouse to the terminal, where it selects.
    pub fn take_mouse(&mut self, on: bool) -> Effect {
        self.mouse = on;
        let said = if on { "the wheel scrolls; Shift selects" } else { "the mouse selects; PageUp scrolls" };
        self.transcript.remark(said, Ink::Dim);
        Effect::Mouse(on)
    }

    fn answer(&mut self) -> Option<Effect> {
        let ask = self.talk.ask();
        self.transcript.show(&self.talk.chat);
        self.prompt = 0;
        self.state = State::Reading { done: 0, total: 0, rate: 0.0 };
        Some(Effect::Ask(ask))
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Ready(about) => {
                self.talk.about = about;
                self.state = State::Idle;
                let about = &self.talk.about;
                let said = format!("{} on {}. /help lists commands.", about.name, about.place);
                self.transcript.remark(&said, Ink::Dim);
            }
            Report::Reading { done, total, rate } => {
                self.prompt = total;
                self.state = State::Reading { done, total, rate };
            }
            Report::Text { text, tokens, rate } => {
                self.talk.hear(&text);
                self.transcript.hear(&text);
                self.state = State::Writing { tokens, rate };
            }
            Report::Done(outcome) => {
                self.state = State::Idle;
                let stats = outcome.stats.clone();
                let back = self.talk.heard(outcome);
                self.end(back, talk::ending(&stats).as_deref(), Ink::Dim);
            }
            Report::Note(text) => self.transcript.remark(&text, Ink::Dim),
            Report::Failed(e) if self.state == State::Opening => {
                self.state = State::Idle;
                self.transcript.remark(&e, Ink::Error);
            }
            Report::Failed(e) => {
                self.state = State::Idle;
                let back = self.talk.give_up();
                self.end(back, Some(&e), Ink::Error);
            }
        }
    }

    /// The end of a reply. A message that comes back goes where it was written, if nothing is there.
    fn end(&mut self, back: Option<Back>, mut said: Option<&str>, ink: Ink) {
        if let Some(back) = back {
            said = said.or(Some(talk::EMPTY));
            self.transcript.show(&self.talk.chat);
            if let Back::Message(message) = back
                && self.input.is_empty()
            {
                self.input.set(message);
            }
        }
        if let Some(said) = said {
            self.transcript.remark(said, ink);
        }
    }

    /// Says what went wrong.
    pub fn complain(&mut self, e: &anyhow::Error) {
        self.transcript.remark(&one_line(e), Ink::Error);
    }

    /// Goes to a chat of the list.
    pub fn open(&mut self, id: &str) {
        match self.talk.store.load(id) {
            Ok(chat) => {
                let said = self.talk.open(chat);
                self.transcript.show(&self.talk.chat);
                self.transcript.remark(&said, Ink::Dim);
            }
            Err(e) => self.complain(&e),
        }
    }
}
