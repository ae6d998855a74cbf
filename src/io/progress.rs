//! Progress bars on standard error, for terminals only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// A bar that is hidden where standard error is no terminal.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar with `done` of `total` steps, drawn by a template of indicatif's.
    pub fn new(total: u64, done: u64, template: &str) -> Progress {
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
        Progress(bar)
    }

    /// Adds steps.
    pub fn inc(&self, steps: u64) {
        self.0.inc(steps);
    }

    /// Sets the steps that are done.
    pub fn set_position(&self, done: u64) {
        self.0.set_position(done);
    }

    /// Steps that are done.
    pub fn position(&self) -> u64 {
        self.0.position()
    }

    /// Shows a text at the template's `{msg}`.
    pub fn set_message(&self, text: String) {
        self.0.set_message(text);
    }

    /// Whether nothing is drawn.
    pub fn is_hidden(&self) -> bool {
        self.0.is_hidden()
    }

    /// Runs `f`, which writes to standard error, with the bar out of its way.
    pub fn suspend(&self, f: impl FnOnce()) {
        self.0.suspend(f);
    }

    /// Clears the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
