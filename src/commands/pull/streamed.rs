//! Converts a checkpoint while it is downloaded: each shard is on the disk from its first to its last tensor.
//!
//! The conversion needs all headers first. So each shard begins as a placeholder: its header and its length, without data.
//! The input links to placeholders, and to a shard while it is there. All have one modification time, by which a resumed
//! conversion recognizes its input.

use super::Hub;
use super::work_dir::{WorkDir, link};
use crate::hub::cache::RepoCache;
use crate::hub::download::Download;
use crate::hub::listing::{RepoFile, RepoListing};
use crate::hub::paths::is_complete;
use crate::hub::pull::free_space;
use crate::hub::spec::ModelSpec;
use crate::io::units::format_size;
use anyhow::{Context as _, Result, bail};
use convert::safetensors::header_bytes;
use convert::{Options, Progress, ShardStore, convert_shards, dry_run};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Disk space that stays free.
const RESERVE: u64 = 64 << 20;
/// Modification time of placeholders and shards, in seconds since 1970.
const MODIFIED: Duration = Duration::from_secs(1_000_000_000);

/// The shards of a checkpoint, and the place where they appear.
pub struct StreamedShards<'a> {
    pub hub: &'a Hub,
    pub spec: &'a ModelSpec,
    pub listing: &'a RepoListing,
    pub work: &'a WorkDir,
    pub shards: Vec<RepoFile>,
}

impl StreamedShards<'_> {
    /// Converts to the output of `options`, or resumes.
    ///
    /// # Errors
    /// The disk does not hold the output and two shards, or download or conversion fail.
    pub fn convert(&self, options: &Options) -> Result<()> {
        self.shards.iter().try_for_each(|shard| self.put_placeholder(shard))?;
        let output = dry_run(options, &mut ())?.bytes;
        self.check_space(output, options)?;
        let result = convert_shards(options, self, &mut Quiet(self.hub));
        self.hub.bar.finish();
        result?;
        Ok(())
    }

    fn check_space(&self, output: u64, options: &Options) -> Result<()> {
        let path = options.output.clone().unwrap_or_default();
        let written = fs::metadata(crate::io::output::partial_path(&path)).map_or(0, |about| about.len());
        let largest = self.shards.iter().map(|shard| shard.size).max().unwrap_or(0);
        let needed = output.saturating_sub(written).saturating_add(2 * largest + RESERVE);
        let (dir, free) = (self.work.input.display(), free_space(&self.work.input));
        if let Some(free) = free.filter(|free| *free < needed) {
            let [needed, free] = [needed, free].map(format_size);
            bail!("{dir}: expected {needed} of free disk space for the output and two shards, found {free}");
        }
        Ok(())
    }

    fn download<T>(&self, run: impl FnOnce(&Download<'_>) -> Result<T>) -> Result<T> {
        let cache = RepoCache::new(&self.hub.settings.cache, &self.spec.repo);
        run(&Download {
            client: &self.hub.client,
            cache: &cache,
            commit: &self.listing.commit,
            connections: usize::from(self.hub.connections),
            progress: self.hub,
        })
    }

    /// Links the placeholder of a shard; downloads its header first if it is missing.
    fn put_placeholder(&self, shard: &RepoFile) -> Result<()> {
        let path = self.work.path("placeholders", shard)?;
        if !is_complete(&path, shard.size) {
            let name = format!("{}/{}", self.spec.repo, shard.path);
            let header = self.download(|download| {
                let first = download.first_bytes(shard, 8)?;
                let Some(length) = first.first_chunk::<8>() else {
                    bail!("{name}: byte 0: expected eight bytes of header length, found {}", first.len());
                };
                download.first_bytes(shard, header_bytes(&name, *length, shard.size)?)
            })?;
            let written = File::create(&path).and_then(|mut file| {
                file.write_all(&header)?;
                file.set_modified(SystemTime::UNIX_EPOCH + MODIFIED)?;
                file.set_len(shard.size)?;
                file.set_modified(SystemTime::UNIX_EPOCH + MODIFIED)
            });
            written.with_context(|| path.display().to_string())?;
        }
        link(&path, &self.work.input.join(&shard.path))
    }

    fn shard(&self, path: &Path) -> Result<&RepoFile> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let shard = self.shards.iter().find(|shard| shard.path == name);
        shard.with_context(|| format!("{}: expected a shard of the checkpoint", path.display()))
    }

    fn fetch_shard(&self, path: &Path) -> Result<()> {
        let shard = self.shard(path)?;
        let stored = self.work.path("shards", shard)?;
        if !is_complete(&stored, shard.size) {
            self.download(|download| download.store_at(shard, &stored))?;
        }
        let modified = File::options().write(true).open(&stored);
        let modified = modified.and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH + MODIFIED));
        modified.with_context(|| stored.display().to_string())?;
        link(&stored, path)
    }

    fn release_shard(&self, path: &Path) -> Result<()> {
        let shard = self.shard(path)?;
        self.put_placeholder(shard)?;
        let stored = self.work.path("shards", shard)?;
        fs::remove_file(&stored).with_context(|| stored.display().to_string())
    }
}

impl ShardStore for StreamedShards<'_> {
    fn fetch(&self, path: &Path) -> Result<bool, String> {
        self.fetch_shard(path).map(|()| true).map_err(|e| crate::io::errors::one_line(&e))
    }

    fn release(&self, path: &Path) -> Result<(), String> {
        self.release_shard(path).map_err(|e| crate::io::errors::one_line(&e))
    }
}

/// Draws the bar of the download for the bytes that are not converted yet, and prints warnings.
struct Quiet<'a>(&'a Hub);

impl Progress for Quiet<'_> {
    fn start(&mut self, total: u64, done: u64) {
        self.0.bar.start(total.saturating_sub(done));
    }

    fn warn(&mut self, message: &str) {
        self.0.client.note(&format!("warning: {message}"));
    }
}
