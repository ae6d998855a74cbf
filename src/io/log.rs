//! The destination of warnings: standard error, the server's log, or the full screen.

/// Logs one line. Called from any thread.
pub type Log = Box<dyn Fn(&str) + Send + Sync>;
