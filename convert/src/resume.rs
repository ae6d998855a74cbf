//! Starts or resumes a partial output file.
//!
//! A file is resumed only if input and options are unchanged, and only up to the first tensor that fails its checksum.
//! `OUT.part` belongs to the GGUF writer, which compares the header itself. `OUT.inputs.part` is a journal: a text that
//! identifies input and options, then a checksum per finished tensor. Files of another user are never used. Free disk
//! space is checked before the first byte.

use crate::error::{Error, Result};
use models::file::open_own;
use models::gguf::write::{Layout, Writer};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Disk space in bytes that a conversion leaves free.
const RESERVE: u64 = 16 << 20;
/// Largest size of a journal: 100,000 shards and tensors of 160 bytes each.
const MAX_JOURNAL: u64 = 16 << 20;
/// Prefix of a checksum line.
const FINISHED: &str = "finished ";

/// The writer of a partial file, and its journal.
pub struct Partial {
    writer: Writer,
    journal: File,
    journal_path: PathBuf,
    /// Number of tensors that an earlier run wrote.
    pub done: usize,
    output: PathBuf,
}

impl Partial {
    /// Opens the partial file of `output`; `stamp` identifies inputs and options.
    ///
    /// # Errors
    /// An I/O error, too little disk space, another conversion that writes the same output, or a link or FIFO in place of
    /// a partial file.
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

    /// Appends bytes, and adds the checksums of tensors that they complete to the journal.
    ///
    /// # Errors
    /// An I/O error.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let before = self.writer.checksums().len();
        self.writer.write(bytes)?;
        let mut lines = String::new();
        self.writer.checksums()[before..].iter().for_each(|checksum| add_line(&mut lines, *checksum));
        self.note(&lines)
    }

    /// Renames the complete file to its final name.
    ///
    /// # Errors
    /// An I/O error.
    pub fn finish(self) -> Result<()> {
        self.writer.finish()?;
        std::fs::remove_file(&self.journal_path).map_err(Error::io(&self.journal_path))
    }

    /// Removes a partial file that cannot be resumed.
    pub fn discard(self) {
        // Errors are ignored: the caller reports the one that led here.
        for extension in ["part", "inputs.part"] {
            let _ = std::fs::remove_file(beside(&self.output, extension));
        }
    }
}

/// Reads the checksums of a journal, up to the first incomplete line. None if its stamp differs.
fn checksums(journal: &[u8], stamp: &str) -> Option<Vec<u64>> {
    let lines = std::str::from_utf8(journal.strip_prefix(stamp.as_bytes())?).ok()?;
    let whole = lines.split_inclusive('\n').map_while(|line| line.strip_prefix(FINISHED)?.strip_suffix('\n'));
    Some(whole.map_while(|hex| u64::from_str_radix(hex, 16).ok()).collect())
}

fn add_line(text: &mut String, checksum: u64) {
    // Writing to a String cannot fail.
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
    fn resumes_only_the_same_work() {
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
                let expected = format!("{} is {found}, not a file", path.display());
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
