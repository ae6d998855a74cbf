//! Log-probabilities of tokens: the log-softmax of the model's logits, before temperature, penalties, bias and grammar.

/// The log-probabilities reported for one token.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    pub chosen: f32,
    /// The most likely tokens in descending order.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Computes the log-probability of `token` and of the `top` most likely tokens; equal ones are ordered by id. NaN
    /// has probability 0.
    pub fn of(logits: &[f32], token: u32, top: usize) -> Self {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().filter(|l| !l.is_nan()).map(|l| f64::from(l - best).exp()).sum();
        let log_sum = f64::from(best) + sum.ln();
        let logprob = |l: f32| if l.is_nan() { f32::NEG_INFINITY } else { (f64::from(l) - log_sum) as f32 };
        let chosen = logits.get(token as usize).map_or(f32::NEG_INFINITY, |l| logprob(*l));
        let top = largest(logits, top).into_iter().map(|(i, l)| (i, logprob(l))).collect();
        Logprobs { chosen, top }
    }
}

/// Returns the `n` largest logits except NaN in descending order; equal ones are ordered by id. Allocates memory for
/// `n` entries only, because the result may wait in a queue.
fn largest(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(n.min(logits.len()));
    for (id, logit) in (0..).zip(logits.iter().copied()).filter(|(_, l)| !l.is_nan()) {
        if top.len() == n && top.last().is_none_or(|(_, least)| logit.total_cmp(least).is_le()) {
            continue;
        }
        top.truncate(n - 1);
        let at = top.partition_point(|(_, other)| other.total_cmp(&logit).is_ge());
        top.insert(at, (id, logit));
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_the_log_softmax_and_sorted() {
        let l = Logprobs::of(&[0.0, 2.0, f32::NAN, 2.0, 1.0], 4, 3);
        let sum: f32 = [0.0f32, 2.0, 2.0, 1.0].iter().map(|x| x.exp()).sum();
        assert!((l.chosen - (1.0 - sum.ln())).abs() < 1e-6);
        assert_eq!(l.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 4]);
        assert!((l.top[0].1 - (2.0 - sum.ln())).abs() < 1e-6);
        assert_eq!(Logprobs::of(&[1.0], 0, 5).top, [(0, 0.0)]);
        assert_eq!(Logprobs::of(&[1.0, 1.0], 7, 0), Logprobs { chosen: f32::NEG_INFINITY, top: vec![] });
    }

    /// At the real vocabulary size, all 163,840 candidates would take 1.3 MB.
    #[test]
    fn logprobs_hold_memory_for_the_requested_tokens_only() {
        let logits: Vec<f32> =
            (0..163_840u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32).collect();
        let l = Logprobs::of(&logits, 0, 20);
        assert_eq!(l.top.len(), 20);
        assert!(l.top.capacity() <= 20, "memory for {} candidates", l.top.capacity());
        let mut all: Vec<(u32, f32)> = (0..).zip(logits).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        let ids = |top: &[(u32, f32)]| top.iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!(ids(&l.top), ids(&all[..20]));
    }
}
