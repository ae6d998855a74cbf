//! Formats the activity line and the status bar of the full-screen chat, shortened to the width of the screen.

use super::app::{Activity, ChatApp};
use crate::io::units::{format_size, grouped};
use unicode_width::UnicodeWidthStr;

/// Columns of the progress bar.
const BAR: usize = 20;

/// The activity line above the input: loading, prefill or decode; None while idle.
pub fn activity(app: &ChatApp, columns: usize) -> Option<String> {
    match app.state {
        Activity::Idle => None,
        Activity::LoadingModel => Some("loading the model".into()),
        Activity::Prefill { total: 0, .. } => Some("prefill".into()),
        Activity::Prefill { done, total, rate } => {
            let full = done * BAR / total;
            let mut parts = vec![
                format!("prefill {}{} {} %", "█".repeat(full), "░".repeat(BAR - full), done * 100 / total),
                format!("{} of {} tokens", grouped(done), grouped(total)),
            ];
            if rate > 0.0 {
                parts.push(format!("{} left", format_seconds((total - done) as f64 / rate)));
                parts.push(format!("{rate:.0} tok/s"));
            }
            Some(fit(&parts, columns))
        }
        Activity::Decode { tokens, rate } => {
            let rate = if rate > 0.0 { format!("{rate:.1} tok/s") } else { "…".into() };
            Some(fit(&[format!("generating, {tokens} tokens"), rate, "Esc stops".into()], columns))
        }
    }
}

/// The status bar: model, tokens of context, reused and new prompt tokens, decode rate and memory.
pub fn status(app: &ChatApp, columns: usize) -> String {
    let session = &app.session;
    let used = match app.state {
        Activity::Prefill { done, .. } => done,
        Activity::Decode { tokens, .. } => app.prompt_tokens + tokens,
        _ => session.used_tokens(),
    };
    let context = match session.model_info.context_limit {
        Some(limit) => {
            format!("{} of {} tokens", grouped(used), grouped(usize::try_from(limit).unwrap_or(0)))
        }
        None => format!("{} tokens", grouped(used)),
    };
    let mut parts = vec![session.model_info.name.clone(), context];
    if let Some(stats) = &session.last {
        parts.push(stats.prefill.describe());
        parts.push(format!("{:.1} tok/s", stats.decode_rate()));
    }
    parts.extend(app.memory.map(|bytes| format!("{} memory", format_size(bytes))));
    parts.extend((!app.mouse).then(|| "mouse selects text".to_owned()));
    if !session.files.is_empty() {
        parts.insert(0, format!("{} attached", session.files.len()));
    }
    fit(&parts, columns)
}

/// Joins the parts that fit; the first one is always shown.
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

fn format_seconds(seconds: f64) -> String {
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
    fn counts_sizes_and_times_are_formatted() {
        assert_eq!(
            [grouped(0), grouped(999), grouped(1_000), grouped(1_048_576)],
            ["0", "999", "1,000", "1,048,576"]
        );
        assert_eq!(
            [format_seconds(5.4), format_seconds(80.0), format_seconds(3725.0)],
            ["0:05", "1:20", "1:02:05"]
        );
    }

    #[test]
    fn parts_that_do_not_fit_are_left_out() {
        let parts = ["model".to_owned(), "12 tokens".into(), "3 tok/s".into()];
        assert_eq!(fit(&parts, 80), "model · 12 tokens · 3 tok/s");
        assert_eq!(fit(&parts, 20), "model · 12 tokens");
        assert_eq!(fit(&parts, 16), "model · 3 tok/s");
        assert_eq!(fit(&parts, 3), "model");
    }
}
