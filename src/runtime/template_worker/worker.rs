//! `kimi template-worker`: limits its own resources, then renders the requests from standard input. It is a hidden
//! command.

use super::{DEADLINE, HEAP_BYTES, STACK_BYTES, frame};
#[cfg(unix)]
use anyhow::Context as _;
use anyhow::{Result, anyhow};
use models::template::{Budget, CompiledTemplate, Failure, RenderJob};
#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{io, panic, thread};

/// CPU time limit of a worker in seconds. The parent replaces a worker after half of it; the limit ends workers whose
/// parent died.
pub(super) const CPU_SECONDS: u64 = 20 * DEADLINE.as_secs();

/// Address space beside heap and stack: the executable, libraries, allocator reserves.
#[cfg(unix)]
const MAPPED_BYTES: u64 = 4 << 30;

/// Serves requests until the end of standard input.
pub fn run() -> Result<()> {
    // Templates can make the engine panic. The panic is caught and reported in the reply; standard error is not read
    // meanwhile.
    panic::set_hook(Box::new(|_| ()));
    limit_process()?;
    let serve = || {
        forbid_processes()?;
        kernels::heap::limit_thread(HEAP_BYTES);
        serve()
    };
    let thread = thread::Builder::new().name("template".into()).stack_size(STACK_BYTES).spawn(serve)?;
    thread.join().map_err(|_| anyhow!("template-worker: a panic outside a rendering"))?
}

/// Limits memory, CPU time, files and core dumps of this process.
#[cfg(unix)]
fn limit_process() -> Result<()> {
    // If memory runs out, the kernel should kill this process before the one with the model.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let memory = HEAP_BYTES + STACK_BYTES as u64;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, 3)?;
    limit(Resource::Cpu, CPU_SECONDS)?;
    limit(Resource::Data, memory)?;
    limit(Resource::As, memory + MAPPED_BYTES)
}

#[cfg(unix)]
fn forbid_processes() -> Result<()> {
    limit(Resource::Nproc, 0)
}

/// Windows has no such limits. The heap limit of the thread, the engine's limit on steps and the parent's deadline remain.
#[cfg(not(unix))]
fn limit_process() -> Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn forbid_processes() -> Result<()> {
    Ok(())
}

/// Lowers a hard limit; a lower limit stays.
#[cfg(unix)]
fn limit(resource: Resource, most: u64) -> Result<()> {
    let hard = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
    let set = setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) });
    // Other systems do not implement all of these limits.
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
        // All memory of the template is released before the reply, so a worker that replied has survived the
        // rendering.
        frame::write(&frame::reply(&rendered), &mut output)?;
    }
    Ok(())
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
