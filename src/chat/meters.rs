//! What the engine is doing and how fast, in words that fit a row.

use super::app::{App, State};
use crate::io::units::grouped;
use unicode_width::UnicodeWidthStr;

const BAR: usize = 20;

/// The row above the message: what is going on; None when nothing is.
pub fn activity(app: &App, columns: usize) -> Option<String> {
    match app.state {
        State::Idle => None,
        State::Opening => Some("opening the model".into()),
        State::Reading { total: 0, .. } => Some("reading".into()),
        State::Reading { done, total, rate } => {
            let full = done * BAR / total;
            let mut parts = vec![
                format!("reading {}{} {} %", "█".repeat(full), "░".repeat(BAR - full), done * 100 / total),
                format!("{} of {} tokens", grouped(done), grouped(total)),
            ];
            if rate > 0.0 {
                parts.push(format!("{} left", clock((total - done) as f64 / rate)));
                parts.push(format!("{rate:.0} tok/s"));
            }
            Some(fit(&parts, columns))
        }
        State::Writing { tokens, rate } => {
            let rate = if rate > 0.0 { format!("{rate:.1} tok/s") } else { "…".into() };
            Some(fit(&[format!("writing, {tokens} tokens"), rate, "Esc stops".into()], columns))
        }
    }
}

/// The last row: model, context, memory, and how the last reply was made.
pub fn status(app: &App, columns: usize) -> String {
    let talk = &app.talk;
    let used = match app.state {
        State::Reading { done, .. } => done,
        State::Writing { tokens, .. } => app.prompt + tokens,
        _ => talk.context(),
    };
    let context = match talk.about.context {
        Some(limit) => {
            format!("{} of {} tokens", grouped(used), grouped(usize::try_from(limit).unwrap_or(0)))
        }
        None => format!("{} tokens", grouped(used)),
    };
    let mut parts = vec![talk.about.name.clone(), context];
    if let Some(stats) = &talk.last {
        let rate = stats.generated.saturating_sub(1) as f64 / stats.decode_time.as_secs_f64().max(1e-9);
        parts.push(stats.prefill.describe());
        parts.push(format!("{rate:.1} tok/s"));
    }
    parts.extend(app.memory.map(|bytes| format!("{} of memory", sized(bytes))));
    parts.extend((!app.mouse).then(|| "mouse selects".to_owned()));
    if !talk.files.is_empty() {
        parts.insert(0, format!("{} attached", talk.files.len()));
    }
    fit(&parts, columns)
}

/// The parts that fit, the first in any case.
fn fit(parts: &[String], columns: usize) -> String {
    let mut line = String::new();
    for part in parts {
        let joined = if line.is_empty() { part.clone() } else { format!("{line} · {part}") };
        if joined.width() > columns && !line.is_empty() {
            continue;
        }
        line = joined;
    }
    line
}

fn sized(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 1000.0 { format!("{megabytes:.0} MB") } else { format!("{:.1} GB", megabytes / 1000.0) }
}

fn clock(seconds: f64) -> String {
    let s = seconds.round() as u64;
    if s < 3600 {
        format!("{}:{:02}", s / 60, s % 60)
    } else {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [grouped(0), grouped(999), grouped(1_000), grouped(1_048_576)],
            ["0", "999", "1,000", "1,048,576"]
        );
        assert_eq!([sized(7_300_000_000), sized(42_000_000)], ["7.3 GB", "42 MB"]);
        assert_eq!([clock(5.4), clock(80.0), clock(3725.0)], ["0:05", "1:20", "1:02:05"]);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let parts = ["model".to_owned(), "12 tokens".into(), "3 tok/s".into()];
        assert_eq!(fit(&parts, 80), "model · 12 tokens · 3 tok/s");
        assert_eq!(fit(&parts, 20), "model · 12 tokens");
        assert_eq!(fit(&parts, 16), "model · 3 tok/s");
        assert_eq!(fit(&parts, 3), "model");
    }
}
