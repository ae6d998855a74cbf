//! Progress bars on standard error, for terminals only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// A progress bar, hidden if standard error is no terminal.
#[derive(Debug)]
pub struct TerminalProgress(ProgressBar);

impl TerminalProgress {
    /// Creates a bar at `done` of `total` steps, drawn by an indicatif template.
    pub fn new(total: u64, done: u64, template: &str) -> TerminalProgress {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.reset_eta();
        TerminalProgress(bar)
    }

    pub fn inc(&self, steps: u64) {
        self.0.inc(steps);
    }

    pub fn set_position(&self, done: u64) {
        self.0.set_position(done);
    }

    pub fn position(&self) -> u64 {
        self.0.position()
    }

    /// Sets the text of `{msg}` in the template.
    pub fn set_message(&self, text: String) {
        self.0.set_message(text);
    }

    /// Whether the bar is not drawn.
    pub fn is_hidden(&self) -> bool {
        self.0.is_hidden()
    }

    /// Hides the bar while `f` writes to standard error.
    pub fn suspend(&self, f: impl FnOnce()) {
        self.0.suspend(f);
    }

    /// Removes the bar from the terminal.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
