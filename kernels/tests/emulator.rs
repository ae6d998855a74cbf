//! The CUDA emulator finds defects: in kernels planted for this test, and in how the backend uses the driver.
//!
//! All other tests on the emulator rely on it to abort at a race or an invalid access.

mod common;

use common::{Numbers, emulator, stored};
use kernels::backend::Backend;
use kernels::cuda::Cuda;
use kernels::quant::Format;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Mutex;

/// Cases of kernels/cuda/host/planted.cpp and what the emulator says of them.
const DEFECTS: [(&str, &str); 25] = [
    ("barrier", "race between two warps without a barrier"),
    ("second_barrier", "race between two warps without a barrier"),
    ("syncwarp", "race between two lanes without __syncwarp"),
    ("bytes", "race between two"),
    ("zeroed_counter", "race between two warps without a barrier"),
    ("blocks", "race between blocks of a launch"),
    ("neighbour", "race between blocks of a launch"),
    ("fence", "race between blocks of a launch"),
    ("behind", "write out of bounds (4 bytes) at byte 1024 of an allocation of 1024"),
    ("before", "read out of bounds (4 bytes), 4 bytes before the next"),
    ("shared_size", "write out of bounds (4 bytes) at byte 1024 of 1024 of shared memory"),
    ("freed", "read out of bounds"),
    ("poison", "read out of bounds (4 bytes) at byte 1020 of an allocation of 1024"),
    ("alignment", "misaligned access"),
    ("unwritten", "read of unwritten memory"),
    ("unwritten_shared", "read of unwritten memory (4 bytes) at byte 308 of 1024 of shared memory"),
    ("copy", "read of unwritten memory"),
    ("ldg", "__ldg of memory that the launch writes"),
    ("divergence", "a barrier or shuffle that not all threads reach"),
    ("threads", "more threads than the kernel is compiled for"),
    ("opt_in", "more shared memory than opted in to"),
    ("context", "cuMemAlloc_v2 in a thread without a context"),
    ("wait_in_capture", "a wait for a stream that captures"),
    ("copy_in_capture", "a copy from or to the host in a capture"),
    ("pinned", "pinned memory is freed before a copy of it is done"),
];

/// The program of planted defects, removed on drop.
struct Planted(PathBuf);

impl Planted {
    fn new() -> Option<Planted> {
        emulator::planted().map(Planted)
    }

    fn run(&self, args: &[&str], seed: u64) -> Output {
        Command::new(&self.0).args(args).env("KIMI_EMULATOR_SEED", seed.to_string()).output().unwrap()
    }

    fn prints(&self, args: &[&str], seed: u64) -> String {
        let out = self.run(args, seed);
        assert!(out.status.success(), "{args:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file(self.0.with_extension("cpp"));
    }
}

/// Each planted defect aborts its process in every order of threads and blocks, and the same code without it does not.
#[test]
fn planted_defects_are_found() {
    let Some(planted) = Planted::new() else { return };
    for (case, message) in DEFECTS {
        for seed in 1..=3 {
            let out = planted.run(&[case], seed);
            let stderr = String::from_utf8_lossy(&out.stderr);
            let has_seed = stderr.contains(&format!("KIMI_EMULATOR_SEED={seed}\n"));
            assert!(!out.status.success() && stderr.contains(message) && has_seed, "{case}: {out:?}");
            assert_eq!(planted.prints(&[case, "fixed"], seed).trim(), "", "{case}");
        }
    }
}

/// A copy that does not wait for the kernel before it sometimes runs first.
#[test]
fn copies_run_early_and_kernels_late() {
    let Some(planted) = Planted::new() else { return };
    let results = |args: &[&str]| (1..=20).map(|seed| planted.prints(args, seed)).collect::<HashSet<_>>();
    assert_eq!(results(&["early_copy"]), HashSet::from(["2 \n".to_owned(), "3 \n".to_owned()]));
    assert_eq!(results(&["early_copy", "fixed"]), HashSet::from(["2 \n".to_owned()]));
}

#[test]
fn threads_and_blocks_run_in_an_order_of_the_seed() {
    let Some(planted) = Planted::new() else { return };
    let orders: Vec<String> = (1..=4).map(|seed| planted.prints(&["order"], seed)).collect();
    assert_eq!(orders.iter().collect::<HashSet<_>>().len(), 4, "{orders:?}");
    assert_eq!(planted.prints(&["order"], 1), orders[0]);
    let mut threads: Vec<u32> = orders[0].split_whitespace().map(|n| n.parse().unwrap()).collect();
    threads.sort_unstable();
    assert!(threads.into_iter().eq(0..256), "every thread runs once");
}

/// Terms below the last bit of the largest are cut off, however many there are: 1 + 16 * 2^-24 is 1.
#[test]
fn sums_of_tensor_cores_are_truncated() {
    let Some(planted) = Planted::new() else { return };
    assert_eq!(planted.prints(&["tensor"], 1), "1 \n");
}

/// Serializes the tests that compare free memory.
static ALONE: Mutex<()> = Mutex::new(());

/// A backend of its own on the emulator; `None` and a note without a C++ compiler.
fn cuda() -> Option<Cuda> {
    emulator::library().map(emulator::new_cuda)
}

/// A panic while a step is captured discards the graph: the stream, its memory and later captures are as before.
#[test]
fn a_panic_in_a_capture_leaves_the_backend_usable() {
    let Some(b) = cuda() else { return };
    let _alone = ALONE.lock();
    let table = b.weight(Numbers(1).weight(Format::Q8_0, [1, 9, 256])).unwrap();
    let step = |fails: bool| {
        assert!(b.replay(&table, &[3], &mut []).is_none(), "not captured yet");
        b.capture(&[3], || {
            let x = b.embed(&table, &[3]);
            assert!(!fails, "planted");
            b.sigmoid(x)
        })
    };
    let expected = b.read(&step(false));
    let mut free = Vec::new();
    for _ in 0..3 {
        assert!(catch_unwind(AssertUnwindSafe(|| step(true))).is_err(), "the step panics");
        let read = std::thread::scope(|s| s.spawn(|| b.read(&b.embed(&table, &[3, 3]))).join().unwrap());
        assert_eq!(read[..256], read[256..], "another thread uses the stream");
        free.push(b.memory()[0]);
    }
    assert_eq!(free[1], free[2], "memory of the discarded graphs returns to the pool");
    assert_eq!(b.read(&step(false)), expected, "captured");
    let replayed = b.replay(&table, &[3], &mut []).expect("the captured step");
    assert_eq!(b.read(&replayed), expected);
}

/// Pinned memory, events and graphs may be dropped by a thread that has made no call of the driver.
#[test]
fn a_backend_is_dropped_by_another_thread() {
    let Some(b) = cuda() else { return };
    let _alone = ALONE.lock();
    b.limit_stacks(1 << 20, 1 << 20, 0).unwrap();
    let table = b.weight(Numbers(1).weight(Format::Q8_0, [1, 9, 256])).unwrap();
    for _ in 0..2 {
        assert!(b.replay(&table, &[3], &mut []).is_none(), "captured on the second occurrence");
        let x = b.capture(&[3], || b.embed(&table, &[3]));
        assert_eq!(b.read(&x).len(), 256);
    }
    std::thread::spawn(move || drop((table, b))).join().unwrap();
}

/// A kernel first launched with little shared memory is opted in when a later launch takes more than 48 KB.
#[test]
fn shared_memory_grows_between_launches() {
    let Some(b) = cuda() else { return };
    let _alone = ALONE.lock();
    for cols in [64, 40960] {
        let x = Numbers(2).quants(cols);
        let w = b.weight(stored(Format::Q8_0, [1, 1, cols], &vec![1.0; cols])).unwrap();
        let expected = x.iter().sum::<f32>();
        let found = b.read(&b.matmul_heads(&w, &b.tensor(1, cols, &x)))[0];
        assert!(
            (found - expected).abs() <= 1e-4 * x.iter().map(|x| x.abs()).sum::<f32>(),
            "{found} {expected}"
        );
    }
}
