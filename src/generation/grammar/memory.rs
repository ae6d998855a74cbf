//! Accounts for the heap memory of live matchers, which grows with the lexer states that a reply visits: a limit for
//! each, and one for all of them together.
//!
//! The figures are those of [`kernels::heap::measure`] around every step of a matcher. They are 0 in a program that does
//! not install the counting allocator.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Heap of one matcher. 128 tools with 50 parameters each take 15 MB.
pub const MATCHER_BYTES: usize = 64 << 20;
/// Heap of all matchers of the process.
pub const TOTAL_BYTES: usize = 256 << 20;

/// Heap bytes and number of the matchers that exist.
#[derive(Debug, Default)]
pub(super) struct Account {
    bytes: AtomicUsize,
    matchers: AtomicUsize,
}

/// All matchers of the process.
pub(super) static MATCHERS: Account = Account { bytes: AtomicUsize::new(0), matchers: AtomicUsize::new(0) };

/// The heap of one matcher, subtracted from its account when dropped.
#[derive(Debug)]
pub(super) struct Charge<'a> {
    account: &'a Account,
    bytes: usize,
}

impl Account {
    /// Whether matchers hold as much as they may: no further grammar is compiled until one of them ends.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= TOTAL_BYTES
    }

    /// A matcher that has allocated `net` bytes.
    pub(super) fn charge(&self, net: isize) -> Charge<'_> {
        self.matchers.fetch_add(1, Ordering::Relaxed);
        let mut charge = Charge { account: self, bytes: 0 };
        charge.add(net);
        charge
    }
}

impl Charge<'_> {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds what a step has allocated, or subtracts what it has freed.
    pub(super) fn add(&mut self, net: isize) {
        let bytes = self.bytes.saturating_add_signed(net);
        if bytes >= self.bytes {
            self.account.bytes.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            self.account.bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// Checks both limits. Where all matchers together exceed theirs, those above the average are the ones that fail.
    ///
    /// # Errors
    /// One line with the limit and the bytes found.
    pub(super) fn check(&self) -> Result<(), String> {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        if self.bytes > MATCHER_BYTES {
            let found = mib(self.bytes);
            return Err(format!(
                "expected at most {} MiB of grammar memory, found {found} MiB",
                mib(MATCHER_BYTES)
            ));
        }
        let total = self.account.bytes.load(Ordering::Relaxed);
        let matchers = self.account.matchers.load(Ordering::Relaxed).max(1);
        if total > TOTAL_BYTES && self.bytes >= total / matchers {
            let (most, found) = (mib(TOTAL_BYTES), mib(total));
            return Err(format!("expected at most {most} MiB of memory for all grammars, found {found} MiB"));
        }
        Ok(())
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.account.matchers.fetch_sub(1, Ordering::Relaxed);
        self.account.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matcher_has_a_limit_of_its_own() {
        let account = Account::default();
        let mut charge = account.charge(MATCHER_BYTES as isize);
        assert_eq!(charge.check(), Ok(()));
        charge.add(1);
        assert_eq!(charge.check(), Err("expected at most 64 MiB of grammar memory, found 65 MiB".into()));
        charge.add(-2);
        assert_eq!(charge.check(), Ok(()));
    }

    #[test]
    fn the_largest_matchers_fail_where_all_together_hold_too_much() {
        let account = Account::default();
        let small = account.charge(1 << 20);
        let mut large: Vec<_> = (0..5).map(|_| account.charge(60 << 20)).collect();
        assert!(account.is_full());
        assert_eq!(small.check(), Ok(()));
        let line = "expected at most 256 MiB of memory for all grammars, found 301 MiB";
        assert_eq!(large[0].check(), Err(line.into()));
        large.truncate(4);
        assert_eq!(large[0].check(), Ok(()));
        drop((small, large));
        assert!(!account.is_full());
        assert_eq!(account.bytes.load(Ordering::Relaxed), 0);
    }
}
