//! Options of the prefix cache, which open its [`Store`].

use super::Store;
use super::disk::{Disk, StateShape};
use super::disk_index::Folder;
use super::fingerprint::Fingerprint;
use super::key::CacheKey;
use super::state_dtype::StateType;
use crate::io::log::Log;
use crate::io::{host_memory, user_dirs};
use anyhow::{Context as _, Result};
use kernels::backend::Backend;
use models::gguf::read::Gguf;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The options of the prefix cache. The default is in memory and on disk.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Maximum bytes in memory; `None` for a quarter of the free memory, 0 for none.
    pub cache_ram: Option<u64>,
    /// The directory; `None` for `kimi` in `$XDG_CACHE_HOME` or `~/.cache`.
    pub cache_dir: Option<PathBuf>,
    /// Maximum bytes on disk, at most half of the free space; `None` for 20 GiB.
    pub cache_size: Option<u64>,
    /// Data type of states on disk.
    pub cache_state: StateType,
    /// Disables the prefix cache on disk.
    pub no_cache: bool,
    /// The ids that `--chat-template` emits before a reply, part of the cache key.
    pub reply_prefix_ids: Option<Vec<u32>>,
}

/// Holds a million tokens of the real model, 13.3 GiB (7.9 GiB of rows and 128 snapshots of 43 MiB), and more.
const DISK_BYTES: u64 = 20 << 30;

impl StoreOptions {
    /// Disables the prefix cache, for measurements.
    pub fn nothing() -> StoreOptions {
        StoreOptions { cache_ram: Some(0), no_cache: true, ..Default::default() }
    }

    /// Selects a prefix cache in memory only.
    pub fn in_memory() -> StoreOptions {
        StoreOptions { no_cache: true, ..Default::default() }
    }

    /// Opens the prefix cache of a model. `log` receives damage and failures, one line each.
    ///
    /// # Errors
    /// The directory cannot be created, or the writer thread cannot be started.
    pub fn open<B: Backend>(&self, b: &Arc<B>, file: &Gguf, shape: StateShape, log: Log) -> Result<Store<B>> {
        let quarter = || host_memory::available(Path::new("/")).map_or(1 << 30, |free| free / 4);
        let ram = self.cache_ram.unwrap_or_else(quarter);
        let budget = self.cache_size.unwrap_or(DISK_BYTES);
        let Some(dir) = self.dir().filter(|_| !self.no_cache && budget > 0) else {
            return Ok(Store::new(shape.sizes, ram));
        };
        let folder = Folder { dir, budget };
        let dir = folder.dir.display();
        match folder.create() {
            Err(e) if self.cache_dir.is_some() => {
                return Err(e).with_context(|| format!("--cache-dir: {dir}"));
            }
            // The default directory is optional, so a read-only home is no error.
            Err(e) => {
                log(&format!("cannot write {dir}: {e}; the prefix cache stays in memory"));
                return Ok(Store::new(shape.sizes, ram));
            }
            Ok(()) => {}
        }
        folder.warning().iter().for_each(|line| log(line));
        let fingerprint = Fingerprint::new(file, &folder.dir);
        let key = CacheKey::new::<B>(fingerprint, shape.cache, shape.sizes, self.cache_state);
        let key = key.with_reply_prefix(self.reply_prefix_ids.as_deref());
        let disk = Disk::new(folder, key, shape.clone(), self.cache_state, log);
        Ok(Store::with_disk(b, shape, ram, disk)?)
    }

    /// Returns the cache directory; `None` without a home directory.
    pub fn dir(&self) -> Option<PathBuf> {
        self.cache_dir.clone().or_else(user_dirs::cache)
    }
}
