//! Escapes control characters of untrusted text, so that a terminal prints them instead of executing them.

use std::borrow::Cow;

/// Returns whether a terminal or text layout would interpret `c` instead of printing it: C0 and C1 control characters, DEL, line
/// and paragraph separators, and the embeddings, overrides and isolates of bidirectional text, which reorder what
/// follows. Line feed and tab count too. Joiners (U+200C, U+200D) and direction marks (U+200E, U+200F) do not: scripts
/// and emoji need them.
pub fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}')
}

/// Escapes control characters, except line feed and tab, as `less` does: `^[` or `<U+009B>`.
pub fn visible(text: &str) -> Cow<'_, str> {
    let kept = |c: char| matches!(c, '\n' | '\t');
    if !text.contains(|c| is_control(c) && !kept(c)) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    text.chars().for_each(|c| if kept(c) { shown.push(c) } else { spell(c, &mut shown) });
    shown.into()
}

/// Longest name or value from a file in a message, in bytes.
pub const MAX_SHOWN: usize = 200;

/// Formats text on one line: control characters, line feed and tab included, are escaped as in Rust (`\n`, `\u{1b}`), and
/// text beyond `max_bytes` is replaced by an ellipsis.
pub fn one_line(text: &str, max_bytes: usize) -> String {
    let mut line = String::with_capacity(text.len().min(max_bytes + 16));
    for c in text.chars() {
        if line.len() > max_bytes {
            line.push_str("...");
            break;
        }
        if is_control(c) { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

fn spell(c: char, out: &mut String) {
    match c {
        c if !is_control(c) => out.push(c),
        // ^@ is 0, ^A is 1, ^[ is 0x1b, and ^? is 0x7f.
        c if c.is_ascii() => out.extend(['^', char::from(c as u8 ^ 0x40)]),
        c => out.push_str(&format!("<U+{:04X}>", u32::from(c))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled() {
        for (text, expected) in [
            ("two\n\tlines, ü 日本 🎉 👩‍👩‍👧 می‌خواهم \u{200f}", "two\n\tlines, ü 日本 🎉 👩‍👩‍👧 می‌خواهم \u{200f}"),
            ("\u{1b}]52;c;aGk=\u{7}", "^[]52;c;aGk=^G"),
            ("a.txt:1\r\u{1b}[2Kb.txt:9", "a.txt:1^M^[[2Kb.txt:9"),
            ("\0\u{1f}\u{7f}\u{80}\u{9b}31m", "^@^_^?<U+0080><U+009B>31m"),
            ("gpj.\u{202e}fdp\u{202c}", "gpj.<U+202E>fdp<U+202C>"),
            ("\u{2066}a\u{2069}\u{2028}\u{2029}\u{206a}", "<U+2066>a<U+2069><U+2028><U+2029><U+206A>"),
        ] {
            assert_eq!(visible(text), expected);
        }
    }

    /// Every character is printed verbatim or escaped in printable characters.
    #[test]
    fn no_control_character_is_left() {
        let all: String = ('\0'..='\u{ffff}').collect();
        let left: Vec<char> = visible(&all).chars().filter(|c| is_control(*c)).collect();
        assert_eq!(left, ['\t', '\n']);
    }

    /// Formatting is idempotent: errors format their text both when created and when displayed.
    #[test]
    fn one_line_is_short_and_the_same_again() {
        for (text, shown) in [
            ("two\nlines, ü 日本 🎉", "two\\nlines, ü 日本 🎉"),
            ("\u{1b}[2J\u{7f}\u{9b}31m", "\\u{1b}[2J\\u{7f}\\u{9b}31m"),
            ("gpj.\u{202e}exe\u{2066}\u{2028}", "gpj.\\u{202e}exe\\u{2066}\\u{2028}"),
            (&"ä".repeat(100_000), &format!("{}...", "ä".repeat(101))),
        ] {
            assert_eq!(one_line(text, MAX_SHOWN), shown);
            assert_eq!(one_line(shown, MAX_SHOWN), shown);
        }
    }
}
