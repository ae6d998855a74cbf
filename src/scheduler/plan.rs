//! How many tokens a step takes, and whose. A leaf: knows numbers only.

use std::time::Duration;

/// How long a step should take at most while somebody waits for a next token: reading prompts shares steps with replies,
/// which then go on several times a second.
const STEP: Duration = Duration::from_millis(200);
/// Tokens read beside replies at least, however slow the machine.
const LEAST: usize = 16;
/// Of the tokens beside replies, the part that goes to all who read alike; and of the large pieces, the part that goes
/// by turns.
const ALIKE: usize = 4;

/// Tokens for each sequence, of those it `wants`: one to all that want one. Of what the `budget` leaves, a quarter goes
/// to the readers alike, so that everybody comes to an end; the rest to whoever has least to read: it is answered
/// soonest, nobody else is later for it, and long pieces are read faster than many short ones.
pub fn deal(wants: &[usize], budget: usize) -> Vec<usize> {
    let mut shares: Vec<usize> = wants.iter().map(|w| usize::from(*w == 1)).collect();
    let mut left = budget.saturating_sub(shares.iter().sum());
    let mut readers: Vec<usize> = (0..wants.len()).filter(|i| wants[*i] > 1).collect();
    readers.sort_by_key(|i| wants[*i]);
    let alike = (left / ALIKE / readers.len().max(1)).max(1);
    for i in &readers {
        shares[*i] = wants[*i].min(alike);
        left = left.saturating_sub(shares[*i]);
    }
    for i in readers {
        let more = left.min(wants[i] - shares[i]);
        (shares[i], left) = (shares[i] + more, left - more);
    }
    shares
}

/// Who of those that read in large pieces reads the next one: whoever has least left (the number of each), and in every
/// fourth turn another.
pub fn next_large(left: &[Option<usize>], turn: u64) -> Option<usize> {
    let large: Vec<usize> = (0..left.len()).filter(|i| left[*i].is_some()).collect();
    if turn % ALIKE as u64 == ALIKE as u64 - 1 && !large.is_empty() {
        return Some(large[(turn / ALIKE as u64 % large.len() as u64) as usize]);
    }
    large.into_iter().min_by_key(|i| left[*i])
}

/// How fast this machine reads beside replies.
pub struct Pace {
    batch: usize,
    seconds_per_token: Option<f64>,
}

impl Pace {
    /// Nothing known; `batch` tokens at most.
    pub fn new(batch: usize) -> Self {
        Pace { batch, seconds_per_token: None }
    }

    /// Tokens for the next step, in which `replies` sequences want one each.
    pub fn budget(&self, replies: usize) -> usize {
        if replies == 0 {
            return self.batch;
        }
        let fit = self.seconds_per_token.map_or(0.0, |s| STEP.as_secs_f64() / s) as usize;
        replies + fit.clamp(LEAST.min(self.batch), self.batch)
    }

    /// A step in which so many tokens were read, beside replies or not, took so long.
    pub fn learn(&mut self, read: usize, took: Duration) {
        if read >= LEAST {
            let fresh = took.as_secs_f64() / read as f64;
            let old = self.seconds_per_token.unwrap_or(fresh);
            self.seconds_per_token = Some((0.5 * (old + fresh)).max(1e-9));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_come_first_and_readers_share() {
        assert_eq!(deal(&[1, 1000, 1, 1000], 102), [1, 88, 1, 12]);
        assert_eq!(deal(&[1000, 10, 900], 100), [8, 10, 82]);
        assert_eq!(deal(&[9, 9, 9], 100), [9, 9, 9]);
        assert_eq!(deal(&[600], 512), [512]);
        assert_eq!(deal(&[1, 1, 1], 2), [1, 1, 1]);
        assert_eq!(deal(&[1, 9, 9], 1), [1, 1, 1]);
        assert_eq!(deal(&[0, 1, 0, 9], 9), [0, 1, 0, 8]);
        assert_eq!(deal(&[], 9), [0; 0]);
    }

    #[test]
    fn large_pieces_go_to_one_at_a_time_and_everybody_has_a_turn() {
        let left = [None, Some(5000), None, Some(900), Some(7000)];
        let order: Vec<_> = (0..16).map(|turn| next_large(&left, turn).unwrap()).collect();
        assert_eq!(order, [3, 3, 3, 1, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3, 3, 1]);
        assert!((0..8).all(|turn| next_large(&[None], turn).is_none() && next_large(&[], turn).is_none()));
    }

    #[test]
    fn reading_beside_replies_keeps_to_the_time_of_a_step() {
        let mut pace = Pace::new(512);
        assert_eq!((pace.budget(0), pace.budget(2)), (512, 2 + LEAST));
        pace.learn(100, Duration::from_secs(1));
        assert_eq!(pace.budget(1), 1 + 20);
        pace.learn(1, Duration::from_secs(9));
        assert_eq!(pace.budget(1), 1 + 20, "a lone token says nothing about reading");
        (0..20).for_each(|_| pace.learn(512, Duration::from_millis(10)));
        assert_eq!(pace.budget(3), 3 + 512);
        assert_eq!(Pace::new(4).budget(1), 5);
    }
}
