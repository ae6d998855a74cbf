//! Lays out the glyphs of a page as lines: glyphs of one baseline are a line, gaps between them are spaces or tabs.
//!
//! Lines keep the order of the content stream, which programs write in reading order, columns included; a page whose
//! stream jumps up and down within one column is sorted from top to bottom.

use super::content::Glyph;

/// The gap between words, in parts of the font size. TeX shrinks spaces to 0.22; kerning stays below 0.1.
const WORD_GAP: f64 = 0.15;
/// The gap between cells of a table or columns.
const CELL_GAP: f64 = 1.6;
/// The difference of baselines within a line: sub- and superscripts.
const BASELINE: f64 = 0.45;
/// The distance of paragraphs, in parts of the usual distance of lines.
const PARAGRAPH: f64 = 1.35;

/// A piece of a line: glyphs that follow each other.
#[derive(Clone, Debug)]
struct LineSegment {
    text: String,
    /// Where it starts and ends along the line, and its baseline upwards.
    start: f64,
    end: f64,
    base: f64,
    size: f64,
    /// The last character with its position, against repeated drawing for bold text.
    last: (f64, String),
}

/// The lines of a page that is shown turned by `turns` quarters clockwise. An empty line separates paragraphs.
pub(super) fn lines(glyphs: Vec<Glyph>, turns: u8) -> Vec<String> {
    // Each glyph goes to the group of its direction, the most frequent one first.
    let mut groups: [Vec<Glyph>; 4] = Default::default();
    for glyph in glyphs {
        let (x, y) = glyph.advance;
        let quarter = if x.abs() >= y.abs() {
            if x >= 0.0 { 0 } else { 2 }
        } else if y >= 0.0 {
            1
        } else {
            3
        };
        groups[quarter].push(glyph);
    }
    let mut order = [0, 1, 2, 3];
    // Among equals the direction that the page shows as horizontal.
    order
        .sort_by_key(|quarter| (std::cmp::Reverse(groups[*quarter].len()), (*quarter as u8 + 4 - turns) % 4));
    let mut lines = Vec::new();
    for quarter in order {
        let group = std::mem::take(&mut groups[quarter]);
        let segments = segments(group, quarter);
        if !lines.is_empty() && !segments.is_empty() {
            lines.push(String::new());
        }
        lines.extend(paragraphs(sorted(segments)));
    }
    lines
}

/// The position along and across lines that run in a direction of `quarter` turns counterclockwise.
fn turned((x, y): (f64, f64), quarter: usize) -> (f64, f64) {
    match quarter {
        0 => (x, y),
        1 => (y, -x),
        2 => (-x, -y),
        _ => (-y, x),
    }
}

/// Joins glyphs in the order of the stream while they continue their line.
fn segments(glyphs: Vec<Glyph>, quarter: usize) -> Vec<LineSegment> {
    let mut segments: Vec<LineSegment> = Vec::new();
    for glyph in glyphs {
        let (start, base) = turned(glyph.at, quarter);
        let (advance, _) = turned(glyph.advance, quarter);
        let size = glyph.size.max(0.1);
        if !(start.is_finite() && base.is_finite() && advance.is_finite()) {
            continue;
        }
        if glyph.text.is_empty() {
            // A glyph whose text is shown at one before it.
            if let Some(line) = segments.last_mut().filter(|line| line.continues(start, base, size)) {
                line.end = line.end.max(start + advance);
            }
            continue;
        }
        let text = expanded(&glyph.text);
        if let Some(line) = segments.last_mut().filter(|line| line.continues(start, base, size)) {
            line.append(&text, (start, start + advance), size);
            continue;
        }
        if text.trim().is_empty() {
            continue;
        }
        let last = (start, text.clone());
        segments.push(LineSegment { text, start, end: start + advance, base, size, last });
    }
    segments
}

/// The text with ligatures as letters.
fn expanded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'ﬀ' => out.push_str("ff"),
            'ﬁ' => out.push_str("fi"),
            'ﬂ' => out.push_str("fl"),
            'ﬃ' => out.push_str("ffi"),
            'ﬄ' => out.push_str("ffl"),
            'ﬅ' | 'ﬆ' => out.push_str("st"),
            c => out.push(c),
        }
    }
    out
}

/// Scripts without spaces between words.
fn is_spaceless(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{ff00}'..='\u{ffef}' | '\u{20000}'..='\u{3ffff}')
}

impl LineSegment {
    fn continues(&self, start: f64, base: f64, size: f64) -> bool {
        let larger = self.size.max(size);
        let gap = start - self.end;
        (base - self.base).abs() < BASELINE * larger && gap > -larger && start >= self.start - 0.1 * larger
    }

    /// Whether a segment continues this line on its right.
    fn is_beside(&self, other: &LineSegment) -> bool {
        let size = self.size.max(other.size);
        (self.base - other.base).abs() < BASELINE * size && other.start > self.end - 0.5 * size
    }

    fn append(&mut self, text: &str, (start, end): (f64, f64), size: f64) {
        let is_repeated = self.last.1 == text && (start - self.last.0).abs() < 0.1 * size;
        if is_repeated && !text.trim().is_empty() {
            return;
        }
        let gap = (start - self.end) / self.size.max(size);
        let ends_word = self.text.ends_with(char::is_whitespace) || text.starts_with(char::is_whitespace);
        let is_spaceless = self.text.chars().next_back().is_some_and(is_spaceless)
            || text.chars().next().is_some_and(is_spaceless);
        if gap > CELL_GAP {
            self.text.truncate(self.text.trim_end().len());
            self.text.push('\t');
        } else if !ends_word && gap > if is_spaceless { 3.0 * WORD_GAP } else { WORD_GAP } {
            self.text.push(' ');
        }
        if !(text.trim().is_empty() && self.text.ends_with(char::is_whitespace)) {
            self.text.push_str(text);
        }
        self.last = (start, text.to_owned());
        self.end = self.end.max(end);
        // A line of small and large glyphs has the size of the larger ones.
        self.size = self.size.max(size);
    }
}

/// Sorts segments from top to bottom if the stream jumps up within a column often, as form fillers and some printers
/// write.
fn sorted(mut segments: Vec<LineSegment>) -> Vec<LineSegment> {
    let overlaps = |a: &LineSegment, b: &LineSegment| a.start < b.end && b.start < a.end;
    let jumps =
        segments.windows(2).filter(|w| w[1].base > w[0].base + w[0].size && overlaps(&w[0], &w[1])).count();
    if jumps * 5 > segments.len() && segments.len() > 5 {
        segments.sort_by(|a, b| b.base.total_cmp(&a.base).then(a.start.total_cmp(&b.start)));
    }
    segments
}

/// Makes lines of segments, with an empty line where the distance of lines is large or the stream jumps.
fn paragraphs(segments: Vec<LineSegment>) -> Vec<String> {
    let mut joined: Vec<LineSegment> = Vec::new();
    for segment in segments {
        match joined.last_mut().filter(|line| line.is_beside(&segment)) {
            Some(line) => line.append(segment.text.trim(), (segment.start, segment.end), segment.size),
            None => joined.push(segment),
        }
    }
    let usual = usual_distance(&joined);
    let mut lines: Vec<String> = Vec::new();
    for (i, segment) in joined.iter().enumerate() {
        let down = i.checked_sub(1).map_or(usual, |before| joined[before].base - segment.base);
        if down > PARAGRAPH * usual || down < -BASELINE * segment.size {
            lines.push(String::new());
        }
        lines.push(segment.text.trim().to_owned());
    }
    lines
}

/// The median distance of lines that follow each other downwards; 0 for fewer than two.
fn usual_distance(segments: &[LineSegment]) -> f64 {
    let distances = segments.windows(2).map(|w| w[0].base - w[1].base);
    let mut distances: Vec<f64> = distances.filter(|down| *down > 0.0).collect();
    distances.sort_by(f64::total_cmp);
    distances.get(distances.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Glyphs of a text in a font whose characters are half as wide as the font's size, 10.
    fn text(at: (f64, f64), text: &str) -> Vec<Glyph> {
        let glyph = |(i, c): (usize, char)| Glyph {
            text: c.to_string(),
            at: (at.0 + 5.0 * i as f64, at.1),
            advance: (5.0, 0.0),
            size: 10.0,
        };
        text.chars().enumerate().filter(|(_, c)| *c != ' ').map(glyph).collect()
    }

    fn check(texts: &[((f64, f64), &str)], expected: &str) {
        let glyphs = texts.iter().flat_map(|(at, shown)| text(*at, shown)).collect();
        assert_eq!(lines(glyphs, 0).join("\n"), expected);
    }

    #[test]
    fn gaps_are_spaces_tabs_and_lines() {
        check(&[((0.0, 100.0), "ab cd"), ((0.0, 88.0), "ef"), ((0.0, 76.0), "gh")], "ab cd\nef\ngh");
        check(&[((0.0, 100.0), "ab"), ((60.0, 100.0), "cd")], "ab\tcd");
        check(&[((0.0, 100.0), "a"), ((0.0, 88.0), "b"), ((0.0, 60.0), "c")], "a\nb\n\nc");
        // Subscripts stay in the line, text that is drawn twice is bold.
        check(&[((0.0, 100.0), "H"), ((5.0, 97.0), "2"), ((10.0, 100.0), "O")], "H2O");
        check(&[((0.0, 100.0), "a"), ((0.2, 100.0), "a"), ((5.0, 100.0), "b")], "ab");
        check(&[((0.0, 100.0), "磨 坊")], "磨 坊");
        check(&[((0.0, 100.0), "ﬁn")], "fin");
    }

    #[test]
    fn columns_follow_the_stream() {
        let columns = [((0.0, 100.0), "a"), ((0.0, 88.0), "b"), ((200.0, 100.0), "c"), ((200.0, 88.0), "d")];
        check(&columns, "a\nb\n\nc\nd");
    }

    #[test]
    fn a_stream_from_bottom_to_top_is_sorted() {
        let upwards: Vec<_> = (0..8)
            .map(|i| ((0.0, 12.0 * f64::from(i)), ["h", "g", "f", "e", "d", "c", "b", "a"][i as usize]))
            .collect();
        check(&upwards, "a\nb\nc\nd\ne\nf\ng\nh");
    }

    #[test]
    fn turned_text_is_read_in_its_direction() {
        let turn =
            |glyph: Glyph| Glyph { at: (-glyph.at.1, glyph.at.0), advance: (0.0, glyph.advance.0), ..glyph };
        let turned = text((0.0, 100.0), "ab cd").into_iter().chain(text((0.0, 88.0), "ef")).map(turn);
        let mut all: Vec<Glyph> = turned.collect();
        all.extend(text((300.0, 10.0), "x"));
        assert_eq!(lines(all, 0), ["ab cd", "ef", "", "x"]);
    }
}
