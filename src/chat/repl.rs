//! The line editor of `--plain`, for dumb terminals and pipes: history, multi-line input, and the commands of the full
//! screen. Ctrl-C stops the reply, not the program.

use super::chat_session::{Action, ChatSession, EDIT_CANCELLED, EMPTY_REPLY, Restored, finish_note};
use super::command::{self, SlashCommand, parse};
use super::store::{excerpt, restrict_to_user};
use super::terminal::edit;
use super::worker::{ChatWorker, WorkerCommand, WorkerEvent};
use crate::generation::markup::{REASONING_TAGS, ReplyEvent};
use crate::io::errors::one_line;
use crate::io::output::{Output, is_printable, printable, tell};
use crate::io::units::{counted, grouped};
use crate::io::{private_file, user_dirs};
use anyhow::{Context as _, Result, bail};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper, Hinter};
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Moves to the start of the line and clears it.
const CLEAR_LINE: &str = "\r\x1b[K";
const KEYS: &str = "A line that ends with \\ continues on the next line; Alt-Enter adds a line; Tab completes. Ctrl-C stops a reply.";

/// A chat session with its input loop.
pub struct Repl {
    session: ChatSession,
    worker: ChatWorker,
    /// Initial text of the next line.
    draft: String,
    /// Non-empty lines so far, and those that failed.
    lines: usize,
    failed: usize,
}

/// Whether the terminal has no cursor movement (`TERM=dumb`).
pub fn is_dumb_terminal() -> bool {
    std::env::var("TERM").is_ok_and(|term| term == "dumb")
}

impl Repl {
    /// Installs the handler for Ctrl-C.
    pub fn new(session: ChatSession, worker: ChatWorker) -> Result<Self> {
        let stop = worker.stop.clone();
        ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed))?;
        Ok(Repl { session, worker, draft: String::new(), lines: 0, failed: 0 })
    }

    /// Runs until the end of input.
    ///
    /// # Errors
    /// Input from a pipe of which lines failed. At a terminal the user has seen their errors.
    pub fn run(mut self) -> Result<()> {
        let config = Config::builder().auto_add_history(true).bracketed_paste(true).build();
        let mut editor: Editor<Lines, FileHistory> = Editor::with_config(config)?;
        editor.set_helper(Some(Lines));
        editor.bind_sequence(rustyline::KeyEvent::alt('\r'), rustyline::Cmd::Newline);
        let history = user_dirs::state().map(|dir| dir.join("history"));
        if let Some(path) = &history {
            // A missing history file is no error.
            let _ = restrict_to_user(path, || private_file::open(path)).map(|_| editor.load_history(path));
        }
        if std::io::stdin().is_terminal() {
            tell(&self.session.greeting());
        }
        self.read_lines(&mut editor)?;
        if let Some(path) = &history
            && let Err(e) = save_history(&mut editor, path)
        {
            tell(&format!("{}: {e:#}: the input history is not saved", path.display()));
        }
        self.worker.close()?;
        if self.failed > 0 && !std::io::stdin().is_terminal() {
            bail!("{} of {} lines failed", self.failed, self.lines);
        }
        Ok(())
    }

    fn read_lines(&mut self, editor: &mut Editor<Lines, FileHistory>) -> Result<()> {
        loop {
            let draft = std::mem::take(&mut self.draft);
            match editor.readline_with_initial("> ", (&draft, "")) {
                Ok(line) => {
                    let flow = self.run_line(&line.replace("\\\n", "\n"))?;
                    self.session.note.take().iter().for_each(|note| tell(note));
                    if flow.is_break() {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) if self.session.cancel_edit() => {
                    tell(&format!("({EDIT_CANCELLED})"))
                }
                Err(ReadlineError::Interrupted) => tell("(Ctrl-D or /quit quits)"),
                Err(ReadlineError::Eof) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn run_line(&mut self, line: &str) -> Result<ControlFlow<()>> {
        let line = line.trim();
        self.lines += usize::from(!line.is_empty());
        match parse(line) {
            None if line.is_empty() => {}
            None => {
                self.session.add_message(line);
                self.answer()?;
            }
            Some(Err(e)) => self.fail(&e),
            Some(Ok(command)) => {
                let prints_to_stdout = matches!(command, SlashCommand::Stats | SlashCommand::Set(None));
                match self.session.run(command) {
                    Ok(action) => return self.perform(action, prints_to_stdout),
                    Err(e) => self.fail(&one_line(&e)),
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn fail(&mut self, error: &str) {
        tell(error);
        self.failed += 1;
    }

    fn perform(&mut self, action: Action, prints_to_stdout: bool) -> Result<ControlFlow<()>> {
        match action {
            Action::Say(text) if prints_to_stdout => Output::lock().say_line(&text)?,
            Action::Say(text) => tell(&text),
            Action::Help => Output::lock().say_line(&format!("{}\n{KEYS}", command::help()))?,
            Action::Answer => self.answer()?,
            Action::Type(text) => self.draft = text,
            Action::Editor => match edit("") {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => {
                    self.session.add_message(text.trim_end());
                    self.answer()?;
                }
                Err(e) => self.fail(&one_line(&e)),
            },
            Action::Copy(text) => {
                let copy = crossterm::clipboard::CopyToClipboard::to_clipboard_from(&text);
                crossterm::execute!(std::io::stderr(), copy)?;
                tell(&format!("copied {}", counted(text.len(), "byte")));
            }
            Action::List => {
                let mut out = Output::lock();
                for entry in self.session.store.list() {
                    out.say_line(&format!("{} ({} messages)", entry.name, entry.turns))?;
                }
            }
            Action::SetAppearance(name, _) => {
                self.fail(&format!("/set {name}: available on the full screen only"))
            }
            Action::Model(path) => {
                let command = WorkerCommand::LoadModel(path);
                self.worker.commands.send(command).ok().context("the engine stopped")?;
                match self.worker.events.recv()? {
                    WorkerEvent::Ready(model_info) => {
                        self.session.set_model(model_info);
                        tell(&self.session.greeting());
                    }
                    WorkerEvent::Failed(e) => self.fail(&e),
                    other => print_note(&other),
                }
            }
            Action::Quit => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Requests a reply and prints it. If it fails, the message is removed from the chat, which continues.
    fn answer(&mut self) -> Result<()> {
        self.worker.stop.store(false, Ordering::Relaxed);
        let prompt = self.session.begin_reply();
        self.worker.commands.send(WorkerCommand::Generate(prompt)).ok().context("the engine stopped")?;
        let (mut out, mut in_reasoning) = (Output::lock(), false);
        loop {
            match self.worker.events.recv().context("the engine stopped; the chat is saved")? {
                WorkerEvent::Prefill { done, total, rate } => show_prefill(done, total, rate),
                WorkerEvent::Reply { event, .. } => {
                    self.session.push_event(&event);
                    out.say(&with_tags(&event, &mut in_reasoning))?;
                }
                WorkerEvent::Done(outcome) => {
                    let ended = finish_note(&outcome.stats);
                    match self.session.finish_reply(outcome) {
                        Some(restored) => self.report_failure(restored, &ended.unwrap_or(EMPTY_REPLY.into())),
                        None => {
                            writeln!(out, "{}", ended.map_or(String::new(), |note| format!(" [{note}]")))?;
                        }
                    }
                    return Ok(());
                }
                WorkerEvent::Failed(e) => {
                    match self.session.fail_reply() {
                        Some(restored) => self.report_failure(restored, &e),
                        None => self.fail(&e),
                    }
                    return Ok(());
                }
                other => print_note(&other),
            }
        }
    }

    /// Reports why there is no reply. At a terminal the message becomes the next line's draft; from a pipe it is dropped.
    fn report_failure(&mut self, restored: Restored, error: &str) {
        if std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr(), "{CLEAR_LINE}");
        }
        self.fail(error);
        match restored {
            Restored::Chat => tell("the previous reply is restored"),
            Restored::Message(message) if std::io::stdin().is_terminal() && !is_dumb_terminal() => {
                self.draft = message
            }
            Restored::Message(message) => {
                self.session.cancel_edit();
                tell(&format!("not added to the chat: {}", excerpt(&message)));
            }
        }
    }
}

/// The text of an event, with a tag where reasoning begins or ends.
fn with_tags(event: &ReplyEvent, in_reasoning: &mut bool) -> String {
    let [begin, end] = REASONING_TAGS;
    match event {
        ReplyEvent::Reasoning(text) if std::mem::replace(in_reasoning, true) => text.clone(),
        ReplyEvent::Reasoning(text) => format!("{begin}{text}"),
        ReplyEvent::Text(text) if std::mem::replace(in_reasoning, false) => {
            let gap = if text.starts_with('\n') { "" } else { "\n\n" };
            format!("{end}{gap}{text}")
        }
        ReplyEvent::Text(text) => text.clone(),
        _ => String::new(),
    }
}

/// Prints the message of a `Note` event; ignores other events.
pub fn print_note(event: &WorkerEvent) {
    if let WorkerEvent::Note(text) = event {
        tell(text);
    }
}

/// Shows the progress of a long prefill on the current line.
fn show_prefill(done: usize, total: usize, rate: f64) {
    if rate > 0.0 && std::io::stderr().is_terminal() {
        let end = if done == total { CLEAR_LINE } else { "" };
        let (done, total) = (grouped(done), grouped(total));
        let _ = write!(std::io::stderr(), "\rprefill {done} of {total} tokens, {rate:.0} tok/s{end}");
    }
}

/// rustyline's helper: a line that ends with a backslash continues, and Tab completes commands.
#[derive(Helper, Hinter)]
struct Lines;

impl Highlighter for Lines {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        if is_printable(line) { line.into() } else { printable(line).into() }
    }

    fn highlight_char(&self, line: &str, _: usize, _: CmdKind) -> bool {
        !is_printable(line)
    }
}

/// Saves the input history to a file that only this user can read.
fn save_history(editor: &mut Editor<Lines, FileHistory>, path: &Path) -> Result<()> {
    path.parent().map(private_file::create_dir).transpose()?;
    restrict_to_user(path, || private_file::open_or_create(path))?;
    Ok(editor.save_history(path)?)
}

impl Validator for Lines {
    fn validate(&self, input: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let unfinished = input.input().ends_with('\\');
        Ok(if unfinished { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for Lines {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let pair = |l: String| Pair { display: l.clone(), replacement: l };
        let lines = command::complete(&line[..at]);
        Ok((0, lines.into_iter().map(pair).collect()))
    }
}
