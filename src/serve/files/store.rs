//! Uploaded files on disk, in a directory per owner.
//!
//! ```text
//! ID.json  the record, written last: a file without one does not exist      ID.data    the bytes as uploaded
//! ID.text  the extracted text with its parts                                ID.tokens  a model's key, and the prefix of prompts
//! *.tmp    not complete
//! ```
//! Files are private to this user, written under a temporary name and renamed. The id is a hash of owner, name and bytes, so
//! that the same file uploaded twice is one.

use crate::documents::{Document, PartStart};
use crate::io::private_file;
use crate::serve::errors::ApiError;
use crate::serve::tenant::Owner;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read, Result, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Maximum number of files of an owner.
pub const MAX_FILES: usize = 10_000;
/// Age after which incomplete files are removed: no upload takes longer.
const STALE: Duration = Duration::from_secs(3600);

/// Where files are stored, and how many.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The directory; without one, no files are stored.
    pub dir: Option<PathBuf>,
    /// Maximum bytes of the files of an owner.
    pub bytes: u64,
}

/// The record of an uploaded file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    pub id: String,
    pub filename: String,
    pub purpose: String,
    pub bytes: u64,
    /// Unix time of the upload, in seconds.
    pub created_at: u64,
    pub format: String,
    /// The reason why no text was extracted.
    pub fault: Option<String>,
}

/// The text of a file as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredText {
    text: String,
    parts: Vec<PartStart>,
}

/// The uploaded files of all owners.
#[derive(Debug)]
pub struct FileStore {
    options: FileOptions,
}

/// A file under a temporary name, which is removed when this is dropped.
#[derive(Debug)]
pub struct TemporaryFile {
    path: PathBuf,
    pub file: File,
}

impl TemporaryFile {
    /// Returns the bytes that were written.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        private_file::open(&self.path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // After it was renamed there is nothing to remove.
        let _ = private_file::remove(&self.path);
    }
}

impl FileStore {
    pub fn new(options: FileOptions) -> Self {
        FileStore { options }
    }

    /// Maximum bytes of the files of an owner.
    pub fn limit(&self) -> u64 {
        self.options.bytes
    }

    /// Returns the directory of an owner.
    fn dir(&self, owner: Owner) -> std::result::Result<PathBuf, ApiError> {
        let why = "no directory for files: set --files-dir, or HOME";
        let dir = self.options.dir.as_ref().ok_or_else(|| ApiError::no_storage(why))?;
        Ok(dir.join(owner.name()))
    }

    /// Creates the temporary file of an upload, and returns the bytes that the owner's files already take. Removes what
    /// earlier uploads left.
    pub fn begin(&self, owner: Owner) -> std::result::Result<(TemporaryFile, u64), ApiError> {
        let dir = self.dir(owner)?;
        private_file::create_dir(&dir).map_err(|e| storage_error(&dir, &e))?;
        let (used, records) = sweep(&dir).map_err(|e| storage_error(&dir, &e))?;
        if records >= MAX_FILES {
            return Err(ApiError::no_storage(format!("expected at most {MAX_FILES} files, found as many")));
        }
        let temporary = create_temporary(&dir).map_err(|e| storage_error(&dir, &e))?;
        Ok((temporary, used))
    }

    /// Adds an uploaded file with its text, or with the fault of its record.
    pub fn add(
        &self,
        owner: Owner,
        record: &StoredFile,
        data: TemporaryFile,
        document: Option<&Document>,
    ) -> std::result::Result<(), ApiError> {
        let dir = self.dir(owner)?;
        let add = || {
            data.file.sync_all()?;
            if let Some(Document { text, parts, .. }) = document {
                let text = StoredText { text: text.clone(), parts: parts.clone() };
                write(&dir, &record.id, "text", &serde_json::to_vec(&text)?)?;
            }
            std::fs::rename(&data.path, path(&dir, &record.id, "data"))?;
            write(&dir, &record.id, "json", &serde_json::to_vec(record)?)
        };
        add().map_err(|e| storage_error(&dir, &e))
    }

    /// Returns the record of a file.
    ///
    /// # Errors
    /// Returns 404 if the owner has no such file.
    pub fn find(&self, owner: Owner, id: &str) -> std::result::Result<StoredFile, ApiError> {
        if !is_id(id) {
            return Err(ApiError::no_file(id));
        }
        let dir = self.dir(owner)?;
        match read(&dir, id, "json") {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| storage_error(&dir, &e.into())),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(ApiError::no_file(id)),
            Err(e) => Err(storage_error(&dir, &e)),
        }
    }

    /// Returns the records of all files of an owner, the oldest first.
    pub fn list(&self, owner: Owner) -> std::result::Result<Vec<StoredFile>, ApiError> {
        let dir = self.dir(owner)?;
        let entries = match std::fs::read_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| storage_error(&dir, &e))?,
        };
        let ids = entries.flatten().filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(".json").map(str::to_owned)
        });
        // A file may be removed meanwhile.
        let mut all: Vec<StoredFile> = ids.filter_map(|id| self.find(owner, &id).ok()).collect();
        all.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(all)
    }

    /// Opens the bytes of a file.
    pub fn open_data(&self, owner: Owner, record: &StoredFile) -> std::result::Result<File, ApiError> {
        let dir = self.dir(owner)?;
        private_file::open(&path(&dir, &record.id, "data")).map_err(|e| storage_error(&dir, &e))
    }

    /// Returns the text of a file.
    ///
    /// # Errors
    /// Returns 400 with the reason if the file has no text.
    pub fn document(&self, owner: Owner, record: &StoredFile) -> std::result::Result<Document, ApiError> {
        if let Some(fault) = &record.fault {
            return Err(ApiError::invalid("file_id", fault));
        }
        let dir = self.dir(owner)?;
        let stored = read(&dir, &record.id, "text").and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        let StoredText { text, parts } = stored.map_err(|e| storage_error(&dir, &e))?;
        Ok(Document { name: record.filename.clone(), text, parts })
    }

    /// Returns the stored tokens of a file for the model with this key.
    pub fn tokens(&self, owner: Owner, id: &str, model: u128) -> Option<Vec<u32>> {
        let bytes = read(&self.dir(owner).ok()?, id, "tokens").ok()?;
        let (key, tokens) = bytes.split_first_chunk::<16>()?;
        let tokens = tokens.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        (u128::from_le_bytes(*key) == model).then(|| tokens.collect())
    }

    /// Stores the tokens of a file; they are computed again if that fails.
    pub fn set_tokens(&self, owner: Owner, id: &str, model: u128, tokens: &[u32]) {
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
        let bytes: Vec<u8> = model.to_le_bytes().into_iter().chain(bytes).collect();
        if let Ok(dir) = self.dir(owner)
            && let Err(e) = write(&dir, id, "tokens", &bytes)
        {
            tracing::warn!("{}: {e}", path(&dir, id, "tokens").display());
        }
    }

    /// Removes a file with its text.
    pub fn remove(&self, owner: Owner, record: &StoredFile) -> std::result::Result<(), ApiError> {
        let dir = self.dir(owner)?;
        let kinds = ["json", "tokens", "text", "data"].into_iter();
        let mut removed = kinds.map(|kind| private_file::remove(&path(&dir, &record.id, kind)));
        removed.find(Result::is_err).unwrap_or(Ok(())).map_err(|e| storage_error(&dir, &e))
    }
}

/// Returns the id of a file with this name and hash of its bytes.
pub fn file_id(owner: Owner, filename: &str, content: blake3::Hash) -> String {
    let mut hash = blake3::Hasher::new();
    for part in [owner.name().as_bytes(), filename.as_bytes(), content.as_bytes()] {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    format!("file-{}", &hash.finalize().to_hex()[..32])
}

/// Whether a text has the form of an id, so that it is safe as a file name.
fn is_id(id: &str) -> bool {
    let digits = id.strip_prefix("file-").unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn path(dir: &Path, id: &str, kind: &str) -> PathBuf {
    dir.join(format!("{id}.{kind}"))
}

fn read(dir: &Path, id: &str, kind: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    private_file::open(&path(dir, id, kind))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write(dir: &Path, id: &str, kind: &str, bytes: &[u8]) -> Result<()> {
    let mut temporary = create_temporary(dir)?;
    temporary.file.write_all(bytes)?;
    temporary.file.sync_all()?;
    std::fs::rename(&temporary.path, path(dir, id, kind))
}

fn create_temporary(dir: &Path) -> Result<TemporaryFile> {
    let path = dir.join(format!("{}.tmp", crate::serve::logprobs::new_id("upload")));
    Ok(TemporaryFile { file: private_file::create_new(&path)?, path })
}

/// Removes incomplete files of old uploads. Returns the bytes of all files and the number of records.
fn sweep(dir: &Path) -> Result<(u64, usize)> {
    let (mut bytes, mut records) = (0, 0);
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        // Another process may have removed the file.
        let Ok(about) = std::fs::symlink_metadata(&path) else { continue };
        let age = about.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        let is_complete = match kind {
            "json" => true,
            "data" | "text" | "tokens" => path.with_extension("json").exists(),
            _ => false,
        };
        if !is_complete && age.is_some_and(|age| age > STALE) {
            private_file::remove(&path)?;
            continue;
        }
        bytes += about.len();
        records += usize::from(kind == "json");
    }
    Ok((bytes, records))
}

/// Returns the error for a directory that cannot be read or written.
pub fn storage_error(dir: &Path, e: &std::io::Error) -> ApiError {
    if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return ApiError::no_storage("no space left on the server's disk for files");
    }
    tracing::error!("{}: {e}", dir.display());
    ApiError::internal("the files cannot be read or written; the log says why")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, created_at: u64) -> StoredFile {
        StoredFile {
            id: id.to_owned(),
            filename: "a.txt".into(),
            purpose: "user_data".into(),
            bytes: 5,
            created_at,
            format: "text".into(),
            fault: None,
        }
    }

    #[test]
    fn files_belong_to_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(FileOptions { dir: Some(dir.path().to_owned()), bytes: 1 << 20 });
        let (alice, bob) = (Owner::of(Some("alice")), Owner::of(Some("bob")));
        let id = file_id(alice, "a.txt", blake3::hash(b"Hello"));
        let (mut data, used) = store.begin(alice).unwrap();
        assert_eq!(used, 0);
        data.file.write_all(b"Hello").unwrap();
        let document = Document::plain("a.txt", "Hello");
        store.add(alice, &record(&id, 7), data, Some(&document)).unwrap();
        assert_eq!(store.find(alice, &id).unwrap(), record(&id, 7));
        assert_eq!(store.document(alice, &record(&id, 7)).unwrap(), document);
        assert_eq!(store.list(alice).unwrap().len(), 1);
        assert_eq!(
            (store.list(bob).unwrap().len(), store.find(bob, &id).unwrap_err().status.as_u16()),
            (0, 404)
        );
        store.set_tokens(alice, &id, 9, &[1, 2, 70_000]);
        assert_eq!(store.tokens(alice, &id, 9), Some(vec![1, 2, 70_000]));
        assert_eq!(store.tokens(alice, &id, 8), None);
        store.remove(alice, &record(&id, 7)).unwrap();
        assert_eq!(store.find(alice, &id).unwrap_err().status.as_u16(), 404);
        let left: Vec<_> = std::fs::read_dir(dir.path().join(alice.name())).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_ne!(id, file_id(bob, "a.txt", blake3::hash(b"Hello")));
    }

    #[test]
    fn what_a_dropped_upload_wrote_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(FileOptions { dir: Some(dir.path().to_owned()), bytes: 1 << 20 });
        let owner = Owner::of(None);
        drop(store.begin(owner).unwrap());
        let folder = dir.path().join(owner.name());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        // What a killed process left is removed once it is old.
        let old = SystemTime::now() - 2 * STALE;
        for name in ["x.tmp", "file-00.data"] {
            let file = private_file::create_new(&folder.join(name)).unwrap();
            file.set_modified(old).unwrap();
        }
        let (_, used) = store.begin(owner).unwrap();
        assert_eq!((used, std::fs::read_dir(&folder).unwrap().count()), (0, 0));
    }

    #[test]
    fn ids_are_no_paths() {
        assert!(is_id(&file_id(Owner::of(None), "a", blake3::hash(b"x"))));
        for id in ["", "file-", "../secret", "file-../../0000000000000000000000000", "file-0"] {
            assert!(!is_id(id), "{id}");
        }
    }
}
