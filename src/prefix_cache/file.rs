//! The file format of snapshots: KV cache rows, and states.
//!
//! ```text
//!  0  magic "KIMISNP1"                    56  tokens before (u64)
//!  8  key   (u128)  model, cache, build   64  tokens in this file (u64); a state has none
//! 24  id    (u128)                        72  bytes of the body (u64)
//! 40  parent (u128)                       80  token ids (u32 each)
//!     checksum of all before (u64)
//!     body:  rows: layer after layer, in a layer token after token, as the cache stores them
//!            state: S and tails of all KDA layers (f32 or f16, as the key says), then the logits (f32), if any
//!     checksum of the body, seeded with the header's (u64)
//! ```
//! All numbers are little-endian. The id of a rows file is the hash of its parent's id (the key for the first) and its
//! token ids, so an id identifies all tokens from the start. A state has the id of its last rows file. A file is used
//! only if its length, checksums, position in the chain and tokens are valid.
//!

use crate::io::private_file;
use std::borrow::Cow;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::path::Path;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Identifies a prefix of tokens under one key.
pub type Id = u128;

const MAGIC: &[u8; 8] = b"KIMISNP1";
const FIXED: usize = 80;
/// Bytes of a file besides tokens and body.
pub const OVERHEAD: u64 = FIXED as u64 + 16;
/// The maximum number of tokens in one file.
const MAX_TOKENS: u64 = 1 << 24;

/// The header of a file, described at the head of this module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The key of model, cache format and build.
    pub key: Id,
    /// The id of the tokens up to the end of this file.
    pub id: Id,
    /// The id of the preceding rows file.
    pub parent: Id,
    /// The number of preceding tokens.
    pub before: u64,
    pub tokens: Vec<u32>,
}

/// Computes the id of the rows of `tokens` after those of `parent`, with BLAKE3, because clients choose the tokens.
pub fn chain(parent: Id, tokens: &[u32]) -> Id {
    let mut bytes = parent.to_le_bytes().to_vec();
    bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    id_of(blake3::Hasher::new().update(&bytes))
}

/// Returns the first 16 bytes of a hash.
pub fn id_of(hash: &blake3::Hasher) -> Id {
    let mut id = [0; 16];
    hash.finalize_xof().fill(&mut id);
    Id::from_le_bytes(id)
}

/// Writes a file under a temporary name and renames it when complete.
///
/// # Errors
/// Errors of the operating system; the temporary file is removed.
pub fn write(path: &Path, header: &FileHeader, body: &[u8]) -> Result<()> {
    let part = path.with_extension("tmp");
    write_part(&part, header, body)
        .and_then(|()| std::fs::rename(&part, path))
        .inspect_err(|_| drop(private_file::remove(&part)))?;
    // The name is on disk once its directory is synced, which not every system supports.
    if let Some(Ok(dir)) = path.parent().map(File::open) {
        let _ = dir.sync_all();
    }
    Ok(())
}

fn write_part(part: &Path, header: &FileHeader, body: &[u8]) -> Result<()> {
    private_file::remove(part)?;
    let mut file = private_file::create_new(part)?;
    for bytes in pieces(&header.encode(body.len() as u64), body) {
        file.write_all(&bytes)?;
    }
    file.sync_data()
}

/// Reads the header of a file and checks it against the file's length and checksum.
pub fn read_header(path: &Path) -> Result<FileHeader> {
    let file = private_file::open(path)?;
    let length = file.metadata()?.len();
    Ok(parse_header(&mut &file, length)?.0)
}

/// Reads and checks a file with the expected header and one of the expected body sizes. Replaces the contents of
/// `body`, whose memory is reused for file after file.
pub fn read(path: &Path, expected: &FileHeader, sizes: &[u64], body: &mut Vec<u8>) -> Result<()> {
    let file = private_file::open(path)?;
    let length = file.metadata()?.len();
    let mut file = &file;
    let (header, bytes, sum) = parse_header(&mut file, length)?;
    same(expected, &header)?;
    // Checks the claimed size before allocating memory for it.
    check("bytes of the body", *sizes.iter().find(|size| **size == bytes).unwrap_or(&sizes[0]), bytes)?;
    read_body(file, bytes, sum, body)
}

/// Parses a whole file in memory into its header and body.
///
/// # Errors
/// The file is truncated or damaged.
pub fn parse(mut bytes: &[u8]) -> Result<(FileHeader, Vec<u8>)> {
    let length = bytes.len() as u64;
    let (header, size, sum) = parse_header(&mut bytes, length)?;
    let mut body = Vec::new();
    read_body(bytes, size, sum, &mut body)?;
    Ok((header, body))
}

/// Encodes a file as bytes.
pub fn encode(header: &FileHeader, body: &[u8]) -> Vec<u8> {
    pieces(&header.encode(body.len() as u64), body).concat()
}

/// Returns the parts of a file: header, its checksum, body, its checksum.
fn pieces<'a>(head: &'a [u8], body: &'a [u8]) -> [Cow<'a, [u8]>; 4] {
    let sum = xxh3_64(head);
    let sums = [sum, xxh3_64_with_seed(body, sum)].map(|sum| sum.to_le_bytes().to_vec());
    let [first, second] = sums;
    [head.into(), first.into(), body.into(), second.into()]
}

fn read_body(mut file: impl Read, bytes: u64, sum: u64, body: &mut Vec<u8>) -> Result<()> {
    body.clear();
    body.reserve_exact(bytes as usize);
    file.by_ref().take(bytes).read_to_end(body)?;
    check("bytes of the body", bytes, body.len() as u64)?;
    let mut expected = [0; 8];
    file.read_exact(&mut expected)?;
    check("checksum of the body", u64::from_le_bytes(expected), xxh3_64_with_seed(body, sum))
}

/// Compares a file's header with the expected one.
pub fn same(expected: &FileHeader, found: &FileHeader) -> Result<()> {
    check("key", expected.key, found.key)?;
    check("id", expected.id, found.id)?;
    check("parent", expected.parent, found.parent)?;
    check("tokens before", expected.before, found.before)?;
    let (these, others) = ("those of its id", "others");
    check("tokens", these, if expected.tokens == found.tokens { these } else { others })
}

impl FileHeader {
    fn encode(&self, body: u64) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        [self.key, self.id, self.parent].iter().for_each(|id| out.extend(id.to_le_bytes()));
        [self.before, self.tokens.len() as u64, body].iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(self.tokens.iter().flat_map(|t| t.to_le_bytes()));
        out
    }
}

/// Parses the header of a file of `length` bytes; returns it with the size of the body and the header's checksum.
fn parse_header(file: &mut impl Read, length: u64) -> Result<(FileHeader, u64, u64)> {
    let mut head = vec![0; FIXED];
    file.read_exact(&mut head)?;
    if &head[..8] != MAGIC {
        return Err(bad(format!("magic: expected {MAGIC:?}, found {:?}", &head[..8])));
    }
    let id = |at: usize| Id::from_le_bytes(head[at..at + 16].try_into().expect("16 bytes"));
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    let (before, tokens, body) = (number(56), number(64), number(72));
    if tokens > MAX_TOKENS {
        return Err(bad(format!("tokens: expected at most {MAX_TOKENS}, found {tokens}")));
    }
    // Checks the claimed sizes before allocating memory for them.
    check("length", (OVERHEAD + 4 * tokens).saturating_add(body), length)?;
    let (key, own, parent) = (id(8), id(24), id(40));
    head.resize(FIXED + 4 * tokens as usize, 0);
    file.read_exact(&mut head[FIXED..])?;
    let mut expected = [0; 8];
    file.read_exact(&mut expected)?;
    let sum = xxh3_64(&head);
    check("checksum of the header", u64::from_le_bytes(expected), sum)?;
    let tokens = head[FIXED..].as_chunks().0.iter().map(|t| u32::from_le_bytes(*t)).collect();
    Ok((FileHeader { key, id: own, parent, before, tokens }, body, sum))
}

/// Returns an error if an expected and a found value differ.
pub fn check<T: PartialEq + std::fmt::Display>(what: &str, expected: T, found: T) -> Result<()> {
    if expected == found { Ok(()) } else { Err(bad(format!("{what}: expected {expected}, found {found}"))) }
}

fn bad(message: String) -> Error {
    Error::new(ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(dir: &Path) -> (std::path::PathBuf, FileHeader, Vec<u8>) {
        let path = dir.join("x.rows");
        let tokens = vec![1, 2, u32::MAX];
        let header = FileHeader { key: 5, id: chain(5, &tokens), parent: 5, before: 0, tokens };
        let body: Vec<u8> = (0..100).collect();
        write(&path, &header, &body).unwrap();
        (path, header, body)
    }

    #[test]
    fn files_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let (path, header, body) = sample(dir.path());
        assert_eq!(read_header(&path).unwrap(), header);
        let mut found = b"before".to_vec();
        read(&path, &header, &[7, 100], &mut found).unwrap();
        assert_eq!(found, body);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!((encode(&header, &body), parse(&whole).unwrap()), (whole, (header, body)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    /// Flips every bit, and tries every shorter length and one byte more.
    #[test]
    fn no_damage_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let (path, header, _) = sample(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], what: String| {
            std::fs::write(&path, bytes).unwrap();
            assert!(parse(bytes).is_err(), "{what}");
            assert!(read(&path, &header, &[100], &mut Vec::new()).is_err(), "{what}");
        };
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            refused(&bytes, format!("bit {bit}"));
        }
        (0..whole.len()).for_each(|n| refused(&whole[..n], format!("{n} bytes")));
        refused(&[&whole[..], &[0]].concat(), "a byte more".into());
    }

    /// A sparse file of a terabyte with a valid header; no memory is allocated for it.
    #[test]
    fn a_body_of_another_size_is_refused_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, header, _) = sample(dir.path());
        let body = 1 << 40;
        let head = header.encode(body);
        std::fs::write(&path, [&head[..], &xxh3_64(&head).to_le_bytes()].concat()).unwrap();
        let length = OVERHEAD + 12 + body;
        if File::options().write(true).open(&path).unwrap().set_len(length).is_err() {
            println!("skipped: the file system has no files of a terabyte");
            return;
        }
        let mut found = Vec::new();
        let error = read(&path, &header, &[100, 50], &mut found).unwrap_err().to_string();
        assert_eq!(error, format!("bytes of the body: expected 100, found {body}"));
        assert_eq!(found.capacity(), 0);
    }

    #[test]
    fn ids_are_of_all_tokens_and_of_the_key() {
        let one = chain(chain(7, &[1, 2]), &[3]);
        assert_ne!(one, chain(chain(7, &[1]), &[2, 3]), "the cut counts");
        assert_ne!(one, chain(chain(8, &[1, 2]), &[3]));
        assert_ne!(chain(7, &[1, 2]), chain(7, &[2, 1]));
    }
}
