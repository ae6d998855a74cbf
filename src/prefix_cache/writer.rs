//! The thread that writes snapshots to disk while the model goes on. Next: [`super::disk`].

use super::Snapshot;
use super::disk::Disk;
use super::namespace::Namespace;
use kernels::backend::Backend;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Snapshots that may wait; each holds 43 MiB of the real model.
const WAITING: usize = 4;

/// Writes snapshots in the order they come. Dropping it waits for the last.
pub(super) struct Writer<B: Backend> {
    jobs: Option<SyncSender<Job<B>>>,
    thread: Option<JoinHandle<()>>,
}

enum Job<B: Backend> {
    Save { namespace: Namespace, tokens: Vec<u32>, snapshot: Arc<Snapshot<B>>, always: bool },
    Flush(SyncSender<()>),
}

impl<B: Backend> Writer<B> {
    pub(super) fn new(b: Arc<B>, disk: Arc<Disk>) -> std::io::Result<Self> {
        let (jobs, to_do) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("snapshots".into());
        let thread = thread.spawn(move || work::<B>(&b, &disk, &to_do))?;
        Ok(Writer { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has a snapshot written. Where the disk does not keep up, waits if it is wanted `always`, else does without.
    pub(super) fn save(
        &self,
        namespace: Namespace,
        tokens: &[u32],
        snapshot: Arc<Snapshot<B>>,
        always: bool,
    ) {
        let Some(jobs) = &self.jobs else { return };
        let job = Job::Save { namespace, tokens: tokens.to_vec(), snapshot, always };
        match jobs.try_send(job) {
            // The thread ends with its sender only.
            Err(TrySendError::Full(job)) if always => drop(jobs.send(job)),
            _ => {}
        }
    }

    /// Waits until all that was given is written.
    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.jobs.as_ref().is_some_and(|jobs| jobs.send(Job::Flush(done)).is_ok()) {
            let _ = wait.recv(); // an error is the thread's end: then there is nothing to wait for
        }
    }
}

impl<B: Backend> Drop for Writer<B> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic has been shown
        }
    }
}

fn work<B: Backend>(b: &B, disk: &Disk, to_do: &Receiver<Job<B>>) {
    for job in to_do {
        match job {
            Job::Save { namespace, tokens, snapshot, always } => {
                disk.save(b, (namespace, &tokens), &snapshot, always);
            }
            Job::Flush(done) => drop(done.send(())),
        }
    }
}
