//! A chat under way and what commands do to it, the same for the line editor and the full screen.
//!
//! It knows no terminal: what an interface has to do it says as a [`Todo`]. Next: [`super::app`], [`super::plain`].

use super::command::{self, Command, Copied};
use super::markdown;
use super::reply::{About, Ask, Outcome};
use super::settings::Settings;
use super::store::{Attached, Chat, Role, Store, Turn};
use crate::generation::generate::{FinishReason, Stats};
use crate::io::document;
use crate::io::errors::one_line;
use crate::runtime::session::Error;
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;

/// What is said where a reply ended before it began, and nothing else is known.
pub const EMPTY: &str = "the reply was empty";
/// What is said where `/edit` was left without a message.
pub const NOT_EDITED: &str = "the chat is as it was before /edit";

/// A chat under way.
pub struct Talk {
    /// The chat; while a reply is made its text so far is the last turn.
    pub chat: Chat,
    /// How replies are made.
    pub settings: Settings,
    /// Files that go with the next message.
    pub files: Vec<Attached>,
    /// The last reply.
    pub last: Option<Stats>,
    /// What is being talked to.
    pub about: About,
    /// All chats.
    pub store: Store,
    /// What a person should know of how the chat was stored; whoever says it takes it.
    pub note: Option<String>,
    system: Option<String>,
    taken: Option<Taken>,
    /// The chat could not be written the last time.
    unsaved: bool,
}

/// What `/edit` or `/regen` took from the end of the chat. On disk it stays until there is text in its place.
struct Taken {
    at: usize,
    turns: Vec<Turn>,
}

/// What comes back where no reply came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Back {
    /// The message, to be written again; its files wait.
    Message(String),
    /// The chat, as it was before `/regen`.
    Chat,
}

/// What an interface has to do after a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Todo {
    /// Say this.
    Say(String),
    /// Say what the commands and the keys are.
    Help,
    /// Have the chat answered, as [`Talk::ask`] puts it.
    Answer,
    /// Put this where the person writes.
    Type(String),
    /// Open the editor on what is being written.
    Editor,
    /// Put this on the clipboard.
    Copy(String),
    /// Show the list of chats.
    List,
    /// Change how things look.
    Look(String, String),
    /// Open another model.
    Model(PathBuf),
    /// Leave.
    Quit,
}

impl Talk {
    /// An empty chat.
    pub fn new(store: Store, settings: Settings, system: Option<String>) -> Self {
        let chat = Chat::new(system.clone());
        Talk {
            chat,
            settings,
            files: Vec::new(),
            last: None,
            about: About::default(),
            store,
            note: None,
            system,
            taken: None,
            unsaved: false,
        }
    }

    /// Does what a command asks for.
    pub fn run(&mut self, command: Command) -> Result<Todo> {
        Ok(match command {
            Command::Help => Todo::Help,
            Command::File(path) => Todo::Say(self.attach(&path)?),
            Command::System(text) => Todo::Say(self.set_system(text)?),
            Command::Set(None) => Todo::Say(self.settings.line()),
            Command::Set(Some((name, value))) => self.set(name, value)?,
            Command::Regen => self.regenerate()?,
            Command::Edit => Todo::Type(self.edit()?),
            Command::Editor => Todo::Editor,
            Command::Undo => Todo::Say(self.undo()?),
            Command::Branch(exchanges) => Todo::Say(self.branch(exchanges)?),
            Command::Save(title) => Todo::Say(self.save_as(title)?),
            Command::Load(name) if name.is_empty() => Todo::List,
            Command::Load(name) => {
                let chat = self.store.find(&name)?;
                Todo::Say(self.open(chat))
            }
            Command::Export(path) => Todo::Say(self.export(path)?),
            Command::Copy(what) => Todo::Copy(self.copied(what)?),
            Command::Clear => {
                self.open(Chat::new(self.system.clone()));
                Todo::Say("a new chat".into())
            }
            Command::Stats => Todo::Say(self.stats()),
            Command::Model(file) if file.is_empty() => Todo::Say(self.model()),
            Command::Model(file) => Todo::Model(command::expand(&file)),
            Command::Quit => Todo::Quit,
        })
    }

    /// Whether a command may run while a reply is made: those that leave the chat alone.
    pub fn allowed_meanwhile(command: &Command) -> bool {
        use Command::{Copy, Editor, Export, File, Help, Model, Quit, Save, Set, Stats};
        match command {
            Model(file) => file.is_empty(),
            Help | File(_) | Set(_) | Editor | Export(_) | Copy(_) | Save(_) | Stats | Quit => true,
            _ => false,
        }
    }

    /// Adds the person's message, with the files that wait.
    pub fn say(&mut self, text: &str) {
        let files = std::mem::take(&mut self.files);
        self.chat.turns.push(Turn { files, ..Turn::new(Role::User, text) });
    }

    /// The chat as it asks for a reply, whose turn begins empty. On disk the message is safe from here on, if it
    /// takes the place of nothing there.
    pub fn ask(&mut self) -> Ask {
        let ask =
            Ask { system: self.chat.system.clone(), turns: self.chat.turns.clone(), settings: self.settings };
        if self.taken.is_none() {
            self.keep();
        }
        self.chat.turns.push(Turn::new(Role::Assistant, ""));
        ask
    }

    /// Text of the reply.
    pub fn hear(&mut self, text: &str) {
        if !text.is_empty() {
            self.taken = None;
        }
        if let Some(turn) = self.chat.turns.last_mut().filter(|t| t.role == Role::Assistant) {
            turn.text.push_str(text);
        }
    }

    /// The end of the reply. One that was stopped before it began counts as none, and so does an empty one that
    /// would replace something.
    pub fn heard(&mut self, outcome: Outcome) -> Option<Back> {
        let needed = outcome.stats.ended == FinishReason::Cancelled || self.taken.is_some();
        if needed && !self.replied() {
            return self.give_up();
        }
        if let Some(turn) = self.chat.turns.last_mut() {
            turn.ids = outcome.ids;
        }
        self.last = Some(outcome.stats);
        self.keep();
        None
    }

    /// Whether the last turn is a reply with text.
    fn replied(&self) -> bool {
        self.chat.turns.last().is_some_and(|turn| turn.role == Role::Assistant && !turn.text.is_empty())
    }

    /// The end of a reply that failed. What there is of it stays.
    pub fn give_up(&mut self) -> Option<Back> {
        let back = if self.replied() { None } else { self.nothing_came() };
        self.keep();
        back
    }

    /// Removes what was asked last, or puts back what was to be replaced.
    fn nothing_came(&mut self) -> Option<Back> {
        self.chat.turns.pop_if(|turn| turn.role == Role::Assistant);
        if self.taken.as_ref().is_some_and(|taken| taken.at == self.chat.turns.len()) {
            self.put_back();
            return Some(Back::Chat);
        }
        self.remove_exchange().map(|turn| Back::Message(turn.text))
    }

    /// Leaves the chat as it was before `/edit`, if its message was not sent yet. Whether that is so.
    pub fn stop_editing(&mut self) -> bool {
        let edited = self.put_back();
        if edited {
            self.files.clear();
        }
        edited
    }

    /// Writes the chat as it is. Where that fails, as on a full disk, a note says so once, and the chat goes on.
    pub fn keep(&mut self) {
        match self.store_chat() {
            Ok(()) => self.unsaved = false,
            Err(_) if self.unsaved => {}
            Err(e) => {
                self.unsaved = true;
                self.note = Some(format!("{}: it goes on unsaved", one_line(&e)));
            }
        }
    }

    /// Writes the chat as it is; one without messages has no file.
    pub fn store_chat(&mut self) -> Result<()> {
        self.chat.touch();
        let mut chat = self.lasting();
        if self.store.save(&mut chat).context("the chat could not be saved")? {
            self.note = Some(format!("another window changed this chat: it goes on here as {}", chat.title));
            (self.chat.id, self.chat.title) = (chat.id, chat.title);
        }
        Ok(())
    }

    /// The chat as it is on disk: with what was taken from it, and without a reply that has not begun.
    fn lasting(&self) -> Chat {
        let mut chat = self.chat.clone();
        if let Some(taken) = &self.taken {
            chat.turns.truncate(taken.at);
            chat.turns.extend_from_slice(&taken.turns);
        }
        chat.turns.pop_if(|turn| turn.role == Role::Assistant && turn.text.is_empty());
        chat
    }

    /// Goes to another chat.
    pub fn open(&mut self, chat: Chat) -> String {
        let said = format!("{}: {} messages", chat.name(), chat.turns.len());
        self.chat = chat;
        self.files.clear();
        self.last = None;
        self.taken = None;
        said
    }

    fn put_back(&mut self) -> bool {
        let Some(taken) = self.taken.take() else { return false };
        self.chat.turns.truncate(taken.at);
        self.chat.turns.extend(taken.turns);
        true
    }

    fn last_message(&self) -> Option<usize> {
        self.chat.turns.iter().rposition(|t| t.role == Role::User)
    }

    fn remove_exchange(&mut self) -> Option<Turn> {
        let at = self.last_message()?;
        let mut turn = self.chat.turns.swap_remove(at);
        self.chat.turns.truncate(at);
        self.files = std::mem::take(&mut turn.files);
        Some(turn)
    }

    fn undo(&mut self) -> Result<String> {
        self.stop_editing();
        self.remove_exchange().context("nothing to take back")?;
        self.files.clear();
        self.store_chat()?;
        Ok("the last exchange is taken back".into())
    }

    fn edit(&mut self) -> Result<String> {
        self.stop_editing();
        let at = self.last_message().context("nothing to take back")?;
        let turns = self.chat.turns.split_off(at);
        self.files.clone_from(&turns[0].files);
        let text = turns[0].text.clone();
        self.taken = Some(Taken { at, turns });
        Ok(text)
    }

    fn regenerate(&mut self) -> Result<Todo> {
        self.stop_editing();
        let at = self.last_message().context("nothing to answer again")? + 1;
        self.taken = Some(Taken { at, turns: self.chat.turns.split_off(at) });
        self.settings.sampling.seed = self.settings.sampling.seed.wrapping_add(1);
        Ok(Todo::Answer)
    }

    fn set(&mut self, name: String, value: String) -> Result<Todo> {
        if ["theme", "mouse", "reasoning"].contains(&name.as_str()) {
            return Ok(Todo::Look(name, value));
        }
        self.settings.set(&name, &value).map_err(anyhow::Error::msg)?;
        Ok(Todo::Say(format!("{name} {value}")))
    }

    fn set_system(&mut self, text: String) -> Result<String> {
        self.chat.system = Some(text).filter(|t| !t.is_empty());
        self.store_chat()?;
        let said = if self.chat.system.is_some() { "the system message is set" } else { "no system message" };
        Ok(said.into())
    }

    fn attach(&mut self, path: &str) -> Result<String> {
        let text = document::read(&command::expand(path))?.text;
        let said =
            format!("{path}: {} lines, {} bytes go with the next message", text.lines().count(), text.len());
        self.files.push(Attached { name: path.to_owned(), text });
        Ok(said)
    }

    fn branch(&mut self, exchanges: Option<usize>) -> Result<String> {
        self.stop_editing();
        let users = |(i, turn): (usize, &Turn)| (turn.role == Role::User).then_some(i);
        let starts: Vec<usize> = self.chat.turns.iter().enumerate().filter_map(users).collect();
        let keep = exchanges.unwrap_or(starts.len());
        if keep > starts.len() {
            bail!("/branch: expected at most {} exchanges, found {keep}", starts.len());
        }
        let mut copy = Chat::new(self.chat.system.clone());
        copy.title = format!("{} (branch)", self.chat.name());
        copy.turns = self.chat.turns[..starts.get(keep).copied().unwrap_or(self.chat.turns.len())].to_vec();
        self.chat = copy;
        self.store_chat()?;
        Ok(format!("{}: {keep} exchanges; the chat it comes from is unchanged", self.chat.title))
    }

    fn save_as(&mut self, title: String) -> Result<String> {
        if !title.is_empty() {
            self.chat.title = title;
        }
        if self.lasting().turns.is_empty() {
            return Ok("nothing to save yet".into());
        }
        self.store_chat()?;
        Ok(format!("saved as {}", self.lasting().name()))
    }

    fn export(&self, path: String) -> Result<String> {
        let named = || {
            let letters = |c: char| if c.is_alphanumeric() { c } else { '-' };
            format!("{}.md", self.chat.name().chars().map(letters).collect::<String>().trim_matches('-'))
        };
        let path = command::expand(&if path.is_empty() { named() } else { path });
        let file = std::fs::File::create_new(&path).with_context(|| path.display().to_string())?;
        let written = std::io::Write::write_all(&mut &file, self.markdown().as_bytes());
        if written.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        written.with_context(|| path.display().to_string())?;
        Ok(format!("written to {}", path.display()))
    }

    fn markdown(&self) -> String {
        let mut text = format!("# {}\n", self.chat.name());
        if let Some(system) = &self.chat.system {
            text += &format!("\n## System\n\n{system}\n");
        }
        for turn in &self.chat.turns {
            let who = if turn.role == Role::User { "You" } else { "Reply" };
            text += &format!("\n## {who}\n\n");
            for file in &turn.files {
                text += &format!("[{}: {} bytes]\n\n", file.name, file.text.len());
            }
            text += &format!("{}\n", turn.text.trim_end());
        }
        text
    }

    fn copied(&self, what: Copied) -> Result<String> {
        let reply = self.chat.turns.iter().rfind(|t| t.role == Role::Assistant);
        let reply = || reply.map(|t| t.text.clone()).context("no reply to copy yet");
        match what {
            Copied::All => Ok(self.markdown()),
            Copied::Reply => reply(),
            Copied::Code => markdown::last_code(&reply()?).context("no code block in the last reply"),
        }
    }

    fn stats(&self) -> String {
        let last = self.last.as_ref().map_or("no reply yet".to_owned(), |stats| stats.line());
        let of = self.about.context.map_or(String::new(), |n| format!(" of {n}"));
        format!("{last}\ncontext {}{of} tokens", self.context())
    }

    /// Tokens in the context after the last reply.
    pub fn context(&self) -> usize {
        self.last.as_ref().map_or(0, |s| s.prefill.reused + s.prefill.computed + s.generated)
    }

    fn model(&self) -> String {
        let context = self.about.context.map_or(String::new(), |n| format!(", context {n} tokens"));
        format!("{} on {}{context}", self.about.name, self.about.place)
    }
}

/// What a person should know about how a reply ended.
pub fn ending(stats: &Stats) -> Option<String> {
    Some(match &stats.ended {
        FinishReason::EndToken | FinishReason::StopString => return None,
        FinishReason::Length => "cut at the limit: /set max-tokens, or the context is full".into(),
        FinishReason::Cancelled if stats.prefill.stopped => {
            "stopped while reading; what was read is kept".into()
        }
        FinishReason::Cancelled => "stopped".into(),
        FinishReason::Constraint(why) => why.clone(),
        FinishReason::Unread(_) => "stopped".into(), // no reply made here
        FinishReason::NotFinite(position) => Error::NotFinite { position: *position }.to_string(),
    })
}
