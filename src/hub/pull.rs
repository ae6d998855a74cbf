//! Downloads files of a repository into the cache: checks the disk, stores each file, and records the branch.

use super::cache::RepoCache;
use super::client::HubClient;
use super::download::Download;
use super::listing::{RepoFile, RepoListing};
use super::paths::{is_complete, partial_path};
use super::progress::PullProgress;
use super::settings::HubSettings;
use super::spec::ModelSpec;
use crate::io::units::format_size;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

/// Disk space that a download leaves free.
const RESERVE: u64 = 64 << 20;

/// Files of a repository to download.
pub struct Pull<'a> {
    pub client: &'a HubClient,
    pub settings: &'a HubSettings,
    pub spec: &'a ModelSpec,
    pub listing: &'a RepoListing,
    /// The number of parallel connections per file.
    pub connections: usize,
    pub progress: &'a dyn PullProgress,
}

impl Pull<'_> {
    /// Downloads the files that the cache lacks. Returns their paths in the snapshot, in the same order.
    ///
    /// # Errors
    /// The disk lacks space for all of them, or one fails.
    pub fn run(&self, files: &[RepoFile]) -> Result<Vec<PathBuf>> {
        let cache = RepoCache::new(&self.settings.cache, &self.spec.repo);
        check_space(&self.settings.cache, missing_bytes(&cache, files))?;
        let download = Download {
            client: self.client,
            cache: &cache,
            commit: &self.listing.commit,
            connections: self.connections,
            progress: self.progress,
        };
        let paths = files.iter().map(|file| download.store(file)).collect::<Result<_>>()?;
        cache.set_ref(&self.spec.revision, &self.listing.commit)?;
        Ok(paths)
    }
}

/// Bytes of files that the cache lacks; partial files count. Files without a SHA-256 are small and count in full.
pub fn missing_bytes(cache: &RepoCache, files: &[RepoFile]) -> u64 {
    let missing = |file: &RepoFile| match &file.sha256 {
        Some(sum) if is_complete(&cache.blob(sum), file.size) => 0,
        Some(sum) => {
            let partial = std::fs::metadata(partial_path(&cache.blob(sum)));
            file.size.saturating_sub(partial.map_or(0, |about| about.len()))
        }
        None => file.size,
    };
    files.iter().map(missing).fold(0, u64::saturating_add)
}

/// Free bytes of the disk of a directory, which may not exist yet.
pub fn free_space(dir: &Path) -> Option<u64> {
    dir.ancestors().find_map(|dir| {
        fs4::available_space(if dir.as_os_str().is_empty() { Path::new(".") } else { dir }).ok()
    })
}

fn check_space(dir: &Path, bytes: u64) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let needed = if bytes == 0 { 0 } else { bytes + RESERVE };
    match free_space(dir).filter(|free| *free < needed) {
        Some(free) => bail!(
            "{}: expected {} of free disk space, found {}; set HF_HUB_CACHE to a directory on a larger disk",
            dir.display(),
            format_size(needed),
            format_size(free)
        ),
        None => Ok(()),
    }
}
