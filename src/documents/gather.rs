//! Collects documents from files, directories and standard input. Files that are no documents are rejected by name. Next:
//! [`super::format`] and [`super::worker`].

use super::{Document, format, plain, worker};
use crate::io::text::{self, MAX_BYTES};
use anyhow::{Context as _, Result, bail, ensure};
use ignore::overrides::OverrideBuilder;
use ignore::{DirEntry, WalkBuilder};
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

/// The name of the document from standard input.
pub const PIPE: &str = "standard input";

/// Error message for more than [`MAX_BYTES`] in all.
const TOO_MUCH: &str = "expected at most 134217728 bytes of text in all, found more";
const _: () = assert!(MAX_BYTES == 134_217_728);

/// Largest file of a document in bytes; a text is limited to [`MAX_BYTES`].
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Reads files, documents under directories (only those that match a pattern of `include`, if any), and standard input
/// for `-` or if no file is given. A FIFO among `files` is read to its end; in directories only regular files are read.
/// `note` receives a line for each entry of a directory that is no document or cannot be read.
///
/// # Errors
/// A file that cannot be read or is no document, and more than [`MAX_BYTES`] in all.
pub fn gather(files: &[PathBuf], include: &[String], note: &mut dyn FnMut(&str)) -> Result<Vec<Document>> {
    let pipe = [PathBuf::from("-")];
    let files = match files {
        [] if std::io::stdin().is_terminal() => {
            bail!("no text: give files or directories with --file, or text by a pipe")
        }
        [] => &pipe[..],
        files => files,
    };
    let mut documents = Vec::new();
    for path in files {
        if path.as_os_str() == "-" {
            documents.push(document(PIPE, std::io::stdin().lock())?);
        } else if path.is_dir() {
            let before = documents.len();
            directory(path, include, &mut documents, note)?;
            let matching = if include.is_empty() { "" } else { " that match --include" };
            let is_found = documents.len() > before;
            ensure!(is_found, "{}: no text files{matching} in this directory", path.display());
        } else {
            let name = path.display().to_string();
            documents.push(document(&name, File::open(path).with_context(|| name.clone())?)?);
        }
        let total: usize = documents.iter().map(|document| document.text.len()).sum();
        ensure!(total as u64 <= MAX_BYTES, "{}: {TOO_MUCH}", path.display());
    }
    Ok(documents)
}

/// Reads a regular file, without blocking on files of other types.
pub fn read(path: &Path) -> Result<Document> {
    let name = path.display().to_string();
    document(&name, regular(path).with_context(|| name.clone())?)
}

/// Opens a regular file. A blocking open of a FIFO would wait for a writer.
fn regular(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, rustix::fs::OFlags::NONBLOCK.bits() as i32);
    let file = options.read(true).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// Reads a directory in the order of its paths, so that the prompt is reproducible. Hidden and ignored files are skipped.
fn directory(
    dir: &Path,
    include: &[String],
    documents: &mut Vec<Document>,
    note: &mut dyn FnMut(&str),
) -> Result<()> {
    let mut patterns = OverrideBuilder::new(dir);
    for pattern in include {
        patterns.add(pattern).with_context(|| format!("--include {pattern}"))?;
    }
    // A matching pattern would include hidden files.
    let shown =
        |entry: &DirEntry| entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".");
    let mut walk = WalkBuilder::new(dir);
    walk.overrides(patterns.build()?).sort_by_file_path(Ord::cmp).filter_entry(shown);
    let mut total = 0;
    for entry in walk.build() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if e.depth() == Some(0) => bail!("{}", unreadable(&e)),
            Err(e) => {
                note(&format!("{}: left out", unreadable(&e)));
                continue;
            }
        };
        // Symbolic links are not followed.
        if entry.file_type().is_none_or(|kind| kind.is_dir() || kind.is_symlink()) {
            continue;
        }
        match read(entry.path()) {
            Ok(document) => {
                total += document.text.len();
                documents.push(document);
            }
            Err(e) => note(&format!("{e:#}: left out")),
        }
        ensure!(total as u64 <= MAX_BYTES, "{}: {TOO_MUCH}", entry.path().display());
    }
    Ok(())
}

/// The path that could not be read and the system's error, without the path that the walker repeats in it.
fn unreadable(e: &ignore::Error) -> String {
    let why = e.io_error().and_then(std::error::Error::source).map(ToString::to_string);
    match (e, why) {
        (ignore::Error::WithPath { path, .. }, Some(why)) => format!("{}: {why}", path.display()),
        _ => e.to_string(),
    }
}

/// Reads a document from its bytes.
pub(super) fn document(name: &str, mut input: impl Read) -> Result<Document> {
    let mut bytes = Vec::new();
    let read = |bytes: &mut Vec<u8>, input: &mut dyn Read, most: u64| {
        input.take(most).read_to_end(bytes).with_context(|| name.to_owned())
    };
    read(&mut bytes, &mut input, text::HEAD_BYTES)?;
    let format = format::detect(&bytes);
    let max = if format.is_some() { MAX_FILE_BYTES } else { MAX_BYTES };
    if let Some(e) = text::binary_error(name, &bytes).filter(|_| format.is_none()) {
        return Err(e);
    }
    read(&mut bytes, &mut input, max + 1 - text::HEAD_BYTES)?;
    ensure!(bytes.len() as u64 <= max, "{name}: expected at most {max} bytes, found more");
    let (mut text, parts) = match format {
        Some(format) => {
            let extracted = worker::extract(format, &bytes).with_context(|| name.to_owned())?;
            (extracted.text, extracted.parts)
        }
        None => (plain::decode(name, bytes)?, Vec::new()),
    };
    if text.contains('\r') {
        text = text.replace("\r\n", "\n").replace('\r', "\n");
    }
    ensure!(!text.is_empty(), "{name}: the file is empty");
    ensure!(!text.trim().is_empty(), "{name}: the file has only white space");
    Ok(Document { name: name.to_owned(), text, parts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_normalized_and_blank_files_rejected() {
        let of = |bytes: &[u8]| document("x", bytes);
        assert_eq!(of("Grüße\r\n日本\rx\n".as_bytes()).unwrap().text, "Grüße\n日本\nx\n");
        let nothing = of(b" \n").unwrap_err().to_string();
        assert_eq!(nothing, "x: the file has only white space");
        assert_eq!(of(b"").unwrap_err().to_string(), "x: the file is empty");
    }

    #[test]
    fn directories_are_read_in_order_and_filtered() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("b.md", &b"two"[..]),
            ("a/z.md", b"one"),
            ("c.txt", b"three"),
            ("d.md", b"\x89PNG"),
            (".hidden.md", b"four"),
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let texts = |include: &[&str]| {
            let mut notes = Vec::new();
            let include: Vec<_> = include.iter().map(|s| (*s).to_owned()).collect();
            let found =
                gather(&[dir.path().to_owned()], &include, &mut |n| notes.push(n.to_owned())).unwrap();
            (found.into_iter().map(|d| d.text).collect::<Vec<_>>(), notes)
        };
        let (all, notes) = texts(&[]);
        assert_eq!(all, ["one", "two", "three"]);
        assert!(notes.len() == 1 && notes[0].ends_with("d.md: expected text, found an image: left out"));
        assert_eq!(texts(&["*.txt"]).0, ["three"]);
        assert_eq!(texts(&["*.md", "!a/"]).0, ["two"]);
        let none = gather(&[dir.path().to_owned()], &["*.rs".to_owned()], &mut |_| {});
        assert!(
            none.unwrap_err().to_string().ends_with(": no text files that match --include in this directory")
        );
        let empty = tempfile::tempdir().unwrap();
        let none = gather(&[empty.path().to_owned()], &[], &mut |_| {});
        assert!(none.unwrap_err().to_string().ends_with(": no text files in this directory"));
    }

    /// The paths are too long for the system, which fails even for root.
    #[test]
    fn unreadable_directory_entries_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = ("x".repeat(200), format!("{}.txt", "f".repeat(196)));
        let [a, b] = ["a", "b"].map(|name| {
            let levels = (0..15).scan(dir.path().join(name), |path, _| {
                path.push(&folder);
                Some(path.clone())
            });
            levels.collect::<Vec<_>>()
        });
        std::fs::create_dir_all(&a[14]).unwrap();
        std::fs::create_dir_all(&b[14]).unwrap();
        b.iter().for_each(|level| std::fs::write(level.join(&file), "deep").unwrap());
        std::fs::write(dir.path().join("c.txt"), "kept").unwrap();
        std::fs::rename(dir.path().join("b"), a[14].join("b")).unwrap();
        let mut notes = Vec::new();
        let found = gather(&[dir.path().to_owned()], &[], &mut |n| notes.push(n.to_owned())).unwrap();
        assert_eq!(found.last().unwrap().text, "kept");
        assert_eq!(notes.len(), 2, "a file and a folder: {notes:?}");
        let end = |name: &str| format!("/{name}: File name too long (os error 36): left out");
        for name in [&folder, &file] {
            assert!(notes.iter().any(|note| note.ends_with(&end(name))), "{name}: {notes:?}");
        }
    }
}
