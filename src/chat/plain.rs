//! The line editor: history, multi-line input, Ctrl-C that stops the reply only, a few commands.

use super::ChatArgs;
use crate::conversation::Conversation;
use crate::engine::Engine;
use crate::generate::{Ended, Event, Request, Stats, generate};
use crate::session::Session;
use anyhow::Result;
use kernels::backend::Backend;
use rustyline::error::ReadlineError;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Completer, Config, Editor, Helper, Highlighter, Hinter};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const HELP: &str = "\
/help           this list
/system TEXT    set the system message and start again
/regen          answer the last message again
/undo           take the last exchange back
/clear          start again
/stats          rates of the last reply, context used
/quit           leave (also Ctrl-D)
A line that ends with \\ goes on in the next; Alt-Enter adds a line. Ctrl-C stops a reply.";

/// A chat under way.
pub struct Chat<'e, B: Backend> {
    engine: &'e Engine<B>,
    session: Session<'e, B>,
    conversation: Conversation,
    args: ChatArgs,
    last: Option<Stats>,
    interrupted: Arc<AtomicBool>,
}

impl<'e, B: Backend> Chat<'e, B> {
    /// An empty conversation; Ctrl-C is caught from here on.
    pub fn new(engine: &'e Engine<B>, args: &ChatArgs) -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = interrupted.clone();
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
        let conversation = Conversation::new(args.system.as_deref());
        let session = Session::new(engine);
        Ok(Chat { engine, session, conversation, args: args.clone(), last: None, interrupted })
    }

    /// Reads, answers, until the end of input.
    pub fn run(&mut self) -> Result<()> {
        let config = Config::builder().auto_add_history(true).bracketed_paste(true).build();
        let mut editor: Editor<Lines, _> = Editor::with_config(config)?;
        editor.set_helper(Some(Lines));
        let newline = rustyline::KeyEvent::alt('\r');
        editor.bind_sequence(newline, rustyline::Cmd::Newline);
        let history = history_file();
        if let Some(path) = &history {
            // No history yet is no error.
            let _ = editor.load_history(path);
        }
        if std::io::stdin().is_terminal() {
            eprintln!(
                "{} ({}). /help lists commands.",
                self.args.engine.model.display(),
                self.engine.backend.describe()
            );
        }
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    if self.line(&line.replace("\\\n", "\n"))?.is_break() {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => eprintln!("(Ctrl-D or /quit leaves)"),
                Err(ReadlineError::Eof) => break,
                Err(e) => return Err(e.into()),
            }
        }
        if let Some(path) = &history {
            let _ = std::fs::create_dir_all(path.parent().unwrap_or(path));
            editor.save_history(path)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<ControlFlow<()>> {
        let line = line.trim();
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "" => {}
            "/help" => println!("{HELP}"),
            "/quit" | "/exit" => return Ok(ControlFlow::Break(())),
            "/clear" => self.conversation = Conversation::new(self.args.system.as_deref()),
            "/system" => {
                self.args.system = Some(rest.trim().to_owned()).filter(|s| !s.is_empty());
                self.conversation = Conversation::new(self.args.system.as_deref());
            }
            "/undo" => match self.conversation.undo() {
                Some(_) => eprintln!("the last exchange is taken back"),
                None => eprintln!("nothing to take back"),
            },
            "/regen" => match self.conversation.undo() {
                Some(said) => {
                    self.args.sampling.seed = self.args.sampling.seed.wrapping_add(1);
                    self.answer(&said)?;
                }
                None => eprintln!("nothing to answer again"),
            },
            "/stats" => self.stats(),
            _ if command.starts_with('/') && !command[1..].contains('/') => {
                eprintln!("{command}: no such command; /help lists them");
            }
            _ => self.answer(line)?,
        }
        Ok(ControlFlow::Continue(()))
    }

    fn stats(&self) {
        if let Some(stats) = &self.last {
            println!("{}", stats.line());
        }
        println!("context {} of {} tokens", self.session.tokens().len(), self.engine.context);
    }

    /// Answers one message. A message that does not fit is taken back, and the chat goes on.
    fn answer(&mut self, said: &str) -> Result<()> {
        self.conversation.say("user", said);
        let prompt = match self.conversation.prompt(self.engine) {
            Ok(prompt) => prompt,
            Err(e) => {
                self.conversation.undo();
                eprintln!("{e:#}");
                return Ok(());
            }
        };
        let request = Request {
            prompt: &prompt,
            max_tokens: self.args.max_tokens,
            sampling: self.args.sampling,
            stops: &[],
            ignore_end: false,
        };
        self.interrupted.store(false, Ordering::Relaxed);
        let (mut text, mut ids, mut out) = (String::new(), Vec::new(), std::io::stdout().lock());
        let mut failed = Ok(());
        let stats = generate(&mut self.session, &request, &mut |event| {
            match event {
                Event::Prefill { done, total } => progress(done, total, self.engine.batch),
                Event::Token(id) => ids.push(id),
                Event::Text(new) => {
                    text.push_str(new);
                    failed = write!(out, "{new}").and_then(|()| out.flush());
                }
            }
            let stop = failed.is_err() || self.interrupted.load(Ordering::Relaxed);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        failed?;
        match stats {
            Ok(stats) if stats.prefill.stopped => {
                self.conversation.undo();
                writeln!(out, "[stopped while reading; what was read is kept]")?;
            }
            Ok(stats) => {
                writeln!(out, "{}", if stats.ended == Ended::Cancelled { " [stopped]" } else { "" })?;
                self.conversation.reply(&text, &ids);
                self.last = Some(stats);
            }
            Err(e) => {
                self.conversation.undo();
                eprintln!("{e}");
            }
        }
        Ok(())
    }
}

/// A line that shows how much of a long prompt is read.
fn progress(done: usize, total: usize, batch: usize) {
    if total > batch && std::io::stderr().is_terminal() {
        eprint!("\rreading {done}/{total} tokens{}", if done == total { "\r\x1b[K" } else { "" });
    }
}

/// `$XDG_STATE_HOME/kimi/history`, by default under `~/.local/state`; None without a home.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/state"));
    Some(state.or_else(home)?.join("kimi/history"))
}

/// A line that ends with a backslash is not finished.
#[derive(Completer, Helper, Highlighter, Hinter)]
struct Lines;

impl Validator for Lines {
    fn validate(&self, input: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let unfinished = input.input().ends_with('\\');
        Ok(if unfinished { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}
