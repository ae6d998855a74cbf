//! Counts and limits heap allocations by thread, and returns freed memory to the operating system.
//!
//! A program that installs [`CountingAllocator`] as its global allocator can measure what a computation retains ([`measure`])
//! and bound what a thread holds ([`limit_thread`]).
//! Memory that glibc keeps after `free` stays resident until [`trim`] or [`limit_arenas`] bounds it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;

thread_local! {
    /// Bytes that this thread has allocated less those that it has freed.
    static NET: Cell<isize> = const { Cell::new(0) };
    /// The value of [`NET`] above which allocations of this thread fail.
    static LIMIT: Cell<isize> = const { Cell::new(isize::MAX) };
}

/// The system's allocator, with a counter per thread.
pub struct CountingAllocator;

fn count(bytes: isize) {
    NET.with(|net| net.set(net.get().wrapping_add(bytes)));
}

fn fits(bytes: isize) -> bool {
    NET.with(Cell::get).saturating_add(bytes) <= LIMIT.with(Cell::get)
}

// SAFETY: every call is passed on to the system's allocator unchanged, or fails with a null pointer, which the trait allows.
// The counter and the limit are plain thread-local cells without destructor, whose access neither allocates nor unwinds.
// Sizes of a layout fit isize.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !fits(layout.size() as isize) {
            return null_mut();
        }
        // SAFETY: the caller's layout is valid, as System requires.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            count(layout.size() as isize);
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !fits(layout.size() as isize) {
            return null_mut();
        }
        // SAFETY: the caller's layout is valid, as System requires.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            count(layout.size() as isize);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block came from this allocator, that is from System, with this layout.
        unsafe { System.dealloc(block, layout) };
        count(-(layout.size() as isize));
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !fits(size as isize - layout.size() as isize) {
            return null_mut();
        }
        // SAFETY: the block came from System with this layout; the caller checked the new size.
        let moved = unsafe { System.realloc(block, layout, size) };
        if !moved.is_null() {
            count(size as isize - layout.size() as isize);
        }
        moved
    }
}

/// Runs `work` and returns its result with the bytes that it allocated on this thread and did not free: 0 where
/// [`CountingAllocator`] is not the global allocator, negative if it freed more than it allocated.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = NET.with(Cell::get);
    let result = work();
    (result, NET.with(Cell::get).wrapping_sub(before))
}

/// Makes allocations of this thread fail where it would hold more than `bytes` beyond what it holds now; without effect
/// where [`CountingAllocator`] is not the global allocator.
pub fn limit_thread(bytes: u64) {
    let held = NET.with(Cell::get);
    LIMIT.with(|limit| limit.set(held.saturating_add(isize::try_from(bytes).unwrap_or(isize::MAX))));
}

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

/// Returns free heap pages of all arenas to the operating system; a no-op with other allocators.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: malloc_trim takes the allocator's own locks and releases only pages without live blocks.
        unsafe { libc::malloc_trim(0) };
    }
}
