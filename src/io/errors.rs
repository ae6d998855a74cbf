//! Formats errors for users: [`one_line`] is the message of a failed command, [`Stopped`] the error of a command that
//! Ctrl-C ended, [`ChildExit`] that of a program which the command ran.

use models::visible::visible;

/// Ctrl-C ended the command, which has already printed its partial result.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

/// The program that the command ran failed with this exit code, and has printed its own message.
#[derive(Debug, thiserror::Error)]
#[error("exit code {0}")]
pub struct ChildExit(pub u8);

/// Joins the causes of an error in one line, without those that the previous ones already contain. Control characters, as
/// in file names, are made visible.
pub fn one_line(e: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in e.chain().map(|cause| shortened(&cause.to_string(), CAUSE_CHARS)) {
        if !line.contains(&cause) {
            line += if line.is_empty() { "" } else { ": " };
            line += &cause;
        }
    }
    visible(&line.replace('\n', " ")).into_owned()
}

/// Most characters of a cause in an error line, as file names have up to 4,096 bytes.
pub const CAUSE_CHARS: usize = 1000;

/// Shortens a text to about `chars` characters by removing its middle.
pub fn shortened(text: &str, chars: usize) -> String {
    let count = text.chars().count();
    if count <= chars {
        return text.to_owned();
    }
    let (head, tail) = (chars * 2 / 3, chars / 3);
    let at = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
    format!("{}…{}", &text[..at(head)], &text[at(count - tail)..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_one_short_line() {
        let e = anyhow::anyhow!("x".repeat(100_000)).context("a\nb\u{1b}[2J\u{202e}");
        let line = one_line(&e);
        assert!(line.starts_with("a b^[[2J<U+202E>: xxx") && line.chars().count() < 1100, "{line}");
        assert_eq!(one_line(&anyhow::anyhow!("gone").context("file.txt: gone")), "file.txt: gone");
    }
}
