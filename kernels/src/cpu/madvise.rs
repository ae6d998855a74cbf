//! Prefetches weights of a mapped file from disk.
//!
//! A page fault blocks a thread for one disk read. The experts that a router chose are needed next, so all their pages
//! are requested at once and arrive while the first experts are computed. Next: `experts`.

/// Requests the pages of a mapped range in the background (`MADV_WILLNEED`); a no-op where unsupported.
pub(super) fn advise_willneed(bytes: &[u8]) {
    #[cfg(unix)]
    {
        /// The smallest page size; with larger pages the call fails without effect.
        const PAGE: usize = 4096;
        let start = bytes.as_ptr().addr() / PAGE * PAGE;
        let len = bytes.as_ptr().addr() + bytes.len() - start;
        let first = bytes.as_ptr().wrapping_sub(bytes.as_ptr().addr() - start);
        // SAFETY: MADV_WILLNEED reads and writes nothing of the caller's; any range may be named.
        unsafe { libc::madvise(first.cast_mut().cast(), len, libc::MADV_WILLNEED) };
    }
    #[cfg(not(unix))]
    let _ = bytes;
}
