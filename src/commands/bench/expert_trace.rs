//! The experts that a model selects, token by token: recorded from its forward pass, and as a text file.
//!
//! The file is UTF-8 with tab-separated fields. The first line is `# kimi expert trace 1`, the number of experts of a layer
//! and the number selected for each token: `experts=256` and `selected=8`. Each other line has the experts of one token in
//! one layer, best first: step (from 0), layer of the model, token in the step (both from 0), and the experts separated by
//! spaces. A step is one forward pass: a batch of a prompt, or one decoded token. Lines are ordered by step, layer and token,
//! and all steps have the same layers. Next: `synthetic_trace`.

use crate::io::output::partial_path;
use crate::io::prompt::read_text;
use anyhow::{Context as _, Result, bail, ensure};
use kernels::backend::Backend;
use models::hybrid::Probe;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The first field of a file, with the version of the format.
const HEADER: &str = "# kimi expert trace 1";

/// The experts selected in consecutive steps of one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertTrace {
    /// The number of experts in each layer.
    pub experts: usize,
    /// The number of experts selected for each token.
    pub selected: usize,
    /// The layers of the model that select experts.
    pub layers: Vec<usize>,
    pub steps: Vec<RoutedStep>,
}

/// The experts of one forward pass, for each of [`ExpertTrace::layers`]: `[token * selected]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutedStep(pub Vec<Vec<u32>>);

impl ExpertTrace {
    /// The number of tokens of a step.
    pub fn tokens(&self, step: &RoutedStep) -> usize {
        step.0.first().map_or(0, |chosen| chosen.len() / self.selected.max(1))
    }

    /// Reads a trace.
    ///
    /// # Errors
    /// One line: the file and line, what was expected there and what was found.
    pub fn read(path: &Path) -> Result<ExpertTrace> {
        let text = read_text(path)?;
        TraceParser::parse(&text).with_context(|| path.display().to_string())
    }

    fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\texperts={}\tselected={}\n", self.experts, self.selected);
        for (i, step) in self.steps.iter().enumerate() {
            for (layer, chosen) in self.layers.iter().zip(&step.0) {
                for (token, chosen) in chosen.chunks_exact(self.selected).enumerate() {
                    let experts: Vec<String> = chosen.iter().map(u32::to_string).collect();
                    let _ = writeln!(text, "{i}\t{layer}\t{token}\t{}", experts.join(" "));
                }
            }
        }
        text
    }
}

/// Builds a trace from its lines.
struct TraceParser(ExpertTrace);

/// The step, layer and token of a line.
type TracePlace = [usize; 3];

impl TraceParser {
    fn parse(text: &str) -> Result<ExpertTrace> {
        let mut lines = (1..).zip(text.lines());
        let (_, header) = lines.next().unwrap_or((1, ""));
        let mut parser = TraceParser(header_of(header).context("line 1")?);
        let mut last = 1;
        for (number, line) in lines {
            parser.line(line).with_context(|| format!("line {number}"))?;
            last = number;
        }
        ensure!(
            text.ends_with('\n'),
            "line {last}: expected a line break at its end, found the end of the file"
        );
        let next = parser.next_places(0);
        let is_complete = next.iter().any(|[step, ..]| *step > 0 && *step == parser.0.steps.len());
        ensure!(is_complete, "line {}: expected {}, found the end of the file", last + 1, shown(&next));
        Ok(parser.0)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let (place, chosen) = self.fields(line)?;
        let next = self.next_places(place[1]);
        ensure!(next.contains(&place), "expected {}, found {}", shown(&next), shown(&[place]));
        let ExpertTrace { layers, steps, .. } = &mut self.0;
        let [step, layer, token] = place;
        if step == steps.len() {
            steps.push(RoutedStep::default());
        }
        let step = &mut steps[step].0;
        if token == 0 {
            if step.len() == layers.len() {
                layers.push(layer);
            }
            step.push(chosen);
        } else if let Some(last) = step.last_mut() {
            last.extend(chosen);
        }
        Ok(())
    }

    /// The places that may follow the lines so far. The first step decides on the layers: in it, `found` may be any layer
    /// after the last one.
    fn next_places(&self, found: usize) -> Vec<TracePlace> {
        let ExpertTrace { selected, layers, steps, .. } = &self.0;
        let Some(step) = steps.last() else { return vec![[0, found, 0]] };
        let tokens = |layer: usize| step.0[layer].len() / selected;
        let (number, last) = (steps.len() - 1, step.0.len() - 1);
        let mut places = Vec::new();
        if last == 0 || tokens(last) < tokens(0) {
            places.push([number, layers[last], tokens(last)]);
        }
        if tokens(last) == tokens(0) {
            match layers.get(last + 1) {
                Some(layer) => places.push([number, *layer, 0]),
                None if number == 0 => {
                    places.extend([[0, found.max(layers[last] + 1), 0], [1, layers[0], 0]])
                }
                None => places.push([number + 1, layers[0], 0]),
            }
        }
        places
    }

    fn fields(&self, line: &str) -> Result<(TracePlace, Vec<u32>)> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [step, layer, token, chosen] = fields[..] else {
            bail!("expected 4 fields (step, layer, token, experts), found {}", fields.len());
        };
        let chosen: Vec<u32> = chosen.split(' ').map(|e| number("an expert", e)).collect::<Result<_>>()?;
        let ExpertTrace { experts, selected, .. } = self.0;
        ensure!(chosen.len() == selected, "expected {selected} experts, found {}", chosen.len());
        for (i, expert) in chosen.iter().enumerate() {
            ensure!((*expert as usize) < experts, "expected experts below {experts}, found {expert}");
            ensure!(
                !chosen[..i].contains(expert),
                "expected {selected} different experts, found {expert} twice"
            );
        }
        let place = [number("a step", step)?, number("a layer", layer)?, number("a token", token)?];
        Ok((place.map(|n: u32| n as usize), chosen))
    }
}

/// Formats places as alternatives: `step 1, layer 2, token 3 or step 2, ...`.
fn shown(places: &[TracePlace]) -> String {
    let places: Vec<String> = places
        .iter()
        .map(|[step, layer, token]| format!("step {step}, layer {layer}, token {token}"))
        .collect();
    places.join(" or ")
}

fn number<T: std::str::FromStr>(what: &str, text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("expected {what}, found {text:?}"))
}

/// A trace without steps that has the numbers of the first line.
fn header_of(line: &str) -> Result<ExpertTrace> {
    let mut fields = line.split('\t');
    let found = fields.next().unwrap_or("");
    ensure!(found == HEADER, "expected {HEADER:?}, found {found:?}");
    let mut count = |name: &str| -> Result<usize> {
        let field = fields.next().unwrap_or("");
        let value = field.strip_prefix(name).and_then(|rest| rest.strip_prefix('='));
        let count = value.and_then(|text| text.parse().ok()).filter(|n| (1..=MAX_EXPERTS).contains(n));
        count.with_context(|| format!("expected {name}= and 1 to {MAX_EXPERTS}, found {field:?}"))
    };
    let (experts, selected) = (count("experts")?, count("selected")?);
    ensure!(selected <= experts, "expected at most {experts} selected experts, found {selected}");
    Ok(ExpertTrace { experts, selected, ..ExpertTrace::default() })
}

/// The largest number of experts of a layer that a trace may have; a bound on memory for a damaged file.
const MAX_EXPERTS: usize = 1 << 16;

/// An output file for a trace, which is renamed into place when complete.
pub struct TraceFile(PathBuf);

impl TraceFile {
    /// Checks, before anything is measured, that the file can be written.
    ///
    /// # Errors
    /// A directory, or a place that is not writable.
    pub fn create(path: &Path) -> Result<TraceFile> {
        let name = || format!("--trace-experts {}", path.display());
        ensure!(!path.is_dir(), "{}: is a directory", name());
        let partial = partial_path(path);
        File::create(&partial).and_then(|_| fs::remove_file(&partial)).with_context(name)?;
        Ok(TraceFile(path.to_owned()))
    }

    /// Writes a trace and renames it into place when complete.
    pub fn write(&self, trace: &ExpertTrace) -> Result<()> {
        let partial = partial_path(&self.0);
        fs::write(&partial, trace.to_text()).and_then(|()| fs::rename(&partial, &self.0)).with_context(|| {
            let _ = fs::remove_file(&partial);
            format!("--trace-experts {}", self.0.display())
        })
    }
}

/// Records the experts of a forward pass as the next step of a trace.
pub struct TraceProbe<'a, B> {
    backend: &'a B,
    trace: &'a mut ExpertTrace,
}

impl<'a, B> TraceProbe<'a, B> {
    pub fn new(backend: &'a B, trace: &'a mut ExpertTrace) -> Self {
        trace.steps.push(RoutedStep::default());
        TraceProbe { backend, trace }
    }
}

impl<B: Backend> Probe<B> for TraceProbe<'_, B> {
    fn routed(&mut self, layer: usize, routed: &B::Routed) {
        let ExpertTrace { layers, steps, .. } = &mut *self.trace;
        if let Some(step) = steps.last_mut() {
            if step.0.len() == layers.len() {
                layers.push(layer);
            }
            step.0.push(self.backend.routed(routed).0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::errors::one_line;

    const TEXT: &str = "\
# kimi expert trace 1\texperts=5\tselected=2
0\t1\t0\t4 0
0\t1\t1\t0 3
0\t3\t0\t1 2
0\t3\t1\t2 0
1\t1\t0\t3 1
1\t3\t0\t0 4
";

    fn trace() -> ExpertTrace {
        let steps = vec![
            RoutedStep(vec![vec![4, 0, 0, 3], vec![1, 2, 2, 0]]),
            RoutedStep(vec![vec![3, 1], vec![0, 4]]),
        ];
        ExpertTrace { experts: 5, selected: 2, layers: vec![1, 3], steps }
    }

    #[test]
    fn a_trace_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.trace");
        TraceFile::create(&path).unwrap().write(&trace()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
        assert_eq!(ExpertTrace::read(&path).unwrap(), trace());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the trace alone");
        assert_eq!(trace().steps.iter().map(|step| trace().tokens(step)).collect::<Vec<_>>(), [2, 1]);
    }

    /// Each damage is named by its line, what was expected there and what was found.
    #[test]
    fn damaged_traces_are_refused() {
        for (from, to, error) in [
            (
                "trace 1",
                "trace 2",
                r##"line 1: expected "# kimi expert trace 1", found "# kimi expert trace 2""##,
            ),
            ("experts=5\t", "", r#"line 1: expected experts= and 1 to 65536, found "selected=2""#),
            ("selected=2", "selected=x", r#"line 1: expected selected= and 1 to 65536, found "selected=x""#),
            ("selected=2", "selected=6", "line 1: expected at most 5 selected experts, found 6"),
            ("4 0", "5 0", "line 2: expected experts below 5, found 5"),
            ("4 0", "4 4", "line 2: expected 2 different experts, found 4 twice"),
            ("4 0", "4", "line 2: expected 2 experts, found 1"),
            ("4 0", "4 -1", r#"line 2: expected an expert, found "-1""#),
            ("0\t1\t0\t", "0\t1\t", "line 2: expected 4 fields (step, layer, token, experts), found 3"),
            (
                "0\t1\t0",
                "1\t1\t0",
                "line 2: expected step 0, layer 1, token 0, found step 1, layer 1, token 0",
            ),
            (
                "0\t3\t1\t2 0\n",
                "",
                "line 5: expected step 0, layer 3, token 1, found step 1, layer 1, token 0",
            ),
            (
                "1\t3\t0",
                "1\t2\t0",
                "line 7: expected step 1, layer 1, token 1 or step 1, layer 3, token 0, found step 1, layer 2, token 0",
            ),
            (
                "1\t3\t0\t0 4\n",
                "",
                "line 7: expected step 1, layer 1, token 1 or step 1, layer 3, token 0, found the end of the file",
            ),
            ("0 4\n", "0 4", "line 7: expected a line break at its end, found the end of the file"),
            (
                &TEXT[TEXT.find('\n').unwrap() + 1..],
                "",
                "line 2: expected step 0, layer 0, token 0, found the end of the file",
            ),
            (TEXT, "", r##"line 1: expected "# kimi expert trace 1", found """##),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.trace");
            assert!(TEXT.contains(from), "{from:?}");
            fs::write(&path, TEXT.replacen(from, to, 1)).unwrap();
            let found = one_line(&ExpertTrace::read(&path).unwrap_err());
            assert_eq!(found, format!("{}: {error}", path.display()));
        }
    }

    #[test]
    fn places_are_checked_before_a_measurement() {
        let dir = tempfile::tempdir().unwrap();
        for (name, error) in [("", "is a directory"), ("missing/x", "No such file")] {
            let found = one_line(&TraceFile::create(&dir.path().join(name)).err().unwrap());
            assert!(found.starts_with("--trace-experts ") && found.contains(error), "{found}");
        }
    }
}
