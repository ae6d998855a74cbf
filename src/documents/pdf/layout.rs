//! Lays out the glyphs of a page as lines: glyphs of one baseline are a line, gaps between them are spaces or tabs.
//!
//! Lines keep the order of the content stream, which programs write in reading order, columns included; a page whose
//! stream jumps up and down within one column is sorted from top to bottom. Next: [`super::segment`], [`super::reflow`].

use super::content::Glyph;
use super::reflow::{PageLine, wrapped};
use super::segment::{BASELINE, LineSegment};

/// The distance of paragraphs, in parts of the usual distance of lines.
const PARAGRAPH: f64 = 1.35;

/// The lines of a page that is shown turned by `turns` quarters clockwise. An empty line separates paragraphs.
pub(super) fn lines(glyphs: Vec<Glyph>, turns: u8) -> Vec<PageLine> {
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
            lines.push(PageLine::default());
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
fn paragraphs(segments: Vec<LineSegment>) -> Vec<PageLine> {
    let mut joined: Vec<LineSegment> = Vec::new();
    for segment in segments {
        match joined.last_mut().filter(|line| line.is_beside(&segment)) {
            Some(line) => line.append(segment.text.trim(), (segment.start, segment.end), segment.size),
            None => joined.push(segment),
        }
    }
    joined.iter_mut().for_each(|line| line.text = line.text.trim().to_owned());
    let usual = usual_distance(&joined);
    let is_together = |above: &LineSegment, line: &LineSegment| {
        let down = above.base - line.base;
        down <= PARAGRAPH * usual && down >= -BASELINE * line.size
    };
    let mut lines: Vec<PageLine> = Vec::new();
    for paragraph in joined.chunk_by(is_together) {
        if !lines.is_empty() {
            lines.push(PageLine::default());
        }
        let texts = paragraph.iter().map(|line| line.text.clone());
        let wrapped = wrapped(paragraph, &joined);
        lines.extend(texts.zip(wrapped).map(|(text, is_wrapped)| PageLine { text, is_wrapped }));
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
        let texts: Vec<String> = lines(glyphs, 0).into_iter().map(|line| line.text).collect();
        assert_eq!(texts.join("\n"), expected);
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
        let texts: Vec<String> = lines(all, 0).into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["ab cd", "ef", "", "x"]);
    }
}
