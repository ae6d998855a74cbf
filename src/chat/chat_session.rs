//! The state of a chat and the effect of its commands, shared by the line editor and the full screen.
//!
//! It does no terminal output: [`ChatSession::run`] returns an [`Action`] for the interface to perform. Next:
//! [`super::app`], [`super::repl`].

use super::command::{self, CopyTarget, SlashCommand};
use super::markdown;
use super::settings::Settings;
use super::store::{Attachment, Author, ChatStore, StoredChat, Turn};
use crate::client::{ModelInfo, PromptMessage, ReplyOutcome};
use crate::documents::{Document, gather};
use crate::generation::event::Stats;
use crate::generation::generate::FinishReason;
use crate::generation::markup::ReplyEvent;
use crate::generation::sample::Sampling;
use crate::io::errors::one_line;
use crate::io::units::counted;
use crate::runtime::sampling_options::SamplingOptions;
use crate::runtime::session::Error;
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;

/// Message for a reply that ended without text and without an error.
pub const EMPTY_REPLY: &str = "the reply was empty";
/// Message for an `/edit` that was cancelled.
pub const EDIT_CANCELLED: &str = "edit cancelled; the chat is unchanged";

/// A chat with its settings, attachments and saved file.
pub struct ChatSession {
    /// The chat. During a reply, the text so far is its last turn.
    pub chat: StoredChat,
    pub settings: Settings,
    /// Attachments of the next message.
    pub files: Vec<Attachment>,
    /// Statistics of the last reply.
    pub last: Option<Stats>,
    pub model_info: ModelInfo,
    pub store: ChatStore,
    /// A message about saving the chat. The interface takes and shows it.
    pub note: Option<String>,
    /// The system message of new chats.
    system: Option<String>,
    pending_edit: Option<PendingEdit>,
    /// The last attempt to save the chat failed.
    unsaved: bool,
}

/// Turns that `/edit` or `/regen` removed from the end of the chat. They stay on disk until the new reply has text.
struct PendingEdit {
    at: usize,
    turns: Vec<Turn>,
}

/// A chat to reply to. The last turn is a user message.
#[derive(Clone, Debug)]
pub struct ChatPrompt {
    pub system: Option<String>,
    /// Messages from the oldest to the newest.
    pub turns: Vec<Turn>,
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// The sampling parameters that the user set.
    pub given: SamplingOptions,
}

impl ChatPrompt {
    /// The messages for a model.
    pub fn messages(&self) -> Vec<PromptMessage> {
        let system = self.system.iter().map(|text| PromptMessage::new("system", text));
        system.chain(self.turns.iter().map(Turn::message)).collect()
    }
}

/// What a failed or empty reply restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The user's message, for the input; its attachments are attached again.
    Message(String),
    /// The reply that `/regen` would have replaced.
    Chat,
}

/// What the interface has to do after a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Say(String),
    /// Show the help of commands and keys.
    Help,
    /// Request the reply that [`ChatSession::begin_reply`] describes.
    Answer,
    /// Put this text into the input.
    Type(String),
    /// Open the external editor with the input.
    Editor,
    /// Copy this text to the clipboard.
    Copy(String),
    /// Show the list of chats.
    List,
    /// Change a setting of the appearance: its name and value.
    SetAppearance(String, String),
    /// Load the model in this file.
    Model(PathBuf),
    Quit,
}

impl ChatSession {
    pub fn new(store: ChatStore, settings: Settings, system: Option<String>) -> Self {
        let chat = StoredChat::new(system.clone());
        ChatSession {
            chat,
            settings,
            files: Vec::new(),
            last: None,
            model_info: ModelInfo::default(),
            store,
            note: None,
            system,
            pending_edit: None,
            unsaved: false,
        }
    }

    /// Applies a command.
    ///
    /// # Errors
    /// A command that the chat does not allow, and files that cannot be read or written.
    pub fn run(&mut self, command: SlashCommand) -> Result<Action> {
        Ok(match command {
            SlashCommand::Help => Action::Help,
            SlashCommand::File(path) => Action::Say(self.attach(&path)?),
            SlashCommand::System(text) => Action::Say(self.set_system(text)?),
            SlashCommand::Set(None) => Action::Say(self.settings.line()),
            SlashCommand::Set(Some((name, value))) => self.set(name, value)?,
            SlashCommand::Regen => self.regenerate()?,
            SlashCommand::Edit => Action::Type(self.edit()?),
            SlashCommand::Editor => Action::Editor,
            SlashCommand::Undo => Action::Say(self.undo()?),
            SlashCommand::Branch(exchanges) => Action::Say(self.branch(exchanges)?),
            SlashCommand::Save(title) => Action::Say(self.save_as(title)?),
            SlashCommand::Load(name) if name.is_empty() => Action::List,
            SlashCommand::Load(name) => {
                let chat = self.store.find(&name)?;
                Action::Say(self.open(chat))
            }
            SlashCommand::Export(path) => Action::Say(self.export(path)?),
            SlashCommand::Copy(what) => Action::Copy(self.clipboard_text(what)?),
            SlashCommand::Clear => {
                self.open(StoredChat::new(self.system.clone()));
                Action::Say("new chat".into())
            }
            SlashCommand::Stats => Action::Say(self.stats()),
            SlashCommand::Model(file) if file.is_empty() => Action::Say(self.describe_model()),
            SlashCommand::Model(file) => Action::Model(command::expand(&file)),
            SlashCommand::Quit => Action::Quit,
        })
    }

    /// Whether a command can run during a reply, as it does not change the chat's turns.
    pub fn is_allowed_during_reply(command: &SlashCommand) -> bool {
        use SlashCommand::{Copy, Editor, Export, File, Help, Model, Quit, Save, Set, Stats};
        match command {
            Model(file) => file.is_empty(),
            Help | File(_) | Set(_) | Editor | Export(_) | Copy(_) | Save(_) | Stats | Quit => true,
            _ => false,
        }
    }

    /// Adds a user message with the pending attachments.
    pub fn add_message(&mut self, text: &str) {
        let files = std::mem::take(&mut self.files);
        self.chat.turns.push(Turn { files, ..Turn::new(Author::User, text) });
    }

    /// Begins a reply: adds its empty turn and returns the prompt. Saves the chat first, unless the message would
    /// replace another one on disk.
    pub fn begin_reply(&mut self) -> ChatPrompt {
        let prompt = ChatPrompt {
            system: self.chat.system.clone(),
            turns: self.chat.turns.clone(),
            max_tokens: self.settings.max_tokens,
            sampling: self.settings.sampling,
            given: self.settings.given(),
        };
        if self.pending_edit.is_none() {
            self.autosave();
        }
        self.chat.turns.push(Turn::new(Author::Assistant, ""));
        prompt
    }

    /// Appends a part of the reply.
    pub fn push_event(&mut self, event: &ReplyEvent) {
        if let Some(turn) = self.chat.turns.last_mut().filter(|t| t.role == Author::Assistant) {
            event.append_to(&mut turn.reasoning, &mut turn.text);
            if !turn.is_empty() {
                self.pending_edit = None;
            }
        }
    }

    /// Ends the reply. A reply without text that was stopped, or that would replace another one, is discarded.
    pub fn finish_reply(&mut self, outcome: ReplyOutcome) -> Option<Restored> {
        let needs_text = outcome.stats.ended == FinishReason::Cancelled || self.pending_edit.is_some();
        if needs_text && !self.has_reply() {
            return self.fail_reply();
        }
        if let Some(turn) = self.chat.turns.last_mut() {
            turn.ids = outcome.ids;
        }
        self.last = Some(outcome.stats);
        self.autosave();
        None
    }

    /// Whether the last turn is a non-empty reply.
    fn has_reply(&self) -> bool {
        self.chat.turns.last().is_some_and(|turn| turn.role == Author::Assistant && !turn.is_empty())
    }

    /// Ends a reply that failed. Its text so far stays in the chat.
    pub fn fail_reply(&mut self) -> Option<Restored> {
        let restored = if self.has_reply() { None } else { self.discard_reply() };
        self.autosave();
        restored
    }

    /// Removes the last message, or restores the turns that the reply would have replaced.
    fn discard_reply(&mut self) -> Option<Restored> {
        self.chat.turns.pop_if(|turn| turn.role == Author::Assistant);
        if self.pending_edit.as_ref().is_some_and(|edit| edit.at == self.chat.turns.len()) {
            self.restore_pending();
            return Some(Restored::Chat);
        }
        self.remove_exchange().map(|turn| Restored::Message(turn.text))
    }

    /// Restores the chat before `/edit` if the edited message was not sent yet; returns whether that was so.
    pub fn cancel_edit(&mut self) -> bool {
        let was_editing = self.restore_pending();
        if was_editing {
            self.files.clear();
        }
        was_editing
    }

    /// Saves the chat. The first failure, such as a full disk, becomes a note; the chat continues unsaved.
    pub fn autosave(&mut self) {
        match self.save() {
            Ok(()) => self.unsaved = false,
            Err(_) if self.unsaved => {}
            Err(e) => {
                self.unsaved = true;
                self.note = Some(format!("{}; continuing unsaved", one_line(&e)));
            }
        }
    }

    /// Saves the chat; a chat without messages has no file.
    ///
    /// # Errors
    /// The file or its directory cannot be written.
    pub fn save(&mut self) -> Result<()> {
        self.chat.touch();
        let mut chat = self.persistent_chat();
        if self.store.save(&mut chat).context("the chat could not be saved")? {
            self.note =
                Some(format!("another window changed this chat; it continues here as {}", chat.title));
            (self.chat.id, self.chat.title) = (chat.id, chat.title);
        }
        Ok(())
    }

    /// The chat as it is saved: with the turns of a pending edit, and without an empty reply.
    fn persistent_chat(&self) -> StoredChat {
        let mut chat = self.chat.clone();
        if let Some(edit) = &self.pending_edit {
            chat.turns.truncate(edit.at);
            chat.turns.extend_from_slice(&edit.turns);
        }
        chat.turns.pop_if(|turn| turn.role == Author::Assistant && turn.is_empty());
        chat
    }

    /// Replaces the chat by another one; returns a message with its name and length.
    pub fn open(&mut self, chat: StoredChat) -> String {
        let summary = format!("{}: {}", chat.name(), counted(chat.turns.len(), "message"));
        self.chat = chat;
        self.files.clear();
        self.last = None;
        self.pending_edit = None;
        summary
    }

    fn restore_pending(&mut self) -> bool {
        let Some(edit) = self.pending_edit.take() else { return false };
        self.chat.turns.truncate(edit.at);
        self.chat.turns.extend(edit.turns);
        true
    }

    fn last_message(&self) -> Option<usize> {
        self.chat.turns.iter().rposition(|t| t.role == Author::User)
    }

    fn remove_exchange(&mut self) -> Option<Turn> {
        let at = self.last_message()?;
        let mut turn = self.chat.turns.swap_remove(at);
        self.chat.turns.truncate(at);
        self.files = std::mem::take(&mut turn.files);
        Some(turn)
    }

    fn undo(&mut self) -> Result<String> {
        self.cancel_edit();
        self.remove_exchange().context("no exchange to undo")?;
        self.files.clear();
        self.save()?;
        Ok("last exchange removed".into())
    }

    fn edit(&mut self) -> Result<String> {
        self.cancel_edit();
        let at = self.last_message().context("no message to edit")?;
        let turns = self.chat.turns.split_off(at);
        self.files.clone_from(&turns[0].files);
        let text = turns[0].text.clone();
        self.pending_edit = Some(PendingEdit { at, turns });
        Ok(text)
    }

    fn regenerate(&mut self) -> Result<Action> {
        self.cancel_edit();
        let at = self.last_message().context("no reply to regenerate")? + 1;
        self.pending_edit = Some(PendingEdit { at, turns: self.chat.turns.split_off(at) });
        self.settings.sampling.seed = self.settings.sampling.seed.wrapping_add(1);
        Ok(Action::Answer)
    }

    fn set(&mut self, name: String, value: String) -> Result<Action> {
        if ["theme", "mouse", "reasoning"].contains(&name.as_str()) {
            return Ok(Action::SetAppearance(name, value));
        }
        self.settings.set(&name, &value).map_err(anyhow::Error::msg)?;
        Ok(Action::Say(format!("{name} {value}")))
    }

    fn set_system(&mut self, text: String) -> Result<String> {
        self.chat.system = Some(text).filter(|t| !t.is_empty());
        self.save()?;
        let change = if self.chat.system.is_some() { "set" } else { "removed" };
        Ok(format!("system message {change}"))
    }

    fn attach(&mut self, path: &str) -> Result<String> {
        let Document { text, parts, .. } = gather::read(&command::expand(path))?;
        let summary = format!(
            "{path}: {}, {}, attached to the next message",
            counted(text.lines().count(), "line"),
            counted(text.len(), "byte")
        );
        self.files.push(Attachment { name: path.to_owned(), text, parts });
        Ok(summary)
    }

    fn branch(&mut self, exchanges: Option<usize>) -> Result<String> {
        self.cancel_edit();
        let users = |(i, turn): (usize, &Turn)| (turn.role == Author::User).then_some(i);
        let starts: Vec<usize> = self.chat.turns.iter().enumerate().filter_map(users).collect();
        let keep = exchanges.unwrap_or(starts.len());
        if keep > starts.len() {
            bail!("/branch: expected at most {} exchanges, found {keep}", starts.len());
        }
        let mut copy = StoredChat::new(self.chat.system.clone());
        copy.title = format!("{} (branch)", self.chat.name());
        copy.turns = self.chat.turns[..starts.get(keep).copied().unwrap_or(self.chat.turns.len())].to_vec();
        self.chat = copy;
        self.save()?;
        Ok(format!("{}: {}; the original chat is unchanged", self.chat.title, counted(keep, "exchange")))
    }

    fn save_as(&mut self, title: String) -> Result<String> {
        if !title.is_empty() {
            self.chat.title = title;
        }
        if self.persistent_chat().turns.is_empty() {
            return Ok("nothing to save yet".into());
        }
        self.save()?;
        Ok(format!("saved as {}", self.persistent_chat().name()))
    }

    fn export(&self, path: String) -> Result<String> {
        let default_name = || {
            let letters = |c: char| if c.is_alphanumeric() { c } else { '-' };
            format!("{}.md", self.chat.name().chars().map(letters).collect::<String>().trim_matches('-'))
        };
        let path = command::expand(&if path.is_empty() { default_name() } else { path });
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
            let heading = if turn.role == Author::User { "You" } else { "Reply" };
            text += &format!("\n## {heading}\n\n");
            for file in &turn.files {
                text += &format!("[{}: {} bytes]\n\n", file.name, file.text.len());
            }
            text += &format!("{}\n", turn.full_text().trim_end());
        }
        text
    }

    fn clipboard_text(&self, what: CopyTarget) -> Result<String> {
        let reply = self.chat.turns.iter().rfind(|t| t.role == Author::Assistant);
        let reply = || reply.map(|t| t.full_text().into_owned()).context("no reply to copy yet");
        match what {
            CopyTarget::All => Ok(self.markdown()),
            CopyTarget::Reply => reply(),
            CopyTarget::Code => markdown::last_code(&reply()?).context("no code block in the last reply"),
        }
    }

    fn stats(&self) -> String {
        let last = self.last.as_ref().map_or("no reply yet".to_owned(), |stats| stats.line());
        let of = self.model_info.context_limit.map_or(String::new(), |n| format!(" of {n}"));
        format!("{last}\ncontext {}{of} tokens", self.used_tokens())
    }

    /// Tokens in the context after the last reply, 0 before the first one.
    pub fn used_tokens(&self) -> usize {
        self.last.as_ref().map_or(0, |s| s.prefill.reused + s.prefill.computed + s.generated)
    }

    /// Sets the loaded model, whose sampling defaults replace those of the one before.
    pub fn set_model(&mut self, model_info: ModelInfo) {
        self.settings.set_model(model_info.sampling);
        self.model_info = model_info;
    }

    /// The line that a chat begins with: the model, its sampling defaults, and the command to start with.
    pub fn greeting(&self) -> String {
        format!("{} /help lists commands.", self.model_line())
    }

    /// The model, its device and its sampling defaults.
    pub fn model_line(&self) -> String {
        let ModelInfo { name, runs_on, sampling, .. } = &self.model_info;
        let sampling = match sampling.line() {
            line if line.is_empty() => String::new(),
            line => format!(" Sampling of the model file: {line}."),
        };
        format!("{name} on {runs_on}.{sampling}")
    }

    fn describe_model(&self) -> String {
        let context =
            self.model_info.context_limit.map_or(String::new(), |n| format!(", context {n} tokens"));
        format!("{} on {}{context}", self.model_info.name, self.model_info.runs_on)
    }
}

/// Says why a reply ended early; None for one that is complete.
pub fn finish_note(stats: &Stats) -> Option<String> {
    Some(match &stats.ended {
        FinishReason::EndToken | FinishReason::StopString(_) => return None,
        FinishReason::Length => {
            "cut at the limit; /set max-tokens raises it, unless the context is full".into()
        }
        FinishReason::Cancelled if stats.prefill.stopped => {
            "stopped during prefill; the prefilled tokens are kept".into()
        }
        FinishReason::Cancelled => "stopped".into(),
        FinishReason::Constraint(why) => why.clone(),
        FinishReason::Unread(_) => "stopped".into(), // not produced by a chat
        FinishReason::DeviceFailed(why) => format!("the GPU failed: {why}"),
        FinishReason::NotFinite(position) => Error::NotFinite { position: *position }.to_string(),
    })
}
