//! Shares of bounded counters: the places and the memory that requests hold until their last reply ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A request's share of a bounded counter, released when the last of its replies ends.
pub struct Reservation {
    counter: Arc<AtomicU64>,
    amount: u64,
}

impl Reservation {
    /// Adds an amount if `fits` accepts the current value; returns that value otherwise.
    pub fn take(
        counter: &Arc<AtomicU64>,
        amount: u64,
        fits: impl Fn(u64) -> bool,
    ) -> Result<Reservation, u64> {
        let more = |n: u64| fits(n).then_some(n.saturating_add(amount));
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)?;
        Ok(Reservation { counter: counter.clone(), amount })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// A request's place in the queue and its memory.
pub type Places = [Reservation; 2];
