//! Runs parallel regions on a thread pool; threads claim chunks dynamically, each from its own run of chunks first.
//!
//! A region costs well under a microsecond while the workers are awake. An idle worker spins for a few microseconds,
//! yields its core a few times, then parks, so an idle pool uses no CPU. The caller never waits for a worker that has
//! not entered the region, so a preempted worker costs only its share of the work; dynamic claiming balances cores of
//! unequal speed. The pool allocates nothing after start-up. Only this file erases a lifetime. Next: `autovec`.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};

/// Bytes that a thread copies at once.
const COPY_BYTES: usize = 128 << 10;

/// Worker threads that run the chunks of a region together with the calling thread.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller of a region; a concurrent caller runs its chunks alone.
    region: Mutex<()>,
}

/// A region's body, called with each chunk index.
type Body<'a> = dyn Fn(usize) + Sync + 'a;

/// Padded to its own cache lines: all threads write it.
#[repr(align(128))]
struct CachePadded<T>(T);

struct Shared {
    /// Region number << 32 | `OPEN` while workers may enter | workers inside.
    gate: CachePadded<AtomicU64>,
    /// The next chunk of each thread's run; thread 0 is the caller.
    next: CachePadded<Vec<AtomicUsize>>,
    /// Body and number of chunks of the region.
    job: UnsafeCell<(*const Body<'static>, usize)>,
    /// One per worker: whether it is parked or about to park.
    asleep: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const REGION: u64 = 1 << 32;

/// Polls of the gate before a worker yields: about 10 us.
const SPINS: u32 = 500;
/// Yields before a worker parks.
const YIELDS: u32 = 50;

// SAFETY: `job` is written only by the holder of `ThreadPool::region` while the gate is closed and no thread is inside,
// and read only by threads inside, which entered by a read-modify-write of the gate after that write. Its
// pointer is followed only inside a region, during which the caller keeps the body borrowed.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// A pool of `threads` threads, the caller's included; fewer where the system refuses to start them.
    pub fn new(threads: usize) -> ThreadPool {
        assert!(threads > 0, "a pool needs a thread");
        let shared = Arc::new(Shared {
            gate: CachePadded(AtomicU64::new(0)),
            next: CachePadded((0..threads).map(|_| AtomicUsize::new(0)).collect()),
            job: UnsafeCell::new((&|_| (), 0)),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let spawn = |i: usize| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("kernels-{i}")).spawn(move || shared.work(i)).ok()
        };
        let workers = (0..threads - 1).map_while(spawn).collect();
        ThreadPool { shared, workers, region: Mutex::new(()) }
    }

    /// Threads that take part in a region, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` with each index below `chunks`, on any thread, in any order, and returns when all calls have
    /// returned; a panic resumes in the caller. Runs as a plain loop inside a region or while another thread has one
    /// open.
    pub fn parallel_for(&self, chunks: usize, body: impl Fn(usize) + Sync) {
        let region = match self.region.try_lock() {
            Ok(region) => Some(region),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if region.is_none() || chunks < 2 || self.workers.is_empty() {
            return (0..chunks).for_each(body);
        }
        self.open(&body, chunks);
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.claim(0, &body, chunks)));
        self.shared.close();
        drop(region);
        let theirs = lock_panic(&self.shared).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Calls `body` with each run of `len` values (the last may be shorter) and its index.
    pub fn for_chunks<T: Send>(&self, values: &mut [T], len: usize, body: impl Fn(usize, &mut [T]) + Sync) {
        let (total, len) = (values.len(), len.max(1));
        let parts = Parts::new(values);
        self.parallel_for(total.div_ceil(len), |i| {
            // SAFETY: the runs of different chunks do not overlap, and each index is called once.
            body(i, unsafe { parts.get(i * len..((i + 1) * len).min(total)) });
        });
    }

    /// Copies bytes with all threads: one thread is slower than the bus to a GPU.
    pub fn copy(&self, to: &mut [u8], from: &[u8]) {
        self.for_chunks(to, COPY_BYTES, |i, part| {
            part.copy_from_slice(&from[i * COPY_BYTES..][..part.len()])
        });
    }

    fn open(&self, body: &Body<'_>, chunks: usize) {
        // SAFETY: only the lifetime changes. `parallel_for` does not return before `close` has seen every
        // worker leave, and a worker follows the pointer only between entering and leaving.
        let body: &Body<'static> = unsafe { std::mem::transmute(body) };
        // SAFETY: the gate is closed, no thread is inside, and the caller holds `region`.
        unsafe { *self.shared.job.get() = (body, chunks) };
        for (thread, next) in self.shared.next.0.iter().enumerate() {
            next.store(self.shared.run(thread, chunks).start, Ordering::Relaxed);
        }
        let gate = self.shared.gate.0.load(Ordering::Relaxed);
        self.shared.gate.0.store((gate & !(REGION - 1)).wrapping_add(REGION) | OPEN, Ordering::SeqCst);
        fence(Ordering::SeqCst); // a worker either sees the open gate or is seen asleep
        for (asleep, worker) in self.shared.asleep.iter().zip(&self.workers) {
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of bodies, so there is no error to lose.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The chunks that a thread claims first: neighbours, so that it reads one stream of memory.
    fn run(&self, thread: usize, chunks: usize) -> Range<usize> {
        let threads = self.next.0.len();
        thread * chunks / threads..(thread + 1) * chunks / threads
    }

    /// Runs the chunks of a thread's own run, then those left in the other runs; a panic discards the rest.
    fn claim(&self, thread: usize, body: &Body<'_>, chunks: usize) {
        let stop_all = StopAll(self, chunks);
        let threads = self.next.0.len();
        for owner in (thread..threads).chain(0..thread) {
            let (next, end) = (&self.next.0[owner], self.run(owner, chunks).end);
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= end {
                    break;
                }
                body(i);
            }
        }
        std::mem::forget(stop_all);
    }

    /// Closes the gate and waits for the workers inside.
    fn close(&self) {
        self.gate.0.fetch_and(!OPEN, Ordering::SeqCst);
        let mut looks = 0;
        while self.gate.0.load(Ordering::Acquire) & INSIDE != 0 {
            looks += 1;
            if looks < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }

    /// Enters region after region and claims chunks of it, until the pool is dropped.
    fn work(&self, worker: usize) {
        let mut done = 0; // the last region this worker entered
        while let Some(gate) = self.wait(worker, done) {
            if self.gate.0.compare_exchange(gate, gate + 1, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                continue;
            }
            done = gate & !(REGION - 1);
            // SAFETY: it is inside: the job was written before the gate opened and stays until it leaves.
            let (body, chunks) = unsafe { *self.job.get() };
            // SAFETY: the caller keeps the body borrowed until this worker has left.
            let body = unsafe { &*body };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.claim(worker + 1, body, chunks))) {
                lock_panic(self).get_or_insert(panic);
            }
            self.gate.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a region other than `done` to open and returns the gate's value; None when the pool is dropped.
    fn wait(&self, worker: usize, done: u64) -> Option<u64> {
        let mut looks = 0;
        loop {
            let gate = self.gate.0.load(Ordering::SeqCst);
            if gate & OPEN != 0 && gate & !(REGION - 1) != done {
                return Some(gate);
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            looks += 1;
            if looks < SPINS {
                std::hint::spin_loop();
            } else if looks < SPINS + YIELDS {
                thread::yield_now();
            } else {
                self.sleep(worker, done);
            }
        }
    }

    fn sleep(&self, worker: usize, done: u64) {
        self.asleep[worker].store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let gate = self.gate.0.load(Ordering::SeqCst);
        let opened = gate & OPEN != 0 && gate & !(REGION - 1) != done;
        if !opened && !self.stop.load(Ordering::SeqCst) {
            thread::park(); // may wake spuriously: the loop polls again
        }
        self.asleep[worker].store(false, Ordering::SeqCst);
    }
}

/// Discards the remaining chunks on unwinding.
struct StopAll<'a>(&'a Shared, usize);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.next.0.iter().for_each(|next| next.store(self.1, Ordering::Relaxed));
    }
}

fn lock_panic(shared: &Shared) -> std::sync::MutexGuard<'_, Option<Box<dyn Any + Send>>> {
    shared.panic.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slice whose disjoint parts the chunks of a region write.
pub struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose parts go to several threads; `get` makes its caller keep them apart.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Borrows the slice for as long as parts of it are handed out.
    pub fn new(slice: &'a mut [T]) -> Parts<'a, T> {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The part at `range`.
    ///
    /// # Safety
    /// Overlapping parts must not be alive at the same time.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub unsafe fn get(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn every_chunk_runs_once() {
        for (threads, chunks) in [(1, 5), (2, 0), (2, 1), (2, 1000), (4, 7), (8, 100_000)] {
            let pool = ThreadPool::new(threads);
            for _ in 0..5 {
                let mut runs = vec![0u8; chunks];
                pool.for_chunks(&mut runs, 1, |_, run| run[0] += 1);
                assert!(runs.iter().all(|&r| r == 1), "{threads} threads, {chunks} chunks");
            }
        }
    }

    #[test]
    fn many_small_regions() {
        let pool = ThreadPool::new(3);
        let sum = AtomicUsize::new(0);
        for round in 0..20_000 {
            pool.parallel_for(4, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 6 * (round + 1));
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = ThreadPool::new(2);
        let woke = (0..50).filter(|_| {
            thread::sleep(Duration::from_millis(3));
            let caller = thread::current().id();
            let other = AtomicBool::new(false);
            let begun = Instant::now();
            pool.parallel_for(1000, |_| {
                other.fetch_or(thread::current().id() != caller, Ordering::Relaxed);
                while !other.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_millis(20) {
                    thread::yield_now();
                }
            });
            other.into_inner()
        });
        assert!(woke.count() > 0, "the worker never took part");
    }

    #[test]
    fn the_run_of_a_busy_thread_is_claimed_by_others() {
        let pool = ThreadPool::new(2);
        let done = AtomicUsize::new(0);
        let begun = Instant::now();
        pool.parallel_for(100, |i| {
            while i == 0 && done.load(Ordering::Relaxed) < 99 {
                assert!(begun.elapsed() < Duration::from_secs(60), "{done:?} of 99 other chunks ran");
                thread::yield_now();
            }
            done.fetch_add(1, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = ThreadPool::new(2);
        for bad in [0, 50, 99] {
            let run = || pool.parallel_for(100, |i| assert_ne!(i, bad, "chunk {i}"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            let mut after = [0; 64];
            pool.for_chunks(&mut after, 3, |_, part| part.fill(1));
            assert_eq!(after, [1; 64]);
        }
    }

    #[test]
    fn a_region_inside_a_region_and_beside_another() {
        let pool = ThreadPool::new(2);
        let count = AtomicUsize::new(0);
        let inner = || pool.parallel_for(8, |_| _ = count.fetch_add(1, Ordering::Relaxed));
        let nested = || pool.parallel_for(8, |_| inner());
        thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(nested))));
        assert_eq!(count.into_inner(), 3 * 64);
    }
}
