//! Computes the token masks of replies on a pool of threads while the model runs: after a token is accepted the next mask
//! is queued, and a caller with other work polls [`Constraint::wait`].
//!
//! A mask has a deadline, and a matcher has a memory limit ([`super::memory`]), so a grammar whose masks are costly ends
//! its own reply. Costly masks run on fewer threads and at a lower priority, so that they neither delay the masks of
//! others nor take cores from the model. With a mask comes the [`super::forecast`] of the reply. Matchers are freed by the pool, never by the thread that runs the model.

use super::forecast::{self, Forecast};
use super::memory::{Charge, MATCHERS};
use super::{Compiled, first_line, lower_priority};
use crate::generation::sample::Constraint;
use kernels::heap;
use llguidance::toktrie::SimpleVob;
use llguidance::{CancellationHandle, Matcher};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Time for one mask, from when a thread begins it. Those of 128 tools with 50 parameters each take up to 10 ms.
pub const MASK_DEADLINE: Duration = Duration::from_secs(5);
/// A mask that takes longer makes the next one of its reply a costly one.
const COSTLY: Duration = Duration::from_millis(20);
/// Threads, of which all but one take costly masks.
const THREADS: usize = 3;
/// Virtual memory: the library's recursion over a mask is measured at less than 64 KiB at the bounds.
const STACK_BYTES: usize = 16 << 20;
/// How long a caller without other work sleeps between checks of the deadline.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time from when a matcher is freed to when the heap's free pages return to the system.
const TRIM_DELAY: Duration = Duration::from_secs(1);

/// The matcher of one reply and the mask of its next token.
pub struct Masks {
    mask: Arc<SimpleVob>,
    next: Next,
    costly: bool,
    deadline: Duration,
    /// Whether forecasts are wanted; from the first call of [`Constraint::likely`].
    forecasts: bool,
    /// The text that the grammar expects next, if that was computed with the mask.
    likely: Vec<u8>,
}

enum Next {
    Ready(MaskSource),
    Queued(Arc<Ticket>, Receiver<Computed>),
    Failed(String),
}

/// Where the matcher of the next mask comes from.
enum MaskSource {
    /// A copy of the compiled grammar's: replies that have no token yet share it.
    Shared(Arc<Compiled>),
    Own(Box<Live>),
}

/// A matcher and the heap that it holds.
pub(super) struct Live {
    matcher: Matcher,
    charge: Charge<'static>,
    forecast: Forecast,
}

/// A mask that is queued or being computed.
#[derive(Default)]
struct Ticket {
    abandoned: AtomicBool,
    /// Set when a thread begins it.
    begun: OnceLock<(Instant, CancellationHandle)>,
}

struct Computed {
    live: Box<Live>,
    mask: Result<SimpleVob, String>,
    likely: Vec<u8>,
    took: Duration,
}

enum PoolWork {
    Mask(MaskWork),
    Free(MaskSource),
}

struct MaskWork {
    source: MaskSource,
    token: u32,
    costly: bool,
    forecast: bool,
    ticket: Arc<Ticket>,
    done: SyncSender<Computed>,
}

impl Live {
    /// Runs `make`, which creates the matcher, and charges what it allocates.
    pub(super) fn new(make: impl FnOnce() -> Matcher) -> Self {
        let (matcher, net) = heap::measure(make);
        Live { matcher, charge: MATCHERS.charge(net), forecast: Forecast::default() }
    }

    pub(super) fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// Runs one step of the matcher, charges what it allocates and checks the memory limits. The library turns its panics
    /// into errors.
    pub(super) fn step<T>(
        &mut self,
        step: impl FnOnce(&mut Matcher) -> Result<T, anyhow::Error>,
    ) -> Result<T, String> {
        let (result, net) = heap::measure(|| step(&mut self.matcher));
        self.charge.add(net);
        let result = result.map_err(|e| first_line(&e.to_string()))?;
        self.charge.check().map(|()| result)
    }

    /// Appends a token to the forecast's reply and returns what is expected after it, nothing in an open place.
    fn forecast(&mut self, token: u32, mask: &SimpleVob) -> Vec<u8> {
        let Live { matcher, charge, forecast } = self;
        if let Ok(env) = matcher.tok_env() {
            forecast.push(env.tok_trie().token(token));
        }
        if mask.num_set() > forecast::FEW_TOKENS {
            return Vec::new();
        }
        let ((), net) = heap::measure(|| forecast.extend(matcher));
        charge.add(net);
        forecast.text().to_vec()
    }

    pub(super) fn bytes(&self) -> usize {
        self.charge.bytes()
    }
}

impl Ticket {
    /// Ends the computation at its next step.
    fn cancel(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        if let Some((_, cancellation)) = self.begun.get() {
            cancellation.cancel();
        }
    }

    fn is_late(&self, deadline: Duration) -> bool {
        self.begun.get().is_some_and(|(begun, _)| begun.elapsed() > deadline)
    }
}

impl Masks {
    /// For one reply to a request with this grammar. It shares the compiled matcher until its first token is accepted.
    pub fn new(compiled: Arc<Compiled>) -> Self {
        let mask = compiled.first.clone();
        Masks {
            mask,
            next: Next::Ready(MaskSource::Shared(compiled)),
            costly: false,
            deadline: MASK_DEADLINE,
            forecasts: false,
            likely: Vec::new(),
        }
    }

    fn fail(&mut self, why: String) {
        self.next = Next::Failed(why);
    }
}

impl Constraint for Masks {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        while !self.wait(POLL_INTERVAL) {}
        match &self.next {
            Next::Failed(why) => Err(why.clone()),
            _ => Ok(Some(self.mask.as_slice())),
        }
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        while !self.wait(POLL_INTERVAL) {}
        let source = match std::mem::replace(&mut self.next, Next::Failed(String::new())) {
            Next::Ready(source) => source,
            Next::Failed(why) => {
                self.next = Next::Failed(why.clone());
                return Err(why);
            }
            queued @ Next::Queued(..) => {
                self.next = queued;
                return Ok(());
            }
        };
        self.likely.clear();
        let (forecast, costly) = (self.forecasts && !self.costly, self.costly);
        let (ticket, (done, computed)) = (Arc::<Ticket>::default(), sync_channel(1));
        self.next = Next::Queued(ticket.clone(), computed);
        POOL.submit(PoolWork::Mask(MaskWork { source, token, costly, forecast, ticket, done }));
        Ok(())
    }

    fn wait(&mut self, limit: Duration) -> bool {
        let Next::Queued(ticket, computed) = &self.next else { return true };
        match computed.recv_timeout(limit) {
            Ok(Computed { live, mask, likely, took }) => {
                (self.costly, self.likely) = (took > COSTLY, likely);
                match mask {
                    Ok(mask) => {
                        self.mask = Arc::new(mask);
                        self.next = Next::Ready(MaskSource::Own(live));
                    }
                    Err(why) => {
                        POOL.submit(PoolWork::Free(MaskSource::Own(live)));
                        self.fail(why);
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.fail("the thread that computes masks has ended".into())
            }
            Err(RecvTimeoutError::Timeout) => {
                if !ticket.is_late(self.deadline) {
                    return false;
                }
                ticket.cancel();
                self.fail(format!("a mask took longer than {} s", self.deadline.as_secs_f64()));
            }
        }
        true
    }

    fn likely(&mut self, limit: Duration) -> Vec<u8> {
        self.forecasts = true;
        // A step does not wait for the forecast of a costly grammar.
        let limit = if self.costly { Duration::ZERO } else { limit };
        if self.wait(limit) { self.likely.clone() } else { Vec::new() }
    }
}

impl Drop for Masks {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.next, Next::Failed(String::new())) {
            Next::Ready(source) => POOL.submit(PoolWork::Free(source)),
            Next::Queued(ticket, _) => ticket.cancel(),
            Next::Failed(_) => {}
        }
    }
}

/// Threads for the masks of all replies.
static POOL: LazyLock<&'static MaskPool> = LazyLock::new(|| {
    let pool: &'static MaskPool = Box::leak(Box::default());
    for i in 0..THREADS {
        let takes_costly = i > 0;
        let thread =
            std::thread::Builder::new().name(format!("{}{i}", super::MASK_THREAD)).stack_size(STACK_BYTES);
        thread.spawn(move || pool.run(takes_costly)).expect("a thread for masks");
    }
    pool
});

#[derive(Default)]
struct MaskPool {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<PoolWork>,
    /// When the first matcher was freed since the heap was trimmed.
    untrimmed: Option<Instant>,
}

impl PoolWork {
    fn is_costly(&self) -> bool {
        match self {
            PoolWork::Mask(work) => work.costly,
            PoolWork::Free(_) => true,
        }
    }
}

impl Queue {
    /// The next item that a thread may begin.
    fn take(&mut self, takes_costly: bool) -> Option<PoolWork> {
        let at = self.waiting.iter().position(|work| takes_costly || !work.is_costly())?;
        self.waiting.remove(at)
    }
}

impl MaskPool {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, work: PoolWork) {
        self.queue().waiting.push_back(work);
        self.changed.notify_all();
    }

    fn run(&self, takes_costly: bool) {
        if takes_costly {
            lower_priority();
        }
        loop {
            match self.next(takes_costly) {
                Some(PoolWork::Mask(work)) => {
                    if let Some(live) = work.compute() {
                        self.submit(PoolWork::Free(MaskSource::Own(live)));
                    }
                }
                Some(PoolWork::Free(source)) => {
                    drop(source);
                    self.freed();
                }
                None => heap::trim(),
            }
        }
    }

    /// Waits for the next item. The thread of cheap masks, which runs at the priority of the model, returns None when the
    /// heap is to be trimmed: a trim holds the allocator's locks.
    fn next(&self, takes_costly: bool) -> Option<PoolWork> {
        let mut queue = self.queue();
        loop {
            if let Some(work) = queue.take(takes_costly) {
                return Some(work);
            }
            let untrimmed = queue.untrimmed.filter(|_| !takes_costly);
            let left = untrimmed.map(|freed| TRIM_DELAY.saturating_sub(freed.elapsed()));
            queue = match left {
                Some(Duration::ZERO) => {
                    queue.untrimmed = None;
                    return None;
                }
                Some(left) => {
                    self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Schedules a trim of the heap after [`TRIM_DELAY`].
    fn freed(&self) {
        self.queue().untrimmed.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }
}

/// Returns the heap's free pages to the system soon; for what a compilation has freed.
pub(super) fn trim_soon() {
    POOL.freed();
}

impl MaskWork {
    /// Accepts the token and computes the mask after it; returns the matcher if the reply has ended meanwhile.
    fn compute(self) -> Option<Box<Live>> {
        let MaskWork { source, token, forecast, ticket, done, .. } = self;
        let start = Instant::now();
        let mut live = match source {
            MaskSource::Own(live) => live,
            MaskSource::Shared(compiled) if !ticket.abandoned.load(Ordering::SeqCst) => {
                Box::new(compiled.fork())
            }
            MaskSource::Shared(_) => return None,
        };
        let cancellation = live.matcher().cancellation_handle().unwrap_or_default();
        let _ = ticket.begun.set((start, cancellation));
        if ticket.abandoned.load(Ordering::SeqCst) {
            return Some(live);
        }
        let mask = live.step(|matcher| {
            // A matcher that has stopped allows nothing but the tokens that end a reply.
            if !matcher.is_stopped() {
                matcher.consume_token(token)?;
            }
            matcher.compute_mask_or_eos()
        });
        let likely = match &mask {
            Ok(mask) if forecast => live.forecast(token, mask),
            _ => Vec::new(),
        };
        let computed = Computed { live, mask, likely, took: start.elapsed() };
        done.send(computed).err().map(|unsent| unsent.0.live)
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
        let mut live = Live::new(|| Matcher::new(factory.create_parser(grammar)).into_cancellable());
        let first = live.step(Matcher::compute_mask_or_eos).unwrap();
        Masks::new(Arc::new(Compiled::new(live, first)))
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
            let mut masks = masks(TopLevelGrammar::from_regex("a+"));
            let Next::Ready(source) = std::mem::replace(&mut masks.next, Next::Failed(String::new())) else {
                unreachable!("no token has been accepted")
            };
            PoolWork::Mask(MaskWork {
                source,
                token: 97,
                costly,
                forecast: false,
                ticket: Arc::default(),
                done: sync_channel(1).0,
            })
        };
        let mut queue = Queue { waiting: [true, true, false, true].map(work).into(), untrimmed: None };
        assert!(queue.take(false).is_some_and(|work| !work.is_costly()));
        assert!(queue.take(false).is_none(), "the thread for cheap masks waits");
        assert!(queue.take(true).is_some_and(|work| work.is_costly()));
        assert_eq!(queue.waiting.len(), 2);
    }

    #[test]
    fn replies_share_a_matcher_until_their_first_token() {
        let factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
        let grammar = TopLevelGrammar::from_regex("ab");
        let mut live = Live::new(|| Matcher::new(factory.create_parser(grammar)).into_cancellable());
        let first = live.step(Matcher::compute_mask_or_eos).unwrap();
        let compiled = Arc::new(Compiled::new(live, first));
        let [mut one, mut other] = [0; 2].map(|_| Masks::new(compiled.clone()));
        assert_eq!(Arc::strong_count(&compiled), 3);
        one.accept(u32::from(b'a')).unwrap();
        assert!(allows(&mut one, b'b') && !allows(&mut one, b'a'));
        assert_eq!(Arc::strong_count(&compiled), 2);
        assert!(allows(&mut other, b'a'), "the other reply is at its start");
        other.accept(u32::from(b'b')).unwrap();
        assert!(other.allowed().is_err(), "and follows the grammar from there");
    }
}
