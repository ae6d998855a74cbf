//! Shows the accuracy by kind of question and by length: bars in the terminal, and the picture of `--plot`.

use super::{EvalReport, Tally};
use crate::commands::plot::bars::BarStyle;
use crate::commands::plot::{Axis, Panel, Picture, Point, Series};
use crate::io::units::{counted, grouped};
use std::path::Path;

/// Columns of the name of a kind, and of a value beside its bar.
const NAME: usize = 9;
const VALUE: usize = 9;
/// Shortest bar in columns; lengths that do not fit beside each other go below.
const MIN_BAR: usize = 8;
/// The name of the sum over all kinds.
const ALL: &str = "all";

impl Tally {
    fn percent(self) -> f64 {
        100.0 * self.right as f64 / self.asked as f64
    }

    /// The 95 % confidence interval of the percentage (Wilson score).
    fn interval(self) -> [f64; 2] {
        const Z: f64 = 1.96;
        let (n, p) = (self.asked as f64, self.right as f64 / self.asked as f64);
        let (middle, scale) = (p + Z * Z / (2.0 * n), 1.0 + Z * Z / n);
        let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        [middle - half, middle + half].map(|end| 100.0 * (end / scale).clamp(0.0, 1.0))
    }
}

impl EvalReport {
    /// The kinds of all lengths in order, after the sum.
    fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> = self.lengths.values().flatten().map(|(kind, _)| kind.as_str()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds.insert(0, ALL);
        kinds
    }

    /// The tally of a kind, or of all, at one length.
    fn tally(&self, length: usize, kind: &str) -> Tally {
        let kinds = &self.lengths[&length];
        match kind {
            ALL => kinds.values().fold(Tally::default(), |sum, t| Tally {
                right: sum.right + t.right,
                asked: sum.asked + t.asked,
            }),
            _ => kinds.get(kind).copied().unwrap_or_default(),
        }
    }

    /// The report as text: a bar per kind for each length.
    pub fn lines(&self, style: BarStyle) -> Vec<String> {
        let lengths: Vec<usize> = self.lengths.keys().copied().collect();
        let per_line = (style.width.saturating_sub(NAME) / (3 + MIN_BAR + VALUE)).max(1);
        let per_line = per_line.min(lengths.len().max(1));
        let bar = ((style.width.saturating_sub(NAME)) / per_line).saturating_sub(3 + VALUE).max(MIN_BAR);
        let mut lines = Vec::new();
        for lengths in lengths.chunks(per_line) {
            if !lines.is_empty() {
                lines.push(String::new());
            }
            let width = bar + VALUE;
            let head = |length: &usize| format!("  {:<width$} ", format!("{} tokens", grouped(length)));
            let asked = |length: &usize| format!("  {:>width$} ", self.tally(*length, ALL).asked);
            for (name, cell) in [("", &head as &dyn Fn(&usize) -> String), ("questions", &asked)] {
                let cells: String = lengths.iter().map(cell).collect();
                lines.push(format!("{name:NAME$}{cells}").trim_end().to_owned());
            }
            for kind in self.kinds() {
                let cell = |length: &usize| self.cell(self.tally(*length, kind), style, bar);
                let cells: String = lengths.iter().map(cell).collect();
                lines.push(format!("{kind:<NAME$}{cells}").trim_end().to_owned());
            }
        }
        if let (Some(value), Some(error)) = (self.perplexity, self.perplexity_error) {
            lines.push(format!("perplexity on held-out prose {value:.3} ± {error:.3}"));
        }
        lines
    }

    fn cell(&self, t: Tally, style: BarStyle, bar: usize) -> String {
        match t.asked {
            0 => format!("  {:bar$}{:>VALUE$} ", "", "-"),
            _ => {
                let value = format!("{:.1} %", t.percent());
                format!("  {}{value:>VALUE$} ", style.color(&style.bar(t.percent() / 100.0, bar), 34))
            }
        }
    }

    /// The accuracy by kind: a group of bars per kind, one bar per length.
    pub fn picture(&self, model: &str) -> Picture {
        let kinds = self.kinds();
        let series = self.lengths.keys().map(|length| {
            let tallies = kinds.iter().map(|kind| self.tally(*length, kind)).enumerate();
            let point = |(i, t): (usize, Tally)| Point {
                x: i as f64,
                y: t.percent(), // NaN without questions
                range: Some(t.interval()),
            };
            Series { name: format!("{} tokens", grouped(length)), points: tallies.map(point).collect() }
        });
        let asked: usize = self.lengths.keys().map(|length| self.tally(*length, ALL).asked).sum();
        let model = Path::new(model).file_name().map_or(model.into(), |name| name.to_string_lossy());
        let mut subtitle = format!("{}; higher is better", counted(asked, "question"));
        if let (Some(value), Some(error)) = (self.perplexity, self.perplexity_error) {
            subtitle += &format!("; perplexity on held-out prose {value:.3} ± {error:.3}");
        }
        Picture {
            title: format!("Correct answers by kind of question: {model}"),
            subtitle,
            panels: vec![Panel {
                head: "Correct answers, %".into(),
                axis: Axis::Names(kinds.iter().map(|kind| (*kind).to_owned()).collect()),
                series: series.collect(),
                top: Some(100.0),
            }],
            notes: vec![format!(
                "kimi eval {}; error bars are 95 % confidence intervals (Wilson).",
                env!("CARGO_PKG_VERSION")
            )],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn report() -> EvalReport {
        let kinds = |right| BTreeMap::from([("code".to_owned(), Tally { right, asked: 4 })]);
        let mut long = kinds(1);
        long.insert("two hops".into(), Tally { right: 0, asked: 1 });
        let lengths = BTreeMap::from([(1024, kinds(4)), (16_384, long)]);
        EvalReport { lengths, perplexity: Some(20.5), perplexity_error: Some(0.25) }
    }

    #[test]
    fn bars_of_all_lengths_stand_beside_each_other_or_below() {
        let wide = report().lines(BarStyle { width: 72, plain: true });
        assert_eq!(
            wide,
            [
                "           1,024 tokens                   16,384 tokens",
                "questions                             4                              5",
                "all        ###################  100.0 %   ####...............   20.0 %",
                "code       ###################  100.0 %   #####..............   25.0 %",
                "two hops                              -   ...................    0.0 %",
                "perplexity on held-out prose 20.500 ± 0.250",
            ]
        );
        let narrow = report().lines(BarStyle { width: 30, plain: true });
        assert_eq!(narrow.len(), 12, "{narrow:?}");
        let bars = narrow.iter().filter(|line| line.contains('%'));
        assert!(bars.clone().count() == 5 && bars.clone().all(|line| line.len() <= 30), "{narrow:?}");
    }

    #[test]
    fn the_picture_has_a_bar_per_kind_and_length() {
        let picture = report().picture("/models/a.gguf");
        assert_eq!(picture.title, "Correct answers by kind of question: a.gguf");
        let [short, long] = &picture.panels[0].series[..] else { panic!("{picture:?}") };
        assert_eq!(short.name, "1,024 tokens");
        let values = |series: &Series| series.points.iter().map(|p| p.y).collect::<Vec<_>>();
        assert_eq!(values(long), [20.0, 25.0, 0.0]);
        assert!(values(short)[2].is_nan(), "no questions");
        let [low, high] = short.points[1].range.unwrap();
        // Wilson's interval of 4 of 4 at 95 %.
        assert!((low - 51.01).abs() < 0.01 && high == 100.0, "{low} {high}");
    }
}
