//! Snapshots: states kept by their tokens, so that what was read once is not read again.
//!
//! A snapshot is the state after some tokens: KDA's matrices and tails, the latent rows (shared with all that
//! continues from it), the last logits. [`Store::longest_prefix`] finds the one that covers most of a prompt. A state is
//! only ever used for exactly the tokens it was made from, so a hit gives the bits that reading again on the same device
//! would (near ones, where states are asked to be kept in 16 bits, or some experts are on a GPU by turns).
//! Threads share a store; states are copied outside of its lock. With a directory, snapshots that save much are
//! also written there, by a thread of their own. Next: [`tree`] (in memory), [`disk`], [`namespace`] (tenants).

pub mod disk;
pub mod disk_index;
pub mod file;
pub(crate) mod fingerprint;
pub mod key;
pub mod namespace;
pub mod options;
pub(crate) mod retokenize;
pub mod state_dtype;
pub(crate) mod tree;
mod writer;

use disk::{Disk, Shape};
use kernels::backend::{Backend, CacheFormat};
use models::kimi_linear::config::{Config, MixerKind};
use models::kimi_linear::state::{State, recurrent_bytes};
use namespace::{Namespace, View};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tree::Tree;
use writer::Writer;

/// A waypoint is kept every so many tokens of a long prompt. On the real model it costs 43 MiB, as much as the
/// rows of 5,500 tokens, and an edit or a stop re-reads half of this on average: one or two minutes at the speed of
/// a CPU, a second on a GPU. Half as many tokens would take twice the memory for the sake of a minute.
pub const CHECKPOINT_INTERVAL_TOKENS: usize = 8192;

/// Rows a snapshot may hold for itself: the backend shares rows in segments, and the last one is copied when a
/// state is carried on.
const UNSHARED_ROWS: u64 = 256;

/// Where a state came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The sequence's own state.
    Live,
    /// A snapshot in memory.
    Ram,
    /// A snapshot on disk.
    Disk,
}

/// A state to go on from.
pub struct Hit<B: Backend> {
    /// Tokens of the prompt that it has seen.
    pub len: usize,
    /// The state after them, the caller's own.
    pub state: State<B>,
    /// The logits after them; empty where they were not computed, never when `len` is the whole prompt.
    pub logits: Vec<f32>,
    /// Where it was.
    pub source: Source,
}

/// Bytes of a snapshot's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// S and the tails of all KDA layers.
    pub recurrent: u64,
    /// A token's rows in all MLA layers.
    pub row: u64,
    /// The logits.
    pub logits: u64,
}

impl Sizes {
    /// Of a model's states, with caches in `cache`.
    pub fn of<B: Backend>(b: &B, c: &Config, cache: CacheFormat) -> Sizes {
        let row = b.cache_row_bytes(&b.cache(cache, c.cache_width())) * c.count(MixerKind::Mla);
        let logits = c.vocab * size_of::<f32>();
        Sizes { recurrent: recurrent_bytes(c), row: row as u64, logits: logits as u64 }
    }
}

/// Snapshots of one model.
pub struct Store<B: Backend> {
    sizes: Sizes,
    budget: u64,
    ram: Mutex<Ram<B>>,
    disk: Option<(Arc<Disk>, Writer<B>)>,
}

struct Ram<B: Backend> {
    /// None is empty.
    trees: HashMap<Namespace, Tree<Entry<B>>>,
    /// Counts uses.
    clock: u64,
}

struct Entry<B: Backend> {
    snapshot: Arc<Snapshot<B>>,
    /// The clock at its last use.
    used: u64,
}

struct Snapshot<B: Backend> {
    state: State<B>,
    logits: Vec<f32>,
}

enum Insertion<B: Backend> {
    Added(Arc<Snapshot<B>>),
    /// It was there.
    Present(Arc<Snapshot<B>>),
    Rejected,
}

impl<B: Backend> Store<B> {
    /// A store in memory.
    pub fn new(sizes: Sizes, ram_bytes: u64) -> Store<B> {
        let ram = Mutex::new(Ram { trees: HashMap::new(), clock: 0 });
        Store { sizes, budget: ram_bytes, ram, disk: None }
    }

    /// A store in memory and in a directory, which are both searched.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn with_disk(b: &Arc<B>, shape: Shape, ram_bytes: u64, disk: Disk) -> std::io::Result<Store<B>> {
        let disk = Arc::new(disk);
        let writer = Writer::new(b.clone(), disk.clone())?;
        Ok(Store { disk: Some((disk, writer)), ..Store::new(shape.sizes, ram_bytes) })
    }

    /// What is kept in a namespace; the methods here are of the shared one.
    pub fn within(&self, namespace: Namespace) -> View<'_, B> {
        View { store: self, namespace }
    }

    /// The snapshot that covers most of `prompt`, if it covers more than `least` tokens. Of the whole prompt only
    /// one with logits will do: they are what comes next.
    pub fn longest_prefix(&self, b: &B, prompt: &[u32], least: Option<usize>) -> Option<Hit<B>> {
        self.within(Namespace::SHARED).longest_prefix(b, prompt, least)
    }

    /// The tokens of the snapshot at which a reader comes farthest, of those where it may stop. `read` takes its
    /// position (0 at the beginning) and more tokens, and says its position after them.
    pub fn farthest(
        &self,
        read: impl Fn(usize, &[u32]) -> Option<usize>,
        may_stop: impl Fn(usize) -> bool,
    ) -> Option<(usize, Vec<u32>)> {
        self.within(Namespace::SHARED).farthest(read, may_stop)
    }

    /// Whether anything that is inserted stays.
    pub fn fits_in_memory(&self) -> bool {
        self.sizes.recurrent <= self.budget
    }

    /// Whether anything that is inserted goes anywhere: where not, its logits need not be read.
    pub fn accepts(&self) -> bool {
        self.fits_in_memory() || self.disk.is_some()
    }

    /// Keeps the state after `tokens`. `logits` may be empty. The state's rows are shared, the rest is copied; what
    /// was used least recently makes room. It goes to disk if that saves reading [`disk::WORTH_TOKENS`], or `always`.
    pub fn insert(&self, b: &B, tokens: &[u32], state: &State<B>, logits: &[f32], always: bool) {
        self.within(Namespace::SHARED).insert(b, tokens, state, logits, always);
    }

    /// What a snapshot takes.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Waits until everything that goes to disk is there.
    pub fn flush(&self) {
        self.disk.iter().for_each(|(_, writer)| writer.flush());
    }

    /// Bytes that the snapshots in memory take at most. Rows count once for all that share them, which they do when
    /// one was continued from the other; states of the same tokens that came about apart are counted as shared too.
    pub fn ram_bytes(&self) -> u64 {
        self.bytes_of(&self.lock())
    }

    /// Snapshots in memory.
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
        // Nothing under the lock panics half-way through a change.
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
        let usable = |(len, _, entry): &&(usize, tree::Place, &Entry<B>)| {
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

    /// The snapshot of these very tokens (with logits, where they matter); it counts as used.
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

    /// Returns what had to go.
    fn insert(
        &mut self,
        (namespace, tokens): (Namespace, &[u32]),
        snapshot: Arc<Snapshot<B>>,
        full: impl Fn(&Self) -> bool,
    ) -> Vec<Entry<B>> {
        self.clock += 1;
        let tree = self.trees.entry(namespace).or_default();
        tree.insert(tokens, Entry { snapshot, used: self.clock });
        let mut dropped = Vec::new();
        while full(self) {
            let all = self.trees.iter().flat_map(|(namespace, tree)| {
                tree.values().map(|(place, entry)| (entry.used, *namespace, place))
            });
            let Some((_, namespace, place)) = all.min_by_key(|(used, ..)| *used) else { break };
            let Some(tree) = self.trees.get_mut(&namespace) else { break };
            dropped.extend(tree.remove(place));
            if tree.values().next().is_none() {
                self.trees.remove(&namespace);
            }
        }
        dropped
    }
}
