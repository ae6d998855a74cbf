//! Memory of this machine: available to this process (the kernel's MemAvailable) and in all, bounded by the limits of its
//! control groups. Linux only; elsewhere the functions return None.

use std::fs;
use std::path::{Path, PathBuf};

/// Available bytes, from `proc` and `sys` under `root` (`/` except in tests); None if they are missing.
pub fn available(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let free = field(&meminfo, "MemAvailable:")?.checked_mul(1024)?;
    let left = groups(root).into_iter().filter_map(|(dir, names)| left_in(&dir, names)).min();
    Some(left.map_or(free, |left| left.min(free)))
}

/// Bytes of RAM, or what the control groups allow of it; None if unknown.
pub fn total(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let all = field(&meminfo, "MemTotal:")?.checked_mul(1024)?;
    let limit = |(dir, [limit, ..]): (PathBuf, GroupFiles)| number(&dir, limit);
    Some(groups(root).into_iter().filter_map(limit).min().map_or(all, |limit| limit.min(all)))
}

/// Bytes that this process has read from disks so far.
pub fn read_from_disk() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/io").ok()?, "read_bytes:")
}

/// Peak resident memory of this process in bytes, including pages of mapped files.
pub fn peak_resident() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")?.checked_mul(1024)
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The files of a control group with its limit and the memory in use, and the name of cached files in `memory.stat`.
type GroupFiles = [&'static str; 3];

/// The control groups of this process and their ancestors, from lines of `id:controllers:path`.
fn groups(root: &Path) -> Vec<(PathBuf, GroupFiles)> {
    let lines = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let of = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (mount, names) = match controllers {
            "" => ("sys/fs/cgroup", ["memory.max", "memory.current", "file "]),
            _ if controllers.split(',').any(|c| c == "memory") => {
                ("sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache "])
            }
            _ => return None,
        };
        let mount = root.join(mount);
        let group = mount.join(path.trim_start_matches('/'));
        let dirs = group.ancestors().take_while(|dir| dir.starts_with(&mount));
        Some(dirs.map(|dir| (dir.to_owned(), names)).collect::<Vec<_>>())
    };
    lines.lines().filter_map(of).flatten().collect()
}

/// The limit minus the memory in use, without cached files, which the kernel can drop.
fn left_in(dir: &Path, [limit, usage, cached]: GroupFiles) -> Option<u64> {
    let limit = number(dir, limit)?;
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let used = number(dir, usage)?.saturating_sub(field(&stat, cached).unwrap_or(0));
    Some(limit.saturating_sub(used))
}

/// The number in a file of a control group; None for `max`.
fn number(dir: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], expected: Option<u64>, all: Option<u64>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!((available(dir.path()), total(dir.path())), (expected, all), "{files:?}");
    }

    #[test]
    fn the_lowest_limit_counts() {
        let meminfo = ("proc/meminfo", "MemTotal:  9 kB\nMemAvailable:   5 kB\n");
        check(&[], None, None);
        check(&[meminfo], Some(5120), Some(9216));
        let v2 = ("proc/self/cgroup", "0::/a/b\n");
        let top = ("sys/fs/cgroup/a/memory.max", "4000\n");
        let used = ("sys/fs/cgroup/a/memory.current", "1500\n");
        let stat = ("sys/fs/cgroup/a/memory.stat", "anon 900\nfile 600\n");
        let none = ("sys/fs/cgroup/a/b/memory.max", "max\n");
        check(&[meminfo, v2, top, used, stat, none], Some(3100), Some(4000));
        let v1 = ("proc/self/cgroup", "5:cpu:/\n4:memory:/x\n");
        let limit = ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n");
        let usage = ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "100\n");
        check(&[meminfo, v1, limit, usage], Some(5120), Some(9216));
    }
}
