//! Standard output, where results go: its errors say what could not be written, and what a model or a file says reaches
//! a terminal without commands to it. Pipes get every byte.

use models::visible::{is_control, visible};
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::path::{Path, PathBuf};

/// Standard output, locked.
pub struct Output {
    out: StdoutLock<'static>,
    terminal: bool,
}

impl Output {
    /// Nobody else writes there until it is dropped.
    pub fn lock() -> Output {
        let out = io::stdout().lock();
        Output { terminal: out.is_terminal(), out }
    }

    /// Writes what a model or a file says, at once.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        let shown = if self.terminal { visible(text) } else { text.into() };
        self.write_all(shown.as_bytes())?;
        self.flush()
    }

    /// Writes a line of what a model or a file says.
    pub fn say_line(&mut self, text: &str) -> io::Result<()> {
        self.say(text)?;
        self.write_all(b"\n")
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(named)
    }
}

/// Writes a line for people to standard error, its control characters made visible. An error there has no reader: a
/// closed or full standard error ends nothing.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{}", visible(line));
}

/// Whether a terminal prints all of a text, line ends and tabs included.
pub fn is_printable(text: &str) -> bool {
    !text.contains(|c| is_control(c) && !matches!(c, '\n' | '\t'))
}

/// A text without what a terminal would obey.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !is_control(*c) || matches!(c, '\n' | '\t')).collect()
}

/// The name of an output file while it is incomplete: its own with `.part` after it.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// The same error with its place.
fn named(e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("standard output: {e}"))
}
