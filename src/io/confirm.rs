//! Asks a yes-or-no question on a terminal.

use super::output::tell;
use anyhow::Result;
use models::visible::visible;
use std::io::{self, IsTerminal, Write};

/// Whether standard input and standard error are a terminal.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question; anything but `y` or `yes` is a no.
///
/// # Errors
/// The terminal cannot be read.
pub fn confirm(question: &str) -> Result<bool> {
    let mut terminal = io::stderr();
    let _ = write!(terminal, "{} [y/N] ", visible(question)).and_then(|()| terminal.flush());
    let mut answer = String::new();
    if io::stdin().read_line(&mut answer)? == 0 {
        tell("");
    }
    Ok(matches!(&*answer.trim().to_lowercase(), "y" | "yes"))
}
