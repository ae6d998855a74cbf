//! Splits the scores of a text by position in the window and by window, for bars in the terminal and for `--plot`.

use super::scores::{Scores, mean_and_error};
use crate::commands::plot::bars::BarStyle;
use crate::commands::plot::{Axis, Panel, Picture, Point, Series, number};
use crate::io::units::{counted, grouped};
use std::ops::Range;

/// Groups of positions, and of windows in the terminal.
const GROUPS: usize = 8;
/// Most groups of windows in a picture.
const PLOTTED: usize = 400;

/// The scores with the sizes of their windows.
pub struct Breakdown<'a> {
    pub scores: &'a Scores,
    /// Window size in tokens, of which the second half is scored.
    pub window: usize,
    pub windows: usize,
}

/// The mean of a group, and its standard error.
struct ScoreGroup {
    /// Windows, or positions in their windows.
    range: Range<usize>,
    mean: f64,
    error: f64,
}

impl Breakdown<'_> {
    /// The values per position, and whether they are KL divergences instead of negative log-likelihoods.
    fn values(&self) -> (Vec<f64>, bool) {
        match self.scores.divergences() {
            kl if kl.is_empty() => (self.scores.nll.clone(), false),
            kl => (kl, true),
        }
    }

    /// The scored positions of a window.
    fn positions(&self) -> Range<usize> {
        self.window / 2 + 1..self.window
    }

    fn by_position(&self) -> Vec<ScoreGroup> {
        let (values, is_kl) = self.values();
        let (first, n) = (self.positions().start, self.positions().len());
        let group = |range: Range<usize>| {
            let rows = values.chunks(n.max(1));
            group(rows.flat_map(|row| &row[range.clone()]).copied().collect(), is_kl, first, range.clone())
        };
        parts(n, GROUPS).map(group).collect()
    }

    fn by_window(&self, most: usize) -> Vec<ScoreGroup> {
        let (values, is_kl) = self.values();
        let n = self.positions().len();
        let group = |windows: Range<usize>| {
            group(values[windows.start * n..windows.end * n].to_vec(), is_kl, 1, windows)
        };
        parts(self.windows, most).map(group).collect()
    }

    fn measure(&self) -> &'static str {
        if self.values().1 { "KL divergence" } else { "perplexity" }
    }

    /// Bars by position and by window.
    pub fn lines(&self, style: BarStyle) -> Vec<String> {
        let mut lines = Vec::new();
        let by = [("position in the window", self.by_position()), ("window", self.by_window(GROUPS))];
        for (by, groups) in
            by.into_iter().filter(|(_, groups)| groups.len() > 1 && !self.positions().is_empty())
        {
            lines.extend([String::new(), format!("{} by {by}", self.measure())]);
            let row = |g: &ScoreGroup| {
                let label = match g.range.len() {
                    1 => grouped(g.range.start),
                    _ => format!("{}-{}", grouped(g.range.start), grouped(g.range.end - 1)),
                };
                (label, g.mean, number(g.mean))
            };
            lines.extend(style.rows(&groups.iter().map(row).collect::<Vec<_>>()));
        }
        lines
    }

    /// Lines by position and by window.
    pub fn picture(&self, model: &str, baseline: Option<&str>) -> Picture {
        let panel = |by: &str, groups: Vec<ScoreGroup>| {
            let point = |g: ScoreGroup| Point {
                x: (g.range.start + g.range.end - 1) as f64 / 2.0,
                y: g.mean,
                range: Some([g.mean - g.error, g.mean + g.error]),
            };
            let points = groups.into_iter().map(point).collect();
            let series = vec![Series { name: String::new(), points }];
            Panel { head: format!("By {by}"), axis: Axis::Numbers(by.to_owned()), series, top: None }
        };
        let title = match baseline {
            Some(baseline) => format!("KL divergence of {model} from {baseline}"),
            None => format!("Perplexity of {model}"),
        };
        let windows = counted(self.windows, "window");
        Picture {
            title,
            subtitle: format!(
                "{windows} of {} tokens, of which the second half is scored; lower is better",
                grouped(self.window)
            ),
            panels: vec![
                panel("position in the window, tokens", self.by_position()),
                panel("window", self.by_window(PLOTTED)),
            ],
            notes: vec![format!(
                "kimi perplexity {}; error bars are standard errors of the mean.",
                env!("CARGO_PKG_VERSION")
            )],
        }
    }
}

/// Divides `0..n` into at most `most` parts of about the same length.
fn parts(n: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let most = most.min(n);
    (0..most).map(move |i| i * n / most..(i + 1) * n / most)
}

/// The mean of values: of KL divergences as it is, of log-likelihoods as perplexity. The range starts at `first`.
fn group(values: Vec<f64>, is_kl: bool, first: usize, range: Range<usize>) -> ScoreGroup {
    let (mean, error) = mean_and_error(&values);
    let range = range.start + first..range.end + first;
    match is_kl {
        true => ScoreGroup { range, mean, error },
        false => ScoreGroup { range, mean: mean.exp(), error: mean.exp() * error },
    }
}

#[cfg(test)]
mod tests {
    use super::super::log_softmax;
    use super::*;

    /// Two windows of 8 tokens, of which 3 positions are scored; the second has twice the vocabulary.
    fn scores() -> Scores {
        let mut scores = Scores::default();
        for vocab in [16, 32] {
            (0..3).for_each(|_| scores.add(&log_softmax(&vec![0.0; vocab]), 3, None));
        }
        scores
    }

    #[test]
    fn groups_are_those_of_positions_and_windows() {
        let scores = scores();
        let all = Breakdown { scores: &scores, window: 8, windows: 2 };
        let shown = |groups: Vec<ScoreGroup>| -> Vec<(Range<usize>, f64)> {
            groups.into_iter().map(|g| (g.range, (g.mean * 100.0).round() / 100.0)).collect()
        };
        let middle = (16.0f64 * 32.0).sqrt();
        let middle = (middle * 100.0).round() / 100.0;
        assert_eq!(shown(all.by_position()), [(5..6, middle), (6..7, middle), (7..8, middle)]);
        assert_eq!(shown(all.by_window(GROUPS)), [(1..2, 16.0), (2..3, 32.0)]);
        assert_eq!(shown(all.by_window(1)), [(1..3, middle)]);
        let lines = all.lines(BarStyle { width: 40, plain: true });
        assert_eq!(lines[1], "perplexity by position in the window");
        assert_eq!(lines[7], format!("  1  {}{}  16.0", "#".repeat(15), ".".repeat(14)));
        let picture = all.picture("a.gguf", None);
        assert_eq!(picture.panels[1].series[0].points[1].y.round(), 32.0);
        assert_eq!(picture.panels[0].series[0].points[0].x, 5.0);
    }

    #[test]
    fn one_window_of_one_position_has_no_bars() {
        let mut scores = Scores::default();
        scores.add(&log_softmax(&[0.0; 4]), 3, None);
        let one = Breakdown { scores: &scores, window: 3, windows: 1 };
        assert!(one.lines(BarStyle { width: 40, plain: true }).is_empty());
        assert_eq!(one.by_position().len(), 1);
        // A window of two tokens has no scored position.
        let none = Breakdown { scores: &Scores::default(), window: 2, windows: 2 };
        assert!(none.lines(BarStyle { width: 40, plain: true }).is_empty() && none.by_position().is_empty());
    }
}
