//! The line editor: history, multi-line input, Ctrl-C that stops the reply only, the same commands.

use super::command::{self, Command, parse};
use super::store::{beginning, own, xdg};
use super::talk::{Back, EMPTY, NOT_EDITED, Talk, Todo, ending};
use super::terminal::edit;
use super::worker::{Order, Report, Worker};
use crate::io::errors::one_line;
use crate::io::output::{Output, is_printable, printable, tell};
use crate::io::private_file;
use crate::io::units::grouped;
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

/// Ends a line that shows how much is read.
const CLEAR: &str = "\r\x1b[K";
const KEYS: &str = "A line that ends with \\ goes on in the next; Alt-Enter adds a line; Tab completes. Ctrl-C stops a reply.";

/// A chat under way.
pub struct Plain {
    talk: Talk,
    worker: Worker,
    /// What the next line begins with.
    draft: String,
    /// Lines so far.
    lines: usize,
    /// How many of them could not be done.
    failed: usize,
}

/// Whether the terminal can only be written to line by line.
pub fn dumb() -> bool {
    std::env::var("TERM").is_ok_and(|term| term == "dumb")
}

impl Plain {
    /// Ctrl-C is caught from here on.
    pub fn new(talk: Talk, worker: Worker) -> Result<Self> {
        let stop = worker.stop.clone();
        ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed))?;
        Ok(Plain { talk, worker, draft: String::new(), lines: 0, failed: 0 })
    }

    /// Reads, answers, until the end of input. Then a script learns of what failed; a person has seen it.
    pub fn run(mut self) -> Result<()> {
        let config = Config::builder().auto_add_history(true).bracketed_paste(true).build();
        let mut editor: Editor<Lines, FileHistory> = Editor::with_config(config)?;
        editor.set_helper(Some(Lines));
        editor.bind_sequence(rustyline::KeyEvent::alt('\r'), rustyline::Cmd::Newline);
        let history = xdg("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("kimi/history"));
        if let Some(path) = &history {
            // No history yet is no error.
            let _ = own(path, || private_file::open(path)).map(|_| editor.load_history(path));
        }
        if std::io::stdin().is_terminal() {
            let about = &self.talk.about;
            tell(&format!("{} on {}. /help lists commands.", about.name, about.place));
        }
        self.converse(&mut editor)?;
        if let Some(path) = &history
            && let Err(e) = save_history(&mut editor, path)
        {
            tell(&format!("{}: {e:#}: what was typed is not remembered", path.display()));
        }
        self.worker.close()?;
        if self.failed > 0 && !std::io::stdin().is_terminal() {
            bail!("{} of {} lines failed", self.failed, self.lines);
        }
        Ok(())
    }

    fn converse(&mut self, editor: &mut Editor<Lines, FileHistory>) -> Result<()> {
        loop {
            let draft = std::mem::take(&mut self.draft);
            match editor.readline_with_initial("> ", (&draft, "")) {
                Ok(line) => {
                    let flow = self.line(&line.replace("\\\n", "\n"))?;
                    self.talk.note.take().iter().for_each(|note| tell(note));
                    if flow.is_break() {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) if self.talk.stop_editing() => {
                    tell(&format!("({NOT_EDITED})"))
                }
                Err(ReadlineError::Interrupted) => tell("(Ctrl-D or /quit leaves)"),
                Err(ReadlineError::Eof) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<ControlFlow<()>> {
        let line = line.trim();
        self.lines += usize::from(!line.is_empty());
        match parse(line) {
            None if line.is_empty() => {}
            None => {
                self.talk.say(line);
                self.answer()?;
            }
            Some(Err(e)) => self.fail(&e),
            Some(Ok(command)) => {
                let answers_on_stdout = matches!(command, Command::Stats | Command::Set(None));
                match self.talk.run(command) {
                    Ok(todo) => return self.act(todo, answers_on_stdout),
                    Err(e) => self.fail(&one_line(&e)),
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn fail(&mut self, said: &str) {
        tell(said);
        self.failed += 1;
    }

    fn act(&mut self, todo: Todo, answers_on_stdout: bool) -> Result<ControlFlow<()>> {
        match todo {
            Todo::Say(text) if answers_on_stdout => Output::lock().say_line(&text)?,
            Todo::Say(text) => tell(&text),
            Todo::Help => Output::lock().say_line(&format!("{}\n{KEYS}", command::help()))?,
            Todo::Answer => self.answer()?,
            Todo::Type(text) => self.draft = text,
            Todo::Editor => match edit("") {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => {
                    self.talk.say(text.trim_end());
                    self.answer()?;
                }
                Err(e) => self.fail(&one_line(&e)),
            },
            Todo::Copy(text) => {
                let copy = crossterm::clipboard::CopyToClipboard::to_clipboard_from(&text);
                crossterm::execute!(std::io::stderr(), copy)?;
                tell(&format!("{} bytes to the clipboard", text.len()));
            }
            Todo::List => {
                let mut out = Output::lock();
                for entry in self.talk.store.list() {
                    out.say_line(&format!("{} ({} messages)", entry.name, entry.turns))?;
                }
            }
            Todo::Look(name, _) => self.fail(&format!("/set {name}: only the full screen has it")),
            Todo::Model(path) => {
                self.worker.orders.send(Order::Open(path)).ok().context("the engine stopped")?;
                match self.worker.reports.recv()? {
                    Report::Ready(about) => {
                        self.talk.about = about;
                        tell(&format!("{} on {}", self.talk.about.name, self.talk.about.place));
                    }
                    Report::Failed(e) => self.fail(&e),
                    other => note(&other),
                }
            }
            Todo::Quit => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Has the chat answered. A message that cannot be is taken back, and the chat goes on.
    fn answer(&mut self) -> Result<()> {
        self.worker.stop.store(false, Ordering::Relaxed);
        let ask = self.talk.ask();
        self.worker.orders.send(Order::Ask(ask)).ok().context("the engine stopped")?;
        let mut out = Output::lock();
        loop {
            match self.worker.reports.recv().context("the engine stopped; the chat is saved")? {
                Report::Reading { done, total, rate } => progress(done, total, rate),
                Report::Text { text, .. } => {
                    self.talk.hear(&text);
                    out.say(&text)?;
                }
                Report::Done(outcome) => {
                    let ended = ending(&outcome.stats);
                    match self.talk.heard(outcome) {
                        Some(back) => self.unanswered(back, &ended.unwrap_or(EMPTY.into())),
                        None => {
                            writeln!(out, "{}", ended.map_or(String::new(), |said| format!(" [{said}]")))?;
                        }
                    }
                    return Ok(());
                }
                Report::Failed(e) => {
                    match self.talk.give_up() {
                        Some(back) => self.unanswered(back, &e),
                        None => self.fail(&e),
                    }
                    return Ok(());
                }
                other => note(&other),
            }
        }
    }

    /// Says why no reply came. The message is there to be changed and sent again; in a pipe nobody could do that.
    fn unanswered(&mut self, back: Back, why: &str) {
        if std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr(), "{CLEAR}");
        }
        self.fail(why);
        match back {
            Back::Chat => tell("the chat is as it was before /regen"),
            Back::Message(message) if std::io::stdin().is_terminal() && !dumb() => self.draft = message,
            Back::Message(message) => {
                self.talk.stop_editing();
                tell(&format!("left out of the chat: {}", beginning(&message)));
            }
        }
    }
}

/// Says what is not part of a reply.
pub fn note(report: &Report) {
    if let Report::Note(text) = report {
        tell(text);
    }
}

/// A line that shows how much of a long prompt is read.
fn progress(done: usize, total: usize, rate: f64) {
    if rate > 0.0 && std::io::stderr().is_terminal() {
        let end = if done == total { CLEAR } else { "" };
        let (done, total) = (grouped(done), grouped(total));
        let _ = write!(std::io::stderr(), "\rreading {done} of {total} tokens, {rate:.0} tok/s{end}");
    }
}

/// A line that ends with a backslash is not finished; Tab completes commands.
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

/// Keeps what was typed, for this user alone.
fn save_history(editor: &mut Editor<Lines, FileHistory>, path: &Path) -> Result<()> {
    path.parent().map(private_file::create_dir).transpose()?;
    own(path, || private_file::open_or_create(path))?;
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
