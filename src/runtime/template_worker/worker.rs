//! `kimi template-worker`: renders the requests from standard input in a process with limits. It is a hidden command.

use super::{LIMITS, frame};
use crate::io::worker_process::child;
use anyhow::Result;
use models::template::{Budget, CompiledTemplate, Failure, RenderJob};

/// Serves requests until the end of standard input.
pub fn run() -> Result<()> {
    child::run(&LIMITS, || {
        let mut parsed = None;
        move |body| {
            let request = frame::read_request(&body);
            drop(body);
            let rendered = match request {
                Some(request) => render(&request, &mut parsed),
                None => Err(Failure::refused("messages", "at most 1000 levels of nesting", "more")),
            };
            frame::reply(&rendered)
        }
    })
}

/// Renders a request; the compiled template is kept for the next one.
fn render(
    request: &frame::RenderRequest,
    parsed: &mut Option<(String, CompiledTemplate)>,
) -> Result<String, Failure> {
    let frame::RenderRequest { source, sentinel, context } = request;
    let compiled = match parsed.take().filter(|(before, _)| before == source) {
        Some((_, compiled)) => compiled,
        None => CompiledTemplate::new(source)?,
    };
    let mut budget = Budget::of(&RenderJob { source, sentinel: *sentinel, context });
    let rendered = compiled.render(*sentinel, context, &mut budget);
    *parsed = Some((source.clone(), compiled));
    rendered
}
