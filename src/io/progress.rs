//! Progress bars on standard error, for terminals only.

use super::output::tell;
use super::units::format_size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

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

    pub fn dec(&self, steps: u64) {
        self.0.dec(steps);
    }

    /// Advances the bar by steps that took no time: rate and time left ignore them.
    pub fn skip(&self, steps: u64) {
        self.0.inc(steps);
        self.0.reset_eta();
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

/// Interval of the lines that replace a bar where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of a transfer of bytes: a bar with rate and time left, or a line every ten seconds if standard error is no
/// terminal. It is drawn once [`TransferBar::start`] is called.
#[derive(Debug, Default)]
pub struct TransferBar {
    started: RwLock<Option<StartedBar>>,
}

#[derive(Debug)]
struct StartedBar {
    bar: TerminalProgress,
    total: u64,
    last_line: Mutex<Instant>,
}

impl TransferBar {
    /// Draws the bar for `total` bytes. It has at most 79 columns.
    pub fn start(&self, total: u64) {
        let template = "{bar:20} {percent:>3}% {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";
        let (bar, last_line) = (TerminalProgress::new(total, 0, template), Mutex::new(Instant::now()));
        *self.started.write().expect("no panic while the lock is held") =
            Some(StartedBar { bar, total, last_line });
    }

    /// Calls `f` with the bar if it was started.
    fn with(&self, f: impl FnOnce(&StartedBar)) {
        if let Some(started) = &*self.started.read().expect("no panic while the lock is held") {
            f(started);
        }
    }

    /// Adds bytes that were transferred.
    pub fn inc(&self, bytes: u64) {
        self.with(|started| {
            started.bar.inc(bytes);
            if started.bar.is_hidden() {
                started.print_line();
            }
        });
    }

    /// Adds bytes that an earlier run transferred.
    pub fn skip(&self, bytes: u64) {
        self.with(|started| started.bar.skip(bytes));
    }

    /// Subtracts bytes that are transferred again.
    pub fn dec(&self, bytes: u64) {
        self.with(|started| started.bar.dec(bytes));
    }

    /// Writes a line above the bar.
    pub fn note(&self, line: &str) {
        let mut is_drawn = false;
        self.with(|started| {
            is_drawn = true;
            started.bar.suspend(|| tell(line));
        });
        if !is_drawn {
            tell(line);
        }
    }

    /// Removes the bar from the terminal.
    pub fn finish(&self) {
        if let Some(started) = self.started.write().expect("no panic while the lock is held").take() {
            started.bar.finish();
        }
    }
}

impl StartedBar {
    /// Prints the position, at most once per interval.
    fn print_line(&self) {
        let mut last = self.last_line.lock().expect("no panic while the lock is held");
        if last.elapsed() > LINE_INTERVAL {
            *last = Instant::now();
            let (done, total) = (self.bar.position(), self.total);
            let percent = u128::from(done) * 100 / u128::from(total.max(1));
            tell(&format!("{percent}% ({} of {})", format_size(done), format_size(total)));
        }
    }
}

/// The progress of counted steps, such as windows of a text: a bar with the time left, or a line every ten seconds if standard
/// error is no terminal.
#[derive(Debug)]
pub struct CountBar {
    bar: TerminalProgress,
    total: u64,
    unit: &'static str,
    last_line: Mutex<Instant>,
}

impl CountBar {
    /// Draws the bar for `total` steps of `unit`, a noun in the singular.
    pub fn start(total: u64, unit: &'static str) -> CountBar {
        let template = format!("{{bar:20}} {{pos}}/{{len}} {unit}s eta {{eta}} {{msg}}");
        CountBar {
            bar: TerminalProgress::new(total, 0, &template),
            total,
            unit,
            last_line: Mutex::new(Instant::now()),
        }
    }

    /// Adds a step; `result` is shown behind the bar.
    pub fn inc(&self, result: &str) {
        self.bar.inc(1);
        self.bar.set_message(result.to_owned());
        let mut last = self.last_line.lock().expect("no panic while the lock is held");
        if self.bar.is_hidden() && last.elapsed() > LINE_INTERVAL {
            *last = Instant::now();
            tell(&format!("{} of {} {}s, {result}", self.bar.position(), self.total, self.unit));
        }
    }

    /// Removes the bar from the terminal.
    pub fn finish(&self) {
        self.bar.finish();
    }
}
