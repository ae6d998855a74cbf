//! Extracts the text of HTML by block: paragraphs, headings, items and rows of tables are lines. Scripts, styles and what
//! is hidden by the elements' nature are left out.

use super::builder::TextBuilder;
use super::plain;
use anyhow::Result;
use encoding_rs::Encoding;
use html5gum::{DefaultEmitter, Token, Tokenizer};

/// Bytes in which a page declares its encoding, by the HTML standard.
const PRESCAN_BYTES: usize = 1024;

/// The text of a page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// The text of the `title` element.
    pub title: Option<String>,
    /// The text of the first heading.
    pub heading: Option<String>,
    pub lines: Vec<String>,
}

/// Appends the text of a page, after its title.
pub(super) fn extract(bytes: &[u8], out: &mut TextBuilder) -> Result<()> {
    let Page { title, lines, .. } = page(&decode(bytes)?);
    // The title is often repeated as the first heading.
    if let Some(title) = title.filter(|title| lines.first() != Some(title)) {
        out.line(&title)?;
        out.line("")?;
    }
    lines.iter().try_for_each(|line| out.line(line))
}

/// Decodes HTML or XML by its declaration, or as plain text.
pub(super) fn decode(bytes: &[u8]) -> Result<String> {
    let is_marked = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") || bytes.contains(&0);
    let declared = declared(bytes).filter(|_| !is_marked && std::str::from_utf8(bytes).is_err());
    match declared {
        Some(encoding) => Ok(encoding.decode(bytes).0.into_owned()),
        None => plain::decode("text", bytes.to_vec()),
    }
}

/// The encoding in `<meta charset>` or an XML declaration.
fn declared(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(PRESCAN_BYTES)]).to_ascii_lowercase();
    let after =
        ["charset=", "encoding="].iter().find_map(|key| Some(&head[head.find(key)? + key.len()..]))?;
    let label = after.trim_start_matches(['"', '\'']);
    let end = label.find(|c: char| !c.is_ascii_alphanumeric() && !"-_:".contains(c)).unwrap_or(label.len());
    Encoding::for_label(&label.as_bytes()[..end])
}

/// The text of a page. Tags need not match.
pub(super) fn page(html: &str) -> Page {
    let mut emitter = DefaultEmitter::default();
    emitter.naively_switch_states(true);
    let mut layout = BlockLayout::default();
    for Ok(token) in Tokenizer::new_with_emitter(html, emitter) {
        match token {
            Token::StartTag(tag) => {
                layout.start(&tag.name);
                if tag.self_closing && layout.skipped.is_some() {
                    layout.end(&tag.name);
                }
            }
            Token::EndTag(tag) => layout.end(&tag.name),
            Token::String(text) => layout.text(&String::from_utf8_lossy(&text)),
            _ => {}
        }
    }
    layout.finish()
}

#[derive(Default)]
struct BlockLayout {
    page: Page,
    line: String,
    /// The element whose content is left out.
    skipped: Option<Vec<u8>>,
    /// The text of the title or of the first heading, while it is open.
    title: Option<String>,
    in_heading: bool,
    preformatted: usize,
    /// Whether the next line follows an empty one.
    gap: bool,
}

fn is_skipped(name: &[u8]) -> bool {
    matches!(
        name,
        b"script" | b"style" | b"template" | b"svg" | b"noscript" | b"iframe" | b"object" | b"select"
    )
}

fn is_heading(name: &[u8]) -> bool {
    matches!(name, b"h1" | b"h2" | b"h3" | b"h4" | b"h5" | b"h6")
}

/// Blocks with an empty line before and after them.
fn is_spaced(name: &[u8]) -> bool {
    is_heading(name)
        || matches!(
            name,
            b"p" | b"pre" | b"blockquote" | b"table" | b"ul" | b"ol" | b"dl" | b"figure" | b"hr"
        )
}

fn is_block(name: &[u8]) -> bool {
    let more = [
        &b"div"[..],
        b"li",
        b"tr",
        b"dt",
        b"dd",
        b"section",
        b"article",
        b"header",
        b"footer",
        b"main",
        b"nav",
        b"aside",
        b"body",
        b"form",
        b"fieldset",
        b"address",
        b"caption",
        b"figcaption",
        b"details",
        b"summary",
        b"option",
        b"head",
        b"html",
        b"br",
    ];
    is_spaced(name) || more.contains(&name)
}

impl BlockLayout {
    fn start(&mut self, name: &[u8]) {
        if self.skipped.is_some() {
            return;
        }
        if is_skipped(name) {
            self.skipped = Some(name.to_owned());
            return;
        }
        if name == b"title" {
            self.title = Some(String::new());
            return;
        }
        if is_block(name) {
            self.end_line();
            self.gap |= is_spaced(name);
        }
        match name {
            b"pre" | b"textarea" => self.preformatted += 1,
            b"li" => self.line.push_str("- "),
            b"td" | b"th" if !self.line.is_empty() => self.line.push('\t'),
            name if is_heading(name) => self.in_heading = self.page.heading.is_none(),
            _ => {}
        }
    }

    fn end(&mut self, name: &[u8]) {
        if let Some(skipped) = &self.skipped {
            if skipped == name {
                self.skipped = None;
            }
            return;
        }
        match name {
            b"title" => {
                let title =
                    self.title.take().map(|title| collapsed(&title)).filter(|title| !title.is_empty());
                self.page.title = self.page.title.take().or(title);
            }
            b"pre" | b"textarea" => self.preformatted = self.preformatted.saturating_sub(1),
            _ => {}
        }
        if is_heading(name) && std::mem::take(&mut self.in_heading) {
            self.page.heading = Some(collapsed(&self.line)).filter(|heading| !heading.is_empty());
        }
        if is_block(name) && name != b"br" {
            self.end_line();
            self.gap |= is_spaced(name);
        }
    }

    fn text(&mut self, text: &str) {
        if self.skipped.is_some() {
            return;
        }
        if let Some(title) = &mut self.title {
            title.push_str(text);
            return;
        }
        if self.preformatted > 0 {
            let mut lines = text.split('\n');
            self.line.push_str(lines.next().unwrap_or(""));
            for line in lines {
                self.end_line();
                self.line.push_str(line);
            }
            return;
        }
        for c in text.chars() {
            match c {
                // A non-breaking space stays, as a figure of thousands may have one.
                c if c.is_ascii_whitespace() => {
                    if !self.line.is_empty() && !self.line.ends_with([' ', '\t']) {
                        self.line.push(' ');
                    }
                }
                '\u{ad}' | '\u{200b}' => {}
                c => self.line.push(c),
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = line.trim_end();
        if self.preformatted == 0 && matches!(line, "" | "-") {
            return;
        }
        if std::mem::take(&mut self.gap) && self.page.lines.last().is_some_and(|last| !last.is_empty()) {
            self.page.lines.push(String::new());
        }
        self.page.lines.push(line.to_owned());
    }

    fn finish(mut self) -> Page {
        self.end_line();
        self.page
    }
}

fn collapsed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(html: &str, expected: &str) {
        assert_eq!(page(html).lines.join("\n"), expected, "{html}");
    }

    #[test]
    fn blocks_are_lines() {
        check("<p>one\n two<p>three&nbsp;&amp; four", "one two\n\nthree\u{a0}& four");
        check("<h1>A</h1><div>b<br>c</div><ul><li>d<li>e</ul>f", "A\n\nb\nc\n\n- d\n- e\n\nf");
        check("<table><tr><td>a</td><td>b</td></tr><tr><th>c</table>", "a\tb\nc");
        check("<pre>a\n  b\n</pre>c", "a\n  b\n\nc");
        check("<script>if (a < b) {}</script><style>x</style>t<svg><text>no</text></svg>u", "tu");
        check("exam\u{ad}ple", "example");
        check("</p></div><<<p", "<<");
    }

    #[test]
    fn titles_and_headings() {
        let page = page("<title> The\nbook </title><body><h2>Part <b>1</b></h2><h1>x</h1>");
        assert_eq!(page.title.as_deref(), Some("The book"));
        assert_eq!(page.heading.as_deref(), Some("Part 1"));
    }

    #[test]
    fn encodings_are_declared_or_detected() {
        let check = |bytes: &[u8], expected: &str| assert_eq!(decode(bytes).unwrap(), expected);
        check(b"<meta charset=\"windows-1251\">\xcc\xe0\xf0\xe0", "<meta charset=\"windows-1251\">Мара");
        check("<meta charset=latin1>ü".as_bytes(), "<meta charset=latin1>ü");
        check(b"<p>caf\xe9 au lait", "<p>café au lait");
        check(b"\xff\xfe<\0p\0>\0", "<p>");
    }
}
