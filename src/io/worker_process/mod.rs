//! Runs work on untrusted input in worker processes, so that hostile input ends one piece of work and not the program:
//! chat templates of model files, and documents.
//!
//! A worker is another process of this program, started by a hidden command: it limits its own resources ([`child`]),
//! reads requests from standard input and writes replies to standard output ([`frame`]). The parent keeps a few workers
//! alive, sets a deadline for each request, and replaces workers that die or exceed the deadline ([`pool`]). Next:
//! [`pool`].

pub(crate) mod child;
pub(crate) mod frame;
mod pipes;
pub(crate) mod pool;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// What a kind of worker may use for one request.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLimits {
    /// The hidden command of `kimi` that serves the requests.
    pub command: &'static str,
    /// Wall-clock limit, including the start of a worker.
    pub deadline: Duration,
    pub heap_bytes: u64,
    pub stack_bytes: usize,
}

impl WorkerLimits {
    /// CPU time limit of a worker in seconds. The parent replaces a worker after half of it; the limit ends workers whose
    /// parent died.
    fn cpu_seconds(&self) -> u64 {
        20 * self.deadline.as_secs()
    }
}

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Sets the `kimi` executable that workers run; later calls have no effect.
pub fn register(program: PathBuf) {
    PROGRAM.get_or_init(|| program);
}

/// Returns the executable that was registered.
pub(crate) fn program() -> Option<&'static Path> {
    PROGRAM.get().map(PathBuf::as_path)
}

/// Returns the running executable: on Linux a link that stays valid when the file is replaced.
pub fn this_program() -> Option<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() { Some(link.to_owned()) } else { std::env::current_exe().ok() }
}
