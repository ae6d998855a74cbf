//! Stores the log-probabilities of one position in a byte per token, and computes the KL divergence from them with a bound on
//! the error.
//!
//! Tokens of at least [`HEAD`], the most likely one and the one that follows in the text keep their F32 log-probability. Each
//! other token has a byte: code k means ln [`HEAD`] - s k - t k^2, so steps grow from [`STEP`] to 0.15 with the distance from
//! the head, and [`FLOOR`] means less than about e^-27. The coded probabilities p~ are scaled to their exact sum, and
//! D(p~ || p), which is known when a row is stored, is stored with it and subtracted. With r = ln p~ - ln q, e = ln p~ - ln p:
//!
//! D(p~ || q) - D(p~ || p) - D(p || q) = sum over the coded i of (p~_i - p_i) (ln p_i - ln q_i)
//!
//! So a model has no divergence from itself. With |e_i| <= E_i, half a step and the scale, the error is at most
//! sum p~_i (e^E_i - 1) (|r_i| + E_i), which [`Row::divergence`] returns beside the result.

use std::sync::LazyLock;

/// The smallest probability of a token that keeps its F32 value; at most 1,024 tokens have it.
pub const HEAD: f64 = 1.0 / 1024.0;
/// The first step of the codes, in nats.
const STEP: f64 = 0.01;
/// Distance from [`HEAD`] to the last code, in nats.
const RANGE: f64 = 20.0;
/// The code of all lesser probabilities.
const FLOOR: u8 = 255;
/// Largest distance from the floor in nats that counts: e^-127.
const FLOOR_ERROR: f64 = 100.0;

/// The log-probabilities of one position.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Tokens with exact log-probabilities, by id.
    pub head: Vec<(u32, f32)>,
    /// The probability of all other tokens.
    pub tail: f32,
    /// D(coded || exact), which the divergence from any model contains.
    pub rounding: f32,
    /// A code per token; those of the head are [`FLOOR`].
    pub codes: Vec<u8>,
}

/// A KL divergence from a stored row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// D(stored || model), at least 0.
    pub kl: f64,
    /// The largest difference from the divergence of the values before they were stored.
    pub bound: f64,
}

/// The meaning of a code.
#[derive(Clone, Copy)]
struct CodeLevel {
    log: f64,
    p: f64,
    /// Half of the larger neighboring step; infinite for [`FLOOR`].
    error: f64,
}

static LEVELS: LazyLock<Vec<CodeLevel>> = LazyLock::new(|| {
    let last = f64::from(FLOOR - 1);
    let depth = |k: f64| STEP * k + (RANGE - STEP * last) / (last * last) * k * k;
    let log = |k: f64| HEAD.ln() - depth(k);
    let level = |k: u8| {
        let k = f64::from(k);
        let error = if k > last { f64::INFINITY } else { (depth(k + 1.0) - depth(k)) / 2.0 };
        CodeLevel { log: log(k), p: log(k).exp(), error }
    };
    (0..=FLOOR).map(level).collect()
});

impl Row {
    /// Stores a row of log-probabilities; `next` is the token that follows in the text.
    pub fn new(log_probs: &[f32], next: u32) -> Row {
        let best = crate::generation::sample::argmax(log_probs);
        let (mut head, mut codes, mut tail) = (Vec::new(), vec![FLOOR; log_probs.len()], 0.0);
        let least = HEAD.ln() as f32;
        for (id, (log, code)) in (0..).zip(log_probs.iter().zip(&mut codes)) {
            if *log >= least || id == best || id == next {
                head.push((id, *log));
            } else {
                tail += f64::from(*log).exp();
                *code = nearest(f64::from(*log));
            }
        }
        let mut row = Row { head, tail: tail as f32, rounding: 0.0, codes };
        row.rounding = row.rounding(log_probs) as f32;
        row
    }

    /// The factor of the coded probabilities that gives their exact sum; 0 without any.
    fn scale(&self) -> f64 {
        let sum: f64 = self.coded().map(|(_, level)| level.p).sum();
        if sum > 0.0 { f64::from(self.tail) / sum } else { 0.0 }
    }

    /// The ids and levels of the tokens outside the head.
    fn coded(&self) -> impl Iterator<Item = (usize, CodeLevel)> {
        let (levels, mut head) = (&*LEVELS, self.head.iter().peekable());
        let codes = self.codes.iter().enumerate();
        codes.filter_map(move |(id, code)| {
            let is_head = head.next_if(|(head, _)| *head as usize == id).is_some();
            (!is_head).then(|| (id, levels[usize::from(*code)]))
        })
    }

    /// D(coded || exact) of the row that was made from these log-probabilities.
    fn rounding(&self, log_probs: &[f32]) -> f64 {
        let scale = self.scale();
        let error = |(id, level): (usize, CodeLevel)| {
            let apart = level.log + scale.ln() - f64::from(log_probs[id]);
            level.p * scale * apart.min(FLOOR_ERROR)
        };
        if scale > 0.0 { self.coded().map(error).sum() } else { 0.0 }
    }

    /// The stored log-probability of a token of the head.
    pub fn exact(&self, token: u32) -> Option<f32> {
        let at = self.head.binary_search_by_key(&token, |(id, _)| *id).ok()?;
        Some(self.head[at].1)
    }

    /// The id of the most likely token, which is in the head.
    pub fn best(&self) -> u32 {
        let largest = |best: (u32, f32), next: &(u32, f32)| if next.1 > best.1 { *next } else { best };
        self.head.iter().fold((0, f32::NEG_INFINITY), largest).0
    }

    /// The divergence of a model with these log-probabilities from the stored ones.
    pub fn divergence(&self, log_probs: &[f32]) -> Divergence {
        let of_head = |(id, log): &(u32, f32)| {
            let log = f64::from(*log);
            log.exp() * (log - f64::from(log_probs[*id as usize]))
        };
        let (mut kl, mut bound): (f64, f64) = (self.head.iter().map(of_head).sum(), 0.0);
        let scale = self.scale();
        if scale > 0.0 {
            let shift = scale.ln();
            for (id, level) in self.coded() {
                let (p, apart) = (level.p * scale, level.log + shift - f64::from(log_probs[id]));
                let error = (level.error + shift.abs()).min(FLOOR_ERROR);
                // At the floor the exact probability is between 0 and the coded one.
                let factor = if level.error.is_infinite() { 1.0 } else { error.exp_m1() };
                kl += p * apart;
                bound += p * factor * (apart.abs() + error);
            }
            kl -= f64::from(self.rounding);
        }
        Divergence { kl: kl.max(0.0), bound }
    }
}

/// The code of a log-probability below [`HEAD`].
fn nearest(log: f64) -> u8 {
    let levels = &*LEVELS;
    // Levels fall with the code. A probability between the last level and the floor has the last code if it is nearer.
    let after = levels.partition_point(|level| level.log > log).min(usize::from(FLOOR));
    let before = after.saturating_sub(1);
    let nearer = (levels[before].log - log).abs() < (log - levels[after].log).abs();
    (if nearer { before } else { after }) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_pcg::Pcg64Mcg;
    use rand_pcg::rand_core::Rng;

    /// Log-probabilities of random logits with this spread.
    fn random(rng: &mut Pcg64Mcg, n: usize, spread: f64) -> Vec<f32> {
        let mut unit = || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut normal = || (0..12).map(|_| unit()).sum::<f64>() - 6.0;
        let logits: Vec<f32> = (0..n).map(|_| (spread * normal()) as f32).collect();
        super::super::log_softmax(&logits)
    }

    fn exact(p: &[f32], q: &[f32]) -> f64 {
        p.iter().zip(q).map(|(p, q)| f64::from(*p).exp() * (f64::from(*p) - f64::from(*q))).sum()
    }

    #[test]
    fn the_error_is_within_its_bound_and_the_bound_is_small() {
        let mut rng = Pcg64Mcg::new(7);
        for spread in [0.0, 0.5, 2.0, 4.0, 8.0, 30.0] {
            for noise in [0.0, 0.003, 0.1, 1.0] {
                let p = random(&mut rng, 4096, spread);
                let noisy: Vec<f32> =
                    random(&mut rng, 4096, noise).iter().zip(&p).map(|(n, p)| n + p).collect();
                let q = super::super::log_softmax(&noisy);
                let (expected, found) = (exact(&p, &q), Row::new(&p, 17).divergence(&q));
                // Probabilities in F32 sum to 1 up to 1e-7.
                let error = (found.kl - expected).abs();
                assert!(error <= found.bound + 1e-7, "{spread} {noise}: {expected} {found:?}");
                // In practice the errors of many tokens cancel.
                assert!(error <= 0.01 * expected + 1e-6, "{spread} {noise}: {expected} {found:?}");
                assert!(found.bound <= 0.1 * expected + 5e-3, "{spread} {noise}: {expected} {found:?}");
            }
        }
    }

    #[test]
    fn the_head_is_exact() {
        let p = random(&mut Pcg64Mcg::new(3), 4096, 4.0);
        let row = Row::new(&p, 4095);
        let head = p.iter().filter(|log| **log >= HEAD.ln() as f32).count();
        assert!((head..=head + 1).contains(&row.head.len()) && head > 3, "{head}");
        assert!(row.head.iter().all(|(id, log)| p[*id as usize].to_bits() == log.to_bits()));
        assert_eq!((row.exact(4095), row.best()), (Some(p[4095]), crate::generation::sample::argmax(&p)));
        // A uniform row has no token of the head's probability but these two.
        let row = Row::new(&random(&mut Pcg64Mcg::new(3), 4096, 0.0), 9);
        assert_eq!(row.head.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 9]);
    }

    #[test]
    fn codes_are_the_nearest_levels() {
        for (k, level) in LEVELS.iter().enumerate().take(usize::from(FLOOR)) {
            assert_eq!(usize::from(nearest(level.log)), k);
            let half = level.error * 0.99;
            assert_eq!(usize::from(nearest(level.log - half)), k);
        }
        assert_eq!(nearest(f64::NEG_INFINITY), FLOOR);
    }
}
