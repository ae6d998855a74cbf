//! Parses a template and renders it within a budget of steps, bytes and time.
//!
//! Callers isolate it in a [`super::sandbox`]. Next: [`super::python`], [`super::json`].

use super::sandbox::{Failure, RenderJob, Sandbox};
use super::{NAME, bounds, json, python};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};
use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

/// Largest number of steps of a rendering: 200 for each of 100,000 messages. It stops endless templates.
const FUEL: u64 = 20_000_000;
/// Largest depth of nested macro calls.
const DEPTH: usize = 100;
/// Output bytes allowed in addition to 16 per byte of the variables.
const OUTPUT_BYTES: usize = 4 << 20;

/// Expected value in errors of a template.
const TEMPLATE: &str = "a Jinja template";
/// Expected value in errors of a conversation.
const CONVERSATION: &str = "a conversation it accepts";

/// A parsed template, which renders any number of conversations.
#[derive(Clone, Debug)]
pub struct CompiledTemplate {
    environment: Environment<'static>,
}

impl CompiledTemplate {
    /// Parses a template within [`bounds`].
    ///
    /// # Errors
    /// The source is too long, nested too deeply, or invalid.
    pub fn new(source: &str) -> Result<Self, Failure> {
        bounds::check(source)?;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| failure(TEMPLATE, &e))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        python::install(&mut environment);
        guarded(TEMPLATE, || environment.add_template_owned(NAME, source.to_owned()))?;
        Ok(Self { environment })
    }

    /// Renders with these variables; `tojson` leaves `sentinel` as it is.
    ///
    /// # Errors
    /// The template raised an error, or exceeded the budget.
    pub fn render(
        &self,
        sentinel: char,
        context: &Map<String, Json>,
        budget: &mut Budget,
    ) -> Result<String, Failure> {
        let mut environment = self.environment.clone();
        environment.add_filter("tojson", move |value: Value, ascii: Option<bool>, options: Kwargs| {
            json::tojson(&value, ascii, &options, sentinel)
        });
        let template = environment.get_template(NAME).map_err(|e| failure(TEMPLATE, &e))?;
        let context = Value::from_pairs(context.iter().map(|(name, json)| (name.as_str(), value(json))));
        let written = guarded(CONVERSATION, || template.render_captured_to(context, &mut *budget).map(drop));
        if let Some(found) = budget.exceeded {
            return Err(Failure::unusable("rendering", &format!("at most {} bytes", budget.bytes), found));
        }
        written?;
        String::from_utf8(std::mem::take(&mut budget.text))
            .map_err(|e| Failure::refused("rendering", "UTF-8", e))
    }
}

/// The output buffer of a rendering, with limits on its size and time.
#[derive(Debug)]
pub struct Budget {
    bytes: usize,
    deadline: Option<Instant>,
    text: Vec<u8>,
    exceeded: Option<&'static str>,
}

impl Budget {
    /// A budget without limits, for the trusted built-in template.
    pub(super) fn none() -> Self {
        Self { bytes: usize::MAX, deadline: None, text: Vec::new(), exceeded: None }
    }

    /// A budget of 4 MiB plus 16 bytes per byte of the variables.
    pub fn of(job: &RenderJob) -> Self {
        let given: usize = job.context.iter().map(|(name, value)| name.len() + size(value)).sum();
        Self { bytes: given.saturating_mul(16).saturating_add(OUTPUT_BYTES), ..Self::none() }
    }

    /// Adds a deadline, which each write checks.
    pub fn until(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Largest output in bytes; a longer one is an error.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Write for &mut Budget {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.bytes - self.text.len() {
            self.exceeded = Some("more");
        } else if self.deadline.is_some_and(|deadline| Instant::now() > deadline) {
            self.exceeded = Some("no end before the deadline");
        } else {
            self.text.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        Err(io::Error::other("budget exceeded"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Renders on the calling thread, with bounds on source, nesting, steps and output, but not on memory, stack or time of a
/// step. For tests, and for processes with limits of their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Sandbox for InProcess {
    fn run(&self, job: &RenderJob) -> Result<String, Failure> {
        CompiledTemplate::new(job.source)?.render(job.sentinel, job.context, &mut Budget::of(job))
    }
}

fn size(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(list) => list.iter().map(size).sum(),
        Json::Object(map) => map.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => 8,
    }
}

/// Converts a variable for the template engine.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => ().into(),
        Json::Bool(truth) => (*truth).into(),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => integer.into(),
            (_, Some(integer)) => integer.into(),
            _ => number.as_f64().into(),
        },
        Json::String(text) => text.as_str().into(),
        Json::Array(list) => list.iter().map(value).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(name, json)| (name.as_str(), value(json)))),
    }
}

/// Runs the template engine and catches its panics, which some templates cause (`[][::-1]`).
fn guarded<T>(expected: &str, run: impl FnOnce() -> Result<T, minijinja::Error>) -> Result<T, Failure> {
    std::panic::catch_unwind(AssertUnwindSafe(run))
        .map_err(|_| Failure::unusable("template", expected, "a panic of the template engine"))?
        .map_err(|e| failure(expected, &e))
}

/// Converts the innermost cause of an error.
fn failure(expected: &str, error: &minijinja::Error) -> Failure {
    let mut inner = error;
    while let Some(cause) =
        std::error::Error::source(inner).and_then(|e| e.downcast_ref::<minijinja::Error>())
    {
        inner = cause;
    }
    let place = inner.line().or(error.line()).map_or("template".to_owned(), |line| format!("line {line}"));
    let found = inner.detail().map_or_else(|| inner.kind().to_string(), str::to_owned);
    let unusable = expected == TEMPLATE || inner.kind() == ErrorKind::OutOfFuel;
    let make = if unusable { Failure::unusable } else { Failure::refused };
    make(&place, expected, found)
}
