//! The NUMA policy that `--numa interleave` sets.

#![cfg(target_os = "linux")]

#[path = "common/skip.rs"]
mod skip;

use kernels::cpu::interleave_memory;
use std::io;

/// In a thread of its own, whose policy ends with it.
#[test]
fn memory_of_a_thread_is_interleaved() {
    let policy = std::thread::spawn(|| {
        interleave_memory()?;
        let mut mode: libc::c_int = -1;
        let none = std::ptr::null_mut::<libc::c_ulong>();
        // SAFETY: the call writes the mode of this thread's policy to `mode`; nothing else is requested.
        let result = unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, none, 0, none, 0) };
        if result == 0 { Ok(mode) } else { Err(io::Error::last_os_error()) }
    });
    match policy.join().unwrap() {
        Ok(mode) => assert_eq!(mode, libc::MPOL_INTERLEAVE),
        Err(e) => skip::note("", &format!("set_mempolicy ({e})")),
    }
}
