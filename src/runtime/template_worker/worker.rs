//! `kimi template-worker`: limits itself, then renders one request of standard input after the other. Not for users.

use super::{DEADLINE, HEAP_BYTES, STACK_BYTES, frame};
use anyhow::{Context as _, Result, anyhow};
use models::template::{Budget, Compiled, Failure, Job};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{io, panic, thread};

/// Processor time of a worker in seconds. The parent replaces one that has worked for half of it; this ends one whose
/// parent died.
pub(super) const CPU_SECONDS: u64 = 20 * DEADLINE.as_secs();

/// Address space beside heap and stack: the program's file, the loader's libraries, what the allocator reserves.
const MAPPED_BYTES: u64 = 4 << 30;

/// Serves requests until the end of standard input.
pub fn run() -> Result<()> {
    // Templates can make the engine panic; that is caught and answered, and standard error is not read meanwhile.
    panic::set_hook(Box::new(|_| ()));
    limit_process()?;
    let serve = || {
        limit(Resource::Nproc, 0)?;
        serve()
    };
    let thread = thread::Builder::new().name("template".into()).stack_size(STACK_BYTES).spawn(serve)?;
    thread.join().map_err(|_| anyhow!("template-worker: a panic outside a rendering"))?
}

fn limit_process() -> Result<()> {
    // Where memory runs out, the kernel should end this process before the one with the model.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let memory = HEAP_BYTES + STACK_BYTES as u64;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, 3)?;
    limit(Resource::Cpu, CPU_SECONDS)?;
    limit(Resource::Data, memory)?;
    limit(Resource::As, memory + MAPPED_BYTES)
}

/// Lowers a limit for good; one that is lower already stays.
fn limit(resource: Resource, most: u64) -> Result<()> {
    let hard = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
    let set = setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) });
    // Elsewhere than on Linux some of these exist in name only.
    if cfg!(target_os = "linux") {
        set.with_context(|| format!("template-worker: {resource:?}"))
    } else {
        Ok(())
    }
}

fn serve() -> Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut parsed = None;
    while let Some(body) = frame::read(&mut input)? {
        let request = frame::read_request(&body);
        drop(body);
        let rendered = match request {
            Some(request) => render(&request, &mut parsed),
            None => Err(Failure::refused("messages", "at most 1000 levels of nesting", "more")),
        };
        // Everything that the template made is released by now: a worker that answered is a worker that survived.
        frame::write(&frame::reply(&rendered), &mut output)?;
    }
    Ok(())
}

/// Renders a request; the template stays parsed for the next.
fn render(request: &frame::Request, parsed: &mut Option<(String, Compiled)>) -> Result<String, Failure> {
    let frame::Request { source, sentinel, context } = request;
    let compiled = match parsed.take().filter(|(before, _)| before == source) {
        Some((_, compiled)) => compiled,
        None => Compiled::new(source)?,
    };
    let mut budget = Budget::of(&Job { source, sentinel: *sentinel, context });
    let rendered = compiled.render(*sentinel, context, &mut budget);
    *parsed = Some((source.clone(), compiled));
    rendered
}
