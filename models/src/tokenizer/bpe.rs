//! Merges the bytes of a piece to tokens by byte-pair encoding, and holds the merge table.
//!
//! The pair of lowest rank merges first, the leftmost among equals. Each merged token has one pair: the two parts that
//! merging its bytes yields with lower ranks only. This gives the same tokens as ranking by the joined bytes (tiktoken):
//! nothing merges across the boundary of two neighbors, so inside each the same merges happen in the same order as in
//! the token alone. Next: [`super::pretokenizer`].

use super::vocab::Tokens;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Longest piece merged by scanning, in bytes; longer ones use a heap. A scan of a few cache lines is faster for short
/// pieces, but quadratic.
const SCAN_BYTES: usize = 64;
const NEVER: u32 = u32::MAX;

/// The result of merging a pair of neighbors.
#[derive(Clone, Copy, Debug)]
struct PairMerge {
    /// Lower ranks merge first; `NEVER` if the pair does not merge.
    rank: u32,
    id: u32,
}

const NO_MERGE: PairMerge = PairMerge { rank: NEVER, id: NEVER };

/// The merge table, from pairs of ids to the merged token and its rank.
#[derive(Clone, Debug)]
pub(super) struct Merges {
    pairs: FxHashMap<u64, PairMerge>,
    list: Vec<(u32, u32)>,
    /// The token of each single byte.
    byte_ids: [u32; 256],
}

/// Scratch memory, reused between pieces.
#[derive(Default)]
pub(super) struct Scratch {
    parts: Vec<(u32, PairMerge)>,
}

impl Merges {
    /// Creates an empty table. The error is a byte without a token.
    pub(super) fn new(tokens: &Tokens, capacity: usize) -> Result<Self, u8> {
        let mut byte_ids = [0; 256];
        for byte in 0..=255u8 {
            byte_ids[byte as usize] = tokens.id(&[byte]).ok_or(byte)?;
        }
        let pairs = FxHashMap::with_capacity_and_hasher(capacity, Default::default());
        Ok(Self { pairs, list: Vec::with_capacity(capacity), byte_ids })
    }

    /// Adds the next merge, which yields `id`. An existing pair keeps its rank.
    pub(super) fn push(&mut self, left: u32, right: u32, id: u32) {
        let rank = self.list.len() as u32;
        self.pairs.entry(key(left, right)).or_insert(PairMerge { rank, id });
        self.list.push((left, right));
    }

    /// Derives the table of a vocabulary whose ids are ranks, as described above.
    pub(super) fn derive(tokens: &Tokens) -> Result<Self, u8> {
        let mut merges = Self::new(tokens, tokens.len())?;
        let (mut scratch, mut parts) = (Scratch::default(), Vec::new());
        for id in 0..tokens.len() as u32 {
            let bytes = tokens.get(id);
            if bytes.len() < 2 || tokens.id(bytes) != Some(id) {
                continue;
            }
            parts.clear();
            merges.merge(bytes, &mut scratch, &mut parts);
            if let [left, right] = parts[..] {
                merges.push(left, right, id);
            }
        }
        Ok(merges)
    }

    /// The pairs, ordered by rank.
    pub(super) fn list(&self) -> &[(u32, u32)] {
        &self.list
    }

    /// Merges a piece and appends its ids.
    pub(super) fn merge(&self, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if piece.len() <= SCAN_BYTES {
            self.merge_short(piece, &mut scratch.parts, out);
        } else {
            self.merge_long(piece, out);
        }
    }

    fn pair(&self, left: u32, right: u32) -> PairMerge {
        self.pairs.get(&key(left, right)).copied().unwrap_or(NO_MERGE)
    }

    fn merge_short(&self, piece: &[u8], parts: &mut Vec<(u32, PairMerge)>, out: &mut Vec<u32>) {
        let ids = piece.iter().map(|&b| self.byte_ids[b as usize]);
        parts.clear();
        parts.extend(ids.map(|id| (id, NO_MERGE)));
        for i in 1..parts.len() {
            parts[i - 1].1 = self.pair(parts[i - 1].0, parts[i].0);
        }
        while let Some(i) = (0..parts.len()).min_by_key(|&i| parts[i].1.rank)
            && parts[i].1.rank != NEVER
        {
            let id = parts[i].1.id;
            parts.remove(i + 1);
            let next = parts.get(i + 1).map_or(NO_MERGE, |right| self.pair(id, right.0));
            parts[i] = (id, next);
            if i > 0 {
                parts[i - 1].1 = self.pair(parts[i - 1].0, id);
            }
        }
        out.extend(parts.iter().map(|part| part.0));
    }

    /// Merges in O(n log n), with a linked list of parts and a heap of candidate merges from which stale ones are skipped.
    /// Returns the number of candidates pushed: one per byte and at most two per merge.
    fn merge_long(&self, piece: &[u8], out: &mut Vec<u32>) -> usize {
        assert!(piece.len() < NEVER as usize, "a piece of text above 4 GiB");
        let mut parts: Vec<Symbol> = (piece.iter().enumerate())
            .map(|(i, &b)| Symbol {
                id: self.byte_ids[b as usize],
                prev: (i as u32).wrapping_sub(1),
                next: i as u32 + 1,
                merge: NO_MERGE,
            })
            .collect();
        for i in 1..parts.len() {
            parts[i - 1].merge = self.pair(parts[i - 1].id, parts[i].id);
        }
        let candidates = parts.iter().enumerate().filter(|(_, part)| part.merge.rank != NEVER);
        let mut heap: BinaryHeap<_> = candidates.map(|(i, p)| Reverse((p.merge.rank, i as u32))).collect();
        let mut steps = heap.len();
        while let Some(Reverse((rank, at))) = heap.pop() {
            let Symbol { prev, next, merge, .. } = parts[at as usize];
            if merge.rank != rank {
                continue;
            }
            let after = parts[next as usize].next;
            parts[next as usize].merge = NO_MERGE;
            parts[at as usize].id = merge.id;
            parts[at as usize].next = after;
            if let Some(right) = parts.get_mut(after as usize) {
                right.prev = at;
            }
            for left in [prev, at] {
                let Some(&Symbol { id, next, .. }) = parts.get(left as usize) else { continue };
                let merge = parts.get(next as usize).map_or(NO_MERGE, |right| self.pair(id, right.id));
                parts[left as usize].merge = merge;
                if merge.rank != NEVER {
                    heap.push(Reverse((merge.rank, left)));
                    steps += 1;
                }
            }
        }
        let mut at = 0;
        while let Some(part) = parts.get(at as usize) {
            out.push(part.id);
            at = part.next;
        }
        steps
    }
}

/// A part of a long piece; `prev` and `next` are out of range at the ends.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    prev: u32,
    next: u32,
    /// The merge with its right neighbor.
    merge: PairMerge,
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

#[cfg(test)]
mod tests {
    use super::super::tests::kimi;
    use super::*;

    #[test]
    fn the_heap_gives_what_the_scan_gives() {
        let merges = &kimi().merges;
        let mut seed = 1u64;
        for round in 0..3000usize {
            let piece: Vec<u8> = (0..round % SCAN_BYTES)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    b"aAeinsttorl  \n\n\t..==--__/*1\xe4\xb8\xad\xf0\x9f\x98\x80"[(seed >> 33) as usize % 34]
                })
                .collect();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            merges.merge_short(&piece, &mut Vec::new(), &mut short);
            merges.merge_long(&piece, &mut long);
            assert_eq!(short, long, "{piece:?}");
        }
    }

    #[test]
    fn work_on_one_long_piece_is_bounded() {
        for unit in [" ", "a", "\n", "中", "\u{301}", "=", "ab", "\u{0}"] {
            let piece = unit.repeat((1 << 18) / unit.len());
            let mut ids = Vec::new();
            let steps = kimi().merges.merge_long(piece.as_bytes(), &mut ids);
            assert!(steps <= 3 * piece.len(), "{unit:?}: {steps} candidates for {} bytes", piece.len());
            assert_eq!(kimi().decode(&ids), piece);
        }
    }
}
