//! Paths and states of blobs, which the cache and the download share.

use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The name of a partial blob.
pub fn partial_path(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(".incomplete");
    name.into()
}

/// Whether a blob has its full size.
pub fn is_complete(blob: &Path, size: u64) -> bool {
    fs::metadata(blob).is_ok_and(|about| about.is_file() && about.len() == size)
}

/// Creates the directory of a path.
pub fn create_parent(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())
}
