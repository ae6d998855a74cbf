//! Standard output, where results go: its errors say what could not be written, and what a model or a file says reaches
//! a terminal without commands to it. Pipes get every byte.

use std::borrow::Cow;
use std::io::{self, IsTerminal, StdoutLock, Write};

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
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(named)
    }
}

/// The same error with its place.
fn named(e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("standard output: {e}"))
}

/// Text without commands to a terminal, which could move its cursor, rename its window or write to the clipboard:
/// control characters but line ends and tabs are spelled as `less` does, `^[` or `<U+009B>`.
pub fn visible(text: &str) -> Cow<'_, str> {
    let command = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(command) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if !command(c) => shown.push(c),
            // ^@ is 0, ^A is 1, ^[ is 0x1b, and ^? is 0x7f.
            c if c.is_ascii() => shown.extend(['^', char::from(c as u8 ^ 0x40)]),
            c => shown.push_str(&format!("<U+{:04X}>", u32::from(c))),
        }
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_to_a_terminal_are_spelled() {
        for (text, expected) in [
            ("two\n\tlines, ü 日本 🎉", "two\n\tlines, ü 日本 🎉"),
            ("\u{1b}]52;c;aGk=\u{7}", "^[]52;c;aGk=^G"),
            ("a.txt:1\r\u{1b}[2Kb.txt:9", "a.txt:1^M^[[2Kb.txt:9"),
            ("\0\u{1f}\u{7f}\u{80}\u{9b}31m", "^@^_^?<U+0080><U+009B>31m"),
        ] {
            assert_eq!(visible(text), expected);
        }
    }
}
