//! The cache directory of `huggingface_hub`: `models--USER--REPO/{blobs,refs,snapshots}`.
//!
//! A snapshot of a commit holds relative symbolic links to blobs, which are named by their ETag; `refs/main` holds the commit
//! of a branch. Where links cannot be made, the snapshot holds the file itself.

use super::listing::{RepoFile, is_commit, is_safe_path};
use super::paths::create_parent;
use super::spec::RepoId;
use super::variants::{GgufVariant, Unusable, variants};
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Most entries of a directory, and depth of a snapshot, that are read.
const MAX_ENTRIES: usize = 100_000;
const MAX_DEPTH: usize = 16;

/// The cached files of one repository.
#[derive(Clone, Debug)]
pub struct RepoCache {
    pub repo: RepoId,
    cache: PathBuf,
}

/// A cached GGUF model of a snapshot.
#[derive(Clone, Debug)]
pub struct CachedModel {
    pub repo: RepoId,
    pub variant: GgufVariant,
    /// Directory of the snapshot or of the converted files.
    pub snapshot: PathBuf,
    /// It was converted from a checkpoint and is no file of the hub.
    pub is_converted: bool,
}

impl CachedModel {
    /// Path of its first file, which opens the others.
    pub fn path(&self) -> PathBuf {
        self.snapshot.join(&self.variant.files[0].path)
    }

    /// The name by which `-m` finds it.
    pub fn name(&self) -> String {
        format!("{}:{}", self.repo, self.variant.kind)
    }
}

impl RepoCache {
    pub fn new(cache: &Path, repo: &RepoId) -> RepoCache {
        RepoCache { repo: repo.clone(), cache: cache.to_owned() }
    }

    /// The folder of the repository.
    pub fn dir(&self) -> PathBuf {
        self.cache.join(self.repo.folder())
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.dir().join("blobs").join(etag)
    }

    pub fn lock_path(&self, etag: &str) -> PathBuf {
        self.cache.join(".locks").join(self.repo.folder()).join(format!("{etag}.lock"))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir().join("snapshots").join(commit)
    }

    /// Links a blob under its path in a snapshot; an existing link is replaced.
    pub fn link(&self, commit: &str, path: &str, etag: &str) -> Result<PathBuf> {
        let link = self.snapshot(commit).join(path);
        create_parent(&link)?;
        let up = "../".repeat(2 + path.split('/').count() - 1);
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            return Ok(link);
        }
        // A link under a temporary name is renamed, so that a reader always finds one.
        let mut temporary = link.clone().into_os_string();
        temporary.push(format!(".{}.link", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let _ = fs::remove_file(&temporary);
        make_link(&target, &self.blob(etag), &temporary).with_context(|| temporary.display().to_string())?;
        fs::rename(&temporary, &link).with_context(|| link.display().to_string())?;
        Ok(link)
    }

    /// Records the commit of a branch.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.dir().join("refs").join(revision);
        create_parent(&path)?;
        if self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        fs::write(&path, commit).with_context(|| path.display().to_string())
    }

    /// The commit that a branch had when it was downloaded last.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.dir().join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The complete GGUF models of a revision; without a revision, those of all snapshots.
    pub fn models(&self, revision: Option<&str>) -> Vec<CachedModel> {
        let commits = match revision {
            Some(revision) => self.commit_of(revision).into_iter().collect(),
            None => names(&self.dir().join("snapshots")),
        };
        let model = |snapshot: &PathBuf, variant| CachedModel {
            repo: self.repo.clone(),
            variant,
            snapshot: snapshot.clone(),
            is_converted: false,
        };
        let mut found = Vec::new();
        for commit in commits {
            let snapshot = self.snapshot(&commit);
            let complete = variants(&files(&snapshot)).into_iter();
            let complete = complete.filter(|v| v.usable() != Err(Unusable::Parts));
            found.extend(complete.map(|variant| model(&snapshot, variant)));
        }
        found
    }

    /// Removes files of a snapshot, then the blobs and refs that no snapshot needs, and an empty repository. Returns the
    /// bytes that became free.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self, model: &CachedModel) -> Result<u64> {
        for file in &model.variant.files {
            let link = model.snapshot.join(&file.path);
            fs::remove_file(&link).with_context(|| link.display().to_string())?;
            remove_empty_parents(&link, &self.dir());
        }
        if model.is_converted {
            let _ = fs::remove_dir(&model.snapshot);
            return Ok(model.variant.bytes());
        }
        self.remove_unused()
    }

    fn remove_unused(&self) -> Result<u64> {
        let snapshots = names(&self.dir().join("snapshots"));
        let mut used = BTreeSet::new();
        for commit in &snapshots {
            let paths = walk(&self.snapshot(commit));
            used.extend(paths.iter().filter_map(|path| {
                fs::read_link(path).ok()?.file_name().map(|name| name.to_string_lossy().into_owned())
            }));
        }
        let mut freed = 0;
        let blobs = self.dir().join("blobs");
        for name in names(&blobs) {
            // Partial blobs of a repository with snapshots may be in use by a download.
            let is_partial = name.ends_with(".incomplete") && !snapshots.is_empty();
            if !used.contains(&name) && !is_partial {
                let path = blobs.join(&name);
                freed += fs::metadata(&path).map_or(0, |about| about.len());
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        if snapshots.is_empty() {
            let dir = self.dir();
            fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
            let _ = fs::remove_dir_all(self.cache.join(".locks").join(self.repo.folder()));
        }
        Ok(freed)
    }
}

/// The repositories of a cache directory, by name.
pub fn repositories(cache: &Path) -> Vec<RepoCache> {
    let mut repos: Vec<RepoId> = names(cache).iter().filter_map(|name| RepoId::from_folder(name)).collect();
    repos.sort();
    repos.iter().map(|repo| RepoCache::new(cache, repo)).collect()
}

/// The directory of the files that were converted from the checkpoint of a repository.
pub fn converted_dir(root: &Path, repo: &RepoId) -> PathBuf {
    root.join(repo.folder())
}

/// The models under a directory of converted files.
pub fn converted_models(root: &Path) -> Vec<CachedModel> {
    let repos = names(root).into_iter().filter_map(|name| RepoId::from_folder(&name));
    let models = repos.flat_map(|repo| {
        let snapshot = converted_dir(root, &repo);
        let found = variants(&files(&snapshot)).into_iter();
        found
            .map(|variant| CachedModel {
                repo: repo.clone(),
                variant,
                snapshot: snapshot.clone(),
                is_converted: true,
            })
            .collect::<Vec<_>>()
    });
    models.collect()
}

/// The names in a directory in order; none if it is missing.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_ENTRIES);
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The files of a snapshot whose blobs are there.
fn files(snapshot: &Path) -> Vec<RepoFile> {
    let file = |path: PathBuf| {
        let about = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let path = path.strip_prefix(snapshot).ok()?.to_str()?.replace('\\', "/");
        is_safe_path(&path).then_some(RepoFile { path, size: about.len(), sha256: None, git_id: None })
    };
    walk(snapshot).into_iter().filter_map(file).collect()
}

/// Files and links under a directory. Links to directories are not followed.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![(dir.to_owned(), 0)]);
    while let Some((dir, depth)) = open.pop() {
        for name in names(&dir) {
            let path = dir.join(name);
            match fs::symlink_metadata(&path) {
                Ok(about) if about.is_dir() && depth < MAX_DEPTH => open.push((path, depth + 1)),
                Ok(about) if !about.is_dir() => found.push(path),
                _ => {}
            }
        }
    }
    found
}

/// Removes the directories above a path that are empty, below `top`.
fn remove_empty_parents(path: &Path, top: &Path) {
    for dir in path.ancestors().skip(1).take_while(|dir| dir.starts_with(top) && *dir != top) {
        if dir.file_name().is_some_and(|name| name == "snapshots") || fs::remove_dir(dir).is_err() {
            return;
        }
    }
}

#[cfg(unix)]
fn make_link(target: &Path, _: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Moves the blob into the snapshot, as `huggingface_hub` does where links need privileges.
#[cfg(not(unix))]
fn make_link(_: &Path, blob: &Path, link: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    const COMMITS: [&str; 2] =
        ["1111111111111111111111111111111111111111", "2222222222222222222222222222222222222222"];

    fn put(cache: &RepoCache, commit: &str, path: &str, etag: &str) {
        create_parent(&cache.blob(etag)).unwrap();
        fs::write(cache.blob(etag), etag).unwrap();
        cache.link(commit, path, etag).unwrap();
    }

    #[test]
    fn models_are_found_through_relative_links() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), &RepoId::parse("u/r").unwrap());
        put(&cache, COMMITS[0], "x-Q4_K_M.gguf", "aaaa");
        put(&cache, COMMITS[0], "bf16/x-bf16-00001-of-00002.gguf", "bb");
        put(&cache, COMMITS[1], "d/x-Q8_0.gguf", "cc");
        cache.set_ref("main", COMMITS[1]).unwrap();
        let deep = cache.snapshot(COMMITS[1]).join("d/x-Q8_0.gguf");
        assert_eq!(fs::read_link(&deep).unwrap(), Path::new("../../../blobs/cc"));
        assert_eq!(fs::read(&deep).unwrap(), b"cc");
        let kinds = |revision| cache.models(revision).iter().map(CachedModel::name).collect::<Vec<_>>();
        // The split lacks a part.
        assert_eq!(kinds(None), ["u/r:Q4_K_M", "u/r:Q8_0"]);
        assert_eq!(kinds(Some("main")), ["u/r:Q8_0"]);
        assert_eq!(kinds(Some("other")), [""; 0]);
        assert_eq!(repositories(dir.path()).len(), 1);
    }

    #[test]
    fn shared_blobs_stay_when_a_model_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), &RepoId::parse("u/r").unwrap());
        put(&cache, COMMITS[0], "x-Q4_K_M.gguf", "shared");
        put(&cache, COMMITS[1], "x-Q4_K_M.gguf", "shared");
        put(&cache, COMMITS[1], "d/x-Q8_0.gguf", "other");
        let remove = |at: usize, kind: &str| {
            let models = cache.models(Some(COMMITS[at]));
            cache.remove(models.iter().find(|m| m.variant.is(kind)).unwrap()).unwrap()
        };
        assert_eq!(remove(0, "Q4_K_M"), 0);
        assert!(cache.blob("shared").exists() && !cache.snapshot(COMMITS[0]).exists());
        assert_eq!(remove(1, "q8_0"), 5);
        assert!(!cache.blob("other").exists() && cache.blob("shared").exists());
        assert_eq!(remove(1, "Q4_K_M"), 6);
        assert!(!cache.dir().exists());
    }
}
