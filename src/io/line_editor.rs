//! Reads lines from a terminal with editing and history, or from a pipe as they are.

use super::output::{is_printable, printable};
use anyhow::Result;
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::history::DefaultHistory;
use rustyline::{Completer, Editor, Helper, Hinter, Validator};
use std::borrow::Cow;

/// A line editor with an in-memory history.
pub struct LineEditor(Editor<Shown, DefaultHistory>);

/// The outcome of reading a line.
pub enum Line {
    /// A line, without its line end.
    Text(String),
    /// The user pressed Ctrl-C instead.
    Interrupted,
    /// The input is at its end.
    End,
}

impl LineEditor {
    /// Creates an editor with an empty history.
    pub fn new() -> Result<LineEditor> {
        let mut editor = Editor::new()?;
        editor.set_helper(Some(Shown));
        Ok(LineEditor(editor))
    }

    /// Shows a prompt and reads a line.
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
    /// Those of rustyline's history.
    pub fn remember(&mut self, line: &str) -> Result<()> {
        self.0.add_history_entry(line)?;
        Ok(())
    }
}

/// Displays the edited line without control characters.
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
