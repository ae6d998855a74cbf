//! Token masks of one reply, computed on threads of their own while the model runs: after a token is accepted the next
//! mask is queued, and a caller that has other work looks in with [`Constraint::wait`].
//!
//! A mask has a deadline, so a grammar whose masks are costly ends its own reply; replies whose last mask took long
//! share fewer threads, so that the masks of others do not queue behind them.

use super::first_line;
use crate::generation::sample::Constraint;
use llguidance::toktrie::SimpleVob;
use llguidance::{CancellationHandle, Matcher};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Time for one mask, from when a thread begins it. Those of 128 tools with 50 parameters each take up to 10 ms.
pub const MASK_DEADLINE: Duration = Duration::from_secs(5);
/// A reply whose last mask took longer waits for one of the threads that take such masks.
const COSTLY: Duration = Duration::from_millis(20);
/// Threads, of which all but one take costly masks.
const THREADS: usize = 3;
/// Virtual memory: the library's recursion over a mask is measured at less than 64 KiB at the bounds.
const STACK_BYTES: usize = 16 << 20;
/// How long a caller without other work sleeps between looks at the deadline.
const LOOK: Duration = Duration::from_millis(50);

/// The matcher of one reply and the mask of its next token.
pub struct Masks {
    mask: SimpleVob,
    next: Next,
    costly: bool,
    deadline: Duration,
}

enum Next {
    Ready(Box<Matcher>),
    Queued(Ticket, Receiver<Computed>),
    Failed(String),
}

/// A mask that is queued or being computed.
struct Ticket {
    cancellation: CancellationHandle,
    /// Set when a thread begins it.
    begun: Arc<OnceLock<Instant>>,
}

struct Computed {
    matcher: Box<Matcher>,
    mask: Result<SimpleVob, String>,
    took: Duration,
}

struct Work {
    matcher: Box<Matcher>,
    token: u32,
    costly: bool,
    cancellation: CancellationHandle,
    begun: Arc<OnceLock<Instant>>,
    done: SyncSender<Computed>,
}

impl Masks {
    /// Of a matcher that can be cancelled, whose next mask is known.
    pub fn new(matcher: Matcher, mask: SimpleVob) -> Self {
        Masks { mask, next: Next::Ready(Box::new(matcher)), costly: false, deadline: MASK_DEADLINE }
    }

    fn fail(&mut self, why: String) {
        self.next = Next::Failed(why);
    }
}

impl Constraint for Masks {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        while !self.wait(LOOK) {}
        match &self.next {
            Next::Failed(why) => Err(why.clone()),
            _ => Ok(Some(self.mask.as_slice())),
        }
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        while !self.wait(LOOK) {}
        let matcher = match std::mem::replace(&mut self.next, Next::Failed(String::new())) {
            Next::Ready(matcher) => matcher,
            Next::Failed(why) => {
                self.next = Next::Failed(why.clone());
                return Err(why);
            }
            queued @ Next::Queued(..) => {
                self.next = queued;
                return Ok(());
            }
        };
        let cancellation = matcher.cancellation_handle().unwrap_or_default();
        let (begun, (done, computed)) = (Arc::new(OnceLock::new()), sync_channel(1));
        let ticket = Ticket { cancellation: cancellation.clone(), begun: begun.clone() };
        self.next = Next::Queued(ticket, computed);
        POOL.submit(Work { matcher, token, costly: self.costly, cancellation, begun, done });
        Ok(())
    }

    fn wait(&mut self, limit: Duration) -> bool {
        let Next::Queued(ticket, computed) = &self.next else { return true };
        match computed.recv_timeout(limit) {
            Ok(Computed { matcher, mask, took }) => {
                self.costly = took > COSTLY;
                match mask {
                    Ok(mask) => (self.mask, self.next) = (mask, Next::Ready(matcher)),
                    Err(why) => self.fail(why),
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.fail("the thread that computes masks has ended".into())
            }
            Err(RecvTimeoutError::Timeout) => {
                if ticket.begun.get().is_none_or(|begun| begun.elapsed() <= self.deadline) {
                    return false;
                }
                ticket.cancellation.cancel();
                self.fail(format!("a mask took longer than {} s", self.deadline.as_secs_f64()));
            }
        }
        true
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        if let Next::Queued(ticket, _) = &self.next {
            ticket.cancellation.cancel();
        }
    }
}

/// Threads for the masks of all replies.
static POOL: LazyLock<&'static Pool> = LazyLock::new(|| {
    let pool: &'static Pool = Box::leak(Box::default());
    for i in 0..THREADS {
        let thread = std::thread::Builder::new().name(format!("mask-{i}")).stack_size(STACK_BYTES);
        thread.spawn(|| pool.run()).expect("a thread for masks");
    }
    pool
});

#[derive(Default)]
struct Pool {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Work>,
    /// Costly masks being computed.
    costly: usize,
}

impl Queue {
    /// The next mask that a thread may begin.
    fn take(&mut self) -> Option<Work> {
        let takes_costly = self.costly + 1 < THREADS;
        let at = self.waiting.iter().position(|work| !work.costly || takes_costly)?;
        let work = self.waiting.remove(at)?;
        self.costly += usize::from(work.costly);
        Some(work)
    }
}

impl Pool {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, work: Work) {
        self.queue().waiting.push_back(work);
        self.changed.notify_one();
    }

    fn run(&self) {
        loop {
            let mut queue = self.queue();
            let work = loop {
                match queue.take() {
                    Some(work) => break work,
                    None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(queue);
            let costly = work.costly;
            work.compute();
            if costly {
                self.queue().costly -= 1;
                self.changed.notify_one();
            }
        }
    }
}

impl Work {
    /// Accepts the token and computes the mask after it. The library turns its panics into errors.
    fn compute(mut self) {
        if self.cancellation.is_cancelled() {
            return;
        }
        let begun = *self.begun.get_or_init(Instant::now);
        // A matcher that has stopped allows nothing but the tokens that end a reply.
        let accepted =
            if self.matcher.is_stopped() { Ok(()) } else { self.matcher.consume_token(self.token) };
        let mask = accepted.and_then(|()| self.matcher.compute_mask_or_eos());
        let mask = mask.map_err(|e| first_line(&e.to_string()));
        // A reply that has ended takes nothing.
        let _ = self.done.send(Computed { matcher: self.matcher, mask, took: begun.elapsed() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llguidance::ParserFactory;
    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::ApproximateTokEnv;

    /// Masks of a grammar over a vocabulary of the bytes.
    fn masks(grammar: TopLevelGrammar) -> Masks {
        let factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
        let mut matcher = Matcher::new(factory.create_parser(grammar)).into_cancellable();
        let mask = matcher.compute_mask_or_eos().unwrap();
        Masks::new(matcher, mask)
    }

    fn allows(masks: &mut Masks, byte: u8) -> bool {
        masks.allowed().unwrap().unwrap()[usize::from(byte) / 32] >> (byte % 32) & 1 == 1
    }

    #[test]
    fn masks_follow_the_tokens() {
        let mut masks = masks(TopLevelGrammar::from_regex("ab*c"));
        for (byte, before, after) in [(b'a', b'a', b'b'), (b'b', b'b', b'c'), (b'c', b'c', b'c')] {
            assert!(allows(&mut masks, before));
            masks.accept(u32::from(byte)).unwrap();
            let more = allows(&mut masks, after);
            assert_eq!(more, byte != b'c', "after {}", char::from(byte));
        }
    }

    #[test]
    fn a_mask_has_a_deadline() {
        let late = |deadline: Duration| {
            let mut masks = masks(TopLevelGrammar::from_regex(r"(\w|b)*a(\w|b){900}"));
            masks.deadline = deadline;
            for _ in 0..200 {
                masks.accept(u32::from(b'a'))?;
                while !masks.wait(Duration::ZERO) {
                    std::hint::spin_loop();
                }
                masks.allowed()?;
            }
            Ok::<_, String>(())
        };
        assert_eq!(late(Duration::ZERO), Err("a mask took longer than 0 s".into()));
        assert_eq!(late(MASK_DEADLINE), Ok(()), "the threads go on after one that was given up");
    }

    #[test]
    fn costly_masks_leave_a_thread_for_others() {
        let work = |costly: bool| {
            let masks = masks(TopLevelGrammar::from_regex("a+"));
            let Next::Ready(matcher) = std::mem::replace(&mut { masks }.next, Next::Failed(String::new()))
            else {
                unreachable!("made ready")
            };
            let (begun, cancellation) = (Arc::default(), CancellationHandle::default());
            Work { matcher, token: 97, costly, cancellation, begun, done: sync_channel(1).0 }
        };
        let mut queue = Queue::default();
        queue.waiting.extend([true, true, true, false, true].map(work));
        let taken: Vec<bool> = std::iter::from_fn(|| queue.take()).map(|work| work.costly).collect();
        assert_eq!((taken, queue.waiting.len()), (vec![true, true, false], 2));
        queue.costly -= 1;
        assert!(queue.take().is_some_and(|work| work.costly));
    }
}
