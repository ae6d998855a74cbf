//! The sampler: penalties, top-k, top-p, min-p, temperature, and a seeded draw, in the order and with the meaning of
//! llama.cpp. It handles logits and token ids, not text.
//!
//! If the top-k logits determine the choice ([`Sampler::sample_from_top_k`]), the full row stays on the device. Both
//! ways draw the same token.

use crate::runtime::sampling_options::SamplingOptions;
use kernels::backend::TopK;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

/// The sampling parameters of a reply, with the meaning of [`SamplingOptions`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the options of the same names describe the parameters")]
pub struct Sampling {
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    pub repeat_penalty: f32,
    pub repeat_last_n: usize,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub seed: u64,
}

impl From<SamplingOptions> for Sampling {
    /// Fills unset parameters with the built-in defaults, and the seed with a random one.
    fn from(options: SamplingOptions) -> Self {
        let options = options.or(SamplingOptions::BUILT_IN);
        let greedy = Sampling::greedy();
        Sampling {
            temperature: options.temperature.unwrap_or(greedy.temperature),
            top_k: options.top_k.unwrap_or(greedy.top_k),
            top_p: options.top_p.unwrap_or(greedy.top_p),
            min_p: options.min_p.unwrap_or(greedy.min_p),
            repeat_penalty: options.repeat_penalty.unwrap_or(greedy.repeat_penalty),
            repeat_last_n: options.repeat_last_n.unwrap_or(64),
            presence_penalty: options.presence_penalty.unwrap_or(greedy.presence_penalty),
            frequency_penalty: options.frequency_penalty.unwrap_or(greedy.frequency_penalty),
            seed: options.seed.unwrap_or_else(random_seed),
        }
    }
}

impl Sampling {
    /// Parameters that always select the most likely token.
    pub fn greedy() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

/// Returns a random seed from the standard library's random hash keys.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(0)
}

/// Up to this number, candidates are drawn from in descending order, so that sampling from the top-k logits equals
/// sampling from the full row. More candidates are drawn from in the order of their ids.
const MAX_SORTED: usize = 256;

/// Samples the tokens of one sequence.
pub struct Sampler {
    how: Sampling,
    /// The logit bias by token.
    bias: Arc<[(u32, f32)]>,
    rng: Pcg64Mcg,
    candidates: Vec<(f32, u32)>,
    /// The number of times that each token was drawn, for presence and frequency penalties.
    drawn: HashMap<u32, u32>,
}

/// A constraint on the next token, such as a grammar.
pub trait Constraint: Send {
    /// Returns a bit mask of the allowed tokens, or `None` if all are allowed. An error states why no mask exists.
    fn allowed(&mut self) -> Result<Option<&[u32]>, String>;
    /// Advances by a token; returns an error if it was not allowed.
    fn accept(&mut self, token: u32) -> Result<(), String>;
    /// Waits up to the limit for the next mask; returns whether it is ready, so that [`Constraint::allowed`] does not
    /// block.
    fn wait(&mut self, _limit: Duration) -> bool {
        true
    }
    /// Returns text that is likely to follow, none if that is open: a draft, which the sampler accepts or not. Waits up to
    /// the limit for the last token to be taken into account.
    fn likely(&mut self, _limit: Duration) -> Vec<u8> {
        Vec::new()
    }
}

impl Sampler {
    /// Creates a sampler with a generator seeded from `how.seed`.
    pub fn new(how: Sampling) -> Self {
        // An odd multiplier spreads small seeds over the state of the generator.
        let state = u128::from(how.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        Sampler {
            how,
            bias: Arc::default(),
            rng: Pcg64Mcg::new(state ^ 0xCAFE_F00D_D15E_A5E5),
            candidates: Vec::new(),
            drawn: HashMap::new(),
        }
    }

    /// Sets the logit bias of some tokens.
    pub fn with_bias(mut self, bias: Arc<[(u32, f32)]>) -> Self {
        self.bias = bias;
        self
    }

    /// Samples the token after `recent` from its logits `[vocab]` among those whose bit is set in `allowed`. NaN has
    /// probability 0; returns `None` if all logits are NaN. Of several infinite logits the lowest id is selected.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32], allowed: Option<&[u32]>) -> Option<u32> {
        if self.how.temperature <= 0.0 && self.uses_raw_logits() && allowed.is_none() {
            let token = argmax(logits);
            return logits.get(token as usize).is_some_and(|l| !l.is_nan()).then_some(token);
        }
        let may = |i: &u32| allowed.is_none_or(|bits| bits[*i as usize / 32] >> (i % 32) & 1 == 1);
        self.candidates.clear();
        let numbers = logits.iter().zip(0..).filter(|(l, i)| !l.is_nan() && may(i));
        self.candidates.extend(numbers.map(|(l, i)| (*l, i)));
        if self.candidates.is_empty() {
            return None;
        }
        self.apply_logit_bias();
        self.apply_penalties(recent);
        let token = self.select();
        if self.counts_tokens() {
            *self.drawn.entry(token).or_default() += 1;
        }
        Some(token)
    }

    /// The number of recent tokens that [`Sampler::sample`] needs.
    pub fn penalty_window(&self) -> usize {
        if self.how.repeat_penalty == 1.0 { 0 } else { self.how.repeat_last_n }
    }

    /// Returns the number of top logits that usually suffice for [`Sampler::sample_from_top_k`]; `None` if they never
    /// do.
    pub fn top_k_needed(&self) -> Option<usize> {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.how;
        let cuts = top_k > 0 || top_p < 1.0 || min_p > 0.0;
        match self.uses_raw_logits() {
            true if temperature <= 0.0 => Some(1),
            true if cuts => Some(MAX_SORTED),
            _ => None,
        }
    }

    /// Samples from the top-k logits if they determine the token that [`Sampler::sample`] selects from the full row,
    /// up to the rounding of a sum. Otherwise returns `None` and does not advance the generator.
    pub fn sample_from_top_k(&mut self, best: &TopK) -> Option<u32> {
        self.top_k_needed()?;
        let (most, most_likely) = best.top.first().copied()?;
        if self.how.temperature <= 0.0 {
            return Some(most_likely);
        }
        self.candidates.clear();
        self.candidates.extend_from_slice(&best.top);
        let others = (!best.complete).then_some(f64::from(best.sum_exp));
        (most.is_finite() && self.filter_candidates(others)).then(|| self.draw())
    }

    /// Returns whether no penalty or bias changes the logits.
    fn uses_raw_logits(&self) -> bool {
        self.how.repeat_penalty == 1.0 && !self.counts_tokens() && self.bias.is_empty()
    }

    fn counts_tokens(&self) -> bool {
        self.how.presence_penalty != 0.0 || self.how.frequency_penalty != 0.0
    }

    fn select(&mut self) -> u32 {
        let (best, most_likely) = self.candidates.iter().copied().reduce(better).unwrap_or_default();
        if self.how.temperature <= 0.0 || best.is_infinite() {
            return most_likely;
        }
        self.filter_candidates(None);
        self.draw()
    }

    /// Adds the biases to the candidates, which are in the order of their ids.
    fn apply_logit_bias(&mut self) {
        for (token, bias) in self.bias.iter() {
            if let Ok(at) = self.candidates.binary_search_by_key(token, |(_, i)| *i) {
                self.candidates[at].0 += bias;
            }
        }
    }

    fn apply_penalties(&mut self, recent: &[u32]) {
        for (token, times) in &self.drawn {
            if let Ok(at) = self.candidates.binary_search_by_key(token, |(_, i)| *i) {
                let Sampling { presence_penalty, frequency_penalty, .. } = self.how;
                self.candidates[at].0 -= presence_penalty + frequency_penalty * *times as f32;
            }
        }
        if self.how.repeat_penalty == 1.0 {
            return;
        }
        let tail = &recent[recent.len().saturating_sub(self.how.repeat_last_n)..];
        for (logit, _) in self.candidates.iter_mut().filter(|(_, i)| tail.contains(i)) {
            *logit *= if *logit > 0.0 { 1.0 / self.how.repeat_penalty } else { self.how.repeat_penalty };
        }
    }

    /// Filters the candidates by top-k, top-p and min-p; at least one stays. If the candidates are only the top-k of
    /// the row, `with_others` is the sum of e^(l - best) over the full row. Returns whether the filters exclude all
    /// tokens besides the candidates.
    fn filter_candidates(&mut self, with_others: Option<f64>) -> bool {
        let all = &mut self.candidates;
        let mut alone = with_others.is_none();
        if self.how.top_k > 0 && self.how.top_k <= all.len() {
            all.select_nth_unstable_by(self.how.top_k - 1, descending);
            all.truncate(self.how.top_k);
            alone = true;
        }
        let best = all.iter().copied().reduce(better).map_or(0.0, |(l, _)| l);
        // Tokens below e^-30 of the best have no weight in f32. If a candidate is dropped, so are all less likely
        // tokens.
        let keep = |all: &mut Vec<(f32, u32)>, floor: f32| {
            let before = all.len();
            all.retain(|(l, _)| *l >= floor || *l == best);
            all.len() < before
        };
        alone |= keep(all, best - 30.0);
        if self.how.top_p < 1.0 {
            let total = match with_others {
                Some(total) if !alone => total,
                _ => all.iter().map(|(l, _)| f64::from((l - best).exp())).sum(),
            };
            // The weight of the tokens that top-k keeps besides the candidates is unknown.
            if !alone && self.how.top_k > 0 {
                return false;
            }
            alone |= keep_nucleus(all, best, total, self.how.top_p);
        }
        if self.how.min_p > 0.0 {
            alone |= keep(all, best + self.how.min_p.ln());
        }
        alone
    }

    fn draw(&mut self) -> u32 {
        if self.candidates.len() <= MAX_SORTED {
            self.candidates.sort_unstable_by(descending);
        }
        let (best, most_likely) = self.candidates.iter().copied().reduce(better).unwrap_or_default();
        let weight = |l: f32| f64::from((l - best) / self.how.temperature).exp();
        let total: f64 = self.candidates.iter().map(|(l, _)| weight(*l)).sum();
        let mut left = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
        for (l, i) in &self.candidates {
            left -= weight(*l);
            if left < 0.0 {
                return *i;
            }
        }
        most_likely
    }
}

/// Compares candidates in descending order; -0 equals 0, ties by id.
fn descending(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    (b.0 + 0.0).total_cmp(&(a.0 + 0.0)).then(a.1.cmp(&b.1))
}

/// Keeps the most likely candidates that together have the fraction `top_p` of all weights; returns false and keeps
/// all if they have less. Usually few remain, so only as many as needed are sorted: sorting a vocabulary of 164,000
/// would take longer than a layer of the model.
fn keep_nucleus(all: &mut Vec<(f32, u32)>, best: f32, total: f64, top_p: f32) -> bool {
    let (mut sum, mut sorted) = (0.0, 0);
    while sorted < all.len() {
        let piece = (8 * sorted).max(64).min(all.len() - sorted);
        let rest = &mut all[sorted..];
        if piece < rest.len() {
            rest.select_nth_unstable_by(piece - 1, descending);
        }
        rest[..piece].sort_unstable_by(descending);
        for (l, _) in &rest[..piece] {
            sum += f64::from((l - best).exp()) / total;
            sorted += 1;
            if sum >= f64::from(top_p) {
                all.truncate(sorted);
                return true;
            }
        }
    }
    false
}

/// Returns the most likely token, the lowest id among equals; 0 if all logits are NaN.
pub fn argmax(logits: &[f32]) -> u32 {
    // Finds the maximum in lanes, then its index: 27 us instead of 219 us for a vocabulary of 163,840.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(best, l)| *best = larger(*best, *l));
    }
    let best = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    let there = |chunk: &[f32]| chunk.iter().fold(false, |there, l| there | (*l == best));
    let first = logits.chunks(256).position(there).unwrap_or(0) * 256;
    let at = logits.iter().skip(first).position(|l| *l == best).map_or(0, |i| first + i);
    at as u32
}

fn better(a: (f32, u32), b: (f32, u32)) -> (f32, u32) {
    if b.0 > a.0 { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_checks::rng::TestRng;
    use kernels::reference::top_k;

    const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 7,
    };

    /// Draws from four tokens with logits 1, 3, 0, 2 in 4,000 tries and counts each.
    fn drawn(how: Sampling) -> [usize; 4] {
        let mut sampler = Sampler::new(how);
        let mut counts = [0; 4];
        (0..4000)
            .for_each(|_| counts[sampler.sample(&[1.0, 3.0, 0.0, 2.0], &[], None).unwrap() as usize] += 1);
        counts
    }

    #[test]
    fn greedy_selects_the_largest_and_ignores_nan() {
        assert_eq!(drawn(GREEDY), [0, 4000, 0, 0]);
        assert_eq!(argmax(&[f32::NAN, 1.0, 1.0]), 1);
        assert_eq!(argmax(&[f32::NAN]), 0);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY, f32::NAN]), 1);
        let mut many: Vec<f32> = (0..1000).map(|i| (i * 7919 % 1000) as f32).collect();
        assert_eq!(many[argmax(&many) as usize], 999.0);
        many[997] = f32::INFINITY;
        many[3] = f32::NAN;
        assert_eq!(argmax(&many), 997);
        assert_eq!(Sampler::new(GREEDY).sample(&[], &[], None), None);
    }

    /// Parameters that cover each path through the sampler.
    fn paths() -> [Sampling; 5] {
        let hot = Sampling { temperature: 1.0, ..GREEDY };
        [
            GREEDY,
            hot,
            Sampling { top_k: 2, ..hot },
            Sampling { top_p: 0.9, min_p: 0.1, ..hot },
            Sampling { repeat_penalty: 1.5, frequency_penalty: 0.5, ..GREEDY },
        ]
    }

    #[test]
    fn no_token_is_drawn_where_every_logit_is_nan() {
        for how in paths() {
            for len in [1, 3, 300] {
                let logits = vec![f32::NAN; len];
                assert_eq!(Sampler::new(how).sample(&logits, &[0], None), None, "{how:?}");
                assert_eq!(Sampler::new(how).sample_from_top_k(&top_k(&logits, 256)), None, "{how:?}");
            }
            let allowed: &[u32] = &[0b101];
            assert_eq!(Sampler::new(how).sample(&[f32::NAN, 1.0, f32::NAN], &[], Some(allowed)), None);
            assert_eq!(Sampler::new(how).sample(&[f32::NAN, 1.0, 0.5], &[], Some(allowed)), Some(2));
        }
    }

    #[test]
    fn infinite_logits_give_the_lowest_id_whatever_the_seed() {
        for (how, seed) in paths().into_iter().flat_map(|how| (0..20).map(move |seed| (how, seed))) {
            let how = Sampling { seed, ..how };
            for infinity in [f32::INFINITY, f32::NEG_INFINITY] {
                for len in [3, 300, 2000] {
                    let mut logits = vec![infinity; len];
                    logits[0] = f32::NAN;
                    assert_eq!(Sampler::new(how).sample(&logits, &[], None), Some(1), "{how:?}");
                }
            }
            let one = [1.0, f32::NEG_INFINITY, 2.0, f32::INFINITY, f32::INFINITY];
            assert_eq!(Sampler::new(how).sample(&one, &[], None), Some(3), "{how:?}");
        }
    }

    #[test]
    fn filters_keep_the_expected_tokens() {
        let hot = Sampling { temperature: 1.0, ..GREEDY };
        assert_eq!(drawn(Sampling { top_k: 2, ..hot }).map(|n| n > 0), [false, true, false, true]);
        assert_eq!(drawn(Sampling { top_p: 0.9, ..hot }).map(|n| n > 0), [true, true, false, true]);
        assert_eq!(drawn(Sampling { top_p: 0.0, ..hot }), [0, 4000, 0, 0]);
        assert_eq!(drawn(Sampling { min_p: 0.3, ..hot }).map(|n| n > 0), [false, true, false, true]);
        assert_eq!(drawn(Sampling { min_p: 1.0, ..hot }), [0, 4000, 0, 0]);
    }

    /// Partial sorting gives the same nucleus as full sorting.
    #[test]
    fn a_nucleus_equals_that_of_a_sorted_list() {
        let logits: Vec<(f32, u32)> = (0..5000u32).map(|i| ((i * 7919 % 5000) as f32 / 400.0, i)).collect();
        for top_p in [0.0, 0.01, 0.1, 0.5, 0.9, 0.999, 0.999_999] {
            let mut all = logits.clone();
            all.sort_unstable_by(descending);
            let total: f64 = all.iter().map(|(l, _)| f64::from(*l).exp()).sum();
            let mut sum = 0.0;
            let inside = |(l, _): &&(f32, u32)| {
                sum += f64::from(*l).exp() / total;
                sum < f64::from(top_p) - 1e-5
            };
            let least = all.iter().take_while(inside).count() + 1;
            let mut kept = logits.clone();
            let weights: f64 = kept.iter().map(|(l, _)| f64::from((l - all[0].0).exp())).sum();
            keep_nucleus(&mut kept, all[0].0, weights, top_p);
            assert_eq!(kept, all[..kept.len()]);
            let mass: f64 =
                all[..kept.len().saturating_sub(1)].iter().map(|(l, _)| f64::from(*l).exp() / total).sum();
            assert!(
                kept.len() >= least && mass < f64::from(top_p) + 1e-5,
                "{top_p}: {} of at least {least}",
                kept.len()
            );
        }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let counts = drawn(Sampling { temperature: 1.0, ..GREEDY });
        let total: f64 = (0..4).map(|l| f64::from(l).exp()).sum();
        for (count, logit) in counts.iter().zip([1.0f64, 3.0, 0.0, 2.0]) {
            let expected = 4000.0 * logit.exp() / total;
            assert!((*count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{count} against {expected}");
        }
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let run = |seed| {
            let mut s = Sampler::new(Sampling { temperature: 1.0, seed, ..GREEDY });
            (0..50).map(|_| s.sample(&[0.0; 100], &[], None).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn repetition_penalty_avoids_recent_tokens() {
        let how = Sampling { repeat_penalty: 2.0, ..GREEDY };
        assert_eq!(Sampler::new(how).sample(&[1.0, 3.0, 2.0], &[1], None), Some(2));
        assert_eq!(Sampler::new(how).sample(&[-1.0, -0.6, -2.0], &[1], None), Some(0));
        let short = Sampling { repeat_last_n: 1, ..how };
        assert_eq!(Sampler::new(short).sample(&[1.0, 3.0, 2.0], &[1, 0], None), Some(1));
    }

    #[test]
    fn presence_and_frequency_penalties_count_the_reply_only() {
        let run = |how| {
            let mut sampler = Sampler::new(how);
            (0..4).map(|_| sampler.sample(&[1.0, 3.0, 2.5], &[1, 1], None).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(Sampling { presence_penalty: 1.0, ..GREEDY }), [1, 2, 1, 1]);
        assert_eq!(run(Sampling { frequency_penalty: 0.4, ..GREEDY }), [1, 1, 2, 1]);
        assert_eq!(run(Sampling { presence_penalty: -2.0, ..GREEDY }), [1; 4]);
    }

    #[test]
    fn biases_and_masks_change_the_token() {
        let sample = |bias: &[(u32, f32)], allowed: Option<&[u32]>| {
            Sampler::new(GREEDY).with_bias(bias.into()).sample(&[1.0, 3.0, 2.0], &[], allowed).unwrap()
        };
        assert_eq!(sample(&[(0, 5.0), (9, 50.0)], None), 0);
        assert_eq!(sample(&[(1, -100.0)], None), 2);
        assert_eq!(sample(&[], Some(&[0b101])), 2);
        assert_eq!(sample(&[(2, -9.0), (1, 9.0)], Some(&[0b101])), 0);
    }

    /// Rows of many shapes: flat and peaked, with ties, with many or only NaN.
    fn shapes(n: &mut TestRng) -> Vec<Vec<f32>> {
        let mut all = Vec::new();
        for len in [1, 3, 255, 256, 257, 900, 2000] {
            for width in [0.0, 1.0, 15.0, 200.0] {
                let row: Vec<f32> = n.vec(len).iter().map(|x| x * width).collect();
                all.push(row.iter().map(|x| x.round()).collect());
                all.push(row.iter().map(|x| if x.sin() < 0.2 { f32::NAN } else { *x }).collect());
                all.push(row.iter().map(|x| if x.sin() < 0.9 { f32::NEG_INFINITY } else { *x }).collect());
                all.push(row);
            }
            all.push((0..len).map(|i| -1.3 * (1.0 + (i * 7919 % len) as f32).ln()).collect());
            all.extend([f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0].map(|x| vec![x; len]));
        }
        all
    }

    /// With the same seed, the top-k logits give the token that the full row gives, or leave the sampler unchanged.
    #[test]
    fn top_k_logits_suffice_or_return_none() {
        let mut n = TestRng::new(3);
        let (mut enough, mut not) = (0, 0);
        for logits in shapes(&mut n) {
            let bests = [1, 20, 256].map(|most| top_k(&logits, most));
            for _ in 0..40 {
                let i = n.uniform(0.0, 600.0) as usize; // a setting
                let how = Sampling {
                    temperature: [0.0, 0.2, 0.6, 1.0, 3.0][i % 5],
                    top_k: [0, 0, 1, 19, 20, 256][i / 5 % 6],
                    top_p: [0.0, 0.5, 0.95, 0.9999, 1.0][i / 30 % 5],
                    min_p: [0.0, 0.001, 0.1, 1.0][i / 150],
                    seed: i as u64,
                    ..GREEDY
                };
                for best in &bests {
                    let [mut one, mut other] = [(); 2].map(|()| Sampler::new(how));
                    for _ in 0..2 {
                        let found = one.sample_from_top_k(best);
                        *if found.is_some() { &mut enough } else { &mut not } += 1;
                        let found = found.or_else(|| one.sample(&logits, &[], None));
                        assert_eq!(found, other.sample(&logits, &[], None), "{how:?}, {best:?}");
                    }
                }
            }
        }
        assert!(enough > 15_000 && not > 5_000, "{enough} enough, {not} not");
    }

    /// The top 256 suffice if probabilities fall like i^-1.5 or faster, as they usually do for text; the full row is
    /// needed without filters, or with penalties.
    #[test]
    fn top_k_is_used_for_steep_distributions_only() {
        let how = Sampling { temperature: 0.6, top_p: 0.95, ..GREEDY };
        let enough = |how: Sampling, exponent: f32| {
            let logits: Vec<f32> = (0..163_840).map(|i| -exponent * (1.0 + i as f32).ln()).collect();
            Sampler::new(how).sample_from_top_k(&top_k(&logits, 256)).is_some()
        };
        assert_eq!([1.0, 1.3, 1.5, 2.0, 4.0].map(|x| enough(how, x)), [false, false, true, true, true]);
        assert!(enough(Sampling { top_k: 256, ..how }, 0.1) && !enough(Sampling { top_k: 257, ..how }, 0.1));
        assert!(enough(Sampling { temperature: 0.0, ..how }, 0.0));
        let all = Sampling { top_p: 1.0, ..how };
        assert!(!enough(all, 2.0) && enough(Sampling { min_p: 0.05, ..all }, 1.0));
        let wants = |how| Sampler::new(how).top_k_needed();
        assert_eq!((wants(how), wants(GREEDY), wants(all)), (Some(256), Some(1), None));
        for changed in [
            Sampling { repeat_penalty: 1.1, ..how },
            Sampling { presence_penalty: 0.1, ..how },
            Sampling { frequency_penalty: -0.1, ..GREEDY },
        ] {
            assert_eq!(wants(changed), None);
        }
        assert_eq!(Sampler::new(GREEDY).with_bias([(1, 2.0)].into()).top_k_needed(), None);
    }
}
