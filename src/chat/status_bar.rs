//! Formats the activity line and the status bar of the full-screen chat, shortened to the width of the screen.

use super::app::{Activity, ChatApp};
use crate::document_qa::eta;
use crate::io::units::{counted, format_size, grouped};
use std::path::Path;
use std::time::Duration;
use unicode_width::UnicodeWidthStr;

/// Least columns of the progress bar beside its text.
const BAR_COLUMNS: usize = 10;

/// What the activity line shows above the input.
#[derive(Debug, PartialEq)]
pub enum ActivityLine {
    /// A text in the rule.
    Text(String),
    /// A progress bar: its text, and the part that is done.
    Progress(String, f64),
}

/// The activity line: loading, prefill or decode; None while idle.
pub fn activity(app: &ChatApp, columns: usize) -> Option<ActivityLine> {
    let text = |parts: &[String]| Some(ActivityLine::Text(fit(parts, " · ", columns)));
    match app.state {
        Activity::Idle => None,
        Activity::LoadingModel => text(&["loading the model".into()]),
        Activity::Prefill { total: 0, .. } => text(&[reading(app), "Esc stops".into()]),
        Activity::Prefill { done, total, rate } => {
            let mut parts = vec![reading(app), format!("{} %", done * 100 / total)];
            if rate > 0.0 {
                let left = Duration::from_secs_f64(total.saturating_sub(done) as f64 / rate);
                parts.push(format!("{rate:.0} tok/s, {} left", eta::duration(left)));
            }
            parts.push(format!("{} of {} tokens", grouped(done), grouped(total)));
            let line = fit(&parts, " · ", columns.saturating_sub(BAR_COLUMNS + 1));
            Some(ActivityLine::Progress(line, (done as f64 / total as f64).min(1.0)))
        }
        Activity::Decode { tokens, rate } => {
            let rate = if rate > 0.0 { format!("{rate:.1} tok/s") } else { "…".into() };
            text(&[format!("generating, {}", counted(tokens, "token")), rate, "Esc stops".into()])
        }
    }
}

/// What is prefilled: the file that was attached to the last message, or the prompt.
fn reading(app: &ChatApp) -> String {
    let turns = app.session.chat.turns.iter().rev();
    match turns.take(2).find_map(|turn| turn.files.last()) {
        Some(file) => {
            let name =
                Path::new(&file.name).file_name().map_or(file.name.clone().into(), |n| n.to_string_lossy());
            format!("reading {name}")
        }
        None => "reading the prompt".into(),
    }
}

/// The status bar, a sentence: the model, tokens of context, reused and new prompt tokens, decode rate and memory.
pub fn status(app: &ChatApp, columns: usize) -> String {
    let session = &app.session;
    let used = match app.state {
        Activity::Prefill { done, .. } => done,
        Activity::Decode { tokens, .. } => app.prompt_tokens + tokens,
        _ => session.used_tokens(),
    };
    let name = &session.model_info.name;
    let limit = session.model_info.context_limit.and_then(|limit| usize::try_from(limit).ok());
    let of = limit.map_or(String::new(), |limit| format!(" of {}", grouped(limit)));
    let mut parts = vec![format!("{name} uses {}{of} tokens", grouped(used))];
    let files = session.files.len();
    if files > 0 {
        parts.push(format!("{} attached to the next message", counted(files, "file")));
    }
    if let Some(stats) = session.last.as_ref().filter(|_| app.state == Activity::Idle) {
        let with_prompt = format!("{}: {}", parts[0], stats.prefill.describe());
        if files == 0 && with_prompt.width() < columns {
            parts[0] = with_prompt;
        }
        parts.push(format!("{:.0} tok/s", stats.decode_rate()));
    }
    parts.extend((!app.mouse).then(|| "the mouse selects text".to_owned()));
    parts.extend(app.memory.map(|bytes| format!("{} of memory", format_size(bytes))));
    fit(&parts, ", ", columns.saturating_sub(1)) + "."
}

/// Joins the parts that fit; the first one is always shown.
fn fit(parts: &[String], separator: &str, columns: usize) -> String {
    let mut line = String::new();
    for part in parts {
        let joined = if line.is_empty() { part.clone() } else { format!("{line}{separator}{part}") };
        if joined.width() > columns && !line.is_empty() {
            continue;
        }
        line = joined;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_do_not_fit_are_left_out() {
        let parts = ["model".to_owned(), "12 tokens".into(), "3 tok/s".into()];
        assert_eq!(fit(&parts, " · ", 80), "model · 12 tokens · 3 tok/s");
        assert_eq!(fit(&parts, " · ", 20), "model · 12 tokens");
        assert_eq!(fit(&parts, " · ", 16), "model · 3 tok/s");
        assert_eq!(fit(&parts, ", ", 3), "model");
    }
}
