//! Errors as users see them: [`one_line`] is what a failed command prints, [`Stopped`] the error of a command that Ctrl-C
//! ended.

use models::visible::visible;

/// Ctrl-C ended the work, and what was done of it is told: nothing more is to be said.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

/// The causes in a line, without those that the one before them already tells. Names of files may stand in it, and are
/// shown, not obeyed.
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

/// Characters of a cause that a line shows at most: names of files have up to 4,096 bytes.
pub const CAUSE_CHARS: usize = 1000;
/// The beginning and the end of a text that is longer than so many characters.
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
