//! The pipes to a worker, with a deadline for each transfer: [`poll`] on Unix, [`threads`] on Windows, which
//! cannot wait for an anonymous pipe with a time limit.

#[cfg(unix)]
mod poll;
#[cfg(any(windows, test))]
mod threads;

#[cfg(unix)]
pub use poll::PollPipes as WorkerPipes;
#[cfg(windows)]
pub use threads::ThreadPipes as WorkerPipes;

use std::io::{self, ErrorKind};

/// The reasons for a missing reply.
#[derive(Debug)]
pub enum Broken {
    Ended,
    Late,
    TooLong,
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => Broken::Ended,
            _ => Broken::Io(e),
        }
    }
}
