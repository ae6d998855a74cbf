//! Weights that may not be in memory: asks the system for them before they are touched.
//!
//! A page that is missing stops one thread for one read of the disk. Experts that a router just chose are known to be
//! needed, so all their pages are asked for at once and come while the first are computed. Next: `experts`.

/// Asks for the pages of bytes that lie in a mapped file. They come in the background; a system that cannot goes on without.
pub(super) fn will_need(bytes: &[u8]) {
    #[cfg(unix)]
    {
        /// No page is smaller; where they are larger the system refuses, and nothing is lost.
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
