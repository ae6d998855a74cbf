//! Synthetic expert traces, reproducible by seed: `uniform`, and `skewed` with the locality of text.
//!
//! In `skewed` a token keeps each expert of the token before with probability 1/3 ([`KEPT`]) and selects the others among the
//! experts that the token before did not select, by a popularity that falls with the rank as 1/rank^[`ZIPF`]. Each layer
//! has its own ranking, and a new one every [`TOPIC_TOKENS`] tokens. Measured traces of models with 512 experts have these
//! properties: in 300 tokens of text the most used eighth of the experts of a layer has 41 % of the uses (`kekzl/imp` #2061), but the
//! most used experts of half of a mixed workload are hardly used more than others in the other half (`ggml-org/llama.cpp`
//! #27861). In `uniform` all experts are equally likely, independent of earlier tokens: the worst case of a cache. Next:
//! `cache_policies`.

use super::expert_trace::{ExpertTrace, RoutedStep};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;

/// Probability that a token keeps an expert of the token before.
const KEPT: f64 = 1.0 / 3.0;
/// Exponent of the popularity by rank.
const ZIPF: f64 = 0.7;
/// Tokens after which the experts of each layer are ranked anew.
const TOPIC_TOKENS: usize = 1024;

/// The kind of a synthetic trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticRouting {
    Uniform,
    Skewed,
}

/// The numbers of layers and experts of a model, and the tokens to route.
#[derive(Clone, Debug)]
pub struct TraceShape {
    pub experts: usize,
    pub selected: usize,
    pub layers: Vec<usize>,
    /// The tokens of each step.
    pub steps: Vec<usize>,
}

/// Generates a trace of this shape.
pub fn generate(routing: SyntheticRouting, shape: TraceShape, seed: u64) -> ExpertTrace {
    let mut rng = Pcg64Mcg::new(seed.into());
    let TraceShape { experts, selected, layers, steps } = shape;
    let mut routers: Vec<SyntheticRouter> =
        layers.iter().map(|_| SyntheticRouter::new(routing, experts, selected)).collect();
    let mut position = 0;
    let mut step = |tokens: usize| {
        let mut chosen = vec![Vec::with_capacity(tokens * selected); layers.len()];
        for _ in 0..tokens {
            for (router, chosen) in routers.iter_mut().zip(&mut chosen) {
                if position % TOPIC_TOKENS == 0 {
                    shuffle(&mut router.ranking, &mut rng);
                }
                router.route(&mut rng);
                chosen.extend(&router.chosen);
            }
            position += 1;
        }
        RoutedStep(chosen)
    };
    let steps = steps.into_iter().map(&mut step).collect();
    ExpertTrace { experts, selected, layers, steps }
}

/// Selects the experts of one layer.
struct SyntheticRouter {
    kept: f64,
    /// Sums of the popularity up to each rank.
    cumulative: Vec<f64>,
    /// The expert of each rank.
    ranking: Vec<u32>,
    selected: usize,
    /// The experts of the last token.
    chosen: Vec<u32>,
    /// Experts that the next draw must not select.
    excluded: Vec<bool>,
}

impl SyntheticRouter {
    fn new(routing: SyntheticRouting, experts: usize, selected: usize) -> SyntheticRouter {
        // Too few experts leave no choice beside those of the last token.
        let (kept, zipf) = match routing {
            SyntheticRouting::Skewed if experts >= 2 * selected => (KEPT, ZIPF),
            SyntheticRouting::Skewed => (0.0, ZIPF),
            SyntheticRouting::Uniform => (0.0, 0.0),
        };
        let mut sum = 0.0;
        let cumulative = (1..=experts).map(|rank| {
            sum += (rank as f64).powf(-zipf);
            sum
        });
        SyntheticRouter {
            kept,
            cumulative: cumulative.collect(),
            ranking: (0..experts as u32).collect(),
            selected,
            chosen: Vec::new(),
            excluded: vec![false; experts],
        }
    }

    /// Selects the experts of the next token.
    fn route(&mut self, rng: &mut Pcg64Mcg) {
        let (kept, before) = (self.kept, std::mem::take(&mut self.chosen));
        self.excluded.fill(false);
        if kept > 0.0 {
            before.iter().for_each(|e| self.excluded[*e as usize] = true);
            self.chosen.extend(before.iter().filter(|_| unit(rng) < kept));
        }
        while self.chosen.len() < self.selected {
            let at = unit(rng) * self.cumulative.last().copied().unwrap_or(0.0);
            let rank = self.cumulative.partition_point(|sum| *sum <= at).min(self.ranking.len() - 1);
            let expert = self.ranking[rank];
            if !std::mem::replace(&mut self.excluded[expert as usize], true) {
                self.chosen.push(expert);
            }
        }
    }
}

/// A random number in [0, 1).
fn unit(rng: &mut Pcg64Mcg) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Permutes a list at random (Fisher and Yates).
fn shuffle(list: &mut [u32], rng: &mut Pcg64Mcg) {
    for i in (1..list.len()).rev() {
        list.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(routing: SyntheticRouting, tokens: usize, seed: u64) -> ExpertTrace {
        let shape = TraceShape { experts: 256, selected: 8, layers: vec![1, 2], steps: vec![tokens, 1] };
        generate(routing, shape, seed)
    }

    /// The share of a token's experts that the token before has too.
    fn shared(chosen: &[u32]) -> f64 {
        let tokens: Vec<&[u32]> = chosen.chunks(8).collect();
        let common = |pair: &[&[u32]]| pair[1].iter().filter(|e| pair[0].contains(e)).count();
        tokens.windows(2).map(common).sum::<usize>() as f64 / (8 * (tokens.len() - 1)) as f64
    }

    /// The share of the uses that the most used eighth of the experts has.
    fn most_used(chosen: &[u32]) -> f64 {
        let mut uses = [0; 256];
        chosen.iter().for_each(|e| uses[*e as usize] += 1);
        uses.sort_unstable();
        f64::from(uses[224..].iter().sum::<u32>()) / chosen.len() as f64
    }

    #[test]
    fn traces_have_the_stated_locality() {
        let [skewed, uniform] =
            [SyntheticRouting::Skewed, SyntheticRouting::Uniform].map(|routing| trace(routing, 3000, 5));
        for (trace, is_skewed) in [(&skewed, true), (&uniform, false)] {
            for chosen in &trace.steps[0].0 {
                assert!(chosen.chunks(8).all(|token| (1..8).all(|i| !token[..i].contains(&token[i]))));
                let near = |found: f64, expected: f64| assert!((found - expected).abs() < 0.02, "{found}");
                near(shared(chosen), if is_skewed { 1.0 / 3.0 } else { 8.0 / 256.0 });
                let windows = chosen[..8 * TOPIC_TOKENS].chunks_exact(8 * 300).map(most_used);
                near(windows.sum::<f64>() / 3.0, if is_skewed { 0.41 } else { 0.19 });
            }
            assert_eq!((&trace.layers[..], trace.steps[1].0[1].len()), (&[1, 2][..], 8));
        }
        assert_eq!(skewed, trace(SyntheticRouting::Skewed, 3000, 5), "the same seed");
        assert!(skewed != trace(SyntheticRouting::Skewed, 3000, 6), "another seed");
    }

    #[test]
    fn few_experts_are_routed_too() {
        for (experts, selected) in [(1, 1), (8, 8), (9, 8), (16, 8)] {
            let shape = TraceShape { experts, selected, layers: vec![0], steps: vec![5] };
            let trace = generate(SyntheticRouting::Skewed, shape, 1);
            assert_eq!(trace.steps[0].0[0].len(), 5 * selected);
        }
    }
}
