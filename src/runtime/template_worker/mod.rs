//! Renders chat templates of model files in worker processes ([`crate::io::worker_process`]), so that a hostile template
//! ends one rendering and not the program. The built-in template is trusted and renders in process.
//!
//! A program other than `kimi` that uses this crate as a library has no command for workers. Unless it registers a `kimi`
//! executable, templates render on a thread with a large stack ([`thread`]): source, nesting, steps, output and time are
//! bounded, but a value that contains itself still overflows the stack, memory is not bounded, and a thread past its
//! deadline keeps running. Next: [`pool`].

pub(crate) mod frame;
pub mod pool;
pub(crate) mod thread;
pub(crate) mod worker;

pub use pool::Pool;

use crate::io::worker_process::{self, WorkerLimits};
use models::template::{Failure, Sandbox};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Wall-clock limit of a rendering, including the start of a worker.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// Heap limit of a rendering.
pub const HEAP_BYTES: u64 = 512 << 20;
/// Stack size of a rendering; the nesting allowed by [`models::template::bounds`] needs a tenth of it.
pub const STACK_BYTES: usize = 128 << 20;
/// The limits of a template worker.
const LIMITS: WorkerLimits = WorkerLimits {
    command: "template-worker",
    deadline: DEADLINE,
    heap_bytes: HEAP_BYTES,
    stack_bytes: STACK_BYTES,
};

static POOL: OnceLock<Arc<Pool>> = OnceLock::new();

/// Returns the sandbox for templates of model files: workers, or threads if no executable is registered.
pub fn sandbox() -> Arc<dyn Sandbox> {
    match worker_process::program() {
        Some(program) => POOL.get_or_init(|| Arc::new(Pool::new(program.to_owned()))).clone(),
        None => Arc::new(thread::InThread(DEADLINE)),
    }
}

/// Formats the limits, as in `3 s and 512 MiB`.
pub fn limits() -> String {
    within(DEADLINE)
}

fn within(deadline: Duration) -> String {
    format!("{} s and {} MiB", deadline.as_secs_f32(), HEAP_BYTES >> 20)
}

/// Returns the failure of a rendering that exceeds a limit.
fn exceeded(deadline: Duration, found: impl std::fmt::Display) -> Failure {
    Failure::unusable("rendering", &format!("a prompt within {}", within(deadline)), found)
}
