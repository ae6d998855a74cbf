//! The progress that a download reports to its caller, which draws it.

/// Receives the progress of a download, from several threads.
pub trait PullProgress: Sync {
    /// Called for bytes that an earlier run stored, and that count as done.
    fn resumed(&self, bytes: u64);
    /// Called when bytes arrive from the network.
    fn received(&self, bytes: u64);
    /// Called when bytes that arrived must be requested again.
    fn lost(&self, bytes: u64);
    /// Returns true to end a download with an error; what arrived is kept.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Ignores progress, for small reads.
impl PullProgress for () {
    fn resumed(&self, _: u64) {}
    fn received(&self, _: u64) {}
    fn lost(&self, _: u64) {}
}
