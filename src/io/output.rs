//! Writes results to standard output and messages to standard error. On a terminal, control characters in the output are
//! made visible; pipes get every byte.

use models::visible::{is_control, visible};
use std::io::{self, IsTerminal, StdoutLock, Write};
use std::path::{Path, PathBuf};
use textwrap::WordSplitter::NoHyphenation;

/// A lock on standard output.
pub struct Output {
    out: StdoutLock<'static>,
    terminal: bool,
}

impl Output {
    /// Locks standard output until the value is dropped.
    pub fn lock() -> Output {
        let out = io::stdout().lock();
        Output { terminal: out.is_terminal(), out }
    }

    /// Writes text from a model or a file and flushes it.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        let shown = if self.terminal { visible(text) } else { text.into() };
        self.write_all(shown.as_bytes())?;
        self.flush()
    }

    /// Writes a line of text from a model or a file.
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

/// Writes a message to standard error, with control characters made visible; on a terminal its lines break between words.
/// Write errors are ignored.
pub fn tell(line: &str) {
    let mut line = visible(line).into_owned();
    if io::stderr().is_terminal() {
        let options = textwrap::Options::with_termwidth().break_words(false).word_splitter(NoHyphenation);
        line = textwrap::fill(&line, options);
    }
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether a text contains no control characters except line ends and tabs.
pub fn is_printable(text: &str) -> bool {
    !text.contains(|c| is_control(c) && !matches!(c, '\n' | '\t'))
}

/// Removes control characters except line ends and tabs.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !is_control(*c) || matches!(c, '\n' | '\t')).collect()
}

/// The temporary name of an incomplete output file: its name with `.part` appended.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// Names standard output in an error.
fn named(e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("standard output: {e}"))
}
