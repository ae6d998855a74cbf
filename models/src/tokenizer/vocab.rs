//! Maps token ids to bytes and bytes to ids.
//!
//! All bytes are in one buffer, and an open-addressed table holds the ids, instead of 163,840 small allocations: loading
//! takes milliseconds, and a lookup reads two cache lines. It has neither merges nor special tokens. Next: [`super::bpe`].

use rustc_hash::FxHasher;
use std::hash::Hasher;

const EMPTY: u32 = u32::MAX;

/// Token bytes by id, and ids by bytes for tokens that text may yield.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    bytes: Vec<u8>,
    /// End of each token in `bytes`.
    ends: Vec<u32>,
    /// Ids by hash: linear probing, at most half full.
    slots: Vec<u32>,
}

impl Tokens {
    /// Allocates room for `count` tokens.
    pub(super) fn with_capacity(count: usize) -> Self {
        let slots = vec![EMPTY; (2 * count).next_power_of_two().max(512)];
        Self { bytes: Vec::with_capacity(8 * count), ends: Vec::with_capacity(count), slots }
    }

    /// Appends the token of the next id. None if all tokens together exceed 4 GiB.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<u32> {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(u32::try_from(self.bytes.len()).ok()?);
        Some(self.ends.len() as u32 - 1)
    }

    /// Indexes an id by its bytes. The error is an indexed id with the same bytes.
    pub(super) fn index(&mut self, id: u32) -> Result<(), u32> {
        debug_assert!(2 * self.ends.len() <= self.slots.len());
        let (slot, held) = self.find(self.get(id));
        match held {
            Some(other) => Err(other),
            None => {
                self.slots[slot] = id;
                Ok(())
            }
        }
    }

    /// Removes ids, in ascending order, from the index; their bytes stay.
    pub(super) fn unindex(&mut self, ids: &[u32]) {
        let indexed = std::mem::take(&mut self.slots);
        self.slots = vec![EMPTY; indexed.len()];
        for id in indexed.into_iter().filter(|id| *id != EMPTY && ids.binary_search(id).is_err()) {
            let (slot, _) = self.find(self.get(id));
            self.slots[slot] = id;
        }
    }

    /// Number of ids added so far.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of an id below `len`.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        &self.bytes[start..self.ends[id] as usize]
    }

    /// The indexed id of these bytes.
    pub(super) fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.find(bytes).1
    }

    fn find(&self, bytes: &[u8]) -> (usize, Option<u32>) {
        let mask = self.slots.len() - 1;
        let mut slot = hash(bytes) & mask;
        loop {
            match self.slots[slot] {
                EMPTY => return (slot, None),
                id if self.get(id) == bytes => return (slot, Some(id)),
                _ => slot = (slot + 1) & mask,
            }
        }
    }
}

fn hash(bytes: &[u8]) -> usize {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_only_indexed_tokens() {
        let mut tokens = Tokens::with_capacity(3);
        for bytes in [&b"a"[..], b"ab", b"a"] {
            tokens.push(bytes);
        }
        assert_eq!(tokens.index(0), Ok(()));
        assert_eq!(tokens.index(2), Err(0));
        assert_eq!((tokens.id(b"a"), tokens.id(b"ab"), tokens.id(b"")), (Some(0), None, None));
        assert_eq!((tokens.get(1), tokens.len()), (&b"ab"[..], 3));
        assert_eq!(tokens.index(1), Ok(()));
        tokens.unindex(&[0]);
        assert_eq!((tokens.id(b"a"), tokens.id(b"ab"), tokens.get(0)), (None, Some(1), &b"a"[..]));
    }
}
