//! Places in documents: a page, chapter, slide or row of a sheet where the format has one, and lines of the text.

use serde::{Deserialize, Serialize};

/// A part of a document, by the name that its format gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// A page of a PDF, from 1.
    Page(u32),
    /// A chapter of a book, from 1, with its title or nothing.
    Chapter(u32, String),
    /// A slide of a presentation, from 1.
    Slide(u32),
    /// A paragraph or a row of a table of a Word document, from 1.
    Paragraph(u32),
    /// Cells of a row of a sheet.
    Cells(CellRange),
}

/// The cells of a row that have text. Rows and columns count from 1; row 0 is the name of the sheet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellRange {
    pub sheet: String,
    pub row: u32,
    pub first: u32,
    pub last: u32,
}

/// The first line of a part in the text of its document, from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartStart {
    pub line: usize,
    pub part: Part,
}

/// A range in a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: String,
    /// The line of the first character in the text of the document, from 1.
    pub line: usize,
    /// The line of the last character.
    pub last_line: usize,
    /// The place in words of the format: `line 12`, `pp. 3-4`, `ch. 2 (The Mill)`, `slide 5`, `par. 7`, `Budget!A3:D3`.
    pub place: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chapter: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slide: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paragraph: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sheet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cells: Option<String>,
}

impl Place {
    /// The place of lines in a document whose parts start at `parts`.
    pub fn new(file: &str, (line, last_line): (usize, usize), parts: &[PartStart]) -> Place {
        let part = |line: usize| {
            let after = parts.partition_point(|start| start.line <= line);
            after.checked_sub(1).map(|at| &parts[at].part)
        };
        let mut place = Place {
            file: file.to_owned(),
            line,
            last_line,
            place: range("line", "lines", line, last_line),
            page: None,
            chapter: None,
            slide: None,
            paragraph: None,
            sheet: None,
            cells: None,
        };
        match (part(line), part(last_line)) {
            (Some(Part::Page(first)), Some(Part::Page(last))) => {
                (place.place, place.page) = (range("p.", "pp.", *first, *last), Some(*first));
            }
            (Some(Part::Slide(first)), Some(Part::Slide(last))) => {
                (place.place, place.slide) = (range("slide", "slides", *first, *last), Some(*first));
            }
            (Some(Part::Paragraph(first)), Some(Part::Paragraph(last))) => {
                (place.place, place.paragraph) = (range("par.", "pars.", *first, *last), Some(*first));
            }
            (Some(Part::Chapter(number, title)), _) => {
                let title = if title.is_empty() { String::new() } else { format!(" ({title})") };
                (place.place, place.chapter) = (format!("ch. {number}{title}"), Some(*number));
            }
            (Some(Part::Cells(first)), Some(Part::Cells(last))) => {
                // The line above the first row is the name of the sheet.
                let cells = (last.row > 0).then(|| cells(first, last));
                let separated = cells.iter().map(|cells| format!("!{cells}"));
                place.place = first.sheet.clone() + &separated.collect::<String>();
                (place.sheet, place.cells) = (Some(first.sheet.clone()), cells);
            }
            _ => {}
        }
        place
    }

    /// The file with the place: `report.txt:12`, `report.pdf p. 13`, `book.epub ch. 2 (The Mill)`.
    pub fn with_file(&self) -> String {
        match (self.place.starts_with("line"), self.last_line - self.line) {
            (true, 0) => format!("{}:{}", self.file, self.line),
            (true, _) => format!("{}:{}-{}", self.file, self.line, self.last_line),
            (false, _) => format!("{} {}", self.file, self.place),
        }
    }
}

fn range<T: PartialEq + std::fmt::Display>(one: &str, many: &str, first: T, last: T) -> String {
    if first == last { format!("{one} {first}") } else { format!("{many} {first}-{last}") }
}

/// `B3` or `A3:D5`; of the first row only where the rows are of different sheets.
fn cells(first: &CellRange, last: &CellRange) -> String {
    let last = if last.sheet == first.sheet { last } else { first };
    let first = if first.row == 0 { last } else { first };
    let (left, right) = (first.first.min(last.first), first.last.max(last.last));
    let (start, end) = (cell(left, first.row), cell(right, last.row));
    if start == end { start } else { format!("{start}:{end}") }
}

/// The name of a cell, as in `AB12`.
fn cell(mut column: u32, row: u32) -> String {
    let mut letters = Vec::new();
    while column > 0 {
        letters.push(char::from(b'A' + ((column - 1) % 26) as u8));
        column = (column - 1) / 26;
    }
    letters.iter().rev().collect::<String>() + &row.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_words_of_the_format() {
        let cells =
            |sheet: &str, row, first, last| Part::Cells(CellRange { sheet: sheet.into(), row, first, last });
        let check = |parts: [Part; 2], lines, expected: &str| {
            let [a, b] = parts;
            let parts = [PartStart { line: 1, part: a }, PartStart { line: 5, part: b }];
            assert_eq!(Place::new("f", lines, &parts).with_file(), expected);
        };
        check([Part::Page(1), Part::Page(2)], (4, 4), "f p. 1");
        check([Part::Page(1), Part::Page(2)], (4, 5), "f pp. 1-2");
        check([Part::Slide(1), Part::Slide(2)], (9, 9), "f slide 2");
        check([Part::Chapter(1, String::new()), Part::Chapter(2, "The Mill".into())], (1, 9), "f ch. 1");
        check([Part::Chapter(1, String::new()), Part::Chapter(2, "A".into())], (5, 6), "f ch. 2 (A)");
        check([cells("S", 3, 1, 28), cells("S", 4, 2, 3)], (1, 1), "f S!A3:AB3");
        check([cells("S", 3, 2, 2), cells("S", 4, 2, 3)], (1, 5), "f S!B3:C4");
        check([cells("S", 3, 2, 2), cells("T", 4, 2, 3)], (1, 5), "f S!B3");
        check([cells("S", 0, 0, 0), cells("S", 1, 1, 2)], (1, 1), "f S");
        check([cells("S", 0, 0, 0), cells("S", 1, 1, 2)], (1, 5), "f S!A1:B1");
        check([Part::Paragraph(7), Part::Paragraph(8)], (1, 5), "f pars. 7-8");
        assert_eq!(Place::new("f", (3, 3), &[]).with_file(), "f:3");
        assert_eq!(Place::new("f", (3, 4), &[]).with_file(), "f:3-4");
        let json = serde_json::to_string(&Place::new("f", (3, 4), &[])).unwrap();
        assert_eq!(json, r#"{"file":"f","line":3,"last_line":4,"place":"lines 3-4"}"#);
    }
}
