//! Renders on a thread with a large stack and a deadline, for programs without worker processes; [`super`] lists the
//! limits that this does not enforce.

use super::{STACK_BYTES, exceeded};
use models::template::{Budget, CompiledTemplate, Failure, RenderJob, Sandbox};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

/// The number of threads that render or run past their deadline.
static THREADS: AtomicUsize = AtomicUsize::new(0);
/// Limits the threads, because endless renderings must not occupy all cores and memory.
const MAX_THREADS: usize = 16;

/// A sandbox that renders on a new thread with this deadline.
#[derive(Clone, Copy, Debug)]
pub struct InThread(pub Duration);

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
    fn run(&self, job: &RenderJob) -> Result<String, Failure> {
        let counted = Counted::new().ok_or_else(|| exceeded(self.0, "no free thread"))?;
        let (source, sentinel, context) = (job.source.to_owned(), job.sentinel, job.context.clone());
        let (sender, receiver) = sync_channel(1);
        let deadline = Instant::now() + self.0;
        let render = move || {
            let _counted = counted;
            let job = RenderJob { source: &source, sentinel, context: &context };
            let mut budget = Budget::of(&job).until(deadline);
            let rendered =
                CompiledTemplate::new(&source).and_then(|c| c.render(sentinel, &context, &mut budget));
            // The caller may have left at the deadline.
            let _ = sender.send(rendered);
        };
        thread::Builder::new()
            .name("template".into())
            .stack_size(STACK_BYTES)
            .spawn(render)
            .map_err(|e| exceeded(self.0, format!("no thread: {e}")))?;
        receiver.recv_timeout(self.0).unwrap_or_else(|_| Err(exceeded(self.0, "no end")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    fn render(source: &str, deadline: Duration) -> Result<String, Failure> {
        let context = Map::from_iter([("text".to_owned(), json!("hi"))]);
        InThread(deadline).run(&RenderJob { source, sentinel: 'm', context: &context })
    }

    #[test]
    fn the_stack_is_large_and_the_deadline_holds() {
        assert_eq!(render("{{ text }}", Duration::from_secs(5)).unwrap(), "hi");
        // Needs far more stack than a test thread has.
        let deep = format!("{{{{ {}text }}}}", "not ".repeat(8000));
        assert_eq!(render(&deep, Duration::from_secs(5)).unwrap(), "True");
        let long = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
        let line = render(long, Duration::from_millis(20)).unwrap_err().to_string();
        let expected = "chat_template: rendering: expected a prompt within 0.02 s and 512 MiB, found no end";
        assert_eq!(line, expected);
    }
}
