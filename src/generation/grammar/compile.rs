//! Compiles grammars on threads of their own: a few at a time, at a low priority, with a stack that fits the bounds and a
//! deadline after which the caller gives up.

use super::masks::Live;
use super::memory::MATCHERS;
use super::{Compiled, lower_priority};
use llguidance::api::TopLevelGrammar;
use llguidance::{CancellationHandle, Matcher, ParserFactory};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Virtual memory for the stack of a compilation. Measured per level, in a debug build: 3.3 KiB for a reference alone,
/// 9 KiB through a property, 0.3 KiB for a property of an object, 3.3 KiB for a Lark rule or terminal, 2.2 KiB for a
/// bracket. What [`super::bounds`] let through takes at most 53 MiB (4,096 rules with 16,384 brackets), a fifth.
const STACK_BYTES: usize = 256 << 20;
/// Compilations at a time, and requests that wait for one to end: fewer than the threads that prepare requests, so that
/// those without a grammar find one.
const RUNNING: usize = 2;
const WAITING: usize = 26;
/// Time for a compilation, and for the wait before it: together less than the 10 s in which every request is answered
/// or has its first token.
pub const COMPILE_DEADLINE: Duration = Duration::from_secs(6);
const WAIT_DEADLINE: Duration = Duration::from_secs(3);
/// How often a waiting caller checks whether its client has left.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Why a grammar was not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// What is wrong with it, or not supported.
    #[error("{0}")]
    Invalid(String),
    /// It took longer than [`COMPILE_DEADLINE`].
    #[error("expected a grammar that compiles within {} s", COMPILE_DEADLINE.as_secs())]
    Slow,
    /// Too many other grammars are being compiled.
    #[error("{0} grammars are being compiled; try again later")]
    Busy(usize),
    /// Matchers of other replies hold all memory for grammars.
    #[error("the grammars of other replies take all {} MiB of memory for grammars; try again later", super::memory::TOTAL_BYTES >> 20)]
    Full,
    /// The caller gave up before the end.
    #[error("given up before the grammar was compiled")]
    Abandoned,
}

/// Counts the compilations of a process.
static GATE: Gate = Gate { counts: Mutex::new(Counts { running: 0, waiting: 0 }), freed: Condvar::new() };

struct Gate {
    counts: Mutex<Counts>,
    freed: Condvar,
}

struct Counts {
    running: usize,
    waiting: usize,
}

/// The right to compile, until the thread ends that does.
struct Permit;

impl Gate {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, abandoned: &dyn Fn() -> bool) -> Result<Permit, CompileError> {
        let mut counts = self.counts();
        if counts.waiting >= WAITING {
            return Err(CompileError::Busy(counts.running + counts.waiting));
        }
        counts.waiting += 1;
        let start = Instant::now();
        let outcome = loop {
            if abandoned() {
                break Err(CompileError::Abandoned);
            }
            if counts.running < RUNNING {
                counts.running += 1;
                break Ok(Permit);
            }
            if start.elapsed() > WAIT_DEADLINE {
                break Err(CompileError::Busy(counts.running + counts.waiting));
            }
            counts = self.freed.wait_timeout(counts, POLL_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        };
        counts.waiting -= 1;
        outcome
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        GATE.counts().running -= 1;
        GATE.freed.notify_one();
    }
}

/// Compiles a grammar within all bounds and computes its first mask. `abandoned` says that the caller's client has
/// left: the compilation then does not begin, or ends at its next step and is waited for by none.
pub fn compile(
    factory: &Arc<ParserFactory>,
    grammar: TopLevelGrammar,
    abandoned: &dyn Fn() -> bool,
) -> Result<Compiled, CompileError> {
    if MATCHERS.is_full() {
        return Err(CompileError::Full);
    }
    let permit = GATE.enter(abandoned)?;
    let stop = Arc::new(Stop::default());
    let (factory, theirs, (done, outcome)) = (factory.clone(), stop.clone(), sync_channel(1));
    let work = move || {
        lower_priority();
        let compiled = theirs.compile(&factory, grammar);
        super::masks::trim_soon();
        drop(permit);
        // A caller that has left takes nothing.
        let _ = done.send(compiled);
    };
    let thread = std::thread::Builder::new().name(super::COMPILE_THREAD.into()).stack_size(STACK_BYTES);
    thread.spawn(work).map_err(|e| CompileError::Invalid(format!("no thread to compile it: {e}")))?;
    let start = Instant::now();
    let error = loop {
        match outcome.recv_timeout(POLL_INTERVAL) {
            Ok(compiled) => return compiled,
            Err(RecvTimeoutError::Disconnected) => {
                break CompileError::Invalid("the compilation has failed".into());
            }
            Err(RecvTimeoutError::Timeout) if abandoned() => break CompileError::Abandoned,
            Err(RecvTimeoutError::Timeout) if start.elapsed() > COMPILE_DEADLINE => break CompileError::Slow,
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    stop.now();
    Err(error)
}

/// Ends a compilation at its next step.
#[derive(Default)]
struct Stop {
    stopped: AtomicBool,
    mask: Mutex<Option<CancellationHandle>>,
}

impl Stop {
    fn now(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.mask.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(CancellationHandle::cancel);
    }

    fn compile(&self, factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Compiled, CompileError> {
        let mut live = Live::new(|| Matcher::new(factory.create_parser(grammar)).into_cancellable());
        live.step(|matcher| matcher.get_error().map_or(Ok(()), |why| Err(anyhow::Error::msg(why))))
            .map_err(CompileError::Invalid)?;
        *self.mask.lock().unwrap_or_else(PoisonError::into_inner) = live.matcher().cancellation_handle();
        if self.stopped.load(Ordering::SeqCst) {
            return Err(CompileError::Abandoned);
        }
        let first = live.step(Matcher::compute_mask_or_eos).map_err(CompileError::Invalid)?;
        Ok(Compiled::new(live, first))
    }
}
