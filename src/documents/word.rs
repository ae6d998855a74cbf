//! Extracts the text of Word documents (DOCX) by paragraph: body, then footnotes, endnotes, comments, headers and footers. A
//! row of a table is a line with tabs between its cells. Deleted text of tracked changes and field codes are left out.

use super::archive::Archive;
use super::builder::TextBuilder;
use super::place::Part;
use super::relations::Relations;
use super::xml::{XmlEvent, walk};
use anyhow::Result;
use std::collections::HashSet;

/// Appends the document whose main part is `main`. Sections repeat headers and footers, of which each paragraph is taken
/// once.
pub(super) fn extract(archive: &mut Archive<'_>, main: &str, out: &mut TextBuilder) -> Result<()> {
    let (mut paragraphs, mut seen) = (0, HashSet::new());
    let mut emit = |text: &str, is_row: bool| -> Result<()> {
        paragraphs += 1;
        out.start(Part::Paragraph(paragraphs));
        out.line(text.trim_end())?;
        if is_row { Ok(()) } else { out.line("") }
    };
    body(&archive.text(main)?, &mut emit)?;
    let relations = Relations::of(archive, main)?;
    for kind in ["/footnotes", "/endnotes", "/comments", "/header", "/footer"] {
        for path in relations.all_by_type(kind) {
            if !archive.has(path) {
                continue;
            }
            body(&archive.text(path)?, &mut |text, is_row| {
                let is_new = !matches!(kind, "/header" | "/footer") || seen.insert(text.trim().to_owned());
                if is_new { emit(text, is_row) } else { Ok(()) }
            })?;
        }
    }
    Ok(())
}

#[derive(Default)]
struct WordBody {
    /// The open paragraphs: one in a text box is inside another.
    open: Vec<String>,
    /// The depth of open tables.
    tables: usize,
    cells: Vec<String>,
    /// Elements whose content is left out, and the depth in one.
    skipped: usize,
    in_text: bool,
}

/// Calls `emit` for each paragraph and each row of a table that has text.
fn body(xml: &str, emit: &mut dyn FnMut(&str, bool) -> Result<()>) -> Result<()> {
    let mut state = WordBody::default();
    walk(xml, |event| match event {
        XmlEvent::Start(name, _) => {
            state.start(name);
            Ok(())
        }
        XmlEvent::End(name) => match state.end(name) {
            Some((text, is_row)) if !text.trim().is_empty() => emit(&text, is_row),
            _ => Ok(()),
        },
        XmlEvent::Text(text) => {
            if state.in_text && state.skipped == 0 {
                state.push(text);
            }
            Ok(())
        }
    })
}

/// Elements whose content repeats other content or is no text of the document.
fn is_skipped(name: &str) -> bool {
    matches!(name, "Fallback" | "del" | "moveFrom" | "instrText" | "separator")
}

impl WordBody {
    fn push(&mut self, text: &str) {
        if let Some(open) = self.open.last_mut() {
            open.push_str(text);
        }
    }

    fn start(&mut self, name: &str) {
        if self.skipped > 0 || is_skipped(name) {
            self.skipped += usize::from(is_skipped(name));
            return;
        }
        match name {
            "p" => self.open.push(String::new()),
            "t" => self.in_text = true,
            "tab" => self.push("\t"),
            "br" | "cr" => self.push(if self.tables > 0 { " " } else { "\n" }),
            "noBreakHyphen" => self.push("-"),
            "tbl" => self.tables += 1,
            "tc" if self.tables == 1 => self.cells.push(String::new()),
            _ => {}
        }
    }

    /// Ends an element; returns a complete paragraph, or row of a table and true.
    fn end(&mut self, name: &str) -> Option<(String, bool)> {
        if self.skipped > 0 {
            self.skipped -= usize::from(is_skipped(name));
            return None;
        }
        match name {
            "t" => self.in_text = false,
            "p" => {
                let text = self.open.pop()?;
                match self.cells.last_mut().filter(|_| self.tables > 0) {
                    Some(cell) => {
                        cell.push_str(if cell.is_empty() || text.is_empty() { "" } else { " " });
                        cell.push_str(text.trim());
                    }
                    None => return Some((text, false)),
                }
            }
            "tr" if self.tables == 1 => return Some((std::mem::take(&mut self.cells).join("\t"), true)),
            "tbl" => {
                self.tables = self.tables.saturating_sub(1);
                if self.tables == 0 {
                    self.cells.clear();
                }
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::test_files::{docx, zip};

    fn text(body: &str) -> String {
        let bytes = zip(&docx(body).iter().map(|(n, t)| (*n, t.as_bytes())).collect::<Vec<_>>());
        let mut out = TextBuilder::default();
        extract(&mut Archive::new(&bytes).unwrap(), "word/document.xml", &mut out).unwrap();
        out.finish().text
    }

    #[test]
    fn paragraphs_tables_and_changes() {
        let p = |text: &str| format!("<w:p><w:r><w:t xml:space='preserve'>{text}</w:t></w:r></w:p>");
        let cell = |text: &str| format!("<w:tc>{}</w:tc>", p(text));
        let body = [
            p("Mara Velt &amp; "),
            "<w:p><w:r><w:t>one</w:t><w:br/><w:tab/><w:t>two</w:t><w:instrText>PAGE</w:instrText></w:r>\
                <w:del><w:r><w:t>gone</w:t></w:r></w:del></w:p>"
                .into(),
            format!(
                "<w:tbl><w:tr>{}{}</w:tr><w:tr>{}<w:tc/></w:tr></w:tbl>",
                cell("a"),
                cell("b"),
                cell("c")
            ),
            format!(
                "<w:tbl><w:tr>{}<w:tc><w:tbl><w:tr>{}</w:tr></w:tbl><w:p/></w:tc></w:tr></w:tbl>",
                cell("d"),
                cell("e")
            ),
            format!(
                "<w:p><w:r><mc:Choice>{}</mc:Choice><mc:Fallback>{}</mc:Fallback></w:r></w:p>",
                p("box"),
                p("box")
            ),
        ];
        let expected = "Mara Velt &\n\none\n\ttwo\n\na\tb\nc\nd\te\nbox\n";
        assert_eq!(text(&body.concat()), expected);
    }

    #[test]
    fn notes_comments_headers_and_footers_follow_the_body() {
        let p = |text: &str| format!("<w:p><w:r><w:t>{text}</w:t></w:r></w:p>");
        let mut files = docx(&p("body"));
        let parts = [
            ("word/f.xml", "footer", p("7")),
            ("word/h1.xml", "header", p("Draft") + &p("top")),
            ("word/h2.xml", "header", p("Draft")),
            ("word/c.xml", "comments", p("why?")),
            ("word/n.xml", "footnotes", p("see") + &p("see")),
        ];
        let mut relations = String::new();
        for (path, kind, text) in parts {
            relations += &format!("<Relationship Id='{path}' Type='x/{kind}' Target='/{path}'/>");
            files.push((path, format!("<w:part>{text}</w:part>")));
        }
        files.push(("word/_rels/document.xml.rels", format!("<Relationships>{relations}</Relationships>")));
        let bytes = zip(&files.iter().map(|(n, t)| (*n, t.as_bytes())).collect::<Vec<_>>());
        let mut out = TextBuilder::default();
        extract(&mut Archive::new(&bytes).unwrap(), "word/document.xml", &mut out).unwrap();
        assert_eq!(out.finish().text, "body\n\nsee\n\nsee\n\nwhy?\n\nDraft\n\ntop\n\n7\n");
    }

    #[test]
    fn paragraphs_are_counted() {
        let bytes = docx("<w:p><w:t>a</w:t></w:p><w:p/><w:p><w:t>b</w:t></w:p>");
        let bytes = zip(&bytes.iter().map(|(n, t)| (*n, t.as_bytes())).collect::<Vec<_>>());
        let mut out = TextBuilder::default();
        extract(&mut Archive::new(&bytes).unwrap(), "word/document.xml", &mut out).unwrap();
        let starts: Vec<_> = out.finish().parts.into_iter().map(|start| (start.line, start.part)).collect();
        assert_eq!(starts, [(1, Part::Paragraph(1)), (3, Part::Paragraph(2))]);
    }
}
