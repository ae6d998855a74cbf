//! Renders on a thread with a large stack and a deadline, where no worker process can be started; what that does not
//! bound is listed in [`super`].

use super::{DEADLINE, STACK_BYTES, exceeded};
use models::template::{Budget, Compiled, Failure, Job, Sandbox};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

/// Threads that render or were left behind.
static THREADS: AtomicUsize = AtomicUsize::new(0);
/// At most so many: renderings without end must not take all cores and memory.
const MAX_THREADS: usize = 16;

/// Renders on a thread of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct InThread;

struct Counted;

impl Counted {
    fn new() -> Option<Counted> {
        let more = |n: usize| (n < MAX_THREADS).then_some(n + 1);
        THREADS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sandbox for InThread {
    fn run(&self, job: &Job) -> Result<String, Failure> {
        let counted = Counted::new().ok_or_else(|| exceeded(DEADLINE, "no free thread"))?;
        let (source, mark, context) = (job.source.to_owned(), job.mark, job.context.clone());
        let (sender, receiver) = sync_channel(1);
        let deadline = Instant::now() + DEADLINE;
        let render = move || {
            let _counted = counted;
            let job = Job { source: &source, mark, context: &context };
            let mut budget = Budget::of(&job).until(deadline);
            let rendered = Compiled::new(&source).and_then(|c| c.render(mark, &context, &mut budget));
            // The caller may have left at the deadline.
            let _ = sender.send(rendered);
        };
        thread::Builder::new()
            .name("template".into())
            .stack_size(STACK_BYTES)
            .spawn(render)
            .map_err(|e| exceeded(DEADLINE, format!("no thread: {e}")))?;
        receiver.recv_timeout(DEADLINE).unwrap_or_else(|_| Err(exceeded(DEADLINE, "no end")))
    }
}
