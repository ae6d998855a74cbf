//! The CUDA emulator finds defects: in kernels planted for this test, and in how the backend uses the driver.
//!
//! All other tests on the emulator rely on it to abort at a race or an invalid access.

mod common;

use common::{Numbers, emulator, spans, stored, vector};
use kernels::backend::{
    Backend, CacheFormat, ExpertCacheStats, GatedMlp, QuantTensor, Residual, Routing, StatePart,
};
use kernels::cuda::Cuda;
use kernels::quant::Format;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Mutex;

/// Cases of kernels/cuda/host/planted.cpp and what the emulator says of them.
const DEFECTS: [(&str, &str); 33] = [
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
    ("read_early", "access of what an earlier launch writes before griddepcontrol.wait"),
    ("read_early_of_two", "access of what an earlier launch writes before griddepcontrol.wait"),
    ("write_early", "write of what an earlier launch reads before griddepcontrol.wait"),
    ("end_early", "a thread that ends without griddepcontrol.wait"),
    ("ldg_of_launch", "__ldg of memory that an overlapping launch writes"),
    ("prefetch", "prefetch from outside an allocation (16 bytes) at byte 1024 of an allocation of 1024"),
    ("no_wait", "a programmatic launch of planted_write_early, which does not wait"),
    ("programmatic_in_capture", "a programmatic launch that follows no launch in a capture"),
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

/// Width of the model of two mixtures, its experts, and rows of its caches before the first step: they grow past a segment
/// (256 rows).
const DIM: usize = 256;
const EXPERTS: usize = 256;
const ROWS: usize = 253;

/// A token's attention to its cache, then two mixtures of experts in RAM.
struct Mixtures<B: Backend> {
    table: B::Weight,
    norm: B::Weight,
    bias: B::Weight,
    router: B::Weight,
    experts: [B::Weight; 3],
    shared: [B::Weight; 3],
}

fn gated_mlp<W>([gate, up, down]: &[W; 3]) -> GatedMlp<'_, W> {
    GatedMlp { gate, up, down, limit: f32::INFINITY }
}

impl<B: Backend> Mixtures<B> {
    fn new(b: &B, stored: &[QuantTensor; 6]) -> Self {
        let load = |i: usize| b.weight(stored[i].clone()).unwrap();
        let experts = [load(4), load(4), load(4)];
        let shared = [load(5), load(5), load(5)];
        Mixtures { table: load(0), norm: load(1), bias: load(2), router: load(3), experts, shared }
    }

    fn step(&self, b: &B, ids: &[u32], caches: &mut [B::Cache]) -> B::Tensor {
        let how = Routing { top_k: 4, groups: 1, top_groups: 1, normalize: true, scale: 1.0 };
        let mut x = b.embed(&self.table, ids);
        let mut h = b.rms_norm(&x, &self.norm, 1e-5);
        let mut states = spans(&vec![1; ids.len()], caches);
        b.append(&mut states, &h);
        b.add(&mut x, &b.latent_attention(&mut states, &h, DIM, 0.0625));
        for _ in 0..2 {
            h = b.rms_norm(&x, &self.norm, 1e-5);
            let routed = b.matmul_route(&self.router, &h, &self.bias, how);
            let to = Residual { x: &mut x, norm: &self.norm, eps: 1e-5 };
            h = b.mixture_add_norm(gated_mlp(&self.experts), Some(gated_mlp(&self.shared)), &h, &routed, to);
        }
        h
    }
}

/// With experts in RAM a captured step is one graph per mixture and one more. Replays have the bits of steps run op by op, with
/// hits and misses of the expert cache, and while KV caches take another segment.
#[test]
fn replays_with_experts_in_ram_have_the_same_bits() {
    let Some(b) = cuda() else { return };
    let _alone = ALONE.lock();
    let mut n = Numbers(3);
    let stored = [
        n.weight(Format::Q8_0, [1, 9, DIM]),
        vector(&[1.0; DIM]),
        vector(&[0.0; EXPERTS]),
        n.weight(Format::F32, [1, EXPERTS, DIM]),
        n.weight(Format::Q4_0, [EXPERTS, DIM, DIM]),
        n.weight(Format::Q4_0, [1, DIM, DIM]),
    ];
    let rows = n.vec(ROWS * DIM);
    for tokens in [1, 3] {
        let run = |is_captured: bool| {
            b.limit_stacks(0, 0, 12).unwrap();
            let model = Mixtures::new(&b, &stored); // with an empty expert cache
            let mut caches: Vec<_> = (0..tokens).map(|_| b.cache(CacheFormat::F16, DIM)).collect();
            for cache in &mut caches {
                b.append(&mut spans(&[ROWS], std::slice::from_mut(cache)), &b.tensor(ROWS, DIM, &rows));
            }
            let (mut found, mut replays) = (Vec::new(), 0);
            for i in 0..10 {
                let ids: Vec<u32> = (0..tokens).map(|token| (i % 3 + token) as u32).collect();
                let [graphs, kernels] = [b.graph_launches(), b.launched()];
                let mut parts: Vec<_> = caches.iter_mut().map(StatePart::Cache).collect();
                let step = if !is_captured {
                    model.step(&b, &ids, &mut caches)
                } else if let Some(x) = b.replay(&model.table, &ids, &mut parts) {
                    replays += 1;
                    assert_eq!(b.graph_launches() - graphs, 3, "one more than mixtures");
                    assert!(b.launched() - kernels <= 6, "up, down and sum of each mixture");
                    x
                } else {
                    b.capture(&ids, || model.step(&b, &ids, &mut caches))
                };
                found.push(b.read(&step));
            }
            assert!(caches.iter().all(|cache| b.cache_len(cache) == ROWS + 10));
            assert_eq!(replays > 4, is_captured, "{replays} replays");
            found
        };
        let uses = || b.expert_cache_stats().unwrap_or_default();
        let before = uses();
        let expected = run(false);
        let op_by_op = uses();
        assert_eq!(run(true), expected, "{tokens} tokens");
        let ExpertCacheStats { hits, lookups } = uses() - op_by_op;
        assert_eq!(hits, (op_by_op - before).hits, "hits");
        assert!(0 < hits && hits < lookups, "{hits} hits of {lookups}");
    }
}
