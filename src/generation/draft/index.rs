//! An index of the n-grams of a token sequence: finds the longest recent match of its end, and what followed that match.
//!
//! A hash table maps the last three tokens to the latest position where they end, and a chain leads to earlier ones, as in
//! LZ77: 12 bytes and one insertion per token. It decides nothing: [`super`] chooses the length of a draft.

/// Tokens of the shortest match.
pub(super) const MIN_MATCH: usize = 3;
/// Matches are not compared beyond this length.
pub(super) const MAX_MATCH: usize = 64;
/// Positions with the same hash that a search compares, the latest first.
const MAX_CANDIDATES: usize = 16;
/// Smallest size of the hash table.
const MIN_TABLE: usize = 1 << 10;

/// A position whose last tokens equal those at the end of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// The position after the match, of the token that followed it.
    pub next: usize,
    /// Equal tokens, at most [`MAX_MATCH`].
    pub len: usize,
}

/// The tokens of a sequence with the index of their n-grams.
#[derive(Default)]
pub(super) struct NgramIndex {
    tokens: Vec<u32>,
    /// For each hash the latest position at which an n-gram with it ends, plus one; 0 for none. A power of two long.
    table: Vec<u32>,
    /// For each position the value that it replaced in the table.
    earlier: Vec<u32>,
}

impl NgramIndex {
    /// Indexes the tokens of a prompt.
    pub fn new(prompt: &[u32]) -> NgramIndex {
        let mut index = NgramIndex { tokens: prompt.to_vec(), ..NgramIndex::default() };
        index.rebuild();
        index
    }

    /// Appends a token to the sequence.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if self.tokens.len() > self.table.len() {
            self.rebuild();
        } else {
            self.insert(self.tokens.len() - 1);
        }
    }

    /// Indexes all tokens with a table of at least twice their number.
    fn rebuild(&mut self) {
        let size = (2 * self.tokens.len()).next_power_of_two().max(MIN_TABLE);
        (self.table, self.earlier) = (vec![0; size], Vec::with_capacity(self.tokens.len()));
        (0..self.tokens.len()).for_each(|at| self.insert(at));
    }

    fn insert(&mut self, at: usize) {
        let end = u32::try_from(at + 1).unwrap_or(0); // beyond 2^32 tokens: not indexed
        let before = self.slot(at).map_or(0, |slot| std::mem::replace(&mut self.table[slot], end));
        self.earlier.push(before);
    }

    /// The slot of the n-gram that ends at a position.
    fn slot(&self, at: usize) -> Option<usize> {
        let first = (at + 1).checked_sub(MIN_MATCH)?;
        let mix = |hash: u64, token: &u32| (hash ^ u64::from(*token)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let hash = self.tokens[first..=at].iter().fold(0u64, |hash, token| mix(hash.rotate_left(29), token));
        Some((hash >> 32) as usize & (self.table.len() - 1))
    }

    /// Returns the longest match of the last tokens, the latest of the longest ones. `expected` is a position to try first.
    pub fn longest_match(&self, expected: Option<usize>) -> Option<Match> {
        let last = self.tokens.len().checked_sub(1)?;
        let mut chain = self.earlier[last];
        let candidates = std::iter::from_fn(|| {
            let end = chain as usize;
            chain = *self.earlier.get(end.checked_sub(1)?)?;
            Some(end)
        });
        let mut best: Option<Match> = None;
        for next in expected.into_iter().chain(candidates.take(MAX_CANDIDATES)) {
            let len = self.common_suffix(next);
            if len >= MIN_MATCH && best.is_none_or(|best| len > best.len) {
                best = Some(Match { next, len });
            }
            if len == MAX_MATCH {
                break;
            }
        }
        best
    }

    /// Equal tokens before `next` and at the end of the sequence.
    fn common_suffix(&self, next: usize) -> usize {
        let (earlier, all) = (&self.tokens[..next.min(self.tokens.len() - 1)], &self.tokens);
        let pairs = earlier.iter().rev().zip(all.iter().rev()).take(MAX_MATCH);
        pairs.take_while(|(a, b)| a == b).count()
    }

    /// The `n` tokens that follow a match if the text repeats; a match that overlaps the end repeats its period.
    pub fn following(&self, found: Match, n: usize) -> impl Iterator<Item = u32> {
        let period = self.tokens.len() - found.next;
        (0..n).map(move |i| self.tokens[found.next + i % period])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The draft after a sequence, and the length of its match.
    fn draft(tokens: &[u32], n: usize) -> Option<(usize, Vec<u32>)> {
        let index = NgramIndex::new(tokens);
        let found = index.longest_match(None)?;
        Some((found.len, index.following(found, n).collect()))
    }

    #[test]
    fn the_longest_match_wins_then_the_latest() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 9, 1, 2, 3], 3), Some((3, vec![4, 5, 9])));
        // 7 1 2 3 is longer than the later 1 2 3.
        assert_eq!(draft(&[7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 7, 1, 2, 3], 1), Some((4, vec![4])));
        assert_eq!(draft(&[8, 1, 2, 3, 4, 8, 1, 2, 3, 5, 6, 1, 2, 3], 1), Some((3, vec![5])));
        assert_eq!(draft(&[1, 2, 3, 4, 1, 2], 1), None, "two tokens are no match");
        assert_eq!((draft(&[], 1), draft(&[1], 1), draft(&[1, 2, 3], 1)), (None, None, None));
    }

    #[test]
    fn repetition_continues_beyond_the_end() {
        assert_eq!(draft(&[5, 6, 5, 6, 5, 6], 5), Some((4, vec![5, 6, 5, 6, 5])));
        assert_eq!(draft(&[3, 3, 3, 3], 3), Some((3, vec![3, 3, 3])));
    }

    #[test]
    fn pushed_tokens_are_found_as_those_of_a_prompt() {
        let tokens: Vec<u32> = (0..5000u32).map(|i| i * i % 89 + i % 7).collect();
        let mut index = NgramIndex::new(&tokens[..10]);
        for (i, token) in tokens.iter().enumerate().skip(10) {
            index.push(*token);
            if i % 97 == 0 {
                let whole = NgramIndex::new(&tokens[..=i]);
                assert_eq!(index.longest_match(None), whole.longest_match(None), "{i}");
            }
        }
    }

    /// The expected position is found even if many later ones share its last tokens.
    #[test]
    fn the_expected_position_is_tried_first() {
        let mut tokens = vec![9, 8, 1, 2, 3, 4];
        (0..MAX_CANDIDATES + 1).for_each(|_| tokens.extend([1, 2, 3, 7]));
        tokens.extend([9, 8, 1, 2, 3]);
        let index = NgramIndex::new(&tokens);
        assert_eq!(index.longest_match(None).map(|found| found.len), Some(3));
        assert_eq!(index.longest_match(Some(5)), Some(Match { next: 5, len: 5 }));
        assert_eq!(index.longest_match(Some(2)).map(|found| found.len), Some(3), "a wrong one is no match");
    }
}
