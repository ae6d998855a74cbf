//! The writer thread, which writes snapshots to disk while the model runs. Next: [`super::disk`].

use super::Snapshot;
use super::disk::Disk;
use super::namespace::Namespace;
use kernels::backend::Backend;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// The capacity of the queue; a snapshot of the real model has 43 MiB.
const WAITING: usize = 4;

/// Writes snapshots in order. Dropping it waits for the last one.
pub(super) struct SnapshotWriter<B: Backend> {
    jobs: Option<SyncSender<WriterJob<B>>>,
    thread: Option<JoinHandle<()>>,
}

enum WriterJob<B: Backend> {
    Save { namespace: Namespace, tokens: Vec<u32>, snapshot: Arc<Snapshot<B>>, always: bool },
    Flush(SyncSender<()>),
}

impl<B: Backend> SnapshotWriter<B> {
    pub(super) fn new(b: Arc<B>, disk: Arc<Disk>) -> std::io::Result<Self> {
        let (jobs, to_do) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("snapshots".into());
        let thread = thread.spawn(move || work::<B>(&b, &disk, &to_do))?;
        Ok(SnapshotWriter { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues a snapshot. If the queue is full, blocks if `always` is set, and otherwise drops the snapshot.
    pub(super) fn save(
        &self,
        namespace: Namespace,
        tokens: &[u32],
        snapshot: Arc<Snapshot<B>>,
        always: bool,
    ) {
        let Some(jobs) = &self.jobs else { return };
        let job = WriterJob::Save { namespace, tokens: tokens.to_vec(), snapshot, always };
        match jobs.try_send(job) {
            // The thread ends only when the sender is dropped.
            Err(TrySendError::Full(job)) if always => drop(jobs.send(job)),
            _ => {}
        }
    }

    /// Waits until all queued snapshots are written.
    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.jobs.as_ref().is_some_and(|jobs| jobs.send(WriterJob::Flush(done)).is_ok()) {
            let _ = wait.recv(); // fails only if the thread has ended
        }
    }
}

impl<B: Backend> Drop for SnapshotWriter<B> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has already been printed
        }
    }
}

fn work<B: Backend>(b: &B, disk: &Disk, to_do: &Receiver<WriterJob<B>>) {
    for job in to_do {
        match job {
            WriterJob::Save { namespace, tokens, snapshot, always } => {
                disk.save(b, (namespace, &tokens), &snapshot, always);
            }
            WriterJob::Flush(done) => drop(done.send(())),
        }
    }
}
