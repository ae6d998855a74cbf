//! How many tokens a step takes, and whose. A leaf: knows numbers only.

use std::time::Duration;

/// How long a step should take at most while somebody waits for a next token: reading long prompts shares steps
/// with replies, which then go on several times a second.
const STEP: Duration = Duration::from_millis(200);
/// Tokens read beside replies at least, however slow the machine.
const LEAST: usize = 16;
/// Tokens in one piece at least of what is read in large ones: for fewer, keys and values do not pay.
const PIECE: usize = 256;
/// Of the tokens beside replies, the part that goes to all who read alike; and of the steps, the part in which who reads
/// in large pieces comes first.
const ALIKE: usize = 4;

/// What a sequence has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Tokens; one: the next of a reply, or the last of a prompt.
    pub tokens: usize,
    /// Read in large pieces, or not at all in this step.
    pub large: bool,
}

/// Tokens for each sequence, of those it wants: one to all that want one. Of what the `budget` leaves, a quarter goes
/// to the readers alike, so that everybody comes to an end; the rest to whoever has least to read: it is answered
/// soonest, nobody else is later for it, and long pieces are read faster than many short ones. Of those who read in
/// large pieces one reads at a time, whoever has least; in every fourth step it is another's turn, before all others.
pub fn deal(wants: &[Want], budget: usize, step: u64) -> Vec<usize> {
    let mut shares: Vec<usize> = wants.iter().map(|w| usize::from(w.tokens == 1 && !w.large)).collect();
    let mut left = budget.saturating_sub(shares.iter().sum());
    let mut readers: Vec<usize> =
        (0..wants.len()).filter(|i| wants[*i].tokens > 1 && !wants[*i].large).collect();
    readers.sort_by_key(|i| wants[*i].tokens);
    let (one, room) = (one_of_the_large(wants, step), left);
    let first = step.is_multiple_of(ALIKE as u64);
    if first {
        give_piece(wants, one, room, &mut left, &mut shares);
    }
    let alike = (left / ALIKE / readers.len().max(1)).max(1);
    for i in &readers {
        shares[*i] = wants[*i].tokens.min(alike);
        left = left.saturating_sub(shares[*i]);
    }
    for i in readers {
        let more = left.min(wants[i].tokens - shares[i]);
        (shares[i], left) = (shares[i] + more, left - more);
    }
    if !first {
        give_piece(wants, one, room, &mut left, &mut shares);
    }
    shares
}

fn one_of_the_large(wants: &[Want], step: u64) -> Option<usize> {
    let large: Vec<usize> = (0..wants.len()).filter(|i| wants[*i].large).collect();
    let turn = step / ALIKE as u64;
    if step.is_multiple_of(ALIKE as u64) && !large.is_empty() {
        return Some(large[(turn % large.len() as u64) as usize]);
    }
    large.into_iter().min_by_key(|i| wants[*i].tokens)
}

/// Of what is `left` of the `room` beside replies.
fn give_piece(wants: &[Want], one: Option<usize>, room: usize, left: &mut usize, shares: &mut [usize]) {
    let Some(one) = one else { return };
    let share = wants[one].tokens.min(*left);
    if share >= PIECE.min(wants[one].tokens).min(room) {
        shares[one] = share;
        *left -= share;
    }
}

/// How fast this machine reads.
pub struct Pace {
    batch: usize,
    large: usize,
    seconds_per_token: Option<f64>,
    /// Steps of replies alone, after one that kept them waiting.
    owed: u32,
}

impl Pace {
    /// Nothing known; `batch` tokens at most, `large` where somebody reads in large pieces.
    pub fn new(batch: usize, large: usize) -> Self {
        Pace { batch, large, seconds_per_token: None, owed: 0 }
    }

    /// Tokens for the next step, in which `replies` sequences want one each; `large`: somebody reads in large pieces.
    pub fn budget(&mut self, replies: usize, large: bool) -> usize {
        let most = if large { self.large } else { self.batch };
        if replies == 0 {
            self.owed = 0;
            return most;
        }
        if self.owed > 0 {
            self.owed -= 1;
            return replies;
        }
        let least = if large { PIECE } else { LEAST };
        let fit = self.seconds_per_token.map_or(0.0, |s| STEP.as_secs_f64() / s) as usize;
        replies + fit.clamp(least.min(most), most)
    }

    /// A step of so many tokens took so long. Replies that waited for it longer than they should go on alone for a while:
    /// they get as many tokens in the time as if it had been cut.
    pub fn learn(&mut self, tokens: usize, took: Duration) {
        if tokens >= LEAST {
            let fresh = took.as_secs_f64() / tokens as f64;
            let old = self.seconds_per_token.unwrap_or(fresh);
            self.seconds_per_token = Some((0.5 * (old + fresh)).max(1e-9));
            self.owed = (took.as_secs_f64() / STEP.as_secs_f64()).round().clamp(1.0, 100.0) as u32 - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(tokens: &[usize], budget: usize) -> Vec<usize> {
        let wants: Vec<Want> = tokens.iter().map(|n| Want { tokens: *n, large: false }).collect();
        let dealt = deal(&wants, budget, 1);
        assert_eq!(deal(&wants, budget, 4), dealt, "turns are for large pieces");
        dealt
    }

    #[test]
    fn replies_come_first_and_readers_share() {
        assert_eq!(small(&[1, 1000, 1, 1000], 102), [1, 88, 1, 12]);
        assert_eq!(small(&[1000, 10, 900], 100), [8, 10, 82]);
        assert_eq!(small(&[9, 9, 9], 100), [9, 9, 9]);
        assert_eq!(small(&[600], 512), [512]);
        assert_eq!(small(&[1, 1, 1], 2), [1, 1, 1]);
        assert_eq!(small(&[1, 9, 9], 1), [1, 1, 1]);
        assert_eq!(small(&[], 9), [0; 0]);
    }

    #[test]
    fn large_pieces_go_to_one_at_a_time() {
        let (reply, short) = (Want { tokens: 1, large: false }, Want { tokens: 300, large: false });
        let large = |tokens| Want { tokens, large: true };
        assert_eq!(deal(&[large(5000)], 1024, 1), [1024]);
        assert_eq!(deal(&[large(5000), reply, large(900)], 513, 1), [0, 1, 512]);
        assert_eq!(
            deal(&[large(5000), reply, large(900)], 513, 4),
            [0, 1, 512],
            "the second turn is the second's"
        );
        assert_eq!(deal(&[large(5000), reply, large(900)], 513, 8), [512, 1, 0]);
        assert_eq!(deal(&[large(5000), reply, short], 513, 1), [0, 1, 300], "too little is left for a piece");
        assert_eq!(deal(&[large(5000), reply, short], 513, 4), [512, 1, 1]);
        assert_eq!(deal(&[large(5000), reply], 1, 4), [0, 1]);
        assert_eq!(deal(&[large(1), reply], 3, 1), [1, 1], "the end of a prompt");
        assert_eq!(deal(&[large(5000), reply], 9, 1), [8, 1], "a small budget is a piece too");
    }

    #[test]
    fn reading_beside_replies_keeps_to_the_time_of_a_step() {
        let mut pace = Pace::new(512, 1024);
        assert_eq!((pace.budget(0, false), pace.budget(2, false)), (512, 2 + LEAST));
        assert_eq!((pace.budget(0, true), pace.budget(2, true)), (1024, 2 + PIECE));
        pace.learn(100, Duration::from_secs(1));
        let owed: Vec<usize> = (0..5).map(|_| pace.budget(1, false)).collect();
        assert_eq!(owed, [1, 1, 1, 1, 1 + 20], "a step of a second is owed five tokens");
        pace.learn(1, Duration::from_secs(9));
        assert_eq!(pace.budget(1, false), 1 + 20, "a lone token says nothing about reading");
        (0..20).for_each(|_| pace.learn(512, Duration::from_millis(10)));
        assert_eq!((pace.budget(3, false), pace.budget(3, true)), (3 + 512, 3 + 1024));
        assert_eq!(Pace::new(4, 8).budget(1, true), 1 + 8);
    }
}
