//! Isolation between tenants and between prompt layouts: each namespace of a [`Store`] has its own prefixes in memory and on
//! disk, and no lookup crosses namespaces. All namespaces share the budgets and the LRU order.

use super::cause::MissCause;
use super::{Hit, Insertion, PrefixSource, Snapshot, Store};
use kernels::backend::Backend;
use models::hybrid::state::State;
use std::sync::Arc;

/// How prompts are laid out, which the attention path of a token depends on: snapshots of one layout are not used by
/// another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PromptLayout {
    /// One conversation or one text.
    #[default]
    One,
    /// Documents followed by a question.
    Ask,
}

/// A tenant's part of the prefix cache, for prompts of one layout. States of one namespace are never restored in another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Namespace {
    tenant: u64,
    pub(super) layout: PromptLayout,
}

impl Namespace {
    /// The namespace of all commands, and of servers whose clients share the cache.
    pub const SHARED: Namespace = Namespace { tenant: 0, layout: PromptLayout::One };

    /// Returns the namespace of a tenant, by a hash of the tenant's identity.
    pub fn of(tenant: u64) -> Namespace {
        Namespace { tenant: tenant.max(1), layout: PromptLayout::One }
    }

    /// Returns the namespace of the same tenant for prompts of another layout.
    pub fn with_layout(self, layout: PromptLayout) -> Namespace {
        Namespace { layout, ..self }
    }

    /// Returns the salt of the disk keys; `None` without a tenant.
    pub(super) fn salt(self) -> Option<u64> {
        (self.tenant != 0).then_some(self.tenant)
    }
}

/// The snapshots of one namespace of a store.
#[derive(Clone, Copy)]
pub struct StoreView<'s, B: Backend> {
    pub(super) store: &'s Store<B>,
    pub(super) namespace: Namespace,
}

impl<B: Backend> StoreView<'_, B> {
    /// Does [`Store::longest_prefix`] in this namespace.
    pub fn longest_prefix(&self, b: &B, prompt: &[u32], least: Option<usize>) -> Option<Hit<B>> {
        let Store { disk, .. } = self.store;
        let in_ram = self.store.lock().longest_prefix(self.namespace, prompt, least);
        let least = in_ram.as_ref().map(|(len, _)| *len).or(least);
        let on_disk = disk.as_ref().filter(|_| least != Some(prompt.len()));
        if let Some(hit) = on_disk.and_then(|(disk, _)| disk.longest_prefix(b, self.namespace, prompt, least))
        {
            self.insert_in_ram(b, &prompt[..hit.len], &hit.state, &hit.logits);
            return Some(hit);
        }
        let (len, snapshot) = in_ram?;
        let (state, logits) = (snapshot.state.copy(b), snapshot.logits.clone());
        Some(Hit { len, state, logits, source: PrefixSource::Ram })
    }

    /// Does [`Store::farthest`] in this namespace.
    pub fn farthest(
        &self,
        read: impl Fn(usize, &[u32]) -> Option<usize>,
        may_stop: impl Fn(usize) -> bool,
    ) -> Option<(usize, Vec<u32>)> {
        let in_ram = self.store.lock().trees.get(&self.namespace).and_then(|tree| {
            let all = tree.readable(0, &read).into_iter();
            let farthest = all.filter(|(at, _)| may_stop(*at)).max_by_key(|(at, _)| *at);
            farthest.map(|(at, place)| (at, tree.path(place)))
        });
        let disk = self.store.disk.as_ref();
        let on_disk = disk.and_then(|(disk, _)| disk.farthest(self.namespace, &read, may_stop));
        in_ram.into_iter().chain(on_disk).max_by_key(|(at, _)| *at)
    }

    /// Returns the length of the longest cached prefix of `prompt`, without restoring it or marking it as used.
    pub fn cached_len(&self, prompt: &[u32]) -> usize {
        let ram = self.store.lock();
        let in_ram = ram.trees.get(&self.namespace);
        let in_ram = in_ram.and_then(|tree| tree.prefixes(prompt).last().map(|(len, ..)| *len));
        drop(ram);
        let disk = self.store.disk.as_ref();
        let on_disk = disk.map(|(disk, _)| disk.cached_len(self.namespace, prompt));
        in_ram.into_iter().chain(on_disk).max().unwrap_or(0)
    }

    /// Does [`super::disk::Disk::name_prefix`] in this namespace, if the prefix may be on disk.
    pub fn name_prefix(&self, names: &[String], model: &str, tokens: &[u32]) {
        if let Some((disk, _)) = self.store.disk.as_ref().filter(|_| self.store.keeps_on_disk(tokens.len())) {
            disk.name_prefix(self.namespace, names, model, tokens);
        }
    }

    /// Removes all snapshots after a part of these tokens, or after a continuation of them, from memory and disk.
    pub fn forget(&self, tokens: &[u32]) {
        let mut ram = self.store.lock();
        let removed: Vec<_> = ram.trees.get_mut(&self.namespace).map_or(Vec::new(), |tree| {
            let places: Vec<_> = tree.values().map(|(place, _)| place).collect();
            let is_part = |path: &[u32]| path.starts_with(tokens) || tokens.starts_with(path);
            let places: Vec<_> = places.into_iter().filter(|place| is_part(&tree.path(*place))).collect();
            places.into_iter().filter_map(|place| tree.remove(place)).collect()
        });
        if ram.trees.get(&self.namespace).is_some_and(|tree| tree.values().next().is_none()) {
            ram.trees.remove(&self.namespace);
        }
        drop(ram);
        drop(removed); // outside the lock, because freeing megabytes takes time
        if let Some((disk, writer)) = &self.store.disk {
            writer.flush();
            disk.forget(self.namespace, tokens);
        }
    }

    /// Does [`super::disk::Disk::other_key`] in this namespace.
    pub fn other_key(&self, b: &B, prompt: &[u32]) -> Option<MissCause> {
        let (disk, _) = self.store.disk.as_ref()?;
        disk.other_key(b, self.namespace, prompt)
    }

    /// Does [`Store::insert`] in this namespace.
    pub fn insert(&self, b: &B, tokens: &[u32], state: &State<B>, logits: &[f32], always: bool) {
        let snapshot = self.insert_in_ram(b, tokens, state, logits);
        let Some((_, writer)) = &self.store.disk else { return };
        match snapshot {
            Insertion::Added(snapshot) => writer.save(self.namespace, tokens, snapshot, always),
            Insertion::Present(snapshot) if always => writer.save(self.namespace, tokens, snapshot, always),
            Insertion::Present(_) | Insertion::Rejected => {}
        }
    }

    fn insert_in_ram(&self, b: &B, tokens: &[u32], state: &State<B>, logits: &[f32]) -> Insertion<B> {
        assert_eq!(state.position, tokens.len() as u64, "tokens of a snapshot and of its state");
        let (store, namespace) = (self.store, self.namespace);
        if let Some(there) = store.lock().get(namespace, tokens, !logits.is_empty()) {
            return Insertion::Present(there);
        }
        if !store.accepts() {
            return Insertion::Rejected;
        }
        let snapshot = Arc::new(Snapshot { state: state.copy(b), logits: logits.to_vec() });
        let full = |ram: &super::Ram<B>| store.bytes_of(ram) > store.budget;
        let evicted = store.lock().insert((namespace, tokens), snapshot.clone(), full);
        drop(evicted); // outside the lock, because freeing megabytes takes time
        Insertion::Added(snapshot)
    }
}
