//! Estimates the probability that a token which followed an earlier match follows again, by the length of the match.
//!
//! Every sampled token is an observation, whether it was drafted or not: prose teaches at no cost that its short matches
//! are accidents. Predictions of the model's own block are observed where they were drafted.

use super::index::MAX_MATCH;

/// Weight of the initial estimates, in observations.
const PRIOR: f64 = 4.0;
/// Weight of the initial estimates of predictions: these are observed only while they are drafted, so that one failure must not end them.
const PREDICTION_PRIOR: f64 = 16.0;
/// Observations after which older ones lose weight.
const WINDOW: f64 = 48.0;
/// Lower bounds of the classes of match lengths, and initial estimates.
const CLASSES: [(usize, f64); 7] =
    [(3, 0.2), (4, 0.3), (6, 0.45), (9, 0.6), (14, 0.8), (24, 0.9), (MAX_MATCH, 0.95)];

/// Initial estimate for tokens that the constraint of a reply expects.
const CONSTRAINT: f64 = 0.9;

/// Initial estimates for the first, the second and further predictions of the model's block. Published models of this kind
/// accept 0.8 to 0.9 of first ones; the estimate has to be high enough for a trial.
const PREDICTIONS: [f64; 3] = [0.85, 0.65, 0.5];

/// Accepted and all observations of each class.
#[derive(Clone, Debug)]
pub(super) struct Acceptance {
    /// By the length of the match.
    matches: [(f64, f64); CLASSES.len()],
    /// Of tokens that the constraint expects.
    constraint: (f64, f64),
    /// Of predictions, by their number in a draft.
    predictions: [(f64, f64); PREDICTIONS.len()],
}

/// The length of a draft, and the expected tokens per time of its step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DraftPlan {
    pub len: usize,
    pub rate: f64,
}

impl Default for Acceptance {
    fn default() -> Self {
        let prior = |p: f64| (p * PRIOR, PRIOR);
        let predictions = PREDICTIONS.map(|p| (p * PREDICTION_PRIOR, PREDICTION_PRIOR));
        let (matches, constraint) = (CLASSES.map(|(_, p)| prior(p)), prior(CONSTRAINT));
        Acceptance { matches, constraint, predictions }
    }
}

/// Adds an observation and fades older ones.
fn observe((hits, all): &mut (f64, f64), accepted: bool) {
    if *all >= WINDOW {
        (*hits, *all) = (*hits * (1.0 - 1.0 / WINDOW), WINDOW - 1.0);
    }
    *hits += f64::from(u8::from(accepted));
    *all += 1.0;
}

impl Acceptance {
    /// The class of a match length.
    fn class(len: usize) -> usize {
        CLASSES.iter().rposition(|(least, _)| len >= *least).unwrap_or(0)
    }

    /// Records whether the token after a match of this length was the one that followed the earlier text.
    pub fn record(&mut self, len: usize, accepted: bool) {
        observe(&mut self.matches[Acceptance::class(len)], accepted);
    }

    /// Records whether a token was the one that the constraint expected.
    pub fn record_expected(&mut self, accepted: bool) {
        observe(&mut self.constraint, accepted);
    }

    /// Records whether the prediction after `before` accepted ones was accepted.
    pub fn record_prediction(&mut self, before: usize, accepted: bool) {
        observe(&mut self.predictions[before.min(PREDICTIONS.len() - 1)], accepted);
    }

    /// Returns the probability that the next token follows a match of this length.
    pub fn probability(&self, len: usize) -> f64 {
        let (hits, all) = self.matches[Acceptance::class(len)];
        hits / all
    }

    /// Returns the length of a draft after a match of `len` tokens, up to `most`, that gives the most tokens per time of
    /// a step in which other sequences have `others` tokens. `cost` is the time of a step by the tokens of this sequence,
    /// `worth` the least gain.
    pub fn best_length(
        &self,
        len: usize,
        limits: [usize; 2],
        cost: impl Fn(usize) -> f64,
        worth: f64,
    ) -> DraftPlan {
        // Each accepted token makes the match longer by one.
        best(|n| self.probability(len + n), limits, cost, worth)
    }

    /// [`Acceptance::best_length`] of a draft that the constraint expects.
    pub fn best_expected(&self, limits: [usize; 2], cost: impl Fn(usize) -> f64, worth: f64) -> DraftPlan {
        let (hits, all) = self.constraint;
        best(|_| hits / all, limits, cost, worth)
    }

    /// [`Acceptance::best_length`] of a draft of predictions, whose time `cost` includes.
    pub fn best_predicted(&self, limits: [usize; 2], cost: impl Fn(usize) -> f64, worth: f64) -> DraftPlan {
        let probability = |n: usize| {
            let (hits, all) = self.predictions[n.min(PREDICTIONS.len() - 1)];
            hits / all
        };
        best(probability, limits, cost, worth)
    }
}

/// The best length of a draft whose token `n` is accepted with this probability if those before it are.
fn best(
    probability: impl Fn(usize) -> f64,
    [most, others]: [usize; 2],
    cost: impl Fn(usize) -> f64,
    worth: f64,
) -> DraftPlan {
    let (mut all_accepted, mut tokens) = (1.0, 1.0 + others as f64);
    let mut best = DraftPlan { len: 0, rate: worth * tokens / cost(1) };
    for n in 1..=most {
        all_accepted *= probability(n - 1);
        tokens += all_accepted;
        let rate = tokens / cost(n + 1);
        if rate > best.rate {
            best = DraftPlan { len: n, rate };
        }
    }
    best
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
        assert_eq!(a.best_length(3, [15, 0], cost, 1.05).len, 0);
        assert_eq!(a.best_length(MAX_MATCH, [15, 0], cost, 1.05).len, 15);
        assert_eq!(a.best_length(MAX_MATCH, [4, 0], cost, 1.05).len, 4);
        let lengths: Vec<_> =
            [3, 4, 6, 9, 14, 24, 64].map(|len| a.best_length(len, [15, 0], cost, 1.05).len).into();
        assert!(lengths.is_sorted(), "{lengths:?}");
        assert_eq!(
            a.best_length(MAX_MATCH, [15, 0], |tokens| tokens as f64, 1.05).len,
            0,
            "no time would be saved"
        );
        let among = |others| {
            let cost = |tokens: usize| cost(tokens + others);
            a.best_length(14, [15, others], cost, 1.05).len
        };
        assert!(among(0) >= among(1) && among(1) >= among(20), "{} {} {}", among(0), among(1), among(20));
    }

    #[test]
    fn text_that_does_not_repeat_itself_is_not_drafted() {
        let mut a = Acceptance::default();
        (0..10).for_each(|_| [3, 4, 6, 9].iter().for_each(|len| a.record(*len, false)));
        assert!([3, 4, 6, 9].iter().all(|len| a.best_length(*len, [15, 0], cost, 1.05).len <= 1));
        (0..30).for_each(|_| [3, 4, 6, 9].iter().for_each(|len| a.record(*len, false)));
        assert!([3, 4, 6, 9].iter().all(|len| a.best_length(*len, [15, 0], cost, 1.05).len == 0));
    }

    #[test]
    fn a_constraint_that_is_wrong_is_no_longer_followed() {
        let mut a = Acceptance::default();
        let plan = |a: &Acceptance| a.best_expected([15, 0], cost, 1.05);
        assert!((5..=15).contains(&plan(&a).len) && plan(&a).rate > 1.05, "{:?}", plan(&a));
        (0..40).for_each(|_| a.record_expected(true));
        assert_eq!(plan(&a).len, 15);
        (0..100).for_each(|_| a.record_expected(false));
        assert_eq!(plan(&a), DraftPlan { len: 0, rate: 1.05 });
        assert_eq!(a.best_length(MAX_MATCH, [15, 0], cost, 1.05).len, 15, "matches are another matter");
    }

    #[test]
    fn predictions_that_fail_are_no_longer_made() {
        let cost = |tokens: usize| cost(tokens) + 0.1 * (tokens - 1) as f64;
        let plan = |a: &Acceptance| a.best_predicted([15, 0], cost, 1.05);
        let mut a = Acceptance::default();
        assert!((1..=4).contains(&plan(&a).len), "a trial: {:?}", plan(&a));
        (0..100).for_each(|i| a.record_prediction(i % 3, true));
        assert!(plan(&a).len >= 4, "{:?}", plan(&a));
        (0..100).for_each(|_| a.record_prediction(1, false));
        assert_eq!(plan(&a).len, 1, "second ones fail");
        (0..100).for_each(|_| a.record_prediction(0, false));
        assert_eq!(plan(&a).len, 0);
    }
}
