//! Reads lines from a terminal with editing and history, or from a pipe as they are.

use super::output::{is_printable, printable};
use anyhow::Result;
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::history::DefaultHistory;
use rustyline::{Completer, Editor, Helper, Hinter, Validator};
use std::borrow::Cow;

/// A line editor with a history of its own.
pub struct LineEditor(Editor<Shown, DefaultHistory>);

/// The result of reading a line.
pub enum Line {
    /// A line without its end.
    Text(String),
    /// Ctrl-C was pressed.
    Interrupted,
    /// The input has ended.
    End,
}

impl LineEditor {
    /// An editor with an empty history.
    pub fn new() -> Result<LineEditor> {
        let mut editor = Editor::new()?;
        editor.set_helper(Some(Shown));
        Ok(LineEditor(editor))
    }

    /// Reads a line after a prompt.
    ///
    /// # Errors
    /// The terminal or the pipe cannot be read.
    pub fn read(&mut self, prompt: &str) -> Result<Line> {
        match self.0.readline(prompt) {
            Ok(line) => Ok(Line::Text(line)),
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(e) => Err(e.into()),
        }
    }

    /// Adds a line to the history.
    ///
    /// # Errors
    /// As rustyline's.
    pub fn remember(&mut self, line: &str) -> Result<()> {
        self.0.add_history_entry(line)?;
        Ok(())
    }
}

/// Shows a line while it is typed or pasted, without what a terminal would obey.
#[derive(Completer, Helper, Hinter, Validator)]
struct Shown;

impl Highlighter for Shown {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        if is_printable(line) { line.into() } else { printable(line).into() }
    }

    fn highlight_char(&self, line: &str, _: usize, _: CmdKind) -> bool {
        !is_printable(line)
    }
}
