//! Starting a partial file, or going on with one: only if it was made from the same input and options, and only with
//! the tensors that are as they were written.
//!
//! `OUT.part` is the GGUF writer's. Beside it stands `OUT.inputs.part`, a journal: a text that is equal for equal work, then
//! a checksum of each finished tensor; the writer itself compares the header. Both are this user's own files: of another
//! user's nothing is used. Disk space is checked here too, before the first byte.

use crate::error::{Error, Result};
use models::file::open_own;
use models::gguf::write::{Layout, Writer};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Disk space that is left to others.
const RESERVE: u64 = 16 << 20;
/// Bytes of a journal at most: 100,000 shards and tensors, 160 bytes each.
const MAX_JOURNAL: u64 = 16 << 20;
/// What a checksum's line begins with.
const FINISHED: &str = "finished ";

/// A writer under way and the journal of its work.
pub struct Partial {
    writer: Writer,
    journal: File,
    journal_path: PathBuf,
    /// Tensors that an earlier run wrote.
    pub done: usize,
    output: PathBuf,
}

impl Partial {
    /// Opens the partial file of `output`; `stamp` stands for inputs and options.
    ///
    /// # Errors
    /// The system's, too full a disk, another conversion at work on the same output, a link or FIFO under a partial
    /// file's name.
    pub fn open(output: &Path, stamp: &str, layout: Layout) -> Result<Partial> {
        let (part, journal_path) = (beside(output, "part"), beside(output, "inputs.part"));
        let there = std::fs::symlink_metadata(&part).map_or(0, |about| about.len());
        let dir = directory(output);
        let free = fs4::available_space(&dir).map_err(Error::io(&dir))?;
        let needed = layout.total_bytes().saturating_sub(there) + RESERVE;
        if free < needed {
            return Err(Error::NoSpace { path: dir, needed, free });
        }
        let mut journal = open_own(&journal_path)?;
        let mut text = Vec::new();
        (&mut journal).take(MAX_JOURNAL).read_to_end(&mut text).map_err(Error::io(&journal_path))?;
        let checksums = checksums(&text, stamp).filter(|_| there > 0);
        let resumed = checksums.and_then(|known| Writer::resume(output, layout.clone(), &known).ok());
        let (writer, done) = match resumed {
            Some(resumed) => resumed,
            None => (Writer::create(output, layout)?, 0),
        };
        let mut text = stamp.to_owned();
        writer.checksums().iter().for_each(|checksum| add_line(&mut text, *checksum));
        let mut partial = Partial { writer, journal, journal_path, done, output: output.to_owned() };
        partial.rewind().map_err(Error::io(&partial.journal_path))?;
        partial.note(&text)?;
        Ok(partial)
    }

    fn rewind(&mut self) -> std::io::Result<()> {
        self.journal.rewind()?;
        self.journal.set_len(0)
    }

    fn note(&mut self, text: &str) -> Result<()> {
        self.journal.write_all(text.as_bytes()).map_err(Error::io(&self.journal_path))
    }

    /// Appends the next bytes, and notes a tensor that they complete.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let before = self.writer.checksums().len();
        self.writer.write(bytes)?;
        let mut lines = String::new();
        self.writer.checksums()[before..].iter().for_each(|checksum| add_line(&mut lines, *checksum));
        self.note(&lines)
    }

    /// Gives the complete file its name.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(self) -> Result<()> {
        self.writer.finish()?;
        std::fs::remove_file(&self.journal_path).map_err(Error::io(&self.journal_path))
    }

    /// Removes what cannot be finished.
    pub fn discard(self) {
        // Whatever happens here, the error that led here is the one to report.
        for extension in ["part", "inputs.part"] {
            let _ = std::fs::remove_file(beside(&self.output, extension));
        }
    }
}

/// The checksums in a journal of this work, up to a line that was not written whole; None in one of other work.
fn checksums(journal: &[u8], stamp: &str) -> Option<Vec<u64>> {
    let lines = std::str::from_utf8(journal.strip_prefix(stamp.as_bytes())?).ok()?;
    let whole = lines.split_inclusive('\n').map_while(|line| line.strip_prefix(FINISHED)?.strip_suffix('\n'));
    Some(whole.map_while(|hex| u64::from_str_radix(hex, 16).ok()).collect())
}

fn add_line(text: &mut String, checksum: u64) {
    // A String takes everything.
    let _ = writeln!(text, "{FINISHED}{checksum:016x}");
}

fn beside(name: &Path, extension: &str) -> PathBuf {
    let mut text = name.as_os_str().to_owned();
    text.push(".");
    text.push(extension);
    text.into()
}

fn directory(path: &Path) -> PathBuf {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::quant::Format;
    use models::gguf::Metadata;

    /// Two tensors of 32 bytes.
    fn layout() -> Layout {
        let tensor = |name: &str| (name.to_owned(), Format::F32, vec![8]);
        Layout::new(Metadata::default(), vec![tensor("a"), tensor("b")]).unwrap()
    }

    #[test]
    fn goes_on_with_the_same_work_only() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("o.gguf");
        let open = |stamp| Partial::open(&name, stamp, layout());
        let mut first = open("x").unwrap();
        first.write(&[1; 32]).unwrap();
        first.write(&[2; 7]).unwrap();
        assert!(open("x").is_err(), "two conversions at once");
        drop(first);
        assert_eq!(open("x").unwrap().done, 1);
        assert_eq!(open("y").unwrap().done, 0);
        let mut again = open("y").unwrap();
        again.write(&[3; 32]).unwrap();
        again.write(&[4; 32]).unwrap();
        assert!(!name.exists());
        again.finish().unwrap();
        assert!(std::fs::read(&name).unwrap().ends_with(&[4; 32]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn tensors_that_are_not_as_they_were_written_are_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("o.gguf");
        let (part, journal) = (beside(&name, "part"), beside(&name, "inputs.part"));
        let open = || Partial::open(&name, "x\n", layout()).unwrap();
        let mut first = open();
        first.write(&[1; 64][..32]).unwrap();
        first.write(&[2; 32]).unwrap();
        drop(first);
        let (bytes, text) = (std::fs::read(&part).unwrap(), std::fs::read_to_string(&journal).unwrap());
        assert_eq!(text.lines().count(), 3, "{text}");
        let done = |bytes: &[u8], text: &str| {
            std::fs::write(&part, bytes).unwrap();
            std::fs::write(&journal, text).unwrap();
            open().done
        };
        assert_eq!(done(&bytes, &text), 2);
        assert_eq!(done(&bytes, &text[..text.len() - 1]), 1, "a line cut short");
        assert_eq!(done(&bytes, &text[..3]), 0);
        assert_eq!(done(&bytes, &text.replace("finished", "x")), 0);
        let mut forged = bytes.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(done(&forged, &text), 1);
        forged[bytes.len() - 64] ^= 1;
        assert_eq!(done(&forged, &text), 0);
        assert_eq!(std::fs::read_to_string(&journal).unwrap(), "x\n", "the journal begins again");
    }

    #[test]
    #[cfg(unix)]
    fn links_and_fifos_under_the_partial_names_are_refused() {
        for extension in ["part", "inputs.part"] {
            let dir = tempfile::tempdir().unwrap();
            let (name, victim) = (dir.path().join("o.gguf"), dir.path().join("victim"));
            std::fs::write(&victim, b"mine").unwrap();
            let path = beside(&name, extension);
            let refused = |found: &str| {
                let error = Partial::open(&name, "x", layout()).err().unwrap().to_string();
                let expected = format!("{}: file: expected a regular file, found {found}", path.display());
                assert_eq!(error, expected);
            };
            std::os::unix::fs::symlink(&victim, &path).unwrap();
            refused("a symbolic link");
            assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
            std::fs::remove_file(&path).unwrap();
            assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
            refused("a FIFO");
        }
    }

    #[test]
    fn a_disk_too_small_is_refused_first() {
        let dir = tempfile::tempdir().unwrap();
        let huge = vec![("a".to_owned(), Format::F32, vec![1 << 58])];
        let layout = Layout::new(Metadata::default(), huge).unwrap();
        let error = Partial::open(&dir.path().join("o.gguf"), "x", layout).err().unwrap();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
