//! Defines the sandbox that parses and renders untrusted templates, and its failures.
//!
//! The template engine limits steps, but not the memory, stack and time of a step: one `a ~ a` doubles a string, one `==`
//! of nested lists may never end, and printing a namespace that contains itself overflows the stack. Only a separate
//! process bounds those. A library cannot start one, so callers supply a [`Sandbox`]. Next: [`super::compiled`].

use serde_json::{Map, Value};
use std::fmt::{self, Display};

/// The input of one rendering.
#[derive(Clone, Copy, Debug)]
pub struct RenderJob<'a> {
    /// Jinja source of the template, which is untrusted.
    pub source: &'a str,
    /// The sentinel character in `context`, which `tojson` leaves as it is.
    pub sentinel: char,
    /// Variables that the template sees, by name.
    pub context: &'a Map<String, Value>,
}

/// Parses and renders untrusted templates.
pub trait Sandbox: Send + Sync {
    /// Renders one job.
    ///
    /// # Errors
    /// The template raised an error, does not parse, or exceeded a limit.
    fn run(&self, job: &RenderJob) -> Result<String, Failure>;
}

/// Why a rendering failed. `Display` is one line with place, expected and found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The template does not accept this conversation.
    #[error("{0}")]
    Refused(Reason),
    /// The template does not parse or exceeded a limit.
    #[error("{0}")]
    Unusable(Reason),
}

/// A failure with place, expected and found, which `Display` shows in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// A line, a variable or `rendering`.
    pub place: String,
    /// What the template or the limit requires.
    pub expected: String,
    /// What was found instead, on one line and truncated.
    pub found: String,
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", super::NAME, self.place, self.expected, self.found)
    }
}

/// Longest message of a template, in characters.
const MAX_FOUND_CHARS: usize = 400;

impl Failure {
    /// The template does not accept this conversation.
    pub fn refused(place: &str, expected: &str, found: impl Display) -> Self {
        Failure::Refused(Reason::new(place, expected, found))
    }

    /// The template does not parse or exceeded a limit.
    pub fn unusable(place: &str, expected: &str, found: impl Display) -> Self {
        Failure::Unusable(Reason::new(place, expected, found))
    }
}

impl Reason {
    /// Formats the message on one line and truncates it.
    fn new(place: &str, expected: &str, found: impl Display) -> Self {
        let found = found.to_string();
        let mut line = String::new();
        for word in found.split_whitespace() {
            line += if line.is_empty() { "" } else { " " };
            line += word;
        }
        if let Some((at, _)) = line.char_indices().nth(MAX_FOUND_CHARS) {
            line.truncate(at);
            line.push('…');
        }
        Self { place: place.to_owned(), expected: expected.to_owned(), found: line }
    }
}
