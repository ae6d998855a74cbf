//! The working directory of a conversion from the hub.

use crate::hub::listing::RepoFile;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The directory of a conversion: links to its input, placeholders and shards. Locked while a process uses it.
pub struct WorkDir {
    dir: PathBuf,
    /// The directory that is converted. Its name is the model's.
    pub input: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Creates and locks the directory in `dir` for a model of this name.
    ///
    /// # Errors
    /// Another process uses it.
    pub fn open(dir: &Path, name: &str) -> Result<WorkDir> {
        let dir = dir.join("checkpoint");
        let input = dir.join(name);
        fs::create_dir_all(&input).with_context(|| input.display().to_string())?;
        let path = dir.join("lock");
        let lock = File::create(&path).with_context(|| path.display().to_string())?;
        if lock.try_lock().is_err() {
            bail!("{}: another process converts this checkpoint", dir.display());
        }
        Ok(WorkDir { dir, input, _lock: lock })
    }

    /// A path in a directory beside the input.
    pub fn path(&self, kind: &str, file: &RepoFile) -> Result<PathBuf> {
        let dir = self.dir.join(kind);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir.join(&file.path))
    }

    /// Links files of the cache in the input.
    pub fn link_all(&self, files: &[RepoFile], paths: &[PathBuf]) -> Result<()> {
        files.iter().zip(paths).try_for_each(|(file, path)| link(path, &self.input.join(&file.path)))
    }

    /// Removes the directory after a conversion.
    pub fn remove(&self) {
        // What stays costs no space.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Links a file; an existing link is replaced at once.
pub fn link(path: &Path, link: &Path) -> Result<()> {
    let path = path.canonicalize().with_context(|| path.display().to_string())?;
    let mut temporary = link.as_os_str().to_owned();
    temporary.push(".link");
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(&path, &temporary);
    #[cfg(not(unix))]
    let made = fs::hard_link(&path, &temporary).or_else(|_| fs::copy(&path, &temporary).map(|_| ()));
    made.and_then(|()| fs::rename(&temporary, link)).with_context(|| link.display().to_string())
}
