//! Converts a checkpoint while it is downloaded: each shard is on the disk from its first to its last tensor, and the next
//! one arrives meanwhile if the disk has space for it.
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
use crate::hub::progress::PullProgress;
use crate::hub::pull::free_space;
use crate::hub::spec::ModelSpec;
use crate::io::units::format_size;
use anyhow::{Context as _, Result, bail};
use convert::safetensors::header_bytes;
use convert::{Options, Progress, ShardStore, convert_shards, dry_run};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
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

/// The download of the next shard during a conversion.
struct ShardPrefetch<'a> {
    shards: &'a StreamedShards<'a>,
    options: &'a Options,
    /// Size of the complete output in bytes.
    output: u64,
    /// The shards that the conversion has fetched; locked while one is downloaded.
    fetched: Mutex<HashSet<PathBuf>>,
    ended: AtomicBool,
}

/// The store of a conversion, which passes the next shard to the thread that prefetches.
struct ShardPipeline<'a> {
    prefetch: &'a ShardPrefetch<'a>,
    next: Sender<PathBuf>,
}

/// Draws the progress of a download that ends with the conversion.
struct PrefetchProgress<'a>(&'a Hub, &'a AtomicBool);

impl StreamedShards<'_> {
    /// Converts to the output of `options`, or resumes.
    ///
    /// # Errors
    /// The disk does not hold the output and two shards, or download or conversion fail.
    pub fn convert(&self, options: &Options) -> Result<()> {
        self.shards.iter().try_for_each(|shard| self.put_placeholder(shard))?;
        let output = dry_run(options, &mut ())?.bytes;
        self.check_space(output, options)?;
        let (fetched, ended) = (Mutex::default(), AtomicBool::new(false));
        let prefetch = ShardPrefetch { shards: self, options, output, fetched, ended };
        std::thread::scope(|scope| {
            let (next, paths) = channel::<PathBuf>();
            let (ahead, pipeline) = (&prefetch, ShardPipeline { prefetch: &prefetch, next });
            // A failure is reported by the fetch, which tries again.
            scope.spawn(move || paths.iter().for_each(|path| drop(ahead.store(&path))));
            let result = convert_shards(options, &pipeline, &mut Quiet(self.hub));
            prefetch.ended.store(true, Ordering::Relaxed);
            self.hub.bar.finish();
            result.map(|_| ()).map_err(Into::into)
        })
    }

    fn check_space(&self, output: u64, options: &Options) -> Result<()> {
        let largest = self.shards.iter().map(|shard| shard.size).max().unwrap_or(0);
        let needed = unwritten(output, options).saturating_add(2 * largest + RESERVE);
        let (dir, free) = (self.work.input.display(), free_space(&self.work.input));
        if let Some(free) = free.filter(|free| *free < needed) {
            let [needed, free] = [needed, free].map(format_size);
            bail!("{dir}: expected {needed} of free disk space for the output and two shards, found {free}");
        }
        Ok(())
    }

    fn download<T>(
        &self,
        progress: &dyn PullProgress,
        run: impl FnOnce(&Download<'_>) -> Result<T>,
    ) -> Result<T> {
        let cache = RepoCache::new(&self.hub.settings.cache, &self.spec.repo);
        run(&Download {
            client: &self.hub.client,
            cache: &cache,
            commit: &self.listing.commit,
            connections: usize::from(self.hub.connections),
            progress,
        })
    }

    /// Links the placeholder of a shard; downloads its header first if it is missing.
    fn put_placeholder(&self, shard: &RepoFile) -> Result<()> {
        let path = self.work.path("placeholders", shard)?;
        if !is_complete(&path, shard.size) {
            let name = format!("{}/{}", self.spec.repo, shard.path);
            let header = self.download(self.hub, |download| {
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

    /// Downloads a shard unless it is there; returns its path.
    fn store(&self, shard: &RepoFile, progress: &dyn PullProgress) -> Result<PathBuf> {
        let stored = self.work.path("shards", shard)?;
        if !is_complete(&stored, shard.size) {
            self.download(progress, |download| download.store_at(shard, &stored))?;
        }
        Ok(stored)
    }

    fn fetch_shard(&self, path: &Path) -> Result<()> {
        let stored = self.store(self.shard(path)?, self.hub)?;
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

impl ShardPrefetch<'_> {
    /// Downloads a shard if the disk then still holds the rest of the output and another shard.
    fn store(&self, path: &Path) -> Result<()> {
        let (shards, shard) = (self.shards, self.shards.shard(path)?);
        let needed = unwritten(self.output, self.options).saturating_add(2 * shard.size + RESERVE);
        if free_space(&shards.work.input).is_some_and(|free| free < needed) {
            return Ok(());
        }
        let fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        if fetched.contains(path) {
            return Ok(());
        }
        shards.store(shard, &PrefetchProgress(shards.hub, &self.ended)).map(drop)
    }
}

impl ShardStore for ShardPipeline<'_> {
    fn fetch(&self, path: &Path) -> Result<bool, String> {
        let mut fetched = self.prefetch.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.insert(path.to_owned());
        let result = self.prefetch.shards.fetch_shard(path);
        result.map(|()| true).map_err(|e| crate::io::errors::one_line(&e))
    }

    fn prefetch(&self, path: &Path) {
        // The thread ends after the conversion.
        let _ = self.next.send(path.to_owned());
    }

    fn release(&self, path: &Path) -> Result<(), String> {
        self.prefetch.shards.release_shard(path).map_err(|e| crate::io::errors::one_line(&e))
    }
}

impl PullProgress for PrefetchProgress<'_> {
    fn resumed(&self, bytes: u64) {
        self.0.resumed(bytes);
    }

    fn received(&self, bytes: u64) {
        self.0.received(bytes);
    }

    fn lost(&self, bytes: u64) {
        self.0.lost(bytes);
    }

    fn is_cancelled(&self) -> bool {
        self.1.load(Ordering::Relaxed)
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

/// Bytes of the output that are not written yet.
fn unwritten(output: u64, options: &Options) -> u64 {
    let path = options.output.clone().unwrap_or_default();
    let written = fs::metadata(crate::io::output::partial_path(&path)).map_or(0, |about| about.len());
    output.saturating_sub(written)
}
