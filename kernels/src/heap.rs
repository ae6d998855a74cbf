//! Bounds the heap arenas of glibc, each of which retains the memory that its threads have freed.

/// Limits the process to `n` arenas, those in use included; a no-op with other allocators.
pub fn limit_arenas(n: u16) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt stores a number in the allocator, which accepts any value.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, n.into()) };
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = n;
}
