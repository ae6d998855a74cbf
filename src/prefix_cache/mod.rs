//! Prefix cache: snapshots of model states by their tokens, so that prefill resumes from the longest cached prefix.
//!
//! A snapshot is the state of the model after a sequence of tokens: KDA states, convolution inputs, KV cache rows (shared
//! with the sequences that continue it) and the last logits. [`Store::longest_prefix`] returns the snapshot of the longest
//! prefix of a prompt. A state is used only for exactly its tokens, so a hit gives the same bits as prefill on the same
//! device (nearly the same if states are stored in 16 bits or the GPU caches some experts). Threads share a store; states
//! are copied outside its lock. With a directory, a writer thread also stores snapshots that save much prefill on disk.
//! Next: [`tree`] (in memory), [`disk`], [`namespace`] (tenants), [`miss`] (causes of cache misses),
//! [`catalog`] (names of documents).

pub mod catalog;
pub mod cause;
pub mod disk;
pub mod disk_index;
pub mod file;
pub(crate) mod fingerprint;
pub mod history;
pub mod key;
pub mod miss;
pub mod namespace;
pub mod options;
pub(crate) mod retokenize;
pub mod served;
pub mod state_dtype;
pub(crate) mod tree;
mod writer;

use disk::{Disk, StateShape};
use kernels::backend::{Backend, CacheFormat};
use models::hybrid::config::{Config, MixerKind};
use models::hybrid::state::{State, recurrent_bytes};
use namespace::{Namespace, StoreView};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tree::Tree;
use writer::SnapshotWriter;

/// The snapshot interval of long prompts, in tokens. A snapshot of the real model costs 43 MiB, as much as the KV
/// cache of 5,500 tokens, and an edit or a stop repeats half an interval on average: one or two minutes on a CPU, a
/// second on a GPU. Half the interval would double the memory to save a minute.
pub const SNAPSHOT_INTERVAL_TOKENS: usize = 8192;

/// Rows that a snapshot may not share: the backend shares rows in segments, and copies the last one when a state is
/// continued.
const UNSHARED_ROWS: u64 = 256;

/// The source of a restored state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixSource {
    /// The session's own state, in place.
    Live,
    Ram,
    Disk,
}

/// A restored prefix of a prompt.
pub struct Hit<B: Backend> {
    /// The length of the prefix in tokens.
    pub len: usize,
    /// The state after the prefix, owned by the caller.
    pub state: State<B>,
    /// The logits after the prefix. They may be empty, but not if the prefix is the whole prompt.
    pub logits: Vec<f32>,
    pub source: PrefixSource,
}

/// Bytes of a snapshot's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// KDA states S and convolution inputs of all KDA layers.
    pub recurrent: u64,
    /// The KV cache rows of a token in all MLA layers.
    pub row: u64,
    pub logits: u64,
}

impl Sizes {
    /// Computes the sizes for a model and a KV cache format.
    pub fn of<B: Backend>(b: &B, c: &Config, cache: CacheFormat) -> Sizes {
        let row = b.cache_row_bytes(&b.cache(cache, c.cache_width())) * c.count(MixerKind::Mla);
        let logits = c.vocab * size_of::<f32>();
        Sizes { recurrent: recurrent_bytes(c), row: row as u64, logits: logits as u64 }
    }
}

/// The prefix cache of one model.
pub struct Store<B: Backend> {
    sizes: Sizes,
    budget: u64,
    ram: Mutex<Ram<B>>,
    disk: Option<(Arc<Disk>, SnapshotWriter<B>)>,
}

struct Ram<B: Backend> {
    /// A tree per namespace; empty trees are removed.
    trees: HashMap<Namespace, Tree<Entry<B>>>,
    /// A logical clock of uses, for LRU eviction.
    clock: u64,
}

struct Entry<B: Backend> {
    snapshot: Arc<Snapshot<B>>,
    /// The clock at the last use.
    used: u64,
}

struct Snapshot<B: Backend> {
    state: State<B>,
    logits: Vec<f32>,
}

enum Insertion<B: Backend> {
    Added(Arc<Snapshot<B>>),
    /// The snapshot was already cached.
    Present(Arc<Snapshot<B>>),
    Rejected,
}

impl<B: Backend> Store<B> {
    /// Creates a prefix cache in memory.
    pub fn new(sizes: Sizes, ram_bytes: u64) -> Store<B> {
        let ram = Mutex::new(Ram { trees: HashMap::new(), clock: 0 });
        Store { sizes, budget: ram_bytes, ram, disk: None }
    }

    /// Creates a prefix cache in memory and in a directory; lookups search both.
    ///
    /// # Errors
    /// The writer thread cannot be started.
    pub fn with_disk(b: &Arc<B>, shape: StateShape, ram_bytes: u64, disk: Disk) -> std::io::Result<Store<B>> {
        let disk = Arc::new(disk);
        let writer = SnapshotWriter::new(b.clone(), disk.clone())?;
        Ok(Store { disk: Some((disk, writer)), ..Store::new(shape.sizes, ram_bytes) })
    }

    /// Returns the view of a namespace; the methods of [`Store`] use the shared one.
    pub fn within(&self, namespace: Namespace) -> StoreView<'_, B> {
        StoreView { store: self, namespace }
    }

    /// Finds the snapshot of the longest prefix of `prompt` with more than `least` tokens. A snapshot of the whole
    /// prompt is used only if it has logits, which decode needs next.
    pub fn longest_prefix(&self, b: &B, prompt: &[u32], least: Option<usize>) -> Option<Hit<B>> {
        self.within(Namespace::SHARED).longest_prefix(b, prompt, least)
    }

    /// Returns the snapshot whose tokens advance a matcher farthest, among those at positions where `may_stop` holds.
    /// `read` takes the matcher's position (initially 0) and the next tokens, and returns the position after them, or
    /// `None` if they do not match.
    pub fn farthest(
        &self,
        read: impl Fn(usize, &[u32]) -> Option<usize>,
        may_stop: impl Fn(usize) -> bool,
    ) -> Option<(usize, Vec<u32>)> {
        self.within(Namespace::SHARED).farthest(read, may_stop)
    }

    /// Returns whether the memory budget holds at least one snapshot.
    pub fn fits_in_memory(&self) -> bool {
        self.sizes.recurrent <= self.budget
    }

    /// Returns whether inserted snapshots are stored in memory or on disk. If not, callers need not read the logits.
    pub fn accepts(&self) -> bool {
        self.fits_in_memory() || self.disk.is_some()
    }

    /// Returns whether a snapshot of this many tokens is written to disk.
    pub fn keeps_on_disk(&self, tokens: usize) -> bool {
        tokens >= disk::MIN_DISK_TOKENS && self.disk.is_some()
    }

    /// Inserts the state after `tokens`; `logits` may be empty. KV cache rows are shared, the rest is copied. Evicts
    /// the least recently used snapshots. The snapshot is also written to disk if it saves the prefill of
    /// [`disk::MIN_DISK_TOKENS`] tokens, or if `always` is set.
    pub fn insert(&self, b: &B, tokens: &[u32], state: &State<B>, logits: &[f32], always: bool) {
        self.within(Namespace::SHARED).insert(b, tokens, state, logits, always);
    }

    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Waits until all pending snapshots are on disk.
    pub fn flush(&self) {
        self.disk.iter().for_each(|(_, writer)| writer.flush());
    }

    /// Returns an upper estimate of the bytes of the snapshots in memory. Shared rows count once; equal prefixes that
    /// were computed separately are counted as shared, too.
    pub fn ram_bytes(&self) -> u64 {
        self.bytes_of(&self.lock())
    }

    /// The number of snapshots in memory.
    pub fn ram_snapshots(&self) -> usize {
        self.lock().trees.values().map(|tree| tree.values().count()).sum()
    }

    fn bytes_of(&self, ram: &Ram<B>) -> u64 {
        let own = self.sizes.recurrent + self.sizes.logits + UNSHARED_ROWS * self.sizes.row;
        let per_token = self.sizes.row + size_of::<u32>() as u64;
        let of_tree = |tree: &Tree<_>| tree.values().count() as u64 * own + tree.tokens() as u64 * per_token;
        ram.trees.values().map(of_tree).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Ram<B>> {
        // No code under the lock panics during a change.
        self.ram.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> Ram<B> {
    fn longest_prefix(
        &mut self,
        namespace: Namespace,
        prompt: &[u32],
        least: Option<usize>,
    ) -> Option<(usize, Arc<Snapshot<B>>)> {
        let usable = |(len, _, entry): &&(usize, tree::NodeId, &Entry<B>)| {
            *len < prompt.len() || !entry.snapshot.logits.is_empty()
        };
        let tree = self.trees.get_mut(&namespace)?;
        let prefixes = tree.prefixes(prompt);
        let (len, place, _) = *prefixes.iter().rev().find(usable)?;
        if least.is_some_and(|least| len <= least) {
            return None;
        }
        self.clock += 1;
        let entry = tree.get_mut(place)?;
        entry.used = self.clock;
        Some((len, entry.snapshot.clone()))
    }

    /// Returns the snapshot of exactly these tokens, with logits if `logits` is set, and marks it as used.
    fn get(&mut self, namespace: Namespace, tokens: &[u32], logits: bool) -> Option<Arc<Snapshot<B>>> {
        let tree = self.trees.get_mut(&namespace)?;
        let (len, place, _) = tree.prefixes(tokens).last().copied()?;
        self.clock += 1;
        let entry = tree.get_mut(place)?;
        let same = len == tokens.len() && (!logits || !entry.snapshot.logits.is_empty());
        same.then(|| {
            entry.used = self.clock;
            entry.snapshot.clone()
        })
    }

    /// Inserts a snapshot and returns the evicted ones.
    fn insert(
        &mut self,
        (namespace, tokens): (Namespace, &[u32]),
        snapshot: Arc<Snapshot<B>>,
        full: impl Fn(&Self) -> bool,
    ) -> Vec<Entry<B>> {
        self.clock += 1;
        let tree = self.trees.entry(namespace).or_default();
        tree.insert(tokens, Entry { snapshot, used: self.clock });
        let mut evicted = Vec::new();
        while full(self) {
            let all = self.trees.iter().flat_map(|(namespace, tree)| {
                tree.values().map(|(place, entry)| (entry.used, *namespace, place))
            });
            let Some((_, namespace, place)) = all.min_by_key(|(used, ..)| *used) else { break };
            let Some(tree) = self.trees.get_mut(&namespace) else { break };
            evicted.extend(tree.remove(place));
            if tree.values().next().is_none() {
                self.trees.remove(&namespace);
            }
        }
        evicted
    }
}
