//! The files a question is about, as text, from files, directories or standard input. What is not text is refused by
//! its name. Knows no model. Next: [`crate::text`].

use crate::text::decode;
use anyhow::{Context as _, Result, bail, ensure};
use ignore::overrides::OverrideBuilder;
use ignore::{DirEntry, WalkBuilder};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

/// What the pipe is called.
pub const PIPE: &str = "standard input";

/// A file and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// As it was named; `standard input` for the pipe.
    pub name: String,
    /// Without a byte order mark, lines ending in `\n`.
    pub text: String,
}

/// Reads files, all text files under directories (those that match a pattern of `include`, if there is one), and
/// standard input for `-`. Without any, a pipe is read. `note` hears of what is in directories and is no text or cannot be
/// read.
pub fn gather(files: &[PathBuf], include: &[String], note: &mut dyn FnMut(&str)) -> Result<Vec<Document>> {
    let pipe = [PathBuf::from("-")];
    let files = match files {
        [] if std::io::stdin().is_terminal() => {
            bail!("--file: expected a file, a directory or a pipe, found none")
        }
        [] => &pipe[..],
        files => files,
    };
    let mut documents = Vec::new();
    for path in files {
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
            documents.push(document(PIPE, bytes)?);
        } else if path.is_dir() {
            let before = documents.len();
            directory(path, include, &mut documents, note)?;
            ensure!(documents.len() > before, "{}: expected text files in it, found none", path.display());
        } else {
            documents.push(read(path)?);
        }
    }
    Ok(documents)
}

/// Reads one file.
pub fn read(path: &Path) -> Result<Document> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).with_context(|| name.clone())?;
    document(&name, bytes)
}

/// In the order of their names, so that the same directory is the same text. Hidden and ignored files stay out.
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
    // A pattern that matches would bring hidden files back.
    let shown =
        |entry: &DirEntry| entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".");
    let mut walk = WalkBuilder::new(dir);
    walk.overrides(patterns.build()?).sort_by_file_path(Ord::cmp).filter_entry(shown);
    for entry in walk.build() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if e.depth() == Some(0) => bail!("{}", unreadable(&e)),
            Err(e) => {
                note(&format!("{}: left out", unreadable(&e)));
                continue;
            }
        };
        if !entry.file_type().is_some_and(|kind| kind.is_file()) {
            continue;
        }
        let name = entry.path().display().to_string();
        let read = std::fs::read(entry.path()).with_context(|| name.clone());
        match read.and_then(|bytes| document(&name, bytes)) {
            Ok(document) => documents.push(document),
            Err(e) => note(&format!("{e:#}: left out")),
        }
    }
    Ok(())
}

/// What the walk could not read, and why: the system's own words, as the walker puts the place into them once more.
fn unreadable(e: &ignore::Error) -> String {
    let why = e.io_error().and_then(std::error::Error::source).map(ToString::to_string);
    match (e, why) {
        (ignore::Error::WithPath { path, .. }, Some(why)) => format!("{}: {why}", path.display()),
        _ => e.to_string(),
    }
}

fn document(name: &str, bytes: Vec<u8>) -> Result<Document> {
    let text = decode(name, bytes)?.replace("\r\n", "\n").replace('\r', "\n");
    ensure!(!text.trim().is_empty(), "{name}: expected text, found nothing but space");
    Ok(Document { name: name.to_owned(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_alike_and_something_is_in_them() {
        let of = |bytes: &[u8]| document("x", bytes.to_vec());
        assert_eq!(of("Grüße\r\n日本\rx\n".as_bytes()).unwrap().text, "Grüße\n日本\nx\n");
        let nothing = of(b" \n").unwrap_err().to_string();
        assert_eq!(nothing, "x: expected text, found nothing but space");
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
        assert!(none.unwrap_err().to_string().ends_with("expected text files in it, found none"));
    }

    /// Paths that are too long for the system, which binds root too.
    #[test]
    fn what_cannot_be_read_in_a_directory_is_left_out() {
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
