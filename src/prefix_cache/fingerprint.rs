//! The hash of a model file's whole contents, recorded beside the snapshots, so that a known file costs one small read.
//!
//! A file is hashed once, on the thread that first writes a snapshot. The hash is recorded under the file's identity:
//! device, inode, size, and times of modification and status change. Programs cannot set the status change time, so a
//! file overwritten in place has a new identity even with its old size and modification time; a copy or a renamed file
//! has the same hash. Lookups for a large file start after it is hashed, or if a file with the same [`sample`] was
//! hashed before. The hash is BLAKE3, because a model file may be crafted.
//!
//! ```text
//!  0  magic "KIMIFPR1"                           64  sample (u128)     80  hash (u128)
//!  8  device, inode, size, mtime s, ns, ctime s, ns (i64 each)         96  xxh3 of all before (u64)
//! ```

use super::disk_index::MODEL;
use super::file::{Id, id_of};
use crate::io::log::Log;
use crate::io::private_file;
use models::gguf::read::{Contents, Gguf};
use std::fs::{self, File, Metadata};
use std::hash::BuildHasher;
use std::io::{Read, Result, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

const MAGIC: &[u8; 8] = b"KIMIFPR1";
const RECORD_BYTES: usize = 104;
/// Files up to this size are hashed in each process, in a few milliseconds.
const RECORDED_BYTES: u64 = 16 << 20;
/// Files up to this size are hashed before the first lookup, in well under a second.
const AT_ONCE_BYTES: u64 = 1 << 30;
/// Pages in a sample, and bytes of each.
const SAMPLE_PAGES: usize = 64;
const PAGE_BYTES: usize = 4096;
/// The minimum age of a recorded change: a younger file could change again within a tick of the file system's clock.
const SETTLED: Duration = Duration::from_secs(2);

/// The hash of a model, computed on demand.
#[derive(Debug, Default)]
pub struct Fingerprint {
    parts: Vec<(Contents, Option<Identity>)>,
    dir: PathBuf,
    hash: OnceLock<Id>,
    /// Whether files with the same samples have been hashed before.
    seen: OnceLock<bool>,
}

/// The identity of a file's contents on disk, which changes with each write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity([i64; 7]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    identity: Identity,
    sample: Id,
    hash: Id,
}

impl Fingerprint {
    /// Creates the fingerprint of a model with records in `dir`. Reads no data.
    pub fn new(file: &Gguf, dir: &Path) -> Fingerprint {
        let parts = file.contents().map(|part| {
            let identity = Identity::of(&part);
            (part, identity)
        });
        Fingerprint { parts: parts.collect(), dir: dir.into(), hash: OnceLock::new(), seen: OnceLock::new() }
    }

    /// Returns the hash if it is known or cheap. With `worth`, also computes it if files with the same samples have
    /// been hashed before, so that a hit is likely.
    pub fn for_lookup(&self, worth: bool, log: &Log) -> Option<Id> {
        if let Some(hash) = self.hash.get() {
            return Some(*hash);
        }
        let unknown = self.parts.iter().filter(|part| self.recorded(part).is_none());
        let unknown: u64 = unknown.map(|(part, _)| part.bytes.len() as u64).sum();
        if unknown > AT_ONCE_BYTES {
            if !(worth && *self.seen.get_or_init(|| self.seen_before())) {
                return None;
            }
            let (path, gib) = (self.parts[0].0.path.display(), unknown as f64 / f64::from(1 << 30));
            log(&format!("{path}: hashing the model file once ({gib:.1} GiB) to look up its prefix cache"));
        }
        Some(self.get(log))
    }

    /// Returns the hash. Reads the whole model if it is unknown.
    pub fn get(&self, log: &Log) -> Id {
        *self.hash.get_or_init(|| {
            let mut all = blake3::Hasher::new();
            for part in &self.parts {
                let hash = self.recorded(part).unwrap_or_else(|| self.hash_part(part, log));
                all.update(&hash.to_le_bytes());
            }
            id_of(&all)
        })
    }

    fn hash_part(&self, (part, identity): &(Contents, Option<Identity>), log: &Log) -> Id {
        if part.file.is_none() {
            return xxh3_128(&part.bytes); // compiled in, so not crafted; hashed in a millisecond
        }
        let begun = SystemTime::now();
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(&part.bytes);
        let hash = id_of(&hasher);
        if Identity::of(part) != *identity {
            log(&format!(
                "{}: changed while in use: its cached prefixes cannot be reused",
                part.path.display()
            ));
            return unique();
        }
        if let Some(identity) = identity.filter(|it| it.size() > RECORDED_BYTES && it.is_settled(begun)) {
            // If the record cannot be written, the file is hashed again.
            let _ = Record { identity, sample: sample(&part.bytes), hash }.write(&self.dir);
        }
        hash
    }

    /// Returns the recorded hash of a part.
    fn recorded(&self, (_, identity): &(Contents, Option<Identity>)) -> Option<Id> {
        let identity = identity.filter(|it| it.size() > RECORDED_BYTES)?;
        let record = Record::read(&identity.path(&self.dir))?;
        (record.identity == identity).then_some(record.hash)
    }

    fn seen_before(&self) -> bool {
        let Ok(entries) = fs::read_dir(&self.dir) else { return false };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let records = paths.filter(|path| path.extension().is_some_and(|e| e == MODEL));
        let samples: Vec<Id> = records.filter_map(|path| Some(Record::read(&path)?.sample)).collect();
        self.parts.iter().all(|(part, _)| samples.contains(&sample(&part.bytes)))
    }
}

impl Identity {
    fn of(part: &Contents) -> Option<Identity> {
        part.file.as_ref().and_then(|file| Identity::from(&file.metadata().ok()?))
    }

    #[cfg(unix)]
    fn from(about: &Metadata) -> Option<Identity> {
        use std::os::unix::fs::MetadataExt;
        let [device, inode, size] = [about.dev(), about.ino(), about.size()].map(u64::cast_signed);
        let (modified, changed) = ([about.mtime(), about.mtime_nsec()], [about.ctime(), about.ctime_nsec()]);
        Some(Identity([device, inode, size, modified[0], modified[1], changed[0], changed[1]]))
    }

    /// Without inodes, files are hashed in each process.
    #[cfg(not(unix))]
    fn from(_: &Metadata) -> Option<Identity> {
        None
    }

    fn size(&self) -> u64 {
        self.0[2].cast_unsigned()
    }

    /// Returns whether the last change is long enough before `now`.
    fn is_settled(&self, now: SystemTime) -> bool {
        let changed = i128::from(self.0[5]) * 1_000_000_000 + i128::from(self.0[6]);
        changed + SETTLED.as_nanos() as i128 <= nanos(now)
    }

    fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:016x}{:016x}.{MODEL}", self.0[0], self.0[1]))
    }
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        self.identity.0.iter().for_each(|n| out.extend(n.to_le_bytes()));
        [self.sample, self.hash].iter().for_each(|id| out.extend(id.to_le_bytes()));
        out.extend(xxh3_64(&out).to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        let numbers: Vec<i64> = bytes[8..64].as_chunks().0.iter().map(|n| i64::from_le_bytes(*n)).collect();
        let ids: Vec<Id> = bytes[64..96].as_chunks().0.iter().map(|n| Id::from_le_bytes(*n)).collect();
        let record = Record { identity: Identity(numbers.try_into().ok()?), sample: ids[0], hash: ids[1] };
        (record.encode() == bytes).then_some(record)
    }

    fn read(path: &Path) -> Option<Record> {
        let mut bytes = Vec::with_capacity(RECORD_BYTES + 1);
        let file = private_file::open(path).ok()?;
        file.take(RECORD_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
        Record::decode(bytes.as_slice().try_into().ok()?)
    }

    /// Writes the record and replaces an older one of the file.
    fn write(&self, dir: &Path) -> Result<()> {
        let path = self.identity.path(dir);
        let part = path.with_extension("tmp");
        private_file::remove(&part)?;
        let written =
            private_file::create_new(&part).and_then(|mut file: File| file.write_all(&self.encode()));
        written.and_then(|()| fs::rename(&part, path)).inspect_err(|_| drop(private_file::remove(&part)))
    }
}

/// Hashes the size and pages spread over the file: equal for equal files, and possibly for different ones.
fn sample(bytes: &[u8]) -> Id {
    let mut hash = blake3::Hasher::new();
    hash.update(&(bytes.len() as u64).to_le_bytes());
    let last = bytes.len().saturating_sub(PAGE_BYTES);
    for page in 0..SAMPLE_PAGES {
        let at = last / (SAMPLE_PAGES - 1) * page / PAGE_BYTES * PAGE_BYTES;
        hash.update(&bytes[at..bytes.len().min(at + PAGE_BYTES)]);
    }
    id_of(&hash)
}

/// Converts a time to nanoseconds since 1970, negative before.
fn nanos(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

/// Returns a random id that no other process has.
fn unique() -> Id {
    let random = || u128::from(std::hash::RandomState::new().hash_one(0));
    random() << 64 | random()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use kernels::quant::Format;
    use models::gguf::Metadata;
    use models::gguf::write::{Layout, Writer};
    use std::sync::{Arc, Mutex};

    const LARGE: usize = RECORDED_BYTES as usize + (1 << 20);

    fn model(path: &Path, bytes: &[u8]) {
        let tensor = ("x".into(), Format::F32, vec![bytes.len() as u64 / 4]);
        let mut writer =
            Writer::create(path, Layout::new(Metadata::default(), vec![tensor]).unwrap()).unwrap();
        writer.write(bytes).unwrap();
        writer.finish().unwrap();
    }

    fn fingerprint(path: &Path, dir: &Path) -> Fingerprint {
        Fingerprint::new(&Gguf::open(path).unwrap(), dir)
    }

    fn quiet() -> Log {
        Box::new(|line| panic!("{line}"))
    }

    /// Backdates the recorded change of the file.
    fn settle(fingerprint: &Fingerprint) {
        let (part, identity) = &fingerprint.parts[0];
        let hash = id_of(blake3::Hasher::new().update(&part.bytes));
        let record = Record { identity: identity.unwrap(), sample: sample(&part.bytes), hash };
        record.write(&fingerprint.dir).unwrap();
    }

    #[test]
    fn one_byte_anywhere_makes_another_model_and_a_copy_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("a"), dir.path().join("b"));
        let mut bytes = vec![0; 300_000];
        model(&path, &bytes);
        let first = fingerprint(&path, dir.path()).get(&quiet());
        fs::copy(&path, &copy).unwrap();
        assert_eq!(fingerprint(&copy, dir.path()).get(&quiet()), first);
        let mut all = vec![first];
        for at in [0, 1, 4095, 4096, 150_000, 299_999] {
            bytes[at] = 1;
            model(&path, &bytes);
            all.push(fingerprint(&path, dir.path()).get(&quiet()));
            bytes[at] = 0;
        }
        let unlike: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(unlike.len(), 7);
        model(&path, &bytes);
        assert_eq!(fingerprint(&path, dir.path()).get(&quiet()), first);
    }

    /// A record is valid only for the unchanged file; here only the status change time differs.
    #[test]
    fn a_file_overwritten_with_its_old_size_and_time_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut bytes = vec![0; LARGE];
        model(&path, &bytes);
        let one = fingerprint(&path, dir.path());
        settle(&one);
        assert!(one.recorded(&one.parts[0]).is_some());
        let first = one.get(&quiet());
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        // Between the pages of a sample.
        bytes[LARGE / 2 + LARGE / 128] = 1;
        let file = fs::read(&path).unwrap();
        let head = file.len() - LARGE;
        std::thread::sleep(Duration::from_millis(20));
        let target = File::options().write(true).open(&path).unwrap();
        (&target).write_all(&[&file[..head], &bytes].concat()).unwrap();
        target.set_modified(time).unwrap();
        let two = fingerprint(&path, dir.path());
        let [old, new] = [&one, &two].map(|f| f.parts[0].1.unwrap().0);
        assert_eq!((&old[..5], sample(&one.parts[0].0.bytes)), (&new[..5], sample(&two.parts[0].0.bytes)));
        assert!(two.recorded(&two.parts[0]).is_none());
        assert_ne!(two.get(&quiet()), first);
    }

    #[test]
    fn a_record_is_written_after_the_file_has_settled_and_damage_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        model(&path, &vec![7; LARGE]);
        let fresh = fingerprint(&path, dir.path());
        let hash = fresh.get(&quiet());
        let record = fresh.parts[0].1.unwrap().path(dir.path());
        assert!(!record.exists(), "it has just been written");
        settle(&fresh);
        let known = fingerprint(&path, dir.path());
        assert!(known.recorded(&known.parts[0]).is_some());
        assert_eq!(known.get(&quiet()), hash);
        let whole = fs::read(&record).unwrap();
        assert_eq!(whole.len(), RECORD_BYTES);
        for bit in 0..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&record, bytes).unwrap();
            assert_eq!(Record::read(&record), None, "bit {bit}");
        }
        for bytes in [&whole[..RECORD_BYTES - 1], &[&whole[..], &[0]].concat(), &[]] {
            fs::write(&record, bytes).unwrap();
            assert_eq!(Record::read(&record), None);
        }
    }

    #[test]
    fn a_file_that_changes_while_it_is_hashed_shares_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        model(&path, &[1; 4096]);
        let logged = Arc::new(Mutex::new(Vec::new()));
        let lines = logged.clone();
        let log: Log = Box::new(move |line| lines.lock().unwrap().push(line.to_owned()));
        let hashes = [(); 2].map(|()| {
            let one = fingerprint(&path, dir.path());
            File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            File::options().append(true).open(&path).unwrap().write_all(b"more").unwrap();
            one.get(&log)
        });
        assert_ne!(hashes[0], hashes[1]);
        let expected =
            format!("{}: changed while in use: its cached prefixes cannot be reused", path.display());
        assert_eq!(*logged.lock().unwrap(), [expected.clone(), expected]);
    }

    #[test]
    fn a_clock_before_1970_settles_nothing() {
        let now = Identity([0, 0, 1 << 40, 0, 0, 100, 5]);
        let at = |seconds: i64| {
            let since = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since }
        };
        assert!([-1_000_000, -1, 0, 101, 102].iter().all(|now_s| !now.is_settled(at(*now_s))));
        assert!(now.is_settled(at(103)));
        assert!(Identity([0, 0, 1, 0, 0, -500, 0]).is_settled(at(-400)));
    }
}
