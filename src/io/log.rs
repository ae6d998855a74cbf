//! The destination of lines about trouble that ends nothing: standard error, the server's log, or a screen.

/// Takes one line at a time, from any thread.
pub type Log = Box<dyn Fn(&str) + Send + Sync>;
