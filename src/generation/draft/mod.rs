//! Drafts the next tokens of a reply: what followed the longest recent match of its last tokens, in the prompt or the
//! reply, what its constraint (a grammar, a quote of a file) expects, or what the model's own block for further tokens
//! predicts ([`models::hybrid::mtp`]). Speculative decoding without a second model.
//!
//! A draft never changes a reply: the sampler chooses each token from the logits as without drafts, and the session drops
//! the rest of a draft at the first other token. This module decides only what to draft and how much: by the length of
//! the match, the acceptance so far, and the cost of a step. Next: [`index`], [`acceptance`], [`cost`].

mod acceptance;
mod cost;
mod index;

use crate::runtime::engine::EngineBase;
use crate::runtime::options::{Drafting, MAX_DRAFT};
use acceptance::{Acceptance, DraftPlan};
use cost::StepCost;
use index::{Match, NgramIndex};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The least expected gain in tokens per time for which a step takes a draft.
const WORTH: f64 = 1.08;
/// Steps in a row without any draft after which predictions are given up: a sequence that is followed for them is not replayed.
const PATIENCE: usize = 8;

/// Drafts the tokens of one reply.
pub struct Drafter {
    /// `None` if drafts are turned off.
    context: Option<DraftContext>,
    /// Tokens that steps took as drafts, and those of them that were sampled.
    pub counts: DraftCounts,
}

/// Tokens drafted for a reply, and those of them that were part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    pub drafted: usize,
    pub accepted: usize,
}

/// The text so far, and what is known about its repetitions.
struct DraftContext {
    /// The length of every draft; `None` to decide by the expected gain.
    fixed: Option<usize>,
    index: NgramIndex,
    /// The tokens in the index.
    len: usize,
    acceptance: Acceptance,
    cost: StepCost,
    /// The match of the last tokens, and the token that followed it.
    found: Option<(Match, u32)>,
    /// What the constraint expected at the last draft, without the tokens sampled since.
    expected: VecDeque<u32>,
    /// Whether the model's block is used: until its predictions no longer pay.
    predicts: bool,
    /// Steps without a draft since the last one.
    undrafted: usize,
    /// What the block predicted for the last draft, without the tokens sampled since, and the number of these.
    predicted: (VecDeque<u32>, usize),
    /// Tokens that end a reply: a draft ends before them.
    ends: Vec<u32>,
}

impl Drafter {
    /// Indexes a prompt, unless the engine's options turn drafts off.
    pub fn new(engine: &EngineBase, prompt: &[u32]) -> Drafter {
        let fixed = match engine.draft {
            Drafting::Off => return Drafter { context: None, counts: DraftCounts::default() },
            Drafting::Auto => None,
            Drafting::Tokens(n) => Some(n),
        };
        let mut context = DraftContext {
            fixed,
            index: NgramIndex::new(prompt),
            len: prompt.len(),
            acceptance: Acceptance::default(),
            cost: StepCost::new(engine),
            found: None,
            expected: VecDeque::new(),
            predicts: engine.config.mtp,
            undrafted: 0,
            predicted: (VecDeque::new(), 0),
            ends: engine.tokenizer.as_ref().map_or(Vec::new(), |t| t.eog_tokens().to_vec()),
        };
        context.search(None);
        Drafter { context: Some(context), counts: DraftCounts::default() }
    }

    /// Appends a sampled token to the context.
    pub fn push(&mut self, token: u32) {
        if let Some(context) = &mut self.context {
            context.push(token);
        }
    }

    /// Counts a sampled token that a step had as draft, if it is one.
    pub fn count_accepted(&mut self, accepted: bool) {
        self.counts.accepted += usize::from(accepted);
    }

    /// Returns a draft of at most `most` tokens, possibly none. `others` is the number of tokens of other sequences in
    /// the step, `expected` what the constraint expects ([`Decoder::likely`](super::decoder::Decoder::likely)), `predict`
    /// returns at most so many tokens that the model's block predicts.
    pub fn draft(
        &mut self,
        most: usize,
        others: usize,
        expected: impl FnOnce() -> Vec<u32>,
        predict: &mut dyn FnMut(usize) -> Vec<u32>,
    ) -> Vec<u32> {
        let draft = |context: &mut DraftContext| {
            context.expected = expected().into();
            context.draft(most, others, predict)
        };
        let draft = self.context.as_mut().map_or(Vec::new(), draft);
        self.counts.drafted += draft.len();
        draft
    }

    /// Returns whether predictions of the model's block may be wanted again: not once they have stopped paying.
    pub fn predicts(&self) -> bool {
        self.context.as_ref().is_some_and(|context| context.predicts)
    }

    /// Records the time of a step with `tokens` tokens of this sequence and none of others.
    pub fn record(&mut self, tokens: usize, took: Duration) {
        if let Some(context) = &mut self.context {
            context.cost.record(tokens, context.len, took);
        }
    }
}

impl DraftContext {
    fn push(&mut self, token: u32) {
        self.index.push(token);
        self.len += 1;
        if let Some(expected) = self.expected.pop_front() {
            self.acceptance.record_expected(expected == token);
            if expected != token {
                self.expected.clear();
            }
        }
        let (predicted, before) = &mut self.predicted;
        if let Some(next) = predicted.pop_front() {
            self.acceptance.record_prediction(*before, next == token);
            *before += 1;
            if next != token {
                predicted.clear();
            }
            self.predicts &= self.fixed.is_some() || self.plan_predicted(MAX_DRAFT, 0).len > 0;
        }
        let follows = self.found.filter(|(found, next)| {
            self.acceptance.record(found.len, *next == token);
            *next == token
        });
        self.search(follows.map(|(found, _)| found.next + 1));
    }

    /// Finds the match of the last tokens; `expected` is a position that follows the last match.
    fn search(&mut self, expected: Option<usize>) {
        let found = self.index.longest_match(expected);
        self.found = found.and_then(|found| Some((found, self.index.following(found, 1).next()?)));
    }

    /// The length of a draft of predictions.
    fn plan_predicted(&self, most: usize, others: usize) -> DraftPlan {
        let cost = |tokens: usize| {
            self.cost.of(tokens + others, self.len) + (tokens - 1) as f64 * self.cost.of_prediction()
        };
        self.acceptance.best_predicted([most, others], cost, WORTH)
    }

    fn draft(&mut self, most: usize, others: usize, predict: &mut dyn FnMut(usize) -> Vec<u32>) -> Vec<u32> {
        let most = most.min(MAX_DRAFT);
        let open = |token: &u32| !self.ends.contains(token);
        let (known, rate) = self.known(most, others);
        let known: Vec<u32> = known.into_iter().take_while(open).collect();
        let plan = match self.fixed {
            _ if !self.predicts => return known,
            Some(n) => DraftPlan { len: n.min(most), rate },
            None => self.plan_predicted(most, others),
        };
        self.undrafted = if known.is_empty() && plan.len == 0 { self.undrafted + 1 } else { 0 };
        self.predicts = self.undrafted < PATIENCE;
        if plan.len == 0 || !known.is_empty() && plan.rate <= rate {
            return known;
        }
        let start = Instant::now();
        let predicted: Vec<u32> = predict(plan.len).into_iter().take_while(open).collect();
        self.cost.record_predictions(predicted.len(), start.elapsed());
        if predicted.is_empty() {
            return known;
        }
        self.predicted = (predicted.iter().copied().collect(), 0);
        predicted
    }

    /// What is known to be likely without a computation, by the best plan, and the rate of that.
    fn known(&self, most: usize, others: usize) -> (Vec<u32>, f64) {
        let cost = |tokens: usize| self.cost.of(tokens + others, self.len);
        let expected_most = self.expected.len().min(most);
        let expected = match self.fixed {
            Some(n) => DraftPlan { len: n.min(expected_most), rate: f64::INFINITY },
            None => self.acceptance.best_expected([expected_most, others], cost, WORTH),
        };
        // Of a match that continues otherwise the constraint knows better.
        let found = self.found.filter(|(_, next)| self.expected.front().is_none_or(|token| token == next));
        let repeated = found.map(|(found, _)| match self.fixed {
            Some(n) => (found, DraftPlan { len: n.min(most), rate: f64::INFINITY }),
            None => (found, self.acceptance.best_length(found.len, [most, others], cost, WORTH)),
        });
        match repeated {
            Some((found, plan)) if plan.rate > expected.rate || expected.len == 0 => {
                (self.index.following(found, plan.len).collect(), plan.rate)
            }
            _ => (self.expected.iter().copied().take(expected.len).collect(), expected.rate),
        }
    }
}
