//! The prefix cache on disk: finds the longest cached prefix of a prompt, restores it, and writes missing snapshots.
//!
//! Rows are written once, in a chain of files; a state costs 43 MiB (of the real model) and the rows since the previous
//! state. Only the tokens of files with checked headers are cached in memory, by the ids in the file names. Next:
//! [`super::disk_index`] (names, eviction), [`super::file`] (format).

use super::catalog::{self, NamedPrefix};
use super::cause::MissCause;
use super::disk_index::{Folder, Headroom, Listing};
use super::file::{self, FileHeader, Id, check, id_of, same};
use super::key::CacheKey;
use super::namespace::Namespace;
use super::state_dtype::StateType;
use super::{Hit, PrefixSource, SNAPSHOT_INTERVAL_TOKENS, Sizes, Snapshot};
use crate::io::log::Log;
use crate::io::private_file;
use kernels::backend::{Backend, CacheFormat};
use models::hybrid::config::Config;
use models::hybrid::state::State;
use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

/// A state is written if it saves the prefill of this many tokens, which takes seconds on a CPU. Each state costs 43
/// MiB of disk.
pub const MIN_DISK_TOKENS: usize = 256;

/// The maximum number of files of other keys that a lookup reads.
const MAX_OTHER_FILES: usize = 256;

/// The dimensions of a model's states.
#[derive(Clone)]
pub struct StateShape {
    pub config: Config,
    /// The data type of the KV cache.
    pub cache: CacheFormat,
    pub sizes: Sizes,
}

/// The prefix cache of one model in a directory.
pub struct Disk {
    folder: Folder,
    key: CacheKey,
    shape: StateShape,
    state: StateType,
    /// The tokens of rows files whose header was checked.
    tokens: Mutex<HashMap<Id, Arc<[u32]>>>,
    /// Receives damage and failures, one line each.
    log: Log,
    reported: Reported,
    /// Set after a write error; stops all writing.
    stopped: AtomicBool,
}

/// Conditions that are logged only once.
#[derive(Default)]
struct Reported {
    full: AtomicBool,
    foreign: AtomicBool,
}

/// One rows file in the chain of a state.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: Id,
    parent: Id,
    before: usize,
    len: usize,
}

/// The start of a namespace's chains: its key, and the parent id of its first rows.
#[derive(Clone, Copy, Debug)]
struct Root {
    key: Id,
    parent: Id,
}

/// A file and its error.
type FileFailure = (PathBuf, Error);

impl Disk {
    /// Opens the snapshots under `key` in a directory, which need not exist.
    pub fn new(folder: Folder, key: CacheKey, shape: StateShape, state: StateType, log: Log) -> Disk {
        let (tokens, reported, stopped) = (Mutex::default(), Reported::default(), AtomicBool::new(false));
        Disk { folder, key, shape, state, tokens, log, reported, stopped }
    }

    /// Restores the longest cached prefix of `prompt` with more than `least` tokens; a state of the whole prompt
    /// needs logits.
    pub fn longest_prefix<B: Backend>(
        &self,
        b: &B,
        namespace: Namespace,
        prompt: &[u32],
        least: Option<usize>,
    ) -> Option<Hit<B>> {
        let listing = self.list_for_lookup(prompt.len() >= MIN_DISK_TOKENS)?;
        let root = self.root(namespace);
        let mut chains = self.prefixes(&listing, root, prompt);
        chains.sort_by_key(|chain| std::cmp::Reverse(end(chain)));
        for chain in chains {
            let (len, state) = (end(&chain), chain.last().and_then(|p| listing.states.get(&p.id)));
            let without_logits = file::OVERHEAD + self.recurrent();
            let usable = state.is_some_and(|state| len < prompt.len() || state.bytes != without_logits);
            if !usable || least.is_some_and(|least| len <= least) {
                continue;
            }
            match self.load(b, root.key, prompt, &chain) {
                Ok(hit) => {
                    chain.last().into_iter().for_each(|piece| self.folder.touch(piece.id));
                    return Some(hit);
                }
                Err((path, e)) => self.failed(&path, &e),
            }
        }
        None
    }

    /// Records the names of the documents that a prefix consists of.
    pub fn name_prefix(&self, namespace: Namespace, names: &[String], model: &str, tokens: &[u32]) {
        let prefix = NamedPrefix::new(self.root(namespace).parent, names, model, tokens);
        if let Err(e) = prefix.save(&self.folder) {
            (self.log)(&format!("{}: {e}", self.folder.dir.display()));
        }
    }

    /// Removes all states after a part of these tokens, or after a continuation of them.
    pub fn forget(&self, namespace: Namespace, tokens: &[u32]) {
        // Without a key nothing was written.
        if self.list_for_lookup(false).is_none() {
            return;
        }
        if let Err(e) = catalog::forget_tokens(&self.folder, self.root(namespace).parent, tokens) {
            (self.log)(&format!("{}: {e}", self.folder.dir.display()));
        }
    }

    /// Returns the length of the longest prefix of `prompt` that has a state.
    pub fn cached_len(&self, namespace: Namespace, prompt: &[u32]) -> usize {
        let Some(listing) = self.list_for_lookup(false) else { return 0 };
        let chains = self.prefixes(&listing, self.root(namespace), prompt).into_iter();
        let states = chains.filter(|chain| chain.last().is_some_and(|p| listing.states.contains_key(&p.id)));
        states.map(|chain| end(&chain)).max().unwrap_or(0)
    }

    /// Writes a state and its missing rows if it saves [`MIN_DISK_TOKENS`] tokens, or if `always` is set.
    pub(super) fn save<B: Backend>(
        &self,
        b: &B,
        sequence: (Namespace, &[u32]),
        snapshot: &Snapshot<B>,
        always: bool,
    ) {
        // A sequence that is too short in any case does not wait for the key.
        let worth = always || sequence.1.len() >= MIN_DISK_TOKENS;
        if !worth || self.stopped.load(Ordering::Relaxed) {
            return;
        }
        if let Err((path, e)) = self.try_save(b, sequence, snapshot, always) {
            match e.kind() {
                // A file was removed or locked by another process, or is damaged; the next write may succeed.
                ErrorKind::NotFound
                | ErrorKind::TimedOut
                | ErrorKind::InvalidData
                | ErrorKind::UnexpectedEof => {
                    self.failed(&path, &e);
                }
                _ => {
                    self.stopped.store(true, Ordering::Relaxed);
                    let need = mib(self.worst(sequence.1.len()));
                    let (path, free) = (path.display(), mib(self.folder.free()));
                    let line =
                        format!("{path}: {e}: {need} needed, {free} free; no more snapshots are written");
                    (self.log)(&line);
                }
            }
        }
    }

    fn try_save<B: Backend>(
        &self,
        b: &B,
        (namespace, tokens): (Namespace, &[u32]),
        snapshot: &Snapshot<B>,
        always: bool,
    ) -> std::result::Result<(), FileFailure> {
        let dir = &self.folder.dir;
        let _lock = self.folder.lock().map_err(|e| (dir.clone(), e))?;
        let listing = self.list().map_err(|e| (dir.clone(), e))?;
        let root = self.root(namespace);
        let chains = self.prefixes(&listing, root, tokens);
        let state = |chain: &&Vec<Piece>| chain.last().and_then(|p| listing.states.get(&p.id));
        let nearest = chains.iter().filter(|chain| state(chain).is_some()).map(|c| end(c)).max();
        let there = chains.iter().filter(|c| end(c) == tokens.len()).find_map(|chain| state(&chain));
        let sizes = self.shape.sizes;
        let body = self.recurrent() + size_of_val(&*snapshot.logits) as u64;
        let complete = there.is_some_and(|state| state.bytes >= file::OVERHEAD + body);
        if complete || (!always && tokens.len() - nearest.unwrap_or(0) < MIN_DISK_TOKENS) {
            return Ok(());
        }
        let mut chain = chains.into_iter().max_by_key(|chain| end(chain)).unwrap_or_default();
        let new = pieces(root.parent, tokens, &chain);
        let rows: u64 = new.iter().map(|p| p.len as u64 * (sizes.row + 4) + file::OVERHEAD).sum();
        let (need, on) = (rows + body + file::OVERHEAD, chain.last().map(|p| p.id));
        let headroom = self.folder.make_room(&listing, need, on).map_err(|e| (dir.clone(), e))?;
        if headroom != Headroom::Enough {
            if !self.reported.full.swap(true, Ordering::Relaxed) {
                let why = match headroom {
                    Headroom::Disk(free) => format!("{} free, of which half may be used", mib(free)),
                    Headroom::Budget(bytes) => format!("--cache-size is {}", mib(bytes)),
                    Headroom::Enough => String::new(),
                };
                (self.log)(&format!("{}: no space for a snapshot of {}: {why}", dir.display(), mib(need)));
            }
            return Ok(());
        }
        for piece in new {
            let path = self.rows_path(piece);
            let mut body = Vec::with_capacity(piece.len * sizes.row as usize);
            snapshot.state.export_rows(b, piece.before..piece.before + piece.len, &mut body);
            let tokens = tokens[piece.before..][..piece.len].to_vec();
            file::write(&path, &header(root.key, piece, tokens), &body).map_err(|e| (path, e))?;
            chain.push(piece);
        }
        let mut exact = Vec::with_capacity(sizes.recurrent as usize);
        snapshot.state.export_recurrent(b, &mut exact);
        let mut body = self.state.pack(exact);
        body.extend(snapshot.logits.iter().flat_map(|x| x.to_le_bytes()));
        let (path, header) = self.state_file(root.key, &chain);
        file::write(&path, &header, &body).map_err(|e| (path, e))
    }

    /// Restores the rows of a chain and the state after them.
    fn load<B: Backend>(
        &self,
        b: &B,
        key: Id,
        prompt: &[u32],
        chain: &[Piece],
    ) -> std::result::Result<Hit<B>, FileFailure> {
        let StateShape { config, cache, sizes } = &self.shape;
        let mut state = State::new(b, config, *cache);
        let read = |piece: &Piece, body: &mut Vec<u8>| {
            let path = self.rows_path(*piece);
            let tokens = prompt[piece.before..][..piece.len].to_vec();
            let fit = [piece.len as u64 * sizes.row];
            file::read(&path, &header(key, *piece, tokens), &fit, body).map_err(|e| (path, e))
        };
        // A thread reads and checks files while this one copies; first-touched memory is slow.
        let mut body = std::thread::scope(|scope| {
            let (full, rows) = sync_channel(1);
            let (back, empty) = sync_channel(2);
            (0..2).for_each(|_| drop(back.send(Vec::new())));
            scope.spawn(move || {
                for (piece, mut body) in chain.iter().zip(empty) {
                    let done = read(piece, &mut body).map(|()| body);
                    // The receiver is dropped after a failure.
                    if full.send(done).is_err() {
                        return;
                    }
                }
            });
            for (piece, body) in chain.iter().zip(rows) {
                let body = body?;
                state.import_rows(b, piece.len, &body);
                drop(back.send(body));
            }
            Ok::<_, FileFailure>(Vec::new())
        })?;
        let (path, header) = self.state_file(key, chain);
        let fit = [self.recurrent() + sizes.logits, self.recurrent()];
        file::read(&path, &header, &fit, &mut body).map_err(|e| (path, e))?;
        let (recurrent, logits) = body.split_at(self.recurrent() as usize);
        state.import_recurrent(b, config, &self.state.unpack(recurrent));
        let logits = logits.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        Ok(Hit { len: end(chain), state, logits, source: PrefixSource::Disk })
    }

    /// Does [`super::Store::farthest`] for the states on disk.
    pub fn farthest(
        &self,
        namespace: Namespace,
        read: impl Fn(usize, &[u32]) -> Option<usize>,
        may_stop: impl Fn(usize) -> bool,
    ) -> Option<(usize, Vec<u32>)> {
        let listing = self.list_for_lookup(false)?;
        let root = self.root(namespace);
        let chains = self.chains(&listing, root, read).into_iter();
        let states = chains.filter(|(at, chain)| {
            may_stop(*at) && chain.last().is_some_and(|p| listing.states.contains_key(&p.id))
        });
        let (at, chain) = states.max_by_key(|(at, _)| *at)?;
        let tokens =
            chain.into_iter().map(|piece| self.tokens_of(root.key, piece)).collect::<Option<Vec<_>>>()?;
        Some((at, tokens.concat()))
    }

    /// Returns the cause for which a prefix of `prompt` that is cached under another key is not used, if there is one.
    pub fn other_key<B: Backend>(&self, b: &B, namespace: Namespace, prompt: &[u32]) -> Option<MissCause> {
        let listing = self.list_for_lookup(false)?;
        let own = self.root(namespace).parent;
        let others = listing.rows.iter().filter(|(_, rows)| rows.first && rows.parent != own);
        let key = others.take(MAX_OTHER_FILES).find_map(|(id, rows)| {
            let header = file::read_header(&self.folder.rows_path(*id, rows.parent, true)).ok()?;
            let same = !header.tokens.is_empty() && prompt.starts_with(&header.tokens);
            (same && root_of(header.key, namespace).parent == rows.parent).then_some(header.key)
        })?;
        let StateShape { config, cache, sizes } = &self.shape;
        let is_own_with = |other: CacheFormat| {
            let other = (other, Sizes::of(b, config, other));
            self.key.with_cache(namespace.layout, (*cache, *sizes), other, &self.log) == key
        };
        let is_own = [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8_0].into_iter().any(is_own_with);
        Some(if is_own { MissCause::CacheType } else { MissCause::Model })
    }

    /// Lists the files if there are any, and the key is cheap or `worth` its time.
    fn list_for_lookup(&self, worth: bool) -> Option<Listing> {
        let listing = self.list().ok().filter(|listing| !listing.rows.is_empty())?;
        self.key.is_ready(worth, &self.log).then_some(listing)
    }

    /// Lists the files and drops cached tokens of removed ones.
    fn list(&self) -> Result<Listing> {
        let listing = self.folder.list()?;
        if listing.foreign > 0 && !self.reported.foreign.swap(true, Ordering::Relaxed) {
            let (dir, files) = (self.folder.dir.display(), listing.foreign);
            (self.log)(&format!("{dir}: {files} files ignored: links, pipes, or owned by another user"));
        }
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() > 2 * listing.rows.len() + 64 {
            tokens.retain(|id, _| listing.rows.contains_key(id));
        }
        drop(tokens);
        Ok(listing)
    }

    /// Returns all chains of rows that are prefixes of `tokens`.
    fn prefixes(&self, listing: &Listing, root: Root, tokens: &[u32]) -> Vec<Vec<Piece>> {
        let read = |at: usize, own: &[u32]| tokens[at..].starts_with(own).then_some(at + own.len());
        self.chains(listing, root, read).into_iter().map(|(_, chain)| chain).collect()
    }

    /// Returns all chains of rows whose tokens a matcher accepts, with its position after them.
    fn chains(
        &self,
        listing: &Listing,
        root: Root,
        read: impl Fn(usize, &[u32]) -> Option<usize>,
    ) -> Vec<(usize, Vec<Piece>)> {
        let mut children: HashMap<Id, Vec<Id>> = HashMap::new();
        listing.rows.iter().for_each(|(id, rows)| children.entry(rows.parent).or_default().push(*id));
        let (mut found, mut open) = (Vec::new(), vec![(0, Vec::new())]);
        while let Some((at, chain)) = open.pop() {
            let (parent, before) = (chain.last().map_or(root.parent, |p: &Piece| p.id), end(&chain));
            for id in children.get(&parent).into_iter().flatten() {
                let piece = Piece { id: *id, parent, before, len: 0 };
                let own = self.tokens_of(root.key, piece).filter(|own| !own.is_empty());
                if let Some((own, at)) = own.and_then(|own| Some((own.len(), read(at, &own)?))) {
                    open.push((at, [&chain[..], &[Piece { len: own, ..piece }]].concat()));
                }
            }
            found.extend((!chain.is_empty()).then_some((at, chain)));
        }
        found
    }

    /// Returns the tokens of a rows file from its header.
    fn tokens_of(&self, key: Id, piece: Piece) -> Option<Arc<[u32]>> {
        let lock = || self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokens) = lock().get(&piece.id) {
            return Some(tokens.clone());
        }
        let path = self.rows_path(piece);
        let header = file::read_header(&path).and_then(|found| {
            let expected = header(key, piece, found.tokens.clone());
            check("id", piece.id, file::chain(piece.parent, &found.tokens))?;
            same(&expected, &found)?;
            Ok(found)
        });
        match header {
            Ok(header) => {
                let tokens: Arc<[u32]> = header.tokens.into();
                lock().insert(piece.id, tokens.clone());
                Some(tokens)
            }
            Err(e) => {
                self.failed(&path, &e);
                None
            }
        }
    }

    fn root(&self, namespace: Namespace) -> Root {
        root_of(self.key.get(namespace.layout, &self.log), namespace)
    }

    /// The bytes of a snapshot without any shared rows.
    fn worst(&self, tokens: usize) -> u64 {
        let sizes = self.shape.sizes;
        tokens as u64 * (sizes.row + 4) + self.recurrent() + sizes.logits + 2 * file::OVERHEAD
    }

    /// The bytes of KDA states and convolution inputs in a file.
    fn recurrent(&self) -> u64 {
        self.state.bytes(self.shape.sizes.recurrent)
    }

    fn rows_path(&self, piece: Piece) -> PathBuf {
        self.folder.rows_path(piece.id, piece.parent, piece.before == 0)
    }

    fn state_file(&self, key: Id, chain: &[Piece]) -> (PathBuf, FileHeader) {
        let id = chain.last().map_or(key, |p| p.id);
        let header = FileHeader { key, id, parent: id, before: end(chain) as u64, tokens: vec![] };
        (self.folder.state_path(id), header)
    }

    /// Logs a failure, and removes the file if it is damaged.
    fn failed(&self, path: &Path, e: &Error) {
        match e.kind() {
            ErrorKind::NotFound => {} // evicted by another process
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                (self.log)(&format!("{}: {e}: discarded, its tokens are prefilled again", path.display()));
                if let Err(e) = private_file::remove(path) {
                    (self.log)(&format!("{}: {e}", path.display()));
                }
            }
            _ => (self.log)(&format!("{}: {e}", path.display())),
        }
    }
}

fn header(key: Id, piece: Piece, tokens: Vec<u32>) -> FileHeader {
    FileHeader { key, id: piece.id, parent: piece.parent, before: piece.before as u64, tokens }
}

/// Returns the rows files that are missing after a chain. Each ends at a snapshot interval at the latest, which
/// bounds the memory of writing one.
fn pieces(root: Id, tokens: &[u32], chain: &[Piece]) -> Vec<Piece> {
    let (mut before, mut parent) = (end(chain), chain.last().map_or(root, |p| p.id));
    let mut pieces = Vec::new();
    while before < tokens.len() {
        let to = tokens.len().min((before / SNAPSHOT_INTERVAL_TOKENS + 1) * SNAPSHOT_INTERVAL_TOKENS);
        let id = file::chain(parent, &tokens[before..to]);
        pieces.push(Piece { id, parent, before, len: to - before });
        (before, parent) = (to, id);
    }
    pieces
}

/// The number of tokens of a chain.
fn end(chain: &[Piece]) -> usize {
    chain.last().map_or(0, |p| p.before + p.len)
}

/// Formats a size in MiB.
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Returns the start of a namespace's chains under a key, which is salted with the tenant.
fn root_of(key: Id, namespace: Namespace) -> Root {
    let salted =
        |salt: u64| id_of(blake3::Hasher::new().update(&key.to_le_bytes()).update(&salt.to_le_bytes()));
    Root { key, parent: namespace.salt().map_or(key, salted) }
}
