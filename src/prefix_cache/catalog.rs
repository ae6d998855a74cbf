//! The catalogue of documents in the cache directory: which file names a prefix belongs to, what it takes on disk, and its
//! removal. The names of cache files are hashes of tokens, so a record per prefix, `ID.document`, has names and tokens.
//!
//! It knows no model: chains are found by the tokens in the headers. Next: [`super::disk_index`].

use super::disk_index::{Folder, Listing};
use super::file::{self, Id, id_of};
use crate::io::private_file;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io::{Read, Result, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The file name extension of records.
const DOCUMENT: &str = "document";

/// The maximum number of records, of about seven bytes per token each.
const MAX_RECORDS: usize = 256;

/// The age after which a record without a state is removed: the states may still be written.
const GRACE_SECONDS: u64 = 3600;

/// A prefix that consists of documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPrefix {
    /// The names of the files in the order of the prompt.
    pub names: Vec<String>,
    /// The name of the model that prefilled it.
    pub model: String,
    pub tokens: Vec<u32>,
    /// Unix time of the last question, in seconds.
    pub read_at: u64,
    /// The parent id of its first rows, in hexadecimal digits.
    root: String,
}

/// A prefix with the files that it takes on disk, those of questions about it included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedDocuments {
    pub prefix: NamedPrefix,
    /// Tokens of the prefix that need not be prefilled again.
    pub cached_tokens: usize,
    pub bytes: u64,
    record: PathBuf,
    /// States after a part of the prefix, or after a continuation of it.
    states: Vec<Id>,
}

impl NamedPrefix {
    pub(super) fn new(root: Id, names: &[String], model: &str, tokens: &[u32]) -> NamedPrefix {
        let (names, model, tokens) = (names.to_vec(), model.to_owned(), tokens.to_vec());
        NamedPrefix { names, model, tokens, read_at: now(), root: format!("{root:032x}") }
    }

    fn root(&self) -> Option<Id> {
        Id::from_str_radix(&self.root, 16).ok()
    }

    /// Returns the id of the record: the same documents under other names have another one.
    fn id(&self) -> Id {
        let mut hash = blake3::Hasher::new();
        hash.update(self.root.as_bytes()).update(self.names.join("\0").as_bytes());
        for token in &self.tokens {
            hash.update(&token.to_le_bytes());
        }
        id_of(&hash)
    }

    /// Writes the record, and removes the oldest above the maximum number.
    pub(super) fn save(&self, folder: &Folder) -> Result<()> {
        let _lock = folder.lock()?;
        let path = folder.dir.join(format!("{:032x}.{DOCUMENT}", self.id()));
        let part = path.with_extension("tmp");
        private_file::remove(&part)?;
        let written = private_file::create_new(&part).and_then(|mut file| {
            file.write_all(&serde_json::to_vec(self)?)?;
            std::fs::rename(&part, &path)
        });
        written.inspect_err(|_| drop(private_file::remove(&part)))?;
        let mut all = records(folder)?;
        all.sort_by_key(|(_, prefix)| std::cmp::Reverse(prefix.read_at));
        all.iter().skip(MAX_RECORDS).try_for_each(|(path, _)| private_file::remove(path))
    }
}

/// Returns the documents of which something is cached, the latest first. Old records of evicted documents are removed.
pub fn list(folder: &Folder) -> Result<Vec<CachedDocuments>> {
    let (records, listing) = match records(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        records => (records?, folder.list()?),
    };
    let mut found = Vec::new();
    for (record, prefix) in records {
        let cached = cached(folder, &listing, record, prefix);
        let is_old = now().saturating_sub(cached.prefix.read_at) > GRACE_SECONDS;
        if !cached.states.is_empty() {
            found.push(cached);
        } else if is_old {
            private_file::remove(&cached.record)?;
        }
    }
    found.sort_by_key(|cached| std::cmp::Reverse(cached.prefix.read_at));
    Ok(found)
}

/// Removes documents with all that was cached after them. Rows that another document needs stay.
pub fn forget(folder: &Folder, documents: &[CachedDocuments]) -> Result<()> {
    let _lock = folder.lock()?;
    for document in documents {
        private_file::remove(&document.record)?;
        document.states.iter().try_for_each(|id| private_file::remove(&folder.state_path(*id)))?;
    }
    // Removes the rows that no state needs.
    folder.make_room(&folder.list()?, 0, None).map(drop)
}

/// Removes all states after a part of these tokens, or after a continuation of them.
pub(super) fn forget_tokens(folder: &Folder, root: Id, tokens: &[u32]) -> Result<()> {
    let prefix = NamedPrefix::new(root, &[], "", tokens);
    let same = |(_, other): &(PathBuf, NamedPrefix)| other.root == prefix.root && other.tokens == tokens;
    let record = records(folder)?.into_iter().find(same).map(|(path, _)| path);
    let record = record.unwrap_or_else(|| folder.dir.join(format!("{:032x}.{DOCUMENT}", prefix.id())));
    let cached = cached(folder, &folder.list()?, record, prefix);
    forget(folder, &[cached])
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Reads all records; damaged ones are left out.
fn records(folder: &Folder) -> Result<Vec<(PathBuf, NamedPrefix)>> {
    let read = |path: &Path| -> Result<NamedPrefix> {
        let mut bytes = Vec::new();
        private_file::open(path)?.read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder.dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == DOCUMENT)
            && let Ok(prefix) = read(&path)
        {
            found.push((path, prefix));
        }
    }
    Ok(found)
}

/// Finds the files of a prefix.
fn cached(folder: &Folder, listing: &Listing, record: PathBuf, prefix: NamedPrefix) -> CachedDocuments {
    let (mut parts, mut whole, mut cached_tokens) = (HashSet::new(), HashSet::new(), 0);
    let mut open: Vec<(Id, usize)> = prefix.root().map(|root| (root, 0)).into_iter().collect();
    while let Some((parent, at)) = open.pop() {
        for (id, rows) in listing.rows.iter().filter(|(_, rows)| rows.parent == parent) {
            let Ok(header) = file::read_header(&folder.rows_path(*id, parent, rows.first)) else { continue };
            let rest = &prefix.tokens[at..];
            let is_part = rest.starts_with(&header.tokens);
            if !header.tokens.is_empty() && (is_part || header.tokens.starts_with(rest)) {
                let end = at + header.tokens.len().min(rest.len());
                if is_part {
                    parts.insert(*id);
                    cached_tokens = cached_tokens.max(if listing.states.contains_key(id) { end } else { 0 });
                }
                if end < prefix.tokens.len() {
                    open.push((*id, end));
                } else {
                    whole.insert(*id);
                }
            }
        }
    }
    let mut files = HashSet::new();
    let (mut states, mut bytes) = (Vec::new(), 0);
    for (id, state) in &listing.states {
        let ancestors = listing.ancestors(*id).unwrap_or_default();
        if parts.contains(id) || ancestors.iter().any(|ancestor| whole.contains(ancestor)) {
            states.push(*id);
            bytes += state.bytes;
            files.extend(ancestors);
        }
    }
    bytes += files.iter().filter_map(|id| Some(listing.rows.get(id)?.bytes)).sum::<u64>();
    CachedDocuments { prefix, cached_tokens, bytes, record, states }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix_cache::file::{FileHeader, chain};

    /// Writes rows of these tokens after `parent`, with a state; returns their id.
    fn add(folder: &Folder, (root, parent): (Id, Id), before: usize, tokens: &[u32]) -> Id {
        let id = chain(parent, tokens);
        let header = FileHeader { key: root, id, parent, before: before as u64, tokens: tokens.to_vec() };
        file::write(&folder.rows_path(id, parent, before == 0), &header, &[0; 50]).unwrap();
        let header = FileHeader { parent: id, tokens: vec![], ..header };
        file::write(&folder.state_path(id), &header, &[0; 10]).unwrap();
        id
    }

    #[test]
    fn documents_are_listed_and_forgotten_with_their_questions() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder { dir: dir.path().to_owned(), budget: 1 << 20 };
        let root = 99;
        let half = add(&folder, (root, root), 0, &[1, 2, 3]);
        let other = add(&folder, (root, half), 3, &[5, 5]);
        let whole = add(&folder, (root, half), 3, &[4, 5]);
        add(&folder, (root, whole), 5, &[6]);
        add(&folder, (root, root), 0, &[7, 8]);
        add(&folder, (5, 5), 0, &[1, 2, 3]);
        let name = |name: &str, tokens: &[u32]| {
            NamedPrefix::new(root, &[name.to_owned()], "m", tokens).save(&folder).unwrap();
        };
        name("a.txt", &[1, 2, 3, 4, 5]);
        name("b.txt", &[7, 8, 9]);
        name("gone.txt", &[3]);
        let all = list(&folder).unwrap();
        let of = |name: &str| all.iter().find(|cached| cached.prefix.names == [name]).unwrap();
        let (a, b) = (of("a.txt"), of("b.txt"));
        assert_eq!((all.len(), a.cached_tokens, a.states.len(), b.cached_tokens), (2, 5, 3, 2));
        let bytes = |id: Id| std::fs::metadata(folder.state_path(id)).unwrap().len();
        assert!(a.bytes > 3 * bytes(whole), "{}", a.bytes);
        forget(&folder, std::slice::from_ref(a)).unwrap();
        let listing = folder.list().unwrap();
        assert!(listing.states.contains_key(&other), "another text begins alike");
        assert_eq!((listing.rows.len(), listing.states.len()), (4, 3), "of b.txt and of another model too");
        assert_eq!(list(&folder).unwrap().len(), 1);
        forget_tokens(&folder, root, &[7, 8, 9]).unwrap();
        assert_eq!((list(&folder).unwrap().len(), folder.list().unwrap().states.len()), (0, 2));
    }
}
