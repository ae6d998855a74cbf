//! Stores one file of a repository as a blob of the cache: locks it, resumes it, checks its sum, and renames it.
//!
//! A partial blob is named `BLOB.incomplete` and locked by a file in `.locks`, both as in `huggingface_hub`.

use super::cache::RepoCache;
use super::client::HubClient;
use super::fetch::{Destination, Fetch, FileAddress};
use super::listing::RepoFile;
use super::paths::{create_parent, is_complete, partial_path};
use super::progress::PullProgress;
use super::sum::Sum;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Interval at which a lock that another process holds is tried again.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// A download of files of one commit.
pub struct Download<'a> {
    pub client: &'a HubClient,
    pub cache: &'a RepoCache,
    pub commit: &'a str,
    /// The number of parallel connections per file.
    pub connections: usize,
    pub progress: &'a dyn PullProgress,
}

impl Download<'_> {
    /// Stores a file and links it in the snapshot of the commit. Returns the path of the link.
    ///
    /// # Errors
    /// The server fails, the sum is wrong, or the disk is full.
    pub fn store(&self, file: &RepoFile) -> Result<PathBuf> {
        let repo = &self.cache.repo;
        let name = format!("{repo}/{}", file.path);
        let remote = self.client.locate(repo, self.commit, &file.path)?;
        if remote.size != file.size {
            bail!("{name}: expected {} bytes as in the list of files, found {}", file.size, remote.size);
        }
        let blob = self.cache.blob(&remote.etag);
        if !is_complete(&blob, file.size) {
            let _lock = self.lock(&remote.etag, &name)?;
            // Another process may have completed it.
            if !is_complete(&blob, file.size) {
                self.fetch(file, &name, &blob, remote.url)?;
            } else {
                self.progress.resumed(file.size);
            }
        } else {
            self.progress.resumed(file.size);
        }
        self.cache.link(self.commit, &file.path, &remote.etag)
    }

    /// Stores a file outside the cache.
    ///
    /// # Errors
    /// As [`Download::store`].
    pub fn store_at(&self, file: &RepoFile, path: &Path) -> Result<()> {
        let name = format!("{}/{}", self.cache.repo, file.path);
        let remote = self.client.locate(&self.cache.repo, self.commit, &file.path)?;
        self.fetch(file, &name, path, remote.url)
    }

    /// The first bytes of a file; fewer if it is shorter.
    ///
    /// # Errors
    /// The server fails repeatedly.
    pub fn first_bytes(&self, file: &RepoFile, bytes: u64) -> Result<Vec<u8>> {
        let name = format!("{}/{}", self.cache.repo, file.path);
        let locate = || Ok(self.client.locate(&self.cache.repo, self.commit, &file.path)?.url);
        let fetch = Fetch {
            client: self.client,
            name: &name,
            size: file.size,
            connections: 1,
            address: FileAddress::new(locate()?, &locate),
            progress: &(),
        };
        fetch.first_bytes(bytes.min(file.size))
    }

    /// Waits for the lock of a blob.
    fn lock(&self, etag: &str, name: &str) -> Result<File> {
        let path = self.cache.lock_path(etag);
        create_parent(&path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        let mut is_first = true;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => {
                    if std::mem::take(&mut is_first) {
                        self.client.note(&format!("{name}: waiting for another process that downloads it"));
                    }
                    std::thread::sleep(LOCK_POLL);
                }
                Err(fs::TryLockError::Error(e)) => return Err(e).context(path.display().to_string()),
            }
        }
    }

    /// Downloads a blob under its partial name, checks it and renames it. A partial file with a wrong prefix is replaced once.
    fn fetch(&self, file: &RepoFile, name: &str, blob: &Path, url: String) -> Result<()> {
        let path = partial_path(blob);
        create_parent(&path)?;
        let locate = || Ok(self.client.locate(&self.cache.repo, self.commit, &file.path)?.url);
        let fetch = Fetch {
            client: self.client,
            name,
            size: file.size,
            connections: self.connections.max(1),
            address: FileAddress::new(url, &locate),
            progress: self.progress,
        };
        let blob_name = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let expected = expected_sum(file, blob_name);
        loop {
            let mut to = self.open_partial(&path, file, expected.as_ref())?;
            let resumed = to.length;
            if to.length < file.size {
                fetch.run(&mut to)?;
            }
            to.file.sync_all().with_context(|| path.display().to_string())?;
            let found = to.sum.hex();
            match &expected {
                Some((kind, sum)) if *sum != found => {
                    drop(to);
                    fs::remove_file(&path).with_context(|| path.display().to_string())?;
                    if resumed == 0 {
                        bail!(
                            "{name}: {kind}: expected {sum}, found {found}; the file was deleted, run the command again"
                        );
                    }
                    self.client.note(&format!(
                        "{name}: the partial file of an earlier run is damaged: starting over"
                    ));
                    self.progress.lost(file.size);
                }
                _ => return fs::rename(&path, blob).with_context(|| blob.display().to_string()),
            }
        }
    }

    /// Opens the partial file, reads what an earlier run stored, and continues at its end.
    fn open_partial<'p>(
        &self,
        path: &'p Path,
        file: &RepoFile,
        expected: Option<&(&str, String)>,
    ) -> Result<Destination<'p>> {
        let shown = || path.display().to_string();
        let mut partial = models::file::open_own(path)?;
        if partial.metadata().with_context(shown)?.len() > file.size {
            partial.set_len(0).with_context(shown)?;
        }
        let mut sum = match expected {
            Some(("Git object", _)) => Sum::git(file.size),
            _ => Sum::sha256(),
        };
        let (mut length, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            let n = match partial.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e).with_context(shown),
            };
            sum.update(&buffer[..n]);
            length += n as u64;
            self.progress.resumed(n as u64);
        }
        partial.seek(SeekFrom::Start(length)).with_context(shown)?;
        Ok(Destination { file: partial, path, length, sum })
    }
}

/// The kind of a file's sum and its value. A blob that is named by 64 hexadecimal digits has them as its SHA-256.
fn expected_sum(file: &RepoFile, blob_name: &str) -> Option<(&'static str, String)> {
    let is_sha256 = blob_name.len() == 64 && blob_name.bytes().all(|b| b.is_ascii_hexdigit());
    let sha256 = file.sha256.clone().or_else(|| is_sha256.then(|| blob_name.to_ascii_lowercase()));
    match (sha256, &file.git_id) {
        (Some(sum), _) => Some(("SHA-256", sum)),
        (None, Some(id)) => Some(("Git object", id.clone())),
        (None, None) => None,
    }
}
