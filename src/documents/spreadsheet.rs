//! Extracts the text of Excel workbooks (XLSX): each row is a line with tabs between its cells. Formulas give the value that
//! is stored with them. Next: [`super::cell_format`] (numbers and dates).

use super::archive::Archive;
use super::builder::TextBuilder;
use super::cell_format::{self, CellFormats};
use super::place::{CellRange, Part};
use super::relations::Relations;
use super::xml::{Attributes, XmlEvent, walk};
use anyhow::Result;

/// Most tabs between two cells, as a row may have text in its first and in its 16,384th cell.
const MAX_TABS: u32 = 32;

/// Appends the sheets of the workbook whose main part is `main`.
pub(super) fn extract(archive: &mut Archive<'_>, main: &str, out: &mut TextBuilder) -> Result<()> {
    let relations = Relations::of(archive, main)?;
    let (mut sheets, mut is_1904) = (Vec::new(), false);
    walk(&archive.text(main)?, |event| {
        match event {
            XmlEvent::Start("sheet", attributes) => {
                let path = attributes.prefixed("id").and_then(|id| relations.by_id(&id));
                sheets.extend(attributes.get("name").zip(path));
            }
            XmlEvent::Start("workbookPr", attributes) => {
                is_1904 = attributes.get("date1904").is_some_and(|value| value == "1" || value == "true");
            }
            _ => {}
        }
        Ok(())
    })?;
    let mut part = |kind: &str| match relations.by_type(kind).filter(|path| archive.has(path)) {
        Some(path) => archive.text(&path),
        None => Ok(String::new()),
    };
    let strings = shared_strings(&part("/sharedStrings")?)?;
    let formats = CellFormats::new(&part("/styles")?, is_1904)?;
    for (name, path) in &sheets {
        if !archive.has(path) {
            continue;
        }
        let before = out.lines();
        let xml = archive.text(path)?;
        Sheet { name, strings: &strings, formats: &formats }.extract(&xml, out)?;
        if out.lines() > before {
            out.line("")?;
        }
    }
    Ok(())
}

/// The strings that cells refer to by number. Phonetic hints are left out.
fn shared_strings(xml: &str) -> Result<Vec<String>> {
    let (mut strings, mut text, mut is_phonetic) = (Vec::new(), String::new(), false);
    let mut in_text = false;
    walk(xml, |event| {
        match event {
            XmlEvent::Start("t", _) => in_text = !is_phonetic,
            XmlEvent::End("t") => in_text = false,
            XmlEvent::Start("rPh", _) => is_phonetic = true,
            XmlEvent::End("rPh") => is_phonetic = false,
            XmlEvent::Text(part) if in_text => text.push_str(part),
            XmlEvent::End("si") => strings.push(std::mem::take(&mut text)),
            _ => {}
        }
        Ok(())
    })?;
    Ok(strings)
}

struct Sheet<'a> {
    name: &'a str,
    strings: &'a [String],
    formats: &'a CellFormats,
}

/// The row and the cell that are being read.
#[derive(Default)]
struct CellCursor {
    row: u32,
    column: u32,
    kind: String,
    style: usize,
    value: String,
    in_value: bool,
    /// The cells of the row that have text, by column.
    cells: Vec<(u32, String)>,
}

impl Sheet<'_> {
    fn extract(&self, xml: &str, out: &mut TextBuilder) -> Result<()> {
        let (mut cursor, mut is_named) = (CellCursor::default(), false);
        walk(xml, |event| {
            match event {
                XmlEvent::Start("row", attributes) => {
                    cursor.row = number(&attributes, "r").unwrap_or(cursor.row + 1);
                    cursor.column = 0;
                }
                XmlEvent::Start("c", attributes) => cursor.start_cell(&attributes),
                XmlEvent::Start("v" | "t", _) => cursor.in_value = true,
                XmlEvent::End("v" | "t") => cursor.in_value = false,
                XmlEvent::Text(text) if cursor.in_value => cursor.value.push_str(text),
                XmlEvent::End("c") => {
                    let text = self.text(&cursor);
                    if !text.is_empty() {
                        cursor.cells.push((cursor.column, text));
                    }
                }
                XmlEvent::End("row") if !cursor.cells.is_empty() => {
                    if !std::mem::replace(&mut is_named, true) {
                        out.start(self.range(0, 0, 0));
                        out.line(self.name)?;
                    }
                    self.row(&mut cursor, out)?;
                }
                _ => {}
            }
            Ok(())
        })
    }

    fn range(&self, row: u32, first: u32, last: u32) -> Part {
        Part::Cells(CellRange { sheet: self.name.to_owned(), row, first, last })
    }

    fn row(&self, cursor: &mut CellCursor, out: &mut TextBuilder) -> Result<()> {
        let cells = std::mem::take(&mut cursor.cells);
        let (first, last) = (cells[0].0, cells[cells.len() - 1].0);
        out.start(self.range(cursor.row, first.min(last), last.max(first)));
        let (mut line, mut column) = (String::new(), first);
        for (at, text) in cells {
            (column..at).take(MAX_TABS as usize).for_each(|_| line.push('\t'));
            line.push_str(&text);
            column = at;
        }
        out.line(&line)
    }

    /// The text of the cell on one line.
    fn text(&self, cursor: &CellCursor) -> String {
        let value = cursor.value.trim();
        let text = match cursor.kind.as_str() {
            "s" => value.parse().ok().and_then(|i: usize| self.strings.get(i)).map_or("", String::as_str),
            "b" => ["FALSE", "TRUE"][usize::from(value == "1")],
            "str" | "inlineStr" | "e" | "d" => value,
            _ => return self.formats.format(value, cursor.style),
        };
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl CellCursor {
    fn start_cell(&mut self, attributes: &Attributes<'_>) {
        let reference = attributes.get("r");
        self.column = reference.as_deref().and_then(cell_format::column).unwrap_or(self.column + 1);
        self.kind = attributes.get("t").unwrap_or_default();
        self.style = number(attributes, "s").unwrap_or(0) as usize;
        self.value.clear();
    }
}

fn number(attributes: &Attributes<'_>, name: &str) -> Option<u32> {
    attributes.get(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::test_files::{xlsx, zip};

    #[test]
    fn rows_are_lines_with_their_cells() {
        let rows = "<row r='1'><c r='A1' t='s'><v>0</v></c><c r='D1' t='s'><v>1</v></c></row>\
            <row r='7'><c r='B7'><v>0.30000000000000004</v></c><c r='C7' s='1'><v>36000</v></c><c t='b'><v>1</v></c>\
            <c t='inlineStr'><is><t>in\nline</t></is></c></row><row r='8'><c r='A8' s='1'/></row>";
        let files = xlsx(&["Mill", "Rent"], rows);
        let bytes = zip(&files.iter().map(|(n, t)| (*n, t.as_bytes())).collect::<Vec<_>>());
        let mut out = TextBuilder::default();
        extract(&mut Archive::new(&bytes).unwrap(), "xl/workbook.xml", &mut out).unwrap();
        let book = out.finish();
        assert_eq!(book.text, "Budget\nMill\t\t\tRent\n0.3\t1998-07-24\tTRUE\tin line\n");
        let range = |row, first, last| Part::Cells(CellRange { sheet: "Budget".into(), row, first, last });
        let starts: Vec<_> = book.parts.into_iter().map(|start| (start.line, start.part)).collect();
        assert_eq!(starts, [(1, range(0, 0, 0)), (2, range(1, 1, 4)), (3, range(7, 2, 5))]);
    }
}
