//! Starting a partial file, or going on with one: only if it was made from the same input and options.
//!
//! `OUT.part` is the GGUF writer's. Beside it stands `OUT.inputs.part`, a text that is equal for equal work;
//! the writer itself compares the header. Disk space is checked here too, before the first byte.

use crate::error::{Error, Result};
use models::gguf::write::{Layout, Writer};
use std::path::{Path, PathBuf};

/// Disk space that is left to others.
const RESERVE: u64 = 16 << 20;

/// A writer under way and the text that stands for its work.
pub struct Partial {
    /// Writes the file.
    pub writer: Writer,
    /// Tensors that an earlier run wrote.
    pub done: usize,
    output: PathBuf,
}

impl Partial {
    /// Opens the partial file of `output`; `stamp` stands for inputs and options.
    ///
    /// # Errors
    /// The system's, too full a disk, another conversion at work on the same output.
    pub fn open(output: &Path, stamp: &str, layout: Layout) -> Result<Partial> {
        let (part, stamp_path) = (beside(output, "part"), beside(output, "inputs.part"));
        let there = std::fs::metadata(&part).map_or(0, |about| about.len());
        let dir = directory(output);
        let free = fs4::available_space(&dir).map_err(Error::io(&dir))?;
        let needed = layout.total_bytes().saturating_sub(there) + RESERVE;
        if free < needed {
            return Err(Error::NoSpace { path: dir, needed, free });
        }
        let same = there > 0 && std::fs::read(&stamp_path).is_ok_and(|old| old == stamp.as_bytes());
        let resumed = if same { Writer::resume(output, layout.clone()).ok() } else { None };
        let (writer, done) = match resumed {
            Some(resumed) => resumed,
            None => (Writer::create(output, layout)?, 0),
        };
        std::fs::write(&stamp_path, stamp).map_err(Error::io(&stamp_path))?;
        Ok(Partial { writer, done, output: output.to_owned() })
    }

    /// Gives the complete file its name.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(self) -> Result<()> {
        self.writer.finish()?;
        let stamp = beside(&self.output, "inputs.part");
        std::fs::remove_file(&stamp).map_err(Error::io(&stamp))
    }

    /// Removes what cannot be finished.
    pub fn discard(self) {
        // Whatever happens here, the error that led here is the one to report.
        for extension in ["part", "inputs.part"] {
            let _ = std::fs::remove_file(beside(&self.output, extension));
        }
    }
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
        first.writer.write(&[1; 32]).unwrap();
        first.writer.write(&[2; 7]).unwrap();
        assert!(open("x").is_err(), "two conversions at once");
        drop(first);
        assert_eq!(open("x").unwrap().done, 1);
        assert_eq!(open("y").unwrap().done, 0);
        let mut again = open("y").unwrap();
        again.writer.write(&[3; 32]).unwrap();
        again.writer.write(&[4; 32]).unwrap();
        assert!(!name.exists());
        again.finish().unwrap();
        assert!(std::fs::read(&name).unwrap().ends_with(&[4; 32]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
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
