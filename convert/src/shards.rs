//! Fetches and releases the files of an input during a conversion, for a disk that does not hold input and output.
//!
//! The caller puts placeholders in place of the shards: their header and their length, without data. [`ShardUse`] asks a
//! [`ShardStore`] for each file before its first read and releases it after the last one.

use crate::chunks::Chunk;
use crate::error::{Error, Result};
use crate::plan::scale_name;
use crate::source::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Provides complete files in place of placeholders.
pub trait ShardStore: Sync {
    /// Puts the complete file in place of the one at `path`, with the same length and modification time. Returns whether
    /// it did; otherwise the file was complete.
    ///
    /// # Errors
    /// The reason in one line; the conversion can be resumed.
    fn fetch(&self, path: &Path) -> Result<bool, String>;

    /// Called after a fetch with the file that is fetched next, so that its download can begin.
    fn prefetch(&self, _path: &Path) {}

    /// Called after the last read of a file.
    ///
    /// # Errors
    /// As [`ShardStore::fetch`].
    fn release(&self, path: &Path) -> Result<(), String>;
}

/// The files of the input are complete.
impl ShardStore for () {
    fn fetch(&self, _: &Path) -> Result<bool, String> {
        Ok(false)
    }

    fn release(&self, _: &Path) -> Result<(), String> {
        Ok(())
    }
}

/// The files that the chunks of a conversion read, in order.
pub struct ShardUse<'a> {
    source: &'a Source,
    store: &'a dyn ShardStore,
    /// The last chunk that reads each file.
    last_use: BTreeMap<usize, usize>,
    /// The files in the order of their first use.
    order: Vec<usize>,
    fetched: BTreeSet<usize>,
}

impl<'a> ShardUse<'a> {
    /// Prepares for these chunks in this order.
    pub fn new(source: &'a Source, chunks: &[Chunk], store: &'a dyn ShardStore) -> ShardUse<'a> {
        let (mut last_use, mut order) = (BTreeMap::new(), Vec::new());
        for (at, chunk) in chunks.iter().enumerate() {
            files(source, chunk).for_each(|file| {
                if last_use.insert(file, at).is_none() {
                    order.push(file);
                }
            });
        }
        ShardUse { source, store, last_use, order, fetched: BTreeSet::new() }
    }

    /// Fetches the files of a chunk that are not there yet.
    ///
    /// # Errors
    /// A file cannot be fetched or opened.
    pub fn before(&mut self, chunk: &Chunk) -> Result<()> {
        for file in files(self.source, chunk) {
            if !self.fetched.insert(file) {
                continue;
            }
            if self.store.fetch(&self.source.files[file].path).map_err(Error::Shard)? {
                self.source.reopen(file)?;
            }
            if let Some(next) = self.order.iter().find(|file| !self.fetched.contains(file)) {
                self.store.prefetch(&self.source.files[*next].path);
            }
        }
        Ok(())
    }

    /// Releases the files that no chunk after number `at` reads.
    ///
    /// # Errors
    /// A file cannot be released.
    pub fn after(&mut self, at: usize, chunk: &Chunk) -> Result<()> {
        for file in files(self.source, chunk) {
            if self.last_use.get(&file) == Some(&at) {
                self.store.release(&self.source.files[file].path).map_err(Error::Shard)?;
            }
        }
        Ok(())
    }
}

/// The files of a chunk's weights and of its scales.
fn files<'s>(source: &'s Source, chunk: &Chunk) -> impl Iterator<Item = usize> + use<'s> {
    let tensor = &source.tensors[&chunk.part.source];
    let scales = scale_name(chunk.part, tensor, source).ok().flatten().map(|name| source.tensors[name].file);
    let scales = scales.filter(|file| *file != tensor.file);
    [Some(tensor.file), scales].into_iter().flatten()
}
