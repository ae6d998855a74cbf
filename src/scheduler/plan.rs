//! Divides the token budget of a step among sequences. Pure arithmetic without other modules.

use std::time::Duration;

/// Target for the time of a step that has both prefill and decode tokens: replies get several tokens a second.
const MIXED_STEP_TIME: Duration = Duration::from_millis(200);
/// Lower bound on prefill tokens in a step with decode tokens, however slow the machine.
const MIN_PREFILL_TOKENS: usize = 16;
/// One part in this many of the prefill budget is shared equally, and one large chunk in this many is assigned
/// round-robin.
const FAIR_SHARE: usize = 4;

/// Returns the tokens for each sequence, at most what it `wants`. Decoding sequences get their one token. A quarter of the
/// remaining `budget` is shared equally by prefilling sequences (no starvation); the rest goes shortest-remaining-first,
/// which minimizes the mean time to the first token and gives long chunks.
pub fn allocate_tokens(wants: &[usize], budget: usize) -> Vec<usize> {
    let mut shares: Vec<usize> = wants.iter().map(|w| usize::from(*w == 1)).collect();
    let mut left = budget.saturating_sub(shares.iter().sum());
    let mut prefilling: Vec<usize> = (0..wants.len()).filter(|i| wants[*i] > 1).collect();
    prefilling.sort_by_key(|i| wants[*i]);
    let equal_share = (left / FAIR_SHARE / prefilling.len().max(1)).max(1);
    for i in &prefilling {
        shares[*i] = wants[*i].min(equal_share);
        left = left.saturating_sub(shares[*i]);
    }
    for i in prefilling {
        let more = left.min(wants[i] - shares[i]);
        (shares[i], left) = (shares[i] + more, left - more);
    }
    shares
}

/// Selects the sequence that prefills the next large chunk: the one with the fewest tokens left, and for every fourth chunk
/// the sequences round-robin.
pub fn next_large(left: &[Option<usize>], chunk: u64) -> Option<usize> {
    let large: Vec<usize> = (0..left.len()).filter(|i| left[*i].is_some()).collect();
    if chunk % FAIR_SHARE as u64 == FAIR_SHARE as u64 - 1 && !large.is_empty() {
        return Some(large[(chunk / FAIR_SHARE as u64 % large.len() as u64) as usize]);
    }
    large.into_iter().min_by_key(|i| left[*i])
}

/// Measures the prefill rate and derives the token budget of mixed steps.
pub struct PrefillRate {
    max_batch: usize,
    seconds_per_token: Option<f64>,
}

impl PrefillRate {
    /// Starts without a measurement; a step prefills up to `max_batch` tokens.
    pub fn new(max_batch: usize) -> Self {
        PrefillRate { max_batch, seconds_per_token: None }
    }

    /// Returns the token budget of the next step, in which `replies` sequences decode one token each.
    pub fn budget(&self, replies: usize) -> usize {
        if replies == 0 {
            return self.max_batch;
        }
        let fit = self.seconds_per_token.map_or(0.0, |s| MIXED_STEP_TIME.as_secs_f64() / s) as usize;
        replies + fit.clamp(MIN_PREFILL_TOKENS.min(self.max_batch), self.max_batch)
    }

    /// Records the time of a step that prefilled `tokens`, with or without decode tokens.
    pub fn record(&mut self, tokens: usize, took: Duration) {
        if tokens >= MIN_PREFILL_TOKENS {
            let fresh = took.as_secs_f64() / tokens as f64;
            let old = self.seconds_per_token.unwrap_or(fresh);
            self.seconds_per_token = Some((0.5 * (old + fresh)).max(1e-9));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_comes_first_and_prefill_shares_the_rest() {
        assert_eq!(allocate_tokens(&[1, 1000, 1, 1000], 102), [1, 88, 1, 12]);
        assert_eq!(allocate_tokens(&[1000, 10, 900], 100), [8, 10, 82]);
        assert_eq!(allocate_tokens(&[9, 9, 9], 100), [9, 9, 9]);
        assert_eq!(allocate_tokens(&[600], 512), [512]);
        assert_eq!(allocate_tokens(&[1, 1, 1], 2), [1, 1, 1]);
        assert_eq!(allocate_tokens(&[1, 9, 9], 1), [1, 1, 1]);
        assert_eq!(allocate_tokens(&[0, 1, 0, 9], 9), [0, 1, 0, 8]);
        assert_eq!(allocate_tokens(&[], 9), [0; 0]);
    }

    #[test]
    fn large_chunks_go_to_one_sequence_and_none_starves() {
        let left = [None, Some(5000), None, Some(900), Some(7000)];
        let order: Vec<_> = (0..16).map(|chunk| next_large(&left, chunk).unwrap()).collect();
        assert_eq!(order, [3, 3, 3, 1, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3, 3, 1]);
        assert!((0..8).all(|chunk| next_large(&[None], chunk).is_none() && next_large(&[], chunk).is_none()));
    }

    #[test]
    fn prefill_with_decode_keeps_to_the_step_time() {
        let mut rate = PrefillRate::new(512);
        assert_eq!((rate.budget(0), rate.budget(2)), (512, 2 + MIN_PREFILL_TOKENS));
        rate.record(100, Duration::from_secs(1));
        assert_eq!(rate.budget(1), 1 + 20);
        rate.record(1, Duration::from_secs(9));
        assert_eq!(rate.budget(1), 1 + 20, "a single token does not measure the prefill rate");
        (0..20).for_each(|_| rate.record(512, Duration::from_millis(10)));
        assert_eq!(rate.budget(3), 3 + 512);
        assert_eq!(PrefillRate::new(4).budget(1), 5);
    }
}
