//! The index of the cache directory from file names and sizes: chains of rows, states, and eviction. All models and
//! processes share the directory.
//!
//! ```text
//! ID-PARENT.first   rows of the first tokens; PARENT is the model's key      ID.state   a state after rows ID
//! ID-PARENT.rows    rows that continue those of PARENT                       *.tmp      not finished
//! ID.document       names of documents ([`super::catalog`])
//! lock              held by the process that writes or makes room  DEVICE-AND-INODE.model   a model file's fingerprint
//! ```
//! Files of other users, links, pipes, and files that others may write are ignored. Any file may vanish at any time;
//! files that depend on it are removed by the next eviction. The modification time of a state is the time of its last
//! use (LRU).

use super::file::Id;
use crate::io::private_file;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// The timeout for the lock of another process.
const PATIENCE: Duration = Duration::from_secs(10);

/// The extension of fingerprint files of models.
pub const MODEL: &str = "model";

/// The maximum number of fingerprint files, of about a hundred bytes each.
const MODELS: usize = 256;

/// The cache directory with its size limit.
#[derive(Debug)]
pub struct Folder {
    pub dir: PathBuf,
    /// Maximum bytes of all files.
    pub budget: u64,
}

/// The files in the directory.
#[derive(Debug, Default)]
pub struct Listing {
    pub rows: HashMap<Id, Rows>,
    /// State files by the id of their last rows file.
    pub states: HashMap<Id, StateFile>,
    /// Files to remove: unfinished ones, and ones that other users may write.
    useless: Vec<PathBuf>,
    /// Fingerprint files: modification time, path, bytes.
    models: Vec<(SystemTime, PathBuf, u64)>,
    /// The number of ignored files: links, pipes, and files of other users.
    pub foreign: usize,
    /// Total bytes of all files.
    pub bytes: u64,
}

#[derive(Debug)]
pub struct Rows {
    /// The id of the preceding rows file, or the key.
    pub parent: Id,
    /// Whether the parent is the key.
    pub first: bool,
    pub bytes: u64,
}

#[derive(Debug)]
pub struct StateFile {
    pub bytes: u64,
    used: SystemTime,
}

impl Folder {
    /// Creates the directory with access for its owner only, because snapshots contain the tokens of prompts.
    ///
    /// # Errors
    /// Errors of the operating system; the directory belongs to another user.
    pub fn create(&self) -> Result<()> {
        private_file::create_dir(&self.dir)
    }

    /// Returns a warning if other users may write in the directory.
    pub fn warning(&self) -> Option<String> {
        let mode = private_file::writable_by_others(&fs::metadata(&self.dir).ok()?)?;
        let dir = self.dir.display();
        Some(format!(
            "{dir}: other users may write in this directory (mode {mode:04o}): chmod 700 keeps them out"
        ))
    }

    /// Returns the path of a rows file.
    pub fn rows_path(&self, id: Id, parent: Id, first: bool) -> PathBuf {
        let kind = if first { "first" } else { "rows" };
        self.dir.join(format!("{id:032x}-{parent:032x}.{kind}"))
    }

    /// Returns the path of a state file.
    pub fn state_path(&self, id: Id) -> PathBuf {
        self.dir.join(format!("{id:032x}.state"))
    }

    /// Lists the files in the directory.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another process may have removed the file.
            let Ok(about) = entry.metadata() else { continue };
            listing.add(&entry.path(), &about);
        }
        Ok(listing)
    }

    /// Waits for the exclusive write lock, which is released when the file is dropped.
    pub fn lock(&self) -> Result<File> {
        self.create()?;
        let path = self.dir.join("lock");
        let other = |e: Error| {
            if e.kind() == ErrorKind::InvalidData { Error::other(format!("lock: {e}")) } else { e }
        };
        let file = private_file::open_or_create(&path).map_err(other)?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                // Without locks two processes may write the same file, which then has a wrong checksum.
                Err(fs::TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => return Ok(file),
                Err(fs::TryLockError::Error(e)) => return Err(e),
                Err(fs::TryLockError::WouldBlock) if start.elapsed() > PATIENCE => {
                    return Err(Error::new(ErrorKind::TimedOut, "another process holds the lock"));
                }
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Marks a state as used now.
    pub fn touch(&self, id: Id) {
        let file = private_file::open_append(&self.state_path(id));
        // A state that cannot be marked is evicted first.
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Evicts until `need` bytes fit: removes useless files, then the least recently used states with the rows that
    /// only they need. The rows up to `chain` stay. Returns the reason if the space does not suffice. The lock must
    /// be held.
    pub fn make_room(&self, listing: &Listing, need: u64, chain: Option<Id>) -> Result<Headroom> {
        for path in &listing.useless {
            private_file::remove(path)?;
        }
        let mut models: Vec<_> = listing.models.iter().collect();
        models.sort_unstable();
        let (old, kept) = models.split_at(models.len().saturating_sub(MODELS));
        for (_, path, _) in old {
            private_file::remove(path)?;
        }
        let mut needed: HashMap<Id, usize> = HashMap::new();
        for id in chain.into_iter().flat_map(|id| listing.ancestors(id).unwrap_or_default()) {
            *needed.entry(id).or_default() += 1;
        }
        let mut used: Vec<(SystemTime, Id)> = Vec::new();
        let mut total = need + kept.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        for (id, state) in &listing.states {
            let Some(ancestors) = listing.ancestors(*id) else {
                private_file::remove(&self.state_path(*id))?; // some of its rows are missing
                continue;
            };
            ancestors.into_iter().for_each(|id| *needed.entry(id).or_default() += 1);
            used.push((state.used, *id));
            total += state.bytes;
        }
        total += needed.keys().map(|id| listing.rows[id].bytes).sum::<u64>();
        used.sort_unstable();
        let free = self.free();
        let limit = self.budget.min(free.saturating_add(listing.bytes) / 2);
        for (_, id) in used {
            if total <= limit {
                break;
            }
            private_file::remove(&self.state_path(id))?;
            total -= listing.states[&id].bytes;
            for id in listing.ancestors(id).unwrap_or_default() {
                let states = needed.entry(id).or_default();
                *states -= 1;
                if *states == 0 {
                    needed.remove(&id);
                    total -= listing.rows[&id].bytes;
                }
            }
        }
        for (id, rows) in listing.rows.iter().filter(|(id, _)| !needed.contains_key(id)) {
            private_file::remove(&self.rows_path(*id, rows.parent, rows.first))?;
        }
        Ok(match total <= limit {
            true => Headroom::Enough,
            false if limit == self.budget => Headroom::Budget(limit),
            false => Headroom::Disk(free),
        })
    }

    /// The free bytes on the disk.
    pub fn free(&self) -> u64 {
        fs4::available_space(&self.dir).unwrap_or(u64::MAX)
    }
}

/// The result of an eviction with [`Folder::make_room`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headroom {
    Enough,
    /// The budget of this many bytes is too small.
    Budget(u64),
    /// The disk with this many free bytes is too small: the cache uses at most half of the space that is free without
    /// it.
    Disk(u64),
}

impl Listing {
    fn add(&mut self, path: &Path, about: &fs::Metadata) {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let ids: Option<Vec<Id>> = stem.split('-').map(|id| Id::from_str_radix(id, 16).ok()).collect();
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let ids = match (kind, ids) {
            ("rows" | "first", Some(ids)) if ids.len() == 2 => ids,
            ("state" | MODEL, Some(ids)) if ids.len() == 1 => ids,
            ("tmp", Some(ids)) => ids,
            _ => return, // not a cache file
        };
        if !about.is_file() || private_file::foreign_owner(about).is_some() {
            self.foreign += 1;
            return;
        }
        let (bytes, used) = (about.len(), about.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        self.bytes += bytes;
        match (kind, &ids[..]) {
            _ if private_file::writable_by_others(about).is_some() => self.useless.push(path.to_owned()),
            ("rows" | "first", &[id, parent]) => {
                self.rows.insert(id, Rows { parent, first: kind == "first", bytes });
            }
            ("state", &[id]) => drop(self.states.insert(id, StateFile { bytes, used })),
            (MODEL, _) => self.models.push((used, path.to_owned(), bytes)),
            _ => self.useless.push(path.to_owned()),
        }
    }

    /// Returns the rows from `id` back to the first; `None` if some are missing.
    pub fn ancestors(&self, id: Id) -> Option<Vec<Id>> {
        let (mut at, mut found, mut seen) = (id, Vec::new(), HashSet::new());
        loop {
            let rows = self.rows.get(&at)?;
            // A cycle of names is not a chain.
            if !seen.insert(at) {
                return None;
            }
            found.push(at);
            if rows.first {
                return Some(found);
            }
            at = rows.parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates rows 1 <- 2 <- 3 and 1 <- 4 of 100 bytes, and states of 10 bytes after 2, 3 and 4, used in that order.
    fn folder(budget: u64) -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder { dir: dir.path().to_owned(), budget };
        for (id, parent, first) in [(1, 99, true), (2, 1, false), (3, 2, false), (4, 1, false)] {
            fs::write(folder.rows_path(id, parent, first), [0; 100]).unwrap();
        }
        for id in [2, 3, 4] {
            let path = folder.state_path(id);
            fs::write(&path, [0; 10]).unwrap();
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(id as u64);
            File::options().append(true).open(&path).unwrap().set_modified(used).unwrap();
        }
        (dir, folder)
    }

    fn left(folder: &Folder) -> (Vec<Id>, Vec<Id>) {
        let listing = folder.list().unwrap();
        let sorted = |ids: Vec<Id>| {
            let mut ids = ids;
            ids.sort_unstable();
            ids
        };
        (sorted(listing.rows.into_keys().collect()), sorted(listing.states.into_keys().collect()))
    }

    fn check(budget: u64, need: u64, chain: Option<Id>, fits: bool, rows: &[Id], states: &[Id]) {
        let (_dir, folder) = folder(budget);
        let _lock = folder.lock().unwrap();
        let headroom = folder.make_room(&folder.list().unwrap(), need, chain).unwrap();
        assert_eq!(headroom, if fits { Headroom::Enough } else { Headroom::Budget(budget) });
        assert_eq!(left(&folder), (rows.to_vec(), states.to_vec()), "{need} bytes in {budget}");
    }

    #[test]
    fn least_recently_used_states_are_evicted_with_their_rows() {
        check(1000, 100, None, true, &[1, 2, 3, 4], &[2, 3, 4]);
        check(430, 1, None, true, &[1, 2, 3, 4], &[3, 4]);
        check(430, 11, None, true, &[1, 4], &[4]);
        check(430, 11, Some(3), true, &[1, 2, 3, 4], &[4]);
        check(430, 221, None, true, &[], &[]);
        check(430, 431, None, false, &[], &[]);
        check(430, 231, Some(2), false, &[1, 2], &[]);
    }

    #[cfg(unix)]
    #[test]
    fn the_directory_is_private_to_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder { dir: dir.path().join("kimi"), budget: 0 };
        drop(folder.lock().unwrap());
        assert_eq!(fs::metadata(&folder.dir).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn useless_files_are_removed() {
        let (_dir, folder) = folder(1000);
        let foreign = folder.dir.join("notes.txt");
        fs::write(&foreign, "x").unwrap();
        fs::write(folder.state_path(5).with_extension("tmp"), "half").unwrap();
        fs::remove_file(folder.rows_path(2, 1, false)).unwrap();
        let _lock = folder.lock().unwrap();
        assert_eq!(folder.make_room(&folder.list().unwrap(), 0, None).unwrap(), Headroom::Enough);
        assert_eq!(left(&folder), (vec![1, 4], vec![4]));
        assert_eq!(folder.list().unwrap().bytes, 210);
        assert!(foreign.exists());
    }

    #[test]
    fn a_used_state_is_evicted_last() {
        let (_dir, folder) = folder(430);
        folder.touch(2);
        let _lock = folder.lock().unwrap();
        assert_eq!(folder.make_room(&folder.list().unwrap(), 201, None).unwrap(), Headroom::Enough);
        assert_eq!(left(&folder), (vec![1, 2], vec![2]));
    }

    /// Modification times before 1970 are valid, as after a wrong clock.
    #[test]
    fn states_used_before_1970_are_evicted_first() {
        let (_dir, folder) = folder(430);
        let old = SystemTime::UNIX_EPOCH - Duration::from_secs(86_400);
        File::options().append(true).open(folder.state_path(4)).unwrap().set_modified(old).unwrap();
        let _lock = folder.lock().unwrap();
        assert_eq!(folder.make_room(&folder.list().unwrap(), 1, None).unwrap(), Headroom::Enough);
        assert_eq!(left(&folder), (vec![1, 2, 3], vec![2, 3]));
    }

    #[test]
    fn fingerprints_are_counted_and_bounded() {
        let (_dir, folder) = folder(100_000);
        for n in 0..MODELS + 9 {
            fs::write(folder.dir.join(format!("{n:032x}.{MODEL}")), [0; 104]).unwrap();
        }
        let _lock = folder.lock().unwrap();
        assert_eq!(folder.list().unwrap().bytes, 430 + 104 * (MODELS as u64 + 9));
        assert_eq!(folder.make_room(&folder.list().unwrap(), 1, None).unwrap(), Headroom::Enough);
        assert_eq!(folder.list().unwrap().models.len(), MODELS);
        let rest = 100_000 - 430 - 104 * MODELS as u64;
        assert_eq!(folder.make_room(&folder.list().unwrap(), rest, None).unwrap(), Headroom::Enough);
        assert_eq!(left(&folder).1, [2, 3, 4]);
        assert_eq!(folder.make_room(&folder.list().unwrap(), rest + 1, None).unwrap(), Headroom::Enough);
        assert_eq!(left(&folder).1, [3, 4]);
    }

    #[cfg(unix)]
    #[test]
    fn links_pipes_and_files_that_others_may_write_are_ignored() {
        use std::os::unix::fs::{PermissionsExt, chown, symlink};
        let (_dir, folder) = folder(1000);
        let (target, state) = (folder.dir.join("notes"), folder.state_path(3));
        fs::write(&target, [0; 10]).unwrap();
        fs::remove_file(&state).unwrap();
        symlink(&target, &state).unwrap();
        fs::remove_file(folder.state_path(4)).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(folder.state_path(4)).status().unwrap().success());
        assert_eq!((left(&folder).1, folder.list().unwrap().foreign), (vec![2], 2));
        fs::set_permissions(folder.state_path(2), PermissionsExt::from_mode(0o622)).unwrap();
        let listing = folder.list().unwrap();
        assert!(listing.states.is_empty() && listing.bytes == 410, "it takes room until room is made");
        let lock = folder.lock().unwrap();
        assert_eq!(folder.make_room(&listing, 0, None).unwrap(), Headroom::Enough);
        assert!(!folder.state_path(2).exists() && target.exists());
        drop(lock);
        let lock = folder.dir.join("lock");
        fs::remove_file(&lock).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&lock).status().unwrap().success());
        let error = folder.lock().unwrap_err().to_string();
        assert_eq!(error, "lock: expected a file that only this user may write, found something else");
        assert_eq!(folder.warning(), None);
        fs::set_permissions(&folder.dir, PermissionsExt::from_mode(0o777)).unwrap();
        let end = ": other users may write in this directory (mode 0777): chmod 700 keeps them out";
        assert!(folder.warning().unwrap().ends_with(end));
        if chown(&folder.dir, Some(12345), None).is_err() {
            println!("skipped: only root may give directories away");
            return;
        }
        let error = folder.create().unwrap_err().to_string();
        assert_eq!(error, "expected a directory of this user, found one of user 12345");
    }
}
