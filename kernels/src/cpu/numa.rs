//! Sets the NUMA policy of this process.
//!
//! By default Linux allocates a page on the node of the thread that touches it first, so a file that one thread has read
//! lies on one node, whose memory then bounds decode. Interleaved pages use the bandwidth of all nodes.

use std::io;

/// Interleaves memory that this thread and the threads it starts allocate over all NUMA nodes, pages of files that they
/// read included.
///
/// # Errors
/// A system other than Linux, a kernel without NUMA, or a container that forbids the call.
pub fn interleave_memory() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return interleave_over(&node_mask(&std::fs::read_to_string("/sys/devices/system/node/has_memory")?)?);
    #[cfg(not(target_os = "linux"))]
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has NUMA policies"))
}

/// Nodes that the kernel supports at most (`MAX_NUMNODES`).
#[cfg(target_os = "linux")]
const MAX_NODES: usize = 1024;
#[cfg(target_os = "linux")]
const WORD_BITS: usize = libc::c_ulong::BITS as usize;

/// One bit per node, node 0 in the lowest of the first word.
#[cfg(target_os = "linux")]
type NodeMask = [libc::c_ulong; MAX_NODES / WORD_BITS];

/// Parses a list of nodes such as `0-1,4`.
#[cfg(target_os = "linux")]
fn node_mask(list: &str) -> io::Result<NodeMask> {
    let mut mask = NodeMask::default();
    let mut set = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for node in first.parse::<usize>().ok()?..=last.parse().ok()? {
            *mask.get_mut(node / WORD_BITS)? |= 1 << (node % WORD_BITS);
        }
        Some(())
    };
    let parsed: Option<()> = list.trim().split(',').try_for_each(&mut set);
    parsed.map(|()| mask).ok_or_else(|| io::Error::other(format!("expected NUMA nodes, found {list:?}")))
}

#[cfg(target_os = "linux")]
fn interleave_over(nodes: &NodeMask) -> io::Result<()> {
    // SAFETY: the call reads `MAX_NODES` bits (its last argument counts one more) and changes where pages will lie.
    let result = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            libc::MPOL_INTERLEAVE,
            nodes.as_ptr(),
            MAX_NODES as libc::c_ulong + 1,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes_are_parsed() {
        let mask = node_mask("0-2,5,64\n").unwrap();
        assert_eq!((mask[0], mask[64 / WORD_BITS] >> (64 % WORD_BITS)), (0b10_0111, 1));
        for list in ["", "a", "1-", "3-1024", "1024"] {
            let error = node_mask(list).unwrap_err().to_string();
            assert!(error.starts_with("expected NUMA nodes, found"), "{error}");
        }
    }
}
