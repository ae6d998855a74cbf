//! State of the full-screen chat. [`ChatApp::update`] applies an event and returns side effects for the caller to perform.
//!
//! It does no drawing and no input or output. Next: [`keys`], [`super::view`].

mod keys;

use super::chat_session::{self, Action, ChatPrompt, ChatSession, Restored};
use super::command::{self, SlashCommand};
use super::input::InputBox;
use super::picker::Picker;
use super::source_panel::SourcePanel;
use super::theme::{TextRole, Theme};
use super::transcript::Transcript;
use super::worker::WorkerEvent;
use crate::io::errors::one_line;
use crate::io::units::counted;
use anyhow::Result;
use crossterm::event::KeyEvent;
use ratatui::layout::{Margin, Rect};
use std::path::PathBuf;

/// Rows of the activity line and the status bar.
const CHROME_ROWS: u16 = 2;
/// Columns from which on the source panel is beside the transcript, else below it.
const SIDE_BY_SIDE: u16 = 100;
/// Rows from which on the panel shares the screen with the transcript, else it replaces it.
const SHARED_ROWS: u16 = 12;

/// State of the full screen.
pub struct ChatApp {
    pub session: ChatSession,
    pub transcript: Transcript,
    pub input: InputBox,
    pub state: Activity,
    /// The list of chats, while it is open.
    pub picker: Option<Picker>,
    /// The text around the selected quote, shown while one is selected.
    pub source: SourcePanel,
    pub menu: Menu,
    pub theme: Theme,
    /// Whether the program handles the mouse wheel. Selecting text then needs Shift.
    pub mouse: bool,
    /// Tokens of the prompt of the current reply.
    pub prompt_tokens: usize,
    /// Resident memory of this process in bytes.
    pub memory: Option<u64>,
    /// Columns and rows of the screen.
    pub size: (u16, u16),
}

/// The parts of the screen from top to bottom.
pub struct Regions {
    pub transcript: Rect,
    /// The source panel with its frame, beside the transcript, below it, or in its place.
    pub source: Option<Rect>,
    pub activity: Rect,
    pub input: Rect,
    pub status: Rect,
}

/// What the worker thread is doing. Rates are in tokens per second, 0 while unknown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activity {
    Idle,
    LoadingModel,
    /// `done` of `total` prompt tokens are prefilled; `total` is 0 before the first event.
    Prefill {
        done: usize,
        total: usize,
        rate: f64,
    },
    /// Generating the reply, which has `tokens` tokens so far.
    Decode {
        tokens: usize,
        rate: f64,
    },
}

/// Completions of the input, as whole lines.
#[derive(Default)]
pub struct Menu {
    pub lines: Vec<String>,
    /// Index of the selected completion.
    pub chosen: Option<usize>,
}

/// An event that [`ChatApp::update`] applies.
#[derive(Debug)]
pub enum AppEvent {
    Key(KeyEvent),
    Paste(String),
    /// Rows that the mouse wheel scrolls, negative upwards.
    Wheel(isize),
    /// A click at this column and row.
    Click(u16, u16),
    /// The new columns and rows of the screen.
    Resize(u16, u16),
    Worker(WorkerEvent),
    /// The external editor exited with this text.
    Edited(Result<String>),
    /// The resident memory of this process in bytes.
    Memory(Option<u64>),
}

/// What the caller of [`ChatApp::update`] has to do.
#[derive(Debug)]
pub enum Effect {
    /// Send this prompt to the worker thread.
    Generate(ChatPrompt),
    Stop,
    /// Copy this text to the clipboard.
    Copy(String),
    /// Open the external editor with this text.
    Editor(String),
    /// Turn mouse reporting on or off.
    Mouse(bool),
    /// Load the model in this file.
    LoadModel(PathBuf),
    /// Add a sent message to the history.
    Remember(String),
    Quit,
}

impl ChatApp {
    /// Creates the state for a screen of this many columns and rows.
    pub fn new(session: ChatSession, theme: Theme, size: (u16, u16)) -> Self {
        ChatApp {
            session,
            transcript: Transcript::default(),
            input: InputBox::default(),
            state: Activity::Idle,
            picker: None,
            source: SourcePanel::default(),
            menu: Menu::default(),
            theme,
            mouse: true,
            prompt_tokens: 0,
            memory: None,
            size,
        }
    }

    /// Applies an event and lays out the screen again.
    pub fn update(&mut self, event: AppEvent) -> Vec<Effect> {
        let effects = match event {
            AppEvent::Key(key) => self.key(key),
            AppEvent::Paste(text) => {
                self.input.insert(&text);
                self.menu = Menu::default();
                Vec::new()
            }
            AppEvent::Wheel(rows) => {
                match &mut self.picker {
                    Some(picker) => picker.go(rows.signum()),
                    None => self.transcript.scroll(rows),
                }
                Vec::new()
            }
            AppEvent::Click(column, row) => {
                let area = self.regions(self.screen()).transcript;
                if self.picker.is_none() && area.contains((column, row).into()) {
                    self.transcript.select_at(usize::from(row - area.y));
                }
                Vec::new()
            }
            AppEvent::Resize(columns, rows) => {
                self.size = (columns, rows);
                Vec::new()
            }
            AppEvent::Worker(event) => {
                self.worker_event(event);
                Vec::new()
            }
            AppEvent::Edited(Ok(text)) => {
                self.input.set("");
                self.input.insert(text.trim_end_matches('\n'));
                Vec::new()
            }
            AppEvent::Edited(Err(e)) => {
                self.show_error(&e);
                Vec::new()
            }
            AppEvent::Memory(bytes) => {
                self.memory = bytes;
                Vec::new()
            }
        };
        if let Some(note) = self.session.note.take() {
            self.transcript.note(&note, TextRole::Dim);
        }
        self.arrange();
        effects
    }

    /// Rows of the input, at most a third of the screen.
    pub fn input_rows(&self) -> u16 {
        let most = (self.size.1 / 3).max(1);
        u16::try_from(self.input.height()).unwrap_or(most).min(most)
    }

    /// Divides the screen into the parts that [`super::view`] draws.
    pub fn regions(&self, area: Rect) -> Regions {
        let input_rows = self.input_rows().min(area.height.saturating_sub(CHROME_ROWS));
        let height = area.height.saturating_sub(input_rows + CHROME_ROWS);
        let body = Rect { height, ..area };
        let (transcript, source) = match self.transcript.selected() {
            Some(_) => with_source(body),
            None => (body, None),
        };
        let activity = Rect { y: body.bottom(), height: 1, ..area };
        let input = Rect { y: activity.bottom(), height: input_rows, ..area };
        let status = Rect { y: input.bottom(), height: 1, ..area };
        Regions { transcript, source, activity, input, status }
    }

    fn screen(&self) -> Rect {
        Rect::new(0, 0, self.size.0, self.size.1)
    }

    /// Lays out the input and the transcript for the size of the screen.
    fn arrange(&mut self) {
        self.input.arrange(usize::from(self.size.0.saturating_sub(2)));
        let Regions { transcript, source, .. } = self.regions(self.screen());
        // The last column is the scroll bar's.
        let width = usize::from(transcript.width.saturating_sub(1)).max(1);
        self.transcript.arrange(width, usize::from(transcript.height));
        if let Some((area, quote)) = source.zip(self.transcript.selected()) {
            let inner = area.inner(Margin::new(2, 1));
            let (width, height) = (usize::from(inner.width).max(1), usize::from(inner.height));
            self.source.arrange(quote, self.transcript.sources(), width, height);
        }
    }

    /// Whether the worker thread runs a reply or loads a model.
    pub fn busy(&self) -> bool {
        self.state != Activity::Idle
    }

    /// Runs the command or sends the message in the input.
    pub fn submit(&mut self) -> Vec<Effect> {
        let line = self.input.text().trim().to_owned();
        if line.is_empty() {
            return Vec::new();
        }
        let command = command::parse(&line);
        let is_allowed = match &command {
            Some(Ok(command)) => ChatSession::is_allowed_during_reply(command),
            Some(Err(_)) => true,
            None => false,
        };
        if self.busy() && !is_allowed {
            let why = match self.state {
                Activity::LoadingModel => "the model is loading",
                _ => "busy generating a reply; Esc stops it",
            };
            self.transcript.note(why, TextRole::Dim);
            return Vec::new();
        }
        self.input.take();
        self.input.remember(&line);
        self.menu = Menu::default();
        let mut effects = vec![Effect::Remember(line.clone())];
        match command {
            Some(Ok(command)) => effects.extend(self.run(command)),
            Some(Err(e)) => self.transcript.note(&e, TextRole::Error),
            None => {
                self.session.add_message(&line);
                effects.extend(self.answer());
            }
        }
        effects
    }

    /// Runs a command and performs its action on the screen.
    pub fn run(&mut self, command: SlashCommand) -> Option<Effect> {
        let before = self.session.chat.turns.len();
        let id = self.session.chat.id.clone();
        let action = match self.session.run(command) {
            Ok(action) => action,
            Err(e) => {
                self.show_error(&e);
                return None;
            }
        };
        if self.session.chat.turns.len() != before || self.session.chat.id != id {
            self.transcript.show(&self.session.chat);
            if self.session.chat.turns.is_empty() && self.session.chat.id != id {
                self.welcome();
            }
        }
        match action {
            Action::Say(text) => self.transcript.note(&text, TextRole::Dim),
            Action::Help => {
                let owned = |(name, meaning): (&str, &str)| (name.to_owned(), meaning.to_owned());
                self.transcript.list("Commands", command::entries().collect());
                self.transcript.list("Keys", keys::HELP.map(owned).to_vec());
            }
            Action::Answer => return self.answer(),
            Action::Type(text) => self.input.set(text),
            Action::Editor => return Some(Effect::Editor(self.input.text().to_owned())),
            Action::Copy(text) => {
                self.transcript.note(&format!("copied {}", counted(text.len(), "byte")), TextRole::Dim);
                return Some(Effect::Copy(text));
            }
            Action::List => self.picker = Some(Picker::new(self.session.store.list())),
            Action::SetAppearance(name, value) => return self.set_appearance(&name, &value),
            Action::Model(path) => {
                self.state = Activity::LoadingModel;
                return Some(Effect::LoadModel(path));
            }
            Action::Quit => return Some(Effect::Quit),
        }
        None
    }

    /// Shows what to do first, in three lines.
    fn welcome(&mut self) {
        let first = [
            ("Enter", "sends what you type; Alt-Enter adds a line"),
            ("/file PATH", "attaches a document; quotes of it are checked"),
            ("/help", "lists commands and keys; Ctrl-O opens an earlier chat"),
        ];
        let owned = |(name, meaning): (&str, &str)| (name.to_owned(), meaning.to_owned());
        self.transcript.list(&self.session.model_line(), first.map(owned).to_vec());
    }

    fn set_appearance(&mut self, name: &str, value: &str) -> Option<Effect> {
        let flag = match value {
            "on" | "show" => Some(true),
            "off" | "hide" => Some(false),
            _ => None,
        };
        match (name, value, flag) {
            ("theme", "light" | "dark", _) => self.theme.light = value == "light",
            ("mouse", _, Some(on)) => return Some(self.set_mouse(on)),
            ("reasoning", _, Some(shown)) => self.transcript.unfold(shown),
            _ => {
                let expected = if name == "theme" { "light or dark" } else { "on or off" };
                self.transcript
                    .note(&format!("/set {name}: expected {expected}, found {value:?}"), TextRole::Error);
            }
        }
        None
    }

    /// Turns mouse reporting on, or leaves the mouse to the terminal, where it selects text.
    pub fn set_mouse(&mut self, on: bool) -> Effect {
        self.mouse = on;
        let message =
            if on { "the wheel scrolls; Shift selects" } else { "the mouse selects; PageUp scrolls" };
        self.transcript.note(message, TextRole::Dim);
        Effect::Mouse(on)
    }

    fn answer(&mut self) -> Option<Effect> {
        let prompt = self.session.begin_reply();
        self.transcript.show(&self.session.chat);
        self.prompt_tokens = 0;
        self.state = Activity::Prefill { done: 0, total: 0, rate: 0.0 };
        Some(Effect::Generate(prompt))
    }

    fn worker_event(&mut self, event: WorkerEvent) {
        match event {
            WorkerEvent::Ready(model_info) => {
                self.session.set_model(model_info);
                self.state = Activity::Idle;
                self.transcript.set_model(&self.session.model_info.name);
                if self.session.chat.turns.is_empty() {
                    self.welcome();
                } else {
                    self.transcript.note(&self.session.greeting(), TextRole::Dim);
                }
            }
            WorkerEvent::Prefill { done, total, rate } => {
                self.prompt_tokens = total;
                self.state = Activity::Prefill { done, total, rate };
            }
            WorkerEvent::Reply { event, tokens, rate } => {
                self.session.push_event(&event);
                self.transcript.push_event(&event);
                self.state = Activity::Decode { tokens, rate };
            }
            WorkerEvent::Done(outcome) => {
                self.state = Activity::Idle;
                let stats = outcome.stats.clone();
                let restored = self.session.finish_reply(outcome);
                self.end(restored, chat_session::finish_note(&stats).as_deref(), TextRole::Dim);
            }
            WorkerEvent::Note(text) => self.transcript.note(&text, TextRole::Dim),
            WorkerEvent::Failed(e) if self.state == Activity::LoadingModel => {
                self.state = Activity::Idle;
                self.transcript.note(&e, TextRole::Error);
            }
            WorkerEvent::Failed(e) => {
                self.state = Activity::Idle;
                let restored = self.session.fail_reply();
                self.end(restored, Some(&e), TextRole::Error);
            }
        }
    }

    /// Ends a reply and shows a note. Puts a restored message into the input if that is empty.
    fn end(&mut self, restored: Option<Restored>, mut note: Option<&str>, role: TextRole) {
        self.transcript.finish_reply();
        if let Some(restored) = restored {
            note = note.or(Some(chat_session::EMPTY_REPLY));
            self.transcript.show(&self.session.chat);
            if let Restored::Message(message) = restored
                && self.input.is_empty()
            {
                self.input.set(message);
            }
        }
        if let Some(note) = note {
            self.transcript.note(note, role);
        }
    }

    /// Shows an error in the transcript.
    pub fn show_error(&mut self, e: &anyhow::Error) {
        self.transcript.note(&one_line(e), TextRole::Error);
    }

    /// Opens the chat with this id.
    pub fn open(&mut self, id: &str) {
        match self.session.store.load(id) {
            Ok(chat) => {
                let summary = self.session.open(chat);
                self.transcript.show(&self.session.chat);
                self.transcript.note(&summary, TextRole::Dim);
            }
            Err(e) => self.show_error(&e),
        }
    }
}

/// Divides an area between the transcript and the source panel.
fn with_source(body: Rect) -> (Rect, Option<Rect>) {
    if body.width >= SIDE_BY_SIDE {
        let width = body.width * 9 / 20;
        let transcript = Rect { width: body.width - width, ..body };
        return (transcript, Some(Rect { x: transcript.right(), width, ..body }));
    }
    let height = if body.height < SHARED_ROWS { body.height } else { body.height / 2 };
    let transcript = Rect { height: body.height - height, ..body };
    (transcript, Some(Rect { y: transcript.bottom(), height, ..body }))
}
