//! Renders templates in a pool of worker processes. Next: [`super::worker`] (the process).

use super::{LIMITS, exceeded, frame};
use crate::io::worker_process::pool::WorkerPool;
use models::template::{Budget, Failure, RenderJob, Sandbox};
use std::path::PathBuf;
use std::time::Duration;

/// Bytes of a reply beside the text, for an error message.
const REPLY_BYTES: usize = 64 << 10;

/// A pool of template workers of one executable.
pub struct Pool(WorkerPool);

impl Pool {
    /// Creates a pool of as many workers as cores (2 to 8), which are started on demand.
    pub fn new(program: PathBuf) -> Self {
        Pool(WorkerPool::new(program, LIMITS))
    }

    /// Returns the pool with another deadline.
    pub fn within(self, deadline: Duration) -> Self {
        Pool(self.0.within(deadline))
    }
}

impl Sandbox for Pool {
    fn run(&self, job: &RenderJob) -> Result<String, Failure> {
        let exceeded = |found: String| exceeded(self.0.limits().deadline, found);
        let max_reply = Budget::of(job).bytes().saturating_add(REPLY_BYTES);
        let reply = self.0.call(&frame::request(job), max_reply).map_err(exceeded)?;
        frame::read_reply(&reply).ok_or_else(|| exceeded("a broken reply".into()))?
    }
}
