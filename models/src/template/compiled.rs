//! A parsed template, and its rendering within a budget of steps, bytes and time. Callers isolate it: see
//! [`super::sandbox`]. Next: [`super::python`], [`super::json`].

use super::sandbox::{Failure, Job};
use super::{NAME, bounds, json, python};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};
use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

/// Steps a rendering may take: two hundred for each of 100,000 messages. A template without end stops here.
const FUEL: u64 = 20_000_000;
/// Depth of macros calling macros.
const DEPTH: usize = 100;
/// Bytes a template may write beside 16 for each byte of its variables.
const OUTPUT_BYTES: usize = 4 << 20;

/// What is expected of a template.
const TEMPLATE: &str = "a Jinja template";
/// What is expected of a conversation.
const CONVERSATION: &str = "a conversation it accepts";

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Compiled {
    environment: Environment<'static>,
}

impl Compiled {
    /// Parses a template within [`bounds`].
    ///
    /// # Errors
    /// It is too long, nested too deeply, or no Jinja.
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
    /// The template raised one, or used up the budget.
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

/// What a rendering may write, and until when.
#[derive(Debug)]
pub struct Budget {
    bytes: usize,
    deadline: Option<Instant>,
    text: Vec<u8>,
    exceeded: Option<&'static str>,
}

impl Budget {
    /// Without limits.
    pub(super) fn none() -> Self {
        Self { bytes: usize::MAX, deadline: None, text: Vec::new(), exceeded: None }
    }

    /// 4 MiB and 16 bytes for each byte of the variables.
    pub fn of(job: &Job) -> Self {
        let given: usize = job.context.iter().map(|(name, value)| name.len() + size(value)).sum();
        Self { bytes: given.saturating_mul(16).saturating_add(OUTPUT_BYTES), ..Self::none() }
    }

    /// The same, until this time: checked at each write.
    pub fn until(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// Bytes that may be written.
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

fn size(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(list) => list.iter().map(size).sum(),
        Json::Object(map) => map.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => 8,
    }
}

/// A variable as the template engine holds it.
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

/// Runs the template engine, which panics on some templates (`[][::-1]`): a file must not end the program.
fn guarded<T>(expected: &str, run: impl FnOnce() -> Result<T, minijinja::Error>) -> Result<T, Failure> {
    std::panic::catch_unwind(AssertUnwindSafe(run))
        .map_err(|_| Failure::unusable("template", expected, "a panic of the template engine"))?
        .map_err(|e| failure(expected, &e))
}

/// The innermost cause.
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
