//! Formats the numbers of a workbook: dates and times by ISO 8601, percentages, and other numbers with up to 15 digits, as
//! a spreadsheet shows them without a format.

use super::xml::{XmlEvent, walk};
use anyhow::Result;
use std::collections::HashMap;

/// How a number is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NumberStyle {
    General,
    Percent,
    Date,
    Time,
    DateTime,
}

/// The formats of cells by the number of their style.
pub(super) struct CellFormats {
    styles: Vec<NumberStyle>,
    is_1904: bool,
}

impl CellFormats {
    /// Reads the style sheet. In a workbook of `is_1904` days count from 1904.
    pub fn new(xml: &str, is_1904: bool) -> Result<CellFormats> {
        let (mut custom, mut styles, mut in_cells) = (HashMap::new(), Vec::new(), false);
        walk(xml, |event| {
            match event {
                XmlEvent::Start("numFmt", attributes) => {
                    let code = attributes.get("formatCode").unwrap_or_default();
                    custom.extend(attributes.get("numFmtId").map(|id| (id, of_code(&code))));
                }
                XmlEvent::Start("cellXfs", _) => in_cells = true,
                XmlEvent::End("cellXfs") => in_cells = false,
                XmlEvent::Start("xf", attributes) if in_cells => {
                    let id = attributes.get("numFmtId").unwrap_or_default();
                    styles.push(custom.get(&id).copied().unwrap_or_else(|| builtin(&id)));
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(CellFormats { styles, is_1904 })
    }

    /// Formats the stored value of a cell.
    pub fn format(&self, value: &str, style: usize) -> String {
        let Ok(number) = value.parse::<f64>() else { return value.to_owned() };
        let shown = self.styles.get(style).copied().unwrap_or(NumberStyle::General);
        let formatted = match shown {
            NumberStyle::General => None,
            NumberStyle::Percent => Some(general(number * 100.0) + "%"),
            NumberStyle::Date | NumberStyle::Time | NumberStyle::DateTime => self.date(number, shown),
        };
        formatted.unwrap_or_else(|| general(number))
    }

    /// Formats days since the end of 1899; None outside the years that spreadsheets have.
    fn date(&self, days: f64, shown: NumberStyle) -> Option<String> {
        let seconds = (days * 86_400.0).round();
        if !(0.0..=2_958_466.0 * 86_400.0).contains(&seconds) {
            return None;
        }
        let seconds = seconds as u64;
        let (day, second) = (seconds / 86_400, seconds % 86_400);
        // Spreadsheets have a 29 February 1900, which did not exist.
        let day = if self.is_1904 { day + 1462 } else { day + u64::from(day < 60) };
        let (year, month, day) = civil(day as i64 - 25_569);
        let date = format!("{year:04}-{month:02}-{day:02}");
        let (hours, minutes) = (second / 3600, second / 60 % 60);
        let seconds = match second % 60 {
            0 => String::new(),
            seconds => format!(":{seconds:02}"),
        };
        let time = format!("{hours:02}:{minutes:02}{seconds}");
        Some(match shown {
            NumberStyle::Date => date,
            NumberStyle::Time => time,
            _ => format!("{date} {time}"),
        })
    }
}

/// The date of a day since 1970-01-01 in the Gregorian calendar, by eras of 400 years that begin in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let month_of_year = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month_of_year <= 2), month_of_year, day - (153 * month + 2) / 5 + 1)
}

fn builtin(id: &str) -> NumberStyle {
    match id {
        "9" | "10" => NumberStyle::Percent,
        "14" | "15" | "16" | "17" => NumberStyle::Date,
        "18" | "19" | "20" | "21" | "45" | "46" | "47" => NumberStyle::Time,
        "22" => NumberStyle::DateTime,
        _ => NumberStyle::General,
    }
}

/// The format of a code such as `yyyy-mm-dd` or `0.0%`. Texts in quotes, escapes and colors in brackets are no codes.
fn of_code(code: &str) -> NumberStyle {
    let (mut letters, mut chars) = (String::new(), code.chars());
    while let Some(c) = chars.next() {
        match c {
            '"' => drop(chars.by_ref().find(|c| *c == '"')),
            '\\' | '_' | '*' => drop(chars.next()),
            '[' => {
                let inside: String = chars.by_ref().take_while(|c| *c != ']').collect();
                if inside.chars().all(|c| "hmsHMS".contains(c)) {
                    letters += &inside.to_lowercase();
                }
            }
            // Formats of negative numbers and zero follow.
            ';' => break,
            c => letters.extend(c.to_lowercase()),
        }
    }
    let has = |wanted: &str| letters.chars().any(|c| wanted.contains(c));
    match (has("yd"), has("hs"), has("m")) {
        _ if letters.contains("general") => NumberStyle::General,
        (true, true, _) => NumberStyle::DateTime,
        (true, false, _) => NumberStyle::Date,
        (false, true, _) => NumberStyle::Time,
        (false, false, true) => NumberStyle::Date,
        _ if letters.contains('%') => NumberStyle::Percent,
        _ => NumberStyle::General,
    }
}

/// A number with at most 15 significant digits.
fn general(number: f64) -> String {
    if number != 0.0 && !(1e-9..1e15).contains(&number.abs()) {
        return format!("{number:e}");
    }
    let digits = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    let text = format!("{number:.*}", (14 - digits).clamp(0, 30) as usize);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.to_owned()
}

/// The column of a reference such as `AB12`, from 1.
pub(super) fn column(reference: &str) -> Option<u32> {
    let letters = reference.bytes().take_while(u8::is_ascii_alphabetic).take(4);
    let column = letters.fold(0, |sum, letter| sum * 26 + u32::from(letter.to_ascii_uppercase() - b'A' + 1));
    (1..=16_384).contains(&column).then_some(column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_by_their_format() {
        let xml = "<styleSheet><numFmts><numFmt numFmtId='164' formatCode='[$-407]d/ mmm yyyy'/>\
            <numFmt numFmtId='165' formatCode='0.0 \"days\"'/><numFmt numFmtId='166' formatCode='[h]:mm'/></numFmts>\
            <cellXfs><xf numFmtId='0'/><xf numFmtId='14'/><xf numFmtId='9'/><xf numFmtId='164'/><xf numFmtId='165'/>\
            <xf numFmtId='166'/><xf numFmtId='22'/></cellXfs></styleSheet>";
        let check = |is_1904, style, value: &str, expected: &str| {
            let formats = CellFormats::new(xml, is_1904).unwrap();
            assert_eq!(formats.format(value, style), expected, "{value} in style {style}");
        };
        check(false, 0, "1234.5", "1234.5");
        check(false, 0, "0.1", "0.1");
        check(false, 0, "1E+20", "1e20");
        check(false, 0, "-3", "-3");
        check(false, 0, "text", "text");
        check(false, 1, "35918", "1998-05-03");
        check(false, 1, "1", "1900-01-01");
        check(false, 1, "61", "1900-03-01");
        check(true, 1, "34456", "1998-05-03");
        check(false, 1, "-5", "-5");
        check(false, 2, "0.07", "7%");
        check(false, 3, "45351", "2024-02-29");
        check(false, 4, "2.5", "2.5");
        check(false, 5, "0.75", "18:00");
        check(false, 6, "35918.5000116", "1998-05-03 12:00:01");
        check(false, 99, "1e999", "inf");
    }

    #[test]
    fn columns_have_letters() {
        let columns = ["A1", "Z9", "AB12", "XFD1", "XFE1", "12", ""].map(column);
        assert_eq!(columns, [Some(1), Some(26), Some(28), Some(16_384), None, None, None]);
    }
}
