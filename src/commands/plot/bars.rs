//! Bars in the terminal: a row per value, or one bar of segments. In a pipe and with `NO_COLOR` they are plain ASCII.

use std::io::IsTerminal;

/// Widest output in columns; bars that are longer are hard to compare.
const MAX_WIDTH: usize = 100;
/// Columns of a line in a pipe or a file.
const PIPE_WIDTH: usize = 80;
/// Blocks that fill a part of a column, in eighths.
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// How bars are drawn, by the terminal and the environment.
#[derive(Clone, Copy, Debug)]
pub struct BarStyle {
    /// Columns that a line may fill.
    pub width: usize,
    /// Characters of ASCII only, no colors.
    pub plain: bool,
}

/// A part of a bar: its color in the sixteen of a terminal, its block there and its letter in ASCII.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    pub ansi: u8,
    pub block: char,
    pub letter: char,
}

impl BarStyle {
    /// The style for standard output.
    pub fn detect() -> BarStyle {
        let terminal = std::io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let width = if terminal { textwrap::termwidth().clamp(20, MAX_WIDTH) } else { PIPE_WIDTH };
        BarStyle { width, plain: !terminal || no_color }
    }

    /// A bar of `columns` columns, filled up to a fraction; fractions below 0 and NaN are 0, above 1 they are 1.
    pub fn bar(self, fraction: f64, columns: usize) -> String {
        let fraction = if fraction.is_nan() { 0.0 } else { fraction.clamp(0.0, 1.0) };
        let eighths = (fraction * columns as f64 * 8.0).round() as usize;
        if self.plain {
            let full = (eighths + 4) / 8;
            return "#".repeat(full) + &".".repeat(columns - full);
        }
        let (full, part) = (eighths / 8, eighths % 8);
        let mut bar = "█".repeat(full);
        bar.extend((full < columns).then_some(EIGHTHS[part]));
        bar + &" ".repeat(columns.saturating_sub(full + 1))
    }

    /// A row per value: its label, a bar relative to the largest value, and the value as text.
    pub fn rows(self, rows: &[(String, f64, String)]) -> Vec<String> {
        let widest = |text: fn(&(String, f64, String)) -> &String| {
            rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0)
        };
        let (labels, values) = (widest(|row| &row.0), widest(|row| &row.2));
        let columns = self.width.saturating_sub(labels + values + 6).max(4);
        let top = rows.iter().map(|row| row.1).filter(|v| v.is_finite()).fold(0.0, f64::max);
        let line = |(label, value, text): &(String, f64, String)| {
            let fraction = if top > 0.0 { value / top } else { 0.0 };
            format!("  {label:>labels$}  {}  {text:>values$}", self.color(&self.bar(fraction, columns), 34))
        };
        rows.iter().map(line).collect()
    }

    /// One bar of segments, each with its share of `columns` columns.
    pub fn segments(self, parts: &[(Fill, u64)], columns: usize) -> String {
        let sizes: Vec<u64> = parts.iter().map(|(_, size)| *size).collect();
        let draw = |((fill, _), n): (&(Fill, u64), usize)| {
            let c = if self.plain { fill.letter } else { fill.block };
            self.color(&String::from(c).repeat(n), fill.ansi)
        };
        parts.iter().zip(shares(&sizes, columns)).map(draw).collect()
    }

    /// The key of a segment in a legend.
    pub fn key(self, fill: Fill) -> String {
        let c = if self.plain { fill.letter } else { fill.block };
        self.color(&c.to_string(), fill.ansi)
    }

    /// Text in a color of the terminal.
    pub fn color(self, text: &str, ansi: u8) -> String {
        if self.plain || text.is_empty() { text.to_owned() } else { format!("\x1b[{ansi}m{text}\x1b[0m") }
    }
}

/// Divides columns in proportion to sizes: the widths add up to `columns`, and each size above 0 gets one column if there are
/// enough. What rounding leaves goes to the largest remainders.
pub fn shares(sizes: &[u64], columns: usize) -> Vec<usize> {
    let total: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
    if total == 0 {
        return vec![0; sizes.len()];
    }
    let exact = |size: u64| u128::from(size) * columns as u128;
    let mut widths: Vec<usize> = sizes.iter().map(|size| (exact(*size) / total) as usize).collect();
    let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
    by_remainder.sort_by_key(|i| std::cmp::Reverse(exact(sizes[*i]) % total));
    let left = columns - widths.iter().sum::<usize>();
    by_remainder.iter().take(left).for_each(|i| widths[*i] += 1);
    for i in 0..sizes.len() {
        let widest = (0..sizes.len()).max_by_key(|i| widths[*i]).unwrap_or(0);
        if sizes[i] > 0 && widths[i] == 0 && widths[widest] > 1 {
            widths[widest] -= 1;
            widths[i] += 1;
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: BarStyle = BarStyle { width: 40, plain: true };
    const BLOCKS: BarStyle = BarStyle { width: 40, plain: false };

    #[test]
    fn bars_have_their_width_whatever_the_value() {
        for columns in [0, 1, 7, 30] {
            for value in [0.0, 0.49, 0.5, 1.0, 2.0, -1.0, f64::NAN, f64::INFINITY] {
                for style in [PLAIN, BLOCKS] {
                    assert_eq!(style.bar(value, columns).chars().count(), columns, "{value} {columns}");
                }
            }
        }
        assert_eq!(BLOCKS.bar(0.53, 4), "██▏ ");
        assert_eq!(PLAIN.bar(0.5, 4), "##..");
    }

    #[test]
    fn segments_add_up_to_the_width() {
        let fill = |letter| Fill { ansi: 34, block: '█', letter };
        for (sizes, columns, expected) in [
            (vec![1, 1, 1], 10, "WWWWCCCSSS"),
            (vec![1 << 40, 1, 0], 8, "WWWWWWWC"),
            (vec![u64::MAX, u64::MAX, 1], 6, "WWWCCS"),
            (vec![0, 0, 0], 6, ""),
            (vec![5, 3, 2], 2, "WC"),
        ] {
            let parts: Vec<_> = "WCS".chars().map(fill).zip(sizes.iter().copied()).collect();
            assert_eq!(PLAIN.segments(&parts, columns), expected, "{sizes:?}");
            let full = sizes.iter().any(|n| *n > 0);
            assert_eq!(shares(&sizes, columns).iter().sum::<usize>(), if full { columns } else { 0 });
        }
    }

    #[test]
    fn rows_are_relative_to_the_largest_value() {
        let row = |label: &str, value: f64| (label.to_owned(), value, format!("{value:.1}"));
        let rows = PLAIN.rows(&[row("a", 10.0), row("long", 5.0), row("b", f64::NAN)]);
        assert_eq!(rows[0], format!("     a  {}  10.0", "#".repeat(26)));
        assert_eq!(rows[1], format!("  long  {}{}   5.0", "#".repeat(13), ".".repeat(13)));
        assert_eq!(rows[2], format!("     b  {}   NaN", ".".repeat(26)));
        assert!(rows.iter().all(|row| row.is_ascii() && row.len() == 40), "{rows:?}");
        assert!(PLAIN.rows(&[]).is_empty() && PLAIN.rows(&[row("zero", 0.0)])[0].contains("...."));
    }
}
