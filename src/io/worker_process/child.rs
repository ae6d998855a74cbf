//! The process of a worker: limits its own resources, then answers the requests from standard input.

use super::{WorkerLimits, frame};
#[cfg(unix)]
use anyhow::Context as _;
use anyhow::{Result, anyhow};
#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{io, panic, thread};

/// Address space beside heap and stack: the executable, libraries, allocator reserves.
#[cfg(unix)]
const MAPPED_BYTES: u64 = 4 << 30;

/// Answers requests until the end of standard input. `serve` makes the function that answers on the thread that runs it.
pub fn run<A: FnMut(Vec<u8>) -> Vec<u8>>(
    limits: &'static WorkerLimits,
    serve: impl FnOnce() -> A + Send + 'static,
) -> Result<()> {
    // Input can make a library panic. The panic is caught and reported in the reply; standard error is not read
    // meanwhile.
    panic::set_hook(Box::new(|_| ()));
    limit_process(limits)?;
    let serve = move || {
        forbid_processes(limits)?;
        kernels::heap::limit_thread(limits.heap_bytes);
        answer_all(serve())
    };
    let thread = thread::Builder::new().name("worker".into()).stack_size(limits.stack_bytes).spawn(serve)?;
    thread.join().map_err(|_| anyhow!("{}: a panic outside a request", limits.command))?
}

fn answer_all(mut answer: impl FnMut(Vec<u8>) -> Vec<u8>) -> Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    while let Some(body) = frame::read(&mut input)? {
        // All memory of the work is released before the reply, so a worker that replied has survived it.
        frame::write(&answer(body), &mut output)?;
    }
    Ok(())
}

/// Limits memory, CPU time, files and core dumps of this process.
#[cfg(unix)]
fn limit_process(limits: &WorkerLimits) -> Result<()> {
    // If memory runs out, the kernel should kill this process before the one with the model.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let memory = limits.heap_bytes + limits.stack_bytes as u64;
    let limit = |resource, most| limit(limits.command, resource, most);
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Nofile, 3)?;
    limit(Resource::Cpu, limits.cpu_seconds())?;
    limit(Resource::Data, memory)?;
    limit(Resource::As, memory + MAPPED_BYTES)
}

#[cfg(unix)]
fn forbid_processes(limits: &WorkerLimits) -> Result<()> {
    limit(limits.command, Resource::Nproc, 0)
}

/// Windows has no such limits. The heap limit of the thread, limits of the libraries and the parent's deadline remain.
#[cfg(not(unix))]
fn limit_process(_: &WorkerLimits) -> Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn forbid_processes(_: &WorkerLimits) -> Result<()> {
    Ok(())
}

/// Lowers a hard limit; a lower limit stays.
#[cfg(unix)]
fn limit(command: &str, resource: Resource, most: u64) -> Result<()> {
    let hard = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
    let set = setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) });
    // Other systems do not implement all of these limits.
    if cfg!(target_os = "linux") { set.with_context(|| format!("{command}: {resource:?}")) } else { Ok(()) }
}
