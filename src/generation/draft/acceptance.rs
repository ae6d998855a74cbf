//! Estimates the probability that a token which followed an earlier match follows again, by the length of the match.
//!
//! Every sampled token is an observation, whether it was drafted or not: prose teaches at no cost that its short matches
//! are accidents.

use super::index::MAX_MATCH;

/// Weight of the initial estimates, in observations.
const PRIOR: f64 = 4.0;
/// Observations after which older ones lose weight.
const WINDOW: f64 = 48.0;
/// Lower bounds of the classes of match lengths, and initial estimates.
const CLASSES: [(usize, f64); 7] =
    [(3, 0.2), (4, 0.3), (6, 0.45), (9, 0.6), (14, 0.8), (24, 0.9), (MAX_MATCH, 0.95)];

/// Accepted and all observations of each class.
#[derive(Clone, Debug)]
pub(super) struct Acceptance([(f64, f64); CLASSES.len()]);

impl Default for Acceptance {
    fn default() -> Self {
        Acceptance(CLASSES.map(|(_, p)| (p * PRIOR, PRIOR)))
    }
}

impl Acceptance {
    /// The class of a match length.
    fn class(len: usize) -> usize {
        CLASSES.iter().rposition(|(least, _)| len >= *least).unwrap_or(0)
    }

    /// Records whether the token after a match of this length was the one that followed the earlier text.
    pub fn record(&mut self, len: usize, accepted: bool) {
        let (hits, all) = &mut self.0[Acceptance::class(len)];
        if *all >= WINDOW {
            (*hits, *all) = (*hits * (1.0 - 1.0 / WINDOW), WINDOW - 1.0);
        }
        *hits += f64::from(u8::from(accepted));
        *all += 1.0;
    }

    /// Returns the probability that the next token follows a match of this length.
    pub fn probability(&self, len: usize) -> f64 {
        let (hits, all) = self.0[Acceptance::class(len)];
        hits / all
    }

    /// Returns the length of a draft after a match of `len` tokens, up to `most`, that gives the most tokens per time of
    /// a step in which other sequences have `others` tokens. `cost` is the time of a step by the tokens of this sequence,
    /// `worth` the least gain.
    pub fn best_length(
        &self,
        len: usize,
        [most, others]: [usize; 2],
        cost: impl Fn(usize) -> f64,
        worth: f64,
    ) -> usize {
        let (mut all_accepted, mut tokens) = (1.0, 1.0 + others as f64);
        let (mut best, mut best_rate) = (0, worth * tokens / cost(1));
        for n in 1..=most {
            // Each accepted token makes the match longer by one.
            all_accepted *= self.probability(len + n - 1);
            tokens += all_accepted;
            let rate = tokens / cost(n + 1);
            if rate > best_rate {
                (best, best_rate) = (n, rate);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time of a step of t tokens in the published model: about t^0.6.
    fn cost(tokens: usize) -> f64 {
        (tokens as f64).powf(0.6)
    }

    #[test]
    fn observations_move_the_estimate_of_their_class() {
        let mut a = Acceptance::default();
        let [short, long] = [a.probability(3), a.probability(40)];
        (0..100).for_each(|_| a.record(3, false));
        assert!(short > 0.1 && a.probability(3) < 0.05);
        assert_eq!(a.probability(40), long);
        (0..100).for_each(|_| a.record(3, true));
        assert!(a.probability(3) > 0.8, "old observations lose weight: {}", a.probability(3));
    }

    #[test]
    fn long_drafts_need_long_matches() {
        let a = Acceptance::default();
        assert_eq!(a.best_length(3, [15, 0], cost, 1.05), 0);
        assert_eq!(a.best_length(MAX_MATCH, [15, 0], cost, 1.05), 15);
        assert_eq!(a.best_length(MAX_MATCH, [4, 0], cost, 1.05), 4);
        let lengths: Vec<_> =
            [3, 4, 6, 9, 14, 24, 64].map(|len| a.best_length(len, [15, 0], cost, 1.05)).into();
        assert!(lengths.is_sorted(), "{lengths:?}");
        assert_eq!(
            a.best_length(MAX_MATCH, [15, 0], |tokens| tokens as f64, 1.05),
            0,
            "no time would be saved"
        );
        let among = |others| {
            let cost = |tokens: usize| cost(tokens + others);
            a.best_length(14, [15, others], cost, 1.05)
        };
        assert!(among(0) >= among(1) && among(1) >= among(20), "{} {} {}", among(0), among(1), among(20));
    }

    #[test]
    fn text_that_does_not_repeat_itself_is_not_drafted() {
        let mut a = Acceptance::default();
        (0..10).for_each(|_| [3, 4, 6, 9].iter().for_each(|len| a.record(*len, false)));
        assert!([3, 4, 6, 9].iter().all(|len| a.best_length(*len, [15, 0], cost, 1.05) <= 1));
        (0..30).for_each(|_| [3, 4, 6, 9].iter().for_each(|len| a.record(*len, false)));
        assert!([3, 4, 6, 9].iter().all(|len| a.best_length(*len, [15, 0], cost, 1.05) == 0));
    }
}
