//! Pieces of the lines of a page, which glyphs and other pieces are appended to.

/// The gap between words, in parts of the font size. TeX shrinks spaces to 0.22; kerning stays below 0.1.
const WORD_GAP: f64 = 0.15;
/// The gap between cells of a table or columns.
const CELL_GAP: f64 = 1.6;
/// The difference of baselines within a line: sub- and superscripts.
pub(super) const BASELINE: f64 = 0.45;

/// A piece of a line: glyphs that follow each other.
#[derive(Clone, Debug)]
pub(super) struct LineSegment {
    pub text: String,
    /// Where it starts and ends along the line, and its baseline upwards.
    pub start: f64,
    pub end: f64,
    pub base: f64,
    pub size: f64,
    /// The last character with its position, against repeated drawing for bold text.
    pub last: (f64, String),
}

/// Scripts without spaces between words.
pub(super) fn is_spaceless(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{ff00}'..='\u{ffef}' | '\u{20000}'..='\u{3ffff}')
}

impl LineSegment {
    pub fn continues(&self, start: f64, base: f64, size: f64) -> bool {
        let larger = self.size.max(size);
        let gap = start - self.end;
        (base - self.base).abs() < BASELINE * larger && gap > -larger && start >= self.start - 0.1 * larger
    }

    /// Whether a segment continues this line on its right.
    pub fn is_beside(&self, other: &LineSegment) -> bool {
        let size = self.size.max(other.size);
        (self.base - other.base).abs() < BASELINE * size && other.start > self.end - 0.5 * size
    }

    pub fn append(&mut self, text: &str, (start, end): (f64, f64), size: f64) {
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
