//! Reads entries of zip archives, with a limit on what all entries together decompress to.

use anyhow::{Context as _, Result, bail, ensure};
use rawzip::{CompressionMethod, ZipArchive, ZipArchiveEntryWayfinder, ZipSliceArchive};
use std::collections::HashMap;
use std::io::Read;

/// Most entries of an archive; the largest books have a few thousand.
const MAX_ENTRIES: usize = 100_000;
/// Most bytes that are decompressed of one archive.
const MAX_DECOMPRESSED: u64 = 384 << 20;

/// An archive with the entries that can be read.
pub(super) struct Archive<'d> {
    zip: ZipSliceArchive<&'d [u8]>,
    entries: HashMap<String, ArchiveEntry>,
    decompressed: u64,
}

struct ArchiveEntry {
    location: ZipArchiveEntryWayfinder,
    method: CompressionMethod,
}

impl<'d> Archive<'d> {
    pub fn new(bytes: &'d [u8]) -> Result<Self> {
        let zip = ZipArchive::from_slice(bytes).context("expected a complete zip archive")?;
        let mut entries = HashMap::new();
        let mut records = zip.entries();
        while let Some(record) = records.next_entry().context("expected a complete zip archive")? {
            ensure!(entries.len() < MAX_ENTRIES, "expected at most {MAX_ENTRIES} entries, found more");
            let path = String::from_utf8_lossy(record.file_path().as_ref()).replace('\\', "/");
            let entry = ArchiveEntry { location: record.wayfinder(), method: record.compression_method() };
            entries.insert(path.trim_start_matches('/').to_owned(), entry);
        }
        Ok(Archive { zip, entries, decompressed: 0 })
    }

    pub fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// Returns the bytes of an entry.
    ///
    /// # Errors
    /// No such entry, damaged data, an unknown compression method, or too many bytes in all.
    pub fn bytes(&mut self, path: &str) -> Result<Vec<u8>> {
        let entry =
            self.entries.get(path).with_context(|| format!("expected an entry {path}, found none"))?;
        let of_entry = || format!("entry {path}");
        let found = self.zip.get_entry(entry.location).with_context(of_entry)?;
        let most = MAX_DECOMPRESSED - self.decompressed;
        let mut bytes = Vec::new();
        match entry.method {
            CompressionMethod::STORE => found.data().take(most + 1).read_to_end(&mut bytes),
            CompressionMethod::DEFLATE => {
                let decoder = flate2::bufread::DeflateDecoder::new(found.data());
                found.verifying_reader(decoder).take(most + 1).read_to_end(&mut bytes)
            }
            _ => bail!("entry {path}: expected deflate, found another compression or encryption"),
        }
        .with_context(of_entry)?;
        self.decompressed += bytes.len() as u64;
        let limit = MAX_DECOMPRESSED >> 20;
        ensure!(bytes.len() as u64 <= most, "expected at most {limit} MiB when unpacked, found more");
        Ok(bytes)
    }

    /// Returns an entry as text.
    pub fn text(&mut self, path: &str) -> Result<String> {
        let bytes = self.bytes(path)?;
        super::html::decode(&bytes).with_context(|| format!("entry {path}: expected text"))
    }
}

/// The path of a link relative to the entry that has it, without fragment and with `%` escapes decoded.
pub(super) fn resolve(from: &str, link: &str) -> String {
    let link = decoded(link.split(['#', '?']).next().unwrap_or(""));
    let mut parts: Vec<&str> = match link.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => from.rsplit_once('/').map_or(Vec::new(), |(folder, _)| folder.split('/').collect()),
    };
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn decoded(link: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), link.as_bytes());
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::test_files::zip;

    #[test]
    fn entries_are_read_and_links_resolved() {
        let bytes = zip(&[("a/b.txt", b"hello"), ("c", b"")]);
        let mut archive = Archive::new(&bytes).unwrap();
        assert_eq!(archive.text("a/b.txt").unwrap(), "hello");
        assert!(archive.has("c") && !archive.has("d"));
        let e = archive.bytes("d").unwrap_err().to_string();
        assert_eq!(e, "expected an entry d, found none");
        assert_eq!(resolve("OEBPS/a/x.opf", "../Text/ch%201.xhtml#p"), "OEBPS/Text/ch 1.xhtml");
        assert_eq!(resolve("x.opf", "/a/./b"), "a/b");
        assert_eq!(resolve("x.opf", "../../%zz%"), "%zz%");
    }

    #[test]
    fn bombs_and_damaged_archives_are_refused() {
        let zeros = vec![0; 100 << 20];
        let bytes = zip(&[("0", &zeros), ("1", &zeros), ("2", &zeros), ("3", &zeros)]);
        let mut archive = Archive::new(&bytes).unwrap();
        let read: Vec<_> = (0..4).map(|i| archive.bytes(&i.to_string()).map(|b| b.len())).collect();
        assert!(read[..3].iter().all(Result::is_ok));
        let e = read[3].as_ref().unwrap_err().to_string();
        assert_eq!(e, "expected at most 384 MiB when unpacked, found more");
        let small = zip(&[("a", b"some text some text some text")]);
        for end in 0..small.len() {
            if let Ok(mut archive) = Archive::new(&small[..end]) {
                assert!(archive.bytes("a").is_err(), "{end}");
            }
        }
    }
}
