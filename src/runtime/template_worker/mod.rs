//! Renders chat templates of model files in worker processes, so that a hostile template ends one rendering and not
//! the program.
//!
//! A worker is another process of this program, started as the hidden command `kimi template-worker`: it limits its own
//! resources ([`worker`]), reads requests from standard input and writes replies to standard output ([`frame`]). The
//! parent keeps a few workers alive, sets a deadline for each rendering, and replaces workers that die or exceed the
//! deadline ([`pool`]). The built-in template is trusted and renders in process.
//!
//! A program other than `kimi` that uses this crate as a library has no such command. Unless it calls [`register`] with
//! a `kimi` executable, templates render on a thread with a large stack ([`thread`]): source, nesting, steps, output
//! and time are bounded, but a value that contains itself still overflows the stack, memory is not bounded, and a
//! thread past its deadline keeps running. Next: [`pool`].

pub(crate) mod frame;
mod pipes;
pub mod pool;
pub(crate) mod thread;
pub(crate) mod worker;

pub use pool::Pool;

use models::template::{Failure, Sandbox};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Wall-clock limit of a rendering, including the start of a worker.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// Heap limit of a rendering.
pub const HEAP_BYTES: u64 = 512 << 20;
/// Stack size of a rendering; the nesting allowed by [`models::template::bounds`] needs a tenth of it.
pub const STACK_BYTES: usize = 128 << 20;

static POOL: OnceLock<Arc<Pool>> = OnceLock::new();

/// Sets the `kimi` executable that renders templates; later calls have no effect.
pub fn register(program: PathBuf) {
    POOL.get_or_init(|| Arc::new(Pool::new(program)));
}

/// Returns the running executable: on Linux a link that stays valid when the file is replaced.
pub fn this_program() -> Option<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() { Some(link.to_owned()) } else { std::env::current_exe().ok() }
}

/// Returns the sandbox for templates of model files: workers, or threads if no executable is registered.
pub fn sandbox() -> Arc<dyn Sandbox> {
    match POOL.get() {
        Some(pool) => pool.clone(),
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
