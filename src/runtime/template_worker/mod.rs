//! Renders chat templates of model files in worker processes, so that a hostile template ends one rendering and not
//! the program.
//!
//! A worker is this program again, as the hidden command `kimi template-worker`: it limits itself ([`worker`]), reads
//! requests from standard input and answers on standard output ([`frame`]). The parent keeps a few of them alive, sets a
//! deadline for each rendering, and replaces a worker that dies or is late ([`pool`]). The built-in template is part of
//! the program and renders in process.
//!
//! A program other than `kimi` that uses this crate as a library has no such command. There, unless it calls
//! [`register`] with a `kimi` executable, templates render on a thread with a large stack ([`thread`]): source, nesting,
//! steps, output and time are bounded, but a value that contains itself still overflows the stack, memory is not
//! bounded, and a late thread is left behind. Next: [`pool`].

pub(crate) mod frame;
pub mod pool;
pub(crate) mod thread;
pub(crate) mod worker;

pub use pool::Pool;

use models::template::{Failure, Sandbox};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Wall-clock time of a rendering, the start of a worker included.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// Memory of a rendering, beside its stack.
pub const HEAP_BYTES: u64 = 512 << 20;
/// Stack of a rendering: the depth that [`models::template::bounds`] admits takes a tenth of it.
pub const STACK_BYTES: usize = 128 << 20;

static POOL: OnceLock<Arc<Pool>> = OnceLock::new();

/// Renders templates with this `kimi` executable from here on; a second call changes nothing.
pub fn register(program: PathBuf) {
    POOL.get_or_init(|| Arc::new(Pool::new(program)));
}

/// The running program's executable: on Linux by a link that stays right when the file is replaced by another version.
pub fn this_program() -> Option<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() { Some(link.to_owned()) } else { std::env::current_exe().ok() }
}

/// Where templates of model files render: workers, or threads if no executable is registered.
pub fn sandbox() -> Arc<dyn Sandbox> {
    match POOL.get() {
        Some(pool) => pool.clone(),
        None => Arc::new(thread::InThread(DEADLINE)),
    }
}

/// The limits in words: `3 s and 512 MiB`.
pub fn limits() -> String {
    within(DEADLINE)
}

fn within(deadline: Duration) -> String {
    format!("{} s and {} MiB", deadline.as_secs_f32(), HEAP_BYTES >> 20)
}

/// A limit was exceeded.
fn exceeded(deadline: Duration, found: impl std::fmt::Display) -> Failure {
    Failure::unusable("rendering", &format!("a prompt within {}", within(deadline)), found)
}
