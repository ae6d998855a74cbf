//! Where a template of a model file is parsed and rendered, and how that fails.
//!
//! The template engine counts steps, not the memory, stack and time that a step takes: one `a ~ a` doubles a string,
//! one `==` of nested lists may never end, a namespace that holds itself overflows the stack when printed. Only a
//! process of its own bounds those, which a library cannot start: callers supply a [`Sandbox`]. Next: [`super::compiled`].

use super::compiled::{Budget, Compiled};
use serde_json::{Map, Value};
use std::fmt::{self, Display};

/// One rendering: everything a sandbox needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The template.
    pub source: &'a str,
    /// The sentinel character in `context`, which `tojson` leaves as it is.
    pub sentinel: char,
    /// The template's variables.
    pub context: &'a Map<String, Value>,
}

/// Parses and renders templates that are not trusted.
pub trait Sandbox: Send + Sync {
    /// Renders one job.
    ///
    /// # Errors
    /// The template raised one, does not parse, or exceeded a limit.
    fn run(&self, job: &Job) -> Result<String, Failure>;
}

/// Renders on the calling thread: bounds source, nesting, steps and the bytes written, but neither the memory, the
/// stack nor the time of a step. For tests, and inside a process that has limits of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Sandbox for InProcess {
    fn run(&self, job: &Job) -> Result<String, Failure> {
        Compiled::new(job.source)?.render(job.sentinel, job.context, &mut Budget::of(job))
    }
}

/// Why there is no rendering. Displayed in one line: place, expected, found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The template does not accept this conversation.
    #[error("{0}")]
    Refused(Reason),
    /// The template does not parse or exceeded a limit.
    #[error("{0}")]
    Unusable(Reason),
}

/// Place, expected and found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// A line, a variable or `rendering`.
    pub place: String,
    /// What should be there.
    pub expected: String,
    /// What is.
    pub found: String,
}

impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", super::NAME, self.place, self.expected, self.found)
    }
}

/// Characters of a message that a template wrote.
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
    /// In one line, with a message of any length cut.
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
